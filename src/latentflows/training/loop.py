"""`fit`: trains a model through its stages, survives bad steps, signals and crashes, and resumes exactly.

Every step draws its noise from (seed, stage, step, shard) and every epoch its order from (seed, stage, epoch), so a
checkpoint needs no generator's state: a resumed run repeats what the killed one would have done, bit by bit on a CPU.
A batch is cut in shards, one per process and per accumulated piece; two processes, or one with two pieces, see the
same data and the same noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from latentflows.core import noise
from latentflows.core.batches import Batch, DataSource
from latentflows.core.errors import ConfigurationError
from latentflows.models.density import Model
from latentflows.training.base import Callback, History, Job, Options, Stage, check_run
from latentflows.training.parallel import World, join
from latentflows.training.record import Record, identity, lengths
from latentflows.training.session import Session
from latentflows.training.signals import stop_signals


def fit(
    model: Model,
    stages: Stage | Sequence[Stage],
    train: DataSource,
    *,
    validation: DataSource | None = None,
    out: Path | None = None,
    seed: int = 0,
    options: Options | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> History:
    """Train `model` in place through `stages`, one after the other.

    With validation data the weights of the best epoch of each stage are kept: by ELBO at beta 1 (by its own bound for
    IWAE, by log-density for a prior's stage). A non-finite loss or gradient skips the step; several in a row restore
    the last good state at half the learning rate. SIGINT and SIGTERM end the run after the step, resumable.

    Under `torchrun` every process calls `fit`; the batch is divided among them and only the first one writes.

    Memory: 4 bytes times (weights, gradients, 2 moments, optional moving average) on the device, and copies of the
    best weights and of the last good state in main memory.

    Args:
        model: Trained in place; ends with the selected weights, in eval mode.
        stages: One, or several of different names.
        train: Training data; batches are drawn without replacement, an incomplete last one is left out.
        validation: Held-out data.
        out: Folder for `metrics.jsonl` and `checkpoint/`; without it nothing is written.
        seed: Of order and noise. The weights are the caller's.
        options: Device, precision, compilation, checkpoints, tolerance to bad steps.
        callbacks: Progress bar, trackers.
        resume: Go on from `out`, if there is a checkpoint.

    Raises:
        CombinationError: if a stage cannot train this model.
        ConfigurationError: for stages without a name of their own, a batch that cannot be divided, or data of a type
            that the parameters cannot take.
        DataError: for data that the likelihood gives no probability to.
        CheckpointError: if the checkpoint to resume from is damaged or belongs to another run, or if the length of a
            stage that has ended was changed.
    """
    options = options or Options()
    stages = (stages,) if isinstance(stages, Stage) else stages
    world = join(options.accelerator)
    job = Job(model, tuple(stages), train, validation, out, seed, callbacks)
    check_run(job, world.size, options)
    with noise.preserved(), stop_signals() as stop:
        return open_session(job, options, world, stop).alone(resume)


def open_session(job: Job, options: Options, world: World, stop: list[int]) -> Session:
    """Move the model to its device, look at the data, and return the run, which has not begun.

    Raises:
        ConfigurationError: for data of a type that the parameters cannot take.
        DataError: for data that the likelihood gives no probability to.
    """
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # with the first one torch imports for seconds
    job.model.to(world.device).eval()
    check_data(job.model, (job.train, job.validation), world.device)
    record = None
    if job.out is not None:
        run = identity(job.stages, job.seed, job.train)
        record = Record(Path(job.out), run, lengths(job.stages))
    return Session(job, record, options, world, stop)


def check_data(
    model: Model, sources: Iterable[DataSource | None], device: torch.device | None = None
) -> None:
    """Look at the first 1,000 data points of each source; a model in eval mode, on `device` or where the data lie.

    Raises:
        ConfigurationError: for data of a type that the parameters cannot take.
        DataError: for data that the likelihood gives no probability to.
    """
    for source in sources:
        if source is not None:
            batch = source.batch(torch.arange(min(len(source), 1000)))
            _check_batch(model, batch if device is None else batch.to(device))


def _check_batch(model: Model, batch: Batch) -> None:
    """Look at data points; where the model fails for their type, say so in place of torch."""
    try:
        model.check_data(*batch)
    except RuntimeError as error:
        types = {p.dtype for p in model.parameters() if p.is_floating_point()}
        if not types or batch.x.dtype in types:
            raise
        of_model = ", ".join(sorted(map(str, types)))
        raise ConfigurationError(
            f"The model's parameters are {of_model} and the data {batch.x.dtype}, which it cannot take ({error}). "
            "Convert one of them, as by `model.float()`; for less precision use "
            '`Options(precision="bf16-mixed")`.'
        ) from error
