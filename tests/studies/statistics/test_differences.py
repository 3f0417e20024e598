"""Comparisons of arms: pairing, correction over the study, power at the corrected level, and their words."""

import pytest

from latentflows.core.errors import DataError
from latentflows.studies.results.records import HeldEqual
from latentflows.studies.results.verdicts import Spent, interaction_verdict, verdict
from latentflows.studies.statistics.differences import Interaction, compare_pairs
from latentflows.studies.statistics.significance import seeds_needed

BASE = {0: 10.0, 1: 11.0, 2: 9.0, 3: 10.5, 4: 9.5}


def arm(*differences):
    return {seed: BASE[seed] + difference for seed, difference in enumerate(differences)}


VALUES = {
    "base": BASE,
    "clear": arm(-1.0, -1.1, -0.9, -1.05, -0.95),
    "weak": arm(-0.1, -0.6, -0.5, -0.05, -0.6),
    "none": arm(0.5, -0.6, 0.2, -0.4, 0.1),
}
PAIRS = [("clear", "base"), ("weak", "base"), ("none", "base")]


def compared(pairs=PAIRS, values=VALUES, **options):
    found = compare_pairs(values, pairs, metric="nll", **{"lower_is_better": True, **options})
    return {comparison.arm: comparison for comparison in found}


def words(comparison, **options):
    return verdict(comparison, Spent(comparison.arm), Spent(comparison.other), **options)


def test_differences_are_taken_at_the_same_seed_and_p_values_are_corrected_over_the_study():
    found = compared()
    assert found["clear"].by_seed == pytest.approx({0: -1.0, 1: -1.1, 2: -0.9, 3: -1.05, 4: -0.95})
    assert found["clear"].corrected_p_value == pytest.approx(3 * found["clear"].p_value)
    assert found["weak"].corrected_p_value == pytest.approx(2 * found["weak"].p_value)
    assert found["clear"].sign_flip_p_value == 2 / 32
    assert found["clear"].corrected_sign_flip_p_value == 6 / 32
    assert found["clear"].significant
    assert not found["none"].significant


def test_an_interval_without_zero_alone_is_not_enough():
    weak = compared()["weak"]
    assert weak.p_value < 0.05 < weak.corrected_p_value
    assert weak.difference.excludes_zero
    assert not weak.significant
    assert "corrected for 3 comparisons); the interval, of this comparison alone, excludes zero" in words(
        weak
    )
    alone = compared([("weak", "base")])["weak"]
    assert alone.significant
    assert alone.corrected_p_value == alone.p_value
    assert "correction" not in words(alone)


def test_comparisons_that_could_not_be_made_count_in_the_correction():
    values = VALUES | {"none": {}}
    found = compared(values=values)
    assert found["clear"].corrected_p_value == pytest.approx(3 * found["clear"].p_value)
    assert (found["none"].difference, found["none"].p_value, found["none"].power) == (None, None, None)
    assert "nothing to compare" in words(found["none"])
    assert found["none"].row()["seeds"] == 0


def test_any_two_arms_can_be_compared():
    found = compared([("clear", "weak")])["clear"]
    assert found.other == "weak"
    assert found.by_seed[1] == pytest.approx(-0.5)


@pytest.mark.parametrize(("lower_is_better", "better"), [(True, True), (False, False), (None, None)])
def test_better_follows_the_direction_of_the_figure(lower_is_better, better):
    found = compared(lower_is_better=lower_is_better)["clear"]
    assert found.better is better
    said = {True: "lower (better) NLL", False: "lower (worse) NLL", None: "lower NLL"}[better]
    assert f"supports a {said} of “clear”" in words(found)


def test_power_is_that_of_the_corrected_level():
    none = compared(smallest_difference=0.25)["none"]
    assert none.power.level == pytest.approx(0.05 / 3)
    deviation = none.difference.standard_deviation
    assert none.power.seeds_for_observed == seeds_needed(none.difference.mean, deviation, 0.05 / 3)
    assert none.power.seeds_for_smallest == seeds_needed(0.25, deviation, 0.05 / 3)
    text = words(none)
    assert f"5 seeds find a true difference of {none.power.detectable:.2f} nats or more in 80%" in text
    assert f"the smallest of interest, 0.25 nats, {none.power.seeds_for_smallest} seeds" in text
    assert "no evidence that they are equal" in text


