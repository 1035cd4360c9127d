"""The page of a report, from fabricated and real run folders."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.report.folders import make_run
from vitctl.files import locked
from vitctl.report import drawing, page
from vitctl.report.run import read_run_record

HOSTILE = "<script>window.hacked = true</script><img src=x onerror=window.hacked=true>'\"&$x^2$"


class Text(HTMLParser):
    """Collects text, tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[key] or "" for key in ("src", "href", "xlink:href") if key in values]

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(html: str) -> Text:
    parser = Text()
    parser.feed(html)
    return parser


def report(*folders: Path) -> str:
    return page.html(page.build_report([read_run_record(each) for each in folders], None, print))


def test_the_page_is_complete_and_loads_nothing(tmp_path: Path) -> None:
    html = report(make_run(tmp_path / "one"))
    found = parse(html)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    order = [
        "Results",
        "Settings",
        "Curves",
        "mistakes",
        "Confusion",
        "Classes",
        "Calibration",
        "Attention",
        "Cost",
        "Repeat",
    ]
    titles = re.findall(r"<h2[^>]*>([^<]*)", html)
    assert [word in title for word, title in zip(order, titles, strict=True)] == [True] * len(order)
    assert "vitctl train --config" in found.text and "vitctl train --dataset digits" in found.text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / f"run {HOSTILE.replace('/', '')}",
        classes=[HOSTILE, *"abc"],
        settings={"wandb_notes": HOSTILE, "wandb": "offline"},
    )
    document = json.loads((folder / "config.json").read_text())
    document["sessions"][0] |= {"command": HOSTILE, "device_name": HOSTILE}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "failure.json").write_text(json.dumps({"kind": "failed", "message": HOSTILE, "hint": HOSTILE}))
    found = parse(report(folder))
    plain = parse(report(make_run(tmp_path / "plain", classes=[*"abcd"])))
    assert found.tags.count("script") == plain.tags.count("script")
    assert "x" not in found.links
    assert found.text.count(HOSTILE) > 4


def test_runs_that_differ_only_in_their_seed_are_one_series(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"vit-s{seed}", seed=seed) for seed in range(3)]
    built = page.build_report([read_run_record(each) for each in runs], None, print)
    assert [each.label for each in built.series] == ["vit-s (3 seeds)"]
    assert built.settings == [("--seed", ["0", "1", "2"])]
    assert re.match(r"Over 3 seeds, cct_2 on digits classifies \d+\.\d ± \d+\.\d % of the test images", built.verdict)
    (line, *_) = built.curves[1].marks
    values = [[json.loads(row)["train_acc"] for row in (each / "metrics.jsonl").open()] for each in runs]
    assert line.y == pytest.approx([sum(each) / 3 for each in zip(*values, strict=True)])
    assert len(line.low) == len(line.high) == 5


