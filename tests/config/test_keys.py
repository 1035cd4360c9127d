import dataclasses

import pytest

from vitctl.config import FLAGS, OPTION_TABLES, TrainConfig, normalise_keys
from vitctl.errors import RequestError


def test_file_keys() -> None:
    assert normalise_keys({"n-epochs": 3, "batch_size": "64", "lr": 1e-3}, "f") == {"epochs": 3, "bs": 64, "lr": 1e-3}
    for values, sentence in (
        ({"epoch": 3}, "'epoch' is no setting of train; did you mean epochs"),
        ({"epochs": 3, "n_epochs": 4}, "sets epochs a second time"),
        ({"lr": "fast"}, "--lr takes a number"),
        ({"net_options": 3}, "must be a mapping"),
    ):
        with pytest.raises(RequestError, match=sentence):
            normalise_keys(values, "f")


def test_every_setting_is_described() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert "flag" in field.metadata or field.name in OPTION_TABLES
    assert all(flag.help for flag in FLAGS.values())
