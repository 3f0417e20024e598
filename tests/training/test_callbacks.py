"""What a user sees while a run goes on."""

from __future__ import annotations

import builtins
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from latentflows.core.errors import ConfigurationError
from latentflows.distributions import AmortizedBernoulli
from latentflows.models import VAE
from latentflows.training import (
    History,
    MLflowLog,
    Options,
    ProgressBar,
    TensorBoardLog,
    Tracker,
    WandbLog,
    fit,
    session,
)
from latentflows.training.callbacks import scalars
from tests.training.tiny import SHAPE, Images, Poison, Watch, one_stage, two_stages, vae


def test_the_progress_bar_shows_the_elbo_and_its_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(session, "_SHOW_EVERY", 0.0)
    fit(
        vae(prior="real_nvp"), two_stages(), Images(), validation=Images(8, seed=1), callbacks=[ProgressBar()]
    )
    shown = capsys.readouterr().out
    for part in (
        "posterior 556",
        "likelihood",
        "total",
        "autoencoder",
        "3/3",
        "elbo -",
        "reconstruction -",
        "kl ",
    ):
        assert part in shown, part
    for part in ("prior", "prior_nll ", "2/2", "validation ", "/s"):
        assert part in shown, part


@pytest.mark.parametrize(("columns", "left_out"), [(140, ()), (80, ("reconstruction", "kl", "/s"))])
def test_a_narrow_terminal_cuts_no_figure(
    columns: int,
    left_out: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar, figures = ProgressBar(), {"elbo": -132.33, "reconstruction": -101.23, "kl": 23.12}
    times = {"epoch": 37, "max_epochs": 100, "samples": 1_000_000, "seconds": 33.0}
    bar.bar.start()
    bar.on_epoch({"stage": "autoencoder", "train": figures, "validation": {"elbo": -131.22}, **times})
    bar.bar.stop()
    shown = capsys.readouterr().out
    assert "autoencoder" in shown
    assert "37/100" in shown
    assert "elbo -132.33" in shown
    assert "validation -131.22" in shown
    assert "…" not in shown
    assert all((part in shown) == (part not in left_out) for part in ("reconstruction", "kl", "/s"))


@pytest.mark.filterwarnings("ignore:A Bernoulli cross-entropy")
def test_what_is_no_bound_is_not_called_an_elbo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gray, proper = (AmortizedBernoulli(SHAPE, 2, nn.Identity(), gray=gray) for gray in (True, False))
    times = {"epoch": 1, "max_epochs": 2, "samples": 10, "seconds": 1.0}
    figures = {"elbo": -132.33, "reconstruction": -101.23, "kl": 31.1}
    for columns, likelihood, name in (
        (140, gray, "rec-kl"),
        (80, gray, "rec-kl"),
        (140, proper, "elbo"),
    ):
        monkeypatch.setenv("COLUMNS", str(columns))
        bar, model = ProgressBar(), vae()
        bar.on_start(VAE(model.posterior, model.prior, likelihood), [])
        bar.on_epoch({"stage": "vae", "train": figures, "validation": {"elbo": -131.22}, **times})
        bar.bar.stop()
        shown = capsys.readouterr().out
        assert f"{name} -132.33" in shown
        assert "validation -131.22" in shown
        assert ("elbo" in shown) == (name == "elbo")


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"loss": 9.0, "free_energy": -1.5, "energy": 7.0}, "free_energy -1.50 validation -1.50"),
        ({"loss": 9.0, "classifier": 7.0}, "loss 9.00 validation 9.00"),
    ],
    ids=["reverse KL", "no figure of that kind"],
)
def test_every_objective_has_a_figure_on_its_line(figures, expected, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "140")
    bar = ProgressBar()
    bar.bar.start()
    times = {"epoch": 1, "max_epochs": 2, "samples": 10, "seconds": 1.0}
    bar.on_epoch({"stage": "flow", "train": figures, "validation": figures, **times})
    bar.bar.stop()
    assert expected in capsys.readouterr().out


