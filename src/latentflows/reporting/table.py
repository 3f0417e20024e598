"""The table of a comparison: one row per arm, for the page and for the terminal."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentflows.reporting.base import Arm, Comparison, Parameters, StudyRun, read_comparison
from latentflows.studies.statistics import Estimate, estimate, paired_difference, verdict


@dataclass(frozen=True)
class Row:
    """One arm: estimates are over the seeds that finished, None where no seed has the figure.

    Attributes:
        arm: Name of the arm.
        label: Name to show.
        is_baseline: Whether the other arms are compared with this one.
        parameters: Number of parameters by part.
        num_finished: Seeds that finished with a finite NLL; the others are left out of every estimate.
        num_seeds: Seeds that the study asks for.
        nll: Test NLL, nats.
        nll_standard_error: Mean over seeds of the standard error over test images, nats.
        elbo: ELBO, nats.
        kl: KL part, nats.
        reconstruction: Reconstruction part, nats.
        seconds: Seconds of the run.
        nll_by_seed: Test NLL of every seed that counts.
        difference: Paired difference in NLL to the baseline; None for the baseline, or without shared seeds.
        difference_by_seed: The same for every shared seed.
        verdict: What the difference supports; None for the baseline.
    """

    arm: str
    label: str
    is_baseline: bool
    parameters: Parameters | None
    num_finished: int
    num_seeds: int
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


def comparison_table(folder: Path) -> list[Row]:
    """One row per arm, in the order of `study.json`.

    Args:
        folder: A comparison folder.

    Returns:
        The rows; an arm without a finished run has a row without figures.

    Raises:
        DataError: The folder is no comparison folder, or a file in it cannot be read.
    """
    return rows_of(read_comparison(folder))


def rows_of(comparison: Comparison) -> list[Row]:
    """The rows of a comparison that has been read."""
    study = comparison.study
    baseline = next(arm for arm in study.arms if arm.name == study.baseline)
    baseline_runs = counted_runs(comparison, baseline.name)
    return [_row(comparison, arm, baseline, baseline_runs) for arm in study.arms]


def counted_runs(comparison: Comparison, arm: str) -> dict[int, StudyRun]:
    """Runs of an arm that count, by seed: asked for by the study, finished, with a finite NLL."""
    runs = {seed: comparison.runs.get((arm, seed)) for seed in comparison.study.seeds}
    return {seed: run for seed, run in runs.items() if run is not None and _counts(run)}


def _counts(run: StudyRun) -> bool:
    return run.status == "finished" and _value(run, "nll") is not None


def _row(comparison: Comparison, arm: Arm, baseline: Arm, baseline_runs: dict[int, StudyRun]) -> Row:
    runs = counted_runs(comparison, arm.name)
    nll, base = _by_seed(runs, "nll"), _by_seed(baseline_runs, "nll")
    parameters, base_parameters = _parameters(runs), _parameters(baseline_runs)
    is_baseline = arm.name == baseline.name
    difference = None if is_baseline else paired_difference(nll, base)
    totals = (parameters.total, base_parameters.total) if parameters and base_parameters else None
    return Row(
        arm=arm.name,
        label=arm.label,
        is_baseline=is_baseline,
        parameters=parameters,
        num_finished=len(runs),
        num_seeds=len(comparison.study.seeds),
        nll=_estimate(runs, lambda run: _value(run, "nll")),
        nll_standard_error=_mean_standard_error(runs),
        elbo=_estimate(runs, lambda run: _value(run, "elbo")),
        kl=_estimate(runs, lambda run: _value(run, "kl")),
        reconstruction=_estimate(runs, lambda run: _value(run, "reconstruction")),
        seconds=_estimate(runs, lambda run: run.seconds),
        nll_by_seed=nll,
        difference=difference,
        difference_by_seed={}
        if is_baseline
        else {seed: nll[seed] - base[seed] for seed in nll if seed in base},
        verdict=None
        if is_baseline
        else verdict(arm.label, baseline.label, difference, num_parameters=totals),
    )


def _value(run: StudyRun, figure: str) -> float | None:
    quantity = (run.figures or {}).get(figure)
    return quantity.mean if quantity is not None and math.isfinite(quantity.mean) else None


def _by_seed(runs: dict[int, StudyRun], figure: str) -> dict[int, float]:
    values = {seed: _value(run, figure) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _estimate(runs: dict[int, StudyRun], value_of: Callable[[StudyRun], float | None]) -> Estimate | None:
    values = [value for run in runs.values() if (value := value_of(run)) is not None]
    return estimate(values) if values else None


def _mean_standard_error(runs: dict[int, StudyRun]) -> float | None:
    quantities = [(run.figures or {}).get("nll") for run in runs.values()]
    errors = [
        item.standard_error for item in quantities if item is not None and item.standard_error is not None
    ]
    return math.fsum(errors) / len(errors) if errors else None


def _parameters(runs: dict[int, StudyRun]) -> Parameters | None:
    return next((run.parameters for run in runs.values() if run.parameters is not None), None)
