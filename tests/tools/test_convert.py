"""Conversion of weights from the original scripts.

Random weights with the original names and shapes are converted, and the logits compared with independent
implementations that load the weights without conversion.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from PIL import Image
from torch import Tensor, nn
from vit_pytorch import cait as cait_oracle
from vit_pytorch import mobile_vit as mobile_oracle
from vit_pytorch import simple_vit as simple_oracle
from vit_pytorch import vit as vit_oracle
from vit_pytorch import vit_for_small_dataset as small_oracle

from tests.conftest import Cli
from vitctl.data.cifar import CIFAR10, CIFAR100
from vitctl.inference.trained import Trained, load_trained
from vitctl.models import MODELS, build_model
from vitctl.models.legacy import RULES

Refused = Callable[..., str]
State = dict[str, Tensor]

SHAPES: dict[str, dict[str, list[int]]] = json.loads(Path(__file__).with_name("original_state_dicts.json").read_text())
"""Names and shapes of the tensors that the scripts saved, by network."""

NETS = list(SHAPES)


def made(net: str) -> State:
    """Return random weights of an original network, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(len(net))
    state: State = {}
    for name, shape in SHAPES[net].items():
        tensor = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = tensor.abs() + 0.5
        elif name.endswith(("_mask",)):
            state[name] = window_mask(4, upper="upper" in name)
        elif len(shape) > 1 and "embedding" not in name and "token" not in name and "mix" not in name:
            fan_in = tensor[0].numel()
            state[name] = tensor * fan_in**-0.5
        elif name.endswith("weight") or "scale" in name:
            state[name] = 1 + 0.2 * tensor
        else:
            state[name] = 0.3 * tensor
    return state


