"""Figures of a study: what they draw, what they mark, where they lead, and when they stay away."""

import math
import re

import pytest

from latentflows.reporting.study_figures import AXES, Contrast, forest_plot, run_dots, validation_curves
from latentflows.studies.statistics.differences import compare_pairs

STEPS, SAMPLES, FLOPS, SECONDS = AXES


def words(drawing):
    found = re.findall(r"<text[^>]*>([^<]*)</text>|<tspan[^>]*>([^<]*)</tspan>", drawing.svg)
    return " | ".join(a or b for a, b in found)


def contrasts(*differences, links=None):
    values = {"base": {}}
    for number, arm in enumerate(differences):
        values[f"arm {number}"] = dict(enumerate(arm))
        values["base"] |= dict.fromkeys(range(len(arm)), 0.0)
    pairs = [(arm, "base") for arm in values if arm != "base"]
    found = compare_pairs(values, pairs, metric="nll", lower_is_better=True)
    return [Contrast(item.arm, item, links or {}) for item in found]


def test_the_forest_plot_says_mean_interval_and_corrected_p_of_every_comparison():
    drawing = forest_plot(contrasts([-1.0, -1.1, -0.9], [2.0]), "Gaussian", "test NLL")
    assert drawing is not None
    assert "arm 0: −1.00, 95% t interval [−1.25, −0.75], corrected p 0.007" in drawing.alt
    assert "arm 1: 2.00, 95% t interval none (one seed)" in drawing.alt
    for part in ("test NLL minus that of Gaussian, nats", "left of 0 is better", "bootstrap interval"):
        assert part in words(drawing)
    assert forest_plot([], "Gaussian") is None


def test_only_differences_that_the_corrected_test_finds_are_filled():
    # p = 0.0033 and 0.033 alone; 0.0066 and 0.033 after the correction; with a third, weak one 0.0099 and 0.066.
    clear, weak, none = [-1.0, -1.2, -0.9], [-1.0, -1.6, -0.8], [0.1, -0.2, 0.15]
    blue = "stroke: #0f7fd0"

    def filled(*arms):
        drawing = forest_plot(contrasts(*arms), "base")
        assert drawing is not None
        legend = forest_plot(contrasts(none), "base")
        assert legend is not None
        return drawing.svg.count(blue) > legend.svg.count(blue)

    assert filled(clear)
    assert filled(weak)
    assert not filled(none)
    assert not filled(weak, none, none)


def test_the_side_that_is_better_is_that_of_the_figure():
    (found,) = compare_pairs(
        {"a": {0: 1.0, 1: 2.0}, "b": {0: 0.0, 1: 0.0}}, [("a", "b")], metric="elbo", lower_is_better=False
    )
    drawing = forest_plot([Contrast("a", found, {})], "b", "ELBO")
    assert drawing is not None
    assert "right of 0 is better" in words(drawing)


def test_every_seed_leads_to_its_run():
    links = {0: "runs/a%20b-seed0/report.html", 2: "runs/a-seed2/report.html"}
    drawing = forest_plot(contrasts([-1.0, -1.1, -0.9], links=links), "base")
    assert drawing is not None
    assert re.findall(r'<a xlink:href="([^"]+)"', drawing.inline()) == list(links.values())
    assert re.findall(r'<a xlink:href="([^"]+)"', drawing.standalone("../")) == [
        f"../{link}" for link in links.values()
    ]
    assert "<a " not in drawing.standalone()
    assert drawing.standalone().count("</a>") == 0


def test_run_dots_show_every_run_and_arms_without_one():
    drawing = run_dots({"Flow": {0: 1.0, 3: 2.5}, "None yet": {}}, {"Flow": {3: "runs/f3/report.html"}})
    assert drawing is not None
    assert "Flow: 1.00, 2.50; None yet: no run" in drawing.alt
    assert "None yet" in words(drawing)
    assert re.findall(r'xlink:href="(runs[^"]+)"', drawing.svg) == ["runs/f3/report.html"]
    assert run_dots({"Flow": {}}, {}) is None