def test_only_what_differs_between_runs_is_shown(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", settings={"lr": 0.01})
    other = make_run(tmp_path / "other", settings={"lr": 0.02, "net": "cct_2:depth=3"})
    built = page.build_report([read_run_record(one), read_run_record(other)], None, print)
    assert built.settings == [("--net: depth", ["2", "3"]), ("--lr", ["0.01", "0.02"])]


def test_options_of_another_network_are_left_out(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", settings={"net": "cct_2:depth=3"})
    other = make_run(tmp_path / "other", settings={"net": "vit_small:depth=2"})
    labels = [
        label for label, _ in page.build_report([read_run_record(one), read_run_record(other)], None, print).settings
    ]
    assert {"--net", "--net: depth"} <= set(labels)
    assert not {"--net: conv_width", "--net: patch_size"} & set(labels)


def test_one_run_is_compared_with_its_recipe(tmp_path: Path) -> None:
    built = page.build_report([read_run_record(make_run(tmp_path / "one", settings={"epochs": 7}))], None, print)
    assert ("--epochs", "7") in [(label, values[1]) for label, values in built.settings]
    assert not any(label == "--seed" for label, _ in built.settings)


STATES = {
    "under way": "is under way, with",
    "interrupted": "is interrupted, with",
    "failed": "failed, with",
    "not started": "has not started and has no complete epoch",
}


@pytest.mark.parametrize("state", STATES)
def test_unfinished_runs_have_a_report(state: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", finished=False)
    if state == "failed":
        (folder / "failure.json").write_text(json.dumps({"kind": "failed", "message": "no luck", "hint": "try again"}))
    if state == "not started":
        (folder / "metrics.jsonl").unlink()
    if state == "under way":
        with locked(folder / ".lock"):
            run = read_run_record(folder)
    else:
        run = read_run_record(folder)
    assert run.state == state
    built = page.build_report([run], None, print)
    assert STATES[state] in built.verdict
    text = parse(page.html(built)).text
    assert "Mistakes" not in text and ("no luck" in text) == (state == "failed")


def test_damaged_lines_are_skipped_with_a_note(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_bytes(
        "\n".join([lines[0], lines[1][:20], "[1]", '{"epoch": null}', *lines[3:]]).encode() + b"\n\xff\x00\n"
    )
    text = parse(report(folder)).text
    assert "metrics.jsonl is damaged: 4 lines (2, 3, 4, 7) were skipped." in text


def test_records_with_odd_values_are_drawn_without_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 6, "train_loss": NaN, "train_acc": "high", "val_acc": null, "lr": 1e999}\n')
    html = report(folder)
    assert (
        "nan"
        not in re.sub(r"<script>.*</script>", "", html, flags=re.DOTALL).lower().split("<svg")[1].split("</svg>")[0]
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "other weights"])
def test_runs_without_predictions_name_the_remedy(damage: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", predictions=damage != "missing")
    path = folder / "predictions.npz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    if damage == "other weights":
        (folder / "summary.json").write_text(json.dumps({"step": 7, "test_acc": 50.0}))
    text = parse(report(folder)).text
    assert "--evaluate" in text and "of the test images correctly" in text and "Most confident mistakes" not in text


def test_evaluation_on_the_test_set_is_noted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings={"val": "test"})
    assert "(--val test), so choices may have been made on them" in parse(report(folder)).text


def test_long_values_are_cut_off(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", settings={"wandb": "offline", "wandb_notes": "x" * 300_000})
    html = report(folder)
    assert "x" * 1000 in html and len(html) < 500_000


def test_a_config_of_deep_brackets_is_damaged(tmp_path: Path, refused: Cli) -> None:
    make_run(tmp_path / "run")
    Path("run/config.json").write_text("[" * 100_000)
    assert "run/config.json is damaged: nested too deeply" in str(refused("report", "run"))


def test_settings_of_another_version_are_shown_with_a_note(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    document = json.loads((folder / "config.json").read_text())
    document["config"]["warp"] = 9
    (folder / "config.json").write_text(json.dumps(document))
    text = parse(report(folder)).text
    assert "settings unknown to this version of vitctl: warp" in text and "Confusion matrix" in text


def test_thumbnails_and_attention_of_a_trained_run(digits_run: Path) -> None:
    html = report(digits_run)
    images = re.findall(r'<img src="data:image/png;base64,[^"]+" width="8" height="8" alt="([^"]+)"', html)
    assert len(images) > 8 and all(re.match(r"test image of \d, predicted as \d|attention", each) for each in images)
    assert "attention over this image in orange" in html


def test_missing_data_and_checkpoints_are_named(digits_run: Path, tmp_path: Path) -> None:
    shutil.rmtree(digits_run / "checkpoints")
    text = parse(report(digits_run)).text
    assert "No attention rollout: the run" in text


def test_evaluate_adds_what_an_older_run_lacks(digits_run: Path, cli: Cli) -> None:
    stored = read_run_record(digits_run)
    (digits_run / "predictions.npz").unlink()
    before = sorted(digits_run.rglob("*"))
    result = cli("report", digits_run, "--evaluate", "--device", "cpu")
    assert result.code == 0 and "Most confident mistakes" in Path("report.html").read_text()
    assert sorted(digits_run.rglob("*")) == before
    assert stored.test is not None and "(95 % interval" in result.out


def test_ten_runs_of_200_epochs_are_quick_and_small(tmp_path: Path) -> None:
    """The limits are 10 s, here without start-up, and 6 MB."""
    classes = [f"a class with a long name, number {i}" for i in range(37)]
    runs = [
        make_run(
            tmp_path / f"run{i}", epochs=200, classes=classes, images=3000, seed=i, settings={"lr": 0.001 * (1 + i)}
        )
        for i in range(10)
    ]
    start = time.process_time()
    html = report(*runs)
    assert time.process_time() - start < 10
    assert len(html.encode()) < 6e6


def test_png_files_come_from_the_same_charts(tmp_path: Path, cli: Cli) -> None:
    from PIL import Image

    folder = make_run(tmp_path / "run")
    assert cli("report", folder, "-o", "out.html", "--png", "charts").code == 0
    names = {path.stem for path in Path("charts").iterdir()}
    assert names >= {"curve-loss", "curve-accuracy", "curve-lr", "curve-speed", "r0-confusion", "r0-classes"}
    for path in Path("charts").iterdir():
        image = Image.open(path).convert("L")
        assert len(set(image.resize((50, 50)).tobytes())) > 3
    html = Path("out.html").read_text()
    assert html.count('<svg xmlns="http://www.w3.org/2000/svg" class="chart"') == len(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "run folder nothing not found"),
        (["run", "-o", "run/config.json"], "--out run/config.json exists and is not a .html/.htm file"),
        (["run", "-o", "missing/report.html"], "--out missing/report.html: no such folder"),
        (["run", "--png", "run/config.json"], "--png run/config.json is not a folder"),
        (["run", "--png", "link"], "--png link is not a folder"),
        (["run", "--png", "new", "-o", "./new"], "--out and --png both name new"),
        (["run", "-o", "runs"], "--out runs is a folder"),
        (["run", "-o", "page.pdf"], "--out page.pdf does not end in .html"),
        (["run", "--png", "missing/charts"], "cannot write --png missing/charts: no such folder"),
        (["run", "--device", "cpu"], "--device cpu does nothing without --evaluate"),
        (["run", "--data-dir", "missing"], "--data-dir missing: no such folder"),
        (["run", "--evaluate"], "the run run has no checkpoint yet"),
    ],
)
def test_impossible_requests_are_refused(words: list[str], message: str, refused: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "run", predictions=False)
    (tmp_path / "runs").mkdir()  # also the name of the argument
    (tmp_path / "link").symlink_to("nowhere")
    assert message in str(refused("report", *words))
    assert not Path("report.html").exists()


def test_a_run_is_reported_once(tmp_path: Path, cli: Cli) -> None:
    folder = make_run(tmp_path / "runs" / "one")
    assert cli("report", "one", folder, "runs/one").code == 0
    assert Path("report.html").read_text().count("<h1>one</h1>") == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-5, 12), (1e-5, 2e-4), (0, 123456)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = drawing.ticks(low, high, 5)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-12 <= value <= high * (1 + 1e-12) for value in found)
    assert all(float(f"{value:.3g}") == pytest.approx(value) for value in found)
