"""Gaussians and Bernoulli against torch.distributions, with parameters computed by hand from the raw outputs."""

import re

import pytest
import torch
from torch import distributions, nn

from latentflows.core.errors import CombinationError, ConfigurationError, DataError, ShapeError
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    BernoulliValues,
    DiagonalNormal,
    FullNormal,
    LearnedGaussian,
    StandardGaussian,
    StandardNormal,
    gaussian_raw_shape,
    kl_divergence,
)
from tests.bijections.cases import randomize


def bounded(raw, bound=7.0):
    return raw / (1 + raw.abs() / bound)


def tril_by_hand(raw, dim):
    """Fill a triangle row by row, as it is written on paper."""
    tril, index = torch.zeros(*raw.shape[:-1], dim, dim, dtype=raw.dtype), 0
    for row in range(dim):
        for column in range(row + 1):
            entry = raw[..., index]
            tril[..., row, column] = bounded(entry).exp() if row == column else entry
            index += 1
    return tril


def agrees(ours, theirs, sample=(3,)):
    x = theirs.sample(sample)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean)


@pytest.mark.parametrize("shape", [(3,), (2, 1, 3)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_standard_normal(shape, scale):
    ours = StandardNormal(shape, like=torch.zeros(()).double(), scale=scale)
    theirs = distributions.Normal(torch.zeros(shape).double(), scale)
    agrees(ours, distributions.Independent(theirs, len(shape)))
    assert ours.tempered(0.5).scale == scale * 0.5


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_diagonal_normal(ndim):
    mean, log_scale = torch.randn(2, 5, 1, 3).double(), torch.randn(2, 5, 1, 3).double()
    ours = DiagonalNormal(mean, log_scale, event_ndim=ndim)
    agrees(ours, distributions.Independent(distributions.Normal(mean, log_scale.exp()), ndim))


def test_a_draw_without_gradients_takes_none_from_what_follows():
    mean, log_scale = torch.randn(2, 3), torch.randn(2, 3).requires_grad_()
    q = DiagonalNormal(mean, log_scale)
    with torch.no_grad():
        q.sample()
    kl = kl_divergence(q, StandardNormal((3,), like=mean))
    (slope,) = torch.autograd.grad(kl.sum(), log_scale, retain_graph=True)
    torch.testing.assert_close(slope, (2 * log_scale).exp() - 1)
    z = q.sample()
    torch.testing.assert_close(torch.autograd.grad(z.sum(), log_scale)[0], (z - mean).detach())


def test_a_shared_scale_counts_once_per_entry():
    mean, log_scale = torch.randn(5, 2, 3).double(), torch.tensor(-0.7).double()
    ours = DiagonalNormal(mean, log_scale, event_ndim=2)
    agrees(ours, distributions.Independent(distributions.Normal(mean, log_scale.exp()), 2))


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_full_normal(batch):
    mean, tril = torch.randn(*batch, 3).double(), tril_by_hand(torch.randn(*batch, 6).double(), 3)
    agrees(FullNormal(mean, tril), distributions.MultivariateNormal(mean, scale_tril=tril))


@pytest.mark.parametrize("make", ["standard", "diagonal", "full"])
def test_moments_of_draws(make):
    mean, tril = torch.randn(3).double(), tril_by_hand(torch.randn(6).double(), 3)
    ours, mean, covariance = {
        "standard": (StandardNormal((3,), like=mean, scale=0.4), torch.zeros(3), 0.16 * torch.eye(3)),
        "diagonal": (DiagonalNormal(mean, tril[:, 0]), mean, (2 * tril[:, 0]).exp().diag()),
        "full": (FullNormal(mean, tril), mean, tril @ tril.T),
    }[make]
    x = ours.sample((40_000,))
    variances = covariance.diagonal()
    assert ((x.mean(0) - mean) / (variances / 40_000).sqrt()).abs().max() < 5
    spread = ((variances[:, None] * variances + covariance**2) / 40_000).sqrt()  # of a sample covariance
    assert ((x.T.cov() - covariance) / spread).abs().max() < 5


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_scales_the_standard_deviation(temperature):
    mean, tril = torch.randn(3).double(), tril_by_hand(torch.randn(6).double(), 3)
    agrees(
        FullNormal(mean, tril).tempered(temperature),
        distributions.MultivariateNormal(mean, scale_tril=temperature * tril),
    )
    scale = torch.randn(3).double()
    theirs = distributions.Independent(distributions.Normal(mean, temperature * scale.exp()), 1)
    agrees(DiagonalNormal(mean, scale).tempered(temperature), theirs)


class Fixed(nn.Module):
    """A network that gives the same raw output for every row, and remembers nothing."""

    def __init__(self, raw):
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, x):
        return self.raw[: len(x)]


def test_amortized_diagonal_cuts_the_first_axis():
    raw = 3 * torch.randn(5, 4, 2, 3).double()
    ours = AmortizedGaussian((2, 2, 3), 1, Fixed(raw))(torch.zeros(5, 1).double())
    normal = distributions.Normal(raw[:, :2], bounded(raw[:, 2:]).exp())
    agrees(ours, distributions.Independent(normal, 3))


def test_amortized_full_fills_a_triangle_row_by_row():
    raw = 3 * torch.randn(5, 3 + 6).double()
    ours = AmortizedGaussian(3, 1, Fixed(raw), covariance="full")(torch.zeros(5, 1).double())
    agrees(ours, distributions.MultivariateNormal(raw[:, :3], scale_tril=tril_by_hand(raw[:, 3:], 3)))


def test_shared_scale_is_one_learned_number():
    raw = torch.randn(5, 2, 3).double()
    conditional = AmortizedGaussian((2, 3), 1, Fixed(raw), scale="shared").double()
    conditional.raw_scale.data.fill_(-2.0)
    ours = conditional(torch.zeros(5, 1).double())
    scale = bounded(torch.tensor(-2.0).double()).exp()
    agrees(ours, distributions.Independent(distributions.Normal(raw, scale), 2))


def test_fixed_scale_is_that_number():
    raw = torch.randn(5, 2, 3).double()
    ours = AmortizedGaussian((2, 3), 1, Fixed(raw), scale=0.3)(torch.zeros(5, 1).double())
    agrees(
        ours, distributions.Independent(distributions.Normal(raw, torch.tensor(0.3, dtype=torch.float64)), 2)
    )


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_learned_gaussian_starts_as_the_standard_one(shape):
    x = torch.randn(5, *shape)
    torch.testing.assert_close(LearnedGaussian(shape)().log_prob(x), StandardGaussian(shape)().log_prob(x))


def test_learned_full_gaussian_starts_as_the_standard_one_and_has_a_triangle():
    conditional, x = LearnedGaussian(3, covariance="full").double(), torch.randn(5, 3).double()
    expected = StandardGaussian(3).double()().log_prob(x)
    torch.testing.assert_close(conditional().log_prob(x), expected)
    randomize(conditional, 1.0)
    tril = tril_by_hand(conditional.raw_scale.detach(), 3)
    agrees(conditional(), distributions.MultivariateNormal(conditional.mean, scale_tril=tril))


@pytest.mark.parametrize("bound", [2.0, 7.0])
def test_scales_stay_within_their_bound(bound):
    conditional = LearnedGaussian(1, scale_bound=bound).double()
    conditional.raw_scale.data.fill_(1e9)
    assert bound - 1e-3 < conditional().log_scale.item() < bound


def test_raw_shapes():
    assert gaussian_raw_shape((3, 4, 4)) == (6, 4, 4)
    assert gaussian_raw_shape((3,), covariance="full") == (9,)
    assert gaussian_raw_shape((3, 4, 4), scale="shared") == (3, 4, 4)
    assert gaussian_raw_shape((3, 4, 4), scale=0.1) == (3, 4, 4)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: LearnedGaussian((2, 3), covariance="full"),
            CombinationError,
            "A full covariance needs a vector event (D,); got (2, 3).",
        ),
        (
            lambda: LearnedGaussian(3, covariance="dense"),
            ConfigurationError,
            '`covariance` must be "diagonal" or "full"; got \'dense\'.',
        ),
        (
            lambda: AmortizedGaussian(3, 2, nn.Identity(), covariance="full", scale="shared"),
            CombinationError,
            "A full covariance needs scale=\"amortized\"; got 'shared'.",
        ),
        (
            lambda: AmortizedGaussian(3, 2, nn.Identity(), scale=0.0),
            ConfigurationError,
            '`scale` must be "amortized", "shared" or a positive number; got 0.0.',
        ),
        (
            lambda: AmortizedGaussian(3, 2, nn.Identity(), scale="amortised"),
            ConfigurationError,
            '`scale` must be "amortized", "shared" or a positive number; got \'amortised\'.',
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        make()


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize("kind", [AmortizedGaussian, AmortizedBernoulli])
def test_a_network_of_the_wrong_shape_is_named_at_first_use(kind, batch):
    conditional = kind((2, 2), 3, nn.Identity())
    wanted = conditional.raw_shape if kind is AmortizedGaussian else (2, 2)
    message = f"The network of `{kind.__name__}` must give {wanted}; got (3,)."
    with pytest.raises(ShapeError, match=re.escape(message)):
        conditional(torch.zeros(*batch, 3))


def test_bernoulli():
    logits = 3 * torch.randn(5, 2, 3).double()
    agrees(
        BernoulliValues(logits, event_ndim=2),
        distributions.Independent(distributions.Bernoulli(logits=logits), 2),
    )


def test_bernoulli_draws_are_binary_and_follow_their_logits():
    logits = torch.tensor([-2.0, 0.0, 1.5]).double()
    x = BernoulliValues(logits, event_ndim=1).sample((20_000,))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = logits.sigmoid()
    assert ((x.mean(0) - p) / (p * (1 - p) / 20_000).sqrt()).abs().max() < 5


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_bernoulli_is_finite_far_out(logit):
    values = BernoulliValues(torch.full((1, 1), logit), event_ndim=1)
    likely = torch.tensor([[1.0 if logit > 0 else 0.0]])
    assert values.log_prob(likely) == 0
    assert values.log_prob(1 - likely) == -1e4


def test_bernoulli_refuses_gray_values():
    values = BernoulliValues(torch.zeros(2, 3), event_ndim=1)
    values.check_support(torch.tensor([[0.0, 1.0, 1.0]]))
    with pytest.raises(
        DataError, match=r"binary data, 0 or 1; got values between 0.2 and 1 .* Binarize the data"
    ):
        values.check_support(torch.tensor([[0.2, 1.0, 1.0]]))
