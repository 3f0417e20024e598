"""Classes of a conditional run, by name or by number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from latentflows.core.errors import CheckpointError, CombinationError, ConfigurationError
from latentflows.models.density import Model


def class_names(run_folder: Path) -> tuple[str, ...]:
    """Return the names of the classes as the run recorded them; empty where it has none.

    Raises:
        CheckpointError: if the record cannot be read.
    """
    path = run_folder / "run.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("labels", [])
        if not all(isinstance(name, str) for name in names):
            raise TypeError("names that are no text")
    except (OSError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}). Restore the file.") from None
    return tuple(names)


def find_labels(model: Model, words: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the classes that are meant, all of them where none is named.

    Args:
        model: That is given a label, as a one-hot vector (C,).
        words: Names, or numbers from 0 to C - 1.
        names: Names of the classes, in their order; may be empty.

    Raises:
        CombinationError: if the model is given no label.
        ConfigurationError: if there is no such class.
    """
    shape = model.context_shape
    if shape is None or len(shape) != 1:
        raise CombinationError(
            "This model is given no label. Train one with condition.on=labels, or leave --label out."
        )
    found = []
    for word in words:
        if word in names:
            found.append(list(names).index(word))
        elif word.isdecimal() and int(word) < shape[0]:
            found.append(int(word))
        else:
            numbers = [str(number) for number in range(shape[0])]
            known = f" or {', '.join(names)}" if names and list(names) != numbers else ""
            raise ConfigurationError(f"`--label` must be 0 to {shape[0] - 1}{known}; got {word!r}.")
    return found or list(range(shape[0]))


def shown_labels(labels: Sequence[int], names: Sequence[str]) -> str:
    """Say which classes these are."""
    return ", ".join(names[label] if label < len(names) else str(label) for label in labels)
