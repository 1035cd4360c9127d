"""``timm/NAME``: networks, figures and errors that agree with timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from tests.conftest import Cli
from vitctl.config import TrainConfig, resolve_config
from vitctl.models import build_model, find_model
from vitctl.models.timm_zoo import search
from vitctl.registry import Value, format_spec

Refused = Callable[..., str]

DIGITS = ["--dataset", "digits", "--limit-train", 40, "--limit-test", 20, "--bs", 20]

TEN: dict[str, tuple[int, dict[str, Value]]] = {
    "test_vit": (16, {}),
    "test_resnet": (8, {}),
    "test_efficientnet": (8, {}),
    "test_convnext": (32, {}),
    "test_mambaout": (8, {}),
    "test_nfnet": (8, {}),
    "test_maxvit": (32, {}),
    "levit_128s": (16, {}),
    "xcit_nano_12_p8_224": (8, {"embed_dim": 32, "depth": 1}),
    "swin_tiny_patch4_window7_224": (8, {"embed_dim": 24}),
}
"""A network of each of ten families, with the smallest image size that it accepts and options that make it small."""


def test_the_ten_networks_are_of_ten_families() -> None:
    assert len({find_model(f"timm/{name}").family for name in TEN}) == 10


@pytest.mark.parametrize("name", TEN)
def test_networks_train_and_evaluate_at_their_smallest_size(name: str, cli: Cli, tmp_path: Path) -> None:
    size, options = TEN[name]
    net = format_spec(f"timm/{name}", options)
    result = cli("train", *DIGITS, "--net", net, "--size", size, "--max-steps", 2, "--name", "t", "--json")
    assert result.code == 0, result.err
    summary = result.json()
    assert summary["step"] == 2 and summary["net"] == f"timm/{name}"
    assert summary["params"] == sum(
        p.numel() for p in build_model(f"timm/{name}", options, img_size=size, in_chans=1, num_classes=10).parameters()
    )
    assert "MFLOP per image" in result.err
    # The checkpoint itself identifies the network.
    scores = cli("eval", "runs/t/checkpoints/last.pt", "--limit", 20, "--json")
    assert scores.code == 0, scores.err
    assert scores.json()["loss"] == pytest.approx(
        json.loads((tmp_path / "runs/t/summary.json").read_text())["test_loss"], rel=1e-4
    )


def test_logits_match_timm() -> None:
    ours = build_model(
        "timm/test_vit", {"patch_size": 4, "drop_path_rate": 0.1}, img_size=20, in_chans=1, num_classes=7
    )
    theirs = timm.create_model("test_vit", img_size=20, in_chans=1, num_classes=7, patch_size=4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, 20, 20)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)
    assert ours.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


def test_patch_and_stem_are_timms_by_default() -> None:
    assert build_model("timm/test_vit", {}, img_size=32, in_chans=3, num_classes=10).patch_embed.patch_size == (16, 16)
    assert build_model("timm/resnet18", {}, img_size=32, in_chans=3, num_classes=10).conv1.stride == (2, 2)


def test_figures_match_timms_table() -> None:
    """With 1,000 classes, ViT-Tiny/16 has 5.7 M parameters and 1.26 GMAC, and ResNet-18 has 11.7 M and 1.82 GMAC."""
    entry = find_model("timm/vit_tiny_patch16_224")
    assert (entry.params + 193 * 990, entry.tokens, entry.img_size) == (5_717_416, 197, 224)
    assert entry.mflop == pytest.approx(2 * 1258, rel=0.01)
    resnet = find_model("timm/resnet18")
    assert (resnet.params + 513 * 990, resnet.tokens, resnet.batchnorm) == (11_689_512, 0, True)
    assert resnet.mflop == pytest.approx(2 * 1819, rel=0.01)
    assert find_model("timm/swin_tiny_patch4_window7_224").tokens == 56 * 56


@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050", "regnetx_002", "densenet121"])
def test_channels_last_images_give_the_same_logits(name: str) -> None:
    assert find_model(f"timm/{name}").channels_last == ("cpu",)
    model = build_model(f"timm/{name}", {}, img_size=32, in_chans=3, num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        logits = model(x.contiguous(memory_format=torch.channels_last))
    assert (logits - expected).norm() <= 1e-5 * expected.norm() and expected.norm() > 0


def test_only_given_options_are_kept() -> None:
    config = resolve_config({"dataset": "digits", "net": "timm/test_vit:patch_size=8,qkv_bias=no", "size": 32})
    assert config.net_options == {"patch_size": 8, "qkv_bias": False}
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert resolve_config({"dataset": "digits", "net": "timm/test_vit", "patch": 4, "size": 32}).net_options == {
        "patch_size": 4
    }
    assert config.pretrained == "false" and resolve_config({"dataset": "digits", "net": "timm/test_vit"}).size == 160


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--net", "timm/vit_tinny_patch16_224"], "did you mean timm/vit_tiny_patch16_224"),
        (["--net", "timm/vit_tiny"], "did you mean timm/vit_tiny_patch16_224"),
        (["--net", "timm/vit_tinny"], "did you mean timm/vit_tiny_patch16_224"),
        (["--net", "timm/renset18"], "did you mean timm/resnet18"),
        (["--net", "timm/test_vit", "--size", 40], "--size 40 does not work with --net timm/test_vit: patches of 16"),
        (["--net", "timm/test_vit", "--size", 40], "hint: use --size 32, 48, 64 or 80"),
        (["--net", "timm/"], "unknown --net 'timm/'"),
        (["--net", "timm/zzzzzzzz"], "hint: run vitctl list-models --timm '*vit*'"),
        (["--net", "timm/vit_tiny_patch16_224.augreg_in21"], "did you mean augreg_in21k"),
        (["--net", "timm/test_vit", "--size", 30], "hint: use --size 16, 32, 48 or 64"),
        (
            ["--net", "timm/test_vit", "--size", 32, "--patch", 5],
            "cannot use --net timm/test_vit:patch_size=5: patches",
        ),
        (["--net", "timm/test_vit:num_heads=5"], "hint: change or remove num_heads"),
        (["--net", "timm/test_vit:num_heads=5"], "cannot use --net timm/test_vit:num_heads=5: "),
        (["--net", "timm/test_vit:pach_size=8"], "did you mean patch_size"),
        (["--net", "timm/test_vit:drop_path_rate=1"], "less than 1"),
        (["--net", "timm/test_vit:global_pool=mean"], "'mean'"),
        (["--net", "timm/test_vit:depth=2.5"], "takes a whole number"),
        (["--net", "timm/resnet18", "--patch", 4], "--net timm/resnet18 has no option patch_size"),
        (["--net", "timm/resnet18", "--size", 32, "--micro-batch", 5], "BatchNorm needs the complete batch"),
        (["--net", "timm/resnet18", "--size", 32, "--bs", 1], "BatchNorm"),
        (["--net", "timm/vgg11", "--size", 8], "hint: use --size 32"),
    ],
)
def test_mistakes_are_refused_with_a_hint(refused: Refused, argv: list[object], text: str) -> None:
    assert text in refused("train", "--dataset", "digits", *argv)


def test_search_takes_patterns_with_and_without_prefix() -> None:
    names = search("vit_tiny*")
    assert "vit_tiny_patch16_224" in names and all(name.startswith("vit_tiny") for name in names)
    assert search("timm/vit_tiny*") == names


def test_a_run_with_a_network_of_timm_can_be_resumed(cli: Cli) -> None:
    run = ["train", *DIGITS, "--net", "timm/test_vit:patch_size=8", "--size", 16]
    complete = cli(*run, "--max-steps", 4, "--name", "complete", "--json").json()
    cli(*run, "--max-steps", 2, "--name", "short")
    again = cli(*("train", "--resume", "runs/short", "--max-steps", 4, "--net", "timm/test_vit:patch_size=8", "--json"))
    assert again.code == 0, again.err
    assert again.json()["step"] == complete["step"] == 4
