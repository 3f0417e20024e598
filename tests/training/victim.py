"""Runs that are killed for real: `python -m tests.training.victim FOLDER` kills one child process per case.

The parent imports everything once and never trains, so that a fork is safe and costs no second import.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # what an optimizer imports at its first step: once here, not in every child

from latentflows.training import Callback, Options, fit
from latentflows.training.checkpoint import load_tensors
from latentflows.training.record import Record
from tests.training.tiny import Images, two_stages, vae

OPTIONS = Options(checkpoint_every=3)
# Two stages of 12 and 8 steps; the sources are read once each for the check of the data, the training
# data once more for their hash, and held out once per epoch.
READS = {"early": 3, "mid-epoch": 9, "second stage": 18, "last step": 22}
SIGNALS = {
    **{f"kill {name}": (signal.SIGKILL, read) for name, read in READS.items()},
    "terminate": (signal.SIGTERM, 10),
    "interrupt": (signal.SIGINT, 10),
    "terminate last step of the stage": (signal.SIGTERM, 14),
}
PLACES = (
    "kill before the checkpoint between stages",
    "kill after the checkpoint between stages",
    "kill while writing",
)


def train(
    folder: Path, *, on_read: Callable[[int], None] | None = None, resume: bool = False, **settings: object
) -> str:
    """Run the two stages, and return the status."""
    history = fit(
        vae("iaf", "real_nvp"),
        two_stages(),
        Images(on_read=on_read),
        validation=Images(16, seed=1),
        out=folder,
        seed=11,
        options=OPTIONS,
        resume=resume,
        **settings,  # type: ignore[arg-type]
    )
    return history.status


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(case: str, folder: Path) -> None:
    if case in SIGNALS:
        number, at = SIGNALS[case]
        train(folder, on_read=lambda read: os.kill(os.getpid(), number) if read == at else None)
        return
    if case == "kill while writing":

        class AfterFourLines(Callback):
            def on_epoch(self, line: dict) -> None:
                if line["stage"] == "prior":
                    os.replace = lambda *_: _die()  # type: ignore[assignment]

        train(folder, callbacks=[AfterFourLines()])
    original = Record.save

    def save(self: Record, tensors: dict, progress: object) -> None:
        between = progress.stage == 1 and progress.stage_steps == 0  # type: ignore[attr-defined]
        if between and "before" in case:
            _die()
        original(self, tensors, progress)  # type: ignore[arg-type]
        if between:
            _die()

    Record.save = save  # type: ignore[method-assign]
    train(folder)


def main(root: Path) -> None:
    """Run every case in a child process, and write how each one ended."""
    torch.set_num_threads(1)
    ended = {}
    for case in (*SIGNALS, *PLACES):
        child = os.fork()
        if child == 0:
            try:
                _child(case, root / case)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        last = root / case / "checkpoint" / "last.safetensors"
        steps = load_tensors(last)[1]["progress"]["steps"] if last.exists() else 0
        ended[case] = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "steps": steps}
    (root / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
