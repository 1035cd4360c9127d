import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.export.test_formats import build, record_of
from vitctl.export.formats import Deployed, Run, as_tuple
from vitctl.export.request import Form
from vitctl.export.verify import (
    BATCHES,
    Agreement,
    Mismatch,
    Reference,
    Sample,
    compare,
    difference,
    make_reference,
    make_sample,
    measure_speed,
)
from vitctl.inference.classifier import Classifier, classifier_of
from vitctl.inference.scoring import load_data_for
from vitctl.inference.trained import load_trained


@pytest.fixture
def classifier(digits_run: Path) -> Classifier:
    device = torch.device("cpu")
    return classifier_of(load_trained(digits_run, weights="last", device=device, warn=print), device)


RECORD = record_of("x", 2, Form(), mean=(0.5,), classes=("a", "b", "c"))


def sample(count: int = 20) -> Sample:
    images = torch.arange(count * 4, dtype=torch.uint8).view(count, 1, 2, 2)
    return Sample(images, torch.arange(count) % 3, "images")


def logits_of(images: Tensor) -> Tensor:
    """Return logits that differ between images; the first pixel determines the predicted class."""
    first = (images[:, 0, 0, 0] * 255).round().long()
    return nn.functional.one_hot(first // 4 % 3, 3).float() + images.mean((1, 2, 3))[:, None]


def reference(of: Sample) -> Reference:
    return Reference(logits_of(of.images / 255), {count: logits_of(of.first(count) / 255) for count in BATCHES})


def agreement(run: Run, tolerance: float = 1e-4) -> Agreement:
    given = sample()
    return compare(RECORD, run, given, reference(given), tolerance=tolerance, batch=8, title="x")


def test_the_same_function_matches() -> None:
    found = agreement(lambda images: (logits_of(images),))
    assert found.max_difference < 1e-6 and found.changed == 0 and found.failure(1e-4) is None
    assert found.top1 == 100.0 and set(found.batches) == {1, 3, 17}


def test_a_difference_on_one_image_is_found() -> None:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of(images)
        logits[images[:, 0, 0, 0] * 255 > 75] += 0.25  # only the last image
        return (logits,)

    found = agreement(run)
    assert found.max_difference == pytest.approx(0.25) and max(found.batches.values()) < 1e-6
    mismatch = found.failure(1e-4)
    assert mismatch is not None and "differ by up to 0.25 (--tolerance 0.0001)" in mismatch.message
    assert "logits up to 1.3" in mismatch.hint
    assert found.failure(0.3) is None


@pytest.mark.parametrize("size", BATCHES)
def test_a_difference_at_one_batch_size_is_found(size: int) -> None:
    found = agreement(lambda images: (logits_of(images) + (len(images) == size),))
    assert found.batches[size] == pytest.approx(1.0) and found.failure(1e-4) is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_fails(bad: float) -> None:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of(images)
        logits[-1, 0] = bad
        return (logits,)

    assert agreement(run).failure(1e9) is not None


def test_the_tolerance_is_absolute_for_large_logits() -> None:
    given = sample()
    exact = Reference(1000 * logits_of(given.images / 255), {})
    known = replace(exact, batches={count: exact.logits[torch.arange(count) % 20] for count in BATCHES})

    def failure(error: float) -> Mismatch | None:
        def run(images: Tensor) -> tuple[Tensor, ...]:
            return (1000 * logits_of(images) + error,)

        return compare(RECORD, run, given, known, tolerance=0.01, batch=8, title="x").failure(0.01)

    assert failure(0.0) is None
    mismatch = failure(0.02)
    assert mismatch is not None and "differ by up to 0.02 (--tolerance 0.01)" in mismatch.message


def test_outputs_of_another_shape_fail() -> None:
    assert difference(torch.zeros(2, 3), torch.zeros(2, 1)) == float("inf")


def test_changed_predictions_fail_unless_they_are_ties() -> None:
    given = sample(4)
    ours = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.49995, 0.0], [0.0, 1.0, 0.9], [0.0, 0.0, 1.0]])
    theirs = torch.tensor([[1.0, 0.0, 0.0], [0.49995, 0.5, 0.0], [0.0, 0.9, 1.0], [0.0, 0.0, 1.0]])
    known = Reference(ours, {count: ours[torch.arange(count) % 4] for count in BATCHES})

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return (theirs[(images[:, 0, 0, 0] * 255).round().long() // 4],)

    found = compare(RECORD, run, given, known, tolerance=1e-4, batch=3, title="x")
    assert (found.changed, found.ties) == (2, 1)
    # A larger tolerance for logits does not permit more changed predictions.
    lenient = compare(RECORD, run, given, known, tolerance=0.2, batch=3, title="x")
    for each in (found, lenient):
        mismatch = each.failure(0.2)
        assert mismatch is not None and mismatch.message == "1 prediction changed"


def test_probabilities_are_compared() -> None:
    record = replace(RECORD, form=Form(softmax=True))
    given = sample()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of(images)
        return logits, logits.softmax(1) + 0.01

    found = compare(record, run, given, reference(given), tolerance=1e-4, batch=8, title="x")
    assert found.max_difference < 1e-6 and found.max_difference_probs == pytest.approx(0.01, rel=1e-3)
    assert found.failure(1e-4) is not None


def test_a_sample_has_test_images_or_generated_ones(classifier: Classifier) -> None:
    data = load_data_for(classifier)
    whole = make_sample(classifier, data, None, uint8_input=False)
    assert len(whole.images) == 359 and whole.title == "359 digits test images"
    assert make_reference(classifier, whole).top1(whole) > 60
    assert len(make_sample(classifier, data, 50, uint8_input=False).images) == 50
    generated = make_sample(classifier, None, 30, uint8_input=False)
    assert generated.images.shape == (30, 1, 8, 8) and generated.images.float().std() > 60
    assert generated.labels is None and make_reference(classifier, generated).top1(generated) is None
    assert torch.equal(generated.images, make_sample(classifier, None, 30, uint8_input=False).images)


def test_a_small_sample_is_repeated_to_fill_a_batch() -> None:
    assert sample(2).first(5)[:, 0, 0, 0].tolist() == [0, 4, 0, 4, 0]


def test_speed_is_measured_separately_for_each_file() -> None:
    import time

    def slow(images: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.02)
        return (images,)

    model = Deployed(build("cct_2", 8, embed_dim=16, depth=1), (0.5,) * 3, (0.2,) * 3, Form(), 8)
    record = record_of("cct_2", 8, Form())
    given = Sample(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), None, "")
    with torch.inference_mode():
        speeds = measure_speed({"slow": (slow, record), "network": (lambda x: as_tuple(model(x)), record)}, given)
    assert 0.02 <= speeds["slow"]["latency_p50"] <= speeds["slow"]["latency_p95"] < 0.2
    assert speeds["network"]["latency_p50"] < 0.02
    assert speeds["slow"]["speed_batch"] == 256
    assert 256 / 0.2 < speeds["slow"]["images_per_second"] <= 256 / 0.02


@pytest.mark.parametrize("where", ["max_difference", "max_difference_probs"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_differences_that_are_large_or_not_finite_fail(where: str, value: float) -> None:
    sound: dict[str, Any] = {"max_difference": 0.0, "max_difference_probs": 0.0}
    agreement = Agreement(batches={}, max_logit=1.0, changed=0, ties=0, top1=None, **sound)
    assert agreement.failure(1e-4) is None
    assert replace(agreement, **{where: value}).failure(1e-4) is not None
