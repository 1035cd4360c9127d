"""Weights of other libraries: converted ones give the library's logits, others are named with a hint that works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.conftest import Cli
from tests.models.oracles import perturbed
from tests.models.test_weight_files import assert_same_logits, under
from vitctl.errors import RequestError
from vitctl.models import build_model, find_model
from vitctl.models.pretrained import load_pretrained

Refused = Callable[..., str]

SIZES = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
"""Options of every network here; heads are 8 wide, where most have 64."""

RUN = ["train", "--dataset", "digits", "--limit-train", 40, "--limit-test", 20, "--bs", 20, "--max-steps", 1]


def loaded(path: Path, net: str = "vit_timm", *, img_size: int = 16, in_chans: int = 3, **more: Any) -> tuple[Any, str]:
    """Return a network of :data:`SIZES` with the weights in ``path``, and what load_pretrained reports."""
    options = find_model(net).resolve_options({**SIZES, **more}, f"--net {net}")
    torch.manual_seed(0)
    model = build_model(net, options, img_size=img_size, in_chans=in_chans, num_classes=10).eval()
    before = torch.get_rng_state()
    message = load_pretrained(model, net, options, path, img_size=img_size, in_chans=in_chans)
    assert torch.equal(torch.get_rng_state(), before)
    return model, message


def hugging_face(folder: Path, kind: str = "ViTForImageClassification", **more: Any) -> Any:
    """Save a Vision Transformer with random weights as transformers does, and return it."""
    import transformers  # takes seconds

    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {"image_size": 16, "patch_size": 4, "num_labels": 10, "hidden_dropout_prob": 0.0, **more}
    config = (transformers.DeiTConfig if kind.startswith("DeiT") else transformers.ViTConfig)(**settings)
    model = perturbed(getattr(transformers, kind)(config)).eval()
    model.save_pretrained(folder)
    return model


def logits_of(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).logits


# -- Hugging Face ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net", ["vit_timm", "vit_small_timm", "timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224"]
)
def test_weights_of_hugging_face_give_equal_logits(net: str, tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path)
    ours, message = loaded(tmp_path / "model.safetensors", net)
    assert_same_logits(ours, logits_of(theirs))
    assert "including the head" in message and message.endswith("converted from Hugging Face's ViT")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,  # as transformers 5 names them in memory
        lambda state: {"state_dict": under("module.model.", state)},
        lambda state: {name: tensor.half() for name, tensor in state.items()},
    ],
    ids=["torch.save", "Lightning and DDP", "half"],
)
def test_weights_of_hugging_face_in_torch_files(wrapped: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path)
    torch.save(wrapped(theirs.state_dict()), tmp_path / "pytorch_model.bin")
    ours, _ = loaded(tmp_path / "pytorch_model.bin")
    assert_same_logits(ours, logits_of(theirs), atol=1e-2, rtol=1e-2)


def test_a_backbone_of_hugging_face_gets_a_new_head(tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path, "ViTModel")
    ours, message = loaded(tmp_path / "model.safetensors")
    assert_same_logits(lambda x: ours.forward_features(x), lambda x: theirs(x).last_hidden_state)
    assert "with a new head" in message and "pooler" not in message


def test_a_distilled_network_of_hugging_face_gives_equal_logits(tmp_path: Path) -> None:
    theirs = hugging_face(tmp_path, "DeiTForImageClassificationWithTeacher")
    ours, _ = loaded(tmp_path / "model.safetensors", "timm/deit_tiny_distilled_patch16_224")
    assert_same_logits(ours, logits_of(theirs))


def test_weights_of_hugging_face_are_resampled(tmp_path: Path) -> None:
    """They interpolate positions with bicubic filters too, but without antialiasing: that is equal when enlarging."""
    theirs = hugging_face(tmp_path)
    ours, message = loaded(tmp_path / "model.safetensors", img_size=32)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(x, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=1e-4)
    assert "positions resampled from 4x4 to 8x8" in message


def test_names_of_classes_in_config_json_decide_about_the_head(tmp_path: Path) -> None:
    labels = {i: f"animal {i}" for i in range(10)}
    hugging_face(tmp_path, id2label=labels, label2id={name: i for i, name in labels.items()})
    options = find_model("vit_timm").resolve_options(SIZES, "--net vit_timm")
    for names, head in ((list(labels.values()), "including the head, from"), (list("abcdefghij"), "with a new head")):
        model = build_model("vit_timm", options, img_size=16, in_chans=3, num_classes=10)
        initial = model.head.weight.clone()
        message = load_pretrained(
            model, "vit_timm", options, tmp_path / "model.safetensors", img_size=16, in_chans=3, classes=names
        )
        assert head in message
        assert torch.equal(model.head.weight, initial) == ("new" in head)


def test_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    hugging_face(tmp_path)
    with pytest.raises(RequestError, match="4 attention heads instead of 2") as info:
        loaded(tmp_path / "model.safetensors", num_heads=2)
    assert "num_heads=4" in info.value.hint


# -- torchvision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_weights_of_torchvision_give_equal_logits(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = perturbed(torchvision.models.VisionTransformer(16, 4, 2, 4, 32, 64, num_classes=10)).eval()
    torch.save({"model": under(prefix, theirs.state_dict())}, tmp_path / "w.pth")
    ours, message = loaded(tmp_path / "w.pth")
    assert_same_logits(ours, theirs)
    assert message.endswith("converted from torchvision's ViT")


# -- Google's .npz -----------------------------------------------------------------------------------------------------


def numpy_vit(path: Path, *, prefix: str = "", stacked: bool = False, classes: int = 10) -> nn.Module:
    """Save a ViT as Google's Flax code names and shapes it, and return timm's network with the same weights."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=classes, **SIZES)
    state = {name: tensor.numpy() for name, tensor in perturbed(model).state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "pos_embedding" if stacked else "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    attention, mlp, norm = (0, 0, 1) if stacked else (1, 3, 2)
    blocks = []
    for i in range(2):
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in state.items() if f"blocks.{i}." in name}
        block = {}
        for part, weight, bias in zip(
            ("query", "key", "value"),
            own["attn.qkv.weight"].reshape(3, 4, 8, 32),
            own["attn.qkv.bias"].reshape(3, 4, 8),
            strict=True,
        ):
            block[f"MultiHeadDotProductAttention_{attention}/{part}/kernel"] = weight.transpose(2, 0, 1)
            block[f"MultiHeadDotProductAttention_{attention}/{part}/bias"] = bias
        block[f"MultiHeadDotProductAttention_{attention}/out/kernel"] = own["attn.proj.weight"].T.reshape(4, 8, 32)
        block[f"MultiHeadDotProductAttention_{attention}/out/bias"] = own["attn.proj.bias"]
        for theirs, ours in ((0, "norm1"), (norm, "norm2")):
            block[f"LayerNorm_{theirs}/scale"] = own[f"{ours}.weight"]
            block[f"LayerNorm_{theirs}/bias"] = own[f"{ours}.bias"]
        for j in (0, 1):
            block[f"MlpBlock_{mlp}/Dense_{j}/kernel"] = own[f"mlp.fc{j + 1}.weight"].T
            block[f"MlpBlock_{mlp}/Dense_{j}/bias"] = own[f"mlp.fc{j + 1}.bias"]
        blocks.append(block)
    for name in blocks[0]:
        if stacked:
            arrays[f"Transformer/encoderblock/{name}"] = np.stack([block[name] for block in blocks])
        else:
            arrays |= {f"Transformer/encoderblock_{i}/{name}": block[name] for i, block in enumerate(blocks)}
    np.savez(path, **{prefix + name: value for name, value in arrays.items()})
    return model.eval()


