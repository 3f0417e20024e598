"""Rows depend on rows above them alone, step by step as in one pass, and padding is not heard."""

import re

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import HeightCausalWaveNet
from latentflows.testing import randomize


def make(height=5, width=7, context=0, **settings):
    settings = {"width": 4, "depth": 3, **settings}
    network = HeightCausalWaveNet(
        (2, height, width), (3, height, width), context=context, **settings
    ).double()
    randomize(network, 0.7)
    return network


def test_a_row_sees_all_rows_above_it_and_no_other():
    network, x = make(), torch.randn(2, 5, 7).double()
    jacobian = torch.func.jacrev(lambda v: network(v[None])[0])(x)  # (3, 5, 7, 2, 5, 7)
    rows = jacobian.abs().amax((0, 2, 3, 5))
    assert torch.equal(rows > 0, torch.ones(5, 5).tril(-1).bool())


def test_columns_see_both_sides_as_far_as_dilations_reach():
    network, x = make(height=2, width=21), torch.randn(2, 2, 21).double()
    jacobian = torch.func.jacrev(lambda v: network(v[None])[0, :, 1, 10])(x)
    seen = (jacobian.abs().amax((0, 1, 2)) > 0).nonzero().flatten().tolist()
    assert seen == list(range(10 - 7, 10 + 7 + 1))  # 1 + 2 + 4 either way


@pytest.mark.parametrize("kind", ["none", "vector", "map"])
@pytest.mark.parametrize(("kernel", "height"), [(1, 2), (3, 5), (5, 4)])
def test_steps_give_what_one_pass_gives(kind, kernel, height):
    context = {"none": 0, "vector": 3, "map": (2, height, 7)}[kind]
    network = make(height, context=context, kernel=kernel)
    x = torch.randn(6, 2, height, 7).double()
    features = torch.randn(3, *{"vector": (3,), "map": (2, height, 7)}[kind]).double() if context else None
    valid = (torch.arange(7) < torch.tensor([7, 4, 0, 1, 7, 2])[:, None])[:, None, None].double()
    cache, row, rows = network.start(x, features, valid), torch.zeros(6, 2, 1, 7).double(), []
    for i in range(height):
        out, cache = network.step(row, cache)
        rows.append(out)
        row = x[:, :, i : i + 1]
    torch.testing.assert_close(torch.cat(rows, 2) * valid, network(x, features, valid) * valid)


def test_padding_is_not_heard():
    network, x = make(), torch.randn(1, 2, 5, 7).double()
    valid = (torch.arange(7) < 4).double().view(1, 1, 1, 7)
    other = torch.where(valid.bool(), x, torch.randn_like(x))
    cut = HeightCausalWaveNet((2, 5, 4), (3, 5, 4), width=4, depth=3).double()
    cut.load_state_dict(network.state_dict())
    for value in (x, other):
        torch.testing.assert_close(network(value, None, valid)[..., :4], cut(x[..., :4]))


def test_it_starts_at_zero():
    network = HeightCausalWaveNet((2, 5, 7), (3, 5, 7), width=4, depth=3)
    assert not network(torch.randn(2, 2, 5, 7)).any()


def test_layers_that_miss_rows_are_refused():
    message = (
        "`depth` 2 with `kernel` 3 sees 5 rows, but the last of 7 rows depends on 6: dependencies would be"
    )
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make(height=7, depth=2)
    assert make(height=6, depth=2)


@pytest.mark.parametrize(("before", "after"), [((2, 5), (3, 5)), ((2, 5, 7), (3, 5, 6))])
def test_shapes_are_maps_of_one_space(before, after):
    with pytest.raises(ConfigurationError, match=re.escape(f"are needed; got {before} and {after}")):
        HeightCausalWaveNet(before, after, width=4, depth=3)


def test_the_kernel_is_odd():
    with pytest.raises(ConfigurationError, match="`kernel` must be odd, so that the width stays; got 2"):
        make(kernel=2)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, torch.finfo(torch.float64).min])
def test_what_overflows_on_padding_reaches_no_other_column(junk):
    network, x = make(), torch.randn(2, 2, 5, 7).double()
    valid = (torch.arange(7) < 4).to(x).expand(2, 1, 1, 7)
    dirty = torch.where(valid.bool(), x, junk)
    torch.testing.assert_close(network(dirty, None, valid)[..., :4], network(x, None, valid)[..., :4])