def window_mask(window: int, *, upper: bool) -> Tensor:
    """Return an attention mask, float ``[n, n]``: minus infinity between the two halves of a window's rows or columns."""
    places = [(y, x) for y in range(window) for x in range(window)]
    side = [(place[0] if upper else place[1]) >= window - window // 2 for place in places]
    return torch.tensor([[0.0 if a == b else float("-inf") for b in side] for a in side])


def size_of(net: str) -> int:
    return 64 if net == "mobilevit" else 32


def converted(cli: Cli, net: str, content: Any, *more: object) -> Trained:
    torch.save(content, "old.t7")
    result = cli("convert", "old.t7", "--net", net, "-o", "new.pt", "--size", size_of(net), *more)
    assert result.code == 0, result.err
    return load_trained(Path("new.pt"), weights="last", device=torch.device("cpu"), warn=print)


# -- independent implementations ---------------------------------------------------------------------------------------


def renamed(state: State, names: list[tuple[str, str]]) -> State:
    out: State = {}
    for name, tensor in state.items():
        for old, new in names:
            name = re.sub(old, new, name)
        out[name] = tensor
    return out


PRE_NORM = [
    (r"\.0\.fn\.to_", ".0.to_"),
    (r"\.0\.fn\.temperature", ".0.temperature"),
    (r"\.1\.norm\.", ".1.net.0."),
    (r"\.1\.fn\.net\.0\.", ".1.net.1."),
    (r"\.1\.fn\.net\.3\.", ".1.net.4."),
]
"""Renames for vit-pytorch, which has since moved its norms into the layers that follow them."""


class Tanh(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha, self.weight, self.bias = (nn.Parameter(torch.ones(n)) for n in (1, dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


def vit(state: State, net: str) -> Callable[[Tensor], Tensor]:
    model = vit_oracle.ViT(
        image_size=32, patch_size=4, num_classes=10, dim=512, depth=6, heads=8, dim_head=64, mlp_dim=512
    )
    model.to_patch_embedding = nn.Sequential(model.to_patch_embedding[0], model.to_patch_embedding[2])
    if net == "dyt":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.LayerNorm):
                    setattr(module, name, Tanh(512))
    names = [*PRE_NORM, (r"^mlp_head\.0\.", "transformer.norm."), (r"^mlp_head\.1\.", "mlp_head.")]
    new = renamed(state, names)
    new["pos_embedding"], new["cls_token"] = new["pos_embedding"][0], new["cls_token"][0]
    model.load_state_dict(new)
    return model.eval()


def vit_small(state: State, net: str) -> Callable[[Tensor], Tensor]:
    depth, heads, mlp_dim = (6, 8, 512) if net == "vit_small" else (4, 6, 256)
    model = small_oracle.ViT(
        image_size=32, patch_size=4, num_classes=10, dim=512, depth=depth, heads=heads, dim_head=64, mlp_dim=mlp_dim
    )
    model.load_state_dict(renamed(state, PRE_NORM))
    return model.eval()


def simplevit(state: State, net: str) -> Callable[[Tensor], Tensor]:
    model = simple_oracle.SimpleViT(
        image_size=32, patch_size=4, num_classes=10, dim=512, depth=6, heads=8, dim_head=64, mlp_dim=512
    )
    model.to_patch_embedding = nn.Sequential(model.to_patch_embedding[0], model.to_patch_embedding[2])
    model.transformer.norm = nn.Identity()
    model.linear_head = nn.Sequential(nn.LayerNorm(512), model.linear_head)
    model.load_state_dict(state)
    return model.eval()


def cait(state: State, net: str) -> Callable[[Tensor], Tensor]:
    heads, mlp_dim = (8, 512) if net == "cait" else (6, 256)
    model = cait_oracle.CaiT(
        image_size=32, patch_size=4, num_classes=10, dim=512, depth=6, cls_depth=2, heads=heads, mlp_dim=mlp_dim
    )
    model.to_patch_embedding = nn.Sequential(model.to_patch_embedding[0], model.to_patch_embedding[2])
    names = [
        (r"\.0\.fn\.norm\.", ".0.fn.norm."),
        (r"\.0\.fn\.fn\.", ".0.fn."),
        (r"\.1\.fn\.norm\.", ".1.fn.net.0."),
        (r"\.1\.fn\.fn\.net\.0\.", ".1.fn.net.1."),
        (r"\.1\.fn\.fn\.net\.3\.", ".1.fn.net.4."),
    ]
    model.load_state_dict(renamed(state, names))
    return model.eval()


def mobilevit(state: State, net: str) -> Callable[[Tensor], Tensor]:
    channels = [16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 320]
    model = mobile_oracle.MobileViT((64, 64), [64, 80, 96], channels, num_classes=10, expansion=2)
    names = [
        *PRE_NORM,
        (r"^mv2\.([0-3])\.", r"stem.\1."),
        (r"^mv2\.4\.", "trunk.0.0."),
        (r"^mv2\.5\.", "trunk.1.0."),
        (r"^mv2\.6\.", "trunk.2.0."),
        (r"^mvit\.(\d)\.", r"trunk.\1.1."),
        (r"^conv2\.", "to_logits.0."),
        (r"^fc\.", "to_logits.2."),
    ]
    model.load_state_dict(renamed(state, names))
    return model.eval()


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class NormResidual(Residual):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__(fn)
        self.norm = nn.LayerNorm(512)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x)) + x


def mlpmixer(state: State, net: str) -> Callable[[Tensor], Tensor]:
    def mlp(first: nn.Module, second: nn.Module) -> nn.Module:
        return nn.Sequential(first, nn.GELU(), nn.Identity(), second, nn.Identity())

    model = nn.Sequential(
        Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4),
        nn.Linear(48, 512),
        *(
            nn.Sequential(
                NormResidual(mlp(nn.Conv1d(64, 256, 1), nn.Conv1d(256, 64, 1))),
                NormResidual(mlp(nn.Linear(512, 256), nn.Linear(256, 512))),
            )
            for _ in range(6)
        ),
        nn.LayerNorm(512),
        Reduce("b n c -> b c", "mean"),
        nn.Linear(512, 10),
    )
    model.load_state_dict(state)
    return model.eval()


