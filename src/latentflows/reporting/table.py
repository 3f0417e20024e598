"""The tables of a study: one row per arm and one per comparison, for the page, the terminal and export."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentflows.reporting.parts import Part, Row, parts_of
from latentflows.studies.results.records import Arm, Parameters, Protocol, StudyRun
from latentflows.studies.results.results import Results, read_results
from latentflows.studies.results.rows import cumulative_flops
from latentflows.studies.results.verdicts import Spent, interaction_verdict, verdict
from latentflows.studies.statistics.differences import PairedComparison, compare_pairs
from latentflows.studies.statistics.means import Estimate, decimals_of, estimate

METRICS = {"nll": "NLL", "nll_bound": "NLL bound"}  # what a study is judged by: the first that a run has


@dataclass(frozen=True)
class Compared:
    """One comparison, with the names to show and what it supports in words."""

    comparison: PairedComparison
    label: str
    other_label: str
    verdict: str


@dataclass(frozen=True)
class StudyTable:
    """The tables of a study.

    Attributes:
        rows: One per arm, in the order of `study.json`.
        parts: The same rows, those together that may share a column.
        comparisons: One per comparison of the study; none where runs were measured by different protocols.
        metric: The figure that arms are compared by, a key of `METRICS`.
        quantity: What it is called: with the split that it was measured on, if it is one.
        protocol_differences: In what the protocols of the runs differ; empty where figures compare.
        interaction: Of two factors of two levels, where the study crosses these and figures compare; its `label` is its
            name. It counts in the correction of all.
    """

    rows: list[Row]
    parts: list[Part]
    comparisons: list[Compared]
    metric: str
    quantity: str
    protocol_differences: list[str]
    interaction: Compared | None = None

    @property
    def tested(self) -> list[Compared]:
        """All that is tested: the comparisons, then the interaction."""
        return [*self.comparisons, *([] if self.interaction is None else [self.interaction])]

    @property
    def decimals(self) -> int:
        """Decimals of the NLL that the intervals of all arms need."""
        return max((decimals_of(row.nll) for row in self.rows if row.nll is not None), default=2)

    @property
    def difference_decimals(self) -> int:
        """The same for the differences."""
        found = [compared.comparison.difference for compared in self.tested]
        return max((decimals_of(item) for item in found if item is not None), default=2)

    @property
    def baseline(self) -> str | None:
        """Label of the arm that all others are compared with; None where they differ."""
        others = {compared.other_label for compared in self.comparisons}
        return others.pop() if len(others) == 1 else None


def comparison_table(folder: Path) -> list[Row]:
    """One row per arm, in the order of `study.json`.

    Args:
        folder: A study folder.

    Returns:
        The rows; an arm without a finished run has a row without figures.

    Raises:
        DataError: The folder is no study folder, or a file in it cannot be read.
    """
    return table_of(read_results(folder)).rows


def table_of(results: Results) -> StudyTable:
    """The tables of a study whose results have been read."""
    metric, quantity = metric_of(results), quantity_of(results)
    differences = results.protocol_differences(metric)
    epochs = {arm: _epochs(results, arm) for arm in results.study.labels}
    compared = [] if differences else _comparisons(results, epochs, quantity)
    others = {other for _, other in results.study.pairs}
    pairs = [found for found in compared if found.comparison.interaction is None]
    rows = [_row(results, arm, arm.name in others, pairs, epochs) for arm in results.study.arms]
    interaction = next((found for found in compared if found.comparison.interaction is not None), None)
    parts = parts_of(results, rows, metric)
    return StudyTable(rows, parts, pairs, metric, quantity, differences, interaction)


def metric_of(results: Results) -> str:
    """The figure that the arms of a study are compared by: the NLL, or the bound where no run has an NLL."""
    found = (metric for metric in METRICS if any(results.values(metric, arm) for arm in results.study.labels))
    return next(found, "nll")


def quantity_of(results: Results) -> str:
    """What that figure is called: with the split that the runs were measured on, if it is one."""
    name = METRICS[metric_of(results)]
    splits = {None if protocol is None else protocol.split for protocol in protocols_of(results)}
    split = splits.pop() if len(splits) == 1 else None
    return name if split is None else f"{split} {name}"


def counted_runs(results: Results, arm: str) -> dict[int, StudyRun]:
    """Runs of an arm that count, by seed: asked for by the study, finished, with a finite NLL or bound."""
    return {seed: results.runs[arm, seed] for seed in results.values(metric_of(results), arm)}


def protocols_of(results: Results) -> list[Protocol | None]:
    """How the runs that count were measured."""
    return [run.protocol for arm in results.study.labels for run in counted_runs(results, arm).values()]


def _comparisons(results: Results, epochs: Mapping[str, Estimate | None], quantity: str) -> list[Compared]:
    labels = results.study.labels
    spent = {arm: _spent(results, arm, epochs[arm]) for arm in labels}
    metric = metric_of(results)
    if any(results.values(metric, arm) for arm in labels):
        found = results.compare(metric)
    else:  # no run has finished, or what they are has no likelihood
        found = compare_pairs({arm: {} for arm in labels}, results.study.pairs, metric=metric)
    return [_in_words(results, comparison, spent, quantity) for comparison in found]


def _in_words(
    results: Results, comparison: PairedComparison, spent: Mapping[str, Spent], quantity: str
) -> Compared:
    crossed = results.study.interaction
    densities = results.density_cautions(comparison.metric, comparison.weights, quantity)
    if comparison.interaction is not None and crossed is not None:
        arms = [spent[arm] for arm in comparison.weights]
        words = interaction_verdict(comparison, crossed.labels, arms, quantity=quantity)
        return Compared(comparison, crossed.name, "", " ".join([words, *densities]))
    arm, other = spent[comparison.arm], spent[comparison.other]
    budget = None if results.plan is None else results.plan.budget
    words = verdict(comparison, arm, other, budget=budget, quantity=quantity)
    return Compared(comparison, arm.label, other.label, " ".join([words, *densities]))


def _spent(results: Results, arm: str, epochs: Estimate | None) -> Spent:
    runs = counted_runs(results, arm)
    parameters = _parameters(runs)
    return Spent(
        results.study.labels[arm],
        None if parameters is None else parameters.total,
        None if epochs is None else epochs.mean,
        spent_amount(results, arm),
        _num_diverged(results, arm),
    )


def _num_diverged(results: Results, arm: str) -> int:
    return sum(results.status(arm, seed) == "diverged" for seed in results.study.seeds)


def spent_amount(results: Results, arm: str) -> float | None:
    """What an arm spent of what is held equal: seconds and FLOPs of training as its runs took them, else as planned.

    Runs that stop early take less than the plan holds equal. FLOPs are those of the plan where no run counts; seconds
    are not, as a plan has estimates of them. None for those, for seconds that do not compare (of other hardware, or
    shared by seeds), and where there is no plan.
    """
    planned, budget = results.planned(arm), None if results.plan is None else results.plan.budget
    if planned is None:
        return None
    runs = counted_runs(results, arm)
    if budget is not None and budget.hold == "seconds":
        took = _over_runs(runs, lambda run: run.seconds)
        return None if took is None or results.protocol_differences("seconds") else took.mean
    if budget is None or budget.hold != "training_flops":
        return planned.amount
    taken = [cumulative_flops(results.files(run).epochs, planned) for run in runs.values()]
    ends = [flops[-1] for flops in taken if flops and flops[-1] is not None]
    return math.fsum(ends) / len(ends) if ends else planned.amount


def _row(
    results: Results,
    arm: Arm,
    is_baseline: bool,
    comparisons: list[Compared],
    epochs: Mapping[str, Estimate | None],
) -> Row:
    runs = counted_runs(results, arm.name)
    own = next((found for found in comparisons if found.comparison.arm == arm.name), None)
    return Row(
        arm=arm.name,
        label=arm.label,
        is_baseline=is_baseline,
        parameters=_parameters(runs),
        num_finished=len(runs),
        num_seeds=len(results.study.seeds),
        num_diverged=_num_diverged(results, arm.name),
        epochs=epochs[arm.name],
        nll=_estimate(results.values(metric_of(results), arm.name)),
        nll_standard_error=_mean_standard_error(runs, metric_of(results)),
        elbo=_estimate(results.values("elbo", arm.name)),
        kl=_estimate(results.values("kl", arm.name)),
        reconstruction=_estimate(results.values("reconstruction", arm.name)),
        seconds=_over_runs(runs, lambda run: run.seconds),
        nll_by_seed=results.values(metric_of(results), arm.name),
        difference=None if own is None else own.comparison.difference,
        difference_by_seed={} if own is None else own.comparison.by_seed,
        verdict=None if own is None else own.verdict,
        densities=_densities(results, arm.name),
    )


def _densities(results: Results, arm: str) -> tuple[str, ...]:
    kinds = (protocol.prior_density for protocol in results.protocols(metric_of(results), arm))
    return tuple(dict.fromkeys(kind for kind in kinds if kind != "exact"))


def _epochs(results: Results, arm: str) -> Estimate | None:
    """Epochs of an arm over all stages, from the logs of its runs."""
    return _over_runs(counted_runs(results, arm), lambda run: len(results.files(run).epochs) or None)


def _over_runs(runs: dict[int, StudyRun], value_of: Callable[[StudyRun], float | None]) -> Estimate | None:
    return _estimate({seed: value for seed, run in runs.items() if (value := value_of(run)) is not None})


def _estimate(values: Mapping[int, float]) -> Estimate | None:
    return estimate(list(values.values())) if values else None


def _mean_standard_error(runs: dict[int, StudyRun], metric: str) -> float | None:
    quantities = [(run.figures or {}).get(metric) for run in runs.values()]
    errors = [
        item.standard_error for item in quantities if item is not None and item.standard_error is not None
    ]
    return math.fsum(errors) / len(errors) if errors else None


def _parameters(runs: dict[int, StudyRun]) -> Parameters | None:
    return next((run.parameters for run in runs.values() if run.parameters is not None), None)
