"""Mutation tests: plant faults in a copy of the code, one at a time, and check that the quick tests find each.

    python -m tests.mutants                 # all, about half an hour on two cores
    python -m tests.mutants resume split    # those with one of these words in their name
    python -m tests.mutants --list

A surviving fault shows that a guarantee has no test. Each fault lists the tests that should find it; ``--whole`` runs
the full quick suite instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault to plant.

    Attributes:
        name: description of the faulty behaviour.
        path: file, relative to ``vitctl``.
        old: text to replace, which must occur exactly once in the file.
        new: replacement.
        tests: arguments for pytest.
    """

    name: str
    path: str
    old: str
    new: str
    tests: str


MUTANTS = (
    # -- weights of other programs
    Mutant(
        "weights: the scale of the scripts' first attention is not folded into the queries",
        "models/legacy.py",
        'factor = (int(options["head_dim"]) / int(options["embed_dim"])) ** 0.5',
        "factor = 1.0",
        "tests/tools/test_convert.py",
    ),
    Mutant(
        "weights: a head for other classes is kept if there are as many",
        "models/pretrained.py",
        "same = not their_classes or not classes or their_classes == list(classes)",
        "same = True",
        "tests/models/test_pretrained.py",
    ),
    Mutant(
        "weights: another number of attention heads is accepted",
        "models/pretrained.py",
        "    _check_heads(loading)\n",
        "",
        "tests/models/test_foreign.py",
    ),
    Mutant(
        "weights: the norm of shifted patches is not folded into the resampled projection",
        "models/resampling.py",
        "        weight = weight * gain\n",
        "",
        "tests/models/test_pretrained.py",
    ),
    Mutant(
        "weights: queries, keys and values of other libraries are joined in another order",
        "models/foreign.py",
        'for part in ("query", "key", "value")]',
        'for part in ("key", "query", "value")]',
        "tests/models/test_foreign.py",
    ),
    Mutant(
        "weights: classes that files may use stay allowed after reading",
        "models/state_files.py",
        "with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):",
        "torch.serialization.add_safe_globals(_harmless())\n        with warnings.catch_warnings():",
        "tests/models/test_weight_files.py",
    ),
    # -- devices
    Mutant(
        "devices: gradients on MPS may be channels-last",
        "devices/calls.py",
        "tree_map_only(Tensor, _with_contiguous_gradient, func(*args, **kwargs))",
        "func(*args, **kwargs)",
        "tests/devices",
    ),
    Mutant(
        "devices: LayerNorm of images is differentiated wrongly on MPS",
        "devices/calls.py",
        "args = (_with_gradient(args[0]), *args[1:])",
        "pass",
        "tests/devices",
    ),
    Mutant(
        "devices: the tally is read at each step on accelerators",
        "training/loop.py",
        "        session.tally.add(loss_sum * (count / weight), correct, count)\n",
        "        session.tally.add(loss_sum * (count / weight), correct, count)\n        session.tally.read(progress)\n",
        "tests/devices",
    ),
    # -- loop
    Mutant(
        "loop: a run that is extended keeps its old predictions until it ends",
        "training/run_folder.py",
        'for name in ("summary.json", PREDICTIONS, FAILURE):',
        'for name in ("summary.json", FAILURE):',
        "tests/training/test_predictions.py",
    ),
    Mutant(
        "loop: the stored class of an image is the true one",
        "training/evaluate.py",
        "self.predicted.append(logits.argmax(1))",
        "self.predicted.append(labels.clone())",
        "tests/training/test_predictions.py tests/training/test_loop.py",
    ),
    Mutant(
        "loop: the schedule runs a step ahead",
        "training/loop.py",
        "factor = session.schedule.factor(progress.step)",
        "factor = session.schedule.factor(progress.step + 1)",
        "tests/training/test_loop.py tests/optim",
    ),
    Mutant(
        "loop: the loss of a short batch is divided by the batch size",
        "training/loop.py",
        "torch.autograd.backward(scaler.scale(loss / weight) if scaler else loss / weight)",
        "torch.autograd.backward(scaler.scale(loss / weight) if scaler else loss / config.bs)",
        "tests/training/test_loop.py",
    ),
    Mutant(
        "loop: each micro-batch is divided by its own class weights",
        "training/loop.py",
        "torch.autograd.backward(scaler.scale(loss / weight) if scaler else loss / weight)",
        "torch.autograd.backward(loss / total_weight(target, session.class_weights) * len(target) / len(labels))",
        "tests/training/test_class_weights.py",
    ),
    Mutant(
        "fitting: the batch size shrinks although it was given",
        "config/fitting.py",
        'while "bs" in free and config.bs',
        "while config.bs",
        "tests/config/test_fitting.py",
    ),
    Mutant(
        "fitting: trials of sweeps are fitted",
        "cli/train.py",
        'in_sweep = watch_parent() or "WANDB_SWEEP_ID" in os.environ',
        'in_sweep = "WANDB_SWEEP_ID" in os.environ and not watch_parent()',
        "tests/training/test_small_folders.py",
    ),
    Mutant(
        "diagnosis: a constant prediction of the larger class is above chance",
        "training/diagnosis.py",
        "len(labels), chance_level(labels, predicted)) <= LEVEL",
        "len(labels), 1 / len(labels.unique())) <= LEVEL",
        "tests/training/test_diagnosis.py",
    ),
    Mutant(
        "loop: gradients are not clipped",
        "training/loop.py",
        "    if config.clip_grad:\n        torch.nn.utils.clip_grads_with_norm_",
        "    if config.clip_grad < 0:\n        torch.nn.utils.clip_grads_with_norm_",
        "tests/training/test_loop.py",
    ),
    Mutant(
        "loop: gradients add up over steps",
        "training/loop.py",
        "    session.optimizer.zero_grad()\n",
        "    pass\n",
        "tests/training/test_loop.py tests/training/test_resume.py",
    ),
    Mutant(
        "loop: the weight average is not updated",
        "training/loop.py",
        "        session.average.update(session.model, step)",
        "        pass",
        "tests/training/test_ema.py",
    ),
    Mutant(
        "loop: one finite value hides a value that is not",
        "training/loop.py",
        "    if not all(math.isfinite(value) for value in values):",
        "    if not any(math.isfinite(value) for value in values):",
        "tests/training/test_loop.py",
    ),
    Mutant(
        "loop: the first step since the last read is blamed for a later one",
        "training/session.py",
        "failed = self._first_step + finite if",
        "failed = self._first_step if",
        "tests/training/test_late_reads.py",
    ),
    Mutant(
        "loop: steps before the failed one are not repeated",
        "training/loop.py",
        "while session.progress.step < error.step - 1:",
        "while session.progress.step < 0:",
        "tests/training/test_late_reads.py",
    ),
    Mutant(
        "session: BatchNorm sees images that fill up a batch",
        "training/session.py",
        "one_shape and not self.batches.drop_single",
        "one_shape",
        "tests/training/test_one_shape.py",
    ),
    Mutant(
        "flat: parameters without gradients are updated",
        "optim/flat.py",
        "            if parameter not in self._reached:",
        "            if False:",
        "tests/optim/test_flat.py",
    ),
    Mutant(
        "flat: the state of a loaded state dict is ignored",
        "optim/flat.py",
        "states[key] = view.copy_(states[key])",
        "states[key] = view",
        "tests/optim/test_flat.py",
    ),
    Mutant(
        "loop: the record has the learning rate of the next step",
        "training/loop.py",
        '"lr": session.lr(progress.step - 1),  # of the last step',
        '"lr": session.lr(progress.step),  # of the last step',
        "tests/training/test_loop.py tests/cli/test_train_command.py",
    ),
    Mutant(
        "loop: patience is one epoch too long",
        "training/loop.py",
        'row["epoch"] - progress.best_epoch >= config.patience',
        'row["epoch"] - progress.best_epoch > config.patience',
        "tests/cli/test_train_command.py",
    ),
    Mutant(
        "loop: the worst epoch counts as the best",
        "training/loop.py",
        'row["val_acc"] > progress.best_val_acc',
        'row["val_acc"] < progress.best_val_acc or progress.best_val_acc < 0',
        "tests/training tests/cli/test_eval_command.py",
    ),
    # -- checkpoint
    Mutant(
        "checkpoint: loading executes code in the file",
        "training/checkpoint.py",
        'torch.load(file, map_location="cpu", weights_only=True)',
        'torch.load(file, map_location="cpu", weights_only=False)',
        "tests/training/test_checkpoint.py",
    ),
    Mutant(
        "checkpoint: damage is not detected",
        "training/checkpoint.py",
        'intact = checkpoint["digest"] == content_digest(checkpoint)',
        'intact = bool(checkpoint["digest"] and content_digest(checkpoint))',
        "tests/training/test_checkpoint.py",
    ),
    Mutant(
        "checkpoint: the digest ignores dtype and shape",
        "training/checkpoint.py",
        'head = [*path, "tensor", str(tensor.dtype), list(tensor.shape)]',
        'head = [*path, "tensor"]',
        "tests/training/test_checkpoint.py",
    ),
    Mutant(
        "checkpoint: one older checkpoint too many is kept",
        "training/run_folder.py",
        "for old in older_checkpoints(self.checkpoints)[keep:]:",
        "for old in older_checkpoints(self.checkpoints)[keep + 1 :]:",
        "tests/training/test_run_folder.py tests/training/test_resume.py",
    ),
    Mutant(
        "checkpoint: files are written in place",
        "files.py",
        "    temporary = temporary_name(target)\n    try:",
        "    temporary = target\n    try:",
        "tests/test_files.py tests/training/test_checkpoint.py",
    ),
    # -- sampler
    Mutant(
        "sampler: every epoch has the same order",
        "data/batches.py",
        "manual_seed(derive_seed(seed, epoch)))",
        "manual_seed(derive_seed(seed, 0)))",
        "tests/data/test_batches.py",
    ),
    Mutant(
        "sampler: every epoch draws the same crops",
        "data/batches.py",
        "generator = torch.Generator().manual_seed(derive_seed(seed, epoch, step))",
        "generator = torch.Generator().manual_seed(derive_seed(seed, 0, step))",
        "tests/data/test_batches.py tests/data/test_augment.py",
    ),
    Mutant(
        "sampler: the side of an alternating flip depends on the place in the epoch",
        "data/batches.py",
        "mirror=self.alternating[chosen] ^ bool(epoch % 2)",
        "mirror=self.alternating[: len(chosen)] ^ bool(epoch % 2)",
        "tests/data/test_batches.py",
    ),
    Mutant(
        "sampler: an alternating flip shows the same side in every epoch",
        "data/batches.py",
        "mirror=self.alternating[chosen] ^ bool(epoch % 2)",
        "mirror=self.alternating[chosen]",
        "tests/data/test_batches.py",
    ),
    Mutant(
        "evaluation: --tta crops mirrors images that change their class",
        "training/evaluate.py",
        "sides = (False, True) if flips else (False,)",
        "sides = (False, True)",
        "tests/training/test_augmentation.py",
    ),
    Mutant(
        "sampler: batches overlap by one image",
        "data/batches.py",
        "[step * self.batch_size : (step + 1) * self.batch_size]",
        "[step * self.batch_size : (step + 1) * self.batch_size + 1]",
        "tests/data/test_batches.py tests/training/test_loop.py",
    ),
    Mutant(
        "sampler: the order does not depend on the seed",
        "data/batches.py",
        "permutation = epoch_order(len(self.index), self.seed, epoch)",
        "permutation = epoch_order(len(self.index), 0, epoch)",
        "tests/data/test_batches.py tests/benchmark/test_optimizers.py",
    ),
    # -- split
    Mutant(
        "split: training includes held-out images",
        "data/dataset.py",
        "everything = np.setdiff1d(everything, held_out, assume_unique=True)",
        "everything = np.union1d(everything, held_out)",
        "tests/data/test_dataset.py",
    ),
    Mutant(
        "split: the choice does not depend on its seed",
        "data/dataset.py",
        "return hash_keys(len(examples), split_seed)",
        "return hash_keys(len(examples), 0)",
        "tests/data/test_dataset.py",
    ),
    Mutant(
        "split: eval --split val measures training images",
        "inference/scoring.py",
        '"val": splits.val, "test"',
        '"val": splits.train, "test"',
        "tests/cli/test_eval_command.py",
    ),
    # -- export check
    Mutant(
        "export: outputs that are not finite pass",
        "export/verify.py",
        "if not worst <= tolerance:",
        "if worst > tolerance:",
        "tests/export/test_verify.py",
    ),
    Mutant(
        "export: a changed prediction passes",
        "export/verify.py",
        "if self.changed > self.ties:",
        "if self.changed > self.ties + 1:",
        "tests/export/test_verify.py",
    ),
    Mutant(
        "export: a wrong record passes",
        "export/pipeline.py",
        "if states.get(name) != text]",
        "if name not in states]",
        "tests/cli/test_export_command.py tests/export",
    ),
    # -- resume
    Mutant(
        "resume: random states are not restored",
        "training/session.py",
        '        devices.set_rng_state(checkpoint["rng"], self.device)\n        self.tally',
        "        self.tally",
        "tests/training/test_resume.py tests/training/test_resume_optimizers.py",
    ),
    Mutant(
        "resume: the optimizer state is not restored",
        "training/session.py",
        'self.optimizer.load_state_dict(checkpoint["optimizer"])',
        "pass",
        "tests/training/test_resume.py tests/training/test_resume_optimizers.py",
    ),
    Mutant(
        "resume: metrics of lost epochs are kept",
        "training/start.py",
        "        folder.write_metrics(session.history)\n",
        "",
        "tests/training/test_resume.py",
    ),
    Mutant(
        "resume: a different learning rate is accepted",
        "training/start.py",
        "if not FLAGS[name].resumable and not same_value(stored, name, value)",
        'if name != "lr" and not FLAGS[name].resumable and not same_value(stored, name, value)',
        "tests/training/test_resume_refused.py",
    ),
    Mutant(
        "resume: two processes train in one folder",
        "files.py",
        "        raise Locked(str(path)) from None",
        "        pass",
        "tests/test_files.py tests/training/test_run_folder.py",
    ),
    Mutant(
        "resume: a failed run leaves no record",
        "training/run_folder.py",
        "                if is_run_failure(error):",
        "                if not is_run_failure(error):",
        "tests/training/test_failure.py",
    ),
    # -- stored runs
    Mutant(
        "runs: a run of a comparison that is under way is deleted",
        "runs/removal.py",
        "        if is_locked(folder / LOCK):",
        "        if False:",
        "tests/runs/test_removal.py",
    ),
    Mutant(
        "runs: a run outside the folder of runs is deleted",
        "runs/removal.py",
        "    if root not in real.parents:",
        "    if False:",
        "tests/runs/test_removal.py",
    ),
    Mutant(
        "runs: listing runs keeps one from starting",
        "training/run_folder.py",
        "locked(self.path / LOCK, wait=PROBE)",
        "locked(self.path / LOCK)",
        "tests/runs/test_stored.py",
    ),
    Mutant(
        "runs: an earlier version differs by settings that it lacks",
        "runs/stored.py",
        "return {**SETTINGS, **config}, ",
        "return {**config}, ",
        "tests/runs",
    ),
    Mutant(
        "runs: missing values come first in reverse order",
        "runs/query.py",
        "rows = [row for _, row in present] + absent",
        "rows = (absent if reverse else []) + [row for _, row in present] + ([] if reverse else absent)",
        "tests/runs/test_query.py",
    ),
    # -- errors of the command line
    Mutant(
        "cli: a refused request exits with the code of a failure",
        "errors.py",
        "    exit_code = 2\n",
        "    exit_code = 1\n",
        "tests/cli/test_train_command.py",
    ),
    Mutant(
        "cli: --json prints messages to stdout",
        "cli/progress.py",
        "        print(_printable_lines(text), file=sys.stderr, flush=True)",
        "        print(_printable_lines(text), flush=True)",
        "tests/cli/test_train_command.py tests/cli/test_progress.py",
    ),
    Mutant(
        "cli: a mode accepts flags that have no effect",
        "cli/modes.py",
        "or name in uses):",
        "or name in uses | _ALL):",
        "tests/cli/test_modes.py",
    ),
    Mutant(
        "cli: a table replaces any file",
        "files.py",
        "if real.suffix.lower() not in suffixes:",
        "if not suffixes:",
        "tests/test_files.py",
    ),
    Mutant(
        "cli: a child does not report its failure",
        "cli/__init__.py",
        "    except VitctlError as error:\n        report.write(error)\n",
        "    except VitctlError as error:\n",
        "tests/process/test_failure.py",
    ),
    # -- reports
    Mutant(
        "report: intervals are Wald's instead of Wilson's",
        "report/metrics.py",
        "share, weight = hits / count, z * z / count",
        "share, weight = hits / count, 0.0",
        "tests/report/test_metrics.py",
    ),
    Mutant(
        "report: the calibration error does not weight bins by count",
        "report/metrics.py",
        "each.count * abs(each.accuracy.value - each.confidence)",
        "len(labels) / BINS * abs(each.accuracy.value - each.confidence)",
        "tests/report/test_metrics.py",
    ),
    Mutant(
        "report: the temperature multiplies the logits",
        "report/metrics.py",
        "np.log(np.maximum(probabilities, SMALLEST)) / temperature",
        "np.log(np.maximum(probabilities, SMALLEST)) * temperature",
        "tests/report/test_metrics.py",
    ),
    Mutant(
        "report: attention rollout multiplies the blocks in the wrong order",
        "inference/rollout.py",
        "joined @ result",
        "result @ joined",
        "tests/inference/test_rollout.py",
    ),
    Mutant(
        "report: names are inserted as HTML",
        "report/rendering.py",
        "autoescape=True",
        "autoescape=False",
        "tests/report/test_page.py",
    ),
)


