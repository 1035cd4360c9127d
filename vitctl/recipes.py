"""Recipes: named settings for ``--recipe``, and cards with the results measured with them."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANY = "*"


@dataclass(frozen=True)
class Band:
    """An accuracy over one or more seeds, in percent.

    Attributes:
        mean: mean over the seeds.
        deviation: sample standard deviation over the seeds; None for a single seed.
    """

    mean: float
    deviation: float | None = None

    @property
    def floor(self) -> float:
        """The lowest accuracy to expect: 3 deviations below the mean, at least 1 point; 3 points for a single seed."""
        return self.mean - (3.0 if self.deviation is None else max(1.0, 3 * self.deviation))

    def __str__(self) -> str:
        """Return ``66.8 ± 0.4 %``, or ``66.8 %`` for a single seed."""
        return f"{self.mean:.1f} %" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Measured results of a recipe, as printed by ``python -m tests.measurements.cards``.

    Attributes:
        net: name of the network; its options are the recipe's.
        dataset: name of the data set.
        epochs: number of epochs; ``max_steps`` may end the last one early.
        val_acc: validation accuracy after each epoch, under the recipe's ``val`` protocol.
        test_acc: accuracy of the final weights on the test set.
        seeds: seeds of the runs.
        seconds: median wall time of a run, including evaluation and the final test.
        machine: device and threads.
        versions: versions of torch and vitctl.
        max_steps: length of the runs in steps, if limited; with ``max_time``, the median number of steps.
        max_time: the ``--max-time`` of the runs; the number of steps within it depends on the machine.
        opt: the optimizer, as for ``--opt``; None for the recipe's.
        precision: precision of the runs; only runs in the same are compared with the card.
    """

    net: str
    dataset: str
    epochs: int
    val_acc: tuple[Band, ...]
    test_acc: Band
    seeds: tuple[int, ...]
    seconds: float
    machine: str
    versions: str
    max_steps: int | None = None
    max_time: str | None = None
    opt: str | None = None
    precision: str = "fp32"

    @property
    def seeds_named(self) -> str:
        """The seeds as text: ``seeds 0, 1, 2`` or ``seed 0``."""
        return f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of values for the settings.

    The attributes with values are in the order in which they apply; a later value replaces an earlier one.

    Attributes:
        summary: one line for listings.
        settings: values by flag name.
        by_time: values by upper limit of ``--max-time`` in seconds; of the limits not exceeded, the smallest applies.
        by_epochs: values by upper limit of ``--epochs``; of the limits not exceeded, the smallest applies.
        by_net: values by pattern of the network's name, such as ``opt``, or ``lr_scale``, whose roles these networks must
            have. Their ``lr_factor`` multiplies the learning rate: the recipe's, or else the optimizer's default.
        pretrained: values for networks with pretrained weights.
        by_opt: values by pattern of the optimizer's name; None restores the default.
        by_dataset: values by data set; their ``lr_factor`` multiplies that of the network.
        epochs: number of epochs by data set, ``*`` for the others; unused if the values above have ``max_steps``.
        net_options: options for every network that has them.
        opt_options: options by optimizer; ``lr_factor`` also multiplies a second learning rate.
        paper: source of the settings.
        cards: measured results, one card per network, data set and length; a recipe without cards is "not measured".
    """

    summary: str
    settings: Mapping[str, object] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=lambda: {ANY: 20})
    by_net: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    pretrained: Mapping[str, object] = field(default_factory=dict)
    by_opt: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    by_dataset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    by_time: Mapping[float, Mapping[str, object]] = field(default_factory=dict)
    by_epochs: Mapping[int, Mapping[str, object]] = field(default_factory=dict)
    net_options: Mapping[str, object] = field(default_factory=dict)
    opt_options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    paper: str = ""
    cards: tuple[Card, ...] = ()

    def net(self, dataset: str, seconds: float | None) -> str:
        """Return the network for a data set and runs of at most ``seconds``, with options; None means no limit."""
        by_dataset = self.by_dataset.get(dataset, {})
        return str({**self.settings, **_for_length(self.by_time, seconds), **by_dataset}["net"])

    def opt(self, net: str) -> str:
        """Return the optimizer for the network ``net``."""
        return str({**self.settings, **self._for_net(net)}["opt"])

    def by_length(self, seconds: float | None, epochs: int | None) -> Mapping[str, object]:
        """Return the values that apply to runs with this ``--max-time`` and ``--epochs``; None if not given."""
        return {**_for_length(self.by_time, seconds), **_for_length(self.by_epochs, epochs)}

    def overrides(
        self,
        net: str,
        opt: str,
        dataset: str,
        seconds: float | None = None,
        epochs: int | None = None,
        *,
        pretrained: bool = False,
    ) -> dict[str, object]:
        """Return all values for this network, optimizer, data set, ``--max-time`` and ``--epochs``."""
        values = {**self.settings, **self.by_length(seconds, epochs), **self._for_net(net)}
        if pretrained:
            values.update(self.pretrained)
        for pattern, more in self.by_opt.items():
            if fnmatch.fnmatchcase(opt, pattern):
                values.update(more)
        of_net = values.pop("lr_factor", 1.0)
        values.update(self.by_dataset.get(dataset, {}))
        values["lr_factor"] = float(str(of_net)) * float(str(values.get("lr_factor", 1.0)))
        if "max_steps" not in values:
            values["epochs"] = self.epochs.get(dataset, self.epochs[ANY])
        return {name: value for name, value in values.items() if value is not None}

    def _for_net(self, net: str) -> dict[str, object]:
        values: dict[str, object] = {}
        for pattern, more in self.by_net.items():
            if fnmatch.fnmatchcase(net, pattern):
                values.update(more)
        return values


def _for_length(table: Mapping[Any, Mapping[str, object]], length: float | None) -> Mapping[str, object]:
    """Return the values of the smallest limit that ``length`` does not exceed; none if ``length`` is None."""
    limits = [limit for limit in table if length is not None and length <= limit]
    return table[min(limits)] if limits else {}


_FEW_EPOCHS = {
    "bs": 128,
    "schedule": "linear",
    "schedule_per": "step",
    "warmup": 0.05,
    "label_smoothing": 0.1,
    "clip_grad": 1.0,
    "aug": "basic",
    "val": "holdout",
}
"""Settings for a few epochs: a learning rate that falls to zero, and light augmentation."""

_BY_NET: dict[str, Mapping[str, object]] = {
    **{net: {"lr_factor": 0.25} for net in ("vit*", "simplevit", "dyt", "cait*", "swin", "timm/vit*", "timm/deit*")},
    **{net: {"lr_factor": 0.5} for net in ("cct_[67]", "cvt", "vit_lite", "mlpmixer")},
}
"""Lower learning rates for wide networks."""

_PRETRAINED: Mapping[str, object] = {"lr_factor": 0.05, "layer_decay": 0.75}
"""A much lower learning rate for fine-tuning, lowest for the layers near the input."""

_UNLIKE_ADAM: dict[str, Mapping[str, object]] = {
    name: {"lr": None} for name in ("muon*", "lion", "adan_official", "timm/*")
}
"""Optimizers that the original scripts lack keep their default learning rates, as the scripts' does not suit them."""

