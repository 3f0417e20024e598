"""The parts of the KL against mixtures written out, and a discriminator that gets its own gradient alone."""

import itertools
import math
import re

import pytest
import torch
from torch import distributions, nn

from latentflows.core.errors import CombinationError, ConfigurationError, DataError
from latentflows.distributions import AmortizedGaussian, StandardGaussian
from latentflows.models import VAE
from latentflows.objectives import BetaTC, FactorVAE
from latentflows.objectives.total_correlation import _permuted
from tests.models.parts import LATENT, vae
from tests.objectives.cases import model_and_data

PARTS = ("mutual_information", "total_correlation", "dimension_wise_kl")


def mixtures(model, x):
    """q(z) of these data points, and its marginals, as torch has them."""
    q = model.posterior(x)
    uniform = distributions.Categorical(logits=torch.zeros(len(x)).double())
    joint = distributions.Independent(distributions.Normal(q.mean, q.log_scale.exp()), 1)
    single = distributions.Normal(q.mean.T, q.log_scale.exp().T)
    expanded = distributions.Categorical(logits=torch.zeros(LATENT, len(x)).double())
    return (
        distributions.MixtureSameFamily(uniform, joint),
        distributions.MixtureSameFamily(expanded, single),
    )


def test_with_all_data_in_the_batch_the_parts_are_exact():
    model, x = model_and_data("gaussian", "diagonal")
    objective = BetaTC(len(x), 4)
    trace = objective.trace(model, x)
    metrics = objective(trace).metrics
    joint, marginals = mixtures(model, x)
    log_q, log_marginals = joint.log_prob(trace.z), marginals.log_prob(trace.z).sum(-1)
    expected = (trace.log_posterior - log_q, log_q - log_marginals, log_marginals - trace.log_prior)
    for name, values in zip(PARTS, expected, strict=True):
        torch.testing.assert_close(metrics[name], values.mean(0).detach())


@pytest.mark.parametrize("sampling", ["stratified", "weighted"])
@pytest.mark.parametrize("prior", ["standard", "diagonal", "maf"])
def test_the_parts_add_up_to_the_kl_for_every_prior(prior, sampling):
    model, x = model_and_data("gaussian", prior)
    objective = BetaTC(1000, 3, sampling=sampling)
    trace = objective.trace(model, x)
    metrics = objective(trace).metrics
    torch.testing.assert_close(sum(metrics[name] for name in PARTS), metrics["kl"])
    bound = BetaTC(1000, 3, beta=1.0, sampling=sampling)(trace)
    torch.testing.assert_close(bound.loss, -metrics["elbo"].mean())


def density_at_first(objective, model, x, z, rows):
    """The estimate of q(z) at a z of point rows[0], from the batch `rows`."""
    q = model.posterior(x[list(rows)])
    each = distributions.Normal(q.mean, q.log_scale.exp()).log_prob(z)
    weights = objective._log_weights(each[None].expand(1, len(rows), len(rows), LATENT))
    return (each.sum(-1) + weights[0]).logsumexp(0).exp()


def test_stratified_weights_give_the_aggregate_posterior_on_average_over_batches_and_others_less():
    model, x = model_and_data("gaussian", "standard")
    z = model.posterior(x[:1]).sample()[0]
    exact = mixtures(model, x)[0].log_prob(z).exp()
    batches = [(0, *others) for others in itertools.combinations(range(1, 5), 2)]
    means = {
        sampling: torch.stack(
            [density_at_first(BetaTC(5, sampling=sampling), model, x, z, rows) for rows in batches]
        ).mean()
        for sampling in ("stratified", "weighted")
    }
    torch.testing.assert_close(means["stratified"], exact)
    assert means["weighted"] < 0.9 * exact


def test_a_point_of_its_own_in_a_large_data_set_counts_as_one_of_many():
    objective = BetaTC(60_000)
    weights = objective._log_weights(torch.zeros(1, 10, 10, LATENT)).exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(10))
    torch.testing.assert_close(weights.diagonal(), torch.full((10,), 1 / 60_000))


