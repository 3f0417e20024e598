"""Named flows: how many layers, which direction is cheap, and how they start."""

import inspect
import re

import pytest
import torch

from latentflows.bijections import (
    AdditiveCoupling,
    AffineCoupling,
    Coupling,
    Inverse,
    InverseAutoregressive,
    LULinear,
    Permutation,
    Planar,
    SplineCoupling,
)
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.models import presets

PASSES = {
    "real_nvp": (6, 6),
    "nice": (6, 6),
    "iaf": (6, 24),
    "maf": (24, 6),
    "planar": (0, None),
    "radial": (0, 0),
    "sylvester_orthogonal": (0, None),
    "sylvester_householder": (0, None),
    "sylvester_triangular": (0, None),
    "nsf_coupling": (6, 6),
    "nsf_autoregressive": (24, 6),
}
ORTHOGONAL_START = [name for name in PASSES if not name.startswith("nsf")]  # the others to rounding


@pytest.mark.parametrize("name", presets.__all__)
def test_every_preset_says_which_direction_is_cheap(name):
    preset = getattr(presets, name)
    text = inspect.getdoc(getattr(preset, "func", preset))
    assert re.search(r"cheap (to|both)|both directions cost the same", text.lower())


@pytest.mark.parametrize(
    "make", [presets.sylvester_orthogonal, presets.sylvester_householder, presets.planar]
)
def test_a_flow_over_vectors_takes_a_number_of_variables(make):
    with pytest.raises(ConfigurationError, match=re.escape("`dim` must be a positive integer; got (3, 4)")):
        make((3, 4))


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("name", PASSES)
def test_passes_and_context(name, context):
    flow = getattr(presets, name)(4, num_layers=6, context=context)
    assert flow.passes == PASSES[name]
    assert flow.context_shape == (None if context is None else (context,))
    assert flow.event_shape == flow.base_shape == (4,)


@pytest.mark.parametrize(
    ("name", "kind", "between"),
    [
        ("real_nvp", AffineCoupling, 2),
        ("nice", AdditiveCoupling, 2),
        ("iaf", InverseAutoregressive, 0),
        ("maf", InverseAutoregressive, 0),
    ],
)
def test_layers_and_the_permutations_between_them(name, kind, between):
    modules = list(getattr(presets, name)(4, num_layers=6).modules())
    assert sum(isinstance(module, kind) for module in modules) == 6
    assert sum(isinstance(module, Permutation) for module in modules) == between


def test_autoregressive_splines_stand_between_linear_maps():
    chain = presets.nsf_autoregressive(4, num_layers=3, width=8)
    kinds = [type(m.bijection if isinstance(m, Inverse) else m) for m in chain.members]
    assert kinds == [Permutation, LULinear, *[InverseAutoregressive, Permutation, LULinear] * 3]


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5])
def test_linear_maps_stand_after_every_pair_of_spline_couplings_and_at_the_end(num_layers):
    kinds = [type(m) for m in presets.nsf_coupling(4, num_layers=num_layers, width=8).members]
    pair = [SplineCoupling, SplineCoupling, Permutation, LULinear]
    assert kinds == [*(pair * 3)[: [0, 1, 2, 5, 6, 9][num_layers]], LULinear]


@pytest.mark.parametrize("name", ["real_nvp", "nice", "nsf_coupling"])
@pytest.mark.parametrize("dim", [5, 32])
def test_every_two_couplings_move_every_variable(name, dim):
    """A permutation inside a pair would leave some variables to the linear maps alone."""
    flow = getattr(presets, name)(dim, num_layers=4, width=8)
    members = [m for m in flow.members if not isinstance(m, LULinear)]
    pairs = [members[:2], members[3:]]
    assert isinstance(members[2], Permutation)
    for pair in pairs:
        moved = [set(range(dim)) - set(m.partition.stay.tolist()) for m in pair]
        assert moved[0] | moved[1] == set(range(dim))


def test_autoregressive_layers_alternate_in_order():
    orders = [
        m.network.order for m in presets.iaf(3, width=4).modules() if isinstance(m, InverseAutoregressive)
    ]
    assert [None if order is None else order.tolist() for order in orders] == [None, [2, 1, 0]] * 2


def test_spline_couplings_move_alternating_entries():
    stays = [
        m.partition.stay.tolist() for m in presets.nsf_coupling(4).modules() if isinstance(m, SplineCoupling)
    ]
    assert stays == [[0, 2], [1, 3], [0, 2], [1, 3], [0, 2]]


@pytest.mark.parametrize("name", ["real_nvp", "nice"])
def test_a_mask_of_ones_own_takes_turns_with_its_opposite(name):
    flow = getattr(presets, name)(4, num_layers=3, own_mask=torch.tensor([1, 0, 0, 0]))
    stays = [m.partition.stay.tolist() for m in flow.modules() if isinstance(m, Coupling)]
    assert stays == [[0], [1, 2, 3], [0]]
    for own in ([1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 2]):
        with pytest.raises(ConfigurationError, match="`own_mask` must hold 0 or 1 for each of 4 variables"):
            getattr(presets, name)(4, own_mask=own)
    with pytest.raises(ConfigurationError, match=r"got both \[1, 0, 0, 0\] and 'alternating'. Give one"):
        getattr(presets, name)(4, mask="alternating", own_mask=[1, 0, 0, 0])


def test_planar_layers_are_one_bijection():
    flow = presets.planar(4, num_layers=6)
    assert isinstance(flow, Planar)
    assert flow.source.shapes == {"v": (6, 4), "w": (6, 4), "b": (6, 1)}


@pytest.mark.parametrize("name", ["nsf_coupling", "nsf_autoregressive"])
def test_splines_start_as_a_permutation_to_rounding(name):
    flow = getattr(presets, name)(6, num_layers=5, width=12).double()
    u = torch.randn(8, 6).double()
    x, log_det = flow.inverse(u)
    torch.testing.assert_close(x.sort(-1).values, u.sort(-1).values)
    torch.testing.assert_close(log_det, torch.zeros(8).double())


@pytest.mark.parametrize("name", ORTHOGONAL_START)
def test_starts_as_a_pure_permutation(name):
    flow = getattr(presets, name)(6, num_layers=5).double()
    u = torch.randn(8, 6).double()
    x, log_det = flow(u)
    assert torch.equal(x.sort(-1).values, u.sort(-1).values)
    assert torch.equal(log_det, torch.zeros(8).double())


@pytest.mark.parametrize("name", ["real_nvp", "nice", "iaf"])
def test_after_training_every_variable_can_reach_every_other(name):
    flow = getattr(presets, name)(6, num_layers=6, width=12, activation="tanh").double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    jacobian = torch.func.jacrev(lambda u: flow(u)[0])(torch.randn(6).double())
    assert (jacobian != 0).all()


def test_a_preset_is_the_same_flow_every_time():
    orders = [
        torch.cat([m.order for m in presets.real_nvp(8).modules() if isinstance(m, Permutation)])
        for _ in range(2)
    ]
    assert torch.equal(*orders)


@pytest.mark.parametrize("name", ["real_nvp", "nice"])
def test_couplings_need_two_variables(name):
    message = "A coupling flow needs two or more variables; got 1. Use `maf` or `iaf`."
    with pytest.raises(CombinationError, match=re.escape(message)):
        getattr(presets, name)(1)


@pytest.mark.parametrize("name", PASSES)
def test_layers_are_counted_from_one(name):
    with pytest.raises(ConfigurationError, match="`num_layers` must be a positive integer; got 0"):
        getattr(presets, name)(4, num_layers=0)
