"""Tests of ``bench-device``, with one CPU as two devices."""

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
from vitctl.config import TrainConfig, resolve_config
from vitctl.devices import available_devices, load
from vitctl.errors import RunFailed
from vitctl.registry import or_list
from vitctl.report.tables import Table, markdown

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


def test_lanes_have_the_same_weights_and_batches() -> None:
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
    assert not torch.equal(one.session.model.state_dict()["head.weight"], changed)  # steps change the weights


def test_cpu_time_of_other_processes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([(100.0, 200.0, 50.0), (108.0, 210.0, 53.0), (110.0, 220.0, 60.0)])
    monkeypatch.setattr(load, "_cpu_seconds", lambda: next(counted))
    watch = devices.CpuWatch()
    assert watch.others() == pytest.approx((8 - 3) / 10)
    assert watch.others() == 0.0
    monkeypatch.setattr(load, "_cpu_seconds", lambda: None)
    assert devices.CpuWatch().others() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_another_busy_process_is_noticed() -> None:
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
        assert ("DISTURBED: other processes used 34 %" in notes) == marked
        assert report.document()["devices"][0].get("others") == others


def test_lanes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_device_with_wrong_results_is_marked() -> None:
    lanes = two_lanes()
    with torch.no_grad():
        for parameter in lanes[1].session.model.parameters():
            parameter.mul_(1.01)
    good, bad = bench.measure_lanes(lanes, 0.1, lambda _: None)
    assert good.parity is not None and not good.parity.exceeded and good.parity.logits < 1e-6
    assert bad.parity is not None and bad.parity.exceeded
    main, details = DeviceReport(config(), [good, bad]).tables()
    marks = [text.split(maxsplit=1)[1] for text in cells(details, "Relative difference from CPU fp32")]
    assert marks == ["(ok)", "(TOO LARGE)"]
    assert any(note.startswith("two: WRONG RESULTS") for note in main.notes)
    assert not any(note.startswith("one: WRONG RESULTS") for note in main.notes)


def test_nan_exceeds_the_tolerance() -> None:
    assert bench.Parity(float("nan"), 0.0, 1e-3).exceeded and not bench.Parity(1e-4, 1e-4, 1e-3).exceeded


def test_long_steps_have_a_micro_batch_as_warm_up_and_quartiles_of_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "LONG_STEP", 0.0)
    lanes = two_lanes(micro_batch=8)[:1]
    (figures,) = bench.measure_lanes(lanes, 0.01, lambda _: None)
    assert len(figures.steps) == 3 and figures.initial == figures.steps[0] + lanes[0].cold_start
    assert len(figures.pieces) == 3 * 3  # 4 micro-batches per step have 3 intervals between their starts
    assert figures.step is not None and figures.step.low < figures.step.median < figures.step.high


@pytest.mark.parametrize("asynchronous", [False, True])  # if True, parts are timed in separate steps
@pytest.mark.parametrize("part", ["data", "forward", "optimizer"])
def test_time_is_attributed_to_the_right_part(monkeypatch: pytest.MonkeyPatch, part: str, asynchronous: bool) -> None:
    clock = Clock()
    monkeypatch.setattr(bench, "clock", clock)
    monkeypatch.setattr(bench.Lane, "asynchronous", property(lambda self: asynchronous))
    (lane,) = two_lanes(limit_train=64)[:1]  # epochs of two steps, so that the measurement spans several
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


def test_figures_are_derived_from_steps_over_full_batches() -> None:
    (lane,) = two_lanes()[:1]
    (figures,) = bench.measure_lanes([lane], 1.0, lambda _: None)
    assert figures.step is not None and figures.epoch_time is not None
    assert lane.session.progress.epoch == (lane.taken - 1) // 3  # 100 images: the fourth step would have 4
    assert figures.images_per_second == pytest.approx(32 / figures.step.median)
    assert figures.epoch_time == pytest.approx(100 / 32 * figures.step.median)
    assert figures.gflops < figures.gemm_gflops * 1.5


def test_gemm_peak_is_measured_with_the_shapes_of_the_network() -> None:
    (lane,) = two_lanes()[:1]
    assert bench.gemm_peak(lane.session, seconds=0.01) > 0.1


def test_the_table_has_the_rows_of_the_original_scripts(cli: Cli) -> None:
    result = cli(*BENCH)
    assert result.code == 0, result.err
    for label in (
        "Epoch duration (extrapolated)",
        "Step time (initial)",
        "Step time (stabilized)",
        "Final training accuracy",
        "Validation step time (batch 100)",
        "Final validation accuracy",
        "Speedup (epoch time)",
        "Backend",
    ):
        assert f"\n{label}" in result.out
    assert 'torch.device("cpu")' in result.out and "1.00x" in result.out
    assert "extrapolated to 50,000 images" in result.out


