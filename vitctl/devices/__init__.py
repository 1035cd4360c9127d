"""Everything that differs between CPU, CUDA and MPS."""

from vitctl.devices.device import (
    THREAD_VARIABLES,
    DeviceUnavailable,
    available_devices,
    device_label,
    environment,
    one_thread,
    prepare,
    resolve_device,
    rng_state,
    set_rng_state,
    synchronize,
    to_device,
    uses_tf32,
)
from vitctl.devices.load import CpuWatch
from vitctl.devices.memory import fits, is_out_of_memory, memory_watched, out_of_memory, own_memory, peak_memory
from vitctl.devices.policy import DevicePolicy, policy_of
from vitctl.devices.precision import (
    autocast,
    half_precisions,
    has_fused_optimizers,
    kept_precision,
    make_scaler,
    matmul_dtype,
    nearest_precision,
    resolve_precision,
)

__all__ = [
    "THREAD_VARIABLES",
    "CpuWatch",
    "DeviceUnavailable",
    "DevicePolicy",
    "autocast",
    "available_devices",
    "device_label",
    "environment",
    "fits",
    "half_precisions",
    "has_fused_optimizers",
    "is_out_of_memory",
    "kept_precision",
    "make_scaler",
    "matmul_dtype",
    "memory_watched",
    "nearest_precision",
    "one_thread",
    "out_of_memory",
    "own_memory",
    "peak_memory",
    "policy_of",
    "prepare",
    "resolve_device",
    "resolve_precision",
    "rng_state",
    "set_rng_state",
    "synchronize",
    "to_device",
    "uses_tf32",
]
