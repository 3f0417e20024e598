"""pythae: `VAE.get_nll`, its importance-weighted likelihood, over given networks."""

import time

import torch
from torch import Tensor, nn

from benchmarks.peers.problem import Problem
from benchmarks.peers.pythae_vae import vae

ROWS_PER_PASS = 100  # pythae's default `batch_size`: importance samples of one image per pass


def log_likelihood(
    problem: Problem, networks: nn.ModuleList, images: Tensor, num_samples: int, seed: int
) -> tuple[float, float]:
    """The mean of log p(x) over the images, nats, and the seconds it took: as the documentation has it.

    Despite its name `get_nll` returns the log-likelihood, not its negative, and rounds the number of samples
    down to whole passes (and up to one pass); `num_samples` must be a multiple of `ROWS_PER_PASS` to mean what
    it says.
    """
    model = vae(problem, *networks)
    torch.manual_seed(seed)
    start = time.perf_counter()
    value = model.get_nll(images, n_samples=num_samples, batch_size=ROWS_PER_PASS)
    return float(value), time.perf_counter() - start


def log_likelihood_without_gradient(
    problem: Problem, networks: nn.ModuleList, images: Tensor, num_samples: int, seed: int
) -> tuple[float, float]:
    """The same inside `torch.no_grad()`, which `get_nll` itself does not enter."""
    with torch.no_grad():
        return log_likelihood(problem, networks, images, num_samples, seed)
