"""Comparisons in words: what follows from one, what does not, and what was not held equal."""

from __future__ import annotations

from dataclasses import dataclass

from latentflows.studies.results.records import HeldEqual
from latentflows.studies.statistics.differences import PairedComparison
from latentflows.studies.statistics.means import (
    decimals_of,
    format_interval,
    format_mean,
    format_number,
    format_p_value,
)
from latentflows.studies.statistics.significance import MOST_SEEDS, Power

HELD = {
    "decoder_and_prior": "the number of parameters of decoder and prior",
    "prior": "the number of parameters of the prior",
    "model": "the number of parameters",
    "training_flops": "the FLOPs of training",
    "sampling_flops": "the FLOPs of drawing a data point",
    "seconds": "the seconds of training",
}
_COUNTS_PARAMETERS = ("decoder_and_prior", "prior", "model")


@dataclass(frozen=True)
class Spent:
    """What an arm took.

    Attributes:
        label: Its name to show.
        parameters: In total; None where it is not known.
        epochs: Over all stages and on average over seeds; None likewise.
        amount: Of what the study holds equal; None likewise.
    """

    label: str
    parameters: int | None = None
    epochs: float | None = None
    amount: float | None = None


def verdict(
    comparison: PairedComparison,
    arm: Spent,
    other: Spent,
    *,
    budget: HeldEqual | None = None,
    quantity: str = "NLL",
    unit: str = "nats",
) -> str:
    """Say what a comparison supports, what it does not, and what it did not hold equal.

    Args:
        comparison: The comparison.
        arm: What its arm took.
        other: What the other arm took.
        budget: What the study holds equal; None for nothing.
        quantity: Name of the figure.
        unit: Its unit.

    Returns:
        One to five plain sentences.
    """
    sentences = [_finding(comparison, f"“{arm.label}”", f"“{other.label}”", quantity, unit)]
    if comparison.power is not None and not comparison.significant:
        sentences.append(_needed(comparison, comparison.power, unit))
    return " ".join([*sentences, *_unequal(arm, other, budget)])


def _finding(comparison: PairedComparison, arm: str, other: str, quantity: str, unit: str) -> str:
    difference = comparison.difference
    if difference is None:
        return f"No seed with a {quantity} is shared by {arm} and {other}: there is nothing to compare."
    mean = f"{format_mean(difference)} {unit}"
    if difference.low is None:
        return (
            f"With 1 seed the difference in {quantity} of {arm} to {other} is {mean};"
            " one seed gives no interval, so this does not show a difference."
        )
    start = f"With {difference.num} seeds the paired difference in {quantity} of {arm} to {other} is {mean} on average"
    if comparison.p_value is None or comparison.corrected_p_value is None:
        return f"{start}, and the same at every seed: without spread there is nothing to test it against."
    tested = f"p {_relation(comparison.p_value)}"
    if comparison.num_comparisons > 1:
        corrected = format_p_value(comparison.corrected_p_value)
        tested += f", {corrected} after the correction for {comparison.num_comparisons} comparisons"
    interval = f"{100 * difference.level:g}% t interval {format_interval(difference)} {unit}; {tested}"
    return f"{start} ({interval}): {_supported(comparison, difference.excludes_zero, arm, quantity)}."


def _supported(comparison: PairedComparison, excludes_zero: bool, arm: str, quantity: str) -> str:
    assert comparison.difference is not None  # `_finding` has said so otherwise
    if comparison.significant:
        side = "lower" if comparison.difference.mean < 0 else "higher"
        known = {True: " (better)", False: " (worse)", None: ""}[comparison.better]
        return f"supports a {side}{known} {quantity} of {arm}"
    if excludes_zero:
        return (
            "does not show a difference: the interval of this comparison alone excludes zero, but not after the "
            f"correction for {comparison.num_comparisons} comparisons"
        )
    return "does not show a difference (the interval includes zero, which is no evidence of equality)"


def _needed(comparison: PairedComparison, power: Power, unit: str) -> str:
    def seeds(number: int | None) -> str:
        return f"more than {MOST_SEEDS:,} seeds" if number is None else f"{number:,} seeds"

    assert comparison.difference is not None  # there is no power without one
    decimals = decimals_of(comparison.difference)
    share = f"{100 * power.power:g}% of such studies"
    smallest = format_number(power.detectable, decimals)
    text = (
        f"At this spread {len(comparison.by_seed)} seeds find a true difference of {smallest} {unit} or more in "
        f"{share}; one as large as observed would take {seeds(power.seeds_for_observed)} in all"
    )
    if power.smallest_difference is not None:
        text += (
            f", and the smallest of interest, {power.smallest_difference:g} {unit}, "
            f"{seeds(power.seeds_for_smallest)}"
        )
    return text + "."


def _unequal(arm: Spent, other: Spent, budget: HeldEqual | None) -> list[str]:
    """A sentence on what is held equal, and one for everything known that is not."""
    sentences = []
    if budget is not None and arm.amount is not None and other.amount is not None:
        holds = "holds" if _near(arm.amount, other.amount, budget) else "does not hold"
        sentences.append(
            f"This comparison {holds} {HELD.get(budget.hold, budget.hold)} equal "
            f"({_amount(arm.amount)} against {_amount(other.amount)})."
        )
    sentences += _unequal_parameters(arm.parameters, other.parameters, budget)
    if arm.epochs is not None and other.epochs is not None:
        lengths = [format_number(epochs, 1).removesuffix(".0") for epochs in (arm.epochs, other.epochs)]
        if lengths[0] != lengths[1]:
            sentences.append(
                "This comparison does not hold the length of training equal"
                f" ({lengths[0]} against {lengths[1]} epochs over all stages)."
            )
    return sentences


def _unequal_parameters(arm: int | None, other: int | None, budget: HeldEqual | None) -> list[str]:
    """A sentence where the whole models differ in size: at all without a budget of parameters, else by more than it."""
    if arm is None or other is None or arm == other:
        return []
    if budget is None or budget.hold not in _COUNTS_PARAMETERS:
        start = "This comparison does not hold the number of parameters equal"
    elif budget.hold == "model" or _near(arm, other, budget):
        return []
    else:
        start = "It does not hold that of the whole model equal"
    return [f"{start} ({arm:,} against {other:,})."]


def _near(one: float, two: float, budget: HeldEqual) -> bool:
    """Whether two amounts are equal within the tolerance of a budget."""
    return abs(one - two) <= (budget.tolerance or 0.0) * max(one, two)


def _amount(amount: float) -> str:
    return f"{amount:,.0f}" if amount < 1e7 else f"{amount:.3g}"


def _relation(p_value: float) -> str:
    text = format_p_value(p_value)
    return text if text.startswith("<") else f"= {text}"
