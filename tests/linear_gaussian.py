"""A VAE whose evidence is known: z ~ N(0, I), x = W z + b + sigma e.

With the exact posterior every importance weight equals p(x), so one sample gives the evidence to rounding error;
with `exact=False` the posterior is a Gaussian that is too narrow and off center, and bounds must lie below it.
"""

import torch
from torch import Tensor, distributions, nn

from latentflows.core import noise
from latentflows.core.shapes import Shape, size
from latentflows.distributions import AmortizedGaussian, StandardGaussian
from latentflows.models import VAE

_BOUND = 7.0  # the soft bound of log-scales in `AmortizedGaussian`


class Affine(nn.Module):
    """The map x -> W x + b over flattened inputs, with outputs of any shape, trainable."""

    def __init__(self, weight: Tensor, bias: Tensor, out_shape: Shape) -> None:
        super().__init__()
        self.weight, self.bias, self.out_shape = nn.Parameter(weight), nn.Parameter(bias), out_shape

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight.T + self.bias).view(-1, *self.out_shape)


class LinearGaussian:
    """The model, its data and its evidence, in float64.

    Attributes:
        model: A `VAE` of a full-covariance Gaussian posterior, a standard prior and a Gaussian likelihood.
    """

    def __init__(
        self, event_shape: Shape = (5,), *, latent: int = 2, sigma: float = 0.7, exact: bool = True
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        dim = size(event_shape)
        self.event_shape, self.sigma = event_shape, sigma
        self.weight = torch.randn(dim, latent, generator=generator, dtype=torch.float64)
        self.bias = torch.randn(dim, generator=generator, dtype=torch.float64)
        precision = torch.eye(latent, dtype=torch.float64) + self.weight.T @ self.weight / sigma**2
        self.covariance = precision.inverse()
        gain = self.covariance @ self.weight.T / sigma**2
        offset, tril = -gain @ self.bias, torch.linalg.cholesky(self.covariance)
        if not exact:
            # Above sqrt(1/2), or the importance weights would have infinite variance.
            offset, tril = offset + 0.2, 0.85 * tril
        self.model = VAE(
            AmortizedGaussian(latent, event_shape, _encoder(gain, offset, tril), covariance="full"),
            StandardGaussian(latent),
            AmortizedGaussian(
                event_shape, latent, Affine(self.weight, self.bias, event_shape), scale=self.sigma
            ),
        ).double()

    def data(self, count: int) -> Tensor:
        """Draw data points from the model, (count, *event)."""
        z = noise.standard_normal((count, self.weight.shape[1]), like=self.weight)
        x = z @ self.weight.T + self.bias
        return (x + self.sigma * noise.standard_normal(tuple(x.shape), like=x)).view(-1, *self.event_shape)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,), nats."""
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(len(self.bias)).double()
        return distributions.MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1))

    def posterior(self, x: Tensor) -> distributions.MultivariateNormal:
        """Return p(z|x), whatever the model's own posterior is."""
        mean = (x.flatten(1) - self.bias) @ (self.covariance @ self.weight.T / self.sigma**2).T
        return distributions.MultivariateNormal(mean, self.covariance)


def _encoder(gain: Tensor, offset: Tensor, tril: Tensor) -> Affine:
    """Return the network whose raw output gives mean `gain x + offset` and covariance factor `tril`."""
    log_diagonal = tril.diagonal().log()
    raw = tril - tril.diagonal().diag() + (log_diagonal / (1 - log_diagonal.abs() / _BOUND)).diag()
    rows, columns = torch.tril_indices(*tril.shape)
    scale = raw[rows, columns]
    weight = torch.cat([gain, gain.new_zeros(len(scale), gain.shape[1])])
    return Affine(weight, torch.cat([offset, scale]), (len(weight),))
