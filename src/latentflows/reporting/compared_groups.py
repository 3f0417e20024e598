"""Groups of figures over the arms of a study: one table a group, where all were measured by one protocol."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from latentflows.reporting.groups import TOPICS, Words, protocol_in_words, title_of, words_of
from latentflows.reporting.page import number
from latentflows.reporting.parts import MARK
from latentflows.studies.results.figures import OF_LIKELIHOOD, ON_DENSITY
from latentflows.studies.results.protocols import level, model_differences, protocol_differences
from latentflows.studies.results.records import Group, Parameters
from latentflows.studies.results.results import Results
from latentflows.studies.statistics.means import estimate


@dataclass(frozen=True)
class ComparedGroup:
    """One group over all arms.

    Attributes:
        title: Heading.
        about: What the figures are for.
        headings: One for each figure.
        rows: Label of every arm, with a cell for each figure.
        caption: Protocol, and what ± is.
        differences: In what the protocols differ, a sentence each; where they do there are no rows.
        reasons: Why arms have no figures.
    """

    title: str
    about: str
    headings: list[Words]
    rows: list[tuple[str, list[str]]]
    caption: str
    differences: list[str]
    reasons: list[str]


@dataclass(frozen=True)
class _Entry:
    label: str
    seed: int
    group: Group
    likelihood: str | None
    parameters: Parameters | None

    def protocol(self, name: str, keys: Iterable[str]) -> dict[str, Any]:
        """How the figures were measured; of those that are a log p(x), with what that is."""
        kind = {"likelihood": self.likelihood} if OF_LIKELIHOOD.get(name, set()) & set(keys) else {}
        return self.group.protocol | kind


def compared_groups(results: Results) -> list[ComparedGroup]:
    """Every group that a finished run of the study has, in the order of `TOPICS`.

    Raises:
        DataError: if the evaluation of a run cannot be read.
    """
    found: dict[str, list[_Entry]] = {name: [] for name in TOPICS}
    for arm in results.study.arms:
        for seed in results.study.seeds:
            run = results.runs.get((arm.name, seed))
            if run is None or run.status != "finished":
                continue
            for name, group in results.files(run).groups.items():
                entry = _Entry(arm.label, seed, group, run.likelihood, run.parameters)
                found.setdefault(name, []).append(entry)
    return [_compared(results, name, entries) for name, entries in found.items() if entries]


def _compared(results: Results, name: str, entries: list[_Entry]) -> ComparedGroup:
    measured = [entry for entry in entries if entry.group.reason is None]
    keys = list(dict.fromkeys(key for entry in measured for key in entry.group.figures))
    if name in TOPICS:
        keys = [key for key in TOPICS[name].compared if key in keys]
    protocols = {f"{entry.label}, seed {entry.seed}": entry.protocol(name, keys) for entry in measured}
    by_arm: dict[str, list[dict[str, Any]]] = {}
    sizes: dict[str, dict[int, Parameters | None]] = {}
    for entry, protocol in zip(measured, protocols.values(), strict=True):
        by_arm.setdefault(entry.label, []).append(protocol)
        sizes.setdefault(entry.label, {})[entry.seed] = entry.parameters
    level(by_arm)
    differences = protocol_differences(protocols) + model_differences(sizes)
    labels = [arm.label for arm in results.study.arms]
    over_seeds = len(results.study.seeds) > 1
    rows = [(label, [_cell(name, key, label, measured, over_seeds) for key in keys]) for label in labels]
    over = "the deviation over seeds" if over_seeds else "the standard error over data"
    data = {run.protocol.data for run in results.runs.values() if run.protocol is not None}
    known = data.pop() if len(data) == 1 else None  # the page names it once, above
    protocol = protocol_in_words(measured[0].protocol(name, keys), known) if measured else ""
    reasons = {f"{entry.label}: {entry.group.reason}" for entry in entries if entry.group.reason is not None}
    return ComparedGroup(
        title=title_of(name),
        about=TOPICS[name].about if name in TOPICS else "",
        headings=[words_of(name, key) for key in keys],
        rows=rows if measured and not differences else [],
        caption=f"Means over the seeds that finished; ±: {over}. {protocol[:1].upper()}{protocol[1:]}."
        + _density_words(measured if ON_DENSITY.get(name, set()) & set(keys) else []),
        differences=differences,
        reasons=sorted(reasons),
    )


def _cell(name: str, key: str, label: str, entries: list[_Entry], over_seeds: bool) -> str:
    """Mean over seeds with its deviation, where there are several; in a study of one seed its standard error."""
    figures = [entry.group.figures.get(key) for entry in entries if entry.label == label]
    quantities = [figure for figure in figures if figure is not None and math.isfinite(figure.mean)]
    if not quantities:
        return "–"
    decimals = max(words_of(name, key).decimals, int(over_seeds))  # a mean of counts is no count
    inexact = any(entry.group.density != "exact" for entry in entries if entry.label == label)
    mark = MARK if inexact and key in ON_DENSITY.get(name, ()) else ""
    found = estimate([quantity.mean for quantity in quantities])
    error = found.standard_deviation if over_seeds else quantities[0].standard_error
    return (
        mark
        + number(found.mean, decimals)
        + ("" if error is None else f" ± {number(error, max(decimals, 1))}")
    )


def _density_words(entries: list[_Entry]) -> str:
    """Whose figures rest on a density that is not exact, and what it is; empty where all are exact."""
    owners = {entry.label: entry.group.density for entry in entries if entry.group.density != "exact"}
    if not owners:
        return ""
    named = ", ".join(f"“{label}” ({kind})" for label, kind in owners.items())
    return f" {MARK.strip()}: rests on a density that is not exact, that of {named}."