def test_the_progress_bar_tells_of_skipped_steps(capsys: pytest.CaptureFixture[str]) -> None:
    stages = one_stage(Poison(frozenset({1})))
    fit(vae(), stages, Images(), callbacks=[ProgressBar()], options=Options(max_bad_steps=1))
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "skipped" in shown
    assert "learning rate halved" in shown.replace("  ", " ")


def test_on_step_is_called_with_running_means(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Any]] = []

    class Steps(Watch):
        def on_step(self, line: dict[str, Any]) -> None:
            steps.append(line)

    monkeypatch.setattr(session, "_SHOW_EVERY", 0.0)
    watch = Steps()
    fit(vae(), one_stage(), Images(), callbacks=[watch])
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[3]["train"] == watch.lines[0]["train"]
    assert steps[0]["train"] != steps[1]["train"]


def test_a_line_is_flattened_for_trackers() -> None:
    line = {
        "stage": "s",
        "epoch": 2,
        "train": {"elbo": -1.5, "kl": None},
        "validation": None,
        "events": ["x"],
    }
    assert scalars(line) == {"epoch": 2.0, "train/elbo": -1.5}


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = Watch()
    log = TensorBoardLog(tmp_path)
    fit(vae(), one_stage(), Images(), validation=Images(8, seed=1), callbacks=[log, watch])
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    for part, name in (("train", "elbo"), ("train", "kl"), ("validation", "reconstruction")):
        read = events.Scalars(f"{part}/{name}")
        assert [event.step for event in read] == [4, 8, 12]
        assert [event.value for event in read] == pytest.approx([line[part][name] for line in watch.lines])


def test_tensorboard_shows_every_epoch_of_a_resumed_run_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((1, 3), (3, 4)):  # killed after epoch 3, whose checkpoint was that of epoch 2
        log = TensorBoardLog(tmp_path)
        for epoch in range(first, last + 1):
            log.on_epoch({"step": 4 * epoch, "train": {"elbo": -epoch}})
        log.on_end(History())
        time.sleep(1.1)  # the files of a folder are told apart by the second
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/elbo")] == [4, 8, 12, 16]


class Server:
    """Stands for a tracker's package that cannot start."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("nobody there.")

        return refuse


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("mlflow", lambda folder: MLflowLog("experiment", "run")),
        ("wandb", lambda folder: WandbLog("project", "run", folder)),
    ],
)
def test_a_tracker_that_cannot_start_ends_the_run_before_the_first_step(
    package: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, Server())  # type: ignore[arg-type]
    watch = Watch()
    with pytest.raises(
        ConfigurationError, match=rf"'{package}' did not start: nobody there. Change its settings"
    ):
        fit(vae(), one_stage(), Images(), callbacks=[make(tmp_path), watch])
    assert watch.lines == []


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("tensorboard", lambda folder: TensorBoardLog(folder)),
        ("mlflow", lambda folder: MLflowLog("experiment", "run")),
        ("wandb", lambda folder: WandbLog("project", "run", folder)),
    ],
)
def test_a_missing_tracker_says_how_to_get_it(
    package: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == package or "tensorboard" in name:
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=rf"pip install 'latentflows\[{package}\]'"):
        make(tmp_path)


def test_a_tracker_needs_only_log() -> None:
    class Keep(Tracker):
        def __init__(self) -> None:
            self.kept: list[tuple[int, float]] = []

        def log(self, figures: dict[str, float], step: int) -> None:
            self.kept.append((step, figures["train/elbo"]))

    keep = Keep()
    history: History = fit(vae(), one_stage(), Images(), callbacks=[keep])
    assert keep.kept == [(line["step"], line["train"]["elbo"]) for line in history.epochs]
    with pytest.raises(TypeError, match="abstract"):
        Tracker()  # type: ignore[abstract]
