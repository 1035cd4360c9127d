import pytest

from vitctl.config import TrainConfig
from vitctl.errors import RequestError


def test_stored_settings_unknown_to_this_version_are_refused() -> None:
    with pytest.raises(RequestError, match="unknown to this version of vitctl: hyperdrive\nhint: upgrade vitctl"):
        TrainConfig.from_dict({"hyperdrive": 1})


def test_true_selects_the_default_strength_of_mixup_and_cutmix() -> None:
    config = TrainConfig(epochs=1, mixup=True, cutmix=False)
    assert (config.mixup, config.cutmix) == (0.8, 0.0)