def convmixer(state: State, net: str) -> Callable[[Tensor], Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 256, 1),
        nn.GELU(),
        nn.BatchNorm2d(256),
        *(
            nn.Sequential(
                Residual(
                    nn.Sequential(nn.Conv2d(256, 256, 8, groups=256, padding="same"), nn.GELU(), nn.BatchNorm2d(256))
                ),
                nn.Conv2d(256, 256, 1),
                nn.GELU(),
                nn.BatchNorm2d(256),
            )
            for _ in range(16)
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    model.load_state_dict(state)
    return model.eval()


def normed(x: Tensor, w: State, name: str) -> Tensor:
    return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])


def resnet(w: State, net: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        x = F.relu(normed(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1"))
        blocks = sorted({tuple(map(int, re.findall(r"\d+", name)[:2])) for name in w if name.startswith("layer")})
        for stage, i in blocks:
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            deep = f"{name}.conv3.weight" in w
            out = x
            for k in (1, 2, 3) if deep else (1, 2):
                kernel = w[f"{name}.conv{k}.weight"]
                out = F.conv2d(
                    out, kernel, stride=stride if k == (2 if deep else 1) else 1, padding=kernel.shape[-1] // 2
                )
                out = normed(out, w, f"{name}.bn{k}")
                if k < (3 if deep else 2):
                    out = F.relu(out)
            if f"{name}.shortcut.0.weight" in w:
                shortcut = F.conv2d(x, w[f"{name}.shortcut.0.weight"], stride=stride)
                x = normed(shortcut, w, f"{name}.shortcut.1")
            x = F.relu(out + x)
        return F.linear(F.avg_pool2d(x, 4).flatten(1), w["linear.weight"], w["linear.bias"])

    return forward


def vgg(w: State, net: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        i = 0
        for count in (2, 2, 4, 4, 4):
            for _ in range(count):
                x = F.conv2d(x, w[f"features.{i}.weight"], w[f"features.{i}.bias"], padding=1)
                x = F.relu(normed(x, w, f"features.{i + 1}"))
                i += 3
            x = F.max_pool2d(x, 2)
            i += 1
        return F.linear(x.flatten(1), w["classifier.weight"], w["classifier.bias"])

    return forward


def swin(w: State, net: str) -> Callable[[Tensor], Tensor]:
    """Swin with explicit windows, and the masks in ``w`` for the windows of the last row and column."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def attention(x: Tensor, name: str) -> Tensor:
        shifted, heads, count = f"{name}.upper_lower_mask" in w, x.shape[-1] // 32, x.shape[1] // 4
        if shifted:
            x = torch.roll(x, (-2, -2), (1, 2))
        q, k, v = (
            rearrange(part, "b (y p) (x q) (h d) -> b h (y x) (p q) d", p=4, q=4, h=heads)
            for part in linear(x, f"{name}.to_qkv").chunk(3, -1)
        )
        places = torch.tensor([[y, x] for y in range(4) for x in range(4)])
        offset = places[None] - places[:, None] + 3
        dots = q @ k.mT * 32**-0.5 + w[f"{name}.pos_embedding"][offset[..., 0], offset[..., 1]]
        if shifted:
            dots[:, :, -count:] += w[f"{name}.upper_lower_mask"]
            dots[:, :, count - 1 :: count] += w[f"{name}.left_right_mask"]
        out = rearrange(dots.softmax(-1) @ v, "b h (y x) (p q) d -> b (y p) (x q) (h d)", y=count, p=4)
        out = linear(out, f"{name}.to_out")
        return torch.roll(out, (2, 2), (1, 2)) if shifted else out

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def forward(x: Tensor) -> Tensor:
        for stage, (factor, pairs) in enumerate(((2, 1), (2, 1), (2, 3), (1, 1)), 1):
            side = x.shape[-1] // factor
            x = F.unfold(x, factor, stride=factor).unflatten(-1, (side, side)).permute(0, 2, 3, 1)
            x = linear(x, f"stage{stage}.patch_partition.linear")
            for i in range(pairs):
                for j in (0, 1):
                    name = f"stage{stage}.layers.{i}.{j}"
                    x = x + attention(norm(x, f"{name}.attention_block.fn.norm"), f"{name}.attention_block.fn.fn")
                    hidden = linear(norm(x, f"{name}.mlp_block.fn.norm"), f"{name}.mlp_block.fn.fn.net.0")
                    x = x + linear(F.gelu(hidden), f"{name}.mlp_block.fn.fn.net.2")
            x = x.permute(0, 3, 1, 2)
        return linear(norm(x.mean((2, 3)), "mlp_head.0"), "mlp_head.1")

    return forward


def vit_until_2022(w: State, heads: int = 8) -> Callable[[Tensor], Tensor]:
    """The scripts' first ViT: products are scaled by the width of the tokens, and the head has a hidden layer."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def forward(x: Tensor) -> Tensor:
        x = linear(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), "patch_to_embedding")
        x = torch.cat((w["cls_token"].expand(len(x), -1, -1), x), 1) + w["pos_embedding"]
        for i in range(1 + max(int(name.split(".")[2]) for name in w if name.startswith("transformer"))):
            layer = f"transformer.layers.{i}"
            qkv = linear(norm(x, f"{layer}.0.fn.norm"), f"{layer}.0.fn.fn.to_qkv")
            q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
            attention = (q @ k.mT * x.shape[-1] ** -0.5).softmax(-1)
            x = x + linear(rearrange(attention @ v, "b h n d -> b n (h d)"), f"{layer}.0.fn.fn.to_out.0")
            hidden = F.gelu(linear(norm(x, f"{layer}.1.fn.norm"), f"{layer}.1.fn.fn.net.0"))
            x = x + linear(hidden, f"{layer}.1.fn.fn.net.3")
        return linear(F.gelu(linear(norm(x[:, 0], "mlp_head.0"), "mlp_head.1")), "mlp_head.4")

    return forward


def made_until_2022(dim: int = 512, depth: int = 6, classes: int = 10, hidden: int = 512) -> State:
    """Return random weights of the scripts' first ViT; queries and keys are large enough for the scale to matter."""
    torch.manual_seed(0)
    shapes = {"pos_embedding": (1, 65, dim), "cls_token": (1, 1, dim)}
    shapes |= {"patch_to_embedding.weight": (dim, 48), "patch_to_embedding.bias": (dim,)}
    for i in range(depth):
        for j, parts in ((0, {"to_qkv": 3 * dim, "to_out.0": dim}), (1, {"net.0": dim, "net.3": dim})):
            layer = f"transformer.layers.{i}.{j}.fn"
            shapes |= {f"{layer}.norm.weight": (dim,), f"{layer}.norm.bias": (dim,)}
            for part, rows in parts.items():
                shapes[f"{layer}.fn.{part}.weight"] = (rows, dim)
                if part != "to_qkv":
                    shapes[f"{layer}.fn.{part}.bias"] = (rows,)
    shapes |= {"mlp_head.0.weight": (dim,), "mlp_head.0.bias": (dim,), "mlp_head.1.weight": (hidden, dim)}
    shapes |= {"mlp_head.1.bias": (hidden,), "mlp_head.4.weight": (classes, hidden), "mlp_head.4.bias": (classes,)}
    state = {
        name: torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3) for name, shape in shapes.items()
    }
    return {name: 2 * tensor if "to_qkv" in name else tensor for name, tensor in state.items()}


ORACLES: dict[str, Callable[[State, str], Callable[[Tensor], Tensor]]] = {
    **{net: vit for net in ("vit", "dyt")},
    **{net: vit_small for net in ("vit_small", "vit_tiny")},
    **{net: cait for net in ("cait", "cait_small")},
    **{net: resnet for net in ("res18", "res34", "res50", "res101")},
    "simplevit": simplevit,
    "swin": swin,
    "mlpmixer": mlpmixer,
    "convmixer": convmixer,
    "mobilevit": mobilevit,
    "vgg": vgg,
}


# -- tests -------------------------------------------------------------------------------------------------------------


def test_every_original_network_is_covered() -> None:
    assert set(SHAPES) == set(ORACLES) == set(RULES) - {"vit_timm"}
    assert set(RULES) <= set(MODELS)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("net", [pytest.param(net, marks=pytest.mark.slow) if net == "res101" else net for net in NETS])
def test_logits_match_the_original_network(net: str, cli: Cli) -> None:
    state = made(net)
    trained = converted(cli, net, {"net": state, "acc": 81.25, "epoch": 199})
    x = torch.randn(2, 3, size_of(net), size_of(net), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = ORACLES[net](state, net)(x), trained.model(x)
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(logits, expected, atol=1e-5 * scale, rtol=1e-4)
    assert logits.std() > 1e-3
    assert trained.epoch == 200 and trained.classes[0] == "airplane" and trained.mean == (0.4914, 0.4822, 0.4465)
    assert sum(p.numel() for p in trained.model.parameters()) == MODELS[net].params


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("model", ""),
        ("net", "module."),
        (None, ""),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("model", "module."), ("net", ""), (None, "module."))
        ),
    ],
)
def test_every_layout_of_the_file_is_read(cli: Cli, key: str | None, prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in made("vit_tiny").items()}
    content = state if key is None else {key: state, "optimizer": {"state": {}}, "scaler": {}}
    trained = converted(cli, "vit_tiny", content)
    assert torch.equal(trained.model.state_dict()["cls_token"], made("vit_tiny")["cls_token"])
    assert trained.epoch == 0


