"""Comparisons in words: what is too small to matter, what other images may undo, and who diverged."""

from dataclasses import replace

from latentflows.studies.results.verdicts import Spent, verdict
from latentflows.studies.statistics.differences import compare_pairs

VALUES = {
    "base": {0: 10.0, 1: 11.0, 2: 9.0, 3: 10.5, 4: 9.5},
    "clear": {0: 9.0, 1: 9.9, 2: 8.1, 3: 9.45, 4: 8.55},
    "none": {0: 10.5, 1: 10.4, 2: 9.2, 3: 10.1, 4: 9.6},
}
PAIRS = [("clear", "base"), ("none", "base")]


def compared(**options):
    found = compare_pairs(VALUES, PAIRS, metric="nll", lower_is_better=True, **options)
    return {comparison.arm: comparison for comparison in found}


def words(comparison):
    return verdict(comparison, Spent(comparison.arm), Spent(comparison.other))


def test_an_interval_within_the_smallest_difference_of_interest_is_said_to_be_small():
    none = compared(smallest_difference=2.0)["none"]
    assert "of this comparison alone, lies within ±2 nats, the smallest difference of interest" in words(none)
    assert "no evidence" not in words(none)
    assert "would take" not in words(none)
    clear = words(compared(smallest_difference=2.0)["clear"])
    assert "supports a lower (better) NLL" in clear
    assert "but the whole interval lies within ±2 nats" in clear
    assert "within" not in words(compared(smallest_difference=0.3)["none"])
    assert "within" not in words(compared()["none"])
    assert "within" not in words(compared(smallest_difference=0.5)["clear"])  # lies below -0.5


def test_a_finding_that_other_images_may_undo_says_so():
    clear = compared()["clear"]
    assert "data points" not in words(replace(clear, error_over_images=0.4))
    assert "Its standard error over data points is 0.60 nats: other data points may not show it." in words(
        replace(clear, error_over_images=0.6)
    )
    assert "data points" not in words(replace(compared()["none"], error_over_images=0.6))


def test_runs_that_diverged_are_said_beside_the_comparison():
    found = compared()["clear"]
    text = verdict(found, Spent("A", num_diverged=1), Spent("B", num_diverged=2))
    assert "1 run of “A” diverged or gave no finite NLL, and is left out, which flatters it." in text
    assert "2 runs of “B” diverged or gave no finite NLL, and are left out, which flatters it." in text
    assert "diverged" not in words(found)