def test_only_a_diagonal_posterior_has_the_densities_it_needs():
    for posterior in ("full", "iaf"):
        with pytest.raises(CombinationError, match="which a diagonal Gaussian posterior alone has; got"):
            BetaTC(100).check(vae(posterior, "standard"))
    BetaTC(100).check(vae("gaussian", "maf"))
    FactorVAE().check(vae("iaf", "maf"))


def test_one_point_has_no_others_to_stand_for_them():
    model, x = model_and_data("gaussian", "standard")
    trace = BetaTC(100).trace(model, x[:1])
    with pytest.raises(DataError, match="needs at least 2 data points in a batch; got 1"):
        BetaTC(100)(trace)
    assert BetaTC(100, sampling="weighted")(trace).loss.isfinite()


def factor(gamma=10.0):
    objective = FactorVAE(2, gamma=gamma, width=6, depth=2)
    model, x = model_and_data("gaussian", "diagonal", objective=objective)
    return objective, model, x


def gradients(loss, model):
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def test_the_discriminator_gets_its_own_gradient_alone_and_the_model_none_of_it():
    objective, model, x = factor()
    trace = objective.trace(model, x)
    everything = gradients(objective(trace).loss, model)
    its_own = gradients(trace.penalties["discriminator_loss"].mean(), model)
    of_model = gradients((10 * trace.penalties["total_correlation"] - trace.log_weight.mean(0)).mean(), model)
    assert all(name.startswith("auxiliary") for name in its_own)
    assert not any(name.startswith("auxiliary") for name in of_model)
    assert its_own.keys() | of_model.keys() == everything.keys()
    for name, gradient in everything.items():
        torch.testing.assert_close(gradient, {**its_own, **of_model}[name])
    correlation = gradients(trace.penalties["total_correlation"].mean(), model)
    assert any(g.abs().sum() > 0 for name, g in correlation.items() if name.startswith("posterior"))


def test_permuting_keeps_the_marginals_and_breaks_the_pairs():
    z = torch.randn(3, 500, 1).double().expand(3, 500, 2)
    permuted = _permuted(z)
    torch.testing.assert_close(permuted.sort(1).values, z.sort(1).values)
    assert abs(torch.corrcoef(permuted[0].T)[0, 1]) < 0.2


class Identity(nn.Module):
    def forward(self, x):
        return x


def test_a_trained_discriminator_estimates_the_total_correlation():
    """q(z) of two correlated normals; its total correlation is -log(1 - rho^2) / 2."""
    rho, scale = 0.8, 0.3
    posterior = AmortizedGaussian(2, 2, Identity(), scale=scale)
    model = VAE(posterior, StandardGaussian(2), AmortizedGaussian(2, 2, Identity(), scale=1.0))
    objective = FactorVAE(width=32, depth=2)
    model.auxiliary = objective.auxiliary(model)
    optimizer = torch.optim.Adam(model.auxiliary.parameters(), lr=5e-3)

    def data(count):
        first, second = torch.randn(2, count)
        return torch.stack([first, rho * first + math.sqrt(1 - rho**2) * second], 1)

    for _ in range(300):
        optimizer.zero_grad()
        objective(objective.trace(model, data(512))).loss.backward()
        optimizer.step()
    found = objective(objective.trace(model, data(20_000))).metrics["total_correlation"].mean()
    exact = -0.5 * math.log(1 - (rho / (1 + scale**2)) ** 2)
    assert found == pytest.approx(exact, abs=0.06)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaTC(1), "`num_points` must be the number of training data points, at least 2; got 1."),
        (lambda: BetaTC(10, sampling="none"), "`sampling` must be one of"),
        (lambda: BetaTC(10, beta=-1.0), "`beta` must be at least 0 and finite; got -1.0."),
        (lambda: FactorVAE(gamma=math.nan), "`gamma` must be at least 0 and finite; got nan."),
        (lambda: FactorVAE(width=0), "`width` must be at least 1 and finite; got 0."),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
