"""Recipes: named presets for ``--recipe``, and what was measured with them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

ANY = "*"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of overrides.

    Attributes:
        summary: what it is for, in a line.
        settings: values by flag name.
        epochs: epochs by data set; ``*`` is for the others.
        by_net: further values for networks whose name matches the pattern; ``lr_scale`` multiplies the optimizer's
            default learning rate.
        by_opt: further values for an optimizer.
        by_dataset: further values for a data set.
        net_options: options for every network that has them.
        opt_options: options by optimizer.
        paper: where its settings come from.
    """

    summary: str
    settings: Mapping[str, object] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=lambda: {ANY: 20})
    by_net: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    by_opt: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    by_dataset: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    net_options: Mapping[str, object] = field(default_factory=dict)
    opt_options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    paper: str = ""

    def overrides(self, net: str, opt: str, dataset: str) -> dict[str, object]:
        """Return the recipe's values for this network, optimizer and data set."""
        values = dict(self.settings)
        for pattern, more in self.by_net.items():
            if fnmatch.fnmatchcase(net, pattern):
                values.update(more)
        values.update(self.by_opt.get(opt, {}))
        values.update(self.by_dataset.get(dataset, {}))
        values["epochs"] = self.epochs.get(dataset, self.epochs[ANY])
        return values


RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        summary="trains any network well in a few epochs: AdamW, warm-up, linear decay per step",
        settings={
            "net": "cct_2",
            "opt": "adamw",
            "bs": 128,
            "schedule": "linear",
            "schedule_per": "step",
            "warmup": 0.05,
            "label_smoothing": 0.1,
            "clip_grad": 1.0,
            "aug": "basic",
            "val": "holdout",
        },
        epochs={"digits": 20, ANY: 10},
        by_net={
            "vit*": {"lr_scale": 0.25},
            **{net: {"lr_scale": 0.25} for net in ("simplevit", "dyt", "cait*", "swin")},
            **{net: {"lr_scale": 0.5} for net in ("cct_[67]", "cvt", "vit_lite", "mlpmixer")},
            "vit*_timm": {"lr_scale": 0.05, "layer_decay": 0.75},  # they are fine-tuned
        },
        by_dataset={"digits": {"bs": 32}},  # an epoch of 1,293 pictures has few steps as it is
    ),
    "seed": Recipe(
        summary="the protocol of vision-transformers-cifar10: Adam at 1e-4, cosine per epoch, measured on the test set",
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
            "aug": "basic",
            "val": "test",
        },
        epochs={ANY: 200},
        by_net={"res*": {"lr": 1e-3}},
        by_opt={
            "adam": {"weight_decay": 0.0},
            "adamw": {"weight_decay": 0.02},
            "adan": {"weight_decay": 0.02},
            "sgd": {"weight_decay": 0.0},
        },
        net_options={"init": "predecessor"},
        opt_options={"sgd": {"momentum": 0.0, "nesterov": False}},
        paper="Yoshioka 2024, https://github.com/kentaroy47/vision-transformers-cifar10",
    ),
}
"""Every recipe that ``--recipe`` takes."""
