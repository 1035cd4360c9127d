import pytest

from vitctl.config import FLAGS
from vitctl.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1),
        ("bs", 0),
        ("epochs", 0),
        ("warmup", 1),
        ("warmdown", 1.1),
        ("lr", float("inf")),
        ("label_smoothing", 1),
        ("ema", 1),
        ("val_fraction", 0),
        ("seed", -1),
    ],
)
def test_values_out_of_range_name_the_flag(name: str, value: float) -> None:
    with pytest.raises(RequestError, match="--" + name.replace("_", "-")):
        FLAGS[name].parse(name, value)
