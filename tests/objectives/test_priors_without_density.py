"""Noise contrast, flow matching and the latent Wasserstein game: where they lead, who learns, and what is refused."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import distributions, nn

from latentflows import fit
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.distributions import (
    AdversarialPrior,
    AmortizedGaussian,
    Conditional,
    EnergyPrior,
    Flow,
    FlowMatchingPrior,
    LearnedGaussian,
    ResampledPrior,
    StandardGaussian,
)
from latentflows.models import VAE, presets, second_stage_vae
from latentflows.networks import MLP, ResidualMLP
from latentflows.objectives import ELBO, FlowMatching, LatentWasserstein, NoiseContrastive, PriorLikelihood
from latentflows.training import Stage
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli
from tests.training.tiny import Images, vae

SCALE, SHIFT = 0.6, torch.tensor([0.5, -0.4])


class Latents(nn.Module):
    """An encoder that ignores the data: q(z) is N(SHIFT, SCALE^2) for every x."""

    def forward(self, x):
        raw = math.log(SCALE) / (1 + math.log(SCALE) / 7)  # before the soft bound of log-scales
        return torch.cat([SHIFT, torch.full((2,), raw)]).to(x.dtype).expand(len(x), 4)


def known(prior: Conditional, context_shape=None) -> VAE:
    """A model whose aggregate posterior is a known Gaussian."""
    return VAE(AmortizedGaussian(2, 6, Latents()), prior, bernoulli((6,), (2,)), context_shape=context_shape)


def energy_prior(base=None, width=24) -> EnergyPrior:
    return EnergyPrior(
        base or StandardGaussian(2), MLP((2,), (1,), width=width, depth=1, activation_name="silu")
    )


def adversarial_prior() -> AdversarialPrior:
    flow = Flow(StandardGaussian(2), presets.real_nvp(2, num_layers=2, width=8, depth=1))
    return AdversarialPrior(flow, MLP((2,), (1,), width=16, depth=2, activation_name="elu"))


def residual(in_shape, out_shape, features):
    return ResidualMLP(in_shape, out_shape, width=32, num_blocks=1, activation_name="silu", context=features)


def minimize(model: VAE, objective, steps: int, rate=0.01, rows=512, betas=(0.8, 0.98)) -> None:
    """A bare loop, so that the test shows what the objective itself does."""
    objective.check(model)
    x = torch.zeros(rows, 6)
    parameters = list(model.prior.parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=betas)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        now = objective.at(step)
        now(now.trace(model, x)).loss.backward()
        optimizer.step()


TARGET = distributions.Independent(distributions.Normal(SHIFT, SCALE), 1)


def test_noise_contrast_finds_the_log_ratio_and_a_normalizer_of_one():
    prior = energy_prior()
    model = known(prior)
    minimize(model, NoiseContrastive(), 500)
    prior.eval()
    z = TARGET.sample((400,))
    with torch.no_grad():
        ratio = TARGET.log_prob(z) - prior.base().log_prob(z)
        learned = -prior.contrasted().energy(z)
    assert float((learned - ratio).abs().mean()) < 0.1
    assert prior().density == "unnormalized"
    found = prior.estimate_normalizer(1 << 15)
    assert abs(found.log_mean) < 0.06
    with torch.no_grad():
        gap = (TARGET.log_prob(z) - prior().log_prob(z)).mean()
    assert abs(float(gap)) < 0.03
    x = prior().sample((1000,))
    assert (x.mean(0) - SHIFT).abs().max() < 0.1
    assert (x.std(0) - SCALE).abs().max() < 0.08


def test_the_terms_of_noise_contrast():
    prior = energy_prior().double()
    randomize(prior, 0.5)
    model = known(prior).double()
    objective = NoiseContrastive(num_samples=3)
    seen: list[torch.Tensor] = []
    hook = prior.energy.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trace = objective.trace(model, torch.zeros(5, 6).double())
    hook.remove()
    z, drawn = seen
    torch.testing.assert_close(trace.z.flatten(0, 1), z)
    value = objective(trace)
    assert tuple(value.metrics) == objective.metrics
    of_z, of_drawn = (torch.sigmoid(-prior.energy(each)[:, 0]).view(3, 5) for each in (z, drawn))
    cross_entropy = -(of_z.log() + (1 - of_drawn).log()).mean(0)
    torch.testing.assert_close(value.metrics["classifier"], cross_entropy)
    torch.testing.assert_close(value.metrics["base_nll"], -prior.base().log_prob(trace.z).mean(0))
    torch.testing.assert_close(value.loss, (value.metrics["classifier"] + value.metrics["base_nll"]).mean())
    with torch.no_grad():
        for p in prior.energy.parameters():
            p.zero_()
    value = objective(objective.trace(model, torch.zeros(5, 6).double()))
    torch.testing.assert_close(value.metrics["classifier"], torch.full((5,), 2 * math.log(2)).double())


def test_noise_contrast_fits_a_base_by_likelihood_alone_and_makes_the_normalizer_stale():
    prior = energy_prior(LearnedGaussian(2))
    model = known(prior)
    randomize(prior, 0.3)
    prior.estimate_normalizer(100)
    assert prior.normalizer.known
    objective = NoiseContrastive()
    objective(objective.trace(model, torch.zeros(8, 6))).loss.backward()
    prior.normalizer.commit()
    assert not prior.normalizer.known
    assert all(p.grad.any() for p in prior.parameters())
    gradients = []
    for _ in range(2):
        prior.zero_grad()
        with noise.stream(4):
            objective(objective.trace(model, torch.zeros(8, 6))).loss.backward()
        gradients.append([p.grad.clone() for p in prior.base.parameters()])
        with torch.no_grad():
            for p in prior.energy.parameters():
                p.mul_(-2)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_flow_matching_approaches_the_density_of_the_latents():
    prior = FlowMatchingPrior(2, residual, num_frequencies=2, num_steps=16)
    model = known(prior)
    minimize(model, FlowMatching(), 500, rate=0.01)
    z = TARGET.sample((300,))
    with torch.no_grad():
        gap = (TARGET.log_prob(z) - prior().log_prob(z)).mean()
        x = prior().sample((1000,))
    assert abs(float(gap)) < 0.05
    assert (x.mean(0) - SHIFT).abs().max() < 0.12
    assert (x.std(0) - SCALE).abs().max() < 0.1


def test_the_loss_of_flow_matching_is_the_regression_of_the_stated_path():
    """With the velocity zero the loss is E|z - x_0|^2; with the exact one, E Var(z - x_0 given x_t)."""
    prior = FlowMatchingPrior(2, residual, num_frequencies=2).double()
    model = known(prior).double()
    objective = FlowMatching(num_samples=2)
    with torch.no_grad():
        prior.shift.copy_(SHIFT)
        prior.scale.fill_(2.0)
        for p in prior.parameters():
            p.zero_()
        value = objective(objective.trace(model, torch.zeros(4000, 6).double()))
    spread = (SCALE / 2) ** 2
    assert value.metrics["loss"].shape == (4000,)
    assert float(value.loss) == pytest.approx(2 * (1 + spread), rel=0.05)

    class Exact(nn.Module):
        def forward(self, x, features):
            t = features[:, :1]
            return x * (t * spread - (1 - t)) / ((1 - t) ** 2 + t**2 * spread)

    prior.velocity.network = Exact()
    with torch.no_grad():
        value = objective(objective.trace(model, torch.zeros(4000, 6).double()))
    t = (torch.arange(1000.0).double() + 0.5) / 1000
    least = 2 * (spread / ((1 - t) ** 2 + t**2 * spread)).mean()
    assert float(value.loss) == pytest.approx(float(least), rel=0.06)


def test_flow_matching_takes_the_context_of_each_row():
    prior = FlowMatchingPrior(2, residual, num_frequencies=2, context_shape=3)
    model = known(prior)
    seen = []
    prior.velocity.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2]))
    context = torch.randn(5, 3)
    objective = FlowMatching(num_samples=2)
    objective(objective.trace(model, torch.zeros(5, 6), context)).loss.backward()
    torch.testing.assert_close(seen[0], torch.cat([context, context]))


def test_the_game_moves_the_flow_to_the_latents():
    model = known(adversarial_prior())
    objective = LatentWasserstein(critic_steps=3, divergence_weight=0.1)
    with torch.no_grad():
        before = objective(objective.trace(model, torch.zeros(1000, 6))).metrics["energy_distance"].mean()
    minimize(model, objective, 600, rows=128, betas=(0.5, 0.9))
    with torch.no_grad():
        after = objective(objective.trace(model, torch.zeros(1000, 6))).metrics["energy_distance"].mean()
        x = model.prior().sample((2000,))
    assert float(after) < 0.25 * float(before)
    assert (x.mean(0) - SHIFT).abs().max() < 0.2


def test_each_turn_leaves_the_other_side_without_gradient_and_gives_the_same_metrics():
    prior = adversarial_prior()
    model = known(prior)
    randomize(prior, 0.4)
    objective = LatentWasserstein(critic_steps=2)
    assert objective.takes_turns
    turns = [objective.at(step).turn for step in range(7)]
    assert turns == ["critic", "critic", "sampler", "critic", "critic", "sampler", "critic"]
    for turn, learns, rests in (
        ("critic", prior.critic, prior.sampler),
        ("sampler", prior.sampler, prior.critic),
    ):
        prior.zero_grad()
        now = replace(objective, turn=turn)
        value = now(now.trace(model, torch.zeros(8, 6)))
        value.loss.backward()
        assert tuple(value.metrics) == objective.metrics
        assert all(m.shape == (8,) and not m.requires_grad for m in value.metrics.values())
        assert all(p.grad is None for p in rests.parameters())
        last_bias = prior.critic.last.linear.bias  # the critic's differences do not depend on it
        assert all(p.grad.any() for p in learns.parameters() if p is not last_bias)
    with torch.no_grad():
        both = objective(objective.trace(model, torch.zeros(8, 6)))
    assert tuple(both.metrics) == objective.metrics


def test_the_terms_of_the_game():
    """A linear critic has the gradient everywhere that its weights say."""

    class Linear(nn.Module):
        def forward(self, z):
            return z @ z.new_tensor([[3.0], [4.0]])

    prior = AdversarialPrior(adversarial_prior().sampler, Linear())
    model = known(prior)
    objective = LatentWasserstein(divergence_weight=0.5)
    values = {}
    for turn in ("critic", "sampler", "both"):
        now = replace(objective, turn=turn)
        values[turn] = now(now.trace(model, torch.zeros(4000, 6)))
    metrics = values["critic"].metrics
    torch.testing.assert_close(metrics["gradient_penalty"], torch.full((4000,), 16.0))
    assert float(metrics["wasserstein"].mean()) == pytest.approx(-(3 * 0.5 - 4 * 0.4), abs=0.5)
    assert float(values["critic"].loss) == pytest.approx(160 - float(metrics["wasserstein"].mean()), rel=1e-4)
    # The flow starts as a permutation of N(0, I).
    torch.testing.assert_close(metrics["sampler_kl"], torch.zeros(4000), atol=1e-4, rtol=0)
    expected = -distributions.Normal(0.0, 1.0).log_prob(TARGET.sample((20000,))).sum(-1).mean()
    assert float(metrics["prior_nll"].mean()) == pytest.approx(float(expected), abs=0.1)
    assert values["sampler"].loss.item() == pytest.approx(0, abs=0.4)
    truth = []
    for _ in range(2):
        z, y = TARGET.sample((2000,)), torch.randn(2000, 2)
        within = (z - z.flip(0)).norm(dim=1).mean() + (y - y.flip(0)).norm(dim=1).mean()
        truth.append(2 * (z - y).norm(dim=1).mean() - within)
    assert float(metrics["energy_distance"].mean()) == pytest.approx(float(sum(truth) / 2), abs=0.1)


def lars_prior() -> ResampledPrior:
    return ResampledPrior(StandardGaussian(2), MLP((2,), (1,), width=8, depth=1), num_normalizer_samples=64)


SECOND_STAGES = {
    "noise_contrast": (energy_prior, NoiseContrastive()),
    "game": (adversarial_prior, LatentWasserstein(critic_steps=2)),
    "flow_matching": (lambda: FlowMatchingPrior(2, residual, initialization_points=16), FlowMatching()),
    "flow_by_likelihood": (
        lambda: FlowMatchingPrior(2, residual, num_steps=2, initialization_points=16),
        PriorLikelihood(),
    ),
    "lars": (lars_prior, PriorLikelihood()),
    "energy_by_likelihood": (energy_prior, PriorLikelihood()),
    "second_stage_vae": (lambda: second_stage_vae(2, width=8, depth=1), PriorLikelihood()),
}


@pytest.mark.parametrize("name", SECOND_STAGES)
def test_second_stages_train_the_prior_alone_and_repeat_bit_by_bit(name):
    make, objective = SECOND_STAGES[name]
    ends = []
    for _ in range(2):
        base = vae()
        torch.manual_seed(3)
        model = VAE(base.posterior, make(), base.likelihood)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        stage = Stage("prior", objective, ("prior",), max_epochs=2, batch_size=8, learning_rate=0.01)
        history = fit(model, [stage], Images(), validation=Images(8, seed=1))
        assert history.skipped_steps == 0
        assert tuple(history.epochs[-1]["train"]) == objective.metrics
        assert all(math.isfinite(v) for v in history.epochs[-1]["validation"].values())
        state = model.state_dict()
        assert all(torch.equal(before[key], state[key]) for key in state if not key.startswith("prior"))
        assert any(
            p.requires_grad and not torch.equal(before[f"prior.{k}"], p)
            for k, p in model.prior.named_parameters()
        )
        ends.append(state)
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize(
    "name", ["lars", "energy_by_likelihood", "flow_by_likelihood", "second_stage_vae", "game"]
)
def test_the_elbo_trains_them_jointly_with_the_posterior(name):
    base = vae()
    model = VAE(base.posterior, SECOND_STAGES[name][0](), base.likelihood)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    history = fit(model, [Stage("joint", ELBO(), max_epochs=2, batch_size=8, learning_rate=0.01)], Images())
    assert history.skipped_steps == 0
    state = model.state_dict()
    for part in ("posterior", "prior"):
        assert any(not torch.equal(before[k], state[k]) for k in state if k.startswith(part))


@pytest.mark.parametrize(
    ("objective", "trains"),
    [
        (NoiseContrastive(), "EnergyPrior"),
        (FlowMatching(), "FlowMatchingPrior"),
        (LatentWasserstein(), "AdversarialPrior"),
    ],
)
def test_other_priors_are_refused(objective, trains):
    name = type(objective).__name__
    with pytest.raises(
        CombinationError, match=f"`{name}` trains the prior `{trains}`; the model's is `Standard"
    ):
        objective.check(known(StandardGaussian(2)))
    with pytest.raises(ConfigurationError, match="says nothing about the other parts"):
        Stage("joint", objective)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseContrastive(num_samples=0), "`num_samples` must be a positive integer; got 0"),
        (lambda: FlowMatching(num_samples=0), "`num_samples` must be a positive integer; got 0"),
        (lambda: LatentWasserstein(critic_steps=0), "`critic_steps` must be a positive integer; got 0"),
        (lambda: LatentWasserstein(gradient_penalty=-1.0), "must be at least 0; got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()