def test_extrapolated_epoch_durations_are_marked() -> None:
    (lane,) = bench.open_lanes(config(), [("cpu", "cpu")], lambda _: None)
    (measured,) = bench.measure_lanes([lane], 0.01, lambda _: None)
    summary = {"epoch_time": 9.0, "step": 4, "train_images": 100}  # 4 steps of at most 32 images
    complete = dataclasses.replace(measured, trained=summary)
    partial = dataclasses.replace(measured, trained={**summary, "step": 2})
    for figures in (measured, partial):
        table = DeviceReport(config(), [figures]).tables()[0]
        assert not cells(table, "Epoch duration (extrapolated)")[0].endswith("(extrapolated)")
        assert any(note.startswith("extrapolated to 100 images") for note in table.notes)
    first, second = cells(DeviceReport(config(), [complete, measured]).tables()[0], "Epoch duration")
    assert first == "9.0 s" and second.endswith(" s (extrapolated)")


def test_epochs_trains_a_run(cli: Cli, tmp_path: Path) -> None:
    result = cli("bench-device", "cpu", *TINY, "--epochs", 1, "--max-time", "0.3s", "--json", "--out", "out")
    assert result.code == 0, result.err
    (device,) = result.json()["devices"]
    (run,) = (tmp_path / "runs").iterdir()
    assert device["trained"]["name"] == run.name and (run / "checkpoints" / "last.pt").exists()
    text = (tmp_path / "out" / "bench-device.md").read_text()
    assert f"| Final validation accuracy | {device['trained']['val_acc']:.2f} % |" in text
    assert "| Epoch duration | " in text and "extrapolated" not in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {f"bench-device.{kind}" for kind in ("json", "csv", "md", "html")} | {"bench-device-bars.png"}


def test_unavailable_devices_are_refused_before_any_work(refused: Any, tmp_path: Path) -> None:
    error = refused("bench-device", "cpu", ABSENT)
    assert f"device {ABSENT} is not available on this machine" in error
    assert f"use {or_list(available_devices())}, or add --skip-unavailable" in error
    assert list(tmp_path.iterdir()) == []


def test_unavailable_devices_can_be_skipped(cli: Cli) -> None:
    result = cli(*BENCH, ABSENT, "--skip-unavailable", "--out", "out.md")
    assert result.code == 0, result.err
    rows = dict(line.strip("| ").split(" | ", 1) for line in Path("out.md").read_text().splitlines() if line[:1] == "|")
    assert rows["Backend"] == 'torch.device("cpu") | not available'
    assert rows["Epoch duration (extrapolated)"].endswith(" s | –")
    assert all(row.count("|") == 1 for row in rows.values())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["cpu", "cpu"], "device cpu is given twice"),
        (["gpu"], "use auto, cpu, mps"),
        ([ABSENT], "hint: use "),
        ([ABSENT, "--skip-unavailable"], "none of"),
        (["cpu", "--device", "cpu"], "hint: run vitctl bench-device cpu"),
        (["cpu", "--wandb", "offline"], "--wandb does nothing without --epochs"),
        (["cpu", "--tensorboard"], "--tensorboard does nothing without --epochs"),
        (["cpu", "--limit-test", "5"], "--limit-test does nothing without --epochs"),
        (["cpu", "--data-dir", "."], "hint: remove --data-dir, or add --epochs 1"),
        (["cpu", "--tune", "--epochs", "1"], "--epochs does nothing with --tune"),
        (["cpu", "--tune", "--max-time", "5s"], "--max-time does nothing with --tune"),
        (["cpu", "--tune", "--compile"], "hint: remove --compile"),
        (["cpu", "--tune", "--out", "x.png"], "--tune draws no plots"),
        (["cpu", "--max-time", "soon"], "takes a duration"),
        (["cpu", "--out", "x.doc"], "hint: use --out with a name that ends in"),
        (["cpu", "--net", "vitt"], "did you mean"),
    ],
)
def test_mistakes_have_an_error_and_a_hint(refused: Any, argv: list[str], words: str) -> None:
    error = refused("bench-device", *argv)
    assert words in error and "\nhint: " in error


