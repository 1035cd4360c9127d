"""All settings of a training run: flags of ``vitctl train``, keys of a ``--config`` file, parameters of a sweep."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from vitctl.config.flag import (
    AUGMENTATION,
    CHECKPOINTS,
    DATA,
    DEVICE,
    LOGGING,
    NETWORK,
    OPTIMIZER,
    RUN,
    SCHEDULE,
    Flag,
    flag_name,
)
from vitctl.config.lr_scale import parse_lr_scale
from vitctl.config.warmup import parse_warmup
from vitctl.data import AUGMENTATIONS, DATASETS
from vitctl.data.reading import AUTO, FITS, FULL, parse_range, range_text
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS
from vitctl.recipes import RECIPES
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, Value, convert, unknown

ORIGINAL_BATCH = 100
"""Evaluation batch size of the original scripts, which printed the sum of the batches' mean losses."""

VAL_PROTOCOLS = ("holdout", "test", "none")
"""Values of ``--val``."""

HOLDOUT_RULES = ("identity", "position")
"""Values of ``--holdout-by``."""


def _setting(default: Any, kind: type, help: str, panel: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"flag": Flag(kind=kind, help=help, panel=panel, **more)})


WANDB_MODES = ("online", "offline", "disabled")
"""Values of ``--wandb``."""


def parse_wandb(value: object, what: str) -> str:
    """Return a mode of W&B; true is online and false is disabled.

    Raises:
        RequestError: unknown mode.
    """
    word = str(value).lower()
    mode = "online" if word in TRUE_WORDS else "disabled" if word in FALSE_WORDS else word
    if mode not in WANDB_MODES:
        raise unknown(what, value, WANDB_MODES)
    return mode


def parse_tags(value: object, what: str) -> str:
    """Return tags separated by commas, also for a list of a file.

    Raises:
        RequestError: a tag is not text.
    """
    return ",".join(convert(each, str, what) for each in (value if isinstance(value, list) else [value]))


