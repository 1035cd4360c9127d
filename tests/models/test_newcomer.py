"""Adding a network takes one file and one row of the table, as CONTRIBUTING describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Cli
from vitctl.models import MODELS, ModelEntry, build_model
from vitctl.registry import Option

FILE = '''
"""Two layers on the mean colour of each quarter of the image."""

import torch.nn.functional as F
from torch import Tensor, nn


class Quarters(nn.Module):
    def __init__(self, in_chans: int, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4 * in_chans, embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.embed(F.adaptive_avg_pool2d(x, 2).flatten(1))))  # from [B, 4 * C]


def quarters(*, img_size: int, in_chans: int, num_classes: int, embed_dim: int) -> nn.Module:
    return Quarters(in_chans, embed_dim, num_classes)
'''

ROW = ModelEntry(
    target="quarters:quarters",
    summary="MLP on the colours of quarters",
    options={"embed_dim": Option(64, "hidden units", low=8)},
    family="mine",
    params=1482,
    mflop=0.0,
)


@pytest.fixture(autouse=True)
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quarters.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "quarters", ROW)


def test_it_can_be_built() -> None:
    model = build_model("quarters", {"embed_dim": 16}, img_size=8, in_chans=1, num_classes=3)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_it_trains_and_its_checkpoint_can_be_evaluated(cli: Cli) -> None:
    run = ["train", "--dataset", "digits", "--size", 8, "--net", "quarters:embed_dim=32", "--lr", 0.01, "--epochs", 3]
    summary = cli(*run, "--name", "mine", "--json").json()
    assert summary["net"] == "quarters" and summary["params"] == 5 * 32 + 33 * 10
    assert summary["test_acc"] > 30
    assert cli("eval", "runs/mine", "--json").json()["loss"] == pytest.approx(summary["test_loss"], rel=1e-4)


def test_it_is_listed_and_bad_options_are_refused(cli: Cli) -> None:
    (row,) = cli("list-models", "mine", "--json").json()
    assert (row["name"], row["params"], row["options"]) == ("quarters", 1482, {"embed_dim": 64})
    document = cli("list-models", "--details", "quarters:embed_dim=16", "--json").json()
    assert [layer["name"] for layer in document["layers"]] == ["embed", "head"]
    assert "use 8 or more" in cli("train", "--net", "quarters:embed_dim=4").err
    assert "did you mean quarters?" in cli("train", "--net", "quarterz").err
