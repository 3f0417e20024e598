"""Protocols of figures: in what two of them differ, and how a value of one is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from latentflows.studies.results.records import NO_LIKELIHOOD, Parameters


def level(protocols: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Fill in, in place, what makes no difference: an exact figure has no K, and earlier versions wrote less.

    They named no likelihood, which is known from other runs of the same arm alone, and wrote no hash of the data.

    Args:
        protocols: Of one figure, of the runs of each arm.
    """
    every = [each for found in protocols.values() for each in found]
    for each in every:
        each.setdefault("data_hash", None)
    _fill("num_importance_samples", every)
    _fill("data_hash", every)
    for found in protocols.values():
        _fill("likelihood", found)


def _fill(field: str, protocols: Sequence[dict[str, Any]]) -> None:
    values = (each.get(field) for each in protocols)
    known = next((value for value in values if value not in (None, NO_LIKELIHOOD)), None)
    for each in protocols:
        if field in each and each[field] is None:
            each[field] = known


def protocol_differences(protocols: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in which fields, other than the seed, protocols differ from the first one; a sentence for each field.

    Args:
        protocols: By the name of the run.
    """
    if not protocols:
        return []
    (first_name, first), *others = protocols.items()
    said: dict[str, str] = {}
    for name, other in others:
        for field in {**first, **other}:
            one, two = first.get(field), other.get(field)
            if field != "seed" and one != two:
                values = [
                    "not known" if field == "likelihood" and each is None else shown(each)
                    for each in (one, two)
                ]
                said.setdefault(field, f"{field}: {values[0]} ({first_name}) and {values[1]} ({name})")
    return list(said.values())


def model_differences(parameters: Mapping[str, Mapping[int, Parameters | None]]) -> list[str]:
    """Say which arms join models of different sizes: those were built before and after a change of the code.

    Args:
        parameters: Of the runs of each arm, by its label, by seed; None where they are not known.
    """
    said = []
    for label, by_seed in parameters.items():
        sizes = {seed: found.total for seed, found in by_seed.items() if found is not None}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{size:,} (seed {seed})" for seed, size in sizes.items())
            said.append(
                f"parameters of “{label}”: {listed}, as the code changed between its runs; train them all again, in a "
                "new folder or with --overwrite"
            )
    return said


def shown(value: Any) -> str:
    """Return a value of a protocol as text; a hash is cut, as its start tells it apart."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:12] + "…"
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
