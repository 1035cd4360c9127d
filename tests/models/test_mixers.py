"""MLP-Mixer and ConvMixer, compared with the formulas and code of their papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tests.models.oracles import assert_same_gradients, copy_weights, perturbed
from tests.models.test_models import build, defaults, images
from vitctl.registry import Value


def mixer(model: nn.Module, x: Tensor, patch: int) -> Tensor:
    """Compute an MLP-Mixer's logits with patches as vectors of pixels, and token MLPs as 1x1 convolutions."""
    w = dict(model.named_parameters())
    project = rearrange(w["stem.proj.weight"], "d c p q -> d (p q c)")
    x = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch) @ project.T + w["stem.proj.bias"]
    for i in range(len(model.blocks)):
        name = f"blocks.{i}"
        normed = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"])
        hidden = F.conv1d(normed, w[f"{name}.mlp_tokens.fc1.weight"][..., None], w[f"{name}.mlp_tokens.fc1.bias"])
        mixed = F.conv1d(
            F.gelu(hidden), w[f"{name}.mlp_tokens.fc2.weight"][..., None], w[f"{name}.mlp_tokens.fc2.bias"]
        )
        x = x + mixed
        normed = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
        hidden = F.linear(normed, w[f"{name}.mlp_channels.fc1.weight"], w[f"{name}.mlp_channels.fc1.bias"])
        x = x + F.linear(F.gelu(hidden), w[f"{name}.mlp_channels.fc2.weight"], w[f"{name}.mlp_channels.fc2.bias"])
    x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"]).mean(1)
    return F.linear(x, w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("img_size", "changed"),
    [(32, {}), (48, {"patch_size": 8}), (15, {"patch_size": 3, "embed_dim": 40, "token_ratio": 0.7, "mlp_ratio": 1.1})],
)
def test_mixer_matches_the_formula(img_size: int, changed: dict[str, Value], training: bool) -> None:
    model = perturbed(build("mlpmixer", img_size, **changed)).train(training)  # linear layers differ between modes
    options = defaults("mlpmixer", **changed)
    x = images(2, img_size=img_size)
    expected = mixer(model, x, int(options["patch_size"]))
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    tokens = (img_size // int(options["patch_size"])) ** 2
    weights = dict(model.named_parameters())
    assert weights["blocks.0.mlp_tokens.fc1.weight"].shape == (int(tokens * float(options["token_ratio"])), tokens)
    width, ratio = int(options["embed_dim"]), float(options["mlp_ratio"])
    assert weights["blocks.0.mlp_channels.fc1.weight"].shape == (int(width * ratio), width)


def test_mixer_gradients_match_the_formula() -> None:
    model = perturbed(build("mlpmixer", 16, embed_dim=40, depth=2)).train()
    x, weights = images(3, img_size=16), torch.randn(3, 10)
    (model(x) * weights).sum().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    (mixer(model, x, 4) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def convmixer(dim: int, depth: int, kernel: int, patch: int) -> nn.Module:
    """Build the network of the paper's figure 3."""
    norm = lambda: nn.Sequential(nn.GELU(), nn.BatchNorm2d(dim))
    return nn.Sequential(
        nn.Conv2d(3, dim, patch, patch),
        norm(),
        *(
            nn.Sequential(
                Residual(nn.Sequential(nn.Conv2d(dim, dim, kernel, groups=dim, padding="same"), norm())),
                nn.Conv2d(dim, dim, 1),
                norm(),
            )
            for _ in range(depth)
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(dim, 10),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("kernel", "patch", "img_size"), [(8, 1, 32), (5, 2, 16), (4, 1, 9), (9, 3, 12)])
def test_convmixer_matches_the_paper(kernel: int, patch: int, img_size: int) -> None:
    size: dict[str, Value] = {"embed_dim": 24, "depth": 3} if img_size < 32 else {}
    ours = perturbed(build("convmixer", img_size, kernel_size=kernel, patch_size=patch, **size)).eval()
    dim, depth = (24, 3) if size else (256, 16)
    theirs = convmixer(dim, depth, kernel, patch).eval()
    theirs.load_state_dict(
        dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))  # both are in the order of computation
    )
    x = images(2, img_size=img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convmixer_gradients_match_the_paper() -> None:
    ours = perturbed(build("convmixer", 8, embed_dim=12, depth=2)).eval()
    theirs = convmixer(12, 2, 8, 1).eval()
    names = list(zip(ours.state_dict(), theirs.state_dict(), strict=True))
    exact = [(f"^{name.replace('.', '[.]')}$", other) for name, other in names]
    copy_weights(ours, theirs, exact)
    assert_same_gradients(ours, theirs, exact, images(3, img_size=8))


def test_convmixer_matches_the_paper_in_training() -> None:
    """In training mode, BatchNorm uses the statistics of the batch."""
    ours, theirs = build("convmixer", 8, embed_dim=12, depth=2, kernel_size=5), convmixer(12, 2, 5, 1)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = images(6, img_size=8)
    torch.testing.assert_close(ours.train()(x), theirs.train()(x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_even_kernel_sizes_do_not_warn() -> None:
    build("convmixer", 8, embed_dim=8, depth=1)(images(2, img_size=8))
