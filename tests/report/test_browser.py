"""A report in headless Chromium: light, dark, on a phone, without scripts, by keyboard, and for screen readers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import CHROMIUM, Page, browser
from tests.report.folders import make_run
from tests.report.test_page import HOSTILE, report
from tests.sweep.conftest import sweep_text
from tests.sweep.fake import make_sweep
from tests.sweep.test_plots import PARAMETERS, add_trials
from vitctl.report import rendering
from vitctl.report.chart import Chart, Intervals, Points, Rows, Segment
from vitctl.report.rendering import Section
from vitctl.report.tables import Cell, Row, Table
from vitctl.sweep.plots import SweepReport

REQUIRED = os.environ.get("VITCTL_BROWSER") == "required"
"""Whether the tests fail without Chromium and axe-core instead of being skipped."""

AXE = os.environ.get("VITCTL_AXE", "")
"""Path of axe-core's ``axe.min.js``."""

pytestmark = pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="needs Chromium (Debian: chromium)")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of two runs with hostile and long names."""
    folder = tmp_path_factory.mktemp("page")
    classes = [HOSTILE, "a class with a rather long name, as people have them", *map(str, range(20))]
    one = make_run(folder / f"one {HOSTILE.replace('/', '')}", classes=classes, epochs=12, images=900)
    other = make_run(folder / "other", classes=classes, epochs=12, images=900, settings={"lr": 0.02})
    document = json.loads((one / "config.json").read_text())
    document["config"]["wandb_notes"] = document["sessions"][0]["command"] = HOSTILE
    (one / "config.json").write_text(json.dumps(document))
    path = folder / "report.html"
    path.write_text(report(one, other), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def other_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages of a sweep, and of a comparison with hostile and long names."""
    folder = tmp_path_factory.mktemp("pages")
    names = [HOSTILE, "a device with a rather long name, as vendors like them", "cpu"]
    ends = [str(number) for number in range(3)]
    rows = Rows(names=names, parts=[Segment(label="data", values=[1, 2, 3], series="data")], ends=ends, texts=names)
    intervals = Intervals(names=names, values=[1, -2, None], low=[0, -3, 0], high=[2, 1, 0], texts=names)
    points = Points(x=[0, 1, 2], y=[1e-3, 2, 3], texts=names, label="points", series="points")
    charts = [
        Chart(id="rows", title=HOSTILE, description=HOSTILE, x="ms", marks=[rows]),
        Chart(id="intervals", title="intervals", description="d", x="points", marks=[intervals]),
        Chart(id="points", title="points", description="d", y="loss", marks=[points], x_names=names),
    ]
    cells = tuple(Cell(text, value) for text, value in ((HOSTILE, None), ("2 ms", 2.0), ("1 ms", 1.0)))
    table = Table(
        title=HOSTILE, corner="Metric", columns=tuple(names), rows=(Row("time", cells, "low"),), notes=(HOSTILE,)
    )
    sections = [Section(id="charts", title="Charts", charts=charts), Section(id="t", title="Table", tables=[table])]
    (folder / "comparison.html").write_text(rendering.page(HOSTILE, HOSTILE, sections, [HOSTILE]), encoding="utf-8")
    sweep = add_trials(make_sweep(sweep_text(PARAMETERS, method="random", run_cap=20), folder), 20)
    sweep_report = SweepReport(sweep)
    (folder / "sweep.html").write_text(sweep_report.page(sweep_report.sections()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("sweep", "comparison")}


@pytest.fixture
def shown(request: pytest.FixtureRequest, two_runs: Path, other_pages: dict[str, Path]) -> Path:
    """Return one of the pages."""
    return {"runs": two_runs, **other_pages}[request.param]


all_pages = pytest.mark.parametrize("shown", ["runs", "sweep", "comparison"], indirect=True)


@all_pages
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_shows_without_errors_requests_or_overflow(width: int, dark: bool, tab: Page, shown: Path) -> None:
    tab.console.clear()
    tab.open(shown, width=width, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert tab.console == [] and tab.requests == []
    assert tab.evaluate("window.hacked === undefined && document.querySelector('img[src=x]') === null")
    # No text of a chart lies outside of it.
    outside = """[...document.querySelectorAll('svg.chart')].flatMap((svg) => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter((text) => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2 || own.bottom > box.bottom + 2;
        }).map((text) => text.textContent);
    })"""
    assert tab.evaluate(outside) == []


@all_pages
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.skipif(not AXE and not REQUIRED, reason="needs axe-core: set VITCTL_AXE to its axe.min.js")
def test_axe_finds_nothing_serious(dark: bool, tab: Page, shown: Path) -> None:
    tab.open(shown, dark=dark)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tab.evaluate(Path(AXE).read_text(encoding="utf-8") + "; 0")
    found = tab.evaluate("axe.run().then((result) => JSON.stringify(result.violations))")
    serious = [
        (each["id"], each["nodes"][0]["html"][:200], each["nodes"][0].get("failureSummary"))
        for each in json.loads(found)
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_without_scripts_everything_is_there(tab: Page, two_runs: Path) -> None:
    tab.open(two_runs, scripts=False)
    document = tab("DOM.getDocument")["root"]["nodeId"]

    def count(selector: str) -> int:
        return len(tab("DOM.querySelectorAll", nodeId=document, selector=selector)["nodeIds"])

    assert count("svg.chart path") > 50 and count("table") > 8 and count("button") == 0


def test_series_are_switched_off_and_on(tab: Page, two_runs: Path) -> None:
    tab.open(two_runs)
    hidden = "[...document.querySelectorAll('.chart [data-series=s1]')].map((each) => each.style.display)"
    button = "document.querySelectorAll('.legend button')[1]"
    tab.evaluate(f"{button}.click()")
    assert set(tab.evaluate(hidden)) == {"none"} and tab.evaluate(f"{button}.ariaPressed") == "false"
    tab.evaluate(f"{button}.click()")
    assert set(tab.evaluate(hidden)) == {""}


def test_trials_are_read_by_keyboard(tab: Page, other_pages: dict[str, Path]) -> None:
    tab.open(other_pages["sweep"])
    plots = "[...document.querySelectorAll('.plot')]"
    number = tab.evaluate(f"{plots}.findIndex((each) => each.closest('section').id === 'parallel')")
    tab.evaluate(f"{plots}[{number}].focus()")
    tab.press("ArrowRight")
    best = tab.evaluate("document.querySelector('#best tbody th').textContent")
    assert tab.evaluate("document.getElementById('readout').textContent").startswith(
        f"trial {best}, complete\nval_acc: "
    )


def plot(number: int, rest: str) -> str:
    return f"document.querySelectorAll('.plot')[{number}].{rest}"


def test_values_are_read_and_zoomed_by_keyboard(tab: Page, two_runs: Path) -> None:
    tab.open(two_runs)
    readout = "document.getElementById('readout').textContent"
    tab.evaluate(plot(1, "focus()"))
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    text = tab.evaluate(readout)
    assert text.startswith("epoch 2\n") and "other, validation: " in text
    ticks = "[...document.querySelectorAll('.plot')[1].querySelectorAll('.tick-x')].map((each) => each.textContent)"
    before = tab.evaluate(ticks)
    tab.press("+")
    assert tab.evaluate(ticks) != before
    assert tab.evaluate("document.querySelectorAll('.plot')[1].querySelectorAll('.grid').length") == 1
    assert "matrix" in tab.evaluate(plot(1, "querySelector('.data').getAttribute('transform')"))
    tab.press("0")
    assert tab.evaluate(ticks) == before
    tab.press("Escape")
    assert tab.evaluate(readout) == ""


def test_a_chart_is_zoomed_by_dragging(tab: Page, two_runs: Path) -> None:
    tab.open(two_runs)
    tab.evaluate(plot(0, "scrollIntoView({block: 'center'})"))
    box: Any = tab.evaluate(f"(({plot(0, 'getBoundingClientRect()')}).toJSON())")
    y = box["y"] + box["height"] / 2
    for kind, share, buttons in (("mousePressed", 0.4, 1), ("mouseMoved", 0.7, 1), ("mouseReleased", 0.7, 0)):
        x = box["x"] + share * box["width"]
        tab("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)
    assert "matrix" in tab.evaluate(plot(0, "querySelector('.data').getAttribute('transform')"))


def test_tables_are_sorted_and_charts_enlarged(tab: Page, two_runs: Path) -> None:
    tab.open(two_runs)
    tab.evaluate("document.querySelector('#figures thead button').click()")
    assert tab.evaluate("document.querySelector('#figures th').ariaSort") == "ascending"
    first = "document.querySelectorAll('#figures tbody th')[0].textContent"
    before = tab.evaluate(first)
    tab.evaluate("document.querySelector('#figures thead button').click()")
    assert tab.evaluate(first) != before
    tab.evaluate("document.querySelector('.enlarge').click()")
    assert tab.evaluate("document.querySelector('dialog').open && !!document.querySelector('dialog svg')")
    tab.press("Escape")
    tab.evaluate("document.querySelector('dialog').open && document.querySelector('dialog').close()")
    restored = "document.querySelector('dialog svg') === null && !!document.querySelector('#curves svg')"
    tab.evaluate(f"new Promise((done) => {{ const look = () => {restored} ? done() : setTimeout(look, 20); look(); }})")


def test_the_page_prints_with_everything_open(tab: Page, two_runs: Path, tmp_path: Path) -> None:
    tab.open(two_runs, dark=True)
    tab.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert tab.console == []
