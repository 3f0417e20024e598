import pytest
import torch
from torch import nn

from latentflows.bijections import Chain, Reshape
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.distributions import AmortizedGaussian, Flow, StandardGaussian
from latentflows.generation import drawing, interpolate, reconstruct, sample, sample_classes
from latentflows.models import DensityModel
from latentflows.models.presets import real_nvp
from tests.generation.parts import flow_prior, images, network, small_vae


def test_samples_and_their_means_share_the_latents():
    model = small_vae()
    drawn, means = sample(model, 5, seed=1), sample(model, 5, seed=1, mean=True)
    assert drawn.shape == means.shape == (5, 1, 4, 4)
    assert ((drawn == 0) | (drawn == 1)).all()
    many = torch.stack([sample(model, 2, seed=s) for s in range(300)]).mean((0, 1))
    exact = torch.stack([sample(model, 2, seed=s, mean=True) for s in range(300)]).mean((0, 1))
    assert (many - exact).abs().max() < 5 * 0.5 / 600**0.5


def test_temperature_scales_the_base_noise():
    model = small_vae(prior=StandardGaussian(3))
    linear = nn.Linear(3, 16)
    model.likelihood.network = nn.Sequential(linear, nn.Unflatten(1, (1, 4, 4)))
    cold, warm = (sample(model, 4, temperature=t, mean=True).logit() for t in (0.5, 1.0))
    bias = linear.bias.view(1, 4, 4)
    torch.testing.assert_close(cold - bias, 0.5 * (warm - bias), rtol=1e-3, atol=1e-4)


def test_samples_beyond_one_piece_differ():
    drawn = sample(small_vae(), 600, mean=True)
    assert len(drawn) == 600
    assert len(drawn.flatten(1).unique(dim=0)) == 600


def test_conditional_prior_takes_one_context_a_sample():
    model = small_vae(prior=AmortizedGaussian(3, 2, network(2, 6)))
    context = torch.randn(300, 2)
    assert sample(model, 300, context=context).shape == (300, 1, 4, 4)
    with pytest.raises(ShapeError, match="must have 300 rows"):
        sample(model, 300, context=context[:4])
    with pytest.raises(ShapeError, match="needs a context"):
        sample(model, 3)


def test_reconstruction_is_the_models_own():
    model = small_vae()
    x = images(5).x
    seen = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    mean = reconstruct(model, x, seed=4)
    torch.testing.assert_close(mean, model.decode_mean(seen[0]))
    assert torch.equal(mean, reconstruct(model, x, seed=4))
    assert not torch.equal(mean, reconstruct(model, x, seed=5))


def test_modes_and_generator_come_back_and_no_gradient_is_kept():
    model = small_vae().train()
    model.prior.eval()
    modes = [module.training for module in model.modules()]
    x = images(3).x
    used = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: used.append(module.training))
    before = torch.get_rng_state()
    outputs = [sample(model, 2), reconstruct(model, x), interpolate(model, x, x.flip(0), 3)]
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert used == [False] * 3
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("line", ["straight", "spherical"])
@pytest.mark.parametrize("space", ["latent", "base"])
def test_interpolation_runs_from_end_to_end(line, space):
    model = small_vae(prior=flow_prior())
    x_a, x_b = images(6).x[:3], images(6).x[3:]
    seen = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    walk = interpolate(model, x_a, x_b, 5, line=line, space=space)
    assert walk.shape == (3, 5, 1, 4, 4)
    z = seen[0].view(3, 5, 3)
    with noise.stream(0, noise.Purpose.INTERPOLATE), torch.no_grad():
        ends = [model.posterior(x).sample() for x in (x_a, x_b)]
    torch.testing.assert_close(z[:, 0], ends[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z[:, -1], ends[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(walk, model.decode_mean(z))
    if space == "base":
        with torch.no_grad():
            z = model.prior.bijection.inverse(z)[0]
    middle = (z[:, 0] + z[:, -1]) / 2
    if line == "spherical":  # halfway the arc leaves the chord by 1 / cos(angle / 2)
        cosine = torch.cosine_similarity(z[:, 0], z[:, -1], dim=1)
        middle = middle / (cosine.acos() / 2).cos()[:, None]
    torch.testing.assert_close(z[:, 2], middle, rtol=1e-3, atol=1e-3)


def test_spherical_keeps_the_norm_and_falls_back_to_the_line():
    a, b = nn.functional.normalize(torch.randn(2, 4, 9), dim=-1)
    t = torch.linspace(0, 1, 7)
    assert torch.allclose(drawing._spherical(a, b, t).norm(dim=-1), torch.ones(7, 4), atol=1e-5)
    for other in (a, -a, torch.zeros_like(a)):
        arc = drawing._spherical(a, other, t)
        assert torch.isfinite(arc).all()
        torch.testing.assert_close(arc[0], a)


def test_interpolation_refuses_what_it_cannot_do():
    model, x = small_vae(), images(3).x
    with pytest.raises(CombinationError, match="needs a flow as the prior; got `StandardGaussian`"):
        interpolate(model, x, x, 3, space="base")
    with pytest.raises(ConfigurationError, match="`steps` must be an integer of at least 2; got 1"):
        interpolate(model, x, x, 1)
    with pytest.raises(ConfigurationError, match="got 'round'"):
        interpolate(model, x, x, 3, line="round")
    with pytest.raises(ShapeError, match="one shape"):
        interpolate(model, x, x[:2], 3)


def test_conditional_flow_prior_interpolates_in_its_base():
    prior = Flow(StandardGaussian(3), real_nvp(3, num_layers=2, width=8, context=2))
    model = small_vae(prior=prior)
    x, context = images(4).x, torch.randn(4, 2)
    walk = interpolate(model, x, x.flip(0), 6, space="base", context=context)
    assert walk.shape == (4, 6, 1, 4, 4)


@pytest.mark.parametrize("settings", [{"num": 0}, {"num": 2, "temperature": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigurationError, match="must be"):
        sample(small_vae(), **settings)


def small_density(context=None):
    """A flow over pictures."""
    with noise.stream(3):
        flow = real_nvp(16, num_layers=2, width=8, depth=1, context=context)
        return DensityModel(Flow(StandardGaussian(16), Chain([flow, Reshape((16,), (1, 4, 4))])))


def test_a_density_of_the_data_is_drawn_from_at_a_temperature():
    model = small_density()
    assert sample(model, 5, seed=1).shape == (5, 1, 4, 4)
    assert torch.equal(sample(model, 5, seed=1), sample(model, 5, seed=1))
    assert sample(model, 400, temperature=0.1).std() < 0.5 * sample(model, 400).std()
    assert not drawing.draws_discrete(model)
    assert drawing.draws_discrete(small_vae())


def test_a_density_given_a_label_takes_one_for_each_draw():
    model = small_density(3)
    assert sample_classes(model, [0, 2], 4, seed=1).shape == (8, 1, 4, 4)
    with pytest.raises(ShapeError, match="must have 5 rows"):
        sample(model, 5, context=torch.zeros(4, 3))


def test_what_a_density_of_the_data_does_not_have_is_refused():
    model, x = small_density(), torch.zeros(2, 1, 4, 4)
    with pytest.raises(CombinationError, match=r"no mean of p\(x\|z\)"):
        sample(model, 2, mean=True)
    with pytest.raises(CombinationError, match="no latents to reconstruct from"):
        reconstruct(model, x)
    with pytest.raises(CombinationError, match="no latents to walk through"):
        interpolate(model, x, x, 3)
