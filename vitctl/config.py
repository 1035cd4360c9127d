"""What a training run is told to do: one frozen, validated record.

A :class:`TrainConfig` holds every decision, resolved: ``config.json`` and each checkpoint carry it, so that defaults
may change between versions without changing what an old run means. The same fields describe the flags of
``vitctl train``, the keys of a ``--config`` file and the parameters of a sweep.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitctl.data import AUGMENTATIONS, DATASETS, AugmentationEntry
from vitctl.errors import RequestError
from vitctl.models import MODELS, TIMM, ModelEntry, find_model
from vitctl.optim import OPTIMIZERS, OptimizerEntry, find_optimizer
from vitctl.recipes import RECIPES, Recipe
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, Value, check_range, convert, lookup, split_spec, suggest
from vitctl.units import parse_duration, parse_save_every

PREDECESSOR_BATCH = 100
"""Pictures of an evaluation batch of the predecessor, which printed the sum of the batches' mean losses."""

NETWORK, DATA, OPTIMIZATION, RUN = "Network", "Data", "Optimization", "Run"
DEVICE, CHECKPOINTS, LOGGING = "Device", "Checkpoints", "Logging"

VAL_PROTOCOLS = ("holdout", "test", "none")
"""What ``--val`` takes."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """How one setting is typed, as a flag of ``train`` or a key of a file.

    Attributes:
        kind: bool, int, float or str.
        help: half a line for ``--help``.
        panel: the group that it stands in.
        names: further spellings.
        metavar: what ``--help`` calls the value; None says what kind it is.
        choices: the only values allowed.
        low: least value allowed.
        high: greatest value allowed.
        below: the value must be less than this.
        table: the table whose names it takes, for completion.
        shown: what ``--help`` calls the default.
        resumable: may differ from the stored value on ``--resume``.
        when_true: for a number that is 0 when off: what ``true`` stands for where the recipe has none. Such a flag may be
            typed without a value.
    """

    kind: type
    help: str
    panel: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    below: float | None = None
    table: Mapping[str, Any] | None = None
    shown: str | None = None
    resumable: bool = False
    when_true: float | None = None

    def parse(self, name: str, value: object) -> Any:
        """Return ``value`` as this flag's type; True where :attr:`when_true` has yet to be filled in.

        Raises:
            RequestError: wrong type, unknown choice or out of range.
        """
        what = flag_name(name)
        if name == "pretrained" and isinstance(value, bool):  # as YAML has true and false
            value = str(value).lower()
        if self.when_true is not None and str(value).lower() in _SWITCH_WORDS:
            return convert(value, bool, what) or 0.0
        parsed = convert(value, self.kind, what)
        if self.choices and parsed not in self.choices:
            raise RequestError(f"{what} {parsed!r} is unknown{suggest(str(parsed), self.choices)}")
        check_range(parsed, what, low=self.low, high=self.high, below=self.below)
        return parsed


_SWITCH_WORDS = {*TRUE_WORDS, *FALSE_WORDS} - {"0", "1"}


def flag_name(name: str) -> str:
    """Return the flag of a setting: ``save_every`` -> ``--save-every``."""
    return "--" + name.replace("_", "-")


def _setting(default: Any, kind: type, help: str, panel: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"flag": Flag(kind=kind, help=help, panel=panel, **more)})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run computes, and where.

    Build one with :func:`resolve_config`, which fills in what nobody said from the recipe and the tables, or with
    :meth:`from_dict` from what :meth:`to_dict` gave. ``None`` means "no limit" or "not used".

    Raises:
        RequestError: a value of the wrong type, out of range, or at odds with another.
    """

    recipe: str = _setting("default", str, "named preset; flags win over it", RUN, table=RECIPES, metavar="NAME")
    seed: int = _setting(0, int, "seed of weights, order and augmentation", RUN, low=0, high=2**63 - 1)

    net: str = _setting(
        "cct_2",
        str,
        "network, NAME[:key=value,...]; timm/NAME for those of timm",
        NETWORK,
        table=MODELS,
        shown="the recipe's",
        metavar="NAME",
    )
    net_options: dict[str, Value] = dataclasses.field(default_factory=dict)
    size: int = _setting(
        32,
        int,
        "side of the pictures that the network sees, in pixels",
        NETWORK,
        low=4,
        high=4096,
        shown="32; 384 for vit_timm and vit_small_timm; a timm network's own",
    )
    pretrained: str = _setting(
        "false",
        str,
        "start from pretrained weights: true, false, or a file of them",
        NETWORK,
        shown="true for vit_timm and vit_small_timm",
        metavar="true|false|FILE",
    )
    freeze_backbone: bool = _setting(False, bool, "train the head alone, on what pretrained weights see", NETWORK)

    dataset: str = _setting(
        "cifar10", str, "data set, or a folder of pictures", DATA, table=DATASETS, metavar="NAME|DIR"
    )
    data_dir: str | None = _setting(
        None,
        str,
        "where the data lie",
        DATA,
        shown="$VITCTL_DATA/<dataset>, else the user's data folder; CIFAR is downloaded",
        resumable=True,
        metavar="DIR",
    )
    val: str = _setting(
        "holdout",
        str,
        "what per-epoch figures are measured on: a held-out part of the training set, the test set, nothing",
        DATA,
        choices=VAL_PROTOCOLS,
        shown="the recipe's",
    )
    val_fraction: float = _setting(
        0.1, float, "share of the training set held out, per class", DATA, low=0.001, high=0.9
    )
    split_seed: int = _setting(0, int, "seed of the held-out part, whatever --seed", DATA, low=0)
    limit_train: int | None = _setting(None, int, "train on N pictures only, evenly over classes", DATA, low=1)
    limit_test: int | None = _setting(None, int, "evaluate on at most N held-out and N test pictures", DATA, low=1)
    skip_bad_images: bool = _setting(False, bool, "leave out pictures that cannot be read, and list them", DATA)
    aug: str = _setting(
        "basic",
        str,
        f"augmentation, NAME[:key=value,...]: {', '.join(AUGMENTATIONS)}; all but none crop at random, and flip (see --flip)",
        DATA,
        table=AUGMENTATIONS,
        shown="the recipe's",
        metavar="NAME",
    )
    aug_options: dict[str, Value] = dataclasses.field(default_factory=dict)
    flip: str = _setting(
        "auto",
        str,
        "mirror pictures at random in training, where --aug is not none; auto: yes, but not for digits. Say off where "
        "mirrored pictures are of another class, such as letters",
        DATA,
        choices=("auto", "on", "off"),
    )
    erase: float = _setting(
        0.0, float, "random erasing: probability of a box painted over", DATA, low=0, high=1, shown="the recipe's"
    )
    cutout: float = _setting(
        0.0, float, "cutout: side of a box painted over, as a share of the picture's", DATA, low=0, high=1,
        shown="the recipe's",
    )  # fmt: skip
    mixup: float = _setting(
        0.0, float, "mixup's alpha; true: the recipe's, else 0.8; 0: off", DATA, low=0, high=1e6, shown="the recipe's",
        when_true=0.8,
    )  # fmt: skip
    cutmix: float = _setting(
        0.0, float, "CutMix's alpha; true: the recipe's, else 1; 0: off. With mixup, each picture takes one of the two",
        DATA, low=0, high=1e6, shown="the recipe's", when_true=1.0,
    )  # fmt: skip
    mix_off: float = _setting(
        0.0, float, "share of the run, at its end, without mixup and CutMix", DATA, low=0, below=1, shown="the recipe's"
    )
    tta: str = _setting(
        "none",
        str,
        "test-time augmentation of the final test, reported beside the plain figures: flip averages the logits of each "
        "picture and its mirror image",
        DATA,
        choices=("none", "flip"),
        resumable=True,
    )
    loss_sum: bool = _setting(
        False,
        bool,
        "record the validation loss also as a sum of means over batches of 100, as the predecessor printed it",
        DATA,
        shown="the recipe's",
    )

    opt: str = _setting(
        "adamw",
        str,
        "optimizer, NAME[:key=value,...]",
        OPTIMIZATION,
        table=OPTIMIZERS,
        shown="the recipe's",
        metavar="NAME",
    )
    opt_options: dict[str, Value] = dataclasses.field(default_factory=dict)
    lr: float = _setting(
        2e-3,
        float,
        "peak learning rate",
        OPTIMIZATION,
        low=0,
        shown="the recipe's, else the optimizer's times the recipe's scale for the network",
    )
    weight_decay: float = _setting(
        0.05, float, "weight decay", OPTIMIZATION, low=0, shown="the recipe's, else the optimizer's"
    )
    decay_all: bool = _setting(
        False, bool, "decay biases, norms and embeddings too", OPTIMIZATION, shown="the recipe's"
    )
    bs: int = _setting(128, int, "batch size", OPTIMIZATION, names=("--batch-size",), low=1, shown="the recipe's")
    accumulate: int = _setting(1, int, "batches per optimizer step", OPTIMIZATION, low=1)
    epochs: int | None = _setting(
        None,
        int,
        "passes over the training set",
        OPTIMIZATION,
        names=("--n-epochs",),
        low=1,
        shown="the recipe's",
        resumable=True,
    )
    max_steps: int | None = _setting(None, int, "stop after N optimizer steps", OPTIMIZATION, low=1, resumable=True)
    max_time: str | None = _setting(
        None,
        str,
        "as many steps as fit into 60s, 10m or 1h from the start of the program to its end, measured at the start",
        OPTIMIZATION,
        metavar="TIME",
    )
    schedule: str = _setting(
        "linear",
        str,
        "course of the learning rate after warm-up",
        OPTIMIZATION,
        choices=("constant", "linear", "cosine", "onecycle"),
        shown="the recipe's",
    )
    schedule_per: str = _setting(
        "step", str, "when the learning rate moves", OPTIMIZATION, choices=("step", "epoch"), shown="the recipe's"
    )
    warmup: float = _setting(
        0.05,
        float,
        "share of the run that the learning rate rises for",
        OPTIMIZATION,
        low=0,
        below=1,
        shown="the recipe's",
    )
    warmdown: float = _setting(
        0.0,
        float,
        "share of the run, at its end, that --schedule constant falls to zero for",
        OPTIMIZATION,
        low=0,
        high=1,
        shown="the recipe's",
    )
    label_smoothing: float = _setting(0.1, float, "label smoothing", OPTIMIZATION, low=0, below=1, shown="the recipe's")
    clip_grad: float = _setting(
        1.0, float, "clip the gradient's norm to this; 0: never", OPTIMIZATION, low=0, shown="the recipe's"
    )
    layer_decay: float = _setting(
        1.0,
        float,
        "learning rate of each layer over that of the next",
        OPTIMIZATION,
        low=0.01,
        high=1,
        shown="the recipe's",
    )
    ema: float = _setting(
        0.0,
        float,
        "decay of an average of the weights, which is then evaluated; 0: none",
        OPTIMIZATION,
        low=0,
        below=1,
        shown="the recipe's",
    )
    patience: int | None = _setting(
        None, int, "stop after N epochs without a better held-out accuracy", OPTIMIZATION, low=1
    )

    device: str = _setting("auto", str, "auto, cpu, mps, cuda or cuda:INDEX", DEVICE, resumable=True, metavar="NAME")
    micro_batch: int | str = _setting(
        "auto",
        str,
        "pictures run at once, with the same gradient but for other dropout masks; auto: what fits the cache, on CPU",
        DEVICE,
        resumable=True,
        metavar="N|auto",
    )
    precision: str = _setting(
        "auto",
        str,
        "arithmetic of the network; auto: bf16 or fp16 on CUDA, fp32 on CPU and MPS",
        DEVICE,
        choices=("auto", "fp32", "bf16", "fp16"),
        resumable=True,
    )
    compile: bool = _setting(
        False, bool, "compile the network's training step by torch.compile", DEVICE, resumable=True
    )
    threads: int | None = _setting(None, int, "CPU threads", DEVICE, low=1, shown="torch's", resumable=True)

    save_every: str | None = _setting(
        None, str, "save within an epoch too, every N steps or every 10m", CHECKPOINTS, resumable=True, metavar="N|TIME"
    )
    keep: int = _setting(
        1, int, "older checkpoints to keep beside last.pt and best.pt", CHECKPOINTS, low=0, resumable=True
    )

    wandb: str = _setting(
        "disabled",
        str,
        "track the run with W&B: online; offline, into the run's folder; not at all",
        LOGGING,
        choices=("online", "offline", "disabled"),
        shown="disabled; under a W&B sweep agent: online",
        resumable=True,
    )
    wandb_project: str | None = _setting(
        None, str, "W&B project", LOGGING, shown="$WANDB_PROJECT, else vitctl", resumable=True, metavar="NAME"
    )
    wandb_entity: str | None = _setting(
        None, str, "W&B user or team", LOGGING, shown="$WANDB_ENTITY, else your own", resumable=True, metavar="NAME"
    )
    wandb_group: str | None = _setting(
        None, str, "W&B group that the run belongs to", LOGGING, resumable=True, metavar="NAME"
    )
    wandb_tags: str | None = _setting(
        None, str, "W&B tags, separated by commas", LOGGING, resumable=True, metavar="A,B"
    )
    wandb_notes: str | None = _setting(None, str, "W&B notes on the run", LOGGING, resumable=True, metavar="WORDS")
    tensorboard: bool = _setting(
        False, bool, "write TensorBoard event files into the run's folder", LOGGING, resumable=True
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            flag = field.metadata.get("flag")
            value = getattr(self, field.name)
            if flag is None or (value is None and field.default is None):
                continue
            if flag.kind is str and not flag.choices and value == "" and field.name != "data_dir":
                raise RequestError(f"{flag_name(field.name)} is empty")
            parsed = flag.parse(field.name, value)
            object.__setattr__(self, field.name, flag.when_true if parsed is True and flag.when_true else parsed)
        self._parse_micro_batch()
        object.__setattr__(self, "pretrained", pretrained_word(self.pretrained))
        if self.freeze_backbone and self.pretrained == "false":
            raise RequestError(
                "--freeze-backbone trains a head on what the other layers see, and these would be random; add --pretrained "
                "true, or --pretrained FILE"
            )
        if self.freeze_backbone and self.layer_decay != 1:
            raise RequestError(
                f"--layer-decay {self.layer_decay:g} does nothing with --freeze-backbone, which trains one layer; leave one "
                f"of them out"
            )
        if self.bs == 1 and _has_batchnorm(self.net):
            raise RequestError(
                f"--bs 1: the BatchNorm of --net {self.net} cannot normalise one picture; take 2 or more"
            )
        self._check_augmentation()
        if self.epochs is None and self.max_steps is None and self.max_time is None:
            raise RequestError("--epochs, --max-steps or --max-time must say when to stop")
        if self.max_time is not None:
            parse_duration(self.max_time, "--max-time")
        if self.save_every is not None:
            parse_save_every(self.save_every, "--save-every")
        self._check_wandb()
        if self.warmdown and self.schedule != "constant":
            raise RequestError(
                f"--warmdown {self.warmdown:g} is for --schedule constant; {self.schedule} falls by itself: leave it out"
            )
        if self.warmup + self.warmdown > 1:
            raise RequestError(
                f"--warmup {self.warmup:g} and --warmdown {self.warmdown:g} are more than the whole run together; lower one"
            )
        if self.patience is not None and self.val != "holdout":
            raise RequestError(
                f"--patience selects on held-out pictures, and --val {self.val} holds none out; use --val holdout"
            )

    @property
    def flips(self) -> bool:
        """Whether mirrored pictures are still of their class."""
        return self.flip == "on" or (
            self.flip == "auto" and (self.dataset not in DATASETS or DATASETS[self.dataset].flip)
        )

    def _check_augmentation(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha and self.bs * self.accumulate < 2:
                raise RequestError(
                    f"--{name} {alpha:g} mixes the pictures of a step, and --bs {self.bs} gives it one; take 2 or more, or "
                    f"--{name} 0"
                )
        if self.flip == "on" and self.aug in AUGMENTATIONS and not AUGMENTATIONS[self.aug].crop:
            raise RequestError(f"--flip on does nothing with --aug {self.aug}; take --aug basic")
        if self.tta == "flip" and not self.flips:
            why = "--flip off says so" if self.flip == "off" else f"those of --dataset {self.dataset}"
            raise RequestError(f"--tta flip: mirrored pictures are not of their class ({why}); leave --tta out")
        if self.loss_sum and self.val == "none":
            raise RequestError("--loss-sum records the validation loss, and --val none measures none; leave one out")

    def _check_wandb(self) -> None:
        """Refuse what W&B would refuse, while nothing has been done yet."""
        for name in ("wandb_project", "wandb_entity"):
            value = getattr(self, name) or ""
            if bad := sorted(set(value) & set("/\\#?%:")):
                raise RequestError(f"{flag_name(name)} {value!r}: W&B allows no {' '.join(bad)} in it; leave it out")
            if len(value) > 128:
                raise RequestError(f"{flag_name(name)} is {len(value)} characters long; W&B takes 128")
        for tag in split_tags(self.wandb_tags):
            if not 1 <= len(tag) <= 64:
                raise RequestError(
                    f"--wandb-tags {self.wandb_tags!r}: each tag has 1 to 64 characters, and {tag!r} has {len(tag)}"
                )

    def _parse_micro_batch(self) -> None:
        if self.micro_batch == "auto":
            return
        if not str(self.micro_batch).isdigit() or int(self.micro_batch) < 1:
            raise RequestError(f"--micro-batch takes auto or a number of pictures, not {self.micro_batch!r}")
        object.__setattr__(self, "micro_batch", int(self.micro_batch))
        if int(self.micro_batch) < self.bs and _has_batchnorm(self.net):
            raise RequestError(
                f"--micro-batch {self.micro_batch} would change what --net {self.net} computes, as its BatchNorm needs the "
                f"whole batch; leave it out, or lower --bs"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            RequestError: a setting that this version does not know, or a bad value.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise RequestError(
                f"the stored settings have {', '.join(unknown)}, which this version of vitctl does not know"
            )
        return cls(**values)


def split_tags(text: str | None) -> list[str]:
    """Return the tags of ``a,b``."""
    return [tag.strip() for tag in text.split(",")] if text else []


INPUT_ONLY: dict[str, Flag] = {
    "patch": Flag(kind=int, help="side of a patch in pixels, for networks that have patches", panel=NETWORK, low=1),
    "convkernel": Flag(kind=int, help="side of convmixer's kernels", panel=NETWORK, low=1),
    **{
        f"adan_beta{i}": Flag(
            kind=float, help=f"beta{i} of --opt adan, as in the paper: 1 - beta of Adam", panel=OPTIMIZATION
        )
        for i in (1, 2, 3)
    },
}
"""Flags that end in ``net_options`` or ``opt_options``."""

FLAGS: dict[str, Flag] = {
    **{f.name: f.metadata["flag"] for f in dataclasses.fields(TrainConfig) if "flag" in f.metadata},
    **INPUT_ONLY,
}
"""Every setting that can be given by flag or file, by name."""

ALIASES = {spelling.lstrip("-").replace("-", "_"): name for name, flag in FLAGS.items() for spelling in flag.names}
"""Settings by their further spellings."""
OPTION_TABLES = ("net_options", "opt_options", "aug_options")
"""Settings of a file that hold options by name."""


def normalise_keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return settings by their own names, parsed.

    Args:
        values: settings of a file or a sweep; hyphens, underscores and aliases such as ``n_epochs`` are fine.
        source: how to call them in an error.

    Raises:
        RequestError: an unknown key, with near matches; the same setting given twice; a bad value.
    """
    settings: dict[str, Any] = {}
    for key, value in values.items():
        word = key.strip().lstrip("-").replace("-", "_")
        name = ALIASES.get(word, word)
        if name not in FLAGS and name not in OPTION_TABLES:
            raise RequestError(f"{source}: {key!r} is no setting of train{suggest(word, [*FLAGS, *ALIASES])}")
        if name in settings:
            raise RequestError(f"{source}: {key!r} sets {name} a second time")
        if name in OPTION_TABLES:
            if not isinstance(value, dict):
                raise RequestError(f"{source}: {key!r} must be a mapping of options")
            settings[name] = value
        elif value is not None:
            settings[name] = FLAGS[name].parse(name, value)
    return settings


def resolve_config(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Fill in what nobody said: tables < recipe < file < flags.

    Args:
        flags: settings by name, from the command line; only those that were given.
        file: settings by name, from a ``--config`` file.

    Raises:
        RequestError: an unknown name, or a combination that cannot be.
    """
    file = _spread_specs(file or {})
    schedules = {each["schedule"] for each in (file, flags) if "schedule" in each}
    file = _without_usual_values(file, flags)
    if "net" in flags:
        file = {key: value for key, value in file.items() if key not in ("net_options", *_NET_FLAGS)}
    if "opt" in flags:
        dropped = {"opt_options", *ADAN_BETAS}
        theirs = file.get("opt")
        if theirs is None and file.get("recipe") in RECIPES:
            theirs = RECIPES[str(file["recipe"])].settings["opt"]
        if theirs not in (None, split_spec(str(flags["opt"]), "--opt")[0]):
            dropped |= {"lr", "weight_decay", "clip_grad"}  # what suits one optimizer is no setting of another
        file = {key: value for key, value in file.items() if key not in dropped}
    if "aug" in flags:
        file = {key: value for key, value in file.items() if key != "aug_options"}
    if flags.get("val") == "none":
        file.pop("loss_sum", None)
    if len(schedules) == 2 and "onecycle" in schedules:
        file.pop("warmup", None)  # the share in which its rate rises is no warm-up
    if flags.get("schedule", "constant") != "constant":
        file.pop("warmdown", None)
    if flags.keys() & set(LENGTHS):
        file = {key: value for key, value in file.items() if key not in LENGTHS}
    given = {**file, **flags}

    recipe_name = str(given.get("recipe", "default"))
    recipe: Recipe = lookup(RECIPES, recipe_name, "--recipe")
    dataset, data_dir = resolve_dataset(str(given.get("dataset", "cifar10")), given.get("data_dir"))
    given.update(dataset=dataset, data_dir=data_dir)
    seconds = parse_duration(given["max_time"], "--max-time") if given.get("max_time") is not None else None
    usual = recipe.within(seconds)
    net, net_given = split_spec(str(given.get("net", usual["net"])), "--net")
    if "net" not in given:  # the recipe's, which the file's and the flags' go before
        given["net_options"] = {**net_given, **given.get("net_options", {})}
        net_given = {}
    opt, opt_given = split_spec(str(given.get("opt", usual["opt"])), "--opt")
    net_entry = find_model(net)
    pretrained = resolve_pretrained(net, net_entry, given.get("pretrained"))
    epochs = int(given["epochs"]) if given.get("epochs") is not None else None
    preset = recipe.overrides(net, opt, dataset, seconds, epochs, pretrained=pretrained != "false")
    opt_entry = find_optimizer(opt)

    settings = {**preset, **given}
    if given.keys() & set(LENGTHS):  # a length that was asked for replaces the recipe's
        settings.update({name: given.get(name) for name in LENGTHS})
    lr_scale = float(settings.pop("lr_scale", 1.0))
    settings["net"], settings["opt"] = net, opt
    settings["net_options"] = _net_options(net, net_entry, recipe, given, net_given)
    settings["opt_options"], inline = _opt_options(opt, opt_entry, recipe, given, opt_given, lr_scale)
    if opt_entry.second_lr:  # the width of a network tells on that one alone; what it knows already, on both
        lr_scale = float(str(recipe.pretrained.get("lr_scale", 1.0))) if pretrained != "false" else 1.0
    if "lr" in settings and "lr" not in given:
        settings["lr"] = float(settings["lr"]) * lr_scale
    default_lr = opt_entry.lr * lr_scale
    for name, default in (("lr", default_lr), ("weight_decay", opt_entry.weight_decay)):
        if name in inline:
            if name in flags:
                raise RequestError(f"--opt {opt}:{name}=... and {flag_name(name)} both set it; give one of them")
            settings[name] = inline[name]
        settings.setdefault(name, default)
    if opt_entry.second_lr and settings["lr"] == 0:
        raise RequestError(
            f"--lr 0 stops --opt {opt} and its {opt_entry.second_lr}, which the schedule moves with it; take a small rate "
            f"such as 1e-9"
        )
    # A recipe's shares of the run are those of its own schedule.
    if settings.get("schedule") == "onecycle" and "warmup" not in given:
        settings["warmup"] = ONECYCLE_RISE
    if settings.get("schedule") != "constant" and "warmdown" not in given:
        settings.pop("warmdown", None)
    settings.setdefault("size", net_entry.img_size)
    settings.setdefault("wandb", "online" if os.environ.get("WANDB_SWEEP_ID") else "disabled")
    check_tracked(str(settings["wandb"]), flags)
    settings["pretrained"] = pretrained
    if "layer_decay" not in given and (settings["pretrained"] == "false" or settings.get("freeze_backbone")):
        settings["layer_decay"] = 1.0  # a recipe's is for layers that know something and are to keep it
    settings.update(_augmentation(settings, preset, given, flags))
    for name in (*_NET_FLAGS, *ADAN_BETAS):
        settings.pop(name, None)
    config = TrainConfig(**settings)
    rising = config.warmup * config.epochs if config.epochs and not config.max_steps else 0.0
    if "warmup" in flags and config.schedule_per == "epoch" and 0 < rising <= 1:
        more = f"take more than {1 / config.epochs:g}, or " if config.epochs and config.epochs > 1 else "take "
        raise RequestError(
            f"--warmup {config.warmup:g} ends within the first epoch, and with --schedule-per epoch that has one rate, so that "
            f"nothing rises; {more}--schedule-per step"
        )
    opt_entry.check_rate(config.lr, config.weight_decay, config.opt_options)
    net_entry.check_size(net, config.net_options, config.size)
    return config


def _spread_specs(file: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's settings with ``NAME:key=value`` taken apart, so that each key is a setting that a flag can replace.

    Raises:
        RequestError: the file sets something both there and by its own key.
    """
    spread = dict(file)
    for key, table in (("net", "net_options"), ("opt", "opt_options"), ("aug", "aug_options")):
        if key not in file:
            continue
        name, inline = split_spec(str(file[key]), key)
        own = ("lr", "weight_decay") if key == "opt" else ()
        aliases = {"net": _NET_FLAGS, "opt": {beta: beta.removeprefix("adan_") for beta in ADAN_BETAS}}.get(key, {})
        elsewhere = {option: f"{table}.{option}" for option in file.get(table, {})}
        elsewhere |= {option: option for option in own if option in file}
        elsewhere |= {option: flag for flag, option in aliases.items() if flag in file}
        for option in inline:
            if option in elsewhere:
                raise RequestError(f"{key} {name}:{option}=... and {elsewhere[option]} both set it; give one of them")
        spread[key] = name
        spread |= {option: FLAGS[option].parse(option, inline.pop(option)) for option in own if option in inline}
        if inline:
            spread[table] = {**file.get(table, {}), **inline}
    return spread


def _without_usual_values(file: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's settings without those that are only what its own recipe, network and data set have.

    Where flags name another of these, what is usual with the file's is no wish: a file that ``--print-config`` wrote holds
    every setting, and would leave nothing of another recipe but its name.
    """

    def usual_with(*names: str) -> dict[str, Any]:
        return resolve_config({}, {name: file[name] for name in (*names, "data_dir") if name in file}).to_dict()

    def as_in(usual: Mapping[str, Any], *names: str) -> set[str]:
        return set(names) if all(file.get(name, usual[name]) == usual[name] for name in names) else set()

    what = ("recipe", "dataset", "net")
    if not file or not flags.keys() & set(what):
        return file
    try:
        plain, of_net = usual_with("recipe", "dataset"), usual_with(*what)
        of_all = usual_with(*what, "opt", *LENGTHS)
    except RequestError:  # a folder that is gone, say: another may be named by flag
        return file
    if all(split_spec(str(flags.get(name, of_all[name])), flag_name(name))[0] == of_all[name] for name in what):
        return file
    usual = as_in(plain, "net", "net_options") | as_in(of_net, "opt", "opt_options") | as_in(of_net, *LENGTHS)
    usual |= as_in(of_all, "aug", "aug_options")
    hung_on = {*what, "opt", "aug", "aug_options", "data_dir", *LENGTHS}
    usual |= {name for name, value in file.items() if name not in hung_on and name in of_all and value == of_all[name]}
    return {name: value for name, value in file.items() if name not in usual}


LENGTHS = ("epochs", "max_steps", "max_time")
"""Settings that say when a run ends: one that is asked for replaces all of a recipe's."""

_NET_FLAGS = {"patch": "patch_size", "convkernel": "kernel_size"}
"""Flags that are options of the network."""


def _augmentation(
    settings: Mapping[str, Any], preset: Mapping[str, Any], given: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of augmentation, and of what hangs on them, resolved."""
    aug, inline = split_spec(str(settings.get("aug", TrainConfig.aug)), "--aug")
    entry: AugmentationEntry = lookup(AUGMENTATIONS, aug, "--aug")
    # Where nobody named one, what stands beside its name is the recipe's, which the options that were given go before.
    options = (
        {**settings.get("aug_options", {}), **inline} if "aug" in given else {**inline, **given.get("aug_options", {})}
    )
    options = entry.resolve_options(options, f"--aug {aug}")
    resolved: dict[str, Any] = {"aug": aug, "aug_options": options}
    for name in ("mixup", "cutmix"):
        if settings.get(name) is True:
            resolved[name] = preset.get(name) or FLAGS[name].when_true
    mixing = [resolved.get(name, settings.get(name, 0)) for name in ("mixup", "cutmix")]
    if not any(mixing):
        # A file may keep it beside a mixup of 0 that a flag, or a trial of a sweep, put there.
        if given.get("mix_off") and ("mix_off" in flags or not given.keys() & {"mixup", "cutmix"}):
            raise RequestError(
                f"--mix-off {given['mix_off']:g} ends mixup and CutMix, and neither is on; give --mixup or --cutmix too"
            )
        resolved["mix_off"] = 0.0
    if settings.get("val") == "none" and "loss_sum" not in given:
        resolved["loss_sum"] = False
    return resolved


ADAN_BETAS = ("adan_beta1", "adan_beta2", "adan_beta3")
ADANS = ("adan", "adan_pytorch")
"""The optimizers whose betas these flags are."""

ONECYCLE_RISE = 0.3
"""The share of a one-cycle run in which the rate rises when nobody says otherwise (Smith and Topin 2019; torch's)."""


def check_tracked(wandb: str, flags: Mapping[str, Any]) -> None:
    """Refuse flags that say how W&B shows a run which it is not told of.

    Args:
        wandb: the run's setting.
        flags: settings given by flag; a file may say it for other runs.

    Raises:
        RequestError: such a flag.
    """
    for name in ("wandb_project", "wandb_entity", "wandb_group", "wandb_tags", "wandb_notes"):
        if wandb == "disabled" and name in flags:
            raise RequestError(
                f"{flag_name(name)} {flags[name]!r} does nothing with --wandb disabled; add --wandb online or --wandb offline"
            )


def resolve_dataset(name: str, data_dir: str | None) -> tuple[str, str | None]:
    """Return the name and the absolute place of a data set, which may be named by its folder.

    Raises:
        RequestError: no such data set or folder.
    """
    if data_dir is not None and not data_dir.strip():
        raise RequestError("--data-dir takes a folder, and was given nothing; leave it out or name one")
    if name in DATASETS:
        return name, data_dir and str(Path(data_dir).expanduser().absolute())
    if Path(name).expanduser().is_dir():
        if data_dir is not None:
            raise RequestError(f"--dataset {name} is a folder already; leave --data-dir out")
        return "folder", str(Path(name).expanduser().absolute())
    if "/" in name or name.startswith((".", "~")):
        raise RequestError(f"--dataset {name}: no such folder; the named data sets are {', '.join(DATASETS)}")
    lookup(DATASETS, name, "--dataset")
    raise AssertionError("lookup raises for an unknown name")


def pretrained_word(value: str) -> str:
    """Return ``true``, ``false``, or the file that ``--pretrained`` names."""
    word = value.lower()
    return "true" if word in TRUE_WORDS else "false" if word in FALSE_WORDS else value


def resolve_pretrained(net: str, entry: ModelEntry, value: str | None) -> str:
    """Return ``true``, ``false``, or the absolute path of the file that ``--pretrained`` names.

    Raises:
        RequestError: there are no such weights.
    """
    if value is None:
        return "true" if entry.pretrained else "false"
    word = pretrained_word(value)
    if word == "true" and not entry.weights:
        ready = ", ".join(name for name, row in MODELS.items() if row.weights)
        raise RequestError(
            f"--pretrained true: there are no pretrained weights for --net {net}; there are for {ready} and most of {TIMM}*; "
            f"--pretrained FILE takes weights of your own"
        )
    if word in ("true", "false"):
        return word
    path = Path(word).expanduser().absolute()
    if not path.is_file():
        raise RequestError(
            f"--pretrained {value}: {'that is a folder' if path.is_dir() else 'no such file'}; it takes true, false, or a "
            f"file of weights"
        )
    return str(path)


def _has_batchnorm(net: str) -> bool:
    return (net in MODELS or net.startswith(TIMM)) and find_model(net).batchnorm


def _net_options(
    net: str, entry: ModelEntry, recipe: Recipe, given: Mapping[str, Any], inline: Mapping[str, str]
) -> dict[str, Value]:
    options: dict[str, Any] = {key: value for key, value in recipe.net_options.items() if key in entry.options}
    options.update(given.get("net_options", {}))
    options.update(inline)
    for flag, option in _NET_FLAGS.items():
        if flag not in given:
            continue
        if option not in entry.options:
            lacks = "no patches" if flag == "patch" else "no kernels to choose; --net convmixer has"
            other = "; its window is --net swin:window_size=..." if net == "swin" and flag == "patch" else ""
            raise RequestError(f"--{flag} {given[flag]}: --net {net} has {lacks}; leave --{flag} out{other}")
        if option in inline:
            raise RequestError(f"--{flag} and --net ...:{option}=... both set it; give one of them")
        options[option] = given[flag]
    return entry.resolve_options(options, f"--net {net}")


def _opt_options(
    opt: str,
    entry: OptimizerEntry,
    recipe: Recipe,
    given: Mapping[str, Any],
    inline: Mapping[str, str],
    lr_scale: float,
) -> tuple[dict[str, Value], dict[str, float]]:
    """Return the optimizer's options, and ``lr`` and ``weight_decay`` where ``--opt`` carries them."""
    common = {name: FLAGS[name].parse(name, inline[name]) for name in ("lr", "weight_decay") if name in inline}
    options: dict[str, Any] = {}
    options.update(recipe.opt_options.get(opt, {}))
    if entry.second_lr:
        usual = options.get(entry.second_lr, entry.options[entry.second_lr].default)
        options[entry.second_lr] = float(usual) * lr_scale
    options.update(given.get("opt_options", {}))
    options.update({key: value for key, value in inline.items() if key not in common})
    for name in ADAN_BETAS:
        if name not in given:
            continue
        beta = name.removeprefix("adan_")
        if opt not in ADANS:
            like = f"; say --opt {opt}:{beta}=..." if beta in entry.options else " and would do nothing"
            raise RequestError(f"{flag_name(name)} belongs to --opt {' and '.join(ADANS)}, not to {opt}{like}")
        if beta in inline:
            raise RequestError(f"{flag_name(name)} and --opt {opt}:{beta}=... both set it; give one of them")
        options[beta] = entry.options[beta].parse(given[name], flag_name(name))
    resolved = entry.resolve_options(options, f"--opt {opt}")
    wants = str({**given.get("opt_options", {}), **inline}.get("nesterov", "")).lower() in TRUE_WORDS
    if opt == "sgd" and not wants and not resolved["momentum"]:
        resolved["nesterov"] = False  # so that a file which --print-config writes asks for nothing that it cannot have
    if opt == "sgd" and wants and not resolved["momentum"]:
        raise RequestError(
            "--opt sgd:nesterov=true needs momentum, which is 0; say --opt sgd:momentum=0.9,nesterov=true"
        )
    return resolved, common