def test_files_of_early_torch_versions_are_read(cli: Cli) -> None:
    torch.save({"net": made("vit_tiny")}, "old.t7", _use_new_zipfile_serialization=False)
    assert cli("convert", "old.t7", "--net", "vit_tiny", "-o", "new.pt").code == 0


def test_other_patch_sizes_image_sizes_and_kernels_convert(cli: Cli) -> None:
    state = made("vit")
    state["pos_embedding"] = torch.randn(1, 37, 512)
    state["to_patch_embedding.1.weight"] = torch.randn(512, 192)
    torch.save({"net": state}, "old.t7")
    assert cli("convert", "old.t7", "--net", "vit", "--patch", 8, "--size", 48, "-o", "new.pt").code == 0
    state = made("convmixer")
    for name in [name for name in state if name.endswith("0.fn.0.weight")]:
        state[name] = torch.randn(256, 1, 5, 5)
    torch.save({"net": state}, "old.t7")
    assert cli("convert", "old.t7", "--net", "convmixer", "--convkernel", 5, "-o", "5.pt").code == 0


def test_patch_sets_the_window_size_of_swin(cli: Cli) -> None:
    state = made("swin")
    for name in state:
        if name.endswith("pos_embedding"):
            state[name] = torch.randn(3, 3)
        elif name.endswith("_mask"):
            state[name] = window_mask(2, upper="upper" in name)
    torch.save({"net": state}, "old.t7")
    assert cli("convert", "old.t7", "--net", "swin", "--patch", 2, "-o", "new.pt").code == 0


