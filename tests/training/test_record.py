"""The files of a run, apart from the loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentflows.core.errors import CheckpointError
from latentflows.training.base import Progress
from latentflows.training.checkpoint import save_tensors, save_weights
from latentflows.training.record import Record, identity, lengths
from tests.training.tiny import Images, one_stage, vae

RUN = identity(one_stage(), 0, Images())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    record = Record(tmp_path, RUN, lengths(one_stage()))
    record.start()
    assert record.load() is None
    record.append({"epoch": 1, "elbo": -0.1})
    progress = Progress(steps=7, lines=1, sums=[0.1, 0.2], rate_scale=0.5, events=["told"], best=-1 / 3)
    record.save({"model/w": torch.ones(2)}, progress)
    record.append({"epoch": 2})
    loaded = record.load()
    assert loaded is not None
    tensors, again, lines = loaded
    assert torch.equal(tensors["model/w"], torch.ones(2))
    assert again == progress
    assert lines == [{"epoch": 1, "elbo": -0.1}]
    assert len(record.metrics.read_text().splitlines()) == 2  # reading changes nothing
    record.keep(lines)
    assert len(record.metrics.read_text().splitlines()) == 1


def test_weights_are_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    record = Record(tmp_path, RUN, lengths(one_stage()))
    save_weights(vae(), record.last)
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        record.load()


def test_progress_that_is_missing_is_an_error_with_a_name(tmp_path: Path) -> None:
    record = Record(tmp_path, RUN, lengths(one_stage()))
    save_tensors(record.last, {}, {"kind": "checkpoint", "run": RUN})
    with pytest.raises(CheckpointError, match=r"last\.safetensors lacks the run's progress"):
        record.load()


def test_identity_forgets_length_and_nothing_else() -> None:
    assert identity(one_stage(max_epochs=9, max_steps=3), 0, Images()) == RUN
    for other in (
        identity(one_stage(), 1, Images()),
        identity(one_stage(), 0, Images(33)),
        identity(one_stage(), 0, Images(seed=1)),
        identity(one_stage(batch_size=4), 0, Images()),
        identity(one_stage(ema_decay=0.5), 0, Images()),
        identity(one_stage(patience=3), 0, Images()),
    ):
        assert other != RUN


def test_a_figure_that_is_no_json_is_never_written(tmp_path: Path) -> None:
    record = Record(tmp_path, RUN, lengths(one_stage()))
    record.start()
    with pytest.raises(ValueError, match="JSON"):
        record.append({"elbo": float("nan")})
    assert record.metrics.read_text() == ""
