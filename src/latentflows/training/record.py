"""What a run leaves behind while it trains: `metrics.jsonl`, and the checkpoint it can go on from."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from latentflows.core.batches import DataSource, data_hash
from latentflows.core.errors import CheckpointError
from latentflows.training.base import Progress, Stage
from latentflows.training.checkpoint import (
    Tensors,
    load_tensors,
    save_tensors,
    write_atomically,
)
from latentflows.training.parallel import World

# A checkpoint, and the lines of the log that belong to it.
Saved = tuple[Tensors, Progress, list[dict[str, Any]]]


def identity(stages: Sequence[Stage], seed: int, train: DataSource) -> dict[str, Any]:
    """Describe a run as far as resuming must not change it; a stage's length may be extended."""
    return {
        "stages": [described(stage) for stage in stages],
        "seed": seed,
        "training_points": len(train),
        "training_data": data_hash(train),
    }


def described(stage: Stage) -> str:
    """Describe a stage but for its length; of an objective without a repr of its own, by its class."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(replace(stage, max_epochs=1, max_steps=None)))


def lengths(stages: Sequence[Stage]) -> list[list[Any]]:
    """Return name, epochs and steps at most of every stage."""
    return [[stage.name, stage.max_epochs, stage.max_steps] for stage in stages]


class Record:
    """The files of one run.

    Args:
        folder: The run folder.
        run: The run's `identity`.
        lengths: The `lengths` of its stages.
    """

    def __init__(self, folder: Path, run: dict[str, Any], lengths: list[list[Any]]) -> None:
        self.metrics = folder / "metrics.jsonl"
        self.last = folder / "checkpoint" / "last.safetensors"
        self.weights = folder / "checkpoint" / "model.safetensors"
        self.run, self.lengths = run, lengths

    def start(self) -> None:
        """Begin anew: no lines, no checkpoint of an earlier run."""
        self.last.unlink(missing_ok=True)
        self.weights.unlink(missing_ok=True)
        write_atomically(self.metrics, b"")

    def append(self, line: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(_text(line))

    def save(self, tensors: Tensors, progress: Progress) -> None:
        """Write the checkpoint, after the lines that it counts on are on the disk."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            os.fsync(file.fileno())
        state = {"progress": progress.to_json(), "run": self.run, "lengths": self.lengths}
        save_tensors(self.last, tensors, {"kind": "checkpoint", **state})

    def load(self) -> Saved | None:
        """Read the checkpoint and the lines that belong to it; None where no checkpoint was written yet.

        Raises:
            CheckpointError: if a file is damaged, belongs to a run with other settings, or if the length of a stage
                that has ended was changed.
        """
        if not self.last.exists():
            return None
        tensors, state = load_tensors(self.last)
        saved = state.get("run")
        if isinstance(saved, dict):  # earlier versions wrote no hash of the data
            saved = {"training_data": self.run["training_data"], **saved}
        if saved != self.run:
            wrong = [
                key for key in self.run if not isinstance(saved, dict) or saved.get(key) != self.run[key]
            ]
            raise CheckpointError(
                f"{self.last} was written with other {', '.join(wrong)}. Resume with the settings and data it "
                "was started with (only the length of a stage that has not ended may change), or train into another "
                "folder."
            )
        try:
            names = {field.name for field in fields(Progress)}
            progress = Progress(**{key: value for key, value in state["progress"].items() if key in names})
            ended = state["lengths"][: progress.stage]
        except (KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{self.last} lacks the run's progress ({error}). Train again.") from error
        self._check_lengths(ended)
        return tensors, progress, self._lines(progress.lines)

    def load_shared(self, world: World) -> Saved | None:
        """Load the checkpoint as `load` does, and refuse one that not all processes find.

        Raises:
            CheckpointError: as `load`, or in every process if they find different ones.
        """
        error, saved = None, None
        try:
            saved = self.load()
        except CheckpointError as fault:
            error = fault
        steps = world.gather(-2 if error is not None else -1 if saved is None else saved[1].steps)
        if error is not None:
            raise error
        if len(set(steps)) > 1:
            names = {-2: "one that cannot be read", -1: "none"}
            found = ", ".join(names.get(step, f"that of step {step}") for step in steps)
            raise CheckpointError(
                f"The processes do not find the same checkpoint in {self.last.parent}: {found}. `out` must be a "
                "folder that all nodes share."
            )
        return saved

    def _check_lengths(self, ended: list[list[Any]]) -> None:
        """Refuse another length of a stage that has ended: it would change nothing."""
        for (name, *before), (_, *now) in zip(ended, self.lengths, strict=False):
            if before != now:
                raise CheckpointError(
                    f"{self.last}: stage {name!r} has ended, with max_epochs={before[0]}, max_steps={before[1]}; its "
                    f"length cannot become max_epochs={now[0]}, max_steps={now[1]}. Give the lengths it had, or train "
                    "into another folder."
                )

    def keep(self, lines: list[dict[str, Any]]) -> None:
        """Leave these lines alone in `metrics.jsonl`: later ones will be written again."""
        write_atomically(self.metrics, "".join(_text(line) for line in lines).encode())

    def _lines(self, count: int) -> list[dict[str, Any]]:
        try:
            text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
            kept = text.splitlines()[:count]
            lines = [json.loads(line) for line in kept]
        except ValueError as error:
            raise CheckpointError(
                f"{self.metrics} is damaged ({error}). Restore it, or train again."
            ) from error
        if len(lines) < count:
            raise CheckpointError(
                f"{self.metrics} has {len(lines)} lines; the checkpoint knows of {count}. Restore it, or train again."
            )
        return lines


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """Put None, JSON's null, for every figure that is not finite."""
    return {
        name: plain(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in line.items()
    }
