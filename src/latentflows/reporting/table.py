"""The table of a comparison: one row per arm, for the page and for the terminal."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentflows.reporting.base import Comparison, read_comparison, read_epochs
from latentflows.reporting.records import Arm, Parameters, Protocol, StudyRun
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
        epochs: Epochs that were trained, over all stages.
        nll: NLL of the evaluated split, nats.
        nll_standard_error: Mean over seeds of the standard error over images, nats.
        elbo: ELBO, nats.
        kl: KL part, nats.
        reconstruction: Reconstruction part, nats.
        seconds: Seconds of the run.
        nll_by_seed: NLL of every seed that counts.
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
    epochs = {arm.name: _epochs(comparison, arm.name) for arm in study.arms}
    return [_row(comparison, arm, baseline, epochs) for arm in study.arms]


def quantity_of(comparison: Comparison) -> str:
    """What the NLL of a comparison is called: with the split that its runs were measured on, if it is one."""
    splits = {None if protocol is None else protocol.split for protocol in _protocols(comparison)}
    split = splits.pop() if len(splits) == 1 else None
    return "NLL" if split is None else f"{split} NLL"


def limits(comparison: Comparison) -> list[str]:
    """What the figures of a comparison do not support, a sentence each."""
    study = comparison.study
    images = quantity_of(comparison).replace("NLL", "images")
    others = len(study.arms) - 1
    at_once = f", and they are not corrected for making {others} comparisons at once" if others > 1 else ""
    sentences = [
        "The intervals describe how much training varies from seed to seed, on the same data and the same "
        f"{images}.",
        f"They say nothing about other data, other sizes or longer training{at_once}.",
        "An NLL from K importance samples is on average an upper bound, and looser where the posterior fits badly.",
    ]
    if len(study.seeds) <= 5:
        sentences.append(
            "With so few seeds an interval also leans on the assumption that differences between seeds are normally "
            "distributed."
        )
    if any(len(counted_runs(comparison, arm.name)) < len(study.seeds) for arm in study.arms):
        sentences.append("Runs that did not finish are left out, which flatters an arm that diverges.")
    cautions = {protocol.caution for protocol in _protocols(comparison) if protocol is not None}
    return [*sentences, *sorted(cautions - {""})]


def _protocols(comparison: Comparison) -> list[Protocol | None]:
    arms = comparison.study.arms
    return [run.protocol for arm in arms for run in counted_runs(comparison, arm.name).values()]


def _epochs(comparison: Comparison, arm: str) -> Estimate | None:
    """Epochs of an arm over all stages, from the logs of its runs."""
    runs = counted_runs(comparison, arm)
    return _estimate(runs, lambda run: len(read_epochs(comparison.folder / run.run)[0]) or None)


def counted_runs(comparison: Comparison, arm: str) -> dict[int, StudyRun]:
    """Runs of an arm that count, by seed: asked for by the study, finished, with a finite NLL."""
    runs = {seed: comparison.runs.get((arm, seed)) for seed in comparison.study.seeds}
    return {seed: run for seed, run in runs.items() if run is not None and _counts(run)}


def _counts(run: StudyRun) -> bool:
    return run.status == "finished" and _value(run, "nll") is not None


def _row(comparison: Comparison, arm: Arm, baseline: Arm, epochs: dict[str, Estimate | None]) -> Row:
    runs, baseline_runs = counted_runs(comparison, arm.name), counted_runs(comparison, baseline.name)
    trained = epochs[arm.name], epochs[baseline.name]
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
        epochs=trained[0],
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
        else verdict(
            arm.label,
            baseline.label,
            difference,
            num_parameters=totals,
            num_epochs=(trained[0].mean, trained[1].mean) if trained[0] and trained[1] else None,
            quantity=quantity_of(comparison),
        ),
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
