"""Closed-form KL divergences against Monte Carlo, torch.distributions, and themselves pair by pair."""

import itertools

import pytest
import torch
from torch import distributions

from latentflows.core.errors import CombinationError
from latentflows.distributions import (
    BernoulliValues,
    DiagonalNormal,
    FullNormal,
    LowRankNormal,
    Pushforward,
    StandardNormal,
    has_closed_form_kl,
    kl,
    kl_divergence,
    register_kl,
)

DIM, COUNT = 3, 20_000


def standard(*batch):
    return StandardNormal((DIM,), like=torch.zeros(()).double(), scale=1.7)


def diagonal(*batch):
    mean, log_scale = torch.randn(2, *batch, DIM).double()
    return DiagonalNormal(mean, 0.5 * log_scale)


def full(*batch):
    tril = torch.randn(*batch, DIM, DIM).double().tril(-1)
    tril = tril + torch.diag_embed((0.5 * torch.randn(*batch, DIM)).double().exp())
    return FullNormal(torch.randn(*batch, DIM).double(), tril)


def low_rank(*batch):
    mean, log_scale = torch.randn(2, *batch, DIM).double()
    return LowRankNormal(mean, 0.5 * log_scale, torch.randn(*batch, DIM, 2).double())


MAKERS = {StandardNormal: standard, DiagonalNormal: diagonal, FullNormal: full, LowRankNormal: low_rank}
pairs = pytest.mark.parametrize(("q", "p"), list(kl._FORMULAS), ids=lambda kind: kind.__name__)


def as_torch(made) -> distributions.MultivariateNormal:
    if isinstance(made, StandardNormal):
        return distributions.MultivariateNormal(made.mean, scale_tril=made.scale * torch.eye(DIM).double())
    if isinstance(made, LowRankNormal):
        covariance = torch.diag_embed((2 * made.log_scale).exp()) + made.factor @ made.factor.mT
        return distributions.MultivariateNormal(made.mean, covariance)
    tril = made.scale_tril if isinstance(made, FullNormal) else torch.diag_embed(made.log_scale.exp())
    return distributions.MultivariateNormal(made.mean, scale_tril=tril)


def pick(made, index):
    """Return the one distribution at `index` of a batch."""
    if isinstance(made, DiagonalNormal):
        return DiagonalNormal(made.mean[index], made.log_scale[index])
    if isinstance(made, LowRankNormal):
        return LowRankNormal(made.mean[index], made.log_scale[index], made.factor[index])
    return FullNormal(made.mean[index], made.scale_tril[index]) if isinstance(made, FullNormal) else made


@pairs
def test_closed_form_is_the_mean_of_the_difference_of_log_probs(q, p):
    q, p = MAKERS[q](4), MAKERS[p](4)
    z, log_q = q.sample_and_log_prob((COUNT,))
    difference = log_q - p.log_prob(z)
    error = (kl_divergence(q, p) - difference.mean(0)) / (difference.std(0) / COUNT**0.5)
    assert error.shape == (4,)
    assert error.abs().max() < 5


@pairs
def test_closed_form_agrees_with_torch(q, p):
    q, p = MAKERS[q](4), MAKERS[p](4)
    torch.testing.assert_close(kl_divergence(q, p), distributions.kl_divergence(as_torch(q), as_torch(p)))


@pytest.mark.parametrize(
    ("batch_q", "batch_p"), [((), ()), ((4,), ()), ((), (4,)), ((4,), (2, 4)), ((2, 1), (4,)), ((2, 4), (4,))]
)
@pairs
def test_batch_shapes_broadcast(q, p, batch_q, batch_p):
    q, p = MAKERS[q](*batch_q), MAKERS[p](*batch_p)
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    value = kl_divergence(q, p)
    assert value.shape == shape
    for index in itertools.product(*map(range, shape)):
        one = kl_divergence(*(pick(d, _index_in(d.batch_shape, index)) for d in (q, p)))
        torch.testing.assert_close(value[index], one)


def _index_in(batch, index):
    """Undo broadcasting: the place in `batch` that the full `index` reads."""
    return tuple(0 if n == 1 else i for n, i in zip(batch, index[len(index) - len(batch) :], strict=True))


@pytest.mark.parametrize("p", [StandardNormal, DiagonalNormal])
def test_events_of_any_shape_are_summed(p):
    mean, log_scale = torch.randn(2, 4, 2, 3).double()
    q = DiagonalNormal(mean, log_scale, event_ndim=2)
    flat = DiagonalNormal(mean.flatten(1), log_scale.flatten(1))
    if p is StandardNormal:
        shaped, other = (StandardNormal(shape, like=mean) for shape in ((2, 3), (6,)))
    else:
        m, s = torch.randn(2, 2, 3).double()
        shaped = DiagonalNormal(m, s, event_ndim=2)
        other = DiagonalNormal(m.flatten(), s.flatten())
    torch.testing.assert_close(kl_divergence(q, shaped), kl_divergence(flat, other))


@pytest.mark.parametrize("kind", [DiagonalNormal, FullNormal])
def test_kl_of_a_distribution_with_itself_is_zero(kind):
    made = MAKERS[kind](4)
    torch.testing.assert_close(kl_divergence(made, made), torch.zeros(4).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pair", [(Pushforward, StandardNormal), (StandardNormal, DiagonalNormal)])
def test_unregistered_pairs_are_refused_with_what_to_use(pair):
    assert not has_closed_form_kl(*pair)
    names = "` and `".join(kind.__name__ for kind in pair)
    with pytest.raises(CombinationError, match=f'No closed-form KL between `{names}`. Use kl="monte_carlo"'):
        kl.check_closed_form_kl(*pair)


def test_kl_divergence_itself_refuses_unregistered_pairs():
    q = BernoulliValues(torch.zeros(2, DIM), event_ndim=1)
    with pytest.raises(
        CombinationError, match="No closed-form KL between `BernoulliValues` and `StandardNormal`"
    ):
        kl_divergence(q, standard())


def test_a_registered_formula_is_used(monkeypatch):
    monkeypatch.setattr(kl, "_FORMULAS", dict(kl._FORMULAS))
    register_kl(StandardNormal, StandardNormal)(lambda q, p: torch.tensor(4.0))
    assert has_closed_form_kl(StandardNormal, StandardNormal)
    assert kl_divergence(standard(), standard()) == 4
