"""Training steps work on accelerators that cannot be run here: placement, waits, kernels, and MPS's known faults.

Numbers are not tested; ``vitctl doctor`` compares them on a real device.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor, nn

from tests.conftest import made_once
from tests.devices.guard import Forbidden, guarded
from tests.devices.steps import CASES, NETS, OPTIONS, PLANTED_READ, PLANTS, POLICIES, Case, open_case, under
from vitctl.devices.policy import CPU, MPS, DevicePolicy
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS
from vitctl.training import loop
from vitctl.training.session import Session

# -- on a fake accelerator ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def outcomes(python: list[str], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Take all steps in one child process, as the accelerator changes torch for the whole process."""

    def take(folder: Path) -> None:
        with open(folder / "outcomes.json", "w") as file:
            subprocess.run(
                [*python, "-m", "tests.devices.steps"], check=True, stdout=file, cwd=Path(__file__).parents[2]
            )

    found: dict[str, Any] = json.loads((made_once(request.config, "steps", take) / "outcomes.json").read_text())
    if "missing" in found:
        pytest.skip(found["missing"])
    return found


def test_the_cases_cover_every_family_and_optimizer() -> None:
    assert {MODELS[net].family for net in NETS} == {entry.family for entry in MODELS.values()}
    assert {case.opt for case in CASES} == set(OPTIMIZERS)
    combined = {(case.net, case.opt) for case in CASES}
    assert combined >= {(net, opt) for net in NETS for opt in OPTIMIZERS}
    assert {(case.net, case.options) for case in CASES} == {(net, i) for net in NETS for i in range(len(OPTIONS))}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_mixes_no_devices_and_reads_nothing_back(case: Case, outcomes: dict[str, Any]) -> None:
    error = outcomes[str(case)]["error"]
    assert error == ("ReadBack: _local_scalar_dense" if case == PLANTED_READ else None)


@pytest.mark.parametrize("name", PLANTS)
def test_the_accelerator_detects_planted_faults(name: str, outcomes: dict[str, Any]) -> None:
    assert outcomes[name] == PLANTS[name][0]


# -- kernels for MPS ----------------------------------------------------------------------------------------------

INSTEAD = {"_foreach_": "a loop over the tensors, one kernel each"}
"""Operations without a kernel for MPS, by the start of their name, and what torch runs instead."""

DECOMPOSED = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


@functools.cache
def operations_of_torch() -> dict[str, Any]:
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    rows = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return {row["func"].split("(")[0]: row for row in rows}


def has_mps_kernel(name: str) -> bool:
    """Return whether an operation such as ``add.Tensor`` has a kernel for MPS, or consists of others."""
    row = operations_of_torch()[name]
    if "structured_delegate" in row:
        return has_mps_kernel(row["structured_delegate"])
    if "dispatch" not in row:
        return True
    keys = {key.strip() for keys in row["dispatch"] for key in keys.split(",")}
    return "MPS" in keys or (bool(keys & set(DECOMPOSED)) and not name.startswith(tuple(INSTEAD)))


def test_every_operation_of_the_steps_has_an_mps_kernel(outcomes: dict[str, Any]) -> None:
    used = {name for case in CASES if case.policy == "mps" for name in outcomes[str(case)]["operations"]}
    assert {"addmm", "convolution_backward", "max_pool2d_with_indices_backward", "_fused_adamw_"} <= used
    without = {name for name in used if not has_mps_kernel(name)}
    assert {name for name in without if not name.startswith(tuple(INSTEAD))} == set()


@pytest.mark.parametrize("name", ["take", "linalg_eig", "fractional_max_pool2d", "_foreach_add_.List"])
def test_operations_without_an_mps_kernel_are_detected(name: str) -> None:
    assert not has_mps_kernel(name)


# -- what MPS must not get ----------------------------------------------------------------------------------------


