"""``--precision``: the default of each device and network, unsupported precisions, and loss scaling in fp16."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import TINY, TINY_NET, Cli
from tests.training.test_loop import tiny_session
from tests.training.test_resume import assert_same, same
from vitctl import devices
from vitctl.devices import precision as precision_module
from vitctl.devices.policy import MPS as MPS_POLICY
from vitctl.devices.policy import imposed
from vitctl.errors import NotFinite, RequestError
from vitctl.models import MODELS
from vitctl.training import loop

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
NONE = {"avx2": True, "avx512_bf16": False, "amx_bf16": False, "avx512_fp16": False, "amx_fp16": False}


@pytest.fixture
def fp16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow fp16 on the CPU, which computes it slowly if it has no instructions for it."""
    monkeypatch.setattr(precision_module, "_native_precisions", lambda device: ("bf16", "fp16"))


@pytest.mark.parametrize(
    ("device", "native", "asked", "expected"),
    [
        (CPU, False, "auto", "fp32"),
        (CPU, True, "auto", "fp32"),
        (CPU, True, "bf16", "bf16"),
        (MPS, False, "auto", "fp32"),
        (MPS, True, "bf16", "bf16"),
        (CUDA, True, "auto", "bf16"),
        (CUDA, False, "auto", "fp16"),
        (CUDA, False, "fp32", "fp32"),
    ],
)
def test_the_precision_depends_on_the_device(
    device: torch.device, native: bool, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE | {"avx512_bf16": native})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: native)
    assert devices.resolve_precision(asked, device) == expected


@pytest.mark.parametrize(
    ("device", "pays", "native", "kernels", "expected"),
    [
        (CPU, ("cpu",), True, True, "bf16"),
        (CPU, ("cpu",), False, True, "fp32"),
        (CPU, ("cpu",), True, False, "fp32"),
        (CPU, ("mps",), True, True, "fp32"),
        (MPS, ("cpu",), True, True, "fp32"),
        (MPS, ("mps",), True, False, "bf16"),
        (CUDA, (), True, False, "bf16"),
    ],
)
def test_the_precision_depends_on_the_network(
    device: torch.device,
    pays: tuple[str, ...],
    native: bool,
    kernels: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE | {"avx512_bf16": native})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: kernels)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: native)
    assert devices.resolve_precision("auto", device, pays) == expected
    assert devices.resolve_precision("fp32", device, pays) == "fp32"