def test_cifar100_weights_convert_with_dataset_cifar100(cli: Cli, refused: Refused) -> None:
    state = made("vit_tiny")
    state["mlp_head.1.weight"], state["mlp_head.1.bias"] = torch.randn(100, 512), torch.randn(100)
    trained = converted(cli, "vit_tiny", {"net": state}, "--dataset", "cifar100")
    assert (len(trained.classes), trained.mean[0], trained.config.dataset) == (100, 0.5071, "cifar100")
    assert trained.classes == CIFAR100.classes
    assert "mlp_head.1.weight has shape [100, 512]" in refused("convert", "old.t7", "--net", "vit_tiny", "-o", "x.pt")


def test_a_vit_of_timm_converts(cli: Cli) -> None:
    import timm

    torch.manual_seed(0)
    state = timm.create_model("vit_base_patch16_384", num_classes=10, depth=1).state_dict()
    torch.save({"net": state}, "old.t7")
    done = cli("convert", "old.t7", "--net", "vit_timm:depth=1", "-o", "new.pt", "--json").json()
    assert (done["size"], done["tensors"]) == (384, len(state))
    trained = load_trained(Path("new.pt"), weights="last", device=torch.device("cpu"), warn=print)
    assert all(torch.equal(trained.model.state_dict()[name], tensor) for name, tensor in state.items())


