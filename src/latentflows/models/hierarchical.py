"""Models with several levels of latents, each put together in a few lines from the same parts as any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from latentflows.core.errors import ConfigurationError
from latentflows.core.shapes import Shape
from latentflows.distributions.base import Conditional
from latentflows.distributions.gaussian import AmortizedGaussian, StandardGaussian, gaussian_raw_shape
from latentflows.distributions.hierarchical import Hierarchical
from latentflows.models.vae import VAE

Network = Callable[[Shape, Shape], nn.Module]
Likelihood = Callable[[Shape, Shape, nn.Module], Conditional]
Level = Callable[[Conditional], Conditional]


class Select(nn.Module):
    """Pass on entries `start` to `stop` of the first event axis: what reads only some levels begins with it.

    Shape:
        x: (N, E_0, *rest) to (N, stop - start, *rest).

    Raises:
        ConfigurationError: if nothing would be left.
    """

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        if not 0 <= start < stop:
            raise ConfigurationError(f"`start` must be at least 0 and below `stop`; got {start} and {stop}.")
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]


def two_level(
    data_shape: Shape,
    latent_dims: tuple[int, int] = (40, 40),
    *,
    network: Network,
    likelihood: Likelihood,
    raw_shape: Shape | None = None,
    features: int = 300,
    top_prior: Level | None = None,
    level: Level | None = None,
) -> VAE:
    r"""Build the hierarchical VAE of the VampPrior's paper: both levels are decoded.

    .. math:: q(z_2|x) \, q(z_1|x, z_2), \quad p(z_2) \, p(z_1|z_2), \quad p(x|z_1, z_2)

    Args:
        data_shape: Shape of one data point.
        latent_dims: Numbers of latents, top first: of z_2 and of z_1.
        network: Makes a network from an input and an output shape, such as `partial(GatedMLP, width=300, depth=2)`.
        likelihood: Makes p(x|z) from the data's shape, the latents' shape and a network: `AmortizedBernoulli`.
        raw_shape: What that network gives; None for the data's shape.
        features: Numbers that an encoder passes on to q(z_1|x, z_2).
        top_prior: Makes p(z_2) from q(z_2|x): `lambda q: VampPrior(q, 500)`; None for N(0, I).
        level: Makes each conditional but p(z_2) from its Gaussian, to make it a flow; None for the Gaussians.

    References:
        Tomczak & Welling, VAE with a VampPrior, 2018, arXiv 1705.07120, section 4.
    """
    top, low = latent_dims
    both = (top + low,)

    def gaussian(dim: int, context: Shape) -> Conditional:
        made = AmortizedGaussian(dim, context, network(context, gaussian_raw_shape((dim,))))
        return made if level is None else level(made)

    q_top = gaussian(top, data_shape)
    posterior = Hierarchical(
        [q_top, gaussian(low, (features + top,))],
        embed=network(data_shape, (features,)),
        context_shape=data_shape,
    )
    p_top = StandardGaussian(top) if top_prior is None else top_prior(q_top)
    prior = Hierarchical([p_top, gaussian(low, (top,))])
    decoder = network(both, raw_shape or data_shape)
    return VAE(posterior, prior, likelihood(data_shape, both, decoder))


def dlgm(
    data_shape: Shape,
    latent_dims: Sequence[int],
    *,
    network: Network,
    likelihood: Likelihood,
    raw_shape: Shape | None = None,
    features: int = 300,
    posterior_level: Level | None = None,
    prior_level: Level | None = None,
) -> VAE:
    r"""Build a deep latent Gaussian model: each level depends on the one right above, the data on the lowest.

    .. math:: p(z_L) \prod_l p(z_l | z_{l+1}) \, p(x|z_1), \quad q(z_L|x) \prod_l q(z_l|x, z_{l+1}, \ldots, z_L)

    The posterior draws from the top down, given the data at every level; the paper's draws all levels from the data
    alone. Prior variances depend on the level above, where the paper's are constant.

    Args:
        data_shape: Shape of one data point.
        latent_dims: Numbers of latents of each level, top first.
        network: Makes a network from an input and an output shape.
        likelihood: Makes p(x|z) from the data's shape, the latents' shape and a network.
        raw_shape: What that network gives; None for the data's shape.
        features: Numbers that the encoder gives, which every level of the posterior reads; another number than that of
            a vector of data, or the top level would read the data.
        posterior_level: Makes each level of the posterior from its Gaussian, to make it a flow.
        prior_level: Makes each level of the prior below the top from its Gaussian.

    Raises:
        ConfigurationError: for no level, or features of the data's own shape.

    References:
        Rezende et al., Stochastic Backpropagation and Approximate Inference in Deep Generative Models, 2014,
        arXiv 1401.4082, section 3.
    """
    if not latent_dims:
        raise ConfigurationError("`latent_dims` must hold at least one number; got none.")
    if tuple(data_shape) == (features,):
        raise ConfigurationError(
            f"`features` must differ from the {features} numbers of a data point, or the top level would read these in "
            f"place of the encoder's; got {features}. Take one more or less."
        )
    starts = [sum(latent_dims[:i]) for i in range(len(latent_dims) + 1)]

    def gaussian(dim: int, context: int, read: nn.Module, width: int, wrap: Level | None) -> Conditional:
        inner = network((width,), gaussian_raw_shape((dim,)))
        made = AmortizedGaussian(dim, context, nn.Sequential(read, inner))
        return made if wrap is None else wrap(made)

    posterior: list[Conditional] = []
    prior: list[Conditional] = [StandardGaussian(latent_dims[0])]
    for i, dim in enumerate(latent_dims):
        width = features + starts[i]
        posterior.append(gaussian(dim, width, nn.Identity(), width, posterior_level))
        if i:
            above = Select(starts[i - 1], starts[i])
            prior.append(gaussian(dim, starts[i], above, latent_dims[i - 1], prior_level))
    decoder = nn.Sequential(
        Select(starts[-2], starts[-1]), network((latent_dims[-1],), raw_shape or data_shape)
    )
    return VAE(
        Hierarchical(posterior, embed=network(data_shape, (features,)), context_shape=data_shape),
        Hierarchical(prior),
        likelihood(data_shape, (starts[-1],), decoder),
    )
