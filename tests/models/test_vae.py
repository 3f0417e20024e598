"""The model: what a trace holds, how samples are drawn, and which parts do not fit together."""

import re
import warnings

import pytest
import torch

from latentflows.bijections import Inverse
from latentflows.core import noise
from latentflows.core.errors import CombinationError, DataError, ShapeError
from latentflows.distributions import Flow, StandardGaussian
from latentflows.models import VAE, presets
from latentflows.networks.masked import MaskedLinear
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, gaussian
from tests.models.parts import (
    DATA,
    LATENT,
    LIKELIHOODS,
    POSTERIORS,
    PRIORS,
    conditional_prior,
    flow_posterior,
    flow_prior,
    vae,
)


def random_vae(*names) -> VAE:
    model = vae(*names).double()
    randomize(model, 0.7)
    return model


def data(count=4):
    return torch.rand(count, *DATA).round().double()


def test_a_trace_scores_the_z_that_the_flow_ends_in():
    model = random_vae("iaf", "real_nvp", "bernoulli")
    x = data()
    with noise.stream(1):
        trace = model.trace(x, 3)
    with noise.stream(1):
        z, log_q = model.posterior(x).sample_and_log_prob((3,))
    torch.testing.assert_close(trace.z, z)
    torch.testing.assert_close(trace.log_posterior, log_q)
    torch.testing.assert_close(trace.log_prior, model.prior().log_prob(z))
    for k in range(3):
        torch.testing.assert_close(trace.log_likelihood[k], model.likelihood(z[k]).log_prob(x))
    expected = trace.log_likelihood + trace.log_prior - trace.log_posterior
    torch.testing.assert_close(trace.log_weight, expected)
    assert trace.x is x
    assert trace.levels[0][0].event_shape == trace.levels[0][1].event_shape == (LATENT,)


@pytest.mark.parametrize("samples", [1, 5])
def test_shapes_of_a_trace(samples):
    trace = vae("gaussian", "maf").trace(data(4).float(), samples)
    assert trace.z.shape == (samples, 4, LATENT)
    for part in (trace.log_likelihood, trace.log_prior, trace.log_posterior, trace.log_weight):
        assert part.shape == (samples, 4)


def test_every_point_is_scored_by_itself():
    model, x = random_vae("planar", "maf", "amortized"), data(4)
    z = model.trace(x).z
    trace = model.trace(x, 2)
    assert len(z.view(-1, LATENT).unique(dim=0)) == 4
    assert len(trace.z.view(-1, LATENT).unique(dim=0)) == 8
    x2 = x.clone()
    x2[3] = 1 - x2[3]
    with noise.stream(1):
        one = model.trace(x, 2).log_weight
    with noise.stream(1):
        two = model.trace(x2, 2).log_weight
    torch.testing.assert_close(one[:, :3], two[:, :3])
    assert (one[:, 3] != two[:, 3]).all()


def test_without_the_likelihood_nothing_is_decoded():
    model, calls = vae("gaussian", "maf"), []
    model.likelihood.register_forward_hook(lambda *_: calls.append(1))
    trace = model.trace(data().float(), 2, with_likelihood=False)
    assert not calls
    assert trace.log_likelihood.isnan().all()
    assert torch.isfinite(trace.log_prior).all()


def test_one_trace_encodes_once_and_decodes_once():
    model, calls = vae("iaf"), []
    model.posterior.embed.register_forward_hook(lambda *_: calls.append("encoder"))
    model.likelihood.network.register_forward_hook(lambda *_: calls.append("decoder"))
    model.trace(data().float(), 7)
    assert calls == ["encoder", "decoder"]


def test_data_of_the_wrong_shape_is_refused():
    with pytest.raises(ShapeError, match=re.escape("`x` must end in (1, 2, 3); got shape (4, 6)")):
        vae().trace(torch.zeros(4, 6))


