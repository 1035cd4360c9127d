"""Pretrained weights: conversion by timm, frozen backbones, downloads and error messages."""

from __future__ import annotations

import itertools
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import constants
from PIL import Image
from torch import nn

from tests.conftest import TINY, Cli
from tests.models.oracles import perturbed
from vitctl.errors import RequestError
from vitctl.models import build_model, find_model, pretrained
from vitctl.models.heads import freeze_backbone, head_names, train_head
from vitctl.models.pretrained import load_pretrained, locate
from vitctl.training.checkpoint import load_checkpoint

Refused = Callable[..., str]

NET = "timm/test_vit"
RUN = ["train", "--dataset", "digits", "--limit-train", 40, "--limit-test", 20, "--bs", 20, "--size", 32]
HUB = "models--timm--test_vit.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a safetensors file of weights of timm's ``test_vit`` for 160-px colour images and 1,000 classes."""
    torch.manual_seed(11)
    model = timm.create_model("test_vit")
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return path


def loaded(path: Path, net: str = NET, img_size: int = 32, in_chans: int = 3, classes: int = 10, **options: Any) -> Any:
    torch.manual_seed(0)
    model = build_model(net, options, img_size=img_size, in_chans=in_chans, num_classes=classes)
    before = torch.get_rng_state()
    message = load_pretrained(model, net, options, path, img_size=img_size, in_chans=in_chans)
    assert torch.equal(torch.get_rng_state(), before)
    return model.eval(), message


@pytest.mark.parametrize(
    ("img_size", "in_chans", "options"), [(160, 3, {}), (32, 3, {}), (48, 1, {}), (32, 3, {"patch_size": 8})]
)
def test_weights_match_those_that_timm_converts(
    weights: Path, img_size: int, in_chans: int, options: dict[str, Any]
) -> None:
    ours, message = loaded(weights, NET, img_size, in_chans, **options)
    theirs = timm.create_model(
        "test_vit",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(weights)},
        img_size=img_size,
        in_chans=in_chans,
        num_classes=10,
        **options,
    )
    initial = build_model(NET, options, img_size=img_size, in_chans=in_chans, num_classes=10)
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(ours.state_dict()[name], tensor), name
            assert not torch.equal(initial.state_dict()[name], tensor), name
    assert ", with a new head: the file's head has 1000 classes" in message
    assert ("; positions resampled from 10x10 to " in message) == (img_size != 160)
    assert ("; patches resampled from 16 to 8 px" in message) == bool(options)


def test_position_embeddings_are_resampled(weights: Path) -> None:
    model, _ = loaded(weights)
    assert model.pos_embed.shape == (1, 5, model.embed_dim)


