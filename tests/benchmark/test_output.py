"""Tests of tables in every format and of the files of ``--out``."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
from pathlib import Path

import pytest

from vitctl.benchmark import output
from vitctl.benchmark.report import format_seconds
from vitctl.cli.printing import print_comparison
from vitctl.errors import RequestError, RunFailed
from vitctl.report.chart import Chart, Line, Rows, Segment
from vitctl.report.rendering import Section
from vitctl.report.tables import NOTHING, Cell, Row, Table, best, csv_text, markdown

TABLE = Table(
    title="Devices <a|b>",
    corner="Metric",
    columns=("cpu", "mps [x]"),
    rows=(
        Row("step time", (Cell("2.0 s", 2.0), Cell("1.0 s", 1.0)), "low"),
        Row("backend", (Cell("a|b", "a|b"), NOTHING)),
    ),
    notes=("a note",),
)


class Measured:
    """Results with a table and two charts."""

    verdict = "mps is faster than <a|b>."

    def tables(self) -> list[Table]:
        return [TABLE]

    def document(self) -> dict[str, int]:
        return {"x": 1}

    def plots(self) -> list[Section]:
        rows = Rows(names=["<a|b>"], parts=[Segment(label="", values=[1.0])], ends=["1"], texts=["<a|b>: 1"])
        line = Line(label="cpu", x=[1, 2], y=[1, 2])
        charts = [Chart(id=id, title="t", description="d", marks=[mark]) for id, mark in (("a", rows), ("b", line))]
        return [Section(id="speed", title="Speed", charts=charts)]


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ((2.0, 1.0, 3.0), "low", {1}),
        ((2.0, 1.0, 3.0), "high", {2}),
        ((1.0, 1.0, 3.0), "low", {0, 1}),
        ((1.0, 1.0), "low", set()),
        ((1.0, None), "low", set()),
        ((None, 2.0, 1.0), "high", {1}),
        ((1.0, "x", 2.0), "high", {2}),
        ((2.0, 1.0), None, set()),
    ],
)
def test_best_marks_the_best_values(
    values: tuple[float | str | None, ...], better: str | None, expected: set[int]
) -> None:
    row = Row("x", tuple(Cell(str(value), value) for value in values), better)  # type: ignore[arg-type]
    assert best(row) == expected


def test_markdown_has_a_line_per_row_and_escapes_bars() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[2:6] == [
        "| Metric | cpu | mps [x] |",
        "| --- | ---: | ---: |",
        "| step time | 2.0 s | **1.0 s** |",
        "| backend | a\\|b | – |",
    ]
    assert lines[-1] == "- a note"


def test_csv_round_trip() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([TABLE]))))
    assert [(row["row"], row["column"], row["value"], row["text"]) for row in rows] == [
        ("step time", "cpu", "2.0", "2.0 s"),
        ("step time", "mps [x]", "1.0", "1.0 s"),
        ("backend", "cpu", "a|b", "a|b"),
        ("backend", "mps [x]", "", "–"),
    ]


def test_the_terminal_marks_the_best_with_a_star(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(TABLE)
    out = capsys.readouterr().out
    assert "1.0 s *" in out and "2.0 s *" not in out and "mps [x]" in out and "a note" in out


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (120, 1), (30, 5)])
def test_a_wide_table_is_split_for_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, tables: int
) -> None:
    names = tuple(f"adan:lr=1e-{i}" for i in range(5))
    wide = Table(
        "five", "Metric", names, (Row("accuracy", tuple(Cell(f"53.0{i} ± 0.47 %", i) for i in range(5)), "high"),)
    )
    monkeypatch.setenv("COLUMNS", str(width))
    print_comparison(wide)
    out = capsys.readouterr().out
    assert (
        out.count("Metric") == tables
        and all(f"53.0{i} ± 0.47 %" in out for i in range(5))
        and max(map(len, out.splitlines())) <= width
    )
    if width >= 80:
        assert all(name in out for name in names) and out.count("% *") == 1 and "53.04 ± 0.47 % *" in out


def test_a_folder_gets_every_format(tmp_path: Path) -> None:
    out = tmp_path / "bench"
    output.check_out(out)
    files = output.write(out, "bench-device", Measured())
    assert {file.name for file in files} == {file.name for file in out.iterdir()}
    assert {file.suffix for file in files} == {f".{kind}" for kind in output.KINDS}
    assert json.loads((out / "bench-device.json").read_text()) == {"x": 1}
    assert (out / "bench-device-speed.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "bench-device-speed.svg").read_text()


@pytest.mark.parametrize("kind", output.KINDS)
def test_a_file_gets_the_format_of_its_suffix(tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"x.{kind.upper()}"
    output.check_out(out)
    assert output.write(out, "bench-device", Measured()) == [out]
    assert [file.name for file in tmp_path.iterdir()] == [out.name] and out.stat().st_size


def test_the_html_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    output.write(tmp_path / "x.html", "bench", Measured())
    sources: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            sources.extend(str(value) for name, value in attrs if name in ("src", "href"))

    text = (tmp_path / "x.html").read_text()
    Reader().feed(text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert "<a|b>" not in text and "&lt;a|b&gt;" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.pdf", ".json"), ("nowhere/x.json", "no such folder"), ("plain", "without a suffix")],
)
def test_paths_that_cannot_be_written_are_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(RequestError, match=words):
        output.check_out(tmp_path / name)
    assert (tmp_path / "plain").read_text() == "mine"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.json"
    out.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="No space"):
        output.write(out, "bench", Measured())
    assert out.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.5e-4, "850 µs"), (0.0123, "12.3 ms"), (3.21, "3.2 s"), (11.47, "11.5 s"), (125, "2 min 5 s")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
