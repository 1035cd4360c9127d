"""Signs that a run does not learn: a loss that rises from the first step on, and a result at chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vitctl.data.dataset import Subset
from vitctl.observer import Record
from vitctl.training.evaluate import Evaluation, logits_of
from vitctl.units import plural

if TYPE_CHECKING:
    from vitctl.training.session import Session

Say = Callable[[str], None]

WINDOW = 20
"""Steps whose mean loss is compared with that of the first step."""

RISE = 1.1, 0.2
"""Factor and margin by which a loss must exceed that of the first step to count as risen; less is noise."""

FALL = 0.9
"""Share of the first step's loss below which the loss counts as fallen."""

LEVEL = 0.05
"""Level of the binomial test: a result that is as likely as this by chance counts as chance."""

FEW_STEPS, ENOUGH_STEPS = 200, 300
"""Number of steps below which a run is probably too short, and number to try instead."""

MAX_SAMPLE = 500
"""Maximum number of training images from which to find the reason."""

SPREAD = 0.01
"""Standard deviation of the probabilities over the images below which outputs count as equal."""


class LossWatch:
    """Warns once if the loss rises from the first step on, and stops watching once it has fallen.

    Args:
        session: session of the run, new or restored.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        # Checkpoints of earlier versions have no first loss.
        self.watching = not session.progress.step or session.progress.first_loss is not None
        self._begin_window()

    def _begin_window(self) -> None:
        tally = self.session.tally
        self.begun, self.loss, self.seen = self.session.progress.step, tally.loss_total, tally.seen_total

    def step(self, say: Say) -> None:
        """Compare the mean loss of a window with the first loss, once the window's losses were read from the device."""
        tally, progress = self.session.tally, self.session.progress
        if not self.watching or tally.count or progress.step - self.begun < WINDOW:
            return
        first, mean = progress.first_loss, (tally.loss_total - self.loss) / (tally.seen_total - self.seen)
        assert first is not None
        self._begin_window()
        if risen(first, mean):
            self.watching = False
            say(
                f"warning: the loss rose from {first:.2f} to {mean:.2f} in {plural(progress.step, 'step')}; "
                f"try a lower --lr such as {self.session.config.lr / 10:.2g}"
            )
        elif mean < FALL * first:
            self.watching = False


def risen(first: float, loss: float) -> bool:
    """Return whether ``loss`` is clearly higher than that of the first step."""
    factor, margin = RISE
    return loss > max(factor * first, first + margin)


def chance_level(labels: Tensor, predicted: Tensor) -> float:
    """Return the accuracy (0-1) to expect if the predictions had nothing to do with the images.

    It is 1 / K for K equally large classes; for a network that always predicts the same class, it is the share of that
    class.

    Args:
        labels: true classes, int64 ``[N]``.
        predicted: predicted classes, int64 ``[N]``.
    """
    classes = int(max(labels.max(), predicted.max())) + 1
    counts = (each.bincount(minlength=classes).double() / len(labels) for each in (labels, predicted))
    return torch.stack([*counts]).prod(0).sum().item()


def is_at_chance(labels: Tensor, predicted: Tensor) -> bool:
    """Return whether a one-sided binomial test does not find the accuracy above chance.

    False if there are too few images or classes to find that even with correct predictions.
    """
    return _above_chance(labels, labels) and not _above_chance(labels, predicted)


def _above_chance(labels: Tensor, predicted: Tensor) -> bool:
    correct = int((predicted == labels).sum())
    return probability_of_at_least(correct, len(labels), chance_level(labels, predicted)) <= LEVEL