def test_weights_that_are_not_finite_are_refused(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    assert cli("train", *TINY, "--max-steps", 1, "--name", "r").code == 0
    state = load_checkpoint(tmp_path / "runs/r/checkpoints/last.pt")["model"]
    name = next(reversed(state))
    state[name].view(-1)[0] = torch.nan
    torch.save(state, "bad.pt")
    said = refused("train", *TINY, "--pretrained", "bad.pt", "--max-steps", 1)
    assert f"bad.pt: {name} has values that are not finite" in said


def test_a_head_for_the_same_number_of_classes_is_loaded(weights: Path) -> None:
    model, message = loaded(weights, classes=1000)
    assert torch.equal(model.head.weight, safetensors.torch.load_file(weights)["head.weight"])
    assert "including the head" in message


@pytest.mark.parametrize("key", [None, "model", "net", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files_can_be_loaded(weights: Path, tmp_path: Path, key: str | None, prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in safetensors.torch.load_file(weights).items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "w.pt")
    ours, _ = loaded(tmp_path / "w.pt")
    theirs, _ = loaded(weights)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


def test_networks_for_fine_tuning_load_weights_of_timm(tmp_path: Path) -> None:
    """Row ``vit_small_timm`` loads timm's ViT-Small/16 for 384 px."""
    torch.manual_seed(1)
    state = timm.create_model("vit_small_patch16_384").state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    options = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0}
    options |= {"dropout": 0.1, "drop_path_rate": 0.1}
    ours, _ = loaded(tmp_path / "w.safetensors", "vit_small_timm", 64, 1, **options)
    theirs = timm.create_model(
        "vit_small_patch16_384",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors"), "custom_load": False},
        img_size=64,
        in_chans=1,
        num_classes=10,
    )
    theirs.load_state_dict({**theirs.state_dict(), "head.weight": ours.head.weight, "head.bias": ours.head.bias})
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)


# -- through the command line ----------------------------------------------------------------------------------------


def test_a_run_starts_from_a_file_and_resumes_without_it(cli: Cli, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    shutil.copy(weights, file)
    first = cli(*RUN, "--net", NET, "--pretrained", file, "--lr", 0, "--max-steps", 2, "--name", "r")
    assert first.code == 0, first.err
    assert f"loaded pretrained weights from {file}, with a new head" in first.err
    content = torch.load("runs/r/checkpoints/last.pt", weights_only=True)
    expected, _ = loaded(weights, in_chans=1)
    assert torch.equal(content["model"]["blocks.0.attn.qkv.weight"], expected.blocks[0].attn.qkv.weight)
    assert content["config"]["pretrained"] == str(file)
    file.unlink()
    again = cli("train", "--resume", "runs/r", "--max-steps", 4, "--pretrained", file, "--json")
    assert again.code == 0, again.err
    assert again.json()["step"] == 4 and "pretrained weights" not in again.err
    assert cli("eval", "runs/r").code == 0


def test_weights_of_a_run_can_be_loaded(cli: Cli, refused: Refused) -> None:
    net = "cct_2:embed_dim=16,depth=1,conv_width=8"
    assert cli(*RUN, "--net", net, "--max-steps", 2, "--name", "first").code == 0
    before = torch.load("runs/first/checkpoints/last.pt", weights_only=True)["model"]
    file = "runs/first/checkpoints/last.pt"
    second = cli(*RUN, "--net", net, "--pretrained", file, "--lr", 0, "--max-steps", 1, "--name", "second")
    assert second.code == 0 and "including the head" in second.err
    after = torch.load("runs/second/checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    error = refused(*RUN, "--net", "cct_2:embed_dim=16,depth=2,conv_width=8", "--pretrained", file)
    assert "does not fit --net cct_2" in error and "missing: blocks.1." in error
    error = refused(*RUN, "--net", "cct_2:embed_dim=32,depth=1,conv_width=8", "--pretrained", file)
    assert "wrong shape: pos_embed [1, 64, 16] instead of [1, 64, 32]" in error and "more" in error


def test_the_hint_for_weights_of_a_run_names_its_network(cli: Cli, refused: Refused) -> None:
    net = "cct_2:embed_dim=16,depth=1,conv_width=8"
    assert cli(*RUN, "--net", net, "--max-steps", 1, "--name", "first").code == 0
    error = refused(*RUN, "--net", "vit_tiny", "--pretrained", "runs/first")
    (flags,) = re.findall("hint: use (--net .*)", error)
    assert flags == "--net cct_2:embed_dim=16,depth=1,conv_width=8 --size 32"
    assert cli(*RUN, *flags.split(), "--pretrained", "runs/first", "--max-steps", 1).code == 0


@pytest.mark.parametrize("folder", ["runs/first", "runs/first/", "hf"])
def test_a_folder_with_weights_can_be_given(folder: str, cli: Cli, tmp_path: Path) -> None:
    net = "cct_2:embed_dim=16,depth=1,conv_width=8"
    assert cli(*RUN, "--net", net, "--max-steps", 2, "--name", "first").code == 0
    before = torch.load("runs/first/checkpoints/last.pt", weights_only=True)["model"]
    (tmp_path / "hf").mkdir()
    safetensors.torch.save_file(before, "hf/model.safetensors")
    argv = [*RUN, "--net", net, "--pretrained", folder, "--lr", 0]
    run = cli(*argv, "--max-steps", 1, "--name", "second")
    assert run.code == 0 and "including the head" in run.err, run.err
    after = torch.load("runs/second/checkpoints/last.pt", weights_only=True)["model"]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    shutil.rmtree("runs/first")
    again = cli("train", "--resume", "runs/second", "--pretrained", folder, "--max-steps", 2)
    assert again.code == 0, again.err


def test_a_run_without_a_checkpoint_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "runs/new/checkpoints").mkdir(parents=True)
    error = refused(*RUN, "--net", "cct_2", "--pretrained", "runs/new")
    assert "this run has no checkpoint yet" in error and f"vitctl train --resume {tmp_path}/runs/new" in error


# -- heads of other classes --------------------------------------------------------------------------------------------


def animals(folder: Path, *names: str) -> Path:
    """Make a folder of images of the classes ``names``."""
    for i, (split, name) in enumerate(itertools.product(("train", "test"), names)):
        (folder / split / name).mkdir(parents=True)
        for j in range(10):
            pixels = np.random.default_rng(100 * i + j).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f"{j}.png")
    return folder


def test_the_head_of_other_classes_is_replaced_although_their_number_is_equal(cli: Cli, tmp_path: Path) -> None:
    net = ["--net", "cct_2:embed_dim=16,depth=1,conv_width=8", "--size", 8, "--bs", 10, "--max-steps", 1, "--lr", 0]
    pets, cars = animals(tmp_path / "pets", "cat", "dog"), animals(tmp_path / "cars", "audi", "fiat")
    assert cli("train", "--dataset", pets, *net, "--name", "pets", "--seed", 1).code == 0
    run = cli("train", "--dataset", cars, *net, "--pretrained", "runs/pets", "--name", "cars", "--seed", 2)
    assert "with a new head: the file's head is for other classes: cat, dog" in run.err
    run = cli("train", "--dataset", pets, *net, "--pretrained", "runs/pets", "--name", "again", "--seed", 2)
    assert "including the head, from" in run.err
    theirs, other, same = (
        torch.load(f"runs/{name}/checkpoints/last.pt", weights_only=True)["model"] for name in ("pets", "cars", "again")
    )
    assert not torch.equal(other["head.weight"], theirs["head.weight"])
    assert torch.equal(same["head.weight"], theirs["head.weight"])
    assert torch.equal(other["blocks.0.norm1.weight"], theirs["blocks.0.norm1.weight"])


def test_an_export_names_its_classes_too(cli: Cli, tmp_path: Path) -> None:
    net = ["--net", "cct_2:embed_dim=16,depth=1,conv_width=8", "--size", 8, "--bs", 10, "--max-steps", 1, "--lr", 0]
    pets, cars = animals(tmp_path / "pets", "cat", "dog"), animals(tmp_path / "cars", "audi", "fiat")
    assert cli("train", "--dataset", pets, *net, "--name", "pets").code == 0
    assert cli("export", "runs/pets", "--format", "safetensors", "-o", "pets.safetensors").code == 0
    run = cli("train", "--dataset", cars, *net, "--pretrained", "pets.safetensors")
    assert "with a new head: the file's head is for other classes: cat, dog" in run.err, run.err
    run = cli("train", "--dataset", pets, *net, "--pretrained", "pets.safetensors")
    assert "including the head, from" in run.err, run.err


# -- other sizes of vitctl's own networks ------------------------------------------------------------------------------


def own(net: str, img_size: int, **options: Any) -> Any:
    resolved = find_model(net).resolve_options({"embed_dim": 32, **options}, f"--net {net}")
    return perturbed(build_model(net, resolved, img_size=img_size, in_chans=3, num_classes=10)).eval(), resolved


def resized(net: str, path: Path, img_size: int, patch_size: int | None = None, **options: Any) -> tuple[Any, Any, str]:
    """Return a network for 16-px images and 4-px patches, one of other sizes with its weights, and the message."""
    patches = {"patch_size": 4} if patch_size else {}
    theirs, _ = own(net, 16, **patches, **options)
    torch.save(theirs.state_dict(), path)
    ours, resolved = own(net, img_size, **({"patch_size": patch_size} if patch_size else {}), **options)
    return theirs, ours, load_pretrained(ours, net, resolved, path, img_size=img_size, in_chans=3)


VITS = {"vit": 1, "vit_small": 1, "dyt": 1, "cait": 0, "cct_2": 0, "cvt": 0, "vit_lite": 1}
"""Networks with learned positions, and their number of class tokens with a position."""


@pytest.mark.parametrize("net", VITS)
def test_positions_of_a_run_are_resampled_for_other_image_sizes(net: str, tmp_path: Path) -> None:
    patch = None if net == "cct_2" else 4
    theirs, ours, message = resized(net, tmp_path / "w.pt", 24, patch, depth=1)
    tokens = VITS[net]
    grid = theirs.pos_embed[:, tokens:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours.pos_embed[:, tokens:], expected)
    assert torch.equal(ours.pos_embed[:, :tokens], theirs.pos_embed[:, :tokens])
    same = [name for name, tensor in theirs.state_dict().items() if torch.equal(tensor, ours.state_dict()[name])]
    assert set(theirs.state_dict()) - set(same) == {"pos_embed"}
    assert "; positions resampled from 4x4 to 6x6" in message


@pytest.mark.parametrize("net", ["vit", "dyt", "simplevit", "cait", "cvt", "vit_lite", "convmixer"])
def test_patches_of_a_run_are_resampled_so_that_resized_patches_have_equal_tokens(net: str, tmp_path: Path) -> None:
    theirs, ours, message = resized(net, tmp_path / "w.pt", 32, 8, depth=1)
    x = torch.randn(2, 3, 16, 16)
    patches = rearrange(x, "b c (h p) (w q) -> (b h w) c p q", p=4, q=4)
    larger = F.interpolate(patches, size=(8, 8), mode="bicubic", antialias=True)
    enlarged = rearrange(larger, "(b h w) c p q -> b c (h p) (w q)", h=4, w=4)
    part = {"convmixer": "stem.0", "cvt": "tokenizer.convs.0", "vit_lite": "tokenizer.convs.0"}.get(net, "patch_embed")
    with torch.no_grad():
        expected = theirs.get_submodule(part)(x)
        torch.testing.assert_close(ours.get_submodule(part)(enlarged), expected, atol=1e-4, rtol=1e-4)
    assert "; patches resampled" in message


def test_normalised_patches_of_a_run_are_resampled_with_their_norm(tmp_path: Path) -> None:
    theirs, ours, _ = resized("vit_small", tmp_path / "w.pt", 32, 8, depth=1)
    normalised = torch.randn(5, 15, 4, 4)
    larger = F.interpolate(normalised, size=(8, 8), mode="bicubic", antialias=True)
    flat, larger_flat = (rearrange(each, "n c p q -> n (p q c)") for each in (normalised, larger))
    norm, embed = theirs.patch_embed.norm, ours.patch_embed
    with torch.no_grad():
        expected = theirs.patch_embed.proj(flat * norm.weight + norm.bias)
        actual = embed.proj(larger_flat * embed.norm.weight + embed.norm.bias)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_normalised_patches_without_a_bias_are_refused(tmp_path: Path) -> None:
    theirs, _ = own("vit_small", 16, patch_size=4, depth=1)
    ours, options = own("vit_small", 32, patch_size=8, depth=1)
    state = theirs.state_dict()
    del state["patch_embed.proj.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"missing: patch_embed\.proj\.bias"):
        load_pretrained(ours, "vit_small", options, tmp_path / "w.pt", img_size=32, in_chans=3)


def test_weights_of_a_run_at_the_same_size_are_not_changed(tmp_path: Path) -> None:
    theirs, ours, message = resized("vit_small", tmp_path / "w.pt", 16, 4, depth=1)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert "resampled" not in message


def test_a_mixer_of_a_run_is_refused_at_another_size(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"wrong shape: blocks\.0\.mlp_tokens"):
        resized("mlpmixer", tmp_path / "w.pt", 32, 4, depth=1)


@pytest.mark.parametrize("net", ["timm/test_resnet", "timm/test_vit", "cct_2:embed_dim=16,depth=1,conv_width=8"])
def test_a_frozen_backbone_does_not_change(net: str, cli: Cli) -> None:
    assert cli(*RUN, "--net", net, "--max-steps", 2, "--name", "first").code == 0
    file = "runs/first/checkpoints/last.pt"
    run = cli(*RUN, "--net", net, "--pretrained", file, "--freeze-backbone", "--epochs", 2, "--name", "f", "--json")
    assert run.code == 0, run.err
    assert " trained), " in run.err
    before = torch.load(file, weights_only=True)["model"]
    after = torch.load("runs/f/checkpoints/last.pt", weights_only=True)["model"]
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed and all(name.startswith(("head", "fc")) for name in changed)


def test_only_the_head_of_a_frozen_network_is_trained() -> None:
    model = build_model("timm/test_resnet", {}, img_size=32, in_chans=3, num_classes=10)
    freeze_backbone(model, "timm/test_resnet")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    train_head(model)
    assert model.fc.training
    assert not [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training]


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        ("vit", ["head"]),
        ("swin", ["head"]),
        ("res18", ["fc"]),
        ("mobilevit", ["head"]),
        ("timm/test_convnext", ["head.fc"]),
        ("timm/deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
    ],
)
def test_the_head_is_found(net: str, expected: list[str]) -> None:
    from vitctl.models import MODELS

    options = {name: option.default for name, option in MODELS[net].options.items()} if net in MODELS else {}
    with torch.device("meta"):
        model = build_model(net, options, img_size=32, in_chans=3, num_classes=10)
    assert head_names(model) == expected


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--net", "vit", "--pretrained", "true"], "no pretrained weights for --net vit"),
        (["--net", NET, "--pretrained", "nowhere.pt"], "--pretrained nowhere.pt"),
        (["--net", NET, "--pretrained", "."], "this folder has no weights"),
        (["--net", "cct_2", "--freeze-backbone"], "--pretrained FILE"),
        (["--net", "vit_timm", "--freeze-backbone", "--pretrained", "no"], "needs pretrained weights"),
        (["--net", "vit_timm", "--freeze-backbone", "--layer-decay", 0.5], "--layer-decay 0.5 does nothing"),
        (["--net", "vit_timm", "--layer-decay", 2], "--layer-decay 2 is too large"),
    ],
)
def test_mistakes_are_refused(refused: Refused, argv: list[object], text: str) -> None:
    assert text in refused(*RUN, *argv)


