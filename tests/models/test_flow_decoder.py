"""The flow likelihood as the decoder of a VAE: where it starts, what it scores, what it refuses."""

from functools import partial

import pytest
import torch
from torch import nn

from latentflows.bijections import Chain
from latentflows.core import noise
from latentflows.core.errors import CombinationError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedGaussian, StandardGaussian, gaussian_raw_shape
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE
from latentflows.models.flow_decoder import flow_likelihood
from latentflows.models.image_flows import real_nvp_image, to_pixels
from latentflows.models.presets import real_nvp
from latentflows.networks import MLP
from tests.bijections.cases import randomize

IMAGE = (1, 4, 4)
LATENT = 3
FLOWS = {
    "channels": ((2, 4, 4), partial(real_nvp_image, (2, 4, 4), num_levels=1, num_blocks=1, width=4)),
    "levels": ((1, 8, 8), partial(real_nvp_image, (1, 8, 8), num_levels=3, num_blocks=1, width=4)),
    "vector": ((5,), partial(real_nvp, 5, num_layers=4, width=6)),
}


def decoder(event_shape, features=LATENT):
    return MLP(features, gaussian_raw_shape(event_shape), width=8, depth=1)


def likelihood(event_shape=IMAGE, **settings):
    settings = {"flow": partial(real_nvp_image, IMAGE, num_levels=2, num_blocks=1, width=4)} | settings
    return flow_likelihood(event_shape, LATENT, decoder(event_shape), **settings)


def vae(part):
    posterior = AmortizedGaussian(
        LATENT, part.event_shape, MLP(part.event_shape, 2 * LATENT, width=8, depth=1)
    )
    return VAE(posterior, StandardGaussian(LATENT), part)


@pytest.mark.parametrize("name", FLOWS)
def test_it_starts_as_the_gaussian_of_its_decoder(name):
    """Entry by entry: mean and scale reach the pixel that the decoder meant, through squeezes and permutations."""
    event, flow = FLOWS[name]
    network = decoder(event)
    made = flow_likelihood(event, LATENT, network, flow=flow)
    z, x = torch.randn(2, 5, LATENT), torch.randn(5, *event)
    expected = AmortizedGaussian(event, LATENT, network)(z)
    torch.testing.assert_close(made(z).log_prob(x), expected.log_prob(x), rtol=1e-4, atol=1e-4)
    with noise.stream(1), torch.no_grad():
        draws = made(z).sample((400,))
    error = (draws.mean(0) - expected.mean) / (draws.std(0) / 20)
    assert error.abs().max() < 5


@pytest.mark.parametrize(("event", "kind"), [((1, 4, 6), "images"), ((7,), "vectors")])
def test_without_a_flow_it_is_real_nvp(event, kind):
    made = flow_likelihood(event, LATENT, decoder(event))
    assert made.bijection.context_shape == (LATENT,)
    assert made(torch.zeros(2, LATENT)).sample().shape == (2, *event)
    largest = max(parameter.ndim for parameter in made.bijection.parameters())
    assert (largest == 4) == (kind == "images")  # convolutions


def test_it_ends_in_pixels():
    def flow(context):
        inner = real_nvp_image(IMAGE, num_levels=2, num_blocks=1, width=4, context=context)
        return Chain([inner, to_pixels(IMAGE)])

    made = likelihood(flow=flow)
    randomize(made, 0.3)
    x = made(torch.randn(50, LATENT)).sample()
    assert ((x > -0.06) & (x < 1.06)).all()
    assert torch.isfinite(made(torch.randn(50, LATENT)).log_prob(x.clamp(0, 1))).all()