def probability_of_at_least(successes: int, trials: int, probability: float) -> float:
    """Return the probability of at least ``successes``, from the binomial distribution.

    Importing scipy's implementation would take longer than the seconds that ``--max-time`` reserves for the end.
    """
    n, p = (torch.tensor(each, dtype=torch.float64) for each in (trials, min(1.0, probability)))
    k = torch.arange(successes, trials + 1, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return float((ways + torch.xlogy(k, p) + torch.special.xlog1py(n - k, -p)).logsumexp(0).exp())


@dataclass(frozen=True)
class Reason:
    """Why a run has probably learned nothing.

    Attributes:
        name: stable name for programs.
        cause: what was found.
        advice: what to try.
    """

    name: Literal[
        "blank_images", "identical_images", "high_rate", "few_steps", "equal_outputs", "only_training", "flat_loss"
    ]
    cause: str
    advice: str


@dataclass(frozen=True)
class TrainSample:
    """Some training images, and the trained network's predictions for them.

    Attributes:
        session: session of the finished run.
        images: uint8 ``[n, C, H, W]``.
        labels: true classes, int64 ``[n]``.
        probabilities: predicted probabilities, float ``[n, K]``, on the CPU.
    """

    session: Session
    images: Tensor
    labels: Tensor
    probabilities: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, session: Session) -> TrainSample:
        """Return up to :data:`MAX_SAMPLE` images, spread over the training set."""
        train, model = session.splits.train, session.evaluated_model.eval()
        subset = Subset(train.examples, train.index[:: -(-len(train) // MAX_SAMPLE)])

        def run(images: Tensor) -> Tensor:
            with session.autocast():
                logits: Tensor = model(session.normalize(images))
            return logits.float()

        outputs = [each for each, _, _ in logits_of(run, subset, session.eval_batch, device=session.device)]
        return cls(
            session=session,
            images=train.examples.images[subset.index],
            labels=train.examples.labels[subset.index],
            probabilities=torch.cat(outputs).softmax(1).cpu(),
        )


def identical_images(sample: TrainSample) -> Reason | None:
    """Find that most images have an equal one in another class, as when all are blank."""
    contents = [image.numpy().tobytes() for image in sample.images]
    classes: dict[bytes, set[int]] = {}
    for content, label in zip(contents, sample.labels.tolist(), strict=True):
        classes.setdefault(content, set()).add(label)
    alike = torch.tensor([len(classes[content]) > 1 for content in contents])
    if alike.sum() * 2 < len(contents):
        return None
    share = f"{100 * alike.double().mean():.0f} % of images are"
    flat = sample.images[alike].flatten(2)
    if (flat.amin(2) == flat.amax(2)).all(1).double().mean() > 0.5:
        return Reason("blank_images", f"{share} blank", "see --preview-batch b.png")
    return Reason("identical_images", f"{share} in two classes", "remove duplicates")


def high_rate(sample: TrainSample) -> Reason | None:
    """Find that the loss rose above that of the first step."""
    session = sample.session
    first, highest = session.progress.first_loss, max(row["train_loss"] for row in session.history)
    if first is None or not risen(first, highest):
        return None
    return Reason("high_rate", f"the loss rose from {first:.2f} to {highest:.2f}", _lower_rate(session))


def few_steps(sample: TrainSample) -> Reason | None:
    """Find that the run is short."""
    session = sample.session
    step = session.progress.step
    if step >= FEW_STEPS:
        return None
    by_steps = session.config.epochs is None or session.config.max_steps is not None
    epochs = -(-ENOUGH_STEPS // session.steps_per_epoch)
    longer = f"--max-steps {ENOUGH_STEPS}" if by_steps else f"--epochs {epochs}"
    return Reason("few_steps", f"the run took only {plural(step, 'step')}", f"try {longer}")


def equal_outputs(sample: TrainSample) -> Reason | None:
    """Find that the network gives every image about the same output."""
    if sample.probabilities.std(0).max() > SPREAD:
        return None
    return Reason("equal_outputs", "all images have the same output", _lower_rate(sample.session))


def only_training(sample: TrainSample) -> Reason | None:
    """Find that the network classifies the training images, but no others."""
    predicted = sample.probabilities.argmax(1)
    if is_at_chance(sample.labels, predicted):
        return None
    return Reason("only_training", "only training images are learned", "check the test labels")


REASONS = (identical_images, high_rate, few_steps, equal_outputs, only_training)
"""Functions that look for one reason each, in order of precedence."""


def find_reason(sample: TrainSample) -> Reason:
    """Return the first reason that is found."""
    found = (search(sample) for search in REASONS)
    return next(filter(None, found), Reason("flat_loss", "the loss hardly fell", "try --lr-finder"))


def warn_at_chance(session: Session, result: Evaluation, say: Say) -> Record:
    """Warn if a finished run has learned nothing, and return the summary's ``at_chance``.

    Args:
        session: session of the run.
        result: evaluation on the test set.
        say: receives the warning.

    Returns:
        Empty unless the accuracy is not above chance; else ``at_chance`` with ``expected`` (the accuracy at chance, in
        percent) and the ``reason``, ``cause`` and ``advice`` of a :class:`Reason`.
    """
    if not is_at_chance(result.labels, result.predicted):
        return {}
    reason = find_reason(TrainSample.of(session))
    say(f"warning: test accuracy {result.acc:.1f} % is at chance: {reason.cause}; {reason.advice}")
    expected = 100 * chance_level(result.labels, result.predicted)
    return {
        "at_chance": {
            "expected": expected,
            "reason": reason.name,
            "cause": reason.cause,
            "advice": reason.advice,
        }
    }


def _lower_rate(session: Session) -> str:
    return f"try --lr {session.config.lr / 10:.2g}" if session.config.lr else "use --lr above 0"