def plant(mutant: Mutant, place: Path) -> None:
    """Copy the code to ``place`` and plant the fault."""
    for name in ("vitctl", "tests", "sweeps", "pyproject.toml", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    path = place / "vitctl" / mutant.path
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.path} has the text {text.count(mutant.old)} times, not once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def survives(mutant: Mutant, tests: list[str]) -> bool:
    """Return whether the tests pass despite the fault."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        place = Path(folder)
        plant(mutant, place)
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not long"]
        done = subprocess.run(
            [*command, *tests], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            raise SystemExit(
                f"{mutant.name}: pytest exited {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done.returncode == 0


def main() -> None:
    """Run the mutants selected on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run only mutants whose name contains one of these")
    parser.add_argument("--whole", action="store_true", help="run the full quick suite against each mutant")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    asked = parser.parse_args()
    chosen = [each for each in MUTANTS if not asked.words or any(word in each.name for word in asked.words)]
    if asked.list:
        print(*(each.name for each in chosen), sep="\n")
        return
    alive = []
    for number, mutant in enumerate(chosen, 1):
        start = time.monotonic()
        if survives(mutant, [] if asked.whole else mutant.tests.split()):
            alive.append(mutant.name)
        state = "SURVIVES" if mutant.name in alive[-1:] else "killed"
        print(f"{number}/{len(chosen)} {state} ({time.monotonic() - start:.0f} s) {mutant.name}", flush=True)
    if alive:
        raise SystemExit(f"{len(alive)} of {len(chosen)} survive: {'; '.join(alive)}")
    print(f"all {len(chosen)} killed")


if __name__ == "__main__":
    main()
