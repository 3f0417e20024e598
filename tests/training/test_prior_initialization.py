"""Priors that start from data get it once, from the frozen encoder, wherever in the prior they stand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentflows.bijections import ActNorm, Chain
from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.errors import CombinationError, DataError
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    Conditional,
    Distribution,
    ExemplarPrior,
    Flow,
    GaussianMixture,
    Hierarchical,
    StandardGaussian,
    VampPrior,
)
from latentflows.models import VAE
from latentflows.models.presets import real_nvp
from latentflows.networks import MLP
from latentflows.objectives import PriorLikelihood
from latentflows.training import Stage, fit
from latentflows.training.initialization import start_prior
from tests.training.tiny import (
    POINTS,
    SHAPE,
    Crash,
    Images,
    assert_same_run,
    crash_at,
    one_stage,
    state,
    two_stages,
)
from tests.training.tiny import vae as tiny_vae

CPU, KEY = torch.device("cpu"), (1, 2)


def with_prior(make) -> VAE:
    with noise.stream(7):
        model = tiny_vae()
        prior = make(model.posterior)
        return VAE(model.posterior, prior, model.likelihood)


def mixture(points: int = 200, **settings) -> GaussianMixture:
    return GaussianMixture(2, 3, start="em", initialization_points=points, **settings)


def flow_over_mixture(embedded: bool = False) -> Flow:
    return Flow(mixture(), Chain([real_nvp(2, num_layers=2, width=4), ActNorm(2)]))


def started(model: VAE, source: Images | None = None) -> VAE:
    start_prior(model, set(model.parameters()), source or Images(), CPU, KEY)
    return model


def latents(model: VAE, count: int) -> Tensor:
    """What `start_prior` draws: the same numbers, drawn here by hand."""
    with noise.stream(0):
        noise.reseed(*KEY, 1)
        rounds = -(-count // POINTS)
        order = torch.cat([noise.permutation(POINTS) for _ in range(rounds)])[:count]
        with torch.no_grad():
            return model.encode(*Images().batch(order)).sample()


def test_em_sees_fresh_latents_of_every_point():
    model = with_prior(lambda _: mixture(POINTS * 3 + 5))
    seen: list[Tensor] = []
    assert isinstance(model.prior, GaussianMixture)
    model.prior._initialize = lambda values, context: seen.append(values)
    started(model)
    (z,) = seen
    torch.testing.assert_close(z, latents(model, POINTS * 3 + 5))
    assert len(z.unique(dim=0)) == len(z)  # noise is drawn anew in every round
    assert not model.prior.waits_for_data


def test_a_flow_passes_latents_on_to_its_base():
    model = with_prior(lambda _: flow_over_mixture())
    assert isinstance(model.prior, Flow)
    base = model.prior.base
    assert isinstance(base, GaussianMixture)
    with torch.no_grad():
        model.prior.bijection.members[1].shift.fill_(5.0)
        model.prior.bijection.members[1].initialized.fill_(True)
    started(model)
    u, _ = model.prior.bijection.inverse(latents(model, 200))
    torch.testing.assert_close(base().mean, u.mean(0), atol=1e-2, rtol=1e-2)
    assert u.mean(0).abs().max() > 1  # it is not z that the base was given


def test_levels_get_their_parts_and_labels_their_classes():
    low = Flow(GaussianMixture(1, 2, start="em"), ActNorm(1))
    low.bijection.initialized.fill_(True)
    model = with_prior(lambda _: Hierarchical([GaussianMixture(1, 2, start="em"), low]))
    started(model)
    z = latents(model, 20_000)
    assert isinstance(model.prior, Hierarchical)
    top, _ = model.prior.members
    assert isinstance(low.base, GaussianMixture)
    torch.testing.assert_close(top().mean, z[:, :1].mean(0), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(low().base.mean, z[:, 1:].mean(0), atol=1e-2, rtol=1e-2)


class Labeled(Images):
    """Images of two classes that alternate."""

    def batch(self, indices: Tensor) -> Batch:
        return Batch(super().batch(indices).x, torch.eye(2)[indices % 2])


@pytest.mark.parametrize("embedded", [False, True])
def test_labels_reach_the_mixture(embedded):
    classes = GaussianMixture(2, 1, num_classes=2, start="em", initialization_points=POINTS)
    embed = nn.Softmax(-1)
    embed.forward = lambda x: x.flip(-1)  # features may be anything but the label itself
    flow = Flow(classes, real_nvp(2, num_layers=1, width=4), embed=embed, context_shape=2)
    model = with_prior(lambda _: flow if embedded else classes)
    started(model, Labeled())
    with noise.stream(0):
        noise.reseed(*KEY, 1)
        order = noise.permutation(POINTS)
        with torch.no_grad():
            z = model.posterior(Images().batch(order).x).sample()
    if embedded:
        z, _ = flow.bijection.inverse(z)
    for label in (0, 1):
        own = z[order % 2 == (1 - label if embedded else label)]
        torch.testing.assert_close(classes(torch.eye(2)[label]).mean, own.mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda q: VampPrior(q, 6, start="data"), lambda q: ExemplarPrior(q, 6)])
def test_pseudo_inputs_and_exemplars_are_points_of_the_data(make):
    model = started(with_prior(make))
    with noise.stream(0):
        noise.reseed(*KEY, 1)
        x = Images().batch(noise.permutation(POINTS)[:6]).x
    held = model.prior.pseudo_inputs() if isinstance(model.prior, VampPrior) else model.prior.exemplars
    torch.testing.assert_close(held, x.clamp(0.01, 0.99) if isinstance(model.prior, VampPrior) else x)


def test_it_happens_before_the_stage_that_trains_the_prior_and_never_again():
    model = with_prior(lambda _: mixture())
    fit(model, two_stages(max_epochs=1)[:1], Images())
    assert model.prior.waits_for_data
    still = Stage("prior", PriorLikelihood(), ("prior",), max_epochs=1, batch_size=8, learning_rate=1e-12)
    fit(model, [still], Images())
    assert not model.prior.waits_for_data
    before = state(model)
    loaded = with_prior(lambda _: mixture())
    loaded.load_state_dict(before)
    fit(loaded, [still], Images(), seed=9)
    for name, value in state(loaded).items():
        torch.testing.assert_close(value, before[name])


def test_em_is_better_than_the_prior_it_started_from():
    """In the second stage, before the first gradient step, against N(0, I) on fresh latents."""
    model = with_prior(lambda _: mixture(2000))
    fit(model, two_stages()[:1], Images())
    started(model)
    with noise.stream(4), torch.no_grad():
        z = model.posterior(Images().batch(torch.arange(POINTS)).x).sample((50,))
        assert model.prior().log_prob(z).mean() > StandardGaussian(2)().log_prob(z).mean()


def test_parameters_that_are_frozen_stay():
    model = with_prior(lambda _: mixture())
    before = state(model)
    start_prior(model, set(), Images(), CPU, KEY)
    for name, value in state(model).items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("read", [6, 14, 20])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, read: int):
    def make() -> VAE:
        return with_prior(lambda q: VampPrior(q, 4, start="data") if read == 14 else flow_over_mixture())

    stages = one_stage() if read == 14 else two_stages()
    fit(make(), stages, Images(), out=tmp_path / "whole", seed=5)
    with pytest.raises(Crash):
        fit(make(), stages, Images(on_read=crash_at(read)), out=tmp_path / "killed", seed=5)
    fit(make(), stages, Images(), out=tmp_path / "killed", seed=5, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


class Hidden(Conditional):
    """A mixture that does not show itself as one."""

    def __init__(self) -> None:
        super().__init__(2)
        self.inner, self.distribution_type = mixture(), GaussianMixture.distribution_type

    def _condition(self, context: Tensor | None) -> Distribution:
        return self.inner()


def test_a_prior_that_no_latents_reach_and_data_that_are_too_few_are_refused():
    with pytest.raises(
        CombinationError, match=r"`GaussianMixture` that starts from latents, but none reach it"
    ):
        started(with_prior(lambda _: Hidden()))
    with pytest.raises(DataError, match=f"needs 99 data points to start from; got {POINTS}"):
        started(with_prior(lambda q: ExemplarPrior(q, 99)))


def test_exemplar_and_vamp_priors_train_in_one_stage_and_in_two():
    for make in (lambda q: VampPrior(q, 4), lambda q: ExemplarPrior(q, 20, num_components=8)):
        for stages in (one_stage(), two_stages()):
            model = with_prior(make)
            history = fit(model, stages, Images(), validation=Images(8, seed=1))
            assert history.status == "finished"
            assert history.skipped_steps == 0


def test_a_wide_encoder_is_shared_by_the_prior_also_after_the_learner_has_flattened_it():
    encoder = AmortizedGaussian(2, SHAPE, MLP(SHAPE, (4,), width=8, depth=1))
    model = VAE(
        encoder, VampPrior(encoder, 4), AmortizedBernoulli(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1))
    )
    fit(model, one_stage(), Images(), validation=Images(8, seed=1))
    prior = model.prior.eval()
    assert isinstance(prior, VampPrior)
    with torch.no_grad():
        z = torch.randn(5, 2)
        expected = model.posterior(prior.pseudo_inputs()).log_prob(z.unsqueeze(1)).logsumexp(1)
        torch.testing.assert_close(prior().log_prob(z), expected - torch.tensor(4.0).log())


class Numbered(Images):
    """Images with a number each as context."""

    labels = torch.arange(POINTS)[:, None] / POINTS

    def batch(self, indices: Tensor) -> Batch:
        return Batch(super().batch(indices).x, self.labels[indices])


@pytest.mark.parametrize("kind", ["vamp", "exemplar"])
def test_a_prior_of_data_starts_from_all_that_a_conditional_posterior_reads(kind):
    """Images with the context as a constant channel, each with its own."""
    posterior = AmortizedGaussian(2, (2, 8, 8), MLP((2, 8, 8), (4,), width=8, depth=1))
    prior = VampPrior(posterior, 5, start="data") if kind == "vamp" else ExemplarPrior(posterior, 5)
    likelihood = AmortizedBernoulli(SHAPE, 3, MLP((3,), SHAPE, width=8, depth=1))
    model = started(VAE(posterior, prior, likelihood, context_shape=1), Numbered())
    inputs = prior.pseudo_inputs() if isinstance(prior, VampPrior) else prior.exemplars
    with noise.stream(0):
        noise.reseed(*KEY, 1)
        batch = Numbered().batch(noise.permutation(POINTS)[:5])
    margin = 0.01 if kind == "vamp" else 0.0
    torch.testing.assert_close(inputs[:, :1], batch.x.clamp(margin, 1 - margin))
    assert batch.context is not None
    channel = batch.context.clamp(margin, 1 - margin)[:, :, None, None].expand(5, 1, 8, 8)
    torch.testing.assert_close(inputs[:, 1:], channel)
    history = fit(model, one_stage(max_epochs=1), Numbered(), seed=1)
    assert history.skipped_steps == 0


def test_a_prior_that_starts_from_data_of_a_level_that_reads_features_is_refused():
    level = AmortizedGaussian(1, 5, MLP((5,), (2,), width=8, depth=1))
    top = AmortizedGaussian(1, SHAPE, MLP(SHAPE, (2,), width=8, depth=1))
    posterior = Hierarchical([top, level], embed=MLP(SHAPE, (4,), width=8, depth=1), context_shape=SHAPE)
    likelihood = AmortizedBernoulli(SHAPE, 2, MLP((2,), SHAPE, width=8, depth=1))
    message = r"starts from data, of shape \(1, 8, 8\) as the posterior reads them, .* reads \(5,\)"
    prior = Hierarchical([StandardGaussian(1), VampPrior(level, 5, start="data")])
    with pytest.raises(CombinationError, match=message):
        VAE(posterior, prior, likelihood)
    VAE(posterior, Hierarchical([StandardGaussian(1), VampPrior(level, 5)]), likelihood)