def of_stage(points, name="joint"):
    return {(name, epoch): point for epoch, point in enumerate(points, 1)}


def test_curves_are_means_over_all_seeds_of_position_and_value():
    arms = {
        "A": [of_stage([(1.0, -10.0), (2.0, -8.0), (3.0, -6.0)]), of_stage([(3.0, -12.0), (6.0, -10.0)])],
        "B": [of_stage([(1.0, -5.0), (2.0, math.nan), (math.nan, -1.0), (4.0, -4.0)])],
        "C": [],
    }
    drawing = validation_curves(arms, SECONDS)
    assert drawing is not None
    assert "A ends at −9.00 after 4" in drawing.alt  # the third epoch has one seed alone
    assert "B ends at −4.00 after 4" in drawing.alt
    assert "C" not in drawing.alt.split("seeds: ")[1]
    assert "seconds of training" in words(drawing)
    assert "higher is better" in words(drawing)
    assert validation_curves({"A": [of_stage([(1.0, math.nan)])], "B": []}, STEPS) is None


def test_a_mean_is_over_one_stage_where_seeds_end_the_first_at_different_epochs():
    short = of_stage([(1.0, -10.0), (2.0, -8.0)]) | of_stage([(3.0, -4.0), (4.0, -2.0)], "prior")
    long = of_stage([(1.0, -10.0), (2.0, -8.0), (3.0, -6.0), (4.0, -6.0)]) | of_stage([(5.0, -4.0)], "prior")
    drawing = validation_curves({"A": [short, long]}, STEPS)
    assert drawing is not None
    lines = [line.get_xydata().tolist() for line in drawing.figure.axes[0].lines if len(line.get_xdata())]
    assert lines == [[[1.0, -10.0], [2.0, -8.0]], [[4.0, -4.0]]]  # the second stage starts at step 3 or 5


@pytest.mark.parametrize(("num", "banded"), [(6, True), (7, False)])
def test_bands_are_left_out_where_they_would_hide_each_other(num, banded):
    runs = [of_stage([(1.0, -3.0), (2.0, -2.0)]), of_stage([(1.0, -3.5), (2.0, -2.5)])]
    drawing = validation_curves({f"arm {i}": runs for i in range(num)}, STEPS)
    assert drawing is not None
    assert ("fill-opacity: 0.18" in drawing.svg) is banded


@pytest.mark.parametrize(("axis", "unit"), [(FLOPS, "G"), (SAMPLES, "G"), (STEPS, None), (SECONDS, None)])
def test_large_numbers_of_samples_and_flops_are_shortened(axis, unit):
    points = [(1e9 * epoch, -1.0 / epoch) for epoch in range(1, 10)]
    drawing = validation_curves({"A": [of_stage(points)]}, axis)
    assert drawing is not None
    assert drawing.name == f"curves_{axis.name}"
    assert ("2\N{NARROW NO-BREAK SPACE}G" in words(drawing)) is (unit is not None)


@pytest.mark.parametrize(("num", "clipped"), [(9, False), (12, True)])
def test_curves_of_few_epochs_are_shown_whole(num, clipped):
    points = [(float(epoch), -1e4 if epoch == 1 else -100.0 - epoch) for epoch in range(1, num + 1)]
    drawing = validation_curves({"A": [of_stage(points)]}, STEPS)
    assert drawing is not None
    assert ("outside the axis" in words(drawing)) is clipped
    short = validation_curves({"A": [of_stage(points[:2])]}, STEPS)
    assert short is not None
    assert all(tick == round(tick) for tick in short.figure.axes[0].get_xticks())


def test_a_figure_becomes_the_same_pdf_each_time():
    drawing = forest_plot(contrasts([-1.0, -1.1, -0.9]), "base")
    assert drawing is not None
    made = drawing.pdf()
    assert made.startswith(b"%PDF-1.")
    assert b"FontFile2" in made
    assert drawing.pdf() == made
