"""A hierarchy is the chain rule: what its levels give one by one, in every direction."""

import math

import pytest
import torch

from latentflows.bijections import ActNorm
from latentflows.bijections.base import waiting_layers
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ShapeError
from latentflows.distributions import (
    Conditional,
    EnergyPrior,
    Flow,
    FlowMatchingPrior,
    FullNormal,
    GaussianMixture,
    Hierarchical,
    LearnedGaussian,
    ResampledPrior,
    StandardGaussian,
    has_closed_form_kl,
)
from latentflows.distributions.hierarchical import Ancestral
from latentflows.models import VAE, presets
from latentflows.networks import MLP, ResidualMLP
from tests.bijections.cases import randomize
from tests.distributions.cases import bernoulli, build, context_of, gaussian, hierarchy_given, network


def linear(dim: int, context: int) -> Conditional:
    class Linear(torch.nn.Module):
        """Mean linear in the context, and a constant scale."""

        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(context, dim)
            self.scale = torch.nn.Parameter(0.3 * torch.randn(dim))

        def forward(self, x):
            return torch.cat([self.map(x), self.scale.expand(len(x), -1)], -1)

    made = gaussian((dim,), (context,))
    made.network = Linear()
    return made


def test_linear_levels_make_one_joint_normal():
    prior = Hierarchical([LearnedGaussian(2), linear(3, 2)]).double()
    randomize(prior, 0.7)
    top, low = prior.members
    p = top()
    matrix, bias = low.network.map.weight, low.network.map.bias
    scale = low(torch.zeros(2).double()).log_scale.exp()
    upper = p.log_scale.exp().diag()
    tril = torch.zeros(5, 5).double()
    tril[:2, :2], tril[2:, :2], tril[2:, 2:] = upper, matrix @ upper, scale.diag()
    joint = FullNormal(torch.cat([p.mean, matrix @ p.mean + bias]), tril)
    z = torch.randn(6, 5).double()
    torch.testing.assert_close(prior().log_prob(z), joint.log_prob(z))
    cold = FullNormal(joint.mean, 0.6 * tril)
    torch.testing.assert_close(prior().tempered(0.6).log_prob(z), cold.log_prob(z))
    x = prior().sample((50_000,))
    torch.testing.assert_close(x.T.cov(), tril @ tril.T, rtol=0.1, atol=0.1)


def test_each_level_is_given_its_features_and_all_levels_above():
    torch.manual_seed(0)
    shape = (1, 2, 2)
    levels = [gaussian((1,), shape), gaussian((2,), (5,)), gaussian((3,), (7,))]
    posterior = Hierarchical(levels, embed=network(shape, 4), context_shape=shape).double()
    randomize(posterior, 0.7)
    x, z = torch.randn(5, *shape).double(), torch.randn(6, 5, 6).double()
    features = posterior.embed(x).expand(6, 5, 4)
    first, second, third = z.split([1, 2, 3], -1)
    expected = (
        levels[0](x).log_prob(first)
        + levels[1](torch.cat([features, first], -1)).log_prob(second)
        + levels[2](torch.cat([features, first, second], -1)).log_prob(third)
    )
    torch.testing.assert_close(posterior(x).log_prob(z), expected)
    parts = list(posterior.contexts(z, x))
    assert [level for level, _, _ in parts] == levels
    torch.testing.assert_close(sum(level(own).log_prob(part) for level, part, own in parts), expected)


def test_a_top_level_may_read_the_features_and_maps_may_be_latents():
    shape, latent = (1, 4, 4), (2, 2, 2)
    embed = torch.nn.Conv2d(1, 3, 2, stride=2)
    levels = [gaussian(latent, (3, 2, 2)), gaussian((1, 2, 2), (5, 2, 2))]
    posterior = Hierarchical(levels, embed=embed, context_shape=shape)
    z, log_q = posterior(torch.randn(6, *shape)).sample_and_log_prob((2,))
    assert posterior.event_shape == (3, 2, 2)
    assert z.shape == (2, 6, 3, 2, 2)
    assert log_q.shape == (2, 6)


def test_a_level_without_a_context_is_independent():
    prior = Hierarchical([gaussian((2,), (3,)), StandardGaussian(1)], context_shape=3)
    c = torch.randn(4, 3)
    z, log_p = prior(c).sample_and_log_prob((5,))
    assert z.shape == (5, 4, 3)
    expected = prior.members[0](c).log_prob(z[..., :2]) + StandardGaussian(1)().log_prob(z[..., 2:])
    torch.testing.assert_close(log_p, expected)
    upside = Hierarchical([StandardGaussian(1), gaussian((2,), (4,))], context_shape=3)
    assert upside(c).sample((5,)).shape == (5, 4, 3)
    torch.testing.assert_close(*(d.log_prob(z).shape[0] * torch.ones(1) for d in (upside(c), prior(c))))


def test_detached_keeps_the_gradient_of_the_point_alone():
    posterior = build("hierarchy_given", dtype=torch.float32)
    q = posterior(context_of(posterior, 4, dtype=torch.float32))
    z = q.sample().detach().requires_grad_()
    log_q = q.detached().log_prob(z)
    torch.testing.assert_close(log_q, q.log_prob(z))
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    log_q.sum().backward()
    torch.testing.assert_close(z.grad, gradient)
    assert all(parameter.grad is None for parameter in posterior.parameters())


