"""latentflows: `evaluate_bounds` over given networks."""

import copy
import time

import torch
from torch import Tensor, nn

from benchmarks.peers.problem import Problem
from latentflows import VAE, AmortizedBernoulli, AmortizedGaussian, StandardGaussian
from latentflows.data.base import ArraySplit
from latentflows.evaluation import evaluate_bounds
from latentflows.networks.base import Dense


class SoftBoundUndone(nn.Module):
    """Turns the peers' log-variance into the number from which `AmortizedGaussian` makes the same scale.

    Its log-scale is s = a / (1 + |a| / b), so a = s / (1 - |s| / b); |s| must be below b.
    """

    def __init__(self, network: nn.Module, bound: float) -> None:
        super().__init__()
        self.network, self.bound = network, bound

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.network(x).chunk(2, -1)
        log_scale = 0.5 * log_variance
        return torch.cat([mean, log_scale / (1 - log_scale.abs() / self.bound)], -1)


def _with_our_layers(network: nn.Module) -> nn.Module:
    """Put the library's own dense layers, as in its `MLP`, in the place of `nn.Linear`, with the same weights."""
    own = copy.deepcopy(network)
    for module in own.modules():
        if type(module) is nn.Linear:
            module.__class__ = Dense
    return own


def log_likelihood(
    problem: Problem, networks: nn.ModuleList, images: Tensor, num_samples: int, seed: int
) -> tuple[float, float]:
    """The mean of log p(x) over the images, nats, and the seconds it took."""
    bound = 7.0
    encoder, decoder = (_with_our_layers(network) for network in networks)
    posterior = AmortizedGaussian(
        problem.latent, problem.data_dim, SoftBoundUndone(encoder, bound), scale_bound=bound
    )
    likelihood = AmortizedBernoulli(problem.data_dim, problem.latent, decoder)
    model = VAE(posterior, StandardGaussian(problem.latent), likelihood)
    start = time.perf_counter()
    source = ArraySplit(images, values="binary")
    bounds = evaluate_bounds(model, source, num_importance_samples=num_samples, seed=seed)
    return -bounds.nll.mean().item(), time.perf_counter() - start
