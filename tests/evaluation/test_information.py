import math

import pytest
import torch
from torch import nn

from latentflows.core.errors import CombinationError, ConfigurationError, LatentFlowsError, ShapeError
from latentflows.distributions import (
    AmortizedGaussian,
    Flow,
    LearnedGaussian,
    StandardGaussian,
    kl_divergence,
)
from latentflows.evaluation import evaluate_information, evaluate_units
from latentflows.evaluation import information as information_module
from latentflows.models import VAE, LatentVariablePrior
from latentflows.models.presets import planar, real_nvp
from tests.evaluation.test_bounds import CoinFlips, Points, bernoulli_vae, binary, network
from tests.linear_gaussian import Affine, LinearGaussian


class KnownInformation:
    """q(z|x) = N(G x, S), x ~ N(0, C), p(z) = N(0, I): every figure in closed form."""

    def __init__(self, latent=2, dim=3, scale=0.6):
        generator = torch.Generator().manual_seed(3)
        self.gain = torch.randn(latent, dim, generator=generator, dtype=torch.float64)
        log_scale = math.log(scale)
        raw = torch.full((latent,), log_scale / (1 - abs(log_scale) / 7), dtype=torch.float64)
        weight = torch.cat([self.gain, torch.zeros_like(self.gain)])
        bias = torch.cat([torch.zeros(latent, dtype=torch.float64), raw])
        self.scale = scale
        self.model = VAE(
            AmortizedGaussian(latent, dim, Affine(weight, bias, (2 * latent,))),
            StandardGaussian(latent),
            AmortizedGaussian(dim, latent, nn.Linear(latent, dim), scale=1.0),
        ).double()
        self.spread = self.gain @ self.gain.T  # covariance of the means, with x ~ N(0, I)
        self.aggregate = self.spread + scale**2 * torch.eye(latent)

    def data(self, count):
        return Points(torch.randn(count, self.gain.shape[1], dtype=torch.float64))

    @property
    def mutual_information(self):
        return 0.5 * float(torch.logdet(self.aggregate / self.scale**2))

    @property
    def marginal_kl(self):
        latent = len(self.aggregate)
        return 0.5 * float(self.aggregate.trace() - latent - torch.logdet(self.aggregate))


def within(figure, truth, times=4):
    return abs(figure["mean"] - truth) < times * figure["standard_error"]


def test_information_and_marginal_kl_of_a_known_encoder():
    known = KnownInformation()
    figures = evaluate_information(known.model, known.data(1500), num_samples=2).figures()
    assert within(figures["kl"], known.mutual_information + known.marginal_kl)
    # Many encodings against few latents: both bounds are close to the truth.
    for name in ("mutual_information", "mutual_information_upper"):
        assert figures[name]["mean"] == pytest.approx(known.mutual_information, abs=0.12)
    for name in ("marginal_kl", "marginal_kl_lower"):
        assert figures[name]["mean"] == pytest.approx(known.marginal_kl, abs=0.2)
    assert all(figure["unit"] == "nats" for figure in figures.values())


def test_the_exact_posterior_leaves_nothing_to_the_prior():
    example = LinearGaussian()
    result = evaluate_information(example.model, Points(example.data(1500)))
    truth = 0.5 * float(-torch.logdet(example.covariance))
    figures = result.figures()
    assert figures["mutual_information"]["mean"] < truth + 0.1
    assert figures["mutual_information_upper"]["mean"] > truth - 0.1
    assert abs(figures["marginal_kl"]["mean"]) < 0.2
    assert within(figures["kl"], truth)


@pytest.mark.parametrize("count", [5, 40])
def test_two_estimates_enclose_the_information_for_few_images(count):
    known = KnownInformation(scale=0.2)
    lower, upper = [], []
    for seed in range(25):
        result = evaluate_information(known.model, known.data(count), num_samples=4, seed=seed)
        lower.append(float(result.mutual_information.mean()))
        upper.append(float(result.mutual_information_upper.mean()))
    assert sum(lower) / 25 < known.mutual_information < sum(upper) / 25
    assert max(lower) <= math.log(count)


def test_the_decomposition_holds_exactly():
    known = KnownInformation()
    result = evaluate_information(known.model, known.data(30), num_samples=3)
    torch.testing.assert_close(result.mutual_information + result.marginal_kl, result.kl)
    torch.testing.assert_close(result.mutual_information_upper + result.marginal_kl_lower, result.kl)


