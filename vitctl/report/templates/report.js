// Adds to a page that is complete without it: readouts, zoom, series to switch off, sorting, themes.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement;
  root.classList.add("script");

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // -- theme --

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const theme = make("button", { className: "theme", type: "button" });
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.ariaLabel = `Show in ${isDark() ? "light" : "dark"} colours`; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  dark.addEventListener("change", nameTheme);
  nameTheme();
  document.querySelector("header").prepend(theme);

  // -- everything open on paper --

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((each) => { each.open = false; }));

  // -- series --

  const hidden = new Set();
  document.querySelectorAll(".legend li").forEach((item) => {
    const button = make("button", { type: "button", ariaPressed: "true" }, ...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      const { series } = item.dataset;
      hidden.has(series) ? hidden.delete(series) : hidden.add(series);
      button.ariaPressed = String(!hidden.has(series));
      document.querySelectorAll(".chart [data-series]").forEach((mark) => {
        mark.style.display = hidden.has(mark.dataset.series) ? "none" : "";
      });
    });
  });

  // -- readouts and zoom --

  const readout = document.getElementById("readout");
  const show = (text, x, y) => {
    readout.textContent = text;
    readout.hidden = !text;
    if (!text) return;
    const { width, height } = readout.getBoundingClientRect();
    readout.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
    readout.style.top = `${y - height - 14 > 4 ? y - height - 14 : y + 18}px`;
  };
  const number = (value) => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  const nice = (low, high) => {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    return found;
  };

  document.querySelectorAll(".figure").forEach((figure) => {
    const plot = figure.querySelector(".plot"), svg = plot.querySelector("svg");
    const data = figure.querySelector("script.readout");
    const large = make("button", { type: "button", className: "enlarge", textContent: "Enlarge" });
    large.ariaLabel = `Enlarge: ${svg.querySelector("title").textContent}`;
    large.addEventListener("click", () => enlarge(figure, large));
    figure.prepend(large);
    if (!data) return;
    const chart = JSON.parse(data.textContent);
    const add = (tag, attributes) => {
      const element = document.createElementNS(SVG, tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      svg.append(element);
      return element;
    };
    const cursor = add("line", { class: "cursor", y1: chart.top, y2: chart.bottom, visibility: "hidden" });
    const wide = chart.right - chart.left, high = chart.bottom - chart.top;
    plot.tabIndex = 0;
    plot.role = "group";
    plot.ariaLabel = `${svg.querySelector("title").textContent}, values by arrow keys`;

    // How each kind of chart finds its stops, and the text at one; positions are in the chart's pixels.
    let view = chart.x && [...chart.x], at = -1;
    const stops = chart.kind === "lines" ? [...new Set(chart.series.flatMap((each) => each.x))].sort((a, b) => a - b) : null;
    const across = (x) => chart.left + (x - view[0]) / (view[1] - view[0]) * wide;
    const kinds = {
      lines: {
        count: () => stops.length,
        near: (px) => {
          const x = view[0] + (px - chart.left) / wide * (view[1] - view[0]);
          return stops.reduce((best, each, i) => Math.abs(each - x) < Math.abs(stops[best] - x) ? i : best, 0);
        },
        place: (i) => [across(stops[i]), chart.top],
        text: (i) => [`${chart.name} ${number(stops[i])}`, ...chart.series
          .filter((each) => !hidden.has(each.series))
          .map((each) => [each.label, each.y[each.x.indexOf(stops[i])]])
          .filter(([, value]) => value !== undefined && value !== null)
          .map(([label, value]) => `${label}: ${number(value)}`)].join("\n"),
      },
      columns: {
        count: () => chart.texts.length,
        near: (px) => Math.floor((px - chart.left) / wide * chart.texts.length),
        place: (i) => [chart.left + (i + 0.5) / chart.texts.length * wide, chart.top],
        text: (i) => chart.texts[i],
      },
      rows: {
        count: () => chart.texts.length,
        near: (px, py) => Math.floor((py - chart.top) / high * chart.texts.length),
        place: (i) => [(chart.left + chart.right) / 2, chart.top + (i + 0.5) / chart.texts.length * high],
        text: (i) => chart.texts[i],
        upward: true,
      },
      points: {
        count: () => chart.texts.length,
        near: (px, py) => {
          const far = chart.at.map((points) => Math.min(...points.map(([x, y]) => (x - px) ** 2 + (y - py) ** 2)));
          return far.indexOf(Math.min(...far));
        },
        place: (i) => chart.at[i][chart.at[i].length - 1],
        text: (i) => chart.texts[i],
      },
      matrix: {
        count: () => chart.names.length ** 2,
        near: (px, py) => {
          const n = chart.names.length;
          return Math.min(n - 1, Math.floor((py - chart.top) / high * n)) * n + Math.min(n - 1, Math.floor((px - chart.left) / wide * n));
        },
        place: (i) => {
          const n = chart.names.length;
          return [chart.left + (i % n + 0.5) / n * wide, chart.top + (Math.floor(i / n) + 0.5) / n * high];
        },
        text: (i) => {
          const n = chart.names.length, row = Math.floor(i / n), column = i % n;
          const cells = chart.cells.filter((cell) => cell[0] === row);
          const total = cells.reduce((sum, cell) => sum + cell[2], 0);
          const count = (cells.find((cell) => cell[1] === column) || [0, 0, 0])[2];
          return `${chart.names[row]} → ${chart.names[column]}\n${count.toLocaleString("en")} of ${total.toLocaleString("en")}` +
            (total ? ` (${(100 * count / total).toFixed(1)} %)` : "");
        },
      },
    };
    const kind = kinds[chart.kind];

    const toChart = (event) => {
      const box = svg.getBoundingClientRect(), scale = chart.width / box.width;
      return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    };
    const stop = (i, event) => {
      at = Math.max(0, Math.min(kind.count() - 1, i));
      const [x, y] = kind.place(at), box = svg.getBoundingClientRect(), scale = box.width / chart.width;
      if (chart.kind === "lines") {
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
        cursor.setAttribute("visibility", x >= chart.left - 1 && x <= chart.right + 1 ? "visible" : "hidden");
      }
      show(kind.text(at), event ? event.clientX : box.left + x * scale, event ? event.clientY : box.top + y * scale);
    };
    const leave = () => { show(""); cursor.setAttribute("visibility", "hidden"); };

    const zoom = (low, top) => {
      if (!chart.x) return;
      view = top - low < (chart.x[1] - chart.x[0]) / 500 ? view : [Math.max(low, chart.x[0]), Math.min(top, chart.x[1])];
      const scale = (chart.x[1] - chart.x[0]) / (view[1] - view[0]);
      // The values in view fill the height.
      let [bottom, above] = chart.y;
      if (scale > 1.001) {
        const values = chart.series.filter((each) => !hidden.has(each.series))
          .flatMap((each) => each.y.filter((value, i) => value !== null && each.x[i] >= view[0] && each.x[i] <= view[1]));
        const least = Math.min(...values), most = Math.max(...values), room = (most - least) * 0.08 || Math.abs(most) * 0.05 || 1;
        if (values.length) [bottom, above] = [least - room, most + room];
      }
      const tall = (chart.y[1] - chart.y[0]) / (above - bottom);
      const moveX = chart.left * (1 - scale) - (view[0] - chart.x[0]) / (chart.x[1] - chart.x[0]) * wide * scale;
      const moveY = chart.bottom * (1 - tall) + (bottom - chart.y[0]) / (chart.y[1] - chart.y[0]) * high * tall;
      svg.querySelector(".data").setAttribute("transform", `matrix(${scale} 0 0 ${tall} ${moveX} ${moveY})`);
      const label = (axis, values, place, suffix) => {
        const old = [...svg.querySelectorAll(`.tick-${axis}`)], pattern = old[0];
        if (!pattern) return;
        values.forEach((value) => {
          const text = pattern.cloneNode();
          text.setAttribute(axis, place(value) + suffix);
          text.textContent = number(value);
          pattern.before(text);
        });
        old.forEach((each) => each.remove());
      };
      let ticks = nice(...view);
      if (chart.name === "epoch") ticks = [...new Set(ticks.map(Math.round))].filter((each) => each >= view[0] && each <= view[1]);
      label("x", ticks, across, 0);
      label("y", nice(bottom, above), (value) => chart.bottom - (value - bottom) / (above - bottom) * high, 3.85);
      svg.querySelectorAll(".grid").forEach((each) => each.remove());
      const grid = document.createElementNS(SVG, "path");
      grid.setAttribute("class", "grid");
      grid.setAttribute("style", "stroke:var(--chart-grid)");
      grid.setAttribute("d", nice(bottom, above).map((value) => `M${chart.left} ${chart.bottom - (value - bottom) / (above - bottom) * high}H${chart.right}`).join(""));
      svg.querySelector("clipPath").after(grid);
    };
    const zoomBy = (factor) => {
      const middle = at >= 0 && stops ? stops[at] : (view[0] + view[1]) / 2, half = (view[1] - view[0]) / 2 * factor;
      zoom(middle - half, middle + half);
    };

    let from = null, brush = null;
    plot.addEventListener("pointerdown", (event) => {
      if (chart.kind !== "lines" || event.pointerType === "touch" || event.button) return;
      from = toChart(event)[0];
      brush = add("rect", { class: "brush", y: chart.top, height: high, x: from, width: 0 });
    });
    plot.addEventListener("pointermove", (event) => {
      const [x, y] = toChart(event);
      if (brush) {
        brush.setAttribute("x", Math.max(chart.left, Math.min(from, x)));
        brush.setAttribute("width", Math.abs(Math.min(Math.max(x, chart.left), chart.right) - from));
      }
      x >= chart.left && x <= chart.right && y >= chart.top && y <= chart.bottom ? stop(kind.near(x, y), event) : leave();
    });
    addEventListener("pointerup", (event) => {
      if (!brush) return;
      const to = toChart(event)[0], value = (x) => view[0] + (x - chart.left) / wide * (view[1] - view[0]);
      brush.remove();
      brush = null;
      if (Math.abs(to - from) > 8) zoom(value(Math.min(from, to)), value(Math.max(from, to)));
    });
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
    plot.addEventListener("dblclick", () => chart.x && zoom(...chart.x));
    plot.addEventListener("keydown", (event) => {
      const n = chart.kind === "matrix" ? chart.names.length : 1;
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: n, ArrowUp: -n };
      if (event.key in steps) stop(at < 0 ? 0 : at + steps[event.key]);
      else if (event.key === "Escape") leave();
      else if (chart.x && event.key === "+") zoomBy(0.5);
      else if (chart.x && event.key === "-") zoomBy(2);
      else if (chart.x && event.key === "0") zoom(...chart.x);
      else return;
      event.preventDefault();
    });
  });

  // -- enlarged charts --

  const dialog = document.getElementById("large");
  const enlarge = (figure, button) => {
    if (dialog.open) return dialog.close();
    const place = make("span");
    figure.before(place);
    dialog.append(figure);
    button.textContent = "Close";
    dialog.append(readout);
    dialog.showModal();
    dialog.addEventListener("close", () => {
      place.replaceWith(figure);
      document.body.append(readout);
      button.textContent = "Enlarge";
      button.focus();
    }, { once: true });
  };

  // -- sorting --

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    if (body.rows.length < 2) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.ariaSort === "ascending";
        [...table.tHead.rows[0].cells].forEach((each) => { each.ariaSort = null; });
        head.ariaSort = down ? "descending" : "ascending";
        const key = (row) => {
          const text = row.cells[column].textContent.trim(), value = parseFloat(text.replaceAll(",", ""));
          return column && !Number.isNaN(value) ? value : text === "–" ? -Infinity : text;
        };
        const compare = (a, b) => typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b)) : a - b;
        [...body.rows].map((row) => [key(row), row])
          .sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]))
          .forEach(([, row]) => body.append(row));
      });
    });
  });
})();
