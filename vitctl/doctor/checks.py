"""Live checks: operations of a training step on a device, compared with float64 on the CPU, in the shapes that matter.

Each check runs in a process of its own, because some faults abort it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl import devices
from vitctl.benchmark.devices import generated_data
from vitctl.benchmark.parity import (
    TOLERANCES,
    arithmetic,
    logits_and_gradients,
    relative_difference,
    step_batch,
)
from vitctl.config import TrainConfig, resolve_config
from vitctl.models import MODELS, build_model, find_model
from vitctl.optim import OPTIMIZERS
from vitctl.optim.build import build_optimizer
from vitctl.training.loop import train_step
from vitctl.training.session import Session
from vitctl.training.setup import open_session
from vitctl.units import format_bytes

KERNEL = 1e-4
"""Largest relative difference of an fp32 kernel from float64; correct ones differ by about 1e-6."""

THIN = {
    "vit_small": "vit_small:embed_dim=64,depth=1,num_heads=1,dropout=0,emb_dropout=0",
    "cct_2": "cct_2:embed_dim=64,depth=1,num_heads=2,conv_width=16",
}
"""The networks of the first commands in README, thin: the same images, tokens and micro-batches at little cost."""

NETWORK = 1e-2
"""Largest relative difference of a step in fp32: where two values are almost equal, ReLU and max-pooling may choose others."""

BATCH = 512
"""Images per step of the thin networks, as in the original scripts' comparison."""

FEW = 2
"""Images per step of complete networks, whose cost in float64 is high."""

GROWTH = 1 << 26
"""Bytes by which memory may grow between the 50th and the 200th step: 64 MiB."""


class NotUsed(Exception):
    """Training on the device does not use what a check computes; the message is the reason."""


@dataclass(frozen=True)
class Difference:
    """A measured difference from the correct result.

    Attributes:
        what: the result.
        value: the difference, relative unless ``what`` has a unit.
        tolerance: the largest correct value.
    """

    what: str
    value: float
    tolerance: float

    @property
    def wrong(self) -> bool:
        """Whether the difference exceeds the tolerance or is NaN."""
        return not self.value <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Check:
    """A live check.

    Attributes:
        run: computes on a device, and returns the differences.
        fault: key of the known fault that it probes, if any; vitctl avoids what it computes on devices with the fault.
        seconds: time limit.
    """

    run: Callable[[torch.device], list[Difference]]
    fault: str | None = None
    seconds: float = 60.0


def run_check(name: str, device_name: str) -> list[Difference] | str:
    """Run a check, in a child process, and return the differences, or why the device does not use what it computes."""
    device = torch.device(device_name)
    devices.prepare(device, None, "fp32")
    torch.manual_seed(0)
    check = CHECKS[name] if name in CHECKS else network_check(name)
    try:
        return check.run(device)
    except NotUsed as reason:
        return str(reason)


# -- kernels -------------------------------------------------------------------------------------------------------


def compare(
    compute: Callable[..., Tensor],
    device: torch.device,
    arguments: Mapping[str, Tensor],
    tolerance: float = KERNEL,
) -> list[Difference]:
    """Compare a function's output and gradients on ``device`` with those in float64 on the CPU.

    Args:
        compute: called with the arguments by name, which are leaves of the graph.
        device: the device.
        arguments: fp32 tensors on the CPU; gradients are compared for those that require them.
        tolerance: the largest correct difference.
    """
    exact, ours = (
        _output_and_gradients(compute, arguments, place, dtype)
        for place, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32))
    )
    return [Difference(what, relative_difference(ours[what], exact[what]), tolerance) for what in exact]