def test_the_mixture_is_that_of_every_pair(monkeypatch):
    known = KnownInformation()
    source = known.data(7)
    whole = evaluate_information(known.model, source, num_samples=3)
    monkeypatch.setattr(
        information_module, "_PAIR_NUMBERS", 2 * 7 * 5
    )  # 5 draws at once: not a multiple of 3
    pieces = evaluate_information(known.model, source, num_samples=3)
    torch.testing.assert_close(pieces.mutual_information, whole.mutual_information, rtol=0, atol=1e-12)
    torch.testing.assert_close(pieces.kl, whole.kl, rtol=0, atol=1e-12)
    with torch.no_grad():
        q = known.model.encode(source.x)
        z = torch.cat([information_module._draw(q, 3, 0, 0)])
        log_q = q.log_prob(z.unsqueeze(2).expand(3, 7, 7, 2))
    own = log_q.diagonal(dim1=1, dim2=2)
    expected = own - log_q.logsumexp(2) + math.log(7)
    torch.testing.assert_close(whole.mutual_information, expected.mean(0), rtol=0, atol=1e-12)
    others = log_q.masked_fill(torch.eye(7, dtype=torch.bool), -torch.inf).logsumexp(2) - math.log(6)
    torch.testing.assert_close(whole.mutual_information_upper, (own - others).mean(0), rtol=0, atol=1e-12)


def test_blocks_of_encodings_do_not_matter(monkeypatch):
    known = KnownInformation()
    source = known.data(20)
    with monkeypatch.context() as patch:
        patch.setattr(
            information_module, "_draw", lambda q, num, seed, start: q.mean.expand(num, *q.mean.shape)
        )
        whole = evaluate_information(known.model, source)
        patch.setattr(information_module, "_BLOCK", 3)
        pieces = evaluate_information(known.model, source)
    torch.testing.assert_close(pieces.mutual_information, whole.mutual_information, rtol=0, atol=1e-12)


def test_an_estimate_of_the_prior_gives_no_lower_bound():
    """With the exact inner posterior one inner sample is exact; with another one every KL figure is too high."""
    known = KnownInformation()
    source, found = known.data(300), {}
    for exact in (True, False):
        inner = LinearGaussian((2,), latent=2, exact=exact)
        prior = LatentVariablePrior(inner.model, num_samples=1)
        model = VAE(known.model.posterior, prior, known.model.likelihood)
        found[exact] = evaluate_information(model, source, num_samples=4)
    too_high = found[False].kl - found[True].kl  # from the same latents
    assert too_high.mean() > 4 * too_high.std() / 300**0.5
    figures = found[False].figures()
    assert found[False].marginal_kl_lower is None
    assert figures["marginal_kl_lower"] is None
    assert figures["marginal_kl"] is not None
    assert "too low on average" in str(found[False].protocol["without_lower_bound"])
    assert "without_lower_bound" not in evaluate_information(known.model, known.data(5)).protocol


def test_a_flow_that_does_nothing_has_the_information_of_its_base():
    known = KnownInformation()
    flow = Flow(known.model.posterior, real_nvp(2, num_layers=2, width=4).double())
    model = VAE(flow, known.model.prior, known.model.likelihood)
    source = known.data(50)
    torch.testing.assert_close(
        evaluate_information(model, source).mutual_information,
        evaluate_information(known.model, source).mutual_information,
    )


def test_what_cannot_be_divided_is_refused():
    base = bernoulli_vae()
    posterior = Flow(base.posterior, planar(2, num_layers=1))
    with pytest.raises(CombinationError, match="q\\(z\\|x\\) at latents of other images"):
        evaluate_information(VAE(posterior, base.prior, base.likelihood), binary(5))
    conditional = VAE(base.posterior, AmortizedGaussian(2, 3, network(3, 4)), base.likelihood)
    with pytest.raises(CombinationError, match="divides within each c"):
        evaluate_information(conditional, binary(5))
    with pytest.raises(ConfigurationError, match="at least 2; got 1"):
        evaluate_information(base, binary(5), num_images=1)
    with pytest.raises(ShapeError, match="the model's shape"):
        evaluate_information(base, binary(5, dim=4))
    base.posterior.network.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    with pytest.raises(LatentFlowsError, match="NaN"):
        evaluate_information(base, binary(5))


