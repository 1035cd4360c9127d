import dataclasses

import pytest

from vitctl.config import FLAGS, OPTION_TABLES, TrainConfig, normalise_keys
from vitctl.config.keys import FILE_ONLY
from vitctl.errors import RequestError


def test_keys_of_a_file_are_parsed_under_all_their_spellings() -> None:
    assert normalise_keys({"n-epochs": 3, "batch_size": "64", "lr": 1e-3}, "f") == {"epochs": 3, "bs": 64, "lr": 1e-3}
    for values, message in (
        ({"epoch": 3}, "f: unknown setting 'epoch'\nhint: did you mean epochs"),
        ({"epochs": 3, "n_epochs": 4}, "f: 'n_epochs' sets epochs a second time\nhint: remove 'n_epochs'"),
        ({"lr": "fast"}, "--lr takes a number"),
        ({"net_options": 3}, "'net_options' must be a mapping of options\nhint: use net_options: {}"),
    ):
        with pytest.raises(RequestError, match=message):
            normalise_keys(values, "f")


def test_every_setting_has_help() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert "flag" in field.metadata or field.name in (*OPTION_TABLES, *FILE_ONLY)
    assert all(flag.help for flag in FLAGS.values())
