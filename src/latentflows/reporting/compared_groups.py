"""Groups of figures over the arms of a study: one table a group, where all were measured by one protocol."""

import math
from dataclasses import dataclass

from latentflows.reporting.groups import TOPICS, Words, protocol_in_words, title_of, words_of
from latentflows.reporting.page import number
from latentflows.studies.results.protocols import protocol_differences
from latentflows.studies.results.records import Group
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
                found.setdefault(name, []).append(_Entry(arm.label, seed, group))
    return [_compared(results, name, entries) for name, entries in found.items() if entries]


def _compared(results: Results, name: str, entries: list[_Entry]) -> ComparedGroup:
    measured = [entry for entry in entries if entry.group.reason is None]
    differences = protocol_differences(
        {f"{entry.label}, seed {entry.seed}": entry.group.protocol for entry in measured}
    )
    keys = list(dict.fromkeys(key for entry in measured for key in entry.group.figures))
    if name in TOPICS:
        keys = [key for key in TOPICS[name].compared if key in keys]
    labels = [arm.label for arm in results.study.arms]
    over_seeds = len(results.study.seeds) > 1
    rows = [(label, [_cell(name, key, label, measured, over_seeds) for key in keys]) for label in labels]
    over = "the deviation over seeds" if over_seeds else "the standard error over data"
    data = {run.protocol.data for run in results.runs.values() if run.protocol is not None}
    known = data.pop() if len(data) == 1 else None  # the page names it once, above
    protocol = protocol_in_words(measured[0].group.protocol, known) if measured else ""
    reasons = {f"{entry.label}: {entry.group.reason}" for entry in entries if entry.group.reason is not None}
    return ComparedGroup(
        title=title_of(name),
        about=TOPICS[name].about if name in TOPICS else "",
        headings=[words_of(name, key) for key in keys],
        rows=rows if measured and not differences else [],
        caption=f"Means over the seeds that finished; ±: {over}. {protocol[:1].upper()}{protocol[1:]}.",
        differences=differences,
        reasons=sorted(reasons),
    )


def _cell(name: str, key: str, label: str, entries: list[_Entry], over_seeds: bool) -> str:
    """Mean over seeds with its deviation, where there are several; in a study of one seed its standard error."""
    figures = [entry.group.figures.get(key) for entry in entries if entry.label == label]
    quantities = [figure for figure in figures if figure is not None and math.isfinite(figure.mean)]
    if not quantities:
        return "–"
    decimals = words_of(name, key).decimals
    found = estimate([quantity.mean for quantity in quantities])
    error = found.standard_deviation if over_seeds else quantities[0].standard_error
    return number(found.mean, decimals) + ("" if error is None else f" ± {number(error, max(decimals, 1))}")
