"""Every setting of a training run: flags of ``vitctl train``, keys of a ``--config`` file and parameters of a sweep."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vitctl.config.flag import CHECKPOINTS, DATA, DEVICE, LOGGING, NETWORK, OPTIMIZATION, RUN, Flag, flag_name
from vitctl.data import AUGMENTATIONS, DATASETS
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS
from vitctl.recipes import RECIPES
from vitctl.registry import FALSE_WORDS, TRUE_WORDS, Value

PREDECESSOR_BATCH = 100
"""Evaluation batch size of the original scripts, which printed the sum of the batches' mean losses."""

VAL_PROTOCOLS = ("holdout", "test", "none")
"""Values of ``--val``."""


def _setting(default: Any, kind: type, help: str, panel: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"flag": Flag(kind=kind, help=help, panel=panel, **more)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines what a training run computes and where, each value parsed by its flag.

    ``None`` means no limit or not used.

    Raises:
        RequestError: a value of the wrong type, unknown or out of range.
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
        "side of the images that the network sees, in pixels",
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

    dataset: str = _setting("cifar10", str, "data set, or a folder of images", DATA, table=DATASETS, metavar="NAME|DIR")
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
    limit_train: int | None = _setting(None, int, "train on N images only, evenly over classes", DATA, low=1)
    limit_test: int | None = _setting(None, int, "evaluate on at most N held-out and N test images", DATA, low=1)
    skip_bad_images: bool = _setting(False, bool, "leave out images that cannot be read, and list them", DATA)
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
        "mirror images at random in training, where --aug is not none; auto: yes, but not for digits. Say off where "
        "mirrored images are of another class, such as letters",
        DATA,
        choices=("auto", "on", "off"),
    )
    erase: float = _setting(
        0.0, float, "random erasing: probability of a box painted over", DATA, low=0, high=1, shown="the recipe's"
    )
    cutout: float = _setting(
        0.0, float, "cutout: side of a box painted over, as a share of the image's", DATA, low=0, high=1,
        shown="the recipe's",
    )  # fmt: skip
    mixup: float = _setting(
        0.0, float, "mixup's alpha; true: the recipe's, else 0.8; 0: off", DATA, low=0, high=1e6, shown="the recipe's",
        when_true=0.8,
    )  # fmt: skip
    cutmix: float = _setting(
        0.0, float, "CutMix's alpha; true: the recipe's, else 1; 0: off. With mixup, each image takes one of the two",
        DATA, low=0, high=1e6, shown="the recipe's", when_true=1.0,
    )  # fmt: skip
    mix_off: float = _setting(
        0.0, float, "share of the run, at its end, without mixup and CutMix", DATA, low=0, below=1, shown="the recipe's"
    )
    tta: str = _setting(
        "none",
        str,
        "test-time augmentation of the final test, reported beside the plain figures: flip averages the logits of each "
        "image and its mirror image",
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
        "images run at once, with the same gradient but for other dropout masks; auto: what fits the cache, on CPU",
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
            if "flag" in field.metadata:
                self._parse(field)
        self._parse_micro_batch()
        object.__setattr__(self, "pretrained", pretrained_word(self.pretrained))

    def _parse(self, field: dataclasses.Field[Any]) -> None:
        flag: Flag = field.metadata["flag"]
        value = getattr(self, field.name)
        if value is None and field.default is None:
            return
        if flag.kind is str and not flag.choices and value == "" and field.name != "data_dir":
            raise RequestError(f"{flag_name(field.name)} is empty")
        parsed = flag.parse(field.name, value)
        object.__setattr__(self, field.name, flag.when_true if parsed is True and flag.when_true else parsed)

    def _parse_micro_batch(self) -> None:
        if self.micro_batch == "auto":
            return
        if not str(self.micro_batch).isdigit() or int(self.micro_batch) < 1:
            raise RequestError(f"--micro-batch takes auto or a number of images, not {self.micro_batch!r}")
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
