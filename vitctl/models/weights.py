"""How the weights of a new network are drawn, where its families agree on it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def draw_weights(model: nn.Module, init: str, embeddings: Iterable[nn.Parameter | None] = ()) -> None:
    """Draw the weights of ``model`` anew, from torch's global random state.

    Args:
        model: its linear layers and convolutions are drawn; norms keep their ones and zeros.
        init: ``vit`` (linear layers and embeddings from a normal of std 0.02 cut at two, no bias; convolutions are
            left as they are) or ``predecessor`` (linear layers and convolutions as torch draws them, embeddings from
            N(0, 1)).
        embeddings: learned positions and class tokens; None stands for one that the network does not have.
    """
    for parameter in embeddings:
        if parameter is None:
            continue
        if init == "predecessor":
            nn.init.normal_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=0.02)
    for module in model.modules():
        if init == "predecessor" and isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def spread(weight: Tensor) -> None:
    """Draw the weight ``[E, D]`` of a linear layer so that what it puts out is as large as what it takes in."""
    nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
