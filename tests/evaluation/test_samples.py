import json
from dataclasses import replace

import pytest
import torch

from latentflows.core.batches import Batch
from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, StandardGaussian
from latentflows.evaluation.distances import frechet_distance, kernel_distance, manifold_figures
from latentflows.evaluation.features import Pixels
from latentflows.evaluation.protocol import comparable
from latentflows.evaluation.samples import compare_features, evaluate_samples
from latentflows.generation import sample
from latentflows.models import VAE
from latentflows.networks import MLP

EVENT = (1, 3, 3)
WORDS = {"data": "dots", "split": "test"}


def network(in_shape, out_shape):
    return MLP(in_shape, out_shape, width=8, depth=1)


def small_vae(prior=None, likelihood="bernoulli"):
    posterior = AmortizedGaussian(2, EVENT, network(EVENT, 4))
    if likelihood == "bernoulli":
        decoder = AmortizedBernoulli(EVENT, 2, network(2, EVENT))
    else:
        decoder = AmortizedGaussian(EVENT, 2, network(2, EVENT), scale=0.5)
    return VAE(posterior, prior or StandardGaussian(2), decoder)


def dots(count=600, chance=0.4):
    return ArraySplit((torch.rand(count, *EVENT) < chance).float(), values="binary")


def test_figures_are_those_of_the_samples_that_generation_draws():
    model, source = small_vae(), dots(300)
    quality = evaluate_samples(model, source, Pixels(), num_neighbors=3, num_blocks=5, seed=4, **WORDS)
    real, generated = source.x.flatten(1), sample(model, 300, seed=4).flatten(1)
    assert quality.frechet_distance == frechet_distance(real, generated, num_groups=20, seed=4)
    assert quality.kernel_distance == kernel_distance(real, generated, num_blocks=5, seed=4)
    assert quality.manifold == manifold_figures(real, generated, num_neighbors=3)
    means = evaluate_samples(model, source, Pixels(), shown="mean", seed=4, **WORDS)
    drawn = sample(model, 300, seed=4, mean=True).flatten(1)
    assert means.frechet_distance.value == pytest.approx(frechet_distance(real, drawn).value, rel=1e-6)
    assert means.protocol == replace(quality.protocol, shown="mean", num_neighbors=5, num_blocks=10)
    assert not comparable(quality.protocol, replace(quality.protocol, num_blocks=10))


def test_the_protocol_says_all_and_stands_with_each_figure():
    quality = evaluate_samples(
        small_vae(), dots(), Pixels(), num_images=120, temperature=0.7, seed=2, **WORDS
    )
    figures = json.loads(json.dumps(quality.figures()))
    assert list(figures) == [
        "frechet_distance",
        "frechet_distance_infinity",
        "kernel_distance",
        "precision",
        "recall",
        "density",
        "coverage",
    ]
    for figure in figures.values():
        assert figure["protocol"] == quality.protocol.as_dict()
        assert figure["unit"]
    stated = quality.protocol
    assert (stated.data, stated.split, stated.features, stated.weights) == ("dots", "test", "pixels", "none")
    assert (stated.num_real, stated.num_generated, stated.dimension) == (120, 120, 9)
    assert (stated.temperature, stated.shown, stated.num_neighbors, stated.seed) == (0.7, "sample", 5, 2)
    low, high = figures["frechet_distance"]["interval"]
    assert low < figures["frechet_distance"]["mean"] < high
    assert figures["frechet_distance_infinity"]["interval"] is None


def test_a_subset_is_drawn_with_the_seed():
    source = dots(400)
    seen = []

    class Watched(ArraySplit):
        def batch(self, indices):
            seen.append(indices)
            return super().batch(indices)

    watched = Watched(source.x, values="binary")
    for seed in (0, 0, 1):
        evaluate_samples(small_vae(), watched, Pixels(), num_images=50, seed=seed, **WORDS)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert len(seen[0].unique()) == 50
    assert seen[0].max() > 300


def test_a_better_model_gets_better_figures():
    model = small_vae()
    for parameter in model.likelihood.parameters():
        torch.nn.init.zeros_(parameter)  # every pixel 1 with probability one half
    near, far = (evaluate_samples(model, dots(chance=c), Pixels(), **WORDS) for c in (0.5, 0.05))
    assert near.frechet_distance.value + 5 * near.frechet_distance.standard_error < far.frechet_distance.value
    assert abs(near.kernel_distance.value) < 4 * near.kernel_distance.standard_error
    assert far.kernel_distance.value > 10 * far.kernel_distance.standard_error
    assert near.manifold.precision.value > far.manifold.precision.value


def test_no_extrapolation_where_there_are_too_few_images():
    few = evaluate_samples(small_vae(), dots(30), Pixels(), num_groups=0, **WORDS)
    assert few.frechet_distance_infinity is None
    assert "frechet_distance_infinity" not in few.figures()
    assert few.figures()["frechet_distance"]["standard_error"] is None
    unasked = evaluate_samples(small_vae(), dots(100), Pixels(), extrapolate=False, **WORDS)
    assert unasked.frechet_distance_infinity is None


def test_a_conditional_model_gets_the_contexts_of_the_real_images():
    model = small_vae(prior=AmortizedGaussian(2, 3, network(3, 4)))
    context = torch.randn(300, 3)

    class Conditioned(ArraySplit):
        def batch(self, indices):
            return Batch(super().batch(indices).x, context[indices])

    source = Conditioned(dots(300).x, values="binary")
    quality = evaluate_samples(model, source, Pixels(), seed=1, **WORDS)
    drawn = sample(model, 300, seed=1, context=context).flatten(1)
    assert quality.frechet_distance.value == pytest.approx(frechet_distance(source.x.flatten(1), drawn).value)


def test_values_outside_the_range_are_clipped_on_both_sides():
    model, source = small_vae(likelihood="gaussian"), dots(100)
    quality = evaluate_samples(model, source, Pixels(), seed=1, **WORDS)
    drawn = sample(model, 100, seed=1).clamp(0, 1).flatten(1)
    assert quality.protocol.pixel_range == (0.0, 1.0)
    assert quality.frechet_distance.value == pytest.approx(frechet_distance(source.x.flatten(1), drawn).value)


def test_the_model_and_the_generator_are_given_back():
    model, source = small_vae().train(), dots(60)
    before = torch.get_rng_state()
    evaluate_samples(model, source, Pixels(), **WORDS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_settings_are_refused():
    model, source = small_vae(), dots(50)
    for count in (1, 51, 2.0):
        with pytest.raises(ConfigurationError, match="`num_images` must be from 2 to 50"):
            evaluate_samples(model, source, Pixels(), num_images=count, **WORDS)
    with pytest.raises(ConfigurationError, match='"sample" or "mean"'):
        evaluate_samples(model, source, Pixels(), shown="best", **WORDS)
    protocol = evaluate_samples(model, source, Pixels(), **WORDS).protocol
    with pytest.raises(ShapeError, match=r"states features of shapes \(50, 9\) and \(50, 9\)"):
        compare_features(torch.rand(50, 9), torch.rand(49, 9), protocol)