def test_train_accepts_the_tuned_settings(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert set(kept) == {(1, 8)}  # given settings are not tuned
    assert {trial["settings"]["bs"] for trial in tuned["trials"]} == {512, 1024}
    fastest = tuned["trials"][speeds.index(max(speeds))]["settings"]
    stored = yaml.safe_load((tmp_path / "tuned-cpu.yaml").read_text())
    assert {**stored, **fastest, "device": "cpu", "net": "cct_2"} == stored
    assert stored["net_options"]["embed_dim"] == 16 and stored["size"] == 24  # the settings it was tuned for
    shown = cli("train", "--config", "tuned-cpu.yaml", "--dataset", "digits", "--print-config")
    assert shown.code == 0, shown.err
    assert {name: yaml.safe_load(shown.out)[name] for name in stored} == stored


def test_batchnorm_is_tuned_with_complete_batches(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitctl.benchmark.tune.SECONDS", 0.0)
    monkeypatch.setattr("vitctl.benchmark.tune.BATCHES", (0.5, 2.0))
    words = ["bench-device", "cpu", "--net", "res18:width=8", "--size", 8, "--threads", "1", "--precision", "fp32"]
    result = cli(*words, "--tune", "--json", "--out", "out")
    assert result.code == 0, result.err
    trials = result.json()["devices"][0]["trials"]
    assert [trial["settings"]["bs"] for trial in trials] == [512, 256, 1024]
    assert all("micro_batch" not in trial["settings"] for trial in trials)
    assert {path.suffix for path in Path("out").iterdir()} == {".json", ".csv", ".md", ".html"}


def test_other_data_sets_are_measured_with_their_own_images() -> None:
    lane, _ = bench.open_lanes(
        resolve_config({"net": TINY_NET, "dataset": "digits", "size": 8, "bs": 32, "val": "none", "epochs": 1}),
        [("one", "cpu"), ("two", "cpu")],
        lambda _: None,
    )
    assert lane.session.batches.count == 1438 and lane.session.dataset.train.images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("where", ["run_micro_batch", "train_step", "logits_and_gradients"])
def test_running_out_of_memory_is_an_error(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(bench, where, full)
    assert "memory" in refused(*BENCH, code=1)


def test_settings_of_the_runs_are_checked_before_measuring(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "open_lanes", lambda *_: pytest.fail("measured"))
    assert "is not a folder" in refused(*BENCH, "--epochs", 1, "--data-dir", tmp_path / "none")


def test_a_failed_run_keeps_the_figures(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RunFailed("the loss is not finite at step 3")

    monkeypatch.setattr(bench, "start_run", fails)
    done = cli(*BENCH, "--dataset", "digits", "--size", 8, "--epochs", 1, "--json")
    assert done.code == 0 and "warning: cpu: the loss is not finite" in done.err
    (device,) = done.json()["devices"]
    assert device["failed"] == "the loss is not finite at step 3" and device["step"]["median"] > 0
    assert done.json()["environment"]["torch"] == torch.__version__


def test_markdown_of_an_unavailable_device() -> None:
    table = DeviceReport(config(), [bench.Figures("mps", None, missing="not available")]).tables()[0]
    assert "| Backend | not available |" in markdown(table)


def figures_of(label: str, device: str, seconds: float, cpu_step: float) -> bench.Figures:
    """Return figures of a device whose steps over 32 images take ``seconds``."""
    step = bench.Quartiles.of([seconds])
    return bench.Figures(
        label, device, batch=32, epoch_images=100, step=step, validation=step, steps=[seconds], epoch_time=seconds,
        images_per_second=32 / seconds, split=dict.fromkeys(bench.PARTS, seconds / 4), cpu_step=cpu_step,
        parity=bench.Parity(0.0, 0.0, 1e-3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"cpu": 1.0, "mps": 1.9}, "cpu trains cct_2 1.9 times as fast as mps: use --device cpu"),
        ({"cpu": 1.0, "mps": 0.5}, None),
        ({"cuda:0": 0.2, "cuda:1": 0.5}, "cuda:0 trains cct_2 2.5 times as fast as cuda:1: use --device cuda:0"),
        (
            {"mps": 1.9},
            "the CPU takes about 1.0 s per step, less than mps: compare them with vitctl bench-device cpu",
        ),
        ({"mps": 0.5}, None),
        ({"cpu": 2.0}, None),
    ],
)
def test_the_report_names_a_faster_device(measured: dict[str, float], expected: str | None) -> None:
    columns = [figures_of(name, name, seconds, cpu_step=1.0) for name, seconds in measured.items()]
    notes = DeviceReport(config(), columns).tables()[0].notes
    found = [note for note in notes if "times as fast" in note or "the CPU takes" in note]
    assert [note.startswith(expected or "") for note in found] == [True] * bool(expected), notes


@pytest.mark.parametrize(("micro_batch", "pieces"), [("32", [32]), ("16", [16, 16]), ("24", [24, 8])])
def test_parity_is_measured_in_the_pieces_of_a_step(micro_batch: str, pieces: list[int]) -> None:
    """A device that is wrong only at one size, as MPS is for long sums, is marked only if a step has that size."""
    lane, _ = two_lanes(micro_batch=micro_batch)
    reference, seconds = bench.reference_of(lane, lane.session.config, (lane.session.dataset, lane.session.splits))
    assert seconds > 0 and not lane.parity(reference).exceeded
    seen: list[int] = []
    lane.session.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    lane.session.model.register_forward_hook(lambda module, args, out: out * (1.1 if len(args[0]) == 32 else 1.0))
    assert lane.parity(reference).exceeded == (32 in pieces)
    assert seen == pieces