def test_active_units_of_a_known_encoder():
    known = KnownInformation(latent=3, dim=3)
    known.model.posterior.network.weight.data[1] = 0  # a unit that ignores x
    known.model.posterior.network.weight.data[2] *= 0.03
    source = known.data(4000)
    units = evaluate_units(known.model, source)
    truth = known.model.posterior.network.weight.data[:3].square().sum(1)
    assert (units.activity - truth).abs().le(4 * units.activity_error + 1e-12).all()
    # The variance of s^2 for normal means is 2 s^4 / n.
    torch.testing.assert_close(units.activity_error, truth * math.sqrt(2 / 4000), rtol=0.1, atol=1e-12)
    assert units.active.tolist() == [True, False, bool(truth[2] > 0.01)]
    torch.testing.assert_close(units.scale, torch.full((3,), 0.6, dtype=torch.float64))
    figures = units.figures()
    assert figures["active_units"]["mean"] == float((truth > 0.01).sum())
    assert figures["posterior_scale"]["mean"] == pytest.approx(0.6)
    by_hand = 0.5 * (truth + 0.36 - 1) - math.log(0.6)
    torch.testing.assert_close(units.kl, by_hand, rtol=0.1, atol=1e-12)


def test_the_kl_of_units_adds_up_and_reads_the_prior():
    known = KnownInformation()
    source = known.data(20)
    prior = LearnedGaussian(2).double()
    prior.mean.data += 0.4
    prior.raw_scale.data -= 0.3
    for p in (known.model.prior, prior):
        model = VAE(known.model.posterior, p, known.model.likelihood)
        with torch.no_grad():
            total = kl_divergence(model.encode(source.x), model.prior_at()).mean()
        assert float(evaluate_units(model, source).kl.sum()) == pytest.approx(float(total))
    full = VAE(known.model.posterior, LearnedGaussian(2, covariance="full").double(), known.model.likelihood)
    assert evaluate_units(full, source).kl is None
    assert evaluate_units(full, source).figures()["largest_unit_kl"] is None


def test_means_from_draws_are_corrected_for_their_own_error():
    """Without the correction, a unit of posterior scale 0.6 gains 0.36 / S = 0.09 and looks active."""
    known = KnownInformation()
    known.model.posterior.network.weight.data[1] = 0
    flow = Flow(known.model.posterior, real_nvp(2, num_layers=2, width=4).double())
    model = VAE(flow, known.model.prior, known.model.likelihood)
    source = known.data(3000)
    units = evaluate_units(model, source, num_samples=4)
    exact = evaluate_units(known.model, source)
    assert (units.activity - exact.activity).abs().le(4 * units.activity_error).all()
    assert abs(float(units.activity[1])) < 0.01
    assert units.scale[0] == pytest.approx(0.6 * 0.9213, rel=0.02)  # E[s] of four normal draws
    assert units.kl is None
    assert "their error subtracted" in units.protocol["posterior_mean"]


def test_undecided_units_are_counted():
    known = KnownInformation()
    network = known.model.posterior.network
    network.weight.data[0] *= 0.1 / network.weight.data[0].norm()
    figures = evaluate_units(known.model, known.data(100)).figures()
    assert figures["active_units"]["undecided"] == 1


def test_units_have_the_shape_of_the_latent_and_do_not_depend_on_noise_elsewhere():
    full = LinearGaussian()
    units = evaluate_units(full.model, Points(full.data(50)))
    torch.testing.assert_close(units.scale, full.covariance.diagonal().sqrt())
    assert units.scale_per_image.shape == (50,)
    source = CoinFlips(torch.rand(300, 6))
    model = bernoulli_vae()
    torch.testing.assert_close(
        evaluate_units(model, source, num_images=20).scale_per_image,
        evaluate_units(model, source).scale_per_image[:20],
    )
    with pytest.raises(ConfigurationError, match="two images and two samples; got 1"):
        evaluate_units(model, source, num_images=1)
    with pytest.raises(ConfigurationError, match="`threshold` must be positive"):
        evaluate_units(model, source, threshold=0.0)
