"""Weights files of other programs: each gives the logits of the network that wrote it, and none runs code."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.models.oracles import perturbed
from vitctl.errors import RequestError
from vitctl.models import build_model, find_model
from vitctl.models.pretrained import load_pretrained
from vitctl.models.state_files import read_state, without_prefix

State = dict[str, Tensor]

NET = "vit"
OPTIONS = find_model(NET).resolve_options({"embed_dim": 16, "depth": 2, "num_heads": 2, "head_dim": 8}, "--net vit")


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(NET, OPTIONS, img_size=16, in_chans=3, num_classes=10).eval()


def load(path: Path) -> tuple[nn.Module, str]:
    model = small(seed=1)
    return model, load_pretrained(model, NET, OPTIONS, path, img_size=16, in_chans=3)


def assert_same_logits(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], **tolerance: float
) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), **tolerance or {"atol": 1e-5, "rtol": 1e-5})


def under(prefix: str, state: State) -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def noise(state: State) -> State:
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


FILES: dict[str, Callable[[State], Any]] = {
    "state dict": lambda s: s,
    "net": lambda s: {"net": s, "acc": 91.2, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "nested": lambda s: {"model": {"state_dict": s}, "epoch": 3},
    "DDP": lambda s: {"state_dict": under("module.", s)},
    "torch.compile": lambda s: under("_orig_mod.", s),
    "DDP of torch.compile": lambda s: {"state_dict": under("module._orig_mod.", s)},
    "torch.compile of DDP": lambda s: {"state_dict": under("_orig_mod.module.", s)},
    "wrapped three times": lambda s: {"model": under("module._orig_mod.net.", s)},
    "head outside of the backbone": lambda s: {
        ("model." if name.startswith("head.") else "model.backbone.") + name: tensor for name, tensor in s.items()
    },
    "Lightning": lambda s: {
        "state_dict": {**under("model.", s), "criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": {"lr": 1e-3, "out": pathlib.Path("runs")},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    },
    "Lightning of torch.compile": lambda s: {"state_dict": under("net._orig_mod.", s)},
    "Lightning with an average": lambda s: {
        "state_dict": {**under("model.", noise(s)), **under("ema_model.module.", s)}
    },
    "Lightning with a teacher": lambda s: {"state_dict": {**under("student.", s), **under("teacher.", noise(s))}},
    "timm's train.py": lambda s: {
        "epoch": 5,
        "arch": "vit",
        "state_dict": s,
        "optimizer": {},
        "version": 2,
        "args": argparse.Namespace(model="vit", lr=1e-3, betas=[0.9, 0.99], data_dir=pathlib.Path("data")),
        "metric": 91.0,
    },
    "timm's train.py with EMA": lambda s: {"state_dict": noise(s), "state_dict_ema": s, "args": argparse.Namespace()},
    "torchvision's train.py": lambda s: {
        "model": noise(s),
        "epoch": 3,
        "model_ema": {"n_averaged": torch.tensor(7), **under("module.", s)},
        "args": argparse.Namespace(lr=0.1),
    },
    "EMA with counters": lambda s: {"model": noise(s), "ema": {"module": s, "decay": 0.999, "updates": 12}},
    "ema-pytorch": lambda s: {
        "ema": {"step": torch.tensor([3]), **under("online_model.", noise(s)), **under("ema_model.", s)}
    },
    "EMA without weights": lambda s: {"ema": {"decay": 0.9, "shadow_params": [torch.ones(2)]}, "model": s},
    "NumPy scalars": lambda s: {"model": s, "acc": np.float64(91.25), "epoch": np.int64(3), "ok": np.bool_(True)},
    "NumPy arrays": lambda s: {"model": s, "history": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "b"])},
    "times": lambda s: {"model": s, "at": datetime.datetime(2024, 2, 3), "took": datetime.timedelta(3)},
    "old FSDP": lambda s: under("_fsdp_wrapped_module.", s),
}
"""What programs save, given the weights to be loaded."""


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs_give_equal_logits(name: str, tmp_path: Path) -> None:
    theirs = perturbed(small())
    torch.save(FILES[name](theirs.state_dict()), tmp_path / "w.pt")
    ours, message = load(tmp_path / "w.pt")
    assert_same_logits(ours, theirs)
    assert "including the head, whose classes the file does not name" in message


def test_what_is_left_out_is_reported(tmp_path: Path) -> None:
    torch.save(FILES["Lightning"](small().state_dict()), tmp_path / "w.pt")
    assert load(tmp_path / "w.pt")[1].endswith("; without 1 tensor of other parts: criterion.weight")


def test_weights_of_an_averaged_model_are_loaded(tmp_path: Path) -> None:
    theirs = perturbed(small())
    average = AveragedModel(theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(perturbed(small(seed=2)))
    torch.save({"model": noise(theirs.state_dict()), "model_ema": average.state_dict()}, tmp_path / "w.pt")
    assert_same_logits(load(tmp_path / "w.pt")[0], average.module.eval())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float64, 1e-6)])
def test_other_precisions_are_converted(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    theirs = perturbed(small())
    torch.save({name: tensor.to(dtype) for name, tensor in theirs.state_dict().items()}, tmp_path / "w.pt")
    ours, _ = load(tmp_path / "w.pt")
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    assert_same_logits(ours, theirs, atol=tolerance, rtol=tolerance)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    state = small().state_dict()
    state["blocks.0.attn.qkv.weight"] = torch.ones_like(state["blocks.0.attn.qkv.weight"], dtype=torch.int8)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"wrong type: blocks\.0\.attn\.qkv\.weight int8"):
        load(tmp_path / "w.pt")


def test_safetensors_and_old_pickles_are_read(tmp_path: Path) -> None:
    theirs = perturbed(small())
    safetensors.torch.save_file(under("module.", theirs.state_dict()), tmp_path / "w.safetensors")
    torch.save({"net": theirs.state_dict()}, tmp_path / "w.t7", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.t7"):
        assert_same_logits(load(tmp_path / name)[0], theirs)


def test_settings_of_hydra_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning stores OmegaConf's objects as they are; here, classes of the same names stand for them."""
    modules = {name: types.ModuleType(name) for name in ("omegaconf", "omegaconf.dictconfig", "omegaconf.nodes")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def fake(name: str, module: str) -> Any:
        cls = type(name, (), {"__module__": module})
        setattr(modules[module], name, cls)
        return cls()

    settings, value = fake("DictConfig", "omegaconf.dictconfig"), fake("AnyNode", "omegaconf.nodes")
    value.__dict__ |= {"_val": 3, "type": Any, "kinds": (dict, list, int)}
    settings.__dict__ |= {"_content": {"lr": value}}
    theirs = perturbed(small())
    torch.save({"state_dict": under("net.", theirs.state_dict()), "hyper_parameters": settings}, tmp_path / "w.ckpt")
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert_same_logits(load(tmp_path / "w.ckpt")[0], theirs)
    assert not any(name.startswith("omegaconf") for name in sys.modules)


# -- prefixes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "stripped", "others"),
    [
        ({"a.x", "y"}, {"a.x", "y"}, set()),
        ({"net.a.x", "net.y"}, {"a.x", "y"}, set()),
        ({"net.a.x", "net.y", "net.z"}, {"a.x", "y", "z"}, set()),
        ({"m.net.a.x", "m.y", "loss.w"}, {"a.x", "y"}, {"loss.w"}),
        ({"net.a.x", "y", "q"}, {"a.x", "y"}, {"q"}),
        ({"a.x", "y", "ema.a.x", "ema.y"}, {"a.x", "y", "ema.a.x", "ema.y"}, set()),
        ({"net.a.x", "a.x"}, {"a.x", "net.a.x"}, set()),
        ({"other", "names.x"}, {"other", "names.x"}, set()),
    ],
)
def test_a_prefix_is_stripped_if_more_names_match(names: set[str], stripped: set[str], others: set[str]) -> None:
    tensors = {name: torch.ones(1) for name in names}
    found, left = without_prefix(tensors, {"a.x", "y"}.__contains__)
    assert (found.keys(), set(left)) == (stripped, others)


