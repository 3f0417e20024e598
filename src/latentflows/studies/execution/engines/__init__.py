"""Where the runs of a study take place: worker processes of this machine, or a Ray cluster."""

from __future__ import annotations

from latentflows.core.errors import ConfigurationError
from latentflows.studies.execution.engines.base import Engine, Event
from latentflows.studies.execution.engines.local import LocalPool
from latentflows.studies.execution.engines.ray import RayEngine

__all__ = ["Engine", "Event", "LocalPool", "RayEngine", "engine_from"]


def engine_from(
    name: str, *, workers: int | None = None, address: str | None = None, gpus_per_run: float = 0.0
) -> Engine:
    """Return an engine by name.

    Args:
        name: "local" for a pool of processes on this machine, "ray" for Ray.
        workers: Jobs at a time; None for two on the local pool, and for as many as the cluster has room for on Ray.
        address: Of a Ray cluster, such as "auto" or "HOST:6379"; None for one that is started on this machine.
        gpus_per_run: Share of a GPU that Ray gives to each job.

    Raises:
        ConfigurationError: with all faults.
    """
    faults = []
    if name not in ("local", "ray"):
        faults.append(f"`engine` must be local or ray; got {name!r}.")
    if workers is not None and workers < 1:
        faults.append(f"`workers` must be at least 1; got {workers}.")
    if gpus_per_run < 0 or (not gpus_per_run <= 1 and gpus_per_run % 1 != 0):  # NaN and infinity too
        faults.append(f"`gpus_per_run` must be between 0 and 1, or a whole number; got {gpus_per_run:g}.")
    if name == "local" and address is not None:
        faults.append(f"`address`={address} is of a Ray cluster: use it with the engine ray.")
    if name == "local" and gpus_per_run:
        faults.append("The engine local shares out no GPUs: use the engine ray for `gpus_per_run`.")
    if faults:
        raise ConfigurationError(" ".join(faults))
    if name == "ray":
        return RayEngine(address, workers=workers, gpus_per_run=gpus_per_run)
    return LocalPool(2 if workers is None else workers)