_SMALL_STEPS: Mapping[str, object] = {"bs": 32, "aug": "none"}
"""Settings for about an epoch: many small steps, and no augmentation, as each image is seen only once or twice."""
_SPRINT_MUON: Mapping[str, Mapping[str, object]] = {"muon": {"lr": 0.05, "clip_grad": 0.0}}
"""Muon's settings for a few hundred steps; its updates do not depend on the length of the gradient."""
_FAST_MUON: Mapping[str, Mapping[str, object]] = {"muon": {"lr": 0.02, "weight_decay": 0.1, "clip_grad": 0.0}}
"""Muon's settings for more than 1,000 steps: the sprint's rate is too high, and weight decay helps by epoch 4."""
_FAST_MUON_OPTIONS: Mapping[str, Mapping[str, object]] = {"muon": {"adamw_lr": 1e-2, "momentum": 0.9}}
_RECORDS: Mapping[str, object] = {
    "opt": "muon_sgd",
    "bs": 250,
    "warmup": 0.0,
    "label_smoothing": 0.2,
    "clip_grad": 0.0,
    "aug": "basic:padding=2,padding_mode=reflect,flip=alternate",
    "lr_scale": {"head": 12.0, "convolutions": 6.0},
}
"""Settings of the CIFAR-10 speed records, for networks with convolutions of their kind (Jordan 2024)."""
_BY_FAST_NET = {**_BY_NET, "hybrid_*": _RECORDS, "airbench94": _RECORDS}
_FAST_PAPER = "Hassani et al. 2021, arXiv 2104.05704; Jordan 2024, https://kellerjordan.github.io/posts/muon"

RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        summary="a few epochs of any network; hybrid_tiny if none is given",
        settings={"net": "hybrid_tiny", "opt": "adamw", **_FEW_EPOCHS},
        epochs={"digits": 20, ANY: 10},
        by_net={
            **_BY_FAST_NET,
            "cct_[24]": {"lr_factor": 2.0},
            # Feature maps of the image's size, and BatchNorm rules out smaller micro-batches: 128 images take 19 GB.
            "convmixer": {"bs": 32},
        },
        pretrained=_PRETRAINED,
        by_dataset={"digits": {"net": "cct_2", "bs": 32, "lr_factor": 0.5}},  # 1,293 images: few steps per epoch
    ),
    "sprint": Recipe(
        summary="CIFAR-10 accuracy above 50 % in seconds on a CPU",
        settings={
            "net": "hybrid_tiny:width=32,embed_dim=64",
            "opt": "muon",
            **_FEW_EPOCHS,
            **_SMALL_STEPS,
            "val": "none",
            "max_steps": 300,
        },
        by_net={**_BY_NET, "hybrid_*": {**_RECORDS, "bs": 125, "max_steps": 100}},
        pretrained=_PRETRAINED,
        by_opt=_SPRINT_MUON,
        opt_options=_FAST_MUON_OPTIONS,
        paper=_FAST_PAPER,
        cards=(
            Card(
                net="hybrid_tiny",
                dataset="cifar10",
                epochs=1,
                max_steps=100,
                val_acc=(),
                test_acc=Band(mean=59.66, deviation=0.27),
                seeds=(0, 1, 2),
                seconds=6.6,
                machine="cpu (AMD EPYC, 2 threads)",
                versions="torch 2.14.1+cu130, vitctl 0.1.0",
                precision="bf16",
            ),
        ),
    ),
    "fast": Recipe(
        summary="the best accuracy in minutes on a CPU, or within --max-time",
        settings={"net": "hybrid_small", "opt": "muon", **_FEW_EPOCHS, "bs": 64},
        epochs={"digits": 10, ANY: 4},
        by_net=_BY_FAST_NET,
        pretrained=_PRETRAINED,
        by_opt=_FAST_MUON,
        by_dataset={"digits": {"bs": 32}},
        by_time={
            90: {"net": "hybrid_tiny", **_SMALL_STEPS},
            1200: {"net": "hybrid_small"},
            math.inf: {"net": "hybrid_base", "bs": 128, "aug": "randaug:n=1,m=9"},
        },
        opt_options=_FAST_MUON_OPTIONS,
        paper=_FAST_PAPER,
        cards=(
            Card(
                net="hybrid_tiny",
                dataset="cifar10",
                epochs=4,
                max_steps=544,
                max_time="60s",
                val_acc=(),
                test_acc=Band(mean=81.10, deviation=0.05),
                seeds=(0, 1, 2),
                seconds=58.3,
                machine="cpu (AMD EPYC, 2 threads)",
                versions="torch 2.14.1+cu130, vitctl 0.1.0",
                precision="bf16",
            ),
        ),
    ),
    "vit_small": Recipe(
        summary="the best results for the architecture vit_small, with Muon",
        settings={"net": "vit_small", "opt": "muon", **_FEW_EPOCHS},
        epochs={"digits": 10, ANY: 5},
        by_net=_BY_NET,
        pretrained=_PRETRAINED,
        # 0.05, the best rate for the first 100 steps, costs 13 points at the end of an epoch.
        by_opt={"muon*": {"lr": 0.01, "clip_grad": 0.0}},
        by_dataset={"digits": {"bs": 32}},
        by_epochs={1: {"bs": 64, "aug": "none"}},  # not 32 as in _SMALL_STEPS: Muon's cost per step is high when wide
        net_options={"dropout": 0.0, "emb_dropout": 0.0, "pool": "avg", "pos_init": "sincos"},
        opt_options={"muon": {"adamw_lr": 8e-4, "momentum": 0.9}},
        paper="Lee et al. 2021, arXiv 2112.13492; Beyer et al. 2022, arXiv 2205.01580; Jordan 2024, "
        "https://kellerjordan.github.io/posts/muon",
        cards=(
            Card(
                net="vit_small",
                dataset="cifar10",
                epochs=1,
                val_acc=(Band(66.94),),
                test_acc=Band(67.47),
                seeds=(0,),
                seconds=1990.0,
                machine="cpu (AMD EPYC, 2 threads)",
                versions="torch 2.14.1+cu130, vitctl 0.1.0",
            ),
        ),
    ),
    "strong": Recipe(
        summary="the highest accuracy: 200 epochs on a GPU",
        settings={
            "net": "cct_7",
            "opt": "adamw",
            "bs": 128,
            "schedule": "cosine",
            "schedule_per": "step",
            "warmup": 0.05,
            "label_smoothing": 0.1,
            "clip_grad": 1.0,
            "ema": 0.999,
            "aug": "randaug:n=2,m=9",
            "erase": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "val": "holdout",
        },
        epochs={ANY: 200},
        by_net={"vit*": {"lr_factor": 0.5}},
        by_opt={"adamw": {"lr": 5.5e-4, "weight_decay": 0.06}, "muon*": {"clip_grad": 0.0}},
        net_options={"drop_path_rate": 0.1, "attn_dropout": 0.1},
        paper="Hassani et al. 2021, arXiv 2104.05704; Cubuk et al. 2020, arXiv 1909.13719",
    ),
    "finetune": Recipe(
        summary="fine-tuning of a pretrained network on new images",
        settings={
            "net": "vit_timm",
            "opt": "adamw",
            "bs": 64,
            "schedule": "cosine",
            "schedule_per": "step",
            "warmup": 0.1,
            "label_smoothing": 0.1,
            "clip_grad": 1.0,
            "aug": "basic",
            "val": "holdout",
        },
        epochs={ANY: 5},
        pretrained={"layer_decay": 0.75},
        by_opt={
            "adam": {"lr": 1e-4},
            "adamw": {"lr": 1e-4, "weight_decay": 0.05},
            "sgd": {"lr": 3e-3, "weight_decay": 0.0},
            "muon*": {"lr": 2e-3, "clip_grad": 0.0},
            "adan*": {"lr": 2e-4},
            "lion": {"lr": 2e-5},
            "timm/*": {"lr_factor": 0.05},
        },
        opt_options={"muon": {"adamw_lr": 1e-4}},
        paper="Dosovitskiy et al. 2021, arXiv 2010.11929 (SGD 0.003); Steiner et al. 2022, arXiv 2106.10270",
    ),
    "seed": Recipe(
        summary="the original scripts' protocol (vision-transformers-cifar10)",
        settings={
            "net": "vit",
            "opt": "adam",
            "bs": 512,
            "lr": 1e-4,
            "schedule": "cosine",
            "schedule_per": "epoch",
            "warmup": 0.0,
            "label_smoothing": 0.0,
            "clip_grad": 0.0,
            "decay_all": True,
            "aug": "seed-randaug",
            "val": "test",
            "loss_sum": True,
        },
        epochs={ANY: 200},
        by_net={"res*": {"lr": 1e-3}},
        by_opt={
            "adam": {"weight_decay": 0.0},
            "adamw": {"weight_decay": 0.02},
            "adan*": {"weight_decay": 0.02},
            "sgd": {"weight_decay": 0.0},
            **_UNLIKE_ADAM,
        },
        net_options={"init": "predecessor"},
        opt_options={"sgd": {"momentum": 0.0, "nesterov": False}},
        paper="Yoshioka 2024, https://github.com/kentaroy47/vision-transformers-cifar10",
        cards=(
            Card(
                net="vit_small",
                dataset="cifar10",
                epochs=1,
                val_acc=(Band(33.64),),
                test_acc=Band(33.64),
                seeds=(0,),
                seconds=1260.7,
                machine="cpu (AMD EPYC, 2 threads)",
                versions="torch 2.14.1+cu130, vitctl 0.1.0",
            ),
        ),
    ),
}
"""Recipes that ``--recipe`` accepts."""
