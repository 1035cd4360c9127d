"""Learning-rate range test."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, Cli
from vitctl.cli.progress import ProgressLines
from vitctl.config import resolve_config
from vitctl.recipes import RECIPES
from vitctl.tools import lr_finder
from vitctl.tools.lr_finder import smooth, suggest
from vitctl.training.session import Session

Refused = Callable[..., str]
STEPS = ["--max-steps", "60"]
FEW = ["--max-steps", "12"]


def test_it_suggests_a_rate_and_writes_only_the_plot(cli: Cli, tmp_path: Path) -> None:
    found = cli("train", *TINY, *STEPS, "--lr-finder", "--json").json()
    assert found["lr"] == sorted(found["lr"]) and found["lr"][0] == pytest.approx(2e-6)
    assert len(found["lr"]) == len(found["loss"]) == len(found["smoothed"]) == found["steps"] <= 60
    assert found["lr"][1] / found["lr"][0] == pytest.approx(1e6 ** (1 / 59))
    assert found["loss"][0] == pytest.approx(math.log(10), rel=0.3)
    assert found["lr"][0] < found["suggestion"] < found["lowest"] and found["lowest_tenth"] == found["lowest"] / 10
    assert (tmp_path / "lr-finder.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr-finder.png"]


def test_its_first_step_is_that_of_a_training_run(cli: Cli) -> None:
    """The first loss is that of the untrained network on the first batch."""
    found = cli("train", *TINY, *FEW, "--lr-finder", "--json").json()
    run = cli("train", *TINY, "--max-steps", 1, "--json").json()
    assert found["loss"][0] == pytest.approx(run["train_loss"])


def test_the_second_rate_scales_with_the_suggestion(cli: Cli) -> None:
    argv = ["train", *TINY, *STEPS, "--opt", "muon:adamw_lr=0.004", "--lr", 0.02, "--lr-finder"]
    found = cli(*argv, "--json").json()
    assert found["second_lr"] == {"adamw_lr": pytest.approx(found["suggestion"] / 5)}
    assert "suggested adamw_lr" in cli(*argv).out
    assert cli("train", *TINY, *FEW, "--lr-finder", "--json").json()["second_lr"] == {}


def test_epochs_and_time_select_the_variant_of_the_recipe(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = dataclasses.replace(RECIPES["default"], by_dataset={}, by_epochs={1: {"bs": 16}}, by_time={60: {"bs": 8}})
    monkeypatch.setitem(RECIPES, "mine", mine)
    argv = ["train", *TINY[: TINY.index("--bs")], "--recipe", "mine", *FEW, "--lr-finder", "--json"]
    sizes = [cli(*argv, *more).json()["config"]["bs"] for more in ((), ("--epochs", 1), ("--max-time", "30s"))]
    assert sizes == [128, 16, 8]
    (tmp_path / "run.yaml").write_text("recipe: mine\n")
    of_file = [word for word in argv if word not in ("--recipe", "mine")]
    assert cli(*of_file, "--config", "run.yaml", "--epochs", 1).json()["config"]["bs"] == 16


def test_it_stops_when_the_loss_diverges(cli: Cli) -> None:
    found = cli(
        "train", *TINY, *STEPS, "--opt", "sgd:momentum=0", "--lr", 100, "--clip-grad", 0, "--lr-finder", "--json"
    )
    assert found.json()["diverged"] is True and found.json()["steps"] < 60
    above = cli("train", *TINY, *STEPS, "--opt", "adamw", "--lr", 1e4, "--clip-grad", 0, "--lr-finder")
    assert "the loss diverged before it fell\nhint: use --lr 100" in above.out
    short = cli("train", *TINY, "--max-steps", 12, "--opt", "adamw", "--lr", 1e-12, "--lr-finder")
    assert "use more steps: --max-steps 24" in short.out


def test_the_configured_schedule_is_ignored(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("schedule: constant\nschedule_per: epoch\nwarmdown: 0.05\n")
    assert cli("train", *TINY, *FEW, "--config", "run.yaml", "--lr-finder").code == 0


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.PNG", b"\x89PNG")])
def test_the_suffix_selects_the_format_of_the_plot(cli: Cli, tmp_path: Path, name: str, start: bytes) -> None:
    result = cli("train", *TINY, *FEW, "--lr-finder", "--lr-finder-out", name)
    assert result.code == 0 and (tmp_path / name).read_bytes().startswith(start)
    assert f"plot: {name}" in result.out


def test_images_are_mixed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss would fall at any rate when mixing stops."""
    mixed: list[bool] = []
    step, train_mode = lr_finder.train_step, Session.train_mode

    def recorded(session: Session) -> None:
        mixed.append(session.batches.mixes(session.progress.epoch, session.progress.step_in_epoch))
        step(session)

    modes: list[str] = []
    monkeypatch.setattr(lr_finder, "train_step", recorded)
    monkeypatch.setattr(Session, "train_mode", lambda self: (modes.append("train"), train_mode(self))[1])
    settings = dict(
        zip([str(word).removeprefix("--").replace("-", "_") for word in TINY[::2]], TINY[1::2], strict=True)
    )
    config = resolve_config({**settings, "mixup": 0.8, "mix_off": 0.5})
    lr_finder.find_lr(config, ProgressLines(), None, 25)
    assert len(mixed) >= 20 and all(mixed)
    assert modes == ["train"]  # keeps frozen layers in eval mode


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr-finder", "--lr-finder-out", "a.jpg"], "a.jpg does not end in .png, .svg or .pdf"),
        (["--lr-finder", "--lr-finder-out", "nowhere/a.png"], "no such folder"),
        (["--lr-finder", "--lr-finder-out", "/proc/a.png"], "--lr-finder-out /proc/a.png"),
        (["--lr-finder-out", "a.png"], "does nothing without --lr-finder"),
        (["--lr-finder", "--name", "x"], "--name does nothing with"),
        (["--lr-finder", "--dry-run"], "--dry-run does nothing with"),
        (["--lr-finder", "--epochs", "3"], "--epochs does nothing with"),
        (["--lr-finder", "--resume", "x"], "--resume does nothing with"),
        (["--lr-finder", "--warmup", "0.1"], "--warmup does nothing with"),
        (["--lr-finder", "--schedule-per", "epoch"], "--schedule-per does nothing with"),
        (["--lr-finder", "--lr", "0"], "--lr 0 does not work with --lr-finder"),
        (["--lr-finder", "--max-steps", "5"], "use --max-steps 11 or more"),
    ],
)
def test_bad_requests_are_refused(refused: Refused, tmp_path: Path, argv: list[str], message: str) -> None:
    assert message in refused("train", *TINY, *argv)
    assert not list(tmp_path.iterdir())


def test_suggestions_match_a_known_curve() -> None:
    rates = [10 ** (-6 + 0.05 * i) for i in range(121)]
    # Flat at 2, a sigmoid fall around 1e-3, a minimum near 1e-2, then rising.
    losses = [2 - 1 / (1 + math.exp(-4 * (math.log10(r) + 3))) + 5 * max(0.0, math.log10(r) + 2) ** 2 for r in rates]
    found = suggest(rates, smooth(losses))
    assert found["suggestion"] == pytest.approx(1e-3, rel=0.2)
    assert found["lowest"] == pytest.approx(1e-2, rel=0.4)
    flat = suggest(rates, smooth([2 + 0.01 * (-1) ** i for i in range(121)]))
    assert set(flat.values()) == {None}
    assert set(suggest([], []).values()) == {None}


def test_smoothing_does_not_shift_the_curve() -> None:
    line = [float(i) for i in range(20)]
    assert smooth(line)[4:-4] == pytest.approx(line[4:-4])
    spike = smooth([0.0] * 10 + [1.0] + [0.0] * 10)
    assert spike == pytest.approx(spike[::-1]) and max(spike) == spike[10]
