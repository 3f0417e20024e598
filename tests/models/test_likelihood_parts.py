"""Every likelihood as the decoder of a VAE: it trains, evaluates and draws; the fitted variance survives a crash."""

import copy
import math

import pytest
import torch
from torch import nn

from latentflows.core import noise, running
from latentflows.core.errors import CombinationError
from latentflows.data import ArraySplit
from latentflows.distributions import AmortizedGaussian, StandardGaussian
from latentflows.evaluation import evaluate_bounds
from latentflows.models import VAE
from latentflows.models.flow_decoder import flow_likelihood
from latentflows.models.image_flows import real_nvp_image
from latentflows.objectives import ELBO, IWAE
from latentflows.training import Options, Stage, fit
from tests.distributions import cases
from tests.training.tiny import SHAPE, Images, state

EVENT, LATENT = (3, 2, 2), (2,)
LIKELIHOODS = {
    "bernoulli": lambda: cases.bernoulli(EVENT, LATENT),
    "continuous_bernoulli": lambda: cases.continuous_bernoulli(EVENT, LATENT),
    "optimal": lambda: cases.optimal(EVENT, LATENT),
    "laplace": lambda: cases.laplace(EVENT, LATENT, "amortized"),
    "student_t": lambda: cases.student_t(EVENT, LATENT),
    "categorical": lambda: cases.categorical(EVENT, LATENT, 5),
    "logistic": lambda: cases.logistic(EVENT, LATENT, 5, scale="shared"),
    "logistic_mixture": lambda: cases.logistic(EVENT, LATENT, 5, num_components=3),
    "logistic_coupled": lambda: cases.logistic(EVENT, LATENT, 5, num_components=3, coupled=True),
    "flow": lambda: flow_likelihood(EVENT, LATENT, cases.network(LATENT, (6, 2, 2)), flow=small_flow),
}
WITHOUT_MEAN = ("logistic_coupled", "flow")


def small_flow(context):
    return real_nvp_image(EVENT, num_levels=1, num_blocks=1, width=4, context=context)


def vae(likelihood) -> VAE:
    shape, latent = likelihood.event_shape, likelihood.context_shape
    encoder = cases.network(shape, 2 * latent[0])
    return VAE(AmortizedGaussian(latent, shape, encoder), StandardGaussian(latent), likelihood)


def data(values: str, count: int = 32) -> ArraySplit:
    """Images of two kinds, on five gray levels."""
    with noise.stream(3):
        kind = torch.rand(count, 1, 1, 1) < 0.5
        level = (kind * 3 + (torch.rand(count, *EVENT) < 0.3)).float()
        if values == "continuous":
            return ArraySplit(
                (level + torch.rand(level.shape)) / 5, values="continuous", bits_offset=math.log2(5)
            )
    return ArraySplit(level / 4 if values == "unit" else (level > 2).float(), values=values)


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(2)], ids=["elbo", "iwae"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_it_learns_evaluates_and_draws(name, objective):
    with noise.stream(1):
        model = vae(LIKELIHOODS[name]())
    values = sorted(model.likelihood.values)[0]
    source = data(values)
    before = model_bits(copy.deepcopy(model), source)
    stage = Stage("joint", objective, max_epochs=25, batch_size=16, learning_rate=1e-2)
    history = fit(model, [stage], source)
    assert (history.status, history.steps, history.skipped_steps) == ("finished", 50, 0)
    assert model_bits(model, source) < before - 0.05
    drawn = model.sample(5)
    assert drawn.shape == (5, *EVENT)
    model.check_data(drawn)
    if name in WITHOUT_MEAN:
        with pytest.raises(CombinationError, match="Draw samples and average them"):
            model.reconstruct(drawn)
    else:
        assert model.reconstruct(drawn).shape == (5, *EVENT)


def model_bits(model: VAE, source: ArraySplit) -> float:
    figures = evaluate_bounds(model, source, num_importance_samples=10).figures()
    assert figures["bits_per_dim"] is not None
    return figures["bits_per_dim"]["mean"]


# -- the fitted variance in training --------------------------------------------------------------------------------


def fitted() -> VAE:
    with noise.stream(2):
        return vae(cases.optimal(SHAPE, LATENT, momentum=0.3))


def train(model: VAE, source: Images, folder, **settings) -> VAE:
    stage = Stage("joint", ELBO(), max_epochs=4, batch_size=8, learning_rate=5e-3)
    fit(
        model,
        [stage],
        source,
        validation=Images(8, seed=1),
        out=folder,
        options=Options(checkpoint_every=1),
        **settings,
    )
    return model


class CrashError(Exception):
    pass


def crash(read: int) -> None:
    if read == 12:
        raise CrashError


def test_a_resumed_run_has_the_variance_of_an_uninterrupted_one(tmp_path):
    whole = train(fitted(), Images(), tmp_path / "whole")
    with pytest.raises(CrashError):
        train(fitted(), Images(on_read=crash), tmp_path / "cut")
    resumed = train(fitted(), Images(), tmp_path / "cut", resume=True)
    assert all(torch.equal(value, state(resumed)[name]) for name, value in state(whole).items())
    assert 0 < whole.likelihood.mean_square < 1


def test_a_frozen_likelihood_keeps_its_variance():
    model = fitted()
    fit(model, [Stage("first", ELBO(), max_epochs=2, batch_size=8)], Images())
    kept = model.likelihood.mean_square.clone()
    fit(model, [Stage("second", ELBO(), train=("posterior",), max_epochs=2, batch_size=8)], Images())
    assert torch.equal(model.likelihood.mean_square, kept)


class TwoProcesses:
    """`torch.distributed` as the first of two processes sees it, the other having this mean squared error."""

    def __init__(self, other: float) -> None:
        self.other, self.calls = other, 0

    def get_rank(self) -> int:
        return 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, value: torch.Tensor) -> None:
        self.calls += 1
        value[1] += self.other


def test_processes_fit_one_variance_to_all_their_data(monkeypatch):
    likelihood = cases.optimal((4,), LATENT).double()
    z, x = torch.randn(6, 2).double(), torch.randn(6, 4).double()
    parts = [(z[:3], x[:3]), (z[3:], x[3:])]
    whole = torch.autograd.grad(likelihood(z).log_prob(x).mean(), likelihood.network.last.linear.bias)[0]
    squares = [(part - likelihood(code).mean).square().mean().item() for code, part in parts]
    gradients = []
    for (code, part), other in zip(parts, reversed(squares), strict=True):
        group = TwoProcesses(other)
        monkeypatch.setattr(running, "dist", group)
        own = cases.optimal((4,), LATENT).double()
        own.load_state_dict(likelihood.state_dict() | {"num_steps": torch.zeros(())})
        loss = own(code).log_prob(part).mean()
        gradients.append(torch.autograd.grad(loss, own.network.last.linear.bias)[0])
        own.commit()
        assert group.calls == 1
        assert own.mean_square.item() == pytest.approx(sum(squares) / 2)
    torch.testing.assert_close(sum(gradients) / 2, whole)


def test_compiling_a_step_gives_the_same_gradient():
    likelihood = cases.optimal((4,), LATENT)
    z, x = torch.randn(6, 2), torch.randn(6, 4)

    def loss():
        return likelihood(z).log_prob(x).mean()

    likelihood.begin()
    compiled = torch.compile(loss, backend="eager")
    weights = [p for p in likelihood.parameters() if isinstance(p, nn.Parameter)]
    torch.testing.assert_close(torch.autograd.grad(compiled(), weights), torch.autograd.grad(loss(), weights))
    likelihood.commit()  # both belong to one step
    assert likelihood.num_steps == 1
