"""Two processes over gloo are one process that cuts its batch in two."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentflows.core.errors import CheckpointError, ConfigurationError
from latentflows.objectives import ELBO, GECO
from latentflows.training import Options, fit
from latentflows.training.parallel import World, join, wrap
from tests.training import workers
from tests.training.tiny import (
    Images,
    code_model,
    geco_vae,
    lars_vae,
    lines,
    mixture_vae,
    normalized_vae,
    one_stage,
    vae,
)

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"
)


def flat(line: dict[str, Any]) -> dict[str, float]:
    return {
        f"{part}/{name}": value for part in ("train", "validation") for name, value in line[part].items()
    } | {name: line[name] for name in ("step", "samples", "learning_rate")}


def run_workers(root: Path) -> list[dict[str, Any]]:
    """Start two processes as two nodes of one each, wait, and stop whatever is left of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    nodes = [
        subprocess.Popen(
            [*launcher, "--node-rank", str(rank), *meeting, "-m", "tests.training.workers", str(root)],
            env=environment,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
    assert [node.returncode for node in nodes] == [0, 0], "".join(outputs)[-4000:]
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@needs_gloo
def test_two_processes_are_one_that_cuts_its_batch_in_two(tmp_path: Path) -> None:
    ranks = run_workers(tmp_path)
    first, second = ranks

    models = {
        "plain": vae("iaf", "real_nvp"),
        "normalized": normalized_vae(),
        "mixture": mixture_vae(),
        "codes": code_model(levels=2),
        "code_gradient": code_model("gradient"),
        "lars": lars_vae(),
        "geco": geco_vae(),
    }
    objectives = {"lars": ELBO(), "geco": GECO(0.4)}
    for case, model in models.items():
        alone = workers.train(tmp_path / "alone" / case, 2, model=model, objective=objectives.get(case))
        for one, two in zip(first[case]["epochs"], alone["epochs"], strict=True):
            assert flat(one) == pytest.approx(flat(two), rel=1e-5), case
        for name, total in first[case]["weights"].items():
            assert total == pytest.approx(alone["weights"][name], rel=1e-4, abs=1e-5), name
        flags = [total for name, total in first[case]["weights"].items() if name.endswith("initialized")]
        assert flags == [1.0] * {"normalized": 4, "mixture": 1}.get(case, 0)

    for case in ("spoiled", "resumed", *models):
        assert first[case]["status"] == second[case]["status"] == "finished", case
        assert first[case]["weights"] == second[case]["weights"], case
        assert second[case]["events"] == [], case  # only the first process tells

    assert first["spoiled"]["skipped_steps"] == second["spoiled"]["skipped_steps"] == 1
    assert first["spoiled"]["finite"]
    assert first["spoiled"]["weights"] != first["plain"]["weights"]

    for rank in ranks:
        assert rank["terminated"]["status"] == "interrupted"
        assert rank["terminated"]["steps"] == 5
        assert rank["resumed"]["steps"] == 20
        assert "multiple of 2" in rank["refused"]["message"]
    assert "SIGTERM" in second["terminated"]["reason"]
    assert "another process" in first["terminated"]["reason"]
    for one, two in zip(first["resumed"]["epochs"], first["plain"]["epochs"], strict=True):
        assert flat(one) == pytest.approx(flat(two), rel=1e-12)
    assert first["resumed"]["weights"] == first["plain"]["weights"]
    assert len(lines(tmp_path / "plain")) == 5  # one line per epoch, not one per process and epoch


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="PyTorch sees no GPU"):
        fit(vae(), one_stage(), Images(), options=Options(accelerator="cuda"))
    assert join("auto").device.type == "cpu"


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that believes to be the second of two leaves no file, whether it starts or resumes."""
    monkeypatch.setattr(World, "total", lambda self, values: values)
    monkeypatch.setattr(World, "agree", lambda self, *flags: flags)
    monkeypatch.setattr(World, "wait", lambda self: None)
    second = World(1, 2, torch.device("cpu"))
    monkeypatch.setattr("latentflows.training.loop.join", lambda accelerator: second)
    monkeypatch.setattr("latentflows.training.learner.wrap", lambda step, world, some_unused: step)
    fit(vae(), one_stage(), Images(), out=tmp_path / "new", options=Options(checkpoint_every=1))
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    fit(vae(), one_stage(), Images(), out=tmp_path / "old", options=Options(checkpoint_every=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "old").rglob("*")}
    monkeypatch.setattr("latentflows.training.loop.join", lambda accelerator: second)
    monkeypatch.setattr(World, "gather", lambda self, number: [number, number])
    fit(vae(), one_stage(), Images(), out=tmp_path / "old", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "old").rglob("*")} == before


@pytest.mark.parametrize(("steps", "second"), [(12, "none"), (8, "that of step 8"), (-2, "one that cannot")])
def test_processes_that_find_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, second: str
) -> None:
    """As on nodes with disks of their own: each would go on from where it stands, and wait for the other."""
    fit(vae(), one_stage(), Images(), out=tmp_path)
    monkeypatch.setattr("latentflows.training.loop.join", lambda _: World(0, 2, torch.device("cpu")))
    there = {12: -1}.get(steps, steps)
    monkeypatch.setattr(World, "gather", lambda self, number: [number, there])
    with pytest.raises(CheckpointError, match=rf"step 12, {second}.*`out` must be a folder that all nodes"):
        fit(vae(), one_stage(), Images(), out=tmp_path, resume=True)


def test_every_process_learns_of_a_checkpoint_that_one_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(vae(), one_stage(), Images(), out=tmp_path)
    (tmp_path / "checkpoint" / "last.safetensors").write_bytes(b"broken")
    told: list[int] = []
    monkeypatch.setattr("latentflows.training.loop.join", lambda _: World(0, 2, torch.device("cpu")))
    monkeypatch.setattr(World, "gather", lambda self, number: told.append(number) or [number, 12])
    with pytest.raises(CheckpointError, match="last"):
        fit(vae(), one_stage(), Images(), out=tmp_path, resume=True)
    assert told == [-2]


@pytest.mark.parametrize("renamed", [False, True])
def test_processes_start_from_one_set_of_buffers(monkeypatch: pytest.MonkeyPatch, renamed: bool) -> None:
    """PyTorch before 2.13 sends no buffer at all where it shall send none at every step, so `wrap` does."""
    switches: dict[str, bool] = {}

    class Old(nn.Module):
        def __init__(
            self, module: nn.Module, device_ids: None, broadcast_buffers: bool = True, **_: bool
        ) -> None:
            super().__init__()
            switches["broadcast_buffers"] = broadcast_buffers

    class New(nn.Module):
        def __init__(
            self, module: nn.Module, device_ids: None, forward_sync_buffers: bool = True, **_: bool
        ) -> None:
            super().__init__()
            switches["forward_sync_buffers"] = forward_sync_buffers

    sources: list[int] = []

    def broadcast(values: Tensor, source: int) -> None:
        sources.append(source)
        values.fill_(1)

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", New if renamed else Old)
    monkeypatch.setattr(dist, "broadcast", broadcast)
    step = nn.Module()
    step.register_buffer("flag", torch.tensor(False))
    step.register_buffer("strided", torch.zeros(2, 3, dtype=torch.int64).t())
    wrap(step, World(1, 2, torch.device("cpu")))
    assert switches == {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    assert sources == ([] if renamed else [0, 0])
    assert all(bool(buffer.all()) is not renamed for buffer in step.buffers())