def step_and_evaluate(session: Session) -> None:
    """Take a step and classify its images, guarded; the batch is drawn before, as draws on the CPU may use float64."""
    batch = session.batches.batch(0, 0)
    session.batches.batch = lambda epoch, step: batch  # type: ignore[method-assign]
    with guarded():
        loop.train_step(session)
        with torch.inference_mode(), session.autocast():
            session.evaluated_model.eval()(session.normalize(batch[0]))


@pytest.mark.parametrize("net", MODELS)
def test_no_network_enters_a_fault_of_mps(net: str) -> None:
    with under(MPS):
        step_and_evaluate(open_case(net))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("net", ["vit_small", "cct_2"])
def test_no_option_enters_a_fault_of_mps(net: str, options: dict[str, Any]) -> None:
    with under(MPS):
        step_and_evaluate(open_case(net, **options))


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_no_optimizer_enters_a_fault_of_mps(opt: str) -> None:
    with under(MPS):
        step_and_evaluate(open_case("cct_2", opt=opt))


LARGE: dict[str, Any] = {"size": 32, "bs": 512, "limit_train": 600}


def test_a_large_batch_is_split_before_its_sums_are_too_long() -> None:
    with under(MPS):
        session = open_case("vit_small", **LARGE)  # 512 x 65 tokens
        assert session.micro_batch == 256
        step_and_evaluate(session)


@pytest.mark.parametrize(
    ("net", "policy", "fault"),
    [
        ("cct_2", POLICIES["cuda"], "channels-last"),
        ("cct_2", dataclasses.replace(MPS, contiguous=False), "not contiguous"),
        ("mobilevit", dataclasses.replace(MPS, contiguous=False), "not contiguous"),
        ("mlpmixer", dataclasses.replace(MPS, contiguous=False), "convolution_backward with a channels-last"),
        ("vit_small", dataclasses.replace(MPS, norms_constants=True), "without the gradient of its input"),
        ("vit_small", CPU, "channels-last"),  # its linear layers are convolutions there
    ],
)
def test_the_guard_detects_another_policy(net: str, policy: DevicePolicy, fault: str) -> None:
    with under(policy):
        session = open_case(net)
        with pytest.raises(Forbidden, match=fault):
            step_and_evaluate(session)


def test_the_guard_detects_long_sums() -> None:
    with under(dataclasses.replace(MPS, longest_reduction=None, longest_batch=None)):
        session = open_case("vit_small", **LARGE)
        with pytest.raises(Forbidden, match="sums of 33280 terms"):
            step_and_evaluate(session)


def test_the_guard_detects_float64() -> None:
    with under(MPS):
        session = open_case("cct_2")
        session.forward = lambda x: session.model(x).double()
        with pytest.raises(Forbidden, match="float64"):
            step_and_evaluate(session)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.MaxPool2d(2), nn.AvgPool2d(2)], ids=str
)
def test_the_guard_detects_channels_last_images(layer: nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8)
    with guarded():
        layer(x)
        with pytest.raises(Forbidden, match="channels-last"):
            layer(x.contiguous(memory_format=torch.channels_last))


def test_the_guard_detects_channels_last_gradients() -> None:
    """The gradient of max-pooling is channels-last if tokens were transposed after it, even if its input is not."""
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    with guarded():
        tokens = nn.MaxPool2d(2)(x).flatten(2).transpose(1, 2)
        with pytest.raises(Forbidden, match="max_pool2d_with_indices_backward"):
            (tokens * torch.rand(2, 16, 3)).sum().backward()


@pytest.mark.parametrize("net", NETS)
def test_calls_for_mps_compute_the_same(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(policy: DevicePolicy) -> list[Tensor]:
        with under(policy):
            session = open_case(net, ema=0.0)
            taken: list[Tensor] = []
            monkeypatch.setattr(
                session.optimizer,
                "step",
                lambda: taken.extend(p.grad.clone() for p in session.model.parameters() if p.grad is not None),
            )
            torch.manual_seed(0)
            loop.train_step(session)
            return taken

    plain = dataclasses.replace(MPS, contiguous=False, norms_constants=True)
    for ours, expected in zip(gradients(MPS), gradients(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
