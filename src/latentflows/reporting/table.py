"""The tables of a study: one row per arm and one per comparison, for the page, the terminal and export."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentflows.studies.results.records import Arm, Parameters, Protocol, StudyRun
from latentflows.studies.results.results import Results, read_results
from latentflows.studies.results.rows import cumulative_flops
from latentflows.studies.results.verdicts import Spent, interaction_verdict, verdict
from latentflows.studies.statistics.differences import PairedComparison, compare_pairs
from latentflows.studies.statistics.means import Estimate, decimals_of, estimate
from latentflows.studies.statistics.resampling import smallest_sign_flip_p_value

FEW_SEEDS = 10
METRICS = {"nll": "NLL", "nll_bound": "NLL bound"}  # what a study is judged by: the first that a run has


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
        num_diverged: Of these, those at which the run diverged: to leave them out flatters the arm.
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

    @property
    def name(self) -> str:
        """The label, with how many runs its figures rest on where some are missing."""
        if self.num_finished == self.num_seeds:
            return self.label
        return f"{self.label} ({self.num_finished} of {self.num_seeds} seeds)"


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
        comparisons: One per comparison of the study; none where runs were measured by different protocols.
        metric: The figure that arms are compared by, a key of `METRICS`.
        quantity: What it is called: with the split that it was measured on, if it is one.
        protocol_differences: In what the protocols of the runs differ; empty where figures compare.
        interaction: Of two factors of two levels, where the study crosses these and figures compare; its `label` is its
            name. It counts in the correction of all.
    """

    rows: list[Row]
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
    return StudyTable(rows, pairs, metric, quantity, differences, interaction)


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


def limits(results: Results) -> list[str]:
    """What the figures of a study do not support, a sentence each."""
    study = results.study
    points = quantity_of(results).replace(METRICS[metric_of(results)], "data points")
    sentences = [
        "Seeds vary the training alone: first weights, order of the data and noise. So intervals and tests speak of "
        f"training these arms again on the same data and the same {points}.",
        "They say nothing about other data, other sizes or longer training.",
    ]
    samples = {protocol.num_importance_samples for protocol in protocols_of(results) if protocol is not None}
    if samples == {1}:
        sentences.append("With one importance sample the NLL is the negative ELBO.")
    elif samples - {None}:
        sentences.append(
            "An NLL from K importance samples is on average an upper bound, and looser where the posterior fits badly"
            f"{_looseness(results)}{'; one without importance samples is exact.' if None in samples else '.'}"
        )
    num = study.num_comparisons
    if num > 1:
        sentences.append(
            f"p-values are corrected for the {num} comparisons of this study by one figure, not for looking at other "
            "figures or at other studies."
        )
    sentences += _few_seeds(len(study.seeds), num)
    cautions = {protocol.caution for protocol in protocols_of(results) if protocol is not None}
    return [*sentences, *sorted(cautions - {""})]


def _looseness(results: Results) -> str:
    """By how much bounds are too high, to first order in 1 / K: half the Monte Carlo variance of an image.

    Source: Nowozin, Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife Variational
    Inference, 2018. Heavy tails of the weights are not in it.
    """
    found: dict[str, float] = {}
    for arm, label in results.study.labels.items():
        each = []
        for run in counted_runs(results, arm).values():
            quantity = (run.figures or {}).get(metric_of(results))
            if run.protocol is not None and quantity is not None and quantity.monte_carlo_error is not None:
                each.append(run.protocol.num_images * quantity.monte_carlo_error**2 / 2)
        if each:
            found[label] = math.fsum(each) / len(each)
    if not found:
        return ""
    low, high = min(found, key=lambda label: found[label]), max(found, key=lambda label: found[label])
    if low == high:
        return f": by at least about {found[low]:.2g} nats"
    return f": by at least about {found[low]:.2g} (“{low}”) to {found[high]:.2g} nats (“{high}”); a larger K is tighter"


def _few_seeds(num_seeds: int, num_comparisons: int) -> list[str]:
    sentences = []
    if num_seeds <= FEW_SEEDS:
        sentences.append(
            "With so few seeds the t interval and the t-test lean on the assumption that differences between seeds are "
            "normally distributed, and the bootstrap interval is too narrow."
        )
    smallest = smallest_sign_flip_p_value(num_seeds)
    if num_comparisons and num_comparisons * smallest > 0.05:
        times = (
            ""
            if num_comparisons == 1
            else f", {min(1.0, num_comparisons * smallest):.2g} after the correction"
        )
        sentences.append(
            "The exact sign-flip test, which needs no such assumption, cannot reach the level of 0.05 with "
            f"{num_seeds} seed{'s' if num_seeds > 1 else ''}, whatever they show: its smallest p-value is "
            f"{smallest:.2g}{times}."
        )
    return sentences


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
    if comparison.interaction is not None and crossed is not None:
        arms = [spent[arm] for arm in comparison.weights]
        words = interaction_verdict(comparison, crossed.labels, arms, quantity=quantity)
        return Compared(comparison, crossed.name, "", words)
    arm, other = spent[comparison.arm], spent[comparison.other]
    budget = None if results.plan is None else results.plan.budget
    words = verdict(comparison, arm, other, budget=budget, quantity=quantity)
    return Compared(comparison, arm.label, other.label, words)


def _spent(results: Results, arm: str, epochs: Estimate | None) -> Spent:
    runs = counted_runs(results, arm)
    parameters, amount = _parameters(runs), spent_amount(results, arm)
    if results.plan is not None and results.plan.budget is not None and results.plan.budget.hold == "seconds":
        took = _over_runs(runs, lambda run: run.seconds)
        amount = amount if took is None else took.mean
    return Spent(
        results.study.labels[arm],
        None if parameters is None else parameters.total,
        None if epochs is None else epochs.mean,
        amount,
        _num_diverged(results, arm),
    )


def _num_diverged(results: Results, arm: str) -> int:
    return sum(results.status(arm, seed) == "diverged" for seed in results.study.seeds)


def spent_amount(results: Results, arm: str) -> float | None:
    """What an arm spent of what is held equal: FLOPs of training as its runs took them, else what the plan counted.

    Runs that stop early take fewer FLOPs than the plan holds equal. None where neither is known.
    """
    planned, budget = results.planned(arm), None if results.plan is None else results.plan.budget
    if planned is None:
        return None
    if budget is None or budget.hold != "training_flops":
        return planned.amount
    taken = [
        cumulative_flops(results.files(run).epochs, planned) for run in counted_runs(results, arm).values()
    ]
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
    )


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