@pytest.mark.parametrize("samples", [1, 4])
def test_it_is_the_likelihood_of_images_in_a_vae(samples):
    model = vae(likelihood()).double()
    randomize(model, 0.4)
    x = torch.randn(6, *IMAGE).double()
    with noise.stream(1):
        trace = model.trace(x, samples)
    assert trace.log_likelihood.shape == (samples, 6)
    for k in range(samples):  # pixel by pixel the same under each of the K latents
        torch.testing.assert_close(trace.log_likelihood[k], model.likelihood(trace.z[k]).log_prob(x))
    trace.log_weight.mean().backward()
    for name, parameter in model.likelihood.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    assert model.sample(7).shape == (7, *IMAGE)
    p = model.likelihood(trace.z[0])
    drawn, log_p = p.sample_and_log_prob((2,))
    torch.testing.assert_close(log_p, p.log_prob(drawn))


def test_pixels_depend_on_each_other_given_z():
    made = likelihood().double()
    randomize(made, 0.5)
    with torch.no_grad(), noise.stream(2):
        x = made(torch.ones(LATENT).double()).sample((4000,)).flatten(1)
    correlation = torch.corrcoef(x.t()).fill_diagonal_(0)
    assert correlation.abs().max() > 0.1  # noise is 0.016


def test_the_density_of_a_vector_integrates_to_one():
    made = flow_likelihood(
        2, LATENT, decoder((2,)), flow=partial(real_nvp, 2, num_layers=3, width=6)
    ).double()
    randomize(made, 0.2)
    line = torch.linspace(-15, 15, 601).double()
    with torch.no_grad():
        p = made(torch.ones(LATENT).double()).log_prob(torch.cartesian_prod(line, line)).exp()
    assert p.sum() * (line[1] - line[0]) ** 2 == pytest.approx(1, abs=1e-4)


def test_its_figures_are_those_of_a_density():
    model = vae(likelihood())
    source = ArraySplit(torch.rand(5, *IMAGE), values="continuous", bits_offset=8.0)
    assert evaluate_bounds(model, source, num_importance_samples=3).figures()["bits_per_dim"] is not None
    for values in ("unit", "binary"):
        data = ArraySplit(torch.ones(5, *IMAGE), values=values)
        with pytest.raises(CombinationError, match=f"a density.*, but the data have {values} values"):
            evaluate_bounds(model, data, num_importance_samples=3)


def test_there_is_no_mean_and_the_message_says_to_draw():
    model = vae(likelihood())
    with pytest.raises(CombinationError, match=r"no mean in closed form\. Draw samples and average them"):
        model.reconstruct(torch.rand(2, *IMAGE))


def test_decoder_and_flow_share_the_features_of_an_embedding():
    embed = MLP((2, 3), 5, width=8, depth=1)
    made = flow_likelihood(
        IMAGE,
        (2, 3),
        decoder(IMAGE, 5),
        flow=partial(real_nvp_image, IMAGE, num_levels=2, num_blocks=1, width=4),
        embed=embed,
        num_features=5,
    )
    assert made.context_shape == (2, 3)
    assert made.bijection.context_shape == made.base.context_shape == (5,)
    seen = []
    embed.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    made(torch.randn(4, 2, 3)).log_prob(torch.randn(4, *IMAGE))
    assert seen == [4]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(CombinationError, match="`embed` and `num_features` go together"):
        likelihood(num_features=4)
    with pytest.raises(CombinationError, match=r"latents are \(2, 3\)\. Give `embed` and `num_features`"):
        flow_likelihood(IMAGE, (2, 3), decoder(IMAGE))
    for flow in (partial(real_nvp, 16), lambda context: real_nvp_image(IMAGE, num_levels=1, num_blocks=1)):
        with pytest.raises(
            CombinationError, match=r"The flow must end in \(1, 4, 4\) and hear \(3,\); got one"
        ):
            likelihood(flow=flow)


def test_the_order_is_saved_with_the_weights():
    made, other = likelihood(), likelihood()
    other.load_state_dict(made.state_dict())
    z, x = torch.randn(3, LATENT), torch.randn(3, *IMAGE)
    torch.testing.assert_close(other(z).log_prob(x), made(z).log_prob(x))
    assert any(name.endswith("order") for name in made.state_dict())
    assert isinstance(made.base.network, nn.Sequential)