@pytest.mark.parametrize("net", ["vit_timm", "timm/vit_small_patch16_224"])
@pytest.mark.parametrize(("prefix", "stacked"), [("", False), ("opt/target/", False), ("params/", True)])
def test_numpy_weights_of_google_give_equal_logits(net: str, prefix: str, stacked: bool, tmp_path: Path) -> None:
    theirs = numpy_vit(tmp_path / "w.npz", prefix=prefix, stacked=stacked)
    ours, message = loaded(tmp_path / "w.npz", net)
    assert_same_logits(ours, theirs)
    assert "including the head" in message and message.endswith("converted from Google's .npz")


def test_numpy_weights_of_google_are_adapted(tmp_path: Path) -> None:
    theirs: Any = numpy_vit(tmp_path / "w.npz", classes=21)
    ours, message = loaded(tmp_path / "w.npz", img_size=32, in_chans=1)
    assert "with a new head: the file's head has 21 classes" in message
    expected = theirs.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(ours.patch_embed.proj.weight, expected)
    assert ours.pos_embed.shape == (1, 65, 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"depth": 1}, "2 blocks instead of 1"),
        ({"depth": 3}, "2 blocks instead of 3"),
        ({"num_heads": 2}, "4 attention heads instead of 2"),
        ({"embed_dim": 64}, "must match"),
    ],
)
def test_numpy_weights_of_another_network_are_refused(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    numpy_vit(tmp_path / "w.npz")
    with pytest.raises(RequestError, match=message) as info:
        loaded(tmp_path / "w.npz", **more)
    assert "embed_dim=32,depth=2,num_heads=4,mlp_ratio=2.0 --size 16" in info.value.hint


@pytest.mark.parametrize("net", ["res18", "timm/test_resnet", "dyt"])
def test_numpy_weights_are_refused_for_networks_without_a_loader(net: str, refused: Refused, tmp_path: Path) -> None:
    numpy_vit(tmp_path / "w.npz")
    error = refused(*RUN, "--net", net, "--pretrained", "w.npz", "--size", 32)
    assert f"(Google's ViT) does not fit --net {net}: it is another network" in error


def test_numpy_archives_with_other_content_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "small.npz", x=np.ones(3))
    for name, message in (("other", "has arrays other than"), ("objects", "is damaged"), ("small", "is compressed")):
        with pytest.raises(RequestError, match=message):
            loaded(tmp_path / f"{name}.npz")