def shallow() -> State:
    """Return weights of vit_tiny with one block."""
    return {name: tensor for name, tensor in made("vit_tiny").items() if not re.search(r"layers\.[1-9]", name)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a data set with the image size and class names of CIFAR-10, and two images per class."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CIFAR10.classes:
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(2):
                noise = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path / "images"


def test_eval_predict_and_export_accept_the_checkpoint(cli: Cli, images: Path) -> None:
    trained = converted(cli, "vit_tiny:depth=1", {"model": shallow()})
    scores = cli("eval", "new.pt", "--dataset", images, "--predictions", "p.csv", "--json")
    assert scores.code == 0, scores.err
    assert scores.json()["images"] == 20
    image = images / "test" / "cat" / "0.png"
    x = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None] / 255  # [1, 3, 32, 32]
    mean, std = (torch.tensor(values)[:, None, None] for values in (trained.mean, trained.std))
    with torch.no_grad():
        expected = trained.model((x - mean) / std).softmax(-1)[0]
    (row,) = cli("predict", "new.pt", image, "--json").json()
    assert row["top"][0]["class"] == trained.classes[int(expected.argmax())]
    assert row["top"][0]["probability"] == pytest.approx(expected.max().item(), rel=1e-4)
    exported = cli("export", "new.pt", "--format", "torchscript", "--tolerance", 1e-3, "--verify-on", 20, "--json")
    assert exported.code == 0, exported.err
    report = exported.json()
    assert report["verified"] is True and Path(report["files"][0]["path"]).exists()


def test_the_checkpoint_starts_a_run_but_cannot_be_resumed(cli: Cli, refused: Refused, images: Path) -> None:
    trained = converted(cli, "vit_tiny:depth=1", {"model": shallow()})
    assert "use --pretrained new.pt to start a run" in refused("train", "--resume", "new.pt")
    run = ["train", "--dataset", images, "--val", "none", "--net", "vit_tiny:depth=1", "--bs", 10, "--max-steps", 1]
    begun = cli(*run, "--pretrained", "new.pt", "--lr", 0, "--name", "r", "--json")
    assert begun.code == 0 and "including the head" in begun.err, begun.err
    last = Path("runs/r/checkpoints/last.pt")
    state = torch.load(last, weights_only=True)["model"]
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.model.state_dict().items())
    shutil.copy("new.pt", last)
    assert "has only weights" in refused("train", "--resume", "runs/r", "--max-steps", 2)
    direct = cli(*run, "--pretrained", "old.t7", "--lr", 0, "--name", "direct")
    assert direct.code == 0 and "; converted from the original scripts" in direct.err, direct.err
    state = torch.load("runs/direct/checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.model.state_dict().items())


UNTIL_2022: dict[str, tuple[dict[str, int], list[object]]] = {
    "defaults": ({}, []),
    "another width": ({"dim": 256}, ["--net", "vit:embed_dim=256,head_dim=32,mlp_ratio=1"]),
    "another head": ({"hidden": 128, "depth": 2}, ["--net", "vit:depth=2"]),
    "CIFAR-100": ({"classes": 100, "depth": 1}, ["--net", "vit:depth=1", "--dataset", "cifar100"]),
}
"""Sizes of the scripts' first ViT, and the flags that convert it."""


@pytest.mark.parametrize("name", UNTIL_2022)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_first_vit_of_the_scripts_converts_with_equal_logits(name: str, prefix: str, cli: Cli) -> None:
    sizes, argv = UNTIL_2022[name]
    state = made_until_2022(**sizes)
    trained = converted(cli, "vit", {"net": {prefix + key: value for key, value in state.items()}, "epoch": 9}, *argv)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = vit_until_2022(state)(x), trained.model(x)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    unscaled = {key: value / 8**0.5 if "to_qkv" in key else value for key, value in state.items()}
    assert (vit_until_2022(unscaled)(x) - expected).abs().max() > 0.01, "the scale must matter for this test"


def test_the_first_vit_of_the_scripts_can_be_fine_tuned(cli: Cli) -> None:
    state = made_until_2022(depth=1)
    trained = converted(cli, "vit", {"net": state}, "--net", "vit:depth=1")
    trained.model.train()
    trained.model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.model.parameters())


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "model.", "net."])
def test_prefixes_of_wrappers_are_stripped(prefix: str, cli: Cli) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in made("vit_tiny").items()}
    trained = converted(cli, "vit_tiny", {"state_dict": state})
    assert torch.equal(trained.model.state_dict()["cls_token"], made("vit_tiny")["cls_token"])


