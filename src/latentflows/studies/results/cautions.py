"""What a reader must know of figures by how they were measured, a sentence or two for each matter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentflows.studies.results.records import Protocol

_MEASURED = ("seed", "normalizer_error", "solver_evaluations", "solver_error", "probe_error")


def cautions(protocols: Iterable[Protocol]) -> list[str]:
    """Say what a reader of the figures of a model must know; nothing where all is plain.

    Args:
        protocols: Of its runs: what they say alike is said once, with the range of what was measured of each.
    """
    alike: dict[str, list[Protocol]] = {}
    for protocol in protocols:
        alike.setdefault(protocol.model_dump_json(exclude=set(_MEASURED)), []).append(protocol)
    return [sentence for found in alike.values() for sentence in _of_alike(found)]


def _of_alike(protocols: Sequence[Protocol]) -> list[str]:
    """Sentences on protocols that differ in measured errors alone."""
    one = protocols[0]
    notes = []
    if one.given is not None:
        notes.append(
            f"The model is given the {one.given} of every image: its figures are of p(x | {one.given}), not p(x)."
        )
    if one.posterior is not None:
        notes.append(
            f"The bound is that of {one.posterior}: it is exact, but not importance weighted, so it does not "
            "compare with an NLL. A lower one means a better model, a higher one proves nothing."
        )
    if one.without_bound is not None:
        notes.append(f"There is no bound on log p(x): {one.without_bound}.")
    if one.likelihood == "density on gray levels without noise":
        notes.append(
            "log p(x) is a density at gray levels without noise: it is the probability of nothing, has no bits per "
            "dimension, and compares with no figure of another kind."
        )
    if one.split == "validation":
        notes.append("The weights were selected on the validation split, so figures on it flatter the model.")
    if one.prior_density != "exact":
        notes.append(_density(protocols))
    return notes


def _density(protocols: Sequence[Protocol]) -> str:
    """What a density that is not exact does to the figures, and what it rests on."""
    one = protocols[0]
    of_data = one.num_importance_samples is None  # a density of the data themselves: no latents, no bound
    whose, rest = ("The model's", "the NLL is") if of_data else ("The prior's", "NLL, ELBO and KL are")
    error = _range(protocol.normalizer_error for protocol in protocols)
    off = "" if error is None else f", with an error of {error} nats"
    if one.prior_density == "estimate":
        said = (
            f"{whose} density is an estimate, too low on average{off}: the ELBO is too low and the KL too high by "
            "what it lacks, so neither compares with that of another prior; the NLL stays a bound, looser for it."
        )
    else:
        said = f"{whose} density is {one.prior_density}, not exact{off}: {rest} right up to the error of it."
    return said if one.prior_solver is None else f"{said} {_solved(protocols)}"


def _solved(protocols: Sequence[Protocol]) -> str:
    """What the density rests on where an equation gives it."""
    evaluations = _range((protocol.solver_evaluations or 0 for protocol in protocols), ",.0f")
    said = f"It is solved by {protocols[0].prior_solver}: {evaluations} evaluations for each latent"
    solver = _range(protocol.solver_error for protocol in protocols)
    probes = _range(protocol.probe_error for protocol in protocols)
    said += "" if solver is None else f", {solver} nats from that of a finer solution"
    said += "" if probes is None else f", a standard error of {probes} nats from the probes"
    return f"{said}, on average."


def _range(values: Iterable[float | None], shown: str = ".2g") -> str | None:
    """The values in text: one number, or the smallest and the largest; None where there are none."""
    known = sorted(value for value in values if value is not None)
    ends = dict.fromkeys(f"{value:{shown}}" for value in (known[:1] + known[-1:]))
    return " to ".join(ends) or None


def of_owners(protocols: Mapping[str, Sequence[Protocol]]) -> list[str]:
    """The cautions of several models, each with the names of those that it is of, unless it is of all.

    Args:
        protocols: Of the runs of each model, by its name.
    """
    owners: dict[str, list[str]] = {}
    for name, found in protocols.items():
        for sentence in dict.fromkeys(cautions(found)):
            owners.setdefault(sentence, []).append(name)
    num = sum(map(bool, protocols.values()))
    return [
        sentence if len(names) == num else f"{', '.join(f'“{name}”' for name in names)}: {sentence}"
        for sentence, names in sorted(owners.items(), key=lambda owned: -len(owned[1]))
    ]


def of_comparison(protocols: Mapping[str, Sequence[Protocol]], *, quantity: str, weighted: bool) -> list[str]:
    """Say what densities that are not exact mean for a comparison; nothing where all are exact.

    Args:
        protocols: Of the runs of each side, by its name.
        quantity: What is compared, such as "NLL".
        weighted: Whether it is a mean of importance weights, which stays a bound where log p(z) is too low on average.
    """
    sentences = []
    for name, found in protocols.items():
        kinds = dict.fromkeys(one.prior_density for one in found if one.prior_density != "exact")
        for kind in kinds:
            if kind == "estimate" and weighted:
                words = (
                    "is an estimate, too low on average: its bound is looser for that, to its disadvantage"
                )
            elif kind == "estimate":
                words = (
                    "is an estimate, too low on average, so this figure does not compare with that of another prior: "
                    "nothing about the models follows from the difference"
                )
            else:
                words = f"is {kind}, not exact{_off(found)}, which no interval and no test here holds"
            sentences.append(f"The density behind the {quantity} of “{name}” {words}.")
    return sentences


def _off(protocols: Sequence[Protocol]) -> str:
    """The largest known error of a density, in words; empty where none is known."""
    errors = (
        error for one in protocols for error in (one.normalizer_error, one.solver_error) if error is not None
    )
    largest = max(errors, default=math.nan)
    return "" if math.isnan(largest) else f" (off by about {largest:.2g} nats)"