# -- weights for another network ---------------------------------------------------------------------------------------


def typed(error: str) -> list[str]:
    """Return the flags in the hint of an error."""
    (flags,) = re.findall(r"hint: use (--net .*)", error)
    return shlex.split(flags)


def torchvision_vit(path: Path) -> None:
    torch.save(torchvision.models.VisionTransformer(16, 4, 2, 2, 128, 64).state_dict(), path)


def timm_vit(path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=1).state_dict(), path)


def google_vit(path: Path) -> None:
    numpy_vit(path)


@pytest.mark.parametrize("save", [google_vit, torchvision_vit, timm_vit])
@pytest.mark.parametrize("net", ["vit:depth=1,embed_dim=32", "vit_timm:depth=1,embed_dim=32,num_heads=1"])
def test_hints_name_a_network_that_loads_the_weights(
    save: Callable[[Path], None], net: str, cli: Cli, refused: Refused, tmp_path: Path
) -> None:
    save(tmp_path / "w.npz")
    error = refused(*RUN, "--net", net, "--pretrained", "w.npz", "--size", 32)
    run = cli(*RUN, *typed(error), "--pretrained", "w.npz")
    assert run.code == 0, run.err
    assert "loaded pretrained weights" in run.err


def test_hints_know_the_heads_of_hugging_face(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf")
    error = refused(*RUN, "--net", "vit", "--pretrained", "hf", "--size", 16)
    assert "(weights of Hugging Face's ViT) does not fit --net vit" in error
    run = cli(*RUN, *typed(error), "--pretrained", "hf")
    assert run.code == 0 and f"from {tmp_path}/hf/model.safetensors" in run.err, run.err


def test_tensors_of_odd_shapes_are_refused(tmp_path: Path) -> None:
    state = torchvision.models.VisionTransformer(16, 4, 1, 2, 128, 64).state_dict()
    layer = "encoder.layers.encoder_layer_0"
    for name in (
        "class_token",
        "encoder.pos_embedding",
        "conv_proj.weight",
        f"{layer}.mlp.0.weight",
        f"{layer}.ln_1.bias",
    ):
        torch.save({**state, name: torch.tensor(1.0)}, tmp_path / "w.pt")
        with pytest.raises(RequestError):
            loaded(tmp_path / "w.pt")


def test_arrays_of_odd_shapes_are_refused(tmp_path: Path) -> None:
    numpy_vit(tmp_path / "w.npz")
    arrays = dict(np.load(tmp_path / "w.npz"))
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
    for name in ("embedding/kernel", f"{attention}/query/kernel", f"{attention}/out/kernel"):
        np.savez(tmp_path / "w.npz", **{**arrays, name: np.ones(3)})
        with pytest.raises(RequestError):
            loaded(tmp_path / "w.npz")


NAMES = {
    "CLIP weights": ["visual.transformer.resblocks.0.ln_1.weight", "visual.proj", "logit_scale"],
    "CLIP or SigLIP weights of Hugging Face": ["vision_model.encoder.layers.0.self_attn.q_proj.weight"],
    "weights of a Swin Transformer or BEiT": ["layers.0.blocks.0.attn.relative_position_bias_table"],
    "DINOv2 weights of Hugging Face": ["embeddings.mask_token", "encoder.layer.0.layer_scale1.lambda1"],
    "weights of a masked autoencoder with its decoder": ["mask_token", "decoder_blocks.0.attn.qkv.weight"],
    "weights of vit-pytorch": ["transformer.layers.0.0.to_qkv.weight", "to_patch_embedding.2.weight"],
    "weights of a ResNet": ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight"],
    "weights of a ConvNeXt": ["stages.0.0.dwconv.weight"],
    "weights of a network of torchvision": ["features.0.0.weight", "classifier.1.weight"],
    "weights of a language model": ["model.embed_tokens.weight", "lm_head.weight"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_weights_that_are_not_converted_are_named(kind: str, tmp_path: Path) -> None:
    torch.save({name: torch.ones(2) for name in NAMES[kind]}, tmp_path / "w.pt")
    with pytest.raises(RequestError) as info:
        loaded(tmp_path / "w.pt", "vit", head_dim=8)
    assert f"w.pt ({kind}) does not fit --net vit" in info.value.message
    assert info.value.hint == "use weights of --net vit, or --pretrained false"
