"""Rows of a study's table, and the parts that it falls into: figures of two kinds never share a column."""

from __future__ import annotations

from dataclasses import dataclass, replace

from latentflows.studies.results.records import NO_LIKELIHOOD, Parameters
from latentflows.studies.results.results import Results
from latentflows.studies.statistics.means import Estimate

MARK = "≈ "
MARK_WORDS = (
    "≈: rests on a density of the prior, or of the model, that is not exact; what that means stands above."
)


@dataclass(frozen=True)
class Row:
    """One arm: estimates are over the seeds that finished, None where no seed has the figure.

    Attributes:
        arm: Name of the arm.
        label: Name to show.
        is_baseline: Whether other arms are compared with this one.
        parameters: Number of parameters by part.
        num_finished: Seeds that finished with a finite NLL; the others are left out of every estimate.
        num_seeds: Seeds that the study asks for.
        num_diverged: Of these, those at which the run diverged or gave no finite NLL: the arm is flattered without.
        epochs: Epochs that were trained, over all stages.
        nll: NLL of the evaluated split, nats; the bound on it where no run of the study has an NLL.
        nll_standard_error: Mean over seeds of the standard error over images, nats.
        elbo: ELBO, nats.
        kl: KL part, nats.
        reconstruction: Reconstruction part, nats.
        seconds: Seconds of the run.
        nll_by_seed: NLL of every seed that counts.
        difference: Paired difference in NLL to the arm that this one is compared with; None for an arm that is compared
            with none, or without shared seeds.
        difference_by_seed: The same for every shared seed.
        verdict: What the difference supports; None for an arm that is compared with none.
        densities: What the prior's density is that NLL, ELBO and KL rest on, where it is not exact.
    """

    arm: str
    label: str
    is_baseline: bool
    parameters: Parameters | None
    num_finished: int
    num_seeds: int
    num_diverged: int
    epochs: Estimate | None
    nll: Estimate | None
    nll_standard_error: float | None
    elbo: Estimate | None
    kl: Estimate | None
    reconstruction: Estimate | None
    seconds: Estimate | None
    nll_by_seed: dict[int, float]
    difference: Estimate | None
    difference_by_seed: dict[int, float]
    verdict: str | None
    densities: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """What stands before figures that rest on a density that is not exact."""
        return MARK if self.densities else ""

    @property
    def name(self) -> str:
        """The label, with how many runs its figures rest on where some are missing."""
        if self.num_finished == self.num_seeds:
            return self.label
        return f"{self.label} ({self.num_finished} of {self.num_seeds} seeds)"


@dataclass(frozen=True)
class Part:
    """Rows whose figures were measured alike.

    Attributes:
        rows: In the order of `study.json`.
        likelihood: What their log p(x) is; None where that is not known.
        protocols: How they were measured, in words; the data by name alone.
    """

    rows: list[Row]
    likelihood: str | None
    protocols: list[str]

    @property
    def marked(self) -> bool:
        """Whether a row rests on a density that is not exact."""
        return any(row.densities for row in self.rows)


def parts_of(results: Results, rows: list[Row], metric: str) -> list[Part]:
    """Put the rows together that were measured alike, and rows without the figure where they are not in the way.

    An arm without it joins those of its likelihood, else the first ones, without a reconstruction that is of another.

    Args:
        results: The results.
        rows: One per arm.
        metric: The figure that arms are compared by.
    """
    measured = results.compared_protocols(metric)
    places: dict[str, list[Row]] = {}
    for row in rows:
        found = {str(protocol) for (arm, _), protocol in measured.items() if arm == row.arm}
        if found:
            places.setdefault(" ".join(sorted(found)), []).append(row)
    kinds = [_likelihood(results, each[0].arm) for each in places.values()]
    together = list(places.values())
    for row in rows:
        if any(row in each for each in together):
            continue
        kind = _likelihood(results, row.arm)
        if not together:
            together, kinds = [[row]], [kind]
        elif kind in kinds:
            together[kinds.index(kind)].append(row)
        elif row.reconstruction is None or _shares(kind, kinds[0]):
            together[0].append(row)
        elif measured:
            together[0].append(replace(row, reconstruction=None))
        else:  # no arm has the figure, and reconstructions are all there is to see
            together.append([row])
            kinds.append(kind)
    names = [row.arm for row in rows]
    return [
        Part(
            sorted(each, key=lambda row: names.index(row.arm)),
            kind,
            sorted({one.brief for row in each for one in results.protocols(metric, row.arm)}),
        )
        for each, kind in zip(together, kinds, strict=True)
    ]


def _likelihood(results: Results, arm: str) -> str | None:
    """What log p(x) of the runs of an arm is; None where no finished run says it."""
    known = (run.likelihood for run in results.finished(arm).values())
    return next((kind for kind in known if kind is not None), None)


def _shares(kind: str | None, other: str | None) -> bool:
    """Whether figures may share a column; what is not known may, but not with what is no likelihood."""
    return kind == other or (None in (kind, other) and NO_LIKELIHOOD not in (kind, other))
