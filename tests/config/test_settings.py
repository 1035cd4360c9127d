import pytest

from vitctl.config import TrainConfig
from vitctl.errors import RequestError


def test_stored_settings_of_a_later_version_are_named() -> None:
    with pytest.raises(RequestError, match="hyperdrive"):
        TrainConfig.from_dict({"hyperdrive": 1})


def test_a_record_made_by_hand_takes_true_for_a_number_that_has_a_usual_value() -> None:
    config = TrainConfig(epochs=1, mixup=True, cutmix=False)
    assert (config.mixup, config.cutmix) == (0.8, 0.0)