@pytest.mark.parametrize("size", [-1, 0, float("inf"), float("nan")])
def test_a_smallest_difference_is_a_size(size):
    with pytest.raises(
        DataError, match=rf"`smallest_difference` must be .* above 0; got {size}\. Give its size"
    ):
        compared(smallest_difference=size)


def test_the_sign_flip_test_says_when_it_has_too_few_seeds():
    assert not compared()["clear"].sign_flip_can_find  # 3 * 2 / 32 > 0.05
    six = {seed: float(seed) for seed in range(8)}
    assert compared([("a", "b")], {"a": six, "b": dict.fromkeys(six, 0.0)})["a"].sign_flip_can_find


def test_equal_differences_and_single_seeds_claim_nothing():
    equal = compared([("a", "base")], {"a": arm(-1.0, -1.0, -1.0), "base": BASE})["a"]
    assert equal.p_value is None
    assert not equal.significant
    assert equal.power is None
    assert "without spread there is nothing to test it against" in words(equal)
    single = compared([("a", "base")], {"a": {0: 1.0}, "base": BASE})["a"]
    assert "one seed gives no interval" in words(single)


def test_what_was_not_held_equal_is_named():
    found = compared()["clear"]
    text = verdict(found, Spent("A", 12_000, 180.0), Spent("B", 11_999, 120.0))
    assert "does not hold the number of parameters equal (12,000 against 11,999)" in text
    assert "the length of training equal (180 against 120 epochs over all stages)" in text
    text = verdict(found, Spent("A", 12_000, 1333 + 1 / 3), Spent("B", 12_000, 1333.0))
    assert "number of parameters" not in text
    assert "(1,333.3 against 1,333 epochs over all stages)" in text
    assert "equal" not in verdict(found, Spent("A", 5, 120.0), Spent("B", 5, 120.0)).split("supports")[1]


def test_what_a_budget_held_equal_is_named():
    budget = HeldEqual(hold="decoder_and_prior", tolerance=0.02, like="B")
    sides = Spent("A", 900, amount=501.0), Spent("B", 800, amount=500.0)
    text = verdict(compared()["clear"], *sides, budget=budget)
    assert "holds the number of parameters of decoder and prior equal (501 against 500)" in text
    assert "It does not hold that of the whole model equal (900 against 800)" in text
    near = verdict(compared()["clear"], Spent("A", 801, amount=501.0), sides[1], budget=budget)
    assert near.endswith("of decoder and prior equal (501 against 500).")
    far = Spent("A", 900, amount=700.0), Spent("B", 800, amount=500.0)
    text = verdict(compared()["clear"], *far, budget=budget)
    assert "does not hold the number of parameters of decoder and prior equal (700 against 500)" in text
    model = HeldEqual(hold="model", target=850, tolerance=0.2)
    text = verdict(
        compared()["clear"], Spent("A", 860, amount=860.0), Spent("B", 850, amount=850.0), budget=model
    )
    assert text.endswith("holds the number of parameters equal (860 against 850).")


def test_narrow_differences_are_shown_with_enough_digits():
    tiny = compared([("a", "base")], {"a": arm(-0.00101, -0.00102, -0.001), "base": BASE})["a"]
    assert ": −0.001010 nats on average" in words(tiny)


def test_equal_but_for_rounding_is_no_finding():
    values = {"a": {0: 0.9, 1: 0.8, 2: 0.5}, "b": {0: 0.7, 1: 0.6, 2: 0.3}}
    (found,) = compare_pairs(values, [("a", "b")], metric="coverage", lower_is_better=False)
    assert (found.p_value, found.significant, found.power) == (None, False, None)