def damaged(kind: str, weights: Path, path: Path) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("weights")
    elif kind == "short":
        path.write_bytes(weights.read_bytes()[:5000])
    elif kind == "code":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "other":
        torch.save({"epoch": 3}, path)
    elif kind == "list":
        torch.save([torch.ones(1)], path)
    elif kind == "vgg":
        torch.save({"features.0.weight": torch.ones(2, 3, 3, 3)}, path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("empty", "is damaged or not a weights file"),
        ("text", "is damaged or not a weights file"),
        ("short", "is damaged: "),
        ("code", "has pickled objects"),
        ("other", "has no state dict at its top level or under ema, "),
        ("list", "contains a list instead of a state dict"),
        ("vgg", "does not fit --net timm/test_vit"),
    ],
)
def test_bad_files_are_refused_with_a_hint(
    refused: Refused, weights: Path, tmp_path: Path, kind: str, text: str
) -> None:
    damaged(kind, weights, tmp_path / "bad.pt")
    error = refused(*RUN, "--net", NET, "--pretrained", "bad.pt")
    assert text in error and "hint: " in error
    assert not (tmp_path / "runs").exists()


# -- the cache and the network ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_cached_weights_need_no_network_access(
    hub: Path, weights: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    snapshot = hub / HUB / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (hub / HUB / "refs").mkdir()
    (hub / HUB / "refs" / "main").write_text("a" * 40)
    shutil.copy(weights, snapshot / "model.safetensors")
    run = cli(*RUN, "--net", NET, "--pretrained", "true", "--max-steps", 1)
    assert run.code == 0 and "loaded pretrained weights" in run.err, run.err


