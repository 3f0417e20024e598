"""Several runs seen by their watchers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from latentflows.models.density import Model
from latentflows.training.base import Callback, History, Stage


class GroupProgress:
    """Hands on what happens in several runs to callbacks that watch one.

    The group starts with the first run, and ends with the last. It has ended an epoch when every run has ended it, or
    is past it; the line is that of the last of them. Means within an epoch are those of a run behind all others.

    Args:
        callbacks: Watch the group.
        names: Of the runs; they stand before events.
    """

    def __init__(self, callbacks: Sequence[Callback], names: Sequence[str]) -> None:
        self.callbacks, self.names = callbacks, list(names)
        self.places = [(-1.0, 0.0)] * len(self.names)  # stage and epoch that each run has ended
        self.started = False

    def of(self, number: int) -> list[Callback]:
        """Return what the run of that number is to be watched by."""
        return [_Part(self, number)] if self.callbacks else []

    def move(self, number: int, place: tuple[float, float], line: dict[str, Any] | None) -> None:
        """Note how far a run is, and tell of an epoch that all have ended now."""
        before = min(self.places)
        self.places[number] = place
        if line is not None and min(self.places) > before:
            for callback in self.callbacks:
                callback.on_epoch(line)


class _Part(Callback):
    """Watches one run of a group."""

    def __init__(self, group: GroupProgress, number: int) -> None:
        self.group, self.number = group, number
        self.stages: list[str] = []

    def on_start(self, model: Model, stages: Sequence[Stage]) -> None:
        self.stages = [stage.name for stage in stages]
        if not self.group.started:
            self.group.started = True
            for callback in self.group.callbacks:
                callback.on_start(model, stages)

    def on_step(self, line: dict[str, Any]) -> None:
        if self.group.places[self.number] == min(self.group.places):
            for callback in self.group.callbacks:
                callback.on_step(line)

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.group.move(self.number, (self.stages.index(line["stage"]), line["epoch"]), line)

    def on_event(self, text: str) -> None:
        for callback in self.group.callbacks:
            callback.on_event(f"{self.group.names[self.number]}: {text}")

    def on_end(self, history: History) -> None:
        self.group.move(self.number, (math.inf, math.inf), None)
        if min(self.group.places)[0] == math.inf:
            for callback in self.group.callbacks:
                callback.on_end(history)
