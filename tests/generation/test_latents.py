import pytest
import torch
from torch import nn

from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.distributions import AmortizedBernoulli, AmortizedGaussian, StandardGaussian
from latentflows.generation import apply_attribute, attribute_vector, class_means, traverse
from latentflows.generation.latents import class_latents
from latentflows.models import VAE
from tests.generation.parts import flow_prior, images, network, small_vae


def encoding(model, x, context=None):
    with torch.no_grad():
        return model.encode(x, context).mean


def test_one_latent_moves_at_a_time_through_quantiles_of_the_prior():
    model, x = small_vae(), images(5).x
    walk = traverse(model, x[0], dims=[2, 0], steps=5, span=(0.1, 0.9))
    assert walk.latents.shape == (2, 5, 3)
    assert walk.images.shape == (2, 5, 1, 4, 4)
    center = encoding(model, x[:1])[0]
    for row, dim in enumerate((2, 0)):
        others = [other for other in range(3) if other != dim]
        torch.testing.assert_close(walk.latents[row][:, others], center[others].expand(5, 2))
        quantiles = torch.distributions.Normal(0, 1).icdf(torch.linspace(0.1, 0.9, 5))
        torch.testing.assert_close(walk.latents[row, :, dim], quantiles, atol=0.12, rtol=0)
    torch.testing.assert_close(walk.images, model.decode_mean(walk.latents))


def test_all_latents_move_unless_some_are_named_and_draws_are_draws():
    model, x = small_vae(prior=flow_prior()), images(5).x
    walk = traverse(model, x[0], steps=3, mean=False)
    assert walk.images.shape == (3, 3, 1, 4, 4)
    assert set(walk.images.unique().tolist()) <= {0, 1}
    means = traverse(model, x[0], steps=3)
    torch.testing.assert_close(walk.latents, means.latents)
    assert len(means.images.unique()) > 2


def test_data_give_quantiles_of_the_aggregate_posterior():
    model, x = small_vae(), images(3000).x
    with torch.no_grad():
        draws = model.encode(x).sample()
    walk = traverse(model, x[0], x=x, steps=4)
    exact = draws.quantile(torch.linspace(0.05, 0.95, 4), dim=0).T
    moved = torch.stack([walk.latents[dim, :, dim] for dim in range(3)])
    torch.testing.assert_close(moved, exact, atol=0.15, rtol=0)
    prior = torch.stack([traverse(model, x[0], steps=4).latents[dim, :, dim] for dim in range(3)])
    assert (moved - prior).abs().max() > 0.1


def conditional():
    """q(z|x, c), p(z|c) and p(x|z, c), c being one of two classes as a one-hot vector."""
    return VAE(
        AmortizedGaussian(3, 18, network(18, 6)),
        AmortizedGaussian(3, 2, network(2, 6)),
        AmortizedBernoulli(16, 5, network(5, 16)),
        context_shape=2,
    )


def test_a_conditional_model_keeps_its_context():
    model, x = conditional(), images(40, (16,)).x
    context = nn.functional.one_hot(torch.arange(40) % 2, 2).float()
    walk = traverse(model, x[0], x=x, steps=3, context=context[0])
    given = context[:1].expand(9, 2)
    exact = model.decode_mean(walk.latents.flatten(0, 1), given).view(3, 3, 16)
    torch.testing.assert_close(walk.images, exact)
    found = class_means(model, x, context.argmax(1), context=context)
    means = encoding(model, x, context)
    for kind in (0, 1):
        latent = means[context[:, kind] == 1].mean(0)
        torch.testing.assert_close(found.latents[kind], latent)
        torch.testing.assert_close(
            found.images[kind], model.decode_mean(latent[None], torch.eye(2)[kind : kind + 1])[0]
        )
    changed = apply_attribute(model, x, torch.ones(3), [0, 2], context=context)
    torch.testing.assert_close(changed.images[:, 1], model.decode_mean(means + 2, context))


def test_class_means_are_decoded_means_of_posterior_means():
    model, x = small_vae(), images(30).x
    labels = torch.arange(30) % 3 * 2
    found = class_means(model, x, labels)
    assert found.labels.tolist() == [0, 2, 4]
    exact = torch.stack([encoding(model, x)[labels == kind].mean(0) for kind in (0, 2, 4)])
    torch.testing.assert_close(found.latents, exact)
    torch.testing.assert_close(found.images, model.decode_mean(exact))
    draws = class_means(model, x, labels, mean=False)
    assert set(draws.images.unique().tolist()) <= {0, 1}


