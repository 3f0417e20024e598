"""Comparisons in words: what follows from one, what does not, and what was not held equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def not_counted(hold: str, borrowed: Mapping[str, int]) -> str:
    """Say what a budget of parameters that draw leaves out; empty for nothing.

    Args:
        hold: What the budget holds.
        borrowed: By arm, parameters of the posterior that its prior draws through, such as a VampPrior.
    """
    found = ", ".join(f"{arm} {number:,}" for arm, number in borrowed.items() if number)
    if not found or hold not in ("decoder_and_prior", "prior"):
        return ""
    return f"Not counted: parameters of the posterior that draws go through as well, {found}."


@dataclass(frozen=True)
class Spent:
    """What an arm took.

    Attributes:
        label: Its name to show.
        parameters: In total; None where it is not known.
        epochs: Over all stages and on average over seeds; None likewise.
        amount: Of what the study holds equal; None likewise.
        num_diverged: Runs that diverged or gave no finite figure, and so are in none of its means.
    """

    label: str
    parameters: int | None = None
    epochs: float | None = None
    amount: float | None = None
    num_diverged: int = 0


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
        Plain sentences, the finding first.
    """
    words = _Words.of_difference(f"“{arm.label}”", f"“{other.label}”", quantity)
    return " ".join([*_found(comparison, words, quantity, unit, (arm, other)), *_unequal(arm, other, budget)])


def interaction_verdict(
    comparison: PairedComparison,
    labels: tuple[str, str],
    arms: Sequence[Spent],
    *,
    quantity: str = "NLL",
    unit: str = "nats",
) -> str:
    """Say what an interaction supports, and what it does not.

    Args:
        comparison: The interaction.
        labels: Names of the two changes.
        arms: What its four arms took.
        quantity: Name of the figure.
        unit: Its unit.

    Returns:
        Plain sentences, the finding first.
    """
    return " ".join(_found(comparison, _Words.of_interaction(labels, quantity), quantity, unit, arms))


def _found(
    comparison: PairedComparison, words: _Words, quantity: str, unit: str, arms: Sequence[Spent]
) -> list[str]:
    """The finding, what it lacks, and which of its arms are flattered."""
    sentences = [_finding(comparison, words, quantity, unit), *_over_images(comparison, unit)]
    if comparison.power is not None and not comparison.significant and not _is_small(comparison):
        sentences.append(_needed(comparison, comparison.power, unit))
    return sentences + [_diverged(side, quantity) for side in arms if side.num_diverged]


@dataclass(frozen=True)
class _Words:
    """How a comparison, or an interaction, is spoken of."""

    what: str  # after "the" and after "a" or "an"
    article: str
    claim: tuple[str, str]  # before and after the side
    no_evidence: str
    apart: str  # that no seed has

    @staticmethod
    def of_difference(arm: str, other: str, quantity: str) -> _Words:
        return _Words(
            f"difference in {quantity} of {arm} to {other}",
            "a",
            ("a ", f" {quantity} of {arm} than of {other}"),
            "that they are equal",
            f"{arm} and {other}",
        )

    @staticmethod
    def of_interaction(labels: tuple[str, str], quantity: str) -> _Words:
        both = f"“{labels[0]}” and “{labels[1]}”"
        return _Words(
            f"interaction of {both} in {quantity}",
            "an",
            (
                f"an interaction: the {quantity} with {both} together is ",
                " than what each changes alone adds up to",
            ),
            "that what they change adds up",
            f"the four arms of {both}",
        )


def _finding(comparison: PairedComparison, words: _Words, quantity: str, unit: str) -> str:
    difference = comparison.difference
    if difference is None:
        return f"No seed with a {quantity} is shared by {words.apart}: there is nothing to compare."
    mean = f"{format_mean(difference)} {unit}"
    if difference.low is None:
        return (
            f"With 1 seed the {words.what} is {mean};"
            f" one seed gives no interval, so this does not show {words.article} {words.what.split()[0]}."
        )
    if comparison.p_value is None or comparison.corrected_p_value is None:
        return (
            f"With {difference.num} seeds the {words.what} is {mean} at every one:"
            " without spread there is nothing to test it against."
        )
    corrected = f", corrected for {comparison.num_comparisons} comparisons"
    tested = (
        f"{100 * difference.level:g}% t interval {format_interval(difference)}; "
        f"p {_relation(comparison.corrected_p_value)}{corrected if comparison.num_comparisons > 1 else ''}"
    )
    start = f"With {difference.num} seeds this"
    small = _is_small(comparison)
    within = "" if not small else f"within ±{small:g} {unit}, the smallest difference of interest"
    if comparison.significant:
        known = {True: " (better)", False: " (worse)", None: ""}[comparison.better]
        side = f"{'lower' if difference.mean < 0 else 'higher'}{known}"
        but = f", but the whole interval lies {within}" if within else ""
        return f"{start} supports {words.claim[0]}{side}{words.claim[1]}: {mean} on average ({tested}){but}."
    why = f"no evidence {words.no_evidence}"
    if within:
        why = f"the whole interval, of this comparison alone, lies {within}"
    elif difference.excludes_zero:
        why = "the interval, of this comparison alone, excludes zero, but not after the correction"
    return f"{start} does not show {words.article} {words.what}: {mean} on average ({tested}); {why}."


def _is_small(comparison: PairedComparison) -> float | None:
    """The smallest difference of interest, where the whole interval is smaller than that."""
    smallest = None if comparison.power is None else comparison.power.smallest_difference
    found = comparison.difference
    if smallest is None or found is None or found.low is None or found.high is None:
        return None
    return smallest if -smallest < found.low and found.high < smallest else None


def _over_images(comparison: PairedComparison, unit: str) -> list[str]:
    """A sentence where other images may undo a finding."""
    difference, error = comparison.difference, comparison.error_over_images
    if difference is None or error is None or not comparison.significant or abs(difference.mean) >= 2 * error:
        return []
    shown = format_number(error, decimals_of(difference))
    return [f"Its standard error over data points is {shown} {unit}: other data points may not show it."]


def _needed(comparison: PairedComparison, power: Power, unit: str) -> str:
    def seeds(number: int | None) -> str:
        return f"more than {MOST_SEEDS:,} seeds" if number is None else f"{number:,} seeds"

    assert comparison.difference is not None  # there is no power without one
    what = "difference" if comparison.interaction is None else "interaction"
    decimals = decimals_of(comparison.difference)
    share = f"{100 * power.power:g}% of such studies"
    smallest = format_number(power.detectable, decimals)
    text = (
        f"At this spread {len(comparison.by_seed)} seeds find a true {what} of {smallest} {unit} or more in "
        f"{share}; one as large as observed would take {seeds(power.seeds_for_observed)} in all"
    )
    if power.smallest_difference is not None:
        text += (
            f", and the smallest of interest, {power.smallest_difference:g} {unit}, "
            f"{seeds(power.seeds_for_smallest)}"
        )
    return text + "."


def _diverged(side: Spent, quantity: str) -> str:
    runs, verb = ("1 run", "is") if side.num_diverged == 1 else (f"{side.num_diverged} runs", "are")
    return f"{runs} of “{side.label}” diverged or gave no finite {quantity}, and {verb} left out, which flatters it."


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
    if amount < 100 and amount % 1:  # seconds; all else is counted
        return f"{amount:.3g}"
    return f"{amount:,.0f}" if amount < 1e7 else f"{amount:.3g}"


def _relation(p_value: float) -> str:
    text = format_p_value(p_value)
    return text if text.startswith("<") else f"= {text}"
