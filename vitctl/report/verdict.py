"""The sentence at the top of a report: how good the runs are, and what to look at first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitctl.report.charts import percent
from vitctl.report.curves import finite
from vitctl.report.metrics import Calibration, ClassMetrics, Confusion, Ints, Proportion
from vitctl.report.run import RunRecord
from vitctl.units import plural, printable

_GAP = 15.0
"""Points by which training accuracy exceeds held-out accuracy from which overfitting is named."""

_ECE = 0.05
"""Expected calibration error from which it is named."""


@dataclass(frozen=True)
class Findings:
    """What is known about a run.

    Attributes:
        run: the run.
        accuracy: its test accuracy; None without predictions.
        confusion: its confusion matrix, or None.
        classes: metrics of the classes.
        confusions: the largest confusions.
        calibration: its calibration on the test images, or None.
    """

    run: RunRecord
    accuracy: Proportion | None = None
    confusion: Ints | None = None
    classes: Sequence[ClassMetrics] = ()
    confusions: Sequence[Confusion] = ()
    calibration: Calibration | None = None

    @property
    def held_out(self) -> float | None:
        """Held-out accuracy of the last epoch, in percent."""
        last = self.run.history[-1] if self.run.history else {}
        return finite(last.get("val_acc")) if last.get("val_split") != "test" else None


def verdict(groups: Sequence[Sequence[Findings]]) -> str:
    """Return the verdict over groups of runs that differ only in their seed, as one sentence."""
    every = [each for group in groups for each in group]
    if len(every) == 1:
        return f"The run {every[0].run.name} ({_subject(every[0])}) {_result(every[0])}; {look_first(every[0])}."
    scored = [each for each in every if each.accuracy is not None]
    if not scored:
        return f"None of {plural(len(every), 'run')} has test results yet; {look_first(every[0])}."
    if len(groups) == 1:
        accuracies = [100 * each.accuracy.value for each in scored if each.accuracy]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        worst = min(scored, key=lambda each: each.accuracy.value if each.accuracy else 0)
        return (
            f"Over {plural(len(accuracies), 'seed')}, {_subject(scored[0])} classifies {statistics.fmean(accuracies):.1f}{spread} % "
            f"of the test images correctly{' (mean and standard deviation)' if spread else ''}{_card(scored[0])}; "
            f"{look_first(worst)}{f' in {worst.run.name}' if spread else ''}."
        )
    best, why = best_run(scored)
    return (
        f"Of {plural(len(every), 'run')}, {best.run.name} ({_subject(best)}) has the highest {why} and {_result(best)}; "
        f"{look_first(best)}."
    )


def best_run(scored: Sequence[Findings]) -> tuple[Findings, str]:
    """Return the run with the highest held-out accuracy if all have one, else test accuracy, and which it was."""
    by_held_out = [(each.held_out, each) for each in scored if each.held_out is not None]
    if len(by_held_out) == len(scored):
        return max(by_held_out, key=lambda pair: pair[0])[1], "held-out accuracy"
    return max(scored, key=lambda each: each.accuracy.value if each.accuracy else 0), "test accuracy"


def _subject(findings: Findings) -> str:
    settings = findings.run.settings
    return printable(f"{settings.get('net', 'the network')} on {settings.get('dataset', 'its data')}")


def _result(findings: Findings) -> str:
    """Return what a run achieved, as a clause without its subject."""
    run, share = findings.run, findings.accuracy
    if share is not None:
        return (
            f"classifies {100 * share.value:.1f} % of {share.count:,} test images correctly "
            f"(95 % interval {100 * share.low:.1f} to {100 * share.high:.1f} %){_card(findings)}"
        )
    test_acc = finite(run.summary.get("test_acc"))
    if test_acc is not None:
        return f"classified {test_acc:.1f} % of the test images correctly{_card(findings)}"
    last = run.history[-1] if run.history else {}
    validation, epoch = finite(last.get("val_acc")), last.get("epoch")
    so_far = f"with {validation:.1f} % validation accuracy " if validation is not None else ""
    if not run.history:
        return f"{_is(run)} and has no complete epoch"
    return f"{_is(run)}, {so_far}after {plural(int(epoch or 0), 'epoch')}"


def _is(run: RunRecord) -> str:
    return {"failed": "failed", "not started": "has not started"}.get(run.state, f"is {run.state}")


def _card(findings: Findings) -> str:
    """Return how a result compares with the card of its recipe, or an empty text."""
    card = findings.run.summary.get("card")
    if not isinstance(card, dict) or finite(card.get("test_acc")) is None:
        return ""
    deviation = finite(card.get("deviation"))
    usual = f"{card['test_acc']:.1f}{'' if deviation is None else f' ± {deviation:.1f}'} %"
    recipe = printable(str(findings.run.settings.get("recipe")))
    comparison = "below" if card.get("below") else "in line with"
    return f", {comparison} the {usual} that recipe {recipe} usually reaches"


# -- what to look at first ---------------------------------------------------------------------------------------------


def look_first(findings: Findings) -> str:
    """Return what to look at first: the first of :data:`_RULES` that applies."""
    return next(text for rule in _RULES if (text := rule(findings)))


def _failure(findings: Findings) -> str:
    failure = findings.run.failure
    return f"look first at why it failed: {printable(failure.message)}" if failure and not findings.accuracy else ""


def _unfinished(findings: Findings) -> str:
    return "look first at the curves" if findings.run.history and findings.accuracy is None else ""


def _not_started(findings: Findings) -> str:
    if findings.accuracy is not None:
        return ""
    return "look first at the settings"


def _below_card(findings: Findings) -> str:
    card = findings.run.summary.get("card")
    below = isinstance(card, dict) and card.get("below")
    return "look first at the versions and the settings, as the accuracy is unusually low" if below else ""


def _chance(findings: Findings) -> str:
    share, classes = findings.accuracy, len(findings.run.classes)
    if share is None or classes < 2 or share.low > 1 / classes:
        return ""
    return "look first at the learning rate and the labels, as this is no better than chance"


def _overfitting(findings: Findings) -> str:
    last = findings.run.history[-1] if findings.run.history else {}
    train, validation = finite(last.get("train_acc")), finite(last.get("val_acc"))
    if train is None or validation is None or train - validation < _GAP:
        return ""
    return (
        f"look first at the curves: it overfits, with {train:.0f} % training and {validation:.0f} % validation accuracy"
    )


def _weak_class(findings: Findings) -> str:
    """Name the class with the lowest recall if its interval is below the accuracy, and what it is taken for."""
    share, names = findings.accuracy, findings.run.classes
    rows = [(each, each.recall) for each in findings.classes if each.recall is not None]
    if share is None or findings.confusion is None or not rows:
        return ""
    weakest, recall = min(rows, key=lambda row: row[1].value)
    if recall.high >= share.low:
        return ""
    others = findings.confusion[weakest.index].copy()
    others[weakest.index] = 0
    taken = names[int(others.argmax())]
    return (
        f"look first at {names[weakest.index]}, of which {percent(recall)} is recognised, most often taken for {taken}"
    )


def _calibration(findings: Findings) -> str:
    calibration = findings.calibration
    if calibration is None or calibration.ece < _ECE:
        return ""
    return f"look first at the calibration, as confidence is wrong by {100 * calibration.ece:.0f} points on average"


def _confusion(findings: Findings) -> str:
    if not findings.confusions:
        return "no test image is misclassified"
    names, worst = findings.run.classes, findings.confusions[0]
    return f"look first at {names[worst.true]}, which is most often taken for {names[worst.predicted]}"


_RULES: tuple[Callable[[Findings], str], ...] = (
    _failure,
    _unfinished,
    _not_started,
    _below_card,
    _chance,
    _overfitting,
    _weak_class,
    _calibration,
    _confusion,
)