def cifar100_vit() -> State:
    return made("vit") | {"mlp_head.1.weight": torch.randn(100, 512), "mlp_head.1.bias": torch.randn(100)}


def vit_of_torchvision() -> State:
    import torchvision

    return torchvision.models.VisionTransformer(16, 4, 1, 2, 128, 64).state_dict()


def vit_of_vitctl() -> State:
    options = MODELS["vit"].resolve_options({"depth": 6}, "--net vit")
    return build_model("vit", options, img_size=32, in_chans=3, num_classes=10).state_dict()


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lambda: made("res18"), "not the weights of --net vit", "use --net res18"),
        (lambda: made("vit_small"), "needs [512, 48]", "use --net vit_small"),
        (cifar100_vit, "has shape [100, 512]", "use --net vit --dataset cifar100"),
        (
            vit_of_torchvision,
            "old.t7 has weights of torchvision's ViT, not of the original scripts",
            "use it as it is: vitctl train --net vit_timm:patch_size=4,embed_dim=128,depth=1,num_heads=2,mlp_ratio=0.5 --s",
        ),
        (
            vit_of_vitctl,
            "old.t7 has weights of vitctl's vit, not of the original scripts",
            "use it as it is: vitctl train --net vit --pretrained old.t7",
        ),
        (lambda: {"x": torch.ones(1)}, "unknown: x", "use the --net, --patch, --size, --dataset and --convkernel that"),
    ],
)
def test_the_hint_says_what_the_file_is(
    make: Callable[[], State], message: str, hint: str, refused: Refused, tmp_path: Path
) -> None:
    torch.save({"net": make()}, tmp_path / "old.t7")
    error = refused("convert", "old.t7", "--net", "vit", "-o", "new.pt")
    assert message in error and f"hint: {hint}" in error


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: made("vit"), "convert it: vitctl convert old.t7 --net vit -o FILE.pt"),
        (lambda: made("vit_tiny"), "convert it: vitctl convert old.t7 --net vit_tiny -o FILE.pt"),
        (lambda: made("cait"), "convert it: vitctl convert old.t7 --net cait -o FILE.pt"),
        (lambda: made_until_2022(), "convert it: vitctl convert old.t7 --net vit -o FILE.pt"),
        (cifar100_vit, "convert it: vitctl convert old.t7 --net vit --dataset cifar100 -o FILE.pt"),
        (vit_of_torchvision, "use it to start a run: vitctl train --net vit_timm:patch_size=4,embed_dim=128"),
        (lambda: {"x": torch.ones(1)}, "use it to start a run: vitctl train --net NAME --pretrained old.t7"),
    ],
)
def test_eval_suggests_convert_only_if_it_works(
    make: Callable[[], State], hint: str, cli: Cli, refused: Refused, tmp_path: Path
) -> None:
    torch.save({"model": make(), "args": argparse.Namespace(lr=1)}, tmp_path / "old.t7")
    error = refused("eval", "old.t7")
    assert f"hint: {hint}" in error
    if "vitctl convert" in hint:
        assert cli(*hint.partition(": vitctl ")[2].split()).code == 0


@pytest.mark.slow
def test_eval_runs_the_checkpoint_on_cifar10(cli: Cli, real_cifar10: Path) -> None:
    converted(cli, "vit_tiny", {"net": made("vit_tiny"), "acc": 10.0, "epoch": 0})
    scores = cli("eval", "new.pt", "--limit", 100, "--json")
    assert scores.code == 0, scores.err
    assert scores.json()["images"] == 100


