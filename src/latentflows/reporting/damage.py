"""What is damaged in a run folder of which a page can be made all the same."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from latentflows.core.errors import LatentFlowsError
from latentflows.studies.results.reading import RunFiles
from latentflows.studies.results.records import Epoch, RunRecord
from latentflows.studies.settings.overrides import lost_part


def damages(
    folder: Path, record: RunRecord | None, epochs: Sequence[Epoch], torn_lines: int
) -> dict[str, str]:
    """Say by file what is damaged and what the page lacks therefore; what cannot be done without has been refused.

    Cost: one pass over the selected weights, for their checksum.

    Args:
        folder: A run folder.
        record: Its `run.json`.
        epochs: What could be read of `metrics.jsonl`.
        torn_lines: How many lines were left out there.
    """
    checks = {
        "metrics.jsonl": _log_faults(folder / "metrics.jsonl", record, epochs, torn_lines),
        "config.yaml": _configuration_faults(folder / "config.yaml"),
        "nll.npy": _array_faults(folder),
        "checkpoint/model.safetensors": _weight_faults(folder / "checkpoint" / "model.safetensors"),
    }
    found = {name: " ".join(faults) for name, faults in checks.items()}
    return {name: text for name, text in found.items() if text}


def _log_faults(
    path: Path, record: RunRecord | None, epochs: Sequence[Epoch], torn_lines: int
) -> Iterator[str]:
    if torn_lines:
        yield (
            f"{path}: {torn_lines} torn line at the end was left out: the run stopped while writing it, or the file "
            "was cut."
        )
    last = epochs[-1].step if epochs else 0
    if path.exists() and record is not None and record.status == "finished" and last < record.steps:
        yield f"{path} ends at step {last:,}, and the run had {record.steps:,}: the curves lack their end."


def _configuration_faults(path: Path) -> Iterator[str]:
    if not path.exists():
        return
    try:
        fault = lost_part(path)
    except LatentFlowsError as error:
        yield str(error)
    else:
        if fault:
            yield f"{path} {fault}; it is shown as it is."


def _array_faults(folder: Path) -> Iterator[str]:
    try:
        _ = RunFiles(folder).nll
    except LatentFlowsError as error:
        yield f"{error} Without it, runs are not compared image by image."


def _weight_faults(path: Path) -> Iterator[str]:
    from latentflows.training.checkpoint import load_tensors  # imports torch

    if not path.exists():
        return
    try:
        load_tensors(path)
    except LatentFlowsError as error:
        yield f"{error} The figures stand."
