"""Checkpoints: one safetensors file each, written atomically; loading one executes nothing.

`last.safetensors` holds all that a run needs to go on, `model.safetensors` the selected weights. Tensors are stored
under names, everything else as one JSON text in the file's header. A file is written beside its target, synced to
disk, and renamed over it, so that a crash at any moment leaves either the old file or the new one.

Size: weights W, optimizer 2 W (Adam), moving average W, best weights W, last good state up to 4 W, 4 bytes a number.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentflows._version import __version__
from latentflows.core.errors import CheckpointError
from latentflows.core.files import write_atomically

FORMAT = 1
Tensors = dict[str, Tensor]


def save_tensors(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write tensors, each with memory of its own as `clone` gives it, and a JSON state to one file, atomically."""
    from safetensors.torch import save

    text = json.dumps({"format": FORMAT, "version": __version__, **state})
    header = {"latentflows": text, "checksum": _checksum(tensors, text)}
    write_atomically(path, save(tensors, metadata=header))


def _checksum(tensors: Tensors, text: str) -> str:
    """Return the CRC-32 of the JSON state and of every tensor's name, type, shape and bytes."""
    code = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        code = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), code)
        code = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, code)
    return f"{code:08x}"


def load_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another kind or a newer format.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}. Train first, or give the folder of another run.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            header = file.metadata() or {}
        state = json.loads(header["latentflows"])
        if header["checksum"] != _checksum(tensors, header["latentflows"]):
            raise ValueError("its checksum does not match its content")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}). If an older copy exists, put it in its place; "
            "otherwise train again."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format') if isinstance(state, dict) else state!r}; this version reads "
            f"{FORMAT}. Use the latentflows version that wrote it."
        )
    return tensors, state


def save_weights(model: nn.Module, path: Path) -> None:
    """Save a model's parameters and buffers."""
    save_tensors(path, clone(model.state_dict()), {"kind": "weights"})


def load_weights(model: nn.Module, path: Path) -> None:
    """Load parameters and buffers saved by `save_weights` into a model of the same shape.

    Raises:
        CheckpointError: if the file is unreadable, or belongs to another model.
    """
    tensors, _ = load_tensors(path)
    set_weights(model, tensors, str(path))


def set_weights(model: nn.Module, tensors: Tensors, source: str) -> None:
    """Copy tensors into a model, refusing anything missing, extra, or of another shape.

    Raises:
        CheckpointError: naming the first few differences.
    """
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own.keys() - tensors.keys()]
    wrong += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} belongs to another model: {'; '.join(sorted(wrong)[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. Use the configuration it was trained with, "
            "and the version of latentflows: CHANGELOG.md says where weights of one no longer fit the next."
        )
    model.load_state_dict(tensors)


def clone(tensors: Tensors) -> Tensors:
    """Copy to the CPU, contiguous; tied weights become separate."""
    layout = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=layout) for name, tensor in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimizer's state by "index.name"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def set_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimizer_tensors` returned; an empty dict resets the optimizer."""
    current = optimizer.state_dict()
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """Put a prefix before every name."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def within(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose names begin with the prefix, without it."""
    start = f"{prefix}/"
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