def test_seeds_that_one_arm_lacks_do_not_count():
    values = {"a": {0: 1.0, 1: 3.0, 5: 99.0}, "b": {1: 4.0, 0: 3.0, 7: -99.0}, "c": {9: 0.0}}
    found = compared([("a", "b"), ("c", "b")], values)
    assert found["a"].by_seed == {0: -2.0, 1: -1.0}
    assert (found["a"].difference.mean, found["a"].difference.num) == (-1.5, 2)
    assert (found["c"].by_seed, found["c"].difference) == ({}, None)


CROSSED = Interaction("both", "first", "second", "neither")


def crossed(more):
    """Two changes of -1 and -0.5 nats alone, and together so much more than their sum, with a little spread."""
    spread = (0.02, -0.01, 0.0, -0.02, 0.01)
    return {
        "neither": BASE,
        "first": arm(*[-1.0] * 5),
        "second": arm(*[-0.5] * 5),
        "both": arm(*[-1.5 + more + wiggle for wiggle in spread]),
    }


@pytest.mark.parametrize(("more", "side"), [(-0.7, "lower (better)"), (0.3, "higher (worse)")])
def test_an_interaction_that_was_planted_is_found_with_its_sign(more, side):
    values = crossed(more) | {"other": arm(0.5, -0.6, 0.2, -0.4, 0.1)}
    pairs = [(name, "neither") for name in ("first", "second", "both", "other")]
    *_, found = compare_pairs(values, pairs, metric="nll", lower_is_better=True, interaction=CROSSED)
    assert found.by_seed == pytest.approx(dict(enumerate(more + w for w in (0.02, -0.01, 0.0, -0.02, 0.01))))
    assert found.difference.mean == pytest.approx(more)
    assert found.difference.low < more < found.difference.high
    assert (found.arm, found.other, found.interaction, found.significant) == (
        "both",
        "neither",
        CROSSED,
        True,
    )
    assert found.contrast == "both - first - second + neither"
    assert (found.row()["contrast"], found.row()["other"]) == (found.contrast, None)
    text = interaction_verdict(found, ("A", "B"), [Spent("AB", num_diverged=1), Spent("A")])
    assert f"this supports an interaction: the NLL with “A” and “B” together is {side} than what each" in text
    assert "1 run of “AB” diverged" in text


def test_an_interaction_counts_in_the_correction_of_all():
    pairs = [("both", "neither"), ("first", "neither")]
    values = crossed(0.0)
    alone = compare_pairs(values, pairs, metric="nll")
    *beside, found = compare_pairs(values, pairs, metric="nll", interaction=CROSSED)
    assert [one.num_comparisons for one in (*beside, found)] == [3, 3, 3]
    assert alone[0].corrected_p_value == pytest.approx(2 * alone[0].p_value)
    assert beside[0].corrected_p_value == pytest.approx(3 * beside[0].p_value)
    assert not found.significant
    text = interaction_verdict(found, ("A", "B"), [])
    assert "does not show an interaction of “A” and “B” in NLL: 0.000 nats" in text
    assert "no evidence that what they change adds up" in text
    assert "find a true interaction of" in text


def test_what_adds_up_but_for_rounding_is_no_interaction():
    values = {"neither": 0.9, "first": 0.8, "second": 0.7, "both": 0.6}
    values = {name: {seed: value - 0.1 * seed for seed in range(5)} for name, value in values.items()}
    (found,) = compare_pairs(values, [], metric="coverage", lower_is_better=False, interaction=CROSSED)
    assert list(found.by_seed.values()) == [0.0] * 5
    assert (found.p_value, found.significant) == (None, False)


def test_an_interaction_needs_seeds_that_all_four_arms_have():
    values = crossed(-1.0)
    values["second"] = {4: values["second"][4]}
    *_, found = compare_pairs(values, [], metric="nll", interaction=CROSSED)
    assert list(found.by_seed) == [4]
    assert "one seed gives no interval, so this does not show an interaction." in interaction_verdict(
        found, ("A", "B"), []
    )
    *_, found = compare_pairs(values | {"both": {}}, [], metric="nll", interaction=CROSSED)
    assert "shared by the four arms of “A” and “B”" in interaction_verdict(found, ("A", "B"), [])
