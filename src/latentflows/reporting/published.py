"""What the literature reports beside what a study reached, and at which share of the training."""

from __future__ import annotations

from dataclasses import dataclass

from latentflows.reporting.table import StudyTable
from latentflows.studies.results.records import Published
from latentflows.studies.statistics.means import Estimate


@dataclass(frozen=True)
class PublishedRow:
    """One arm beside a published figure.

    Attributes:
        label: Name of the arm to show.
        published: The figure as published, with its spread; None for an arm that the literature has not.
        reached: NLL over the seeds that finished; None without any.
        epochs: Epochs that were trained.
        share: Of the epochs of the published runs; None where the arm has no finished run.
        mark: Before what was reached, where that rests on a density that is not exact.
    """

    label: str
    published: str | None
    reached: Estimate | None
    epochs: float | None
    share: float | None
    mark: str = ""


def published_rows(published: Published | None, table: StudyTable) -> list[PublishedRow]:
    """Return a row for every arm, in the order of the study; none where the study names no published figures."""
    if published is None:
        return []
    rows = []
    for row in table.rows:
        epochs = None if row.epochs is None else row.epochs.mean
        share = None if epochs is None else epochs / published.epochs
        figure = published.figures.get(row.arm)
        rows.append(PublishedRow(row.label, figure, row.nll, epochs, share, row.mark))
    return rows
