"""Weight decay and Muon's matrices, for every network in the table and for some of timm's."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from vitctl.models import MODELS, build_model
from vitctl.optim.groups import NO_DECAY, hidden_matrices, param_groups, undecayed_names

TIMM = ["deit_tiny_distilled_patch16_224", "resnet18", "mobilevit_xxs", "xcit_nano_12_p16_224"]


def table_network(name: str) -> tuple[nn.Module, torch.Tensor]:
    entry = MODELS[name]
    options = entry.resolve_options({}, name)
    model = build_model(name, options, img_size=entry.img_size, in_chans=3, num_classes=10)
    return model, torch.randn(2, 3, entry.img_size, entry.img_size)


def timm_network(name: str) -> tuple[nn.Module, torch.Tensor]:
    model = timm.create_model(name, num_classes=10)
    size = model.default_cfg["input_size"]
    return model, torch.randn(2, *size)


@pytest.fixture(params=[*MODELS, *(f"timm/{name}" for name in TIMM)], scope="module")
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    name = request.param
    return timm_network(name.removeprefix("timm/")) if name.startswith("timm/") else table_network(name)


def layers_in_order_of_use(model: nn.Module, x: torch.Tensor) -> list[nn.Module]:
    """Return the linear and convolutional layers in the order in which an image passes them."""
    used: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: used.append(module))
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return used


def test_muon_updates_exactly_the_inner_layers(network: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = network
    hidden = hidden_matrices(model)
    names = {id(p): name for name, p in model.named_parameters()}
    used = layers_in_order_of_use(model, x)
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    heads = [layer for layer in layers if isinstance(layer, nn.Linear) and layer.out_features == 10]
    grouped = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert used[-1] in heads
    inner = {
        names[id(layer.weight)]
        for layer in layers
        if layer not in (used[0], *heads, *grouped) and min(layer.weight.flatten(1).shape) > 1
    }
    assert set(hidden) == inner
    parameters = dict(model.named_parameters())
    if not grouped and inner:  # a network of two layers has no inner ones
        assert sum(parameters[name].numel() for name in hidden) > 0.7 * sum(p.numel() for p in parameters.values())
    fused = {name for name in hidden if name.endswith("qkv.weight")}
    assert {name for name, parts in hidden.items() if parts == 3} == fused


def test_every_trained_parameter_is_in_one_group(network: tuple[nn.Module, torch.Tensor]) -> None:
    model, _ = network
    hidden = hidden_matrices(model)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for split in (False, True):
        groups = param_groups(model, 0.05, split_matrices=split)
        assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
        for group in groups:
            assert group["weight_decay"] == 0 or all(p.ndim >= 2 for p in group["params"])
            assert ("parts" in group) is split
            if split:
                assert all(hidden.get(names[id(p)], 0) == group["parts"] for p in group["params"])
    (group,) = param_groups(model, 0.05, decay_all=True)
    assert group["weight_decay"] == 0.05 and len(group["params"]) == len(names)


def test_parameters_without_decay_in_timm_have_none_here(network: tuple[nn.Module, torch.Tensor]) -> None:
    model, _ = network
    names = {id(p): name for name, p in model.named_parameters()}
    listed = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=listed)
    theirs = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    ours = undecayed_names(model)
    assert theirs <= ours
    for name in ours - theirs:  # only embeddings, temperatures and scales shaped to broadcast
        last = name.rpartition(".")[2]
        assert last in NO_DECAY or max(model.get_parameter(name).shape) == model.get_parameter(name).numel(), name


def test_frozen_parameters_are_in_no_group() -> None:
    model, _ = table_network("cct_2")
    model.head.requires_grad_(False)
    chosen = [p for group in param_groups(model, 0.05, split_matrices=True) for p in group["params"]]
    assert not any(p is q for p in chosen for q in model.head.parameters())
    assert len(chosen) == len(list(model.parameters())) - 2


class Others(nn.Module):
    """Layers that the networks above do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 8)
        self.stem = nn.Conv2d(3, 8, 3)
        self.grid_norm = nn.LayerNorm([4, 8])
        self.attention = nn.MultiheadAttention(8, 2)
        self.scale = nn.Parameter(torch.ones(1, 1, 8))
        self.free = nn.Parameter(torch.ones(8, 8))
        self.to_kv = nn.Linear(8, 32)
        self.pool = nn.Linear(8, 1)
        self.head = nn.Linear(8, 3)

    def no_weight_decay_keywords(self) -> set[str]:
        return {"free"}


def test_attention_modules_and_layers_listed_by_the_network() -> None:
    model = Others()
    assert hidden_matrices(model) == {
        "attention.in_proj_weight": 3,
        "attention.out_proj.weight": 1,
        "to_kv.weight": 2,
    }
    undecayed = undecayed_names(model)
    assert {"tokens.weight", "grid_norm.weight", "grid_norm.bias", "scale", "free", "head.bias"} <= undecayed
    assert not {"stem.weight", "pool.weight", "head.weight", "to_kv.weight", "attention.in_proj_weight"} & undecayed