def test_more_than_one_piece_is_joined_in_order():
    model, x = small_vae(), images(600).x
    labels = (torch.arange(600) < 300).long()
    torch.testing.assert_close(class_latents(model, x, labels)[1][0], encoding(model, x)[300:].mean(0))
    changed = apply_attribute(model, x, torch.zeros(3), [0.0])
    torch.testing.assert_close(changed.images[:, 0], model.decode_mean(encoding(model, x)))


def test_an_attribute_is_the_difference_of_two_means_and_is_added_by_strength():
    model, x = small_vae(), images(50).x
    present = x[:, 0, 0, 0] == 1
    vector = attribute_vector(model, x, present)
    means = encoding(model, x)
    torch.testing.assert_close(vector, means[present].mean(0) - means[~present].mean(0))
    changed = apply_attribute(model, x[:4], vector, [-1, 0, 1.5])
    assert changed.images.shape == (4, 3, 1, 4, 4)
    strengths = torch.tensor([-1, 0, 1.5])[:, None]
    torch.testing.assert_close(changed.latents, means[:4, None] + strengths * vector)
    torch.testing.assert_close(changed.images, model.decode_mean(changed.latents))


def test_a_flow_posterior_gives_the_mean_of_its_draws():
    from latentflows.distributions import Flow
    from latentflows.models.presets import planar

    base = AmortizedGaussian(3, 5, network(5, 6))
    posterior = Flow(
        base, planar(3, num_layers=2, context=5), embed=network((1, 4, 4), 5), context_shape=(1, 4, 4)
    )
    model = VAE(posterior, StandardGaussian(3), AmortizedBernoulli((1, 4, 4), 3, network(3, (1, 4, 4))))
    x = images(20).x
    labels = torch.arange(20) % 2
    found, other = (class_latents(model, x, labels, seed=seed)[1] for seed in (0, 1))
    with torch.no_grad():
        draws = model.encode(x).sample((4000,)).mean(0)
    exact = torch.stack([draws[labels == kind].mean(0) for kind in (0, 1)])
    assert (found - exact).abs().max() < 0.25
    assert not torch.equal(found, other)
    assert torch.equal(found, class_latents(model, x, labels, seed=0)[1])


def test_modes_and_generator_come_back_and_no_gradient_is_kept():
    model, x = small_vae().train(), images(8).x
    labels = torch.arange(8) % 2
    before = torch.get_rng_state()
    vector = attribute_vector(model, x, labels == 1)
    outputs = [
        *traverse(model, x[0], x=x, steps=2),
        *apply_attribute(model, x, vector, [1]),
        *class_means(model, x, labels)[1:],
    ]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(output.requires_grad for output in outputs)


def test_what_cannot_be_done_is_refused():
    model, x = small_vae(), images(6).x
    for wrong in ({"steps": 1}, {"span": (0.0, 0.9)}, {"span": (0.9, 0.1)}):
        with pytest.raises(ConfigurationError, match="`steps` must be at least 2 and `span` rise"):
            traverse(model, x[0], **wrong)
    for dims in ([3], [-1], []):
        with pytest.raises(ConfigurationError, match="places from 0 to 2"):
            traverse(model, x[0], dims=dims)
    with pytest.raises(ShapeError, match="`start` must be one data point"):
        traverse(model, x)
    with pytest.raises(DataError, match="one of the two alone"):
        attribute_vector(model, x, torch.ones(6, dtype=torch.bool))
    with pytest.raises(ShapeError, match="`present` must be bool"):
        attribute_vector(model, x, torch.ones(6))
    with pytest.raises(ShapeError, match="latent shape"):
        apply_attribute(model, x, torch.ones(2), [1])
    with pytest.raises(ConfigurationError, match="strengths"):
        apply_attribute(model, x, torch.ones(3), [])
    with pytest.raises(ShapeError, match="`labels` must be integers"):
        class_means(model, x, torch.ones(6))
    with pytest.raises(ShapeError, match="must end in"):
        class_means(model, x[..., :2], torch.arange(6))
