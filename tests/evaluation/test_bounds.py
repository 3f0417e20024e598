import math

import pytest
import torch
from torch import nn

from latentflows.bijections import Chain
from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError, ConfigurationError, DataError, NonFiniteError
from latentflows.data import ArraySplit
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Flow,
    LearnedGaussian,
    StandardGaussian,
)
from latentflows.evaluation import bounds as bounds_module
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE
from latentflows.models.presets import iaf, maf, planar, real_nvp
from latentflows.networks import MLP
from tests.distributions import cases
from tests.linear_gaussian import LinearGaussian


class Points:
    """Data points as they are, in any precision."""

    def __init__(self, x, bits_offset=None, values="continuous"):
        self.x, self.bits_offset, self.values = x, bits_offset, values
        self.event_shape = tuple(x.shape[1:])

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return Batch(self.x[indices])


class CoinFlips(Points):
    """Images drawn anew for every batch, as in dynamic binarization."""

    def __init__(self, x):
        super().__init__(x, values="binary")

    def batch(self, indices):
        probability = self.x[indices]
        return Batch((noise.uniform(tuple(probability.shape), like=probability) < probability).float())


def binary(count, dim=6):
    return ArraySplit((torch.rand(count, dim) < 0.4).float(), values="binary")


def network(in_size, out_size):
    return MLP(in_size, out_size, width=8, depth=1)


def bernoulli_vae(dim=6, latent=2):
    posterior = AmortizedGaussian(latent, dim, network(dim, 2 * latent))
    return VAE(posterior, StandardGaussian(latent), AmortizedBernoulli(dim, latent, network(latent, dim)))


def counted(module):
    """Rows that a module has seen, filled while it runs."""
    rows = []
    module.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("num_samples", [1, 2, 7, 1500])