def test_data_that_the_likelihood_cannot_score_are_refused():
    vae().check_data(data().float())
    vae("gaussian", "standard", "amortized").check_data(torch.rand(4, *DATA))
    with pytest.raises(DataError, match="A Bernoulli likelihood needs binary data"):
        vae().check_data(torch.rand(4, *DATA))
    with pytest.raises(DataError, match="must be finite"):
        vae("gaussian", "standard", "fixed").check_data(torch.full((4, *DATA), float("nan")))
    with pytest.raises(ShapeError, match=re.escape("`x` must end in (1, 2, 3); got shape (4, 6)")):
        vae().check_data(torch.zeros(4, 6))


def test_a_conditional_prior_reads_its_context():
    model = VAE(POSTERIORS["gaussian"](), conditional_prior(2), LIKELIHOODS["bernoulli"]()).double()
    randomize(model, 0.7)
    x, context = data(), torch.randn(4, 2).double()
    with noise.stream(1):
        trace = model.trace(x, 3, context=context)
    torch.testing.assert_close(trace.log_prior, model.prior(context).log_prob(trace.z))
    assert model.sample(4, context=context).shape == (4, *DATA)
    assert model.sample_latents(4, context=context, temperature=0.1).shape == (4, LATENT)
    with pytest.raises(ShapeError, match="needs a context"):
        model.trace(x)


def test_an_unconditional_prior_ignores_a_context():
    model, x = random_vae("gaussian", "diagonal"), data()
    with noise.stream(1):
        plain = model.trace(x)
    with noise.stream(1):
        torch.testing.assert_close(model.trace(x, context=torch.zeros(4, 2)).log_weight, plain.log_weight)


@pytest.mark.parametrize("prior", PRIORS)
def test_samples_come_from_the_prior(prior):
    model = random_vae("gaussian", prior)
    with noise.stream(1):
        z = model.sample_latents(5)
    with noise.stream(1), torch.no_grad():
        torch.testing.assert_close(z, model.prior().sample((5,)))
    with noise.stream(1):
        cold = model.sample_latents(5, temperature=0.3)
    with noise.stream(1), torch.no_grad():
        torch.testing.assert_close(cold, model.prior().tempered(0.3).sample((5,)))
    assert (z != cold).any()


def test_samples_are_drawn_from_the_likelihood_and_means_are_not():
    model = random_vae("gaussian", "standard", "bernoulli")
    x = model.sample(6)
    assert x.shape == (6, *DATA)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    z = model.sample_latents(6)
    torch.testing.assert_close(model.decode_mean(z), model.likelihood(z).mean.detach())
    assert model.decode_mean(z.view(2, 3, LATENT)).shape == (2, 3, *DATA)


def test_reconstructions_go_through_the_flow_of_the_posterior():
    model, x = random_vae("planar"), data()
    with noise.stream(1):
        out = model.reconstruct(x)
    with noise.stream(1):
        expected = model.likelihood(model.posterior(x).sample()).mean
    torch.testing.assert_close(out, expected.detach())


def test_nothing_that_is_drawn_for_the_user_keeps_a_graph():
    model, x = vae("planar", "maf"), data().float()
    for out in (
        model.sample(2),
        model.sample_latents(2),
        model.reconstruct(x),
        model.decode_mean(torch.zeros(2, 3)),
    ):
        assert not out.requires_grad


def test_parameters_are_counted_by_part():
    model = vae("iaf", "standard", "shared")
    counts = model.num_parameters()
    assert counts["prior"] == 0
    assert counts["posterior"] > 0
    assert counts["total"] == counts["posterior"] + counts["likelihood"]
    masked = sum(int((part.mask == 0).sum()) for part in model.modules() if isinstance(part, MaskedLinear))
    assert masked > 0
    assert counts["total"] == sum(p.numel() for p in model.parameters()) - masked
    assert model.event_shape == DATA
    assert model.latent_shape == (LATENT,)


def test_everything_moves_to_another_dtype_with_the_model():
    trace = vae("full", "maf", "shared").double().trace(data(), 2)
    assert trace.z.dtype == trace.log_weight.dtype == torch.float64