def test_a_network_whose_own_names_have_a_prefix_keeps_them() -> None:
    own = nn.Sequential(OrderedDict(model=nn.Linear(1, 1), head=nn.Linear(1, 1))).state_dict()
    assert without_prefix(own, own.__contains__) == (dict(own), [])
    assert without_prefix(under("module.model.", own), own.__contains__) == (dict(own), [])


# -- files that are refused --------------------------------------------------------------------------------------------


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Harmless(argparse.Namespace):
    """A class that torch would have to import."""


@pytest.mark.parametrize("where", ["alone", "in the settings", "in an array", "as an argument of a scalar"])
def test_no_code_in_a_file_is_run(where: str, tmp_path: Path) -> None:
    code, state = Runs(tmp_path / "ran"), small().state_dict()
    content: dict[str, Any] = {
        "alone": {"model": state, "code": code},
        "in the settings": {"model": state, "args": argparse.Namespace(lr=1, code=code)},
        "in an array": {"model": state, "history": np.array([code], dtype=object)},
        "as an argument of a scalar": {"model": state, "hook": eval, "out": Harmless(lr=1)},
    }
    torch.save(content[where], tmp_path / "w.pt")
    with pytest.raises(RequestError, match="has pickled objects") as info:
        read_state(tmp_path / "w.pt", "--pretrained w.pt")
    assert not (tmp_path / "ran").exists()
    assert "torch.save(model.state_dict(), FILE)" in info.value.hint
    torch.load(tmp_path / "w.pt", weights_only=False)  # the file does run code for those who allow it
    assert (tmp_path / "ran").exists() == (where in ("alone", "in the settings", "in an array"))


def test_the_classes_that_are_not_loaded_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"run code: torch\.nn\.modules\.linear\.Linear"):
        read_state(tmp_path / "w.pt", "w.pt")


def test_the_list_of_allowed_classes_does_not_outlive_the_reading(tmp_path: Path) -> None:
    torch.save({"model": small().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    read_state(tmp_path / "w.pt", "w.pt")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(RequestError, match="has no state dict"):
        read_state(tmp_path / "w.pt", "w.pt")


def torchscript(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(2, 2),)), path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "is an HDF5 file, as Keras writes it"),
        ("w.gguf", b"GGUF\x03" + bytes(40), "is a GGUF file"),
        ("w.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("w.pt", b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "is a JSON file"),
        ("w.tar.gz", b"\x1f\x8b\x08" + bytes(40), "is a compressed file"),
        ("w.onnx", b"\x08\x08\x12\x07pytorch", "is an ONNX file"),
        ("flax_model.msgpack", b"\x82\xa6params", "is a Flax file"),
        ("w.pt", torchscript, "is a TorchScript program"),
        ("w.pt2", exported, "is a program of torch.export"),
        ("w.pt", b"other", "is damaged or not a weights file"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_other_kinds_of_files_are_named(
    name: str, content: bytes | Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    with pytest.raises(RequestError, match=message) as info:
        read_state(path, "--pretrained FILE")
    assert info.value.hint.startswith(("use ", "run git lfs pull", "save only the weights"))
