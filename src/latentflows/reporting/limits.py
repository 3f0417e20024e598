"""What the figures of a study do not support: few seeds, loose bounds, densities that are not exact."""

from __future__ import annotations

import math

from latentflows.reporting.standing import trouble
from latentflows.reporting.table import (
    METRICS,
    StudyTable,
    counted_runs,
    metric_of,
    protocols_of,
    quantity_of,
)
from latentflows.studies.results.cautions import of_owners
from latentflows.studies.results.results import Results
from latentflows.studies.statistics.resampling import smallest_sign_flip_p_value
from latentflows.studies.statistics.significance import holm

FEW_SEEDS = 10


def limits(results: Results, table: StudyTable) -> list[str]:
    """What the figures of a study, whose table it is, do not support; a sentence each."""
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
    sentences += _few_seeds(table)
    sentences += [*_seconds(results), *_troubles(results)]
    measured = {label: results.protocols(metric_of(results), arm) for arm, label in study.labels.items()}
    return [*sentences, *of_owners(measured)]


def _seconds(results: Results) -> list[str]:
    """A sentence where seconds are held equal and those of the runs do not compare."""
    budget = None if results.plan is None else results.plan.budget
    if budget is None or budget.hold != "seconds":
        return []
    differences = results.protocol_differences("seconds")
    if not differences:
        return []
    found = "; ".join(differences)
    return [f"Whether seconds are held equal is not known, as those of these runs do not compare: {found}."]


def _troubles(results: Results) -> list[str]:
    """A sentence for every arm some of whose runs that count met steps that were not finite."""
    sentences = []
    for arm, label in results.study.labels.items():
        records = {seed: results.files(run).record for seed, run in counted_runs(results, arm).items()}
        met = {seed: found for seed, record in records.items() if (found := trouble(record))}
        if met:
            each = "; ".join(f"seed {seed}: {found}" for seed, found in met.items())
            sentences.append(
                f"“{label}” met steps that were not finite ({each}), so it was not trained throughout as was asked for."
            )
    return sentences


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


def _few_seeds(table: StudyTable) -> list[str]:
    """What few seeds keep the tests from, by those that finished: fewer than were asked for where runs are missing."""
    shared = [len(found.comparison.by_seed) for found in table.tested]
    arms = [row.num_finished for row in table.rows]
    fewest = min((num for num in shared or arms if num), default=0)
    if not fewest:
        return []
    sentences = []
    if fewest <= FEW_SEEDS:
        sentences.append(
            "With so few seeds the t interval and the t-test lean on the assumption that differences between seeds are "
            "normally distributed, and the bootstrap interval is too narrow."
        )
    corrected = holm([smallest_sign_flip_p_value(num) if num else None for num in shared])
    reached = corrected[shared.index(fewest)] if shared else None
    if reached is not None and reached > 0.05:
        which = ", the fewest of a comparison" if len(set(shared)) > 1 else ""
        after = f", {reached:.2g} after the correction" if len(shared) > 1 else ""
        sentences.append(
            "The exact sign-flip test, which needs no such assumption, cannot reach the level of 0.05 with "
            f"{fewest} seed{'s' if fewest > 1 else ''}{which}, whatever they show: its smallest p-value is "
            f"{smallest_sign_flip_p_value(fewest):.2g}{after}."
        )
    return sentences