REFUSED = {
    "prior_of_another_size": (
        lambda: VAE(POSTERIORS["gaussian"](), StandardGaussian(4), LIKELIHOODS["bernoulli"]()),
        "Latent shapes must agree: the posterior draws (3,), the prior (4,), and the likelihood expects (3,)",
    ),
    "likelihood_of_another_size": (
        lambda: VAE(POSTERIORS["gaussian"](), PRIORS["standard"](), bernoulli(DATA, (4,))),
        "Latent shapes must agree: the posterior draws (3,), the prior (3,), and the likelihood expects (4,)",
    ),
    "posterior_of_other_data": (
        lambda: VAE(gaussian((LATENT,), (7,)), PRIORS["standard"](), LIKELIHOODS["bernoulli"]()),
        "The posterior reads data of shape (7,), but the likelihood gives (1, 2, 3). Build both with the data's",
    ),
    "prior_without_inverse": (
        lambda: VAE(
            POSTERIORS["gaussian"](),
            Flow(StandardGaussian(LATENT), presets.planar(LATENT)),
            LIKELIHOODS["bernoulli"](),
        ),
        "The prior must score points that it did not draw, but `Planar` has no inverse. Use it as the posterior, "
        "and take a coupling flow or Inverse(InverseAutoregressive(...)) as the prior.",
    ),
    "likelihood_without_inverse": (
        lambda: VAE(
            gaussian((LATENT,), (4,)),
            PRIORS["standard"](),
            Flow(gaussian((4,), (LATENT,)), presets.planar(4, num_layers=2)),
        ),
        "The likelihood must score points that it did not draw, but `Planar` has no inverse.",
    ),
    "posterior_without_gradients": (
        lambda: VAE(bernoulli((LATENT,), DATA), PRIORS["standard"](), LIKELIHOODS["bernoulli"]()),
        "The posterior must draw with gradients, but `BernoulliValues` does not. Use a Gaussian or a flow.",
    ),
    "discrete_prior": (
        lambda: VAE(POSTERIORS["gaussian"](), bernoulli((LATENT,), (2,)), LIKELIHOODS["bernoulli"]()),
        "Prior and posterior must both be continuous; one of them is discrete.",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_parts_that_do_not_fit_are_refused_when_built(make, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        make()


def test_a_flow_likelihood_with_both_directions_is_accepted():
    decoder = Flow(gaussian((4,), (LATENT,)), presets.real_nvp(4, num_layers=2, width=4, context=LATENT))
    model = VAE(gaussian((LATENT,), (4,)), StandardGaussian(LATENT), decoder)
    assert torch.isfinite(model.trace(torch.randn(5, 4), 2).log_weight).all()


SLOW = {
    "posterior": (
        lambda: (flow_posterior(presets.maf, width=6), PRIORS["standard"]()),
        "the sampling direction of the posterior's flow, which costs 6 network passes where the other costs 2",
    ),
    "prior": (
        lambda: (POSTERIORS["gaussian"](), flow_prior(presets.iaf)),
        "the density direction of the prior's flow, which costs 6 network passes where the other costs 2",
    ),
}


@pytest.mark.parametrize(("make", "message"), SLOW.values(), ids=SLOW)
def test_a_slow_direction_on_the_training_path_warns_at_the_callers_line(make, message):
    with pytest.warns(UserWarning, match=re.escape(message) + r"\. Wrap it: Inverse") as record:
        VAE(*make(), LIKELIHOODS["bernoulli"]())
    assert len(record) == 1
    assert record[0].filename == __file__


@pytest.mark.parametrize("prior", ["standard", "real_nvp", "maf"])
def test_cheap_directions_do_not_warn(prior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae("iaf", prior)
        slow = presets.iaf(LATENT, num_layers=2, width=6)
        VAE(POSTERIORS["gaussian"](), Flow(StandardGaussian(LATENT), Inverse(slow)), LIKELIHOODS["fixed"]())


def test_a_parameter_that_two_parts_share_is_counted_once_in_the_total():
    model = vae("gaussian", "diagonal", "shared")
    before = model.num_parameters()
    model.likelihood.extra = model.prior.mean
    after = model.num_parameters()
    assert after["likelihood"] == before["likelihood"] + LATENT
    assert after["total"] == before["total"]
