"""Callbacks that watch a run: a progress bar, and one small hook for every tracker. Trackers start with the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentflows.core.errors import ConfigurationError
from latentflows.models.vae import VAE
from latentflows.training.base import Callback, History, Stage

_SHOWN = ("elbo", "reconstruction", "kl", "prior_nll", "code_nll", "perplexity", "nll", "free_energy")
_HELD_OUT = ("elbo", "prior_nll", "code_nll", "nll", "free_energy")
_NO_BOUND = {"elbo": "rec-kl"}  # what it is where the likelihood is none
_BAR_WIDTH = 20
_TIME_WIDTH = 10  # of the time left, and the gaps between columns


class ProgressBar(Callback):
    """One line in the terminal per stage: epoch, ELBO and its parts, learning rate, data points per second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=Console(),  # rich's own one keeps the width that the terminal had at first
        )
        self.tasks: dict[str, Any] = {}
        self.names: Mapping[str, str] = {}

    def on_start(self, model: VAE, stages: Sequence[Stage]) -> None:
        kind = getattr(model.likelihood, "distribution_type", None) if isinstance(model, VAE) else None
        likely = kind is None or kind.normalized  # a class of the user's may leave it out
        self.names = {} if likely else _NO_BOUND
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
        found = _figures(line["train"], _SHOWN)
        shown = [f"{self.names.get(name, name)} {value:.2f}" for name, value in found]
        shown += [f"validation {value:.2f}" for _, value in _figures(line["validation"] or {}, _HELD_OUT)]
        shown.append(f"{line['samples'] / max(line['seconds'], 1e-9):,.0f}/s")
        taken = len(f"{stage} {line['max_epochs']}/{line['max_epochs']}") + _BAR_WIDTH + _TIME_WIDTH
        figures = _fitting(shown, self.bar.console.width - taken)
        self.bar.update(self.tasks[stage], completed=done, figures=figures)


def _figures(found: Mapping[str, float | None], names: Sequence[str]) -> list[tuple[str, float]]:
    """Return those of the figures that there are; of an objective that has none of them, the loss."""
    known = [name for name in names if name in found] or ["loss"]
    return [(name, value) for name in known if (value := found.get(name)) is not None]


def _fitting(shown: list[str], width: int) -> str:
    """Join figures, without those that a narrow terminal would cut off; the last to go is a validation figure."""
    kept = list(shown)
    for least in ("reconstruction ", "perplexity ", "kl ", shown[-1], shown[0]):
        if len(" ".join(kept)) <= width:
            break
        kept = [each for each in kept if not each.startswith(least)] or kept
    return " ".join(kept)


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


@contextmanager
def _starting(package: str) -> Iterator[None]:
    """Make one message of whatever a tracker's package says when it cannot start."""
    try:
        yield
    except Exception as error:
        raise ConfigurationError(
            f"The tracker {package!r} did not start: {str(error).rstrip('. ')}. Change its settings, or leave it out."
        ) from error


class TensorBoardLog(Tracker):
    """Event files that `tensorboard --logdir` reads; a resumed run replaces the epochs that it repeats.

    Raises:
        ConfigurationError: if the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except Exception as error:
            raise _missing("tensorboard") from error
        self.folder, self.make = folder, SummaryWriter
        self.writer: SummaryWriter | None = None

    def log(self, figures: dict[str, float], step: int) -> None:
        if self.writer is None:
            self.writer = self.make(str(self.folder), purge_step=step)
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self, history: History) -> None:
        if self.writer is not None:
            self.writer.close()


class MLflowLog(Tracker):
    """A run in the MLflow experiment of that name, where MLflow's own settings say; a resumed run makes another one.

    Raises:
        ConfigurationError: if the package mlflow is not installed.
    """

    def __init__(self, experiment: str, run_name: str) -> None:
        try:
            import mlflow
        except Exception as error:
            raise _missing("mlflow") from error
        self.mlflow, self.experiment, self.run_name = mlflow, experiment, run_name

    def on_start(self, model: VAE, stages: Sequence[Stage]) -> None:
        with _starting("mlflow"):
            self.mlflow.set_experiment(self.experiment)
            self.mlflow.start_run(run_name=self.run_name)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(figures, step=step)

    def close(self, history: History) -> None:
        self.mlflow.end_run("FINISHED" if history.status == "finished" else "KILLED")


class WandbLog(Tracker):
    """A run in the Weights & Biases project of that name; a resumed run makes another one.

    Raises:
        ConfigurationError: if the package wandb is not installed.
    """

    def __init__(self, project: str, run_name: str, folder: Path) -> None:
        try:
            import wandb
        except Exception as error:
            raise _missing("wandb") from error
        self.wandb, self.project, self.run_name, self.folder = wandb, project, run_name, folder

    def on_start(self, model: VAE, stages: Sequence[Stage]) -> None:
        with _starting("wandb"):
            self.run = self.wandb.init(project=self.project, name=self.run_name, dir=str(self.folder))

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def close(self, history: History) -> None:
        self.run.finish(exit_code=0 if history.status == "finished" else 1)
