"""The yardstick: a training loop with nothing in it but PyTorch."""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.problem import Outcome, Problem, decoder, encoder, timed


def train_vae(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """Gaussian VAE with the closed-form KL: permuted index, Adam, no log, no check, no checkpoint."""
    return _train(problem, data, epochs, seed)


def train_vae_fused(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """The same with Adam's fused kernel, one call for all parameters; PyTorch's default is a loop over them."""
    return _train(problem, data, epochs, seed, fused=True)


def train_vae_bfloat16(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """The fused loop with the networks under bfloat16 autocast and the loss in float32."""
    return _train(problem, data, epochs, seed, fused=True, autocast=True)


def networks(problem: Problem) -> nn.ModuleList:
    """Encoder and decoder, untrained."""
    return nn.ModuleList([encoder(problem), decoder(problem)])


def trained_networks(problem: Problem, data: Tensor, epochs: int, seed: int) -> nn.ModuleList:
    """Encoder and decoder of a VAE trained by this loop."""
    torch.manual_seed(seed)
    model = networks(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.learning_rate)
    for _ in range(epochs):
        _epoch(model, optimizer, data, problem.batch_size, autocast=False)
    return model


def _train(
    problem: Problem, data: Tensor, epochs: int, seed: int, *, fused: bool = False, autocast: bool = False
) -> Outcome:
    torch.manual_seed(seed)
    model = networks(problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.learning_rate, fused=fused or None)

    def train() -> float:
        loss = math.nan
        for _ in range(epochs):
            loss = _epoch(model, optimizer, data, problem.batch_size, autocast)
        return loss

    return timed(train, model)


def _epoch(
    model: nn.ModuleList, optimizer: torch.optim.Optimizer, data: Tensor, batch_size: int, autocast: bool
) -> float:
    total = torch.zeros(())
    order = torch.randperm(len(data))
    for indices in order.split(batch_size):
        loss = _negative_elbo(model, data[indices], autocast)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(indices)
    return total.item() / len(data)


def _negative_elbo(model: nn.ModuleList, x: Tensor, autocast: bool) -> Tensor:
    network, generator = model
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        hidden = network(x)
    mean, log_variance = hidden.float().chunk(2, -1)
    z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        logits = generator(z)
    cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum()
    return (cross_entropy + kl) / len(x)
