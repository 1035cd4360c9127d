"""Parsing of ``--lr-scale``."""

from typing import Any

import pytest

from vitctl.config import TrainConfig, read_settings, resolve_config
from vitctl.config.lr_scale import format_lr_scale, parse_lr_scale
from vitctl.errors import RequestError


@pytest.mark.parametrize(
    "value", ["norm_bias=64,head=0.5", " head = 0.5 , norm-bias=64", {"norm_bias": 64, "head": "0.5"}]
)
def test_factors_are_read_from_text_and_mappings(value: Any) -> None:
    factors = parse_lr_scale(value, "--lr-scale")
    assert list(factors.items()) == [("head", 0.5), ("norm_bias", 64.0)]
    assert parse_lr_scale(format_lr_scale(factors), "--lr-scale") == factors


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("heads=1", "unknown role in --lr-scale 'heads'\nhint: did you mean head?"),
        ({"lr": 1}, "unknown role in --lr-scale 'lr'\nhint: use head, matrices, convolutions,"),
        ("head", "--lr-scale head is not of the form ROLE=FACTOR\nhint: use --lr-scale head=0.5"),
        ("head=", "not of the form"),
        ("head=1,", "not of the form"),
        ([1], "not of the form"),
        ("head=1,head=2", "--lr-scale sets head twice"),
        ("head=-1", "--lr-scale head=-1 is negative\nhint: use head=0 or more"),
        ("head=x", "--lr-scale head=... takes a number, not 'x'"),
        ("head=inf", "takes a number"),
    ],
)
def test_mistakes_are_refused(value: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_lr_scale(value, "--lr-scale")
    assert message in str(error.value)


def test_runs_of_earlier_versions_have_no_factors() -> None:
    stored = resolve_config({"net": "cct_2"}).to_dict()
    assert stored.pop("lr_scale") == {}
    assert TrainConfig.from_dict(stored).lr_scale == {}


def test_a_flag_changes_one_factor_of_a_file(tmp_path: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lr_scale:\n  head: 2\n  norm_bias: 64\n")
    file = read_settings(path)
    assert resolve_config({"net": "cct_2", "lr_scale": {"head": 0.5}}, file).lr_scale == {
        "head": 0.5,
        "norm_bias": 64.0,
    }
    path.write_text("lr_scale: head=2\n")
    assert resolve_config({"net": "cct_2"}, read_settings(path)).lr_scale == {"head": 2.0}
    path.write_text("lr: 0.1\nlr_scale: {heads: 2}\n")
    with pytest.raises(RequestError, match="did you mean head"):
        read_settings(path)
