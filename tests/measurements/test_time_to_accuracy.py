"""The comparison of accuracy at equal time: its plain loops, results, table and plot."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.conftest import TINY_NET
from tests.measurements.time_to_accuracy import __main__ as command
from tests.measurements.time_to_accuracy import plain, records_cnn
from tests.measurements.time_to_accuracy.report import plot, table
from tests.measurements.time_to_accuracy.result import Result
from vitctl.data.cifar import CIFAR10


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images and their labels; the average brightness of an image shows its class."""
    labels = torch.arange(count) % 10
    noise = torch.randint(0, 30, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return (noise + 22 * labels.view(-1, 1, 1, 1)).byte(), labels


def result(name: str, seconds: float, budget: float | None = None, seed: int = 0, acc: float = 50.0) -> Result:
    return Result(
        name=name, budget=budget, seed=seed, seconds=seconds, test_acc=acc, test_acc_tta=acc + 1, images=1000, mflop=2.0,
        precision="fp32", threads=2,
    )  # fmt: skip


def test_a_batch_is_cropped_from_reflections_and_mirrored_in_every_other_epoch() -> None:
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.arange(6)
    torch.manual_seed(0)
    batches = records_cnn.RecordsData(images, labels).batches(6)
    scale, offset = records_cnn.STD.view(3, 1, 1), records_cnn.MEAN.view(3, 1, 1)
    mirrored: dict[int, list[bool]] = {}
    moves = set()
    for _ in range(4):
        for image, label in zip(*next(batches), strict=True):
            uint8 = (image * scale + offset).round()
            for mirror in (False, True):
                whole = images[label].flip(-1) if mirror else images[label]
                padded = F.pad(whole.float()[None], (2,) * 4, mode="reflect")[0]
                places = [(y, x) for y in range(5) for x in range(5)]
                found = [(y, x) for y, x in places if torch.equal(padded[:, y : y + 32, x : x + 32], uint8)]
                if found:
                    mirrored.setdefault(int(label), []).append(mirror)
                    moves.update(found)
    assert {label: (m, not m, m, not m) for label, (m, *_) in mirrored.items()} == {
        label: tuple(each) for label, each in mirrored.items()
    }
    assert len(mirrored) == 6 and len({each[0] for each in mirrored.values()}) == 2 and len(moves) > 10


def test_the_first_convolution_whitens_patches() -> None:
    data = records_cnn.RecordsData(torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8), torch.zeros(200).long())
    model = records_cnn.RecordsCnn((8, 8, 8))
    model.set_whitening(data.first)
    with torch.no_grad():
        outputs = F.conv2d(data.first, model.whiten.weight).transpose(0, 1).flatten(1)  # [24, B * 31 * 31]
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert torch.allclose(covariance[:12, :12], torch.eye(12), atol=0.01)
    assert torch.equal(outputs[:12], -outputs[12:])


@pytest.mark.parametrize(
    "name",
    [
        name if name == "records-cnn-narrow" else pytest.param(name, marks=pytest.mark.slow)
        for name in plain.CONTESTANTS
    ],
)
def test_a_plain_loop_learns_and_ends_in_time(name: str) -> None:
    start = time.monotonic()
    found = plain.train(plain.CONTESTANTS[name], examples(128), examples(50), start + 2.5, seed=0)
    assert found["images"] == found["steps"] * found["batch"] and found["precision"] in ("fp32", "bf16")
    assert found["steps"] >= 1 and 0 <= found["test_acc"] <= 100 and 0 <= found["test_acc_tta"] <= 100
    json.dumps(found)


def test_the_batch_grows_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "fastest", lambda *args: ("fp32", 0.125))  # 1,000 images/s at batch size 125
    monkeypatch.setattr(plain, "step_seconds", lambda *args: 1e9)
    contestant, data = plain.CONTESTANTS["records-cnn-narrow"], examples(2000)
    sizes = {
        budget: plain.train(contestant, data, examples(10), time.monotonic() + budget, 0)["batch"]
        for budget in (60, 150)
    }
    assert sizes == {60: 250, 150: 500}


def test_images_are_counted_over_epochs_and_steps() -> None:
    summary = {"step": 25, "steps_per_epoch": 10, "train_images": 95}
    assert command.seen_images(summary, 10) == 2 * 95 + 5 * 10
    assert result("a", 1).pflop == pytest.approx(3 * 2e6 * 1000 / 1e15)


def test_finished_runs_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(name: str, budget: float | None, seed: int) -> Result:
        ran.append((name, budget, seed))
        return result(name, 10.0, budget, seed, 50.0 + seed)

    monkeypatch.setattr(
        command,
        "ENTRIES",
        {
            "own": command.Entry(lambda budget, seed: run("own", None, seed), timed=False),
            "timed": command.Entry(lambda budget, seed: run("timed", budget, seed), timed=True),
        },
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["x", "--budgets", "1", "2", "--plot", "plot.svg"]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", *seeds])
        command.main()
    first = [("own", None, 0), ("timed", 1.0, 0), ("timed", 2.0, 0)]
    assert ran == [*first, ("own", None, 1), ("timed", 1.0, 1), ("timed", 2.0, 1)]
    assert len(json.loads(Path("time_to_accuracy.json").read_text())["results"]) == 6
    assert (
        "| `timed` | 2 s | 10.0 s | 0.0000 | 1,000 | fp32 | 2 | 2 | 50.5 ± 0.7 % | 51.5 ± 0.7 % |"
        in capsys.readouterr().out
    )
    assert Path("plot.svg").read_text().startswith("<?xml")


def test_the_table_is_sorted_by_time_and_the_plot_is_transparent(tmp_path: Path) -> None:
    results = [result("slow", 100.0), result("quick", 5.0, 5.0)]
    rows = table(results).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == ["quick", "slow"] and "| – |" in rows[1]
    plot(results, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert np.asarray(image)[0, 0, 3] == 0


@pytest.mark.slow
def test_complete_commands_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 300), ("test", 50)):
        for i, (image, label) in enumerate(zip(*examples(count), strict=True)):
            folder = tmp_path / "data" / "cifar10" / part / CIFAR10.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
    tiny = command.recipe("tiny", "--net", TINY_NET, "--bs", "32", "--epochs", "2", "--val", "none")
    for entry, budget in ((tiny, None), (command.ENTRIES["records-cnn-narrow"], 15.0)):
        found = entry.run(15.0, 0)
        assert (found.budget, found.seed) == (budget, 0) and found.images > 0 and found.pflop > 0
        assert 0 < found.seconds < 60
    assert tiny.run(15.0, 0).images == 600
