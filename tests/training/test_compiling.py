"""``--compile`` gives the same training, or prints a warning and trains without compilation."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY
from tests.training.test_loop import tiny_session
from tests.training.test_resume import same
from vitctl.devices.policy import MPS, imposed
from vitctl.training import loop
from vitctl.training.compiling import compile_network

MESSAGE = "error: --compile does not work on cpu: networks compiled by PyTorch compute wrong sums there"
NETS = ["cct_2:embed_dim=16,depth=1,num_heads=2,conv_width=8,dropout=0.1", "res18:width=8"]


def test_compilation_is_refused_where_it_computes_wrongly(refused: Callable[..., str], tmp_path: Path) -> None:
    with imposed(MPS):
        assert refused("train", *TINY, "--compile").startswith(MESSAGE)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("net", NETS)
def test_a_failed_compilation_changes_nothing(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: torch.nn.Module, **options: object) -> object:
        def call(x: torch.Tensor) -> torch.Tensor:
            model(x).sum().backward()  # changes BatchNorm statistics, random state and gradients
            raise RuntimeError("no compiler\nfor this")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    session, untouched = (tiny_session(net=net) for _ in range(2))
    messages: list[str] = []
    compile_network(session, messages.append)
    assert messages == ["compiling …", "warning: --compile failed, training without it (RuntimeError: no compiler)"]
    assert session.compile_time is None and session.forward is session.model
    assert same(session.checkpoint(), untouched.checkpoint())
    for each in (session, untouched):
        torch.manual_seed(1)
        loop.train_step(each)
    assert same(session.model.state_dict(), untouched.model.state_dict())


@pytest.mark.slow
def test_compiled_steps_match_uncompiled_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled, plain = (tiny_session(opt="sgd:momentum=0,nesterov=false", lr=0.1) for _ in range(2))
    messages: list[str] = []
    compile_network(compiled, messages.append)
    assert compiled.compile_time and messages[1].startswith("compiled in")
    assert same(compiled.checkpoint()["model"], plain.checkpoint()["model"])
    assert same(compiled.checkpoint()["rng"], plain.checkpoint()["rng"])
    calls: list[int] = []
    compiled.model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    for _ in range(3):
        loop.train_step(compiled)
        loop.train_step(plain)
    for name, value in compiled.model.state_dict().items():
        assert torch.allclose(value, plain.model.state_dict()[name], atol=1e-5), name


@pytest.mark.slow
def test_a_run_trains_without_a_compiler(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    command = [sys.executable, "-m", "vitctl", "train", *TINY, "--epochs", "1", "--compile", "--json"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--compile failed") == 1 and "Traceback" not in done.stderr
    assert "compile_time" not in json.loads(done.stdout)
