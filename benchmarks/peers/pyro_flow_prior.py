"""Pyro: the VAE with a flow prior of its tutorial (zuko's MAF), trained by `SVI` with `Trace_ELBO`."""

import math

import pyro
import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import Bernoulli, Normal
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.problem import Outcome, Problem, decoder, encoder, timed


class FlowPriorVAE(nn.Module):
    """Gaussian encoder, Bernoulli decoder, masked autoregressive prior.

    Args:
        problem: Sizes.
        logits: Give the Bernoulli logits; the tutorial gives it probabilities, which is slower.
    """

    def __init__(self, problem: Problem, *, logits: bool) -> None:
        super().__init__()
        self.encoder = encoder(problem)
        self.decoder = decoder(problem)
        self.prior = zuko.flows.MAF(
            features=problem.latent, transforms=problem.maf.num, hidden_features=problem.maf.widths
        )
        self.logits = logits

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", ZukoToPyro(self.prior()))
            logits = self.decoder(z)
            likelihood = Bernoulli(logits=logits) if self.logits else Bernoulli(torch.sigmoid(logits))
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("batch", len(x)):
            mean, log_variance = self.encoder(x).chunk(2, -1)
            pyro.sample("z", Normal(mean, torch.exp(0.5 * log_variance)).to_event(1))


def train_maf(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """As the tutorial has it: probabilities, argument checks on (Pyro's default), a `DataLoader`."""
    return _train(problem, data, epochs, seed, tuned=False)


def train_maf_tuned(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """The same model by a user who knows Pyro: logits, argument checks off."""
    return _train(problem, data, epochs, seed, tuned=True)


def _train(problem: Problem, data: Tensor, epochs: int, seed: int, *, tuned: bool) -> Outcome:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    pyro.enable_validation(not tuned)
    model = FlowPriorVAE(problem, logits=tuned)
    loader = DataLoader(TensorDataset(data), batch_size=problem.batch_size, shuffle=True)
    svi = SVI(model.model, model.guide, Adam({"lr": problem.learning_rate}), loss=Trace_ELBO())

    def train() -> float:
        total = math.nan
        for _ in range(epochs):
            total = sum(svi.step(x) for (x,) in loader)
        return total / len(data)

    return timed(train, model)
