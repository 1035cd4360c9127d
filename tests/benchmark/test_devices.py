"""What bench-device measures, on CPUs that pretend to be two devices, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import TINY, TINY_NET, Cli, Clock
from vitctl import devices
from vitctl.benchmark import devices as bench
from vitctl.benchmark.device_report import DeviceReport
from vitctl.benchmark.tables import Table, markdown
from vitctl.config import TrainConfig, resolve_config
from vitctl.devices import available_devices
from vitctl.errors import RunFailed

BENCH = ["bench-device", "cpu", "--net", TINY_NET, "--bs", "32", "--max-time", "0.3s"]
ABSENT = "cuda:7"


@pytest.fixture(autouse=True)
def quick_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GEMM_SECONDS", 0.02)


def config(**more: Any) -> TrainConfig:
    return resolve_config({"net": TINY_NET, "bs": 32, "val": "none", "epochs": 1, "limit_train": 100, **more})


def two_lanes(**more: Any) -> list[bench.Lane]:
    return bench.open_lanes(config(**more), [("one", "cpu"), ("two", "cpu")], lambda _: None)


def cells(table: Table, label: str) -> list[str]:
    (row,) = [row for row in table.rows if row.label == label]
    return [cell.text for cell in row.cells]


def test_lanes_have_the_same_weights_and_see_the_same_batches() -> None:
    one, two = two_lanes()
    assert all(torch.equal(value, two.initial_weights[name]) for name, value in one.initial_weights.items())
    for step in range(2):
        first, second = one.session.batches.batch(0, step), two.session.batches.batch(0, step)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    for lane in (one, two):
        lane.warm_up()
        assert all(p.grad is None or not p.grad.any() for p in lane.session.model.parameters())
        lane.step()
    pairs = zip(one.session.model.parameters(), two.session.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    changed = one.initial_weights["head.weight"]
    assert not torch.equal(one.session.model.state_dict()["head.weight"], changed)  # they do train


def test_what_others_take_of_the_cpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([(100.0, 200.0, 50.0), (108.0, 210.0, 53.0), (110.0, 220.0, 60.0)])
    monkeypatch.setattr(devices, "_cpu_seconds", lambda: next(counted))
    watch = devices.CpuWatch()
    assert watch.others() == pytest.approx((8 - 3) / 10)
    assert watch.others() == 0.0
    monkeypatch.setattr(devices, "_cpu_seconds", lambda: None)
    assert devices.CpuWatch().others() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux counts it")
def test_another_process_that_computes_is_seen() -> None:
    program = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline()
            watch = devices.CpuWatch()
            time.sleep(1.0)
            share = watch.others()
        finally:
            other.kill()
    assert share is not None and share * (os.cpu_count() or 1) > 0.5


def test_a_disturbed_measurement_is_marked() -> None:
    (lane,) = bench.open_lanes(config(), [("cpu", "cpu")], lambda _: None)
    (figures,) = bench.measure_lanes([lane], 0.01, lambda _: None)
    assert (figures.others is not None) == Path("/proc/stat").exists()
    for others, marked in ((0.34, True), (0.02, False), (None, False)):
        report = DeviceReport(config(), [dataclasses.replace(figures, others=others)])
        notes = " ".join(report.tables()[0].notes)
        assert ("DISTURBED: other processes took 34 %" in notes) == marked
        assert report.document()["devices"][0].get("others") == others


def test_lanes_take_their_steps_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = two_lanes()
    order: list[str] = []
    step = bench.Lane.step

    def recorded(self: bench.Lane) -> None:
        order.append(self.label)
        step(self)

    monkeypatch.setattr(bench.Lane, "step", recorded)
    bench.measure_lanes(lanes, 0.5, lambda _: None)
    both = order[: 2 * min(order.count("one"), order.count("two"))]
    assert len(both) >= 6
    assert all({both[i], both[i + 1]} == {"one", "two"} for i in range(0, len(both), 2))


def test_a_device_whose_arithmetic_is_off_is_marked() -> None:
    lanes = two_lanes()
    with torch.no_grad():
        for parameter in lanes[1].session.model.parameters():
            parameter.mul_(1.01)
    good, bad = bench.measure_lanes(lanes, 0.1, lambda _: None)
    assert good.parity is not None and not good.parity.off and good.parity.logits < 1e-6
    assert bad.parity is not None and bad.parity.off
    main, details = DeviceReport(config(), [good, bad]).tables()
    assert [text.split()[0] for text in cells(details, "Arithmetic against CPU fp32")] == ["ok", "OFF"]
    assert any(note.startswith("two: its arithmetic is OFF") for note in main.notes)
    assert not any(note.startswith("one: its arithmetic") for note in main.notes)


def test_a_figure_that_is_not_a_number_is_off() -> None:
    assert bench.Parity(float("nan"), 0.0, 1e-3).off and not bench.Parity(1e-4, 1e-4, 1e-3).off


def test_long_steps_are_warmed_up_by_a_piece_and_spread_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LONG_STEP", 0.0)
    lanes = two_lanes(micro_batch=8)[:1]
    (figures,) = bench.measure_lanes(lanes, 0.01, lambda _: None)
    assert len(figures.steps) == 3 and figures.initial == figures.steps[0] + lanes[0].cold
    assert len(figures.pieces) == 3 * 3  # a step has 4 pieces, and their starts 3 distances
    assert figures.step is not None and figures.step.low < figures.step.median < figures.step.high


@pytest.mark.parametrize("asynchronous", [False, True])  # then parts are taken from steps of their own
@pytest.mark.parametrize("part", ["data", "forward", "optimizer"])
def test_time_is_counted_for_the_part_that_takes_it(
    monkeypatch: pytest.MonkeyPatch, part: str, asynchronous: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr(bench, "clock", clock)
    monkeypatch.setattr(bench.Lane, "asynchronous", property(lambda self: asynchronous))
    (lane,) = two_lanes(limit_train=64)[:1]  # epochs of two steps: measuring goes over their ends
    owner, name = {
        "data": (lane.session.batches, "batch"),
        "forward": (lane.session, "forward"),
        "optimizer": (lane.session.optimizer, "step"),
    }[part]
    setattr(owner, name, clock.slowed(getattr(owner, name), 0.3))
    (figures,) = bench.measure_lanes([lane], 0.01, lambda _: None)
    assert len(figures.steps) == 3 and len(lane.splits) == 3
    assert figures.split[part] >= 0.3 and max(figures.split, key=lambda name: figures.split[name]) == part
    assert min(figures.split.values()) > 0


def test_figures_follow_from_steps_over_whole_batches() -> None:
    (lane,) = two_lanes()[:1]
    (figures,) = bench.measure_lanes([lane], 1.0, lambda _: None)
    assert figures.step is not None and figures.epoch_time is not None
    assert lane.session.progress.epoch == (lane.taken - 1) // 3  # 100 images: the fourth step would have 4
    assert figures.images_per_second == pytest.approx(32 / figures.step.median)
    assert figures.epoch_time == pytest.approx(100 / 32 * figures.step.median)
    assert figures.gflops < figures.gemm_gflops * 1.5


def test_gemm_peak_is_that_of_the_networks_own_products() -> None:
    (lane,) = two_lanes()[:1]
    assert bench.gemm_peak(lane.session, seconds=0.01) > 0.1


def test_the_table_has_the_words_of_the_scripts(cli: Cli) -> None:
    result = cli(*BENCH)
    assert result.code == 0, result.err
    for label in (
        "Epoch duration",
        "Step time (initial)",
        "Step time (stabilized)",
        "Final training accuracy",
        "Validation step time (batch 100)",
        "Final validation accuracy",
        "Speedup (epoch time)",
        "Backend",
    ):
        assert f"│ {label}" in result.out
    assert "est." in result.out and 'torch.device("cpu")' in result.out and "1.00x" in result.out
    assert "extrapolated to 50,000 images" in result.out


def test_epochs_really_train(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench-device", "cpu", *TINY, "--epochs", 1, "--max-time", "0.3s", "--json", "--out", "out")
    assert result.code == 0, result.err
    (device,) = result.json()["devices"]
    (run,) = (tmp_path / "runs").iterdir()
    assert device["trained"]["name"] == run.name and (run / "checkpoints" / "last.pt").exists()
    text = (tmp_path / "out" / "bench-device.md").read_text()
    assert f"| Final validation accuracy | {device['trained']['val_acc']:.2f} % |" in text
    assert "est." not in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {f"bench-device.{kind}" for kind in ("json", "csv", "md", "html")} | {"bench-device-bars.png"}


def test_absent_devices_are_refused_before_any_work(refused: Any, tmp_path: Path) -> None:
    sentence = refused("bench-device", "cpu", ABSENT)
    assert (
        f"device {ABSENT} is not available here" in sentence
        and f"available: {', '.join(available_devices())}" in sentence
    )
    assert list(tmp_path.iterdir()) == []


def test_absent_devices_may_be_skipped(cli: Cli) -> None:
    result = cli(*BENCH, ABSENT, "--skip-unavailable", "--out", "out.md")
    assert result.code == 0, result.err
    rows = dict(line.strip("| ").split(" | ", 1) for line in Path("out.md").read_text().splitlines() if line[:1] == "|")
    assert rows["Backend"] == 'torch.device("cpu") | not available here'
    assert rows["Epoch duration"].endswith("est. | –")
    assert all(row.count("|") == 1 for row in rows.values())


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["cpu", "cpu"], "named twice"),
        (["gpu"], "did you mean cpu"),
        ([ABSENT, "--skip-unavailable"], "none of"),
        (["cpu", "--device", "cpu"], "name devices as arguments"),
        (["cpu", "--wandb", "offline"], "--wandb is for runs"),
        (["cpu", "--tensorboard"], "--tensorboard is for runs"),
        (["cpu", "--limit-test", "5"], "--limit-test is for runs"),
        (["cpu", "--data-dir", "."], "--data-dir is for runs"),
        (["cpu", "--tune", "--epochs", "1"], "--epochs does not go with it"),
        (["cpu", "--tune", "--max-time", "5s"], "--max-time does not go with it"),
        (["cpu", "--tune", "--compile"], "--compile does not go with it"),
        (["cpu", "--tune", "--out", "x.png"], "--tune has no image"),
        (["cpu", "--max-time", "soon"], "takes a duration"),
        (["cpu", "--out", "x.doc"], "must end in"),
        (["cpu", "--net", "vitt"], "did you mean"),
    ],
)
def test_mistakes_are_one_sentence(refused: Any, argv: list[str], sentence: str) -> None:
    assert sentence in refused("bench-device", *argv)


def test_tuned_settings_are_those_that_train_takes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitctl.benchmark import tune

    monkeypatch.setattr(tune, "SECONDS", 0.0)
    monkeypatch.setattr(tune, "BATCHES", (2.0,))
    result = cli(
        "bench-device",
        "cpu",
        "--net",
        TINY_NET,
        "--size",
        24,
        "--threads",
        "1",
        "--micro-batch",
        "8",
        "--tune",
        "--json",
    )
    assert result.code == 0, result.err
    (tuned,) = result.json()["devices"]
    speeds = [trial["images_per_second"] for trial in tuned["trials"]]
    assert len(speeds) >= 2 and min(speeds) > 0
    kept = [(trial["settings"]["threads"], trial["settings"]["micro_batch"]) for trial in tuned["trials"]]
    assert set(kept) == {(1, 8)}  # what is given is not tried
    assert {trial["settings"]["bs"] for trial in tuned["trials"]} == {512, 1024}
    fastest = tuned["trials"][speeds.index(max(speeds))]["settings"]
    stored = yaml.safe_load((tmp_path / "tuned-cpu.yaml").read_text())
    assert {**stored, **fastest, "device": "cpu", "net": "cct_2"} == stored
    assert stored["net_options"]["embed_dim"] == 16 and stored["size"] == 24  # what it was tuned for goes with it
    shown = cli("train", "--config", "tuned-cpu.yaml", "--dataset", "digits", "--print-config")
    assert shown.code == 0, shown.err
    assert {name: yaml.safe_load(shown.out)[name] for name in stored} == stored


def test_batchnorm_is_tuned_with_whole_batches(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitctl.benchmark.tune.SECONDS", 0.0)
    monkeypatch.setattr("vitctl.benchmark.tune.BATCHES", (0.5, 2.0))
    words = ["bench-device", "cpu", "--net", "res18:width=8", "--size", 8, "--threads", "1", "--precision", "fp32"]
    result = cli(*words, "--tune", "--json", "--out", "out")
    assert result.code == 0, result.err
    trials = result.json()["devices"][0]["trials"]
    assert [trial["settings"]["bs"] for trial in trials] == [512, 256, 1024]
    assert all("micro_batch" not in trial["settings"] for trial in trials)
    assert {path.suffix for path in Path("out").iterdir()} == {".json", ".csv", ".md", ".html"}


def test_real_data_are_measured_where_they_are_asked_for() -> None:
    lane, _ = bench.open_lanes(
        resolve_config({"net": TINY_NET, "dataset": "digits", "size": 8, "bs": 32, "val": "none", "epochs": 1}),
        [("one", "cpu"), ("two", "cpu")],
        lambda _: None,
    )
    assert lane.session.batches.count == 1438 and lane.session.dataset.train.images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("where", ["run_piece", "train_step", "logits_and_gradients"])
def test_memory_that_runs_out_is_a_sentence(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(bench, where, full)
    assert "memory" in refused(*BENCH, code=1)


def test_what_training_would_be_refused_for_is_said_before_measuring(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "open_lanes", lambda *_: pytest.fail("measured"))
    assert "is not a folder" in refused(*BENCH, "--epochs", 1, "--data-dir", tmp_path / "none")


def test_a_training_that_fails_leaves_the_figures(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RunFailed("the loss is not finite at step 3")

    monkeypatch.setattr(bench, "start_run", fails)
    done = cli(*BENCH, "--dataset", "digits", "--size", 8, "--epochs", 1, "--json")
    assert done.code == 0 and "warning: cpu: the loss is not finite" in done.err
    (device,) = done.json()["devices"]
    assert device["failed"] == "the loss is not finite at step 3" and device["step"]["median"] > 0
    assert done.json()["environment"]["torch"] == torch.__version__


def test_markdown_of_a_device_that_is_missing() -> None:
    table = DeviceReport(config(), [bench.Figures("mps", None, missing="not available here")]).tables()[0]
    assert "| Backend | not available here |" in markdown(table)