def test_missing_network_access_is_reported_quickly(
    hub: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    start = time.monotonic()
    error = refused(*RUN, "--net", "vit_timm")
    assert time.monotonic() - start < 15  # the hub's client retries for 47 s
    assert "hf download timm/vit_base_patch16_384.augreg_in21k_ft_in1k model.safetensors" in error
    assert "--pretrained FILE" in error and "--pretrained false" in error and str(hub) in error


def test_a_server_that_never_responds_times_out(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PATIENCE", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        start = time.monotonic()
        assert not pretrained.reachable(f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert time.monotonic() - start < 3


def test_offline_mode_of_the_hub_is_respected(hub: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refused(*RUN, "--net", NET, "--pretrained", "true")


def test_weights_at_a_url_are_downloaded_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with serve({"/w.pth": b"weights"}) as server:
        found = pretrained._from_url("timm/x", f"{server}/w.pth")
        assert found.read_bytes() == b"weights" and found.parent == tmp_path / "checkpoints"
    assert pretrained._from_url("timm/x", f"{server}/w.pth") == found  # from the cache, as the server has stopped


def test_weights_are_downloaded_from_the_hub(hub: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = weights.read_bytes()
    with serve(
        {f"/timm/test_vit.r160_in1k/resolve/{ref}/model.safetensors": content for ref in ("main", "b" * 40)}
    ) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        path = locate(NET, "true")
    assert path.read_bytes() == content and hub in path.parents


class serve:
    """A context manager that serves files on loopback like the hub, and returns the URL."""

    def __init__(self, files: dict[str, bytes]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                content = files.get(self.path)
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.send_header("X-Repo-Commit", "b" * 40)
                self.send_header("ETag", '"' + "c" * 40 + '"')
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(files.get(self.path, b""))

            def log_message(self, *args: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_real_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the tests of this file from reaching the real hub."""
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    yield
