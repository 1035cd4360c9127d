"""Classification heads: which layers they are, and training only them."""

from __future__ import annotations

from torch import nn

from vitctl.errors import RequestError


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the classification layers: those of timm's ``get_classifier()``, or else ``head``."""
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if get_classifier is not None else getattr(model, "head", None)
    heads = found if isinstance(found, (tuple, list)) else [found]
    return [
        name
        for name, module in model.named_modules()
        if any(module is head for head in heads) and any(True for _ in module.parameters())
    ]


def freeze_backbone(model: nn.Module, net: str) -> None:
    """Freeze all parameters of ``model`` except those of the head.

    Raises:
        RequestError: the network's head is unknown.
    """
    heads = head_names(model)
    if not heads:
        raise RequestError(
            f"--freeze-backbone does not work with --net {net}, whose head is unknown", hint="remove --freeze-backbone"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(within(name, heads))


def train_head(model: nn.Module) -> None:
    """Set the head of ``model`` to training mode and the rest to evaluation mode, so that frozen norms stay fixed."""
    model.eval()
    for name in head_names(model):
        model.get_submodule(name).train()


def within(name: str, modules: list[str]) -> bool:
    """Return whether the parameter ``name`` belongs to one of ``modules``."""
    return any(name.startswith(f"{module}.") for module in modules)