def change(state: State, how: str) -> State:
    name = "transformer.layers.2.0.fn.to_qkv.weight"
    if how == "lacks":
        del state[name]
    elif how == "more":
        state["transformer.layers.9.0.norm.weight"] = torch.ones(512)
    elif how == "strange":
        state["classifier.weight"] = torch.ones(10, 512)
    elif how == "shape":
        state[name] = torch.randn(1024, 512)
    elif how == "nan":
        state[name][3, 4] = float("nan")
    elif how == "sparse":
        state[name] = state[name].to_sparse()
    elif how == "complex":
        state[name] = state[name].to(torch.complex64)
    elif how == "whole":
        state[name] = state[name].to(torch.int64)
    elif how == "patch":
        state["pos_embedding"] = torch.randn(1, 257, 512)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lacks", "missing: blocks.2.attn.qkv.weight"),
        ("more", "unknown: transformer.layers.9.0.norm.weight"),
        ("strange", "unknown: classifier.weight"),
        ("shape", "to_qkv.weight has shape [1024, 512], but --net vit with these options needs [1536, 512]"),
        ("patch", "pos_embedding has shape [1, 257, 512]"),
        ("nan", "to_qkv.weight contains NaN or infinity"),
        ("sparse", "to_qkv.weight is sparse, not a dense tensor of real numbers"),
        ("complex", "to_qkv.weight is complex64, not a dense tensor of real numbers"),
        ("whole", "to_qkv.weight has the wrong type int64"),
    ],
)
def test_every_tensor_is_accounted_for(refused: Refused, tmp_path: Path, how: str, message: str) -> None:
    torch.save({"net": change(made("vit"), how)}, tmp_path / "old.t7")
    error = refused("convert", "old.t7", "--net", "vit", "-o", "new.pt")
    assert message in error and "old.t7" in error
    assert not (tmp_path / "new.pt").exists()


def test_masks_other_than_those_of_the_scripts_are_refused(refused: Refused, tmp_path: Path) -> None:
    state = made("swin")
    name = "stage1.layers.0.1.attention_block.fn.fn.left_right_mask"
    state[name] = state[name].T.roll(1, 0)
    torch.save({"net": state}, tmp_path / "old.t7")
    assert f"{name} is not the mask of --net swin" in refused("convert", "old.t7", "--net", "swin", "-o", "new.pt")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.t7", "--net", "vit"], "nowhere.t7 not found"),
        (["old.t7", "--net", "vitt"], "did you mean vit"),
        (["old.t7", "--net", "cct_2"], "--net cct_2 is not a network of the original scripts"),
        (["old.t7", "--net", "vit", "--dataset", "cifar1000"], "did you mean cifar100"),
        (["old.t7", "--net", "vit", "--patch", 5], "use --patch 1, 2, 4, 8"),
        (["old.t7", "--net", "mobilevit"], "accepted only multiples of 64 px"),
        (["old.t7", "--net", "res18", "--size", 48], "converts only at 32 px"),
        (["old.t7", "--net", "mlpmixer", "--size", 64], "used 32 px"),
        (["old.t7", "--net", "vgg", "--size", 64], "accepted only 32 to 63 px"),
        (["old.t7", "--net", "vit", "-o", "no/new.pt"], "no such folder"),
        (["old.t7", "--net", "vit", "-o", "old.t7"], "--output old.t7 is the file to convert"),
        (["old.t7", "--net", "vit", "-o", "text.t7"], "--output text.t7 already exists"),
        (["old.t7", "--net", "vit", "-o", "."], "--output . is a folder"),
        (["old.t7", "--net", "vit", "--convkernel", 3], "--net vit has no option kernel_size"),
        (["text.t7", "--net", "vit"], "is damaged or not a weights file"),
        (["code.t7", "--net", "vit"], "has pickled objects"),
    ],
)
def test_bad_requests_are_refused(refused: Refused, tmp_path: Path, argv: list[object], message: str) -> None:
    torch.save({"net": {"a": torch.ones(1)}}, tmp_path / "old.t7")
    (tmp_path / "text.t7").write_text("weights")
    torch.save(nn.Linear(1, 1), tmp_path / "code.t7")
    argv = argv if "-o" in argv else [*argv, "-o", "new.pt"]
    assert message in refused("convert", *argv)
    assert not (tmp_path / "new.pt").exists()
