"""Figures: what they draw, and when they stay away."""

import math
import re

import pytest

from latentflows.reporting.base import read_run
from latentflows.reporting.figures import (
    beta_curve,
    elbo_curve,
    learning_rate_curve,
    perplexity_curve,
    prior_nll_curve,
    run_figures,
)
from latentflows.studies.results.records import Epoch


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


def test_few_epochs_are_shown_whole_at_whole_epochs():
    for num in (1, 2, 9):
        epochs = [
            _epoch(number, elbo=-1e4 if number == 1 else -100.0, beta=1.0) for number in range(1, num + 1)
        ]
        drawing = elbo_curve(epochs)
        assert drawing is not None
        assert "outside" not in words(drawing)
        ticks = drawing.figure.axes[0].get_xticks()
        assert all(tick == round(tick) for tick in ticks)


def test_values_that_are_not_finite_are_left_out():
    epochs = [
        _epoch(1, elbo=-90.0, beta=1.0),
        _epoch(2, elbo=math.inf, beta=1.0),
        _epoch(3, elbo=math.nan, beta=1.0),
    ]
    drawing = elbo_curve(epochs)
    assert drawing is not None
    assert "train: -90 at epoch 1, -90 at epoch 1" in drawing.alt


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


def test_the_perplexity_of_codes_is_not_called_their_share():
    epochs = [
        Epoch.model_validate(_epoch(1, elbo=-1.0, beta=1.0).model_dump() | {"train": {"perplexity": 7.5}})
    ]
    drawing = perplexity_curve(epochs)
    assert drawing is not None
    assert drawing.title == "Perplexity of the codes"
