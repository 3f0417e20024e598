"""Masses of code sequences: they add up to one, and draws have them."""

import itertools
import math

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError, DataError, ShapeError
from latentflows.core.noise import stream
from latentflows.distributions import AutoregressiveCodes, CodeSequence, Hierarchical
from latentflows.distributions.base import draw_index
from tests.bijections.cases import randomize
from tests.distributions.cases import gaussian

T, M = 3, 4
SIZES = {"width": 8, "depth": 2, "heads": 2}
ALL = torch.tensor(list(itertools.product(range(M), repeat=T)))


def prior(context=None, seed=0, tokens=T, **settings) -> AutoregressiveCodes:
    with stream(seed):
        made = AutoregressiveCodes(tokens, M, **SIZES, context_shape=context, **settings).double()
        randomize(made, 0.5)
        return made


def layered() -> Hierarchical:
    """Two top tokens, and three given those and a label of two numbers."""
    embed = torch.nn.Linear(4, 5)
    below = prior((4,), 1, embed=embed, features=5)
    return Hierarchical([prior((2,), 2, tokens=2), below], context_shape=2).double()


def test_it_starts_uniform():
    p = AutoregressiveCodes(T, M, **SIZES)()
    torch.testing.assert_close(p.log_prob(ALL), torch.full((len(ALL),), -T * math.log(M)))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_masses_of_all_sequences_add_up_to_one(temperature):
    p = prior()().tempered(temperature)
    masses = p.log_prob(ALL).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-12)
    assert masses.max() > 2 * masses.min()


def test_the_masses_of_two_levels_add_up_to_one_for_each_context():
    model, labels = layered(), torch.eye(2).double()
    every = torch.tensor(list(itertools.product(range(M), repeat=T + 2)))
    log_p = model(labels).log_prob(every[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(2).double())
    assert not torch.allclose(log_p[:, 0], log_p[:, 1])
    top, below = model.members
    by_hand = top(labels).log_prob(every[7, :2].expand(2, 2))
    context = torch.cat([labels, every[7, :2].expand(2, 2)], 1)
    by_hand = by_hand + below(context).log_prob(every[7, 2:].expand(2, 3))
    torch.testing.assert_close(log_p[7], by_hand)
    assert model.distribution_type.discrete


def test_a_temperature_divides_the_logits_of_every_step():
    p, codes = prior()(), ALL[:5]
    logits = p.logits(codes)
    expected = (logits / 0.5).log_softmax(-1).gather(-1, codes[..., None]).sum((1, 2))
    torch.testing.assert_close(p.tempered(0.25).tempered(2.0).log_prob(codes), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws_have_the_masses(temperature):
    p = prior()().tempered(temperature)
    count = 40_000
    with stream(5):
        drawn = p.sample((count,))
    index = (drawn * M ** torch.arange(T - 1, -1, -1)).sum(1)
    shares = torch.bincount(index, minlength=len(ALL)) / count
    masses = p.log_prob(ALL).exp()
    assert ((shares - masses).abs() / (masses * (1 - masses) / count).sqrt()).max() < 4.5


def test_draws_of_two_levels_have_the_masses():
    p = layered()(torch.eye(2).double())
    with stream(5):
        drawn = p.sample((20_000,))
    assert drawn.shape == (20_000, 2, T + 2)
    every = torch.tensor(list(itertools.product(range(M), repeat=T + 2)))
    index = (drawn * M ** torch.arange(T + 1, -1, -1)).sum(-1)
    masses = p.log_prob(every[:, None].expand(-1, 2, -1)).exp()
    for label in (0, 1):
        shares = torch.bincount(index[:, label], minlength=len(every)) / 20_000
        errors = (masses[:, label] * (1 - masses[:, label]) / 20_000).sqrt()
        assert ((shares - masses[:, label]).abs() / errors.clamp(min=1e-4)).max() < 5.5


@pytest.mark.parametrize("context", [None, (2,)])
def test_cached_draws_are_those_of_the_naive_loop(context):
    made = prior(context)
    given = None if context is None else torch.randn(6, 2).double()
    p = made(given)
    shape = (6,) if context is None else ()
    with stream(9):
        cached = p.sample(shape)
    codes = torch.zeros(6, T, dtype=torch.long)
    with stream(9):
        for t in range(T):
            codes[:, t] = draw_index(p.logits(codes)[:, t].detach(), ())
    assert torch.equal(cached, codes)


def test_samples_stand_before_the_batch():
    given = torch.randn(2, 2).double()
    p = prior((2,))(given)
    codes = p.sample((3,))
    assert codes.shape == (3, 2, T)
    assert not codes.requires_grad
    log_p = p.log_prob(codes)
    for k, b in itertools.product(range(3), range(2)):
        torch.testing.assert_close(prior((2,))(given[b]).log_prob(codes[k, b]), log_p[k, b])
    torch.testing.assert_close(p.log_prob(codes[0, 0])[1], p.log_prob(codes[:1, :1].expand(1, 2, T))[0, 1])


def test_every_parameter_learns_from_the_mass():
    made = prior((2,))
    made(torch.randn(8, 2).double()).log_prob(torch.randint(0, M, (8, T))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_codes_that_are_none_are_refused():
    p = prior()()
    p.check_support(ALL)
    for codes in (torch.tensor([[0, 1, M]]), torch.tensor([[-1, 0, 0]]), torch.tensor([[0.5, 0, 0]])):
        with pytest.raises(DataError, match="Codes must be whole numbers from 0 to 3"):
            p.check_support(codes)
    with pytest.raises(ShapeError, match="must end in"):
        p.log_prob(torch.zeros(2, T + 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AutoregressiveCodes(3, 1, **SIZES), ConfigurationError, "`num_codes` must be an integer of"),
        (lambda: prior((2, 2)), ConfigurationError, "needs `embed`"),
        (lambda: prior((2,), embed=torch.nn.Identity()), ConfigurationError, "come together"),
        (lambda: prior(features=3, embed=torch.nn.Identity()), ConfigurationError, "come together"),
        (lambda: prior()().tempered(0), ConfigurationError, "`temperature` must be positive"),
        (
            lambda: Hierarchical([prior(tokens=2), gaussian((2,), (2,))]),
            CombinationError,
            "A level must be continuous",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_value_says_that_it_is_a_mass():
    assert CodeSequence.discrete
    assert not CodeSequence.reparameterized
    assert prior()().density == "exact"