def _output_and_gradients(
    compute: Callable[..., Tensor], arguments: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    leaves = {
        name: tensor.detach().to(dtype).to(device).requires_grad_(tensor.requires_grad)
        for name, tensor in arguments.items()
    }
    out = compute(**leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward(out, weights.to(dtype).to(device))
    grads = {f"gradient of {name}": leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    return {"output": out.detach().cpu(), **grads}


def draw(*shape: int, grad: bool = True) -> Tensor:
    """Return normal random numbers on the CPU."""
    return torch.randn(shape).requires_grad_(grad)


def linear(images: int, tokens: int) -> Callable[[torch.device], list[Difference]]:
    """Return a check of a linear layer on ``images * tokens`` tokens, after a step of another size."""

    def check(device: torch.device) -> list[Difference]:
        weight, bias = draw(96, 64), draw(96)
        before = draw(8, 65, 64)  # [B, N, D]
        _output_and_gradients(F.linear, {"input": before, "weight": weight, "bias": bias}, device, torch.float32)
        return compare(F.linear, device, {"input": draw(images, tokens, 64), "weight": weight, "bias": bias})

    return check


def pooling(memory_format: torch.memory_format) -> Callable[[torch.device], list[Difference]]:
    """Return a check of CCT's tokenizer and of BatchNorm, in a memory format."""

    def block(x: Tensor, kernel: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        x = F.conv2d(x.contiguous(memory_format=memory_format), kernel, padding=1)
        x = F.batch_norm(x, None, None, scale, shift, training=True)
        x = F.relu(F.max_pool2d(x, kernel_size=3, stride=2, padding=1))
        return x.flatten(2).transpose(1, 2)  # [B, N, D]

    def check(device: torch.device) -> list[Difference]:
        arguments = {"x": draw(32, 16, 32, 32), "kernel": draw(32, 16, 3, 3), "scale": draw(32), "shift": draw(32)}
        return compare(block, device, arguments, NETWORK)

    return check


def attention(permuted: bool) -> Callable[[torch.device], list[Difference]]:
    """Return a check of attention with 1, 3 and 65 queries, contiguous or permuted."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in (query, key, value))  # [B, h, N, d]
        if not permuted:
            q, k, v = (each.contiguous() for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)

    def check(device: torch.device) -> list[Difference]:
        found = []
        for queries in (1, 3, 65):
            shapes = {"query": queries, "key": 65, "value": 65}
            arguments = {name: draw(16, count, 4, 64) for name, count in shapes.items()}  # [B, N, h, d]
            for each in compare(attend, device, arguments):
                found.append(dataclasses.replace(each, what=f"{each.what}, {queries} queries"))
        return found

    return check


def layer_norm(frozen: bool) -> Callable[[torch.device], list[Difference]]:
    """Return a check of LayerNorm, with an input that needs a gradient or not."""

    def check(device: torch.device) -> list[Difference]:
        arguments = {"x": draw(64, 65, 192, grad=not frozen), "weight": draw(192), "bias": draw(192)}
        return compare(lambda x, weight, bias: F.layer_norm(x, (192,), weight, bias), device, arguments)

    return check


def copies(device: torch.device) -> list[Difference]:
    """Check copies to the device and back, and the selection of images."""
    images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
    order = torch.randperm(len(images))
    found = []
    for name, source in (("contiguous", images), ("strided", images[::2]), ("permuted", images.permute(0, 2, 3, 1))):
        there = devices.to_device(source, device)
        found.append(Difference(f"{name} copy, bytes", float((there.cpu() != source).sum()), 0))
    chosen = devices.to_device(images, device)[devices.to_device(order, device)]
    return [*found, Difference("selected images, bytes", float((chosen.cpu() != images[order]).sum()), 0)]


def random_state(device: torch.device) -> list[Difference]:
    """Check that the random state can be stored and restored, as resuming a run does."""
    state = devices.rng_state(device)
    first = torch.rand(1000, device=device)
    devices.set_rng_state(state, device)
    again = torch.rand(1000, device=device)
    return [Difference("numbers after restoring", float((first != again).sum()), 0)]


# -- optimizers ----------------------------------------------------------------------------------------------------


def optimizers(device: torch.device) -> list[Difference]:
    """Check three steps of every optimizer of the table, with the same gradients."""
    return [Difference(opt, _three_steps(opt, device), _optimizer_tolerance(opt, device)) for opt in OPTIMIZERS]


def _optimizer_tolerance(opt: str, device: torch.device) -> float:
    halved = OPTIMIZERS[opt].split_matrices and devices.matmul_dtype(device, torch.float32) != torch.float32
    return TOLERANCES["bf16"] if halved else 1e-3


def _three_steps(opt: str, device: torch.device) -> float:
    """Return the relative difference of the weights' change from that in float64 on the CPU."""
    torch.manual_seed(0)
    config = step_config(THIN["vit_small"], torch.device("cpu"), 8, "fp32")
    initial = build_model(config.net, config.net_options, img_size=config.size, in_chans=3, num_classes=10)
    grads = [[torch.randn_like(p) for p in initial.parameters()] for _ in range(3)]
    changes = []
    for place, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32)):
        model = copy.deepcopy(initial).to(dtype).to(place)
        entry = OPTIMIZERS[opt]
        options = entry.resolve_options({}, f"--opt {opt}")
        optimizer = build_optimizer(opt, options, model, lr=entry.lr, weight_decay=entry.weight_decay)
        for step in grads:
            for p, grad in zip(model.parameters(), step, strict=True):
                p.grad = grad.to(dtype).to(place)
            optimizer.step()
        changes.append(_flat(model) - _flat(initial))
    return relative_difference(changes[1], changes[0])


def _flat(model: nn.Module) -> Tensor:
    """Return all parameters as one float64 tensor on the CPU."""
    return torch.cat([p.detach().cpu().double().flatten() for p in model.parameters()])


def scaled_update(device: torch.device) -> list[Difference]:
    """Check that fused AdamW divides scaled gradients by their scale, and skips a step whose gradients overflowed."""
    plain, scaled, skipped = (
        _second_update(device, scale, overflowed) for scale, overflowed in ((1.0, False), (2.0**16, False), (1.0, True))
    )
    return [
        Difference("update with scaled gradients", relative_difference(scaled, plain), KERNEL),
        Difference("size of a skipped update", float(skipped.abs().max()), 0),
    ]


def _second_update(device: torch.device, scale: float, overflowed: bool) -> Tensor:
    """Return the change of the weights in a step with scaled gradients, after one without; AdamW ignores a constant scale."""
    weight = nn.Parameter(torch.linspace(-1, 1, 1000).to(device))
    optimizer = torch.optim.AdamW([weight], lr=0.01, fused=True)
    for factor, overflow in ((1.0, False), (scale, overflowed)):
        before = weight.detach().cpu().clone()
        optimizer.grad_scale = torch.full((), factor, device=device)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.full((), float(overflow), device=device)  # type: ignore[attr-defined]
        weight.grad = torch.linspace(1, 3, 1000).mul(factor).to(device)
        optimizer.step()
    return weight.detach().cpu() - before


# -- networks ------------------------------------------------------------------------------------------------------


def step_config(spec: str, device: torch.device, batch: int, precision: str, **more: Any) -> TrainConfig:
    """Return the settings of a step over ``batch`` generated images; ``more`` are further settings."""
    settings = {
        "net": spec,
        "dataset": "cifar10",
        "bs": batch,
        "limit_train": batch,
        "aug": "none",
        "epochs": 1,
        "val": "none",
        "pretrained": "false",
        "device": str(device),
        "precision": precision,
    }
    return resolve_config({**settings, **more})


def parity(config: TrainConfig, *, training: bool = True) -> list[Difference]:
    """Compare the logits and gradients of a step with those in float64 on the CPU, for the same initial weights.

    Args:
        config: settings of the step.
        training: whether the network is in training mode, or in evaluation mode.
    """
    session = open_step(config)
    exact = open_step(dataclasses.replace(config, device="cpu", precision="fp32"))
    exact.model.load_state_dict({name: value.cpu() for name, value in session.model.state_dict().items()})
    exact.model.double()
    for each in (session, exact):
        each.model.train(training)
    ours = logits_and_gradients(session, *step_batch(session))
    theirs = logits_and_gradients(exact, *step_batch(exact))
    pieces = f"{config.bs} images in pieces of {session.micro_batch}"
    return [
        Difference(
            f"{what}, {pieces}", relative_difference(mine, correct), max(NETWORK, TOLERANCES[arithmetic(session)])
        )
        for what, mine, correct in zip(("logits", "gradients"), ours, theirs, strict=True)
    ]


def open_step(config: TrainConfig) -> Session:
    """Open a session on generated images."""
    return open_session(config, pretrained=False, data=generated_data(config))


def thin_network(net: str) -> Callable[[torch.device], list[Difference]]:
    """Return a check of a step of a thin network over a full batch, in the micro-batches of training."""
    return lambda device: parity(step_config(THIN[net], device, BATCH, "fp32"))


def half_precision(precision: str) -> Callable[[torch.device], list[Difference]]:
    """Return a check of a step of a thin network in half precision."""

    def check(device: torch.device) -> list[Difference]:
        if precision not in devices.policy_of(device).precisions:
            raise NotUsed(f"--precision {precision} is refused on {device}")
        if precision not in devices.half_precisions(device):
            raise NotUsed(f"{device} has no instructions for {precision}")
        return parity(step_config(THIN["vit_small"], device, 64, precision))

    return check


def whole_steps(device: torch.device) -> list[Difference]:
    """Compare three steps with augmentation, mixing, clipping and averaged weights with those in fp32 on the CPU."""
    results = []
    for place in (torch.device("cpu"), device):
        extras = {
            "aug": "trivialaug",
            "mixup": 0.2,
            "cutmix": 1.0,
            "clip_grad": 0.1,
            "ema": 0.9,
            "opt": "sgd",
            "lr": 0.1,
        }
        config = step_config(THIN["cct_2"], place, 8, "fp32", **extras)
        session = open_step(config)
        session.set_length(3)
        session.train_mode()
        images, _ = session.batches.batch(0, 0)
        initial = _flat(session.model)
        for _ in range(3):
            session.progress.begin_epoch()
            train_step(session)
        assert session.average is not None
        results.append(
            {
                "augmented images": images.cpu(),
                "change of the weights": _flat(session.model) - initial,
                "change of the average": _flat(session.average.model) - initial,
            }
        )
    exact, ours = results
    return [Difference(what, relative_difference(ours[what], exact[what]), NETWORK) for what in exact]


def memory(device: torch.device) -> list[Difference]:
    """Check that memory does not grow over 200 steps."""
    session = open_step(step_config(THIN["vit_small"], device, 16, "fp32"))
    session.set_length(200)
    session.train_mode()
    used = []
    for step in range(200):
        session.progress.begin_epoch()  # the same batch again
        train_step(session)
        if step + 1 in (50, 200):
            devices.synchronize(device)
            used.append((devices.peak_memory(torch.device("cpu")), devices.peak_memory(device)))
    process, own = (after - before for before, after in zip(*used, strict=True))
    limit = f"growth in 150 steps, of at most {format_bytes(GROWTH)}"
    found = [Difference(f"memory of the process, {limit}", process, GROWTH)]
    return (
        found
        if devices.own_memory(device) is None
        else [*found, Difference(f"memory of {device}, {limit}", own, GROWTH)]
    )


def network_check(net: str) -> Check:
    """Return the check of a step of a complete network over a few images, in evaluation mode.

    In training mode, deep networks with BatchNorm amplify rounding: 1 % of a ResNet-50's initial gradient.
    """

    def check(device: torch.device) -> list[Difference]:
        entry = find_model(net)
        config = step_config(net, device, FEW, "fp32")
        return parity(dataclasses.replace(config, size=entry.img_size), training=False)

    return Check(run=check, seconds=180.0)


CHECKS: dict[str, Check] = {
    "copies": Check(run=copies),
    "random state": Check(run=random_state),
    "linear, 32,766 tokens": Check(run=linear(258, 127)),
    "linear, 32,767 tokens": Check(run=linear(217, 151), fault="long-reduction"),
    "linear, 33,280 tokens": Check(run=linear(512, 65), fault="long-reduction"),
    "linear, 65,537 images": Check(run=linear(65_537, 1), fault="large-batch"),
    "convolution and pooling": Check(run=pooling(torch.contiguous_format)),
    "convolution and pooling, channels-last": Check(run=pooling(torch.channels_last), fault="channels-last"),
    "attention, width 64": Check(run=attention(permuted=False)),
    "attention, width 64, permuted": Check(run=attention(permuted=True), fault="short-query"),
    "LayerNorm": Check(run=layer_norm(frozen=False)),
    "LayerNorm, frozen input": Check(run=layer_norm(frozen=True), fault="frozen-layer-norm"),
    "optimizers": Check(run=optimizers),
    "fused AdamW, scaled gradients": Check(run=scaled_update, fault="fp16-scaling"),
    "step of cct_2": Check(run=thin_network("cct_2")),
    "step of vit_small": Check(run=thin_network("vit_small")),
    "steps with clipping and EMA": Check(run=whole_steps),
    "step in bf16": Check(run=half_precision("bf16")),
    "step in fp16": Check(run=half_precision("fp16")),
    "memory over 200 steps": Check(run=memory),
}
"""The checks of every examination, in order."""


def names_of(full: bool) -> Iterator[str]:
    """Yield the names of the checks; with ``full``, also those of all networks of the table."""
    yield from CHECKS
    if full:
        yield from MODELS
