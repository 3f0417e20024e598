"""Callbacks that watch a run: a progress bar, and one small hook for every tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentflows.core.errors import ConfigurationError
from latentflows.models.vae import VAE
from latentflows.training.base import Callback, History, Stage


class ProgressBar(Callback):
    """One line in the terminal per stage: epoch, ELBO and its parts, learning rate, data points per second."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
        )
        self.tasks: dict[str, Any] = {}

    def on_start(self, model: VAE, stages: Sequence[Stage]) -> None:
        counts = ", ".join(f"{name} {count:,}" for name, count in model.num_parameters().items())
        self.bar.console.print(f"Parameters: {counts}")
        self.bar.start()

    def on_step(self, line: dict[str, Any]) -> None:
        self._show(line, line["epoch"] - 1)

    def on_epoch(self, line: dict[str, Any]) -> None:
        self._show(line, line["epoch"])

    def on_event(self, text: str) -> None:
        self.bar.console.print(text)

    def on_end(self, history: History) -> None:
        self.bar.stop()

    def _show(self, line: dict[str, Any], done: int) -> None:
        stage = line["stage"]
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=line["max_epochs"], figures="")
        shown = [
            f"{name} {line['train'][name]:.2f}"
            for name in ("elbo", "reconstruction", "kl", "prior_nll")
            if line["train"].get(name) is not None
        ]
        held_out = line["validation"] or {}
        shown += [
            f"validation {held_out[name]:.2f}"
            for name in ("elbo", "prior_nll")
            if held_out.get(name) is not None
        ]
        shown.append(f"{line['samples'] / max(line['seconds'], 1e-9):,.0f}/s")
        self.bar.update(self.tasks[stage], completed=done, figures=" ".join(shown))


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Flatten a line of `metrics.jsonl` to what trackers take: "train/elbo", "validation/kl", "learning_rate"."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{name}": float(v) for name, v in value.items() if v is not None}
        elif isinstance(value, int | float):
            flat[key] = float(value)
    return flat


class Tracker(Callback, ABC):
    """Sends every epoch's figures somewhere. To write one, implement `log`; override `close` if needed."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.log(scalars(line), int(line["step"]))

    def on_end(self, history: History) -> None:
        self.close(history)

    @abstractmethod
    def log(self, figures: dict[str, float], step: int) -> None:
        """Record figures at an optimizer step."""

    def close(self, history: History) -> None:
        """End the log."""


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(
        f"The tracker {package!r} is not installed. Run `pip install 'latentflows[{package}]'`, or leave it out."
    )


class TensorBoardLog(Tracker):
    """Event files that `tensorboard --logdir` reads.

    Raises:
        ConfigurationError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except Exception as error:
            raise _missing("tensorboard") from error
        self.writer = SummaryWriter(str(folder))

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self, history: History) -> None:
        self.writer.close()


class MLflowLog(Tracker):
    """A run in the MLflow experiment of that name, at the server that MLflow's own settings name.

    Raises:
        ConfigurationError: if the package mlflow is not installed.
    """

    def __init__(self, experiment: str, run_name: str) -> None:
        try:
            import mlflow
        except Exception as error:
            raise _missing("mlflow") from error
        self.mlflow = mlflow
        mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=run_name)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(figures, step=step)

    def close(self, history: History) -> None:
        self.mlflow.end_run("FINISHED" if history.status == "finished" else "KILLED")


class WandbLog(Tracker):
    """A run in the Weights & Biases project of that name.

    Raises:
        ConfigurationError: if the package wandb is not installed.
    """

    def __init__(self, project: str, run_name: str, folder: Path) -> None:
        try:
            import wandb
        except Exception as error:
            raise _missing("wandb") from error
        self.run = wandb.init(project=project, name=run_name, dir=str(folder))

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def close(self, history: History) -> None:
        self.run.finish(exit_code=0 if history.status == "finished" else 1)
