"""Precision of the forward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch

from vitctl.devices.calls import AdaptedCalls
from vitctl.devices.device import device_label
from vitctl.devices.policy import policy_of
from vitctl.errors import RequestError
from vitctl.registry import or_list


def has_fused_optimizers(device: torch.device) -> bool:
    """Return whether torch has fused Adam, AdamW and SGD for ``device``."""
    return device.type in ("cpu", "cuda", "mps")


def resolve_precision(asked: str, device: torch.device, bf16_devices: Container[str] = ()) -> str:
    """Return the precision of the forward pass's matrix products: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` is bf16 on CUDA devices with native bf16 and fp16 on older ones. On CPUs and MPS, it is bf16 if the network
    trains faster in it there and the device has instructions for it, and otherwise fp32. It depends on nothing else, so
    that runs that are compared on a machine, such as seeds, do not differ in it.

    Args:
        asked: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: the device that runs the network.
        bf16_devices: device types on which the network trains faster in bf16
            (:attr:`vitctl.models.entry.ModelEntry.bf16`).

    Raises:
        RequestError: the device computes it wrongly, or has no instructions for it; emulation would be tens of times
            slower than fp32 (https://github.com/pytorch/pytorch/issues/146508).
    """
    if asked == "auto":
        if device.type != "cuda":
            return "bf16" if device.type in bf16_devices and _bf16_is_fast(device) else "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked == "fp32" or asked in half_precisions(device):
        return asked
    hint = f"use --precision {or_list(['fp32', *half_precisions(device)])}"
    if asked not in policy_of(device).precisions:
        raise RequestError(
            f"--precision {asked} trains wrongly on {device}: PyTorch can set gradients to zero", hint=hint
        )
    raise RequestError(
        f"--precision {asked} would be tens of times slower than fp32: {device_label(device)} ({device}) has no "
        f"instructions for it",
        hint=hint,
    )


def nearest_precision(asked: str, device: torch.device, bf16_devices: Container[str] = ()) -> str:
    """Return the precision of a network trained elsewhere: ``asked``, or fp32 if ``device`` does not support it."""
    try:
        return resolve_precision(asked, device, bf16_devices)
    except RequestError:
        return "fp32"


def kept_precision(
    trained: Mapping[str, Any], asked: str, device: torch.device, bf16_devices: Container[str] = ()
) -> str:
    """Return the precision in which ``device`` evaluates a trained network, or continues to train it.

    It is the precision in which a device of this type trained the network, so that figures stay the same. On a device
    of another type, it is what ``asked`` means there. It is fp32 if ``device`` does not support that.

    Args:
        trained: ``device`` and ``precision`` of the training. Without them, the network was trained by a version in
            which ``auto`` was always fp32 on CPUs.
        asked: the setting ``--precision`` of the run.
        device: the device that runs the network.
        bf16_devices: as for :func:`resolve_precision`.
    """
    if "precision" not in trained:
        return nearest_precision(asked, device)
    if torch.device(trained["device"]).type == device.type:
        asked = trained["precision"]
    return nearest_precision(asked, device, bf16_devices)


def half_precisions(device: torch.device) -> tuple[str, ...]:
    """Return those of ``bf16`` and ``fp16`` that the device computes correctly, and for which it has instructions."""
    correct = policy_of(device).precisions
    return tuple(precision for precision in _native_precisions(device) if precision in correct)


def _bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16, and torch the kernels that use them."""
    kernels = device.type != "cpu" or torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return kernels and "bf16" in half_precisions(device)


def _native_precisions(device: torch.device) -> tuple[str, ...]:
    """Return those of ``bf16`` and ``fp16`` for which the device has instructions."""
    if device.type == "cuda":
        return ("bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
    if device.type == "mps":
        return ("bf16", "fp16") if torch.backends.mps.is_macos_or_newer(14, 0) else ("fp16",)
    supported = _cpu_instructions()
    bf16 = any(value for name, value in supported.items() if name.endswith("bf16"))
    fp16 = bool(supported.get("avx512_fp16") or supported.get("amx_fp16"))
    return (*(["bf16"] if bf16 else []), *(["fp16"] if fp16 else []))


def _cpu_instructions() -> dict[str, bool]:
    if hasattr(torch.cpu, "get_capabilities"):
        return {name: value for name, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    return {  # torch before 2.11
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
    }


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run the forward pass in ``precision``, a result of :func:`resolve_precision`.

    Weights and gradients stay fp32. Functions are called in the way in which ``device`` computes correctly and fast; what
    is computed in this context is also differentiated correctly.
    """
    policy = policy_of(device)
    with contextlib.ExitStack() as stack:
        half = precision != "fp32"
        if policy.contiguous or not policy.norms_constants or (half and not policy.half_attention):
            stack.enter_context(AdaptedCalls(policy))
        stack.enter_context(torch.autocast(device.type, dtype=_DTYPES[precision], enabled=half))
        yield


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    """Return a loss scaler, which keeps fp16 gradients from vanishing, or None for other precisions."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for matrix products that tolerate rounding, with operands of ``dtype`` on ``device``.

    It is bf16 on CUDA devices with native bf16, and on CPUs with AVX512_BF16 or AMX unless ``dtype`` is float64. Else it
    is ``dtype``, with fp32 in place of half precisions, as emulated bf16 is much slower. On two Zen 4 cores, products of
    ``[4, 256, 2304]`` with their transposes are five times as fast in bf16 as in fp32.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "cpu" and dtype != torch.float64 and _multiplies_bf16():
        return torch.bfloat16
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@functools.cache
def _multiplies_bf16() -> bool:
    """Return whether this CPU has one of the instructions with which bf16 products were measured to be faster."""
    supported = _cpu_instructions()
    return bool(supported.get("avx512_bf16") or supported.get("amx_bf16"))
