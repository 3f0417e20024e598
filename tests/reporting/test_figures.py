"""Figures: what they draw, and when they stay away."""

import math
import re

import pytest

from latentflows.reporting.base import Epoch, read_run
from latentflows.reporting.figures import (
    beta_curve,
    elbo_curve,
    forest_plot,
    learning_rate_curve,
    prior_nll_curve,
    run_dots,
    run_figures,
    validation_curves,
)
from latentflows.studies.statistics import estimate


@pytest.fixture
def staged(fake, tmp_path):
    return read_run(
        fake.write_run(tmp_path / "run", epochs=24, stages=("autoencoder", "prior", "joint"))
    ).epochs


def texts(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>|<tspan[^>]*>([^<]*)</tspan>", drawing.svg)


def words(drawing):
    return " | ".join(a or b for a, b in texts(drawing))


def test_every_curve_of_a_staged_run_is_drawn(staged):
    names = [drawing.name for drawing in run_figures(staged)]
    assert names == ["elbo", "reconstruction", "kl", "prior_nll", "learning_rate", "beta"]


def test_a_curve_without_data_stays_away(fake, tmp_path):
    epochs = read_run(fake.write_run(tmp_path / "run", epochs=4)).epochs
    assert prior_nll_curve(epochs) is None
    assert run_figures(()) == []


def test_axes_have_units_and_stages_have_names(staged):
    drawing = elbo_curve(staged)
    assert drawing is not None
    assert "nats" in words(drawing)
    assert "epoch" in words(drawing)
    for stage in ("autoencoder", "prior", "joint"):
        assert stage in words(drawing)


def test_skipped_steps_and_rollbacks_are_marked_where_their_counts_rise(staged):
    drawing = elbo_curve(staged)
    assert drawing is not None
    assert "skipped steps" in words(drawing)
    assert "rollback" in words(drawing)
    quiet = [epoch.model_copy(update={"skipped_steps": 0, "rollbacks": 0}) for epoch in staged]
    drawing = elbo_curve(quiet)
    assert drawing is not None
    assert "skipped" not in words(drawing)
    assert "rollback" not in words(drawing)


def test_alternative_text_holds_first_and_last_values():
    epochs = [_epoch(number, elbo=-100.0 + 10 * number, beta=math.nan) for number in (1, 2, 3)]
    drawing = elbo_curve(epochs)
    assert drawing is not None
    assert "train: -90 at epoch 1, -70 at epoch 3" in drawing.alt
    assert beta_curve(epochs) is None


def test_extreme_values_are_left_outside_the_axis_and_counted():
    epochs = [
        _epoch(number, elbo=-1e9 if number == 20 else -100.0 + number, beta=1.0) for number in range(1, 41)
    ]
    drawing = elbo_curve(epochs)
    assert drawing is not None
    assert "(1 value outside the axis)" in words(drawing)
    assert "1e9" not in words(drawing)
    assert "outside" not in words(learning_rate_curve(epochs))


def test_values_that_are_not_finite_are_left_out():
    epochs = [
        _epoch(1, elbo=-90.0, beta=1.0),
        _epoch(2, elbo=math.inf, beta=1.0),
        _epoch(3, elbo=math.nan, beta=1.0),
    ]
    drawing = elbo_curve(epochs)
    assert drawing is not None
    assert "train: -90 at epoch 1, -90 at epoch 1" in drawing.alt


def test_validation_curves_are_means_over_all_seeds():
    drawing = validation_curves(
        {"A": [[-10.0, -8.0, -6.0], [-12.0, -10.0]], "B": [[-5.0, math.nan, -4.0]], "C": []}
    )
    assert drawing is not None
    assert "A ends at −9.00" in drawing.alt  # the third epoch has one seed alone
    assert "B ends at −4.00" in drawing.alt
    assert "C" not in drawing.alt.split("seeds: ")[1]
    assert validation_curves({"A": [[math.nan]], "B": []}) is None


def test_forest_plot_says_mean_and_interval_of_every_arm():
    differences = {
        "Flow": (estimate([-1.0, -1.1, -0.9]), [-1.0, -1.1, -0.9]),
        "One": (estimate([2.0]), [2.0]),
    }
    drawing = forest_plot(differences, "Gaussian")
    assert drawing is not None
    assert "Flow: −1.00, 95% interval [−1.25, −0.75]" in drawing.alt
    assert "One: 2.00, 95% interval none (one seed)" in drawing.alt
    assert "nats" in words(drawing)
    assert forest_plot({}, "Gaussian") is None


def test_run_dots_show_every_run_and_arms_without_one():
    drawing = run_dots({"Flow": [1.0, 2.5], "None yet": []})
    assert drawing is not None
    assert "Flow: 1.00, 2.50; None yet: no run" in drawing.alt
    assert "None yet" in words(drawing)
    assert run_dots({"Flow": []}) is None


def _epoch(number, *, elbo, beta):
    train = {"elbo": elbo, "beta": beta}
    return Epoch(stage="joint", epoch=number, step=number, seconds=1.0, learning_rate=1e-3, train=train)


def test_diagnostics_have_their_curves(staged):
    looked = {"posterior_scale": 0.5, "latent_scale": 1.5, "active_units": 3.0, "mmd": 0.01}
    epochs = [epoch.model_copy(update={"diagnostics": looked}) for epoch in staged]
    drawings = {drawing.name: drawing for drawing in run_figures(epochs)}
    assert [*drawings][-3:] == ["posterior_scale", "active_units", "mmd"]
    assert "one posterior: 0.5 at epoch 1" in drawings["posterior_scale"].alt
    assert "all latents: 1.5 at epoch 1" in drawings["posterior_scale"].alt


def test_epochs_are_whole_numbers_and_scales_start_at_zero(fake, tmp_path):
    epochs = read_run(fake.write_run(tmp_path / "run", epochs=5)).epochs
    labels = {one or other for one, other in texts(learning_rate_curve(epochs))}
    assert {"1", "2", "3", "4", "5", "0.0000"} <= labels
    assert "1.5" not in labels