def test_properties_are_those_of_the_levels():
    plain, mixed = build("hierarchy")(), build("hierarchy_mixture")()
    assert plain.reparameterized
    assert not mixed.reparameterized
    planar = Flow(gaussian((2,), (3,)), presets.planar(2, num_layers=1, context=3))
    assert not Hierarchical([planar], context_shape=3).has_density
    assert not has_closed_form_kl(Ancestral, Ancestral)
    low = Flow(gaussian((2,), (2,)), presets.planar(2, num_layers=1, context=2))
    one_way = Hierarchical([StandardGaussian(2), low])()
    with pytest.raises(CombinationError, match="A level of the hierarchy, `Flow`, has no density"):
        one_way.detached()


def test_settings_and_state_of_a_level_decide_what_its_class_cannot():
    """A divergence by probes biases the weights upward; the error of a normalizer is part of the whole's."""

    def network(seen, given, context):
        return ResidualMLP(seen, given, width=4, num_blocks=1, context=context)

    probed = FlowMatchingPrior(2, network, divergence="hutchinson", num_probes=1)
    exact = FlowMatchingPrior(2, network, divergence="exact")
    for given, expected in ((probed, False), (exact, True)):
        below = Flow(given, presets.real_nvp(2, num_layers=1, width=4, depth=1, context=1))
        for level in (given, below, Hierarchical([below], context_shape=1)):
            prior = Hierarchical([StandardGaussian(1), level]).eval()()
            assert (prior.weighable, prior.density) == (expected, "approximate")
            assert prior.log_normalizer_error is None

    for divergence, expected in (("hutchinson", False), ("exact", True)):
        reading = FlowMatchingPrior(2, network, divergence=divergence, context_shape=1)
        prior = Hierarchical([StandardGaussian(1), reading]).eval()()
        assert (prior.weighable, prior.density) == (expected, "approximate")

    def tilted():
        return ResampledPrior(StandardGaussian(1), MLP(1, 1, width=4, depth=1), max_attempts=5)

    for levels in ([tilted()], [tilted(), linear(2, 1)], [tilted(), linear(2, 1), tilted()]):
        errors = []
        for level in levels:
            if isinstance(level, ResampledPrior):
                level.estimate_normalizer(100)
                errors.append(level.normalizer.error.item())
        prior = Hierarchical(levels).eval()()
        assert prior.log_normalizer_error.item() == pytest.approx(math.hypot(*errors))
        assert prior.density == "approximate"
    energy = EnergyPrior(StandardGaussian(1), MLP(1, 1, width=4, depth=1))
    assert Hierarchical([StandardGaussian(1), energy]).eval()().density == "unnormalized"


def test_a_hierarchy_with_a_mixture_is_no_posterior():
    class Given(GaussianMixture):
        """A mixture that reads data."""

    top = Given(1, 2, num_classes=3)
    posterior = Hierarchical([top, gaussian((1,), (4,))], context_shape=3)
    with pytest.raises(CombinationError, match="must draw with gradients, but `Mixture` does not"):
        VAE(posterior, StandardGaussian(2), bernoulli((3,), (2,)))


def test_data_dependent_layers_of_every_level_are_set():
    low = Flow(gaussian((2,), (2,)), ActNorm(2))
    prior = Hierarchical([Flow(LearnedGaussian(2), ActNorm(2)), low])
    z = 5 + 3 * torch.randn(400, 4)
    value = prior()
    assert isinstance(value, Ancestral)
    torch.testing.assert_close(value.initialize(z), z)
    assert not waiting_layers(prior)
    u, _ = low.bijection.inverse(z[:, 2:])
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    posterior = Hierarchical(
        [Flow(gaussian((2,), (3,)), ActNorm(2)), Flow(gaussian((2,), (5,)), ActNorm(2))], context_shape=3
    )
    x = torch.randn(300, 3)
    with noise.stream(1):
        q = posterior(x)
        assert isinstance(q, Ancestral)
        made = q.initialize()
    assert not waiting_layers(posterior)
    torch.testing.assert_close(made.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Hierarchical([]), CombinationError, "at least one conditional"),
        (
            lambda: Hierarchical([StandardGaussian(2), gaussian((2,), (3,))]),
            CombinationError,
            r"Level 2 from the top must read a context of shape \(2,\), the levels above it; it reads \(3,\)",
        ),
        (
            lambda: Hierarchical([gaussian((2,), (3,)), gaussian((2,), (3,))], context_shape=3),
            CombinationError,
            r"must read a context of shape \(5,\), features joined",
        ),
        (
            lambda: Hierarchical([gaussian((2,), (4,))], context_shape=3),
            CombinationError,
            r"The top level reads a context of shape \(4,\); the hierarchy's is \(3,\)",
        ),
        (
            lambda: Hierarchical([StandardGaussian(2)], context_shape=3),
            CombinationError,
            "no level reads a context",
        ),
        (
            lambda: Hierarchical([StandardGaussian(2), StandardGaussian((1, 2))]),
            ShapeError,
            "agree in all axes but the first",
        ),
        (
            lambda: Hierarchical([gaussian((2,), (3,))], embed=torch.nn.Identity()),
            CombinationError,
            "`embed` needs `context_shape`",
        ),
        (
            lambda: Hierarchical(
                [gaussian((2,), (4,)), gaussian((2,), (5,))], embed=network((3,), 4), context_shape=3
            ),
            CombinationError,
            "must read features of one shape",
        ),
        (
            lambda: Hierarchical([gaussian((2,), (3,))], embed=network((3,), 4), context_shape=3),
            CombinationError,
            "read by none",
        ),
        (
            lambda: Hierarchical([gaussian((2,), (3,)), bernoulli((2,), (5,))], context_shape=3),
            CombinationError,
            "A level must be continuous",
        ),
    ],
)
def test_levels_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_context_that_is_missing_is_refused():
    with pytest.raises(ShapeError, match="`Hierarchical` needs a context"):
        hierarchy_given((3,))()