def test_exact_posterior_gives_the_evidence_to_rounding_error(num_samples):
    example = LinearGaussian()
    x = example.data(9)
    result = evaluate_bounds(example.model, Points(x), num_importance_samples=num_samples)
    torch.testing.assert_close(-result.nll, example.log_evidence(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(result.elbo, example.log_evidence(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(result.reconstruction - result.kl, result.elbo, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        result.effective_sample_size, torch.full_like(result.nll, num_samples), rtol=0, atol=1e-8
    )


def test_wrong_posterior_approaches_the_evidence_within_its_errors():
    example = LinearGaussian(exact=False)
    x = example.data(200)
    result = evaluate_bounds(example.model, Points(x), num_importance_samples=3000)
    truth = example.log_evidence(x)
    assert (result.elbo.mean() + 0.1) < truth.mean()
    error = result.figures()["nll"]["monte_carlo_error"]
    assert error < 0.01
    assert abs(float(-result.nll.mean() - truth.mean())) < 4 * error
    standardized = (-result.nll - truth) / result.monte_carlo_variance.sqrt()
    # The median of |N(0, 1)| is 0.674. Some images have few effective samples, so that the tails are heavier.
    assert 0.5 < standardized.abs().median() < 0.9


def test_monte_carlo_error_is_the_spread_over_seeds():
    example = LinearGaussian(exact=False)
    source = Points(example.data(10))
    runs = [evaluate_bounds(example.model, source, num_importance_samples=400, seed=s) for s in range(30)]
    stated = sum(run.figures()["nll"]["monte_carlo_error"] for run in runs) / len(runs)
    spread = float(torch.stack([run.nll.mean() for run in runs]).std())
    assert 0.6 < stated / spread < 1.6


def test_figures_are_hand_made_means_and_errors():
    example = LinearGaussian(exact=False)
    x = example.data(50)
    result = evaluate_bounds(example.model, Points(x, bits_offset=3.0), num_importance_samples=5)
    figures = result.figures()
    assert set(figures) == {
        "elbo",
        "reconstruction",
        "kl",
        "nll",
        "bits_per_dim",
        "effective_sample_size",
    }
    for name in ("elbo", "reconstruction", "kl", "nll"):
        values = getattr(result, name)
        assert figures[name]["mean"] == pytest.approx(sum(values.tolist()) / 50)
        variance = sum((v - values.mean()) ** 2 for v in values) / 49
        assert figures[name]["standard_error"] == pytest.approx(math.sqrt(variance / 50))
        assert figures[name]["unit"] == "nats"
    scale = 5 * math.log(2)
    assert figures["bits_per_dim"]["mean"] == pytest.approx(figures["nll"]["mean"] / scale + 3)
    for error in ("standard_error", "monte_carlo_error"):
        assert figures["bits_per_dim"][error] == pytest.approx(figures["nll"][error] / scale)
    expected = math.sqrt(sum(result.monte_carlo_variance.tolist())) / 50
    assert figures["nll"]["monte_carlo_error"] == pytest.approx(expected)


def test_weights_of_a_closed_case():
    log_weight = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log().double()
    summary = bounds_module._summary(log_weight, torch.zeros(2, 2).double())
    assert summary["nll"].tolist() == pytest.approx([-math.log(2), 0])
    assert summary["effective_sample_size"].tolist() == pytest.approx([16 / 10, 2])
    # The sample variance of {3, 1} is 2; of their mean 1; over the squared mean 1 / 4.
    assert summary["monte_carlo_variance"].tolist() == pytest.approx([1 / 4, 0])


def test_uniform_pixels_cost_one_bit_each():
    model = bernoulli_vae(dim=6)
    for parameter in model.likelihood.parameters():
        nn.init.zeros_(parameter)
    figures = evaluate_bounds(model, binary(8), num_importance_samples=200).figures()
    assert figures["reconstruction"]["mean"] == pytest.approx(-6 * math.log(2), abs=1e-5)
    bits = figures["bits_per_dim"]
    assert abs(bits["mean"] - 1) < 4 * bits["monte_carlo_error"] + 1e-6


def test_no_bits_where_they_are_undefined():
    example = LinearGaussian()
    assert evaluate_bounds(example.model, Points(example.data(3))).figures()["bits_per_dim"] is None


@pytest.mark.parametrize("num_samples", [1, 7, 1000, 2500])
@pytest.mark.parametrize("memory_mib", [1, 256])
def test_every_image_is_encoded_once_and_decoded_exactly_k_times(num_samples, memory_mib):
    model = bernoulli_vae(dim=400)
    encoded, decoded = counted(model.posterior.network), counted(model.likelihood.network)
    source = binary(5, dim=400)
    evaluate_bounds(model, source, num_importance_samples=num_samples, memory_mib=memory_mib)
    assert sum(encoded) == 5
    measured, *pieces = decoded
    assert measured == 1  # the latent on which the memory is measured
    assert sum(pieces) == 5 * num_samples
    assert max(pieces) <= (2**20 // (4 * 4 * 400) if memory_mib == 1 else 1024)


def test_memory_changes_rounding_only(monkeypatch):
    example = LinearGaussian(exact=False)
    source = Points(example.data(70))
    whole = evaluate_bounds(example.model, source, num_importance_samples=40)
    monkeypatch.setattr(bounds_module, "_rows_in_memory", lambda *_: 3)
    decoded = counted(example.model.likelihood.network)
    pieces = evaluate_bounds(example.model, source, num_importance_samples=40)
    assert max(decoded) == 3
    torch.testing.assert_close(pieces.nll, whole.nll, rtol=0, atol=1e-10)
    torch.testing.assert_close(pieces.kl, whole.kl, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_samples", [1, 30, 1500])
def test_first_images_do_not_depend_on_how_many_follow(num_samples):
    model, source = bernoulli_vae(), CoinFlips(torch.rand(40, 6))
    every = evaluate_bounds(model, source, num_importance_samples=num_samples)
    some = evaluate_bounds(model, source, num_importance_samples=num_samples, num_images=7)
    assert len(some.nll) == 7
    torch.testing.assert_close(some.nll, every.nll[:7])
    assert every.nll.std() > 0


def test_nll_is_a_mean_over_images_not_of_batch_means():
    """Log-sum-exp per image, then the mean: computed by hand from the same noise for one block (peers.md D10)."""
    example = LinearGaussian(exact=False)
    x = example.data(6)
    result = evaluate_bounds(example.model, Points(x), num_importance_samples=4, seed=3)
    with noise.stream(3, noise.Purpose.EVALUATION, 0, 1), torch.no_grad():
        log_weight = example.model.trace(x, 4).log_weight
    for i in range(6):
        weights = [math.exp(value) for value in log_weight[:, i].tolist()]
        assert float(result.nll[i]) == pytest.approx(-math.log(sum(weights) / 4))
        assert float(result.elbo[i]) == pytest.approx(sum(math.log(w) for w in weights) / 4)


def test_seed_decides_the_noise_and_the_generator_is_left_alone():
    example = LinearGaussian(exact=False)
    source = Points(example.data(5))
    before = torch.get_rng_state()
    first = evaluate_bounds(example.model, source, num_importance_samples=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(
        evaluate_bounds(example.model, source, num_importance_samples=3, seed=1).nll, first.nll
    )
    other = evaluate_bounds(example.model, source, num_importance_samples=3, seed=2)
    assert not torch.isclose(first.nll, other.nll).any()


def test_samples_of_one_image_are_all_different():
    """With 2,500 samples in three draws none of them is used twice."""
    seen = []
    model = bernoulli_vae()
    model.likelihood.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    evaluate_bounds(model, binary(2), num_importance_samples=2500)
    assert len(torch.cat(seen[1:]).unique(dim=0)) == 5000


def test_modes_come_back_and_dropout_is_off():
    model = bernoulli_vae()
    model.likelihood.network.hidden.append(nn.Dropout(0.5))
    model.train()
    model.prior.eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model.likelihood.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    evaluate_bounds(model, binary(3), num_importance_samples=2)
    assert [module.training for module in model.modules()] == modes
    assert not any(seen)


def test_modes_come_back_after_an_error():
    model = bernoulli_vae().train()
    with pytest.raises(DataError, match="binary"):
        evaluate_bounds(model, Points(torch.rand(3, 6), values="binary"), num_importance_samples=2)
    assert model.training


def test_gray_values_anywhere_in_the_data_are_refused():
    x = torch.zeros(300, 6)
    x[-1, -1] = 0.5
    with pytest.raises(DataError, match="binary"):
        evaluate_bounds(bernoulli_vae(), Points(x, values="binary"), num_importance_samples=10)


def test_a_density_on_binary_data_and_probabilities_of_others_are_refused():
    density = LinearGaussian()
    x = (density.data(4) > 0).float()
    with pytest.raises(CombinationError, match=r"a density, but the data have binary values.*Bernoulli"):
        evaluate_bounds(density.model, Points(x, bits_offset=0.0, values="binary"))
    for values in ("unit", "continuous"):
        with pytest.raises(CombinationError, match=f"discrete, but the data have {values} values.*Binarize"):
            evaluate_bounds(bernoulli_vae(), Points(binary(3).x, values=values))


LEARNED_SCALES = ["laplace", "student_t", "optimal_shared", "amortized", "amortized_shared"]


@pytest.mark.parametrize("name", LEARNED_SCALES)
def test_a_learned_scale_on_gray_levels_is_refused(name):
    model = vae_of(cases.build(name, dtype=torch.float32))
    source = ArraySplit(torch.ones(3, *model.event_shape), values="unit")
    with pytest.raises(
        CombinationError, match=r"grow without bound on gray levels, but the data have unit values"
    ):
        evaluate_bounds(model, source, num_importance_samples=2)


def vae_of(likelihood):
    latent = likelihood.context_shape[0]
    encoder = network(likelihood.event_shape, 2 * latent)
    return VAE(
        AmortizedGaussian(latent, likelihood.event_shape, encoder), StandardGaussian(latent), likelihood
    )


@pytest.mark.parametrize("name", ["categorical", "logistic_mixture", "logistic_coupled"])
def test_bits_of_gray_levels_are_those_of_their_mass(name):
    model = vae_of(cases.build(name, dtype=torch.float32))
    with noise.stream(1):
        x = torch.randint(4, (5, *model.event_shape)) / 3
    source = ArraySplit(x, values="unit")
    assert source.bits_offset is None
    figures = evaluate_bounds(model, source, num_importance_samples=6).figures()
    bits = figures["nll"]["mean"] / (x[0].numel() * math.log(2))
    assert figures["bits_per_dim"]["mean"] == pytest.approx(bits)
    for values in ("continuous", "binary"):
        with pytest.raises(CombinationError, match=f"discrete, but the data have {values} values.*as unit"):
            evaluate_bounds(model, Points(x.round(), values=values), num_importance_samples=2)


def test_a_density_gives_no_bits_of_gray_levels():
    fixed = vae_of(cases.gaussian((4,), (2,), scale=0.3))
    source = ArraySplit(torch.rand(5, 4).mul(255).round() / 255, values="unit")
    assert evaluate_bounds(fixed, source, num_importance_samples=2).figures()["bits_per_dim"] is None


def test_a_likelihood_that_is_none_has_no_figures():
    with pytest.warns(UserWarning, match="no likelihood"):
        likelihood = AmortizedBernoulli(6, 2, network(2, 6), gray=True)
    source = ArraySplit(torch.rand(5, 6), values="unit")
    with pytest.raises(CombinationError, match="`GrayBernoulliValues` is no likelihood: no NLL"):
        evaluate_bounds(vae_of(likelihood), source, num_importance_samples=2)


POSTERIORS = {
    "gaussian": lambda: AmortizedGaussian(3, 6, network(6, 6)),
    "iaf": lambda: _flow_posterior(iaf(3, num_layers=2, width=8, context=4)),
    "planar": lambda: _flow_posterior(planar(3, num_layers=2, context=4)),
    "global": lambda: _flow_posterior(real_nvp(3, num_layers=2, width=8)),
}
PRIORS = {
    "standard": lambda: StandardGaussian(3),
    "learned": lambda: LearnedGaussian(3, covariance="full"),
    "real_nvp": lambda: Flow(StandardGaussian(3), real_nvp(3, num_layers=2, width=8)),
    "maf": lambda: Flow(StandardGaussian(3), maf(3, num_layers=2, width=8)),
}


def _flow_posterior(bijection: Chain) -> Flow:
    base = AmortizedGaussian(3, 4, nn.Linear(4, 6))
    return Flow(base, bijection, embed=MLP(6, 4, width=8, depth=1), context_shape=6)


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_combination_agrees_with_its_trace(posterior, prior):
    model = VAE(POSTERIORS[posterior](), PRIORS[prior](), AmortizedBernoulli(6, 3, network(3, 6)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    source = binary(5)
    result = evaluate_bounds(model, source, num_importance_samples=11)
    with noise.stream(0, noise.Purpose.EVALUATION, 0, 1), torch.no_grad():
        trace = model.trace(source.x, 11)
    expected = math.log(11) - trace.log_weight.logsumexp(0)
    torch.testing.assert_close(result.nll.float(), expected, rtol=1e-4, atol=1e-4)
    assert (result.elbo <= -result.nll).all()


def test_conditional_prior_gets_its_context():
    base = AmortizedGaussian(2, 3, nn.Linear(3, 4))
    model = VAE(bernoulli_vae().posterior, base, bernoulli_vae().likelihood)
    x, context = binary(5).x, torch.randn(5, 3)

    class Conditioned(Points):
        def batch(self, indices):
            return Batch(self.x[indices], context[indices])

    result = evaluate_bounds(model, Conditioned(x, values="binary"), num_importance_samples=3)
    with noise.stream(0, noise.Purpose.EVALUATION, 0, 1), torch.no_grad():
        trace = model.trace(x, 3, context=context)
    torch.testing.assert_close(result.elbo.float(), trace.log_weight.mean(0))


class Broken(nn.Module):
    """A decoder that gives `value` for chosen signs of the first latent."""

    def __init__(self, value, always=True):
        super().__init__()
        self.value, self.always = value, always

    def forward(self, z):
        out = torch.zeros(len(z), 6)
        out[(z[:, 0] > 0) | self.always] = self.value
        return out


def broken_vae(value, always=True):
    model = bernoulli_vae()
    return VAE(model.posterior, model.prior, AmortizedBernoulli(6, 2, Broken(value, always)))


@pytest.mark.parametrize("always", [True, False])
def test_nan_is_an_error_that_counts_the_images(always):
    with pytest.raises(NonFiniteError, match="for 4 of the first 4 images"):
        evaluate_bounds(broken_vae(torch.nan, always), binary(4), num_importance_samples=60)


def test_nan_of_one_image_is_found():
    example = LinearGaussian()
    x = example.data(30)
    x[17, 0] = 1e3
    example.model.posterior.network.register_forward_hook(
        lambda module, inputs, output: output.masked_fill(inputs[0][:, :1] == 1e3, torch.nan)
    )
    with pytest.raises(NonFiniteError, match=r"for 1 of the first 30 images \(the first is image 17\)"):
        evaluate_bounds(example.model, Points(x), num_importance_samples=3)


def test_data_so_far_out_that_their_density_underflows_are_impossible():
    example = LinearGaussian()
    x = example.data(3)
    x[1] = 1e200
    result = evaluate_bounds(example.model, Points(x), num_importance_samples=3)
    assert torch.isinf(result.nll).tolist() == [False, True, False]


def test_zero_weights_count_as_zero():
    model, x = broken_vae(-1e38, always=False), torch.ones(4, 6)
    result = evaluate_bounds(model, ArraySplit(x, values="binary"), num_importance_samples=500)
    assert (result.elbo == -torch.inf).all()
    assert torch.isfinite(result.nll).all()
    assert (result.effective_sample_size < 400).all()
    figures = result.figures()
    assert figures["elbo"]["mean"] is None
    assert figures["nll"]["mean"] > 6 * math.log(2)  # about half of the samples give 2^-6, the others nothing


def test_an_impossible_image_has_infinite_nll_and_no_figures():
    x = torch.zeros(4, 6)
    x[2] = 1
    result = evaluate_bounds(broken_vae(-1e38), ArraySplit(x, values="binary"), num_importance_samples=5)
    assert torch.isinf(result.nll).tolist() == [False, False, True, False]
    assert float(result.effective_sample_size[2]) == 0
    with pytest.raises(NonFiniteError, match=r"1 of 4 images .* image 2"):
        result.figures()


def test_errors_that_cannot_be_known_are_none():
    example = LinearGaussian(exact=False)
    figures = evaluate_bounds(example.model, Points(example.data(1)), num_importance_samples=1).figures()
    assert figures["nll"]["standard_error"] is None
    assert figures["nll"]["monte_carlo_error"] is None
    assert figures["effective_sample_size"] == {"mean": 1.0, "minimum": 1.0, "unit": "samples"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_importance_samples": 0}, "`num_importance_samples` must be a positive integer; got 0"),
        ({"num_importance_samples": 2.5}, "got 2.5"),
        ({"num_images": 0}, "from 1 to the 5 data points; got 0"),
        ({"num_images": 6}, "from 1 to the 5 data points; got 6"),
        ({"memory_mib": 0}, "`memory_mib` must be a positive integer"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate_bounds(bernoulli_vae(), binary(5), **settings)


def test_image_events_and_k_larger_than_one_draw():
    example = LinearGaussian((1, 2, 3))
    x = example.data(4)
    result = evaluate_bounds(example.model, Points(x), num_importance_samples=1025)
    torch.testing.assert_close(-result.nll, example.log_evidence(x), rtol=0, atol=1e-11)