def parse_refits(value: Any, what: str) -> list[list[int]]:
    """Return the pairs of :attr:`Settings.refits`.

    Raises:
        RequestError: ``value`` is of another form, or no run can have changed its length in this way.
    """
    pairs = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(pair, (list, tuple)) and [type(each) for each in pair] == [int, int] for pair in pairs):
        raise RequestError(f"{what} takes pairs of a step and a length, not {value!r}", hint=f"remove {what}")
    last, end = 0, math.inf
    for step, length in pairs:
        if not last < step < min(end, length):
            raise RequestError(
                f"{what} {value!r}: steps must increase, each below the lengths before and after it",
                hint=f"remove {what}",
            )
        last, end = step, length
    return [[step, end] for step, end in pairs]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines what a training run computes and where, with each value parsed by its flag.

    ``None`` means no limit or not used.

    Raises:
        RequestError: a value of the wrong type, unknown or out of range.
    """

    recipe: str = _setting(
        "default", str, "preset of settings; other flags override it", RUN, table=RECIPES, metavar="NAME"
    )
    seed: int = _setting(0, int, "seed for weights, data order and augmentation", RUN, low=0, high=2**63 - 1)

    net: str = _setting(
        "cct_2",
        str,
        "network, such as cct_4, vit:depth=8 or timm/resnet18",
        NETWORK,
        table=MODELS,
        shown="from the recipe",
        metavar="NAME",
    )
    net_options: dict[str, Value] = dataclasses.field(default_factory=dict)
    size: int = _setting(
        32,
        int,
        "size of the network's input images in pixels",
        NETWORK,
        low=4,
        high=4096,
        shown="32, or the size of the pretrained network",
    )
    pretrained: str = _setting(
        "false",
        str,
        "pretrained weights: true, false, a file or a run",
        NETWORK,
        shown="true for vit_timm and vit_small_timm, else false",
        metavar="FILE|RUN|true",
    )
    freeze_backbone: bool = _setting(False, bool, "train only the classification head", NETWORK)

    dataset: str = _setting(
        "cifar10",
        str,
        "digits, cifar10, mnist, svhn, ... or a folder of images",
        DATA,
        table=DATASETS,
        metavar="NAME|DIR",
    )
    data_dir: str | None = _setting(
        None,
        str,
        "folder with the data; named sets are downloaded if missing",
        DATA,
        shown="$VITCTL_DATA/DATASET, the user's data folder, ./data",
        resumable=True,
        metavar="DIR",
    )
    labels: str | None = _setting(None, str, "CSV file with the labels of a folder's images", DATA, metavar="FILE")
    val: str = _setting(
        "holdout",
        str,
        "images to evaluate on after every epoch",
        DATA,
        choices=VAL_PROTOCOLS,
        shown="from the recipe",
    )
    val_fraction: float = _setting(
        0.1, float, "fraction of the training set to hold out, per class", DATA, low=0.001, high=0.9
    )
    split_seed: int = _setting(0, int, "seed for the held-out split, independent of --seed", DATA, low=0)
    holdout_by: str = _setting(
        "position",  # the rule of runs from before this setting
        str,
        "choose held-out images by class and path, or by position",
        DATA,
        choices=HOLDOUT_RULES,
        shown="identity for a folder, else position",
    )
    test_fraction: float | None = _setting(
        None, float, "fraction of class folders without a split to test on", DATA, low=0.001, high=0.9
    )
    limit_train: int | None = _setting(None, int, "train on only N images, balanced across classes", DATA, low=1)
    limit_test: int | None = _setting(None, int, "evaluate on at most N held-out and N test images", DATA, low=1)
    skip_bad_images: bool = _setting(False, bool, "skip and list unreadable images", DATA, resumable=True)
    strict_data: bool = _setting(False, bool, "refuse equal images in two parts or two classes", DATA, resumable=True)
    fit: str = _setting("crop", str, "how images of a folder become square", DATA, choices=tuple(FITS))
    value_range: str = _setting(
        FULL,
        str,
        "grey values of 16-bit and float images to read: LOW,HIGH",
        DATA,
        shown="auto: from the training images",
        metavar="LOW,HIGH|auto|full",
    )
    aug: str = _setting(
        "basic",
        str,
        ", ".join(AUGMENTATIONS),
        AUGMENTATION,
        table=AUGMENTATIONS,
        shown="from the recipe; without NAME: RandAugment",
        metavar="NAME",
        when_true="randaug",
        when_false="basic",
    )
    aug_options: dict[str, Value] = dataclasses.field(default_factory=dict)
    flip: str = _setting(
        "auto",
        str,
        "horizontal flips; auto: on, except for digits and characters",
        AUGMENTATION,
        choices=("auto", "on", "off"),
    )
    erase: float = _setting(
        0.0, float, "probability of random erasing", AUGMENTATION, low=0, high=1, shown="from the recipe"
    )
    cutout: float = _setting(
        0.0, float, "side of the cutout box, as a fraction of the image", AUGMENTATION, low=0, high=1,
        shown="from the recipe",
    )  # fmt: skip
    mixup: float = _setting(
        0.0, float, "mixup alpha; true: the recipe's, else 0.8; 0: off", AUGMENTATION, low=0, high=1e6,
        shown="from the recipe", when_true=0.8,
    )  # fmt: skip
    cutmix: float = _setting(
        0.0, float, "CutMix alpha; true: the recipe's, else 1; 0: off", AUGMENTATION, low=0, high=1e6,
        shown="from the recipe", when_true=1.0,
    )  # fmt: skip
    mix_off: float = _setting(
        0.0, float, "final fraction of training without mixup and CutMix", AUGMENTATION, low=0, below=1,
        shown="from the recipe",
    )  # fmt: skip
    tta: str = _setting(
        "none",
        str,
        "also report test metrics with test-time augmentation",
        DATA,
        choices=("none", "flip", "crops"),
        resumable=True,
    )
    loss_sum: bool = _setting(
        False,
        bool,
        "also record the original scripts' summed validation loss",
        DATA,
        shown="from the recipe",
    )

    opt: str = _setting(
        "adamw",
        str,
        "optimizer, such as adan, sgd:momentum=0.9 or timm/lion",
        OPTIMIZER,
        table=OPTIMIZERS,
        shown="from the recipe",
        metavar="NAME",
    )
    opt_options: dict[str, Value] = dataclasses.field(default_factory=dict)
    lr: float = _setting(2e-3, float, "peak learning rate", OPTIMIZER, low=0, shown="from the recipe or optimizer")
    weight_decay: float = _setting(0.05, float, "weight decay", OPTIMIZER, low=0, shown="from the recipe or optimizer")
    decay_all: bool = _setting(
        False, bool, "also decay biases, norms and embeddings", OPTIMIZER, shown="from the recipe"
    )
    bs: int = _setting(128, int, "batch size", OPTIMIZER, names=("--batch-size",), low=1, shown="from the recipe")
    accumulate: int = _setting(1, int, "gradient accumulation: batches per optimizer step", OPTIMIZER, low=1)
    epochs: int | None = _setting(
        None,
        int,
        "passes over the training set",
        SCHEDULE,
        names=("--n-epochs",),
        low=1,
        shown="from the recipe",
        resumable=True,
    )
    max_steps: int | None = _setting(None, int, "stop after N optimizer steps", SCHEDULE, low=1, resumable=True)
    max_time: str | None = _setting(
        None, str, "time budget of the whole run, such as 60s, 10m or 1h", SCHEDULE, metavar="TIME"
    )
    refits: list[list[int]] | None = None
    """Changes of the length during a run with ``--max-time``: pairs of a step and the number of steps from then on.

    None until ``--max-time`` has set ``max_steps``. With a list, even an empty one, the length is known and is not
    fitted again. A key of files, not a flag.
    """
    schedule: str = _setting(
        "linear",
        str,
        "constant, linear, cosine or onecycle",
        SCHEDULE,
        choices=("constant", "linear", "cosine", "onecycle"),
        metavar="NAME",
        shown="from the recipe",
    )
    schedule_per: str = _setting(
        "step", str, "when to update the learning rate", SCHEDULE, choices=("step", "epoch"), shown="from the recipe"
    )
    warmup: float | str = _setting(
        0.05, float, "warm-up: fraction of the run, epochs (5ep) or steps (500)", SCHEDULE, parser=parse_warmup,
        shown="from the recipe", metavar="X|Nep|N",
    )  # fmt: skip
    warmdown: float = _setting(
        0.0, float, "final fraction of --schedule constant with decay to 0", SCHEDULE, low=0, high=1,
        shown="from the recipe",
    )  # fmt: skip
    label_smoothing: float = _setting(0.1, float, "label smoothing", OPTIMIZER, low=0, below=1, shown="from the recipe")
    class_weights: str = _setting(
        "none",
        str,
        "weight the training loss by class",
        OPTIMIZER,
        choices=("none", "balanced"),
    )
    clip_grad: float = _setting(
        1.0, float, "maximum gradient norm; 0: no clipping", OPTIMIZER, low=0, shown="from the recipe"
    )
    layer_decay: float = _setting(
        1.0,
        float,
        "layer-wise learning-rate decay",
        OPTIMIZER,
        low=0.01,
        high=1,
        shown="from the recipe",
    )
    lr_scale: dict[str, float] = dataclasses.field(
        default_factory=dict,
        metadata={
            "flag": Flag(
                kind=str,
                help="learning-rate factors by role, such as norm_bias=64",
                panel=OPTIMIZER,
                shown="from the recipe",
                metavar="ROLE=X,...",
                parser=parse_lr_scale,
            )
        },
    )
    ema: float = _setting(
        0.0,
        float,
        "decay of the EMA weights, which are evaluated; 0: off",
        OPTIMIZER,
        low=0,
        below=1,
        shown="from the recipe",
    )
    patience: int | None = _setting(
        None, int, "stop early after N epochs without better held-out accuracy", SCHEDULE, low=1
    )

    device: str = _setting("auto", str, "auto, cpu, mps, cuda or cuda:INDEX", DEVICE, resumable=True, metavar="NAME")
    micro_batch: int | str = _setting(
        "auto",
        str,
        "images per forward pass; auto: what fits the CPU cache",
        DEVICE,
        resumable=True,
        metavar="N|auto",
    )
    precision: str = _setting(
        "auto",
        str,
        "auto: bf16 or fp16 on CUDA, bf16 on CPUs where it is faster",
        DEVICE,
        choices=("auto", "fp32", "bf16", "fp16"),
        resumable=True,
    )
    compile: bool = _setting(False, bool, "compile the training step with torch.compile", DEVICE, resumable=True)
    threads: int | None = _setting(None, int, "CPU threads", DEVICE, low=1, high=1024, shown="torch's", resumable=True)

    save_every: str | None = _setting(
        None,
        str,
        "also checkpoint every N steps, or every 30s, 10m or 1h",
        CHECKPOINTS,
        resumable=True,
        metavar="N|TIME",
    )
    keep: int = _setting(
        1, int, "older checkpoints to keep besides last.pt and best.pt", CHECKPOINTS, low=0, resumable=True
    )

    wandb: str = _setting(
        "disabled",
        str,
        "track with W&B: online, offline or disabled",
        LOGGING,
        choices=WANDB_MODES,
        parser=parse_wandb,
        metavar="MODE",
        shown="disabled; online under a W&B agent",
        resumable=True,
    )
    wandb_project: str | None = _setting(
        None, str, "W&B project", LOGGING, shown="$WANDB_PROJECT, else vitctl", resumable=True, metavar="NAME"
    )
    wandb_entity: str | None = _setting(
        None, str, "W&B user or team", LOGGING, shown="$WANDB_ENTITY, else your own", resumable=True, metavar="NAME"
    )
    wandb_group: str | None = _setting(None, str, "W&B group", LOGGING, resumable=True, metavar="NAME")
    wandb_tags: str | None = _setting(
        None, str, "W&B tags, separated by commas", LOGGING, resumable=True, metavar="A,B", parser=parse_tags
    )
    wandb_notes: str | None = _setting(None, str, "W&B notes", LOGGING, resumable=True, metavar="TEXT")
    tensorboard: bool = _setting(
        False, bool, "write TensorBoard event files to the run's folder", LOGGING, resumable=True
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "flag" in field.metadata:
                self._parse(field)
        self._parse_micro_batch()
        if self.refits is not None:
            object.__setattr__(self, "refits", parse_refits(self.refits, "refits"))
        if self.value_range not in (AUTO, FULL):
            object.__setattr__(self, "value_range", range_text(*parse_range(self.value_range)))
        object.__setattr__(self, "pretrained", pretrained_word(self.pretrained))
        # Runs of earlier versions lack newer options, and did what their defaults do.
        options = AUGMENTATIONS[self.aug].options if self.aug in AUGMENTATIONS else {}
        defaults = {name: option.default for name, option in options.items()}
        object.__setattr__(self, "aug_options", {**defaults, **self.aug_options})

    def _parse(self, field: dataclasses.Field[Any]) -> None:
        flag: Flag = field.metadata["flag"]
        value = getattr(self, field.name)
        if value is None and field.default is None:
            return
        if flag.kind is str and not flag.choices and value == "" and field.name != "data_dir":
            raise RequestError(
                f"{flag_name(field.name)} is empty", hint=f"remove {flag_name(field.name)}, or give it a value"
            )
        parsed = flag.parse(field.name, value)
        object.__setattr__(self, field.name, flag.when_true if parsed is True and flag.when_true else parsed)

    def _parse_micro_batch(self) -> None:
        if self.micro_batch == "auto":
            return
        if not str(self.micro_batch).isdigit() or int(self.micro_batch) < 1:
            raise RequestError(
                f"--micro-batch takes auto or a number of images, not {self.micro_batch!r}",
                hint="use --micro-batch auto or --micro-batch 64",
            )
        object.__setattr__(self, "micro_batch", int(self.micro_batch))

    @property
    def flips(self) -> bool:
        """Whether mirrored images keep their class."""
        return self.flip == "on" or (
            self.flip == "auto" and (self.dataset not in DATASETS or DATASETS[self.dataset].flip)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return dataclasses.asdict(self)


def pretrained_word(value: str) -> str:
    """Return ``true``, ``false``, or the file that ``--pretrained`` names."""
    word = value.lower()
    return "true" if word in TRUE_WORDS else "false" if word in FALSE_WORDS else value
