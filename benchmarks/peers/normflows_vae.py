"""normflows: `NormalizingFlowVAE`, trained by the loop of its example over a `DataLoader`."""

import math
from collections.abc import Sequence

import normflows as nf
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.problem import Outcome, Problem, decoder, encoder, timed


def train_planar(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """Posterior through planar layers whose parameters do not depend on x."""
    torch.manual_seed(seed)
    flows = [nf.flows.Planar((problem.latent,)) for _ in range(problem.num_planar)]
    return _train(flows, problem, data, epochs)


def train_coupling(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """Posterior through masked affine layers (Real NVP): two networks per layer, of full latent width."""
    torch.manual_seed(seed)
    mask = torch.arange(problem.latent) % 2
    sizes = [problem.latent, *problem.coupling.widths, problem.latent]
    flows = []
    for layer in range(problem.coupling.num):
        scale, shift = (nf.nets.MLP(sizes, init_zeros=True) for _ in range(2))
        flows.append(nf.flows.MaskedAffineFlow(mask if layer % 2 == 0 else 1 - mask, shift, scale))
    return _train(flows, problem, data, epochs)


def _train(flows: Sequence[nn.Module], problem: Problem, data: Tensor, epochs: int) -> Outcome:
    prior = torch.distributions.MultivariateNormal(torch.zeros(problem.latent), torch.eye(problem.latent))
    posterior = nf.distributions.NNDiagGaussian(encoder(problem))
    likelihood = nf.distributions.NNBernoulliDecoder(decoder(problem))
    model = nf.NormalizingFlowVAE(prior, posterior, flows, likelihood)
    loader = DataLoader(TensorDataset(data), batch_size=problem.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=problem.learning_rate)

    def train() -> float:
        loss = math.nan
        for _ in range(epochs):
            loss = _epoch(model, optimizer, loader)
        return loss

    return timed(train, model)


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> float:
    total = torch.zeros(())
    for (x,) in loader:
        optimizer.zero_grad()
        _, log_q, log_p = model(x, 1)
        loss = torch.mean(log_q) - torch.mean(log_p)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total.item() / len(loader)