@pytest.mark.parametrize(
    ("trained", "asked", "pays", "expected"),
    [
        ({}, "auto", ("cpu",), "fp32"),  # trained before --precision auto could be bf16 on CPUs
        ({"device": "cpu"}, "bf16", (), "bf16"),
        ({"device": "cpu", "precision": "fp32"}, "auto", ("cpu",), "fp32"),  # trained before the network's row changed
        ({"device": "cpu", "precision": "fp32"}, "bf16", (), "fp32"),  # moved from a CPU without bf16
        ({"device": "cpu", "precision": "bf16"}, "auto", (), "bf16"),
        ({"device": "cpu", "precision": "fp16"}, "fp16", (), "fp32"),
        ({"device": "cuda:1", "precision": "bf16"}, "auto", (), "fp32"),
        ({"device": "cuda:1", "precision": "bf16"}, "auto", ("cpu",), "bf16"),
        ({"device": "cuda:1", "precision": "bf16"}, "bf16", (), "bf16"),
    ],
)
def test_a_trained_network_keeps_its_precision_on_a_device_of_the_same_type(
    trained: dict[str, str], asked: str, pays: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE | {"avx512_bf16": True})
    assert devices.kept_precision(trained, asked, CPU, pays) == expected
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE)
    assert devices.kept_precision(trained, asked, CPU, pays) == "fp32"


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that sets whether bf16 pays for ``cct_2`` on CPUs, which have instructions for it."""
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE | {"avx512_bf16": True})

    def put(faster: bool) -> None:
        monkeypatch.setitem(MODELS, "cct_2", dataclasses.replace(MODELS["cct_2"], bf16=("cpu",) if faster else ()))

    return put


def test_automatic_precision_depends_on_nothing_but_network_and_device(pays: Callable[[bool], None]) -> None:
    pays(True)
    others = [{}, {"bs": 8}, {"opt": "sgd"}, {"seed": 3}, {"net": TINY_NET.replace("16", "32")}, {"aug": "none"}]
    assert {tiny_session(**other).precision for other in others} == {"bf16"}
    assert tiny_session(net="vit:embed_dim=16,depth=1,num_heads=2").precision == "fp32"


STEPS = [*TINY, "--limit-test", "10000", "--epochs", "2", "--save-every", "2", "--keep", "9", "--json"]


def unfinished(run: Path, copy: Path) -> Path:
    """Copy a run and take the copy back to its checkpoint of step 2."""
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    first = min((copy / "checkpoints").glob("kept-*.pt"))
    for path in (copy / "checkpoints").iterdir():
        if path != first:
            path.unlink()
    return copy


@pytest.mark.parametrize(
    ("before", "now", "expected"), [(True, True, "bf16"), (False, True, "fp32"), (True, False, "bf16")]
)
def test_a_resumed_run_keeps_its_precision_and_is_bit_identical(
    before: bool, now: bool, expected: str, pays: Callable[[bool], None], cli: Cli, tmp_path: Path
) -> None:
    pays(before)
    summary = cli("train", *STEPS, "--name", "whole").json()
    assert summary["precision"] == expected
    runs = tmp_path / "runs"
    pays(now)
    resumed = cli("train", "--resume", unfinished(runs / "whole", runs / "again"), "--json")
    assert resumed.json()["precision"] == expected and "may differ" not in resumed.err
    assert_same(runs / "again", runs / "whole")
    scores = cli("eval", "runs/whole", "--json").json()
    assert scores["top1"] == pytest.approx(summary["test_acc"])
    assert scores["loss"] == pytest.approx(summary["test_loss"], abs=1e-5)


def test_a_run_moved_to_a_cpu_without_bf16_continues_in_fp32(
    pays: Callable[[bool], None], cli: Cli, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pays(True)
    runs = tmp_path / "runs"
    assert cli("train", *STEPS, "--name", "whole").json()["precision"] == "bf16"
    moved = unfinished(runs / "whole", runs / "moved")
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE)
    assert "use --precision fp32" in refused("train", "--resume", moved, "--precision", "bf16")
    resumed = cli("train", "--resume", moved, "--json")
    (warning,) = (line for line in resumed.err.splitlines() if "instructions" in line)
    assert warning == "warning: this cpu has no instructions for bf16: the run continues in fp32"
    summary = resumed.json()
    assert summary["precision"] == "fp32"
    pays(True)  # a checkpoint in fp32 is evaluated in fp32, wherever it is
    assert cli("eval", "runs/moved", "--json").json()["loss"] == pytest.approx(summary["test_loss"], abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_emulated_precision_is_refused(
    precision: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision_module, "_cpu_instructions", lambda: NONE)
    sentence = refused("train", *TINY, "--precision", precision)
    assert f"--precision {precision}" in sentence and "hint: use --precision fp32" in sentence
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RequestError):
        devices.resolve_precision(precision, CPU)
    assert devices.nearest_precision(precision, CPU) == "fp32"  # for a network trained on another device


def test_fp16_is_refused_where_it_trains_wrongly(refused: Callable[..., str], fp16_here: None) -> None:
    with imposed(MPS_POLICY):
        said = refused("train", *TINY, "--precision", "fp16")
        assert (
            said.splitlines()[0] == "error: --precision fp16 trains wrongly on cpu: PyTorch can set gradients to zero"
        )
        assert devices.resolve_precision("bf16", CPU) == "bf16"  # as the hint proposes
        assert devices.nearest_precision("fp16", CPU) == "fp32"  # for a network trained on another device


def test_an_unknown_precision_gets_a_suggestion(refused: Callable[..., str]) -> None:
    assert "did you mean fp16" in refused("train", *TINY, "--precision", "fp61")


@pytest.mark.parametrize("capability", [True, False], ids=["with get_capabilities", "older torch"])
def test_cpu_instructions_are_detected(capability: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not capability:
        asked = {name: getattr(torch.cpu, name) for name in dir(torch.cpu) if name.startswith("_is_")}
        monkeypatch.setattr(torch, "cpu", SimpleNamespace(**asked))
    instructions = precision_module._cpu_instructions()
    assert instructions and all(isinstance(has, bool) for has in instructions.values())
    flags = Path("/proc/cpuinfo")
    if flags.exists() and "flags" in flags.read_text():
        assert instructions["avx512_bf16"] == ("avx512_bf16" in flags.read_text())


def test_bf16_applies_to_forward_passes_and_not_to_weights(cli: Cli, tmp_path: Path) -> None:
    if "bf16" not in devices.half_precisions(CPU):
        pytest.skip("this CPU has no bf16 instructions")
    session = tiny_session(precision="bf16", epochs=1)
    seen: list[torch.dtype] = []
    session.model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loop.train_step(session)
    assert seen and set(seen) == {torch.bfloat16}
    assert {p.dtype for p in session.model.parameters()} == {torch.float32}

    everything = ["--limit-test", 10_000]
    summary = cli("train", *TINY, *everything, "--epochs", 1, "--precision", "bf16", "--name", "half", "--json").json()
    assert summary["precision"] == "bf16"
    scores = cli("eval", "runs/half", "--json").json()
    assert scores["top1"] == pytest.approx(summary["test_acc"]) and scores["loss"] == pytest.approx(
        summary["test_loss"], abs=1e-5
    )


def test_fp16_skips_steps_that_overflow(fp16_here: None) -> None:
    session = tiny_session(precision="fp16", clip_grad=1.0)
    assert session.scaler is not None
    session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 2.0**60})
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    loop.train_step(session)
    assert all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert session.scaler.get_scale() == 2.0**59
    skipped = 1
    while session.scaler.get_scale() > 2.0**10:
        scale = session.scaler.get_scale()
        loop.train_step(session)
        session.progress.step, session.progress.step_in_epoch = 1, 0
        if session.scaler.get_scale() == scale:
            break
        skipped += 1
    assert skipped > 3
    assert not all(torch.equal(value, before[name]) for name, value in session.model.state_dict().items())
    assert all(value.isfinite().all() for value in session.model.state_dict().values())


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_fp16_steps_match_fp32_steps(clip: float, fp16_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, list[torch.Tensor]] = {}
    for precision in ("fp32", "fp16"):
        session = tiny_session(precision=precision, clip_grad=clip, opt="sgd:momentum=0,nesterov=false", lr=0.1)
        if session.scaler:
            session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 2.0**8})
        before = [p.detach().clone() for p in session.model.parameters()]
        loop.train_step(session)
        taken[precision] = [p.detach() - b for p, b in zip(session.model.parameters(), before, strict=True)]
    exact, half = (torch.cat([step.flatten() for step in steps]) for steps in taken.values())
    assert (half - exact).norm() < 0.01 * exact.norm()


def test_a_resumed_fp16_run_is_bit_identical(fp16_here: None) -> None:
    whole, stopped = (tiny_session(precision="fp16", epochs=1) for _ in range(2))
    for session in (whole, stopped):
        assert session.scaler is not None
        session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 2.0**50})
    for _ in range(3):
        loop.train_step(whole)
    loop.train_step(stopped)
    stopped.tally.read(stopped.progress)
    resumed = tiny_session(precision="fp16", epochs=1)
    resumed.restore(stopped.checkpoint())
    assert resumed.scaler is not None and resumed.scaler.get_scale() == 2.0**49
    for _ in range(2):
        loop.train_step(resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.checkpoint()["scaler"], whole.checkpoint()["scaler"])


def test_gradients_that_always_overflow_end_the_run(fp16_here: None) -> None:
    session = tiny_session(precision="fp16")
    weight = next(session.model.parameters())
    session.forward = lambda x: session.model(x) + torch.sqrt(0 * weight.sum())  # finite, unlike its gradient
    with pytest.raises(NotFinite, match="overflow fp16 at every step"):
        for _ in range(60):
            loop.train_step(session)
            session.progress.step_in_epoch = 0


@pytest.mark.slow
def test_bf16_reaches_the_accuracy_of_fp32(cli: Cli) -> None:
    if "bf16" not in devices.half_precisions(CPU):
        pytest.skip("this CPU has no bf16 instructions")
    accuracy = {
        precision: cli("train", "--dataset", "digits", "--net", "cct_2", "--precision", precision, "--json").json()
        for precision in ("fp32", "bf16")
    }
    assert accuracy["bf16"]["precision"] == "bf16"
    assert abs(accuracy["bf16"]["test_acc"] - accuracy["fp32"]["test_acc"]) <= 2
