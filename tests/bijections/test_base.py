"""How batch axes, chains, inverses and amortized parameters behave, apart from any one bijection."""

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from latentflows.bijections import (
    ActNorm,
    Chain,
    Inverse,
    InverseAutoregressive,
    LeakyReLU,
    LULinear,
    Permutation,
    Planar,
    Radial,
    Sylvester,
)
from latentflows.bijections.base import ParameterSource, missing_in
from latentflows.bijections.inputs import align
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import (
    CombinationError,
    ConfigurationError,
    DataError,
    MissingDirectionError,
    NonFiniteError,
    ShapeError,
)
from latentflows.models import presets
from tests.bijections.cases import build, randomize

SHAPES = [
    # batch of values, batch of contexts, full batch, (K, B) that the hooks see
    ((), (), (), (1, 1)),
    ((4,), (), (4,), (4, 1)),
    ((4,), (4,), (4,), (1, 4)),
    ((3, 4), (4,), (3, 4), (3, 4)),
    ((2, 3, 4), (3, 4), (2, 3, 4), (2, 12)),
    ((), (4,), (4,), (1, 4)),
    ((3, 4), (1,), (3, 4), (1, 12)),
    ((3, 4), (3, 1), (3, 4), (1, 12)),
]


@pytest.mark.parametrize(("batch", "rows", "full", "axes"), SHAPES)
def test_align_gives_two_batch_axes_that_fit(batch, rows, full, axes):
    value, context = torch.randn(*batch, 2), torch.randn(*rows, 3)
    aligned, h, out = align(value, (2,), context, (3,))
    assert out == full
    assert aligned.shape == (*axes, 2)
    assert h.shape == (axes[1], 3)
    torch.testing.assert_close(aligned.view(*full, 2), value.expand(*full, 2))
    every = h.expand(*axes, 3).reshape(*full, 3)
    torch.testing.assert_close(every, context.expand(*full, 3))


def test_align_does_not_copy_a_context_for_the_samples():
    context = torch.randn(4, 3)
    _, h, _ = align(torch.randn(5, 4, 2), (2,), context, (3,))
    assert h.data_ptr() == context.data_ptr()


@pytest.mark.parametrize("name", ["permutation", "actnorm", "affine_first", "iaf", "planar"])
def test_half_precision_values_are_promoted(name):
    bijection = build(name, False, dtype=torch.float32)
    u = torch.randn(2, *bijection.base_shape, dtype=torch.bfloat16)
    x, log_det = bijection(u)
    assert x.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(x, bijection(u.float())[0])


def test_half_precision_contexts_are_promoted_outside_autocast():
    layer, u, context = Planar(3, context_shape=2), torch.randn(5, 3), torch.randn(5, 2).half()
    x, log_det = layer(u.half(), context)
    assert x.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(x, layer(u.half().float(), context.float())[0])


def test_chain_runs_forward_from_first_to_last_and_adds_log_dets():
    first, second = build("affine_first", False), build("actnorm", False)
    second = ActNorm(5).double()
    randomize(second, 1.0)
    chain, u = Chain([first, second]), torch.randn(3, 5).double()
    middle, one = first(u)
    last, two = second(middle)
    x, log_det = chain(u)
    torch.testing.assert_close(x, last)
    torch.testing.assert_close(log_det, one + two)


def test_passes_of_a_chain_add_and_a_direction_needs_every_member():
    layer = InverseAutoregressive(4, width=4, depth=1)
    assert Chain([layer, Permutation.reversal(4), layer]).passes == (2, 8)
    assert Chain([layer, Planar(4)]).passes == (1, None)
    assert Inverse(Chain([layer, Planar(4)])).passes == (None, 1)


def test_chain_without_an_inverse_is_refused_by_its_own_name():
    with pytest.raises(MissingDirectionError, match=r"^`Chain` has no inverse"):
        Chain([ActNorm(4), Planar(4)]).inverse(torch.zeros(4))


def test_the_layer_inside_that_lacks_a_direction_is_named():
    inner = Chain([ActNorm(2), Inverse(Inverse(Planar(2)))])
    path = "`Inverse` has no inverse, since `Inverse` has no forward map, since `Planar` has no inverse"
    assert (
        missing_in(Inverse(inner), 0)
        == f"`Inverse` has no forward map, since `Chain` has no inverse, since {path}"
    )


def test_inverse_swaps_directions_and_shapes():
    bijection = build("affine_first", False)
    u = torch.randn(3, 5).double()
    for swapped, plain in zip(Inverse(bijection)(u), bijection.inverse(u), strict=True):
        torch.testing.assert_close(swapped, plain)
    for swapped, plain in zip(Inverse(bijection).inverse(u), bijection(u), strict=True):
        torch.testing.assert_close(swapped, plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain([]), "`Chain` needs at least one bijection; got an empty list"),
        (lambda: Chain([Planar(3), Planar(4)]), "`Chain`: Planar expects (4,); Planar before it gives (3,)"),
        (
            lambda: Chain([Planar(3, context_shape=2), Planar(3, context_shape=4)]),
            "Members of a `Chain` must share one context shape",
        ),
        (lambda: Chain(Planar(3)), "`Chain` needs a list of bijections; got Planar("),
        (lambda: Chain([Planar(3), 3]), "`Chain` needs a list of bijections; got [Planar("),
        (lambda: Inverse(Planar), "`Inverse` swaps the directions of a bijection; got <class"),
        (
            lambda: Planar(3, context_shape=(2, 2)),
            "Amortized parameters need a vector context; got shape (2, 2)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_built(make, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("make", [Planar, Radial, partial(Sylvester, kind="triangular")])
def test_layers_over_vectors_take_a_number_of_variables(make):
    with pytest.raises(ConfigurationError, match=re.escape("`dim` must be a positive integer; got (3, 4)")):
        make((3, 4))


@pytest.mark.parametrize(
    ("layer", "value", "message"),
    [
        (ActNorm(4), [1.0, 2.0, 3.0, 4.0], "`ActNorm` expects a tensor; got a list. Use `torch.as_tensor`."),
        (ActNorm(4), torch.ones(4, dtype=torch.long), "expects floating-point values; got torch.int64"),
        (
            Chain([ActNorm(4), Planar(4)]),
            torch.ones(2, 4).double(),
            "`Chain` has parameters in torch.float32; got values in torch.float64. Bring the values or",
        ),
    ],
)
def test_values_that_no_layer_can_read_are_refused(layer, value, message):
    with pytest.raises(DataError, match=re.escape(message)):
        layer(value)


class Fails(Planar):
    def _forward(self, u, context):
        raise RuntimeError("the wrong type of day")


def test_an_error_is_explained_by_the_type_of_values_only_where_that_differs():
    with pytest.raises(RuntimeError, match=r"^the wrong type of day$"):
        Fails(4)(torch.ones(4))
    with pytest.raises(DataError, match=r"`Fails` has parameters in torch\.float32") as caught:
        Fails(4)(torch.ones(4).double())
    assert str(caught.value.__cause__) == "the wrong type of day"


def test_an_operation_that_a_type_lacks_is_explained_by_the_type():
    """torch solves no triangular system in bfloat16, and says so without the word that other messages have."""
    message = r"`Chain` has parameters in torch\.bfloat16; got values in torch\.float32"
    for flow in (presets.nsf_coupling(4).bfloat16(), Chain([LULinear(4)]).bfloat16()):
        for direction in (flow, flow.inverse):
            with pytest.raises(DataError, match=message):
                direction(torch.randn(3, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_context_that_is_not_finite_is_named(bad):
    layer, context = Planar(3, context_shape=2), torch.zeros(5, 2)
    context[3, 1] = bad
    with pytest.raises(
        NonFiniteError, match="`Planar` expects finite contexts; got NaN or infinity in 1 of 5"
    ):
        layer(torch.zeros(7, 5, 3), context)
    with values_unchecked():
        layer(torch.zeros(7, 5, 3), context)


def test_values_that_are_not_finite_are_counted_where_an_event_is_one_number():
    with pytest.raises(NonFiniteError, match="in 1 of 4 rows"):
        LeakyReLU(())(torch.tensor([0.0, 1.0, torch.nan, 2.0]))


@pytest.mark.parametrize("shape", [0, -2, (3, 0), (2.0,)])
def test_event_shapes_are_positive_integers(shape):
    with pytest.raises(ShapeError, match="`event_shape` must hold positive integers"):
        Planar(shape) if not isinstance(shape, tuple) else ActNorm(shape)


def parameters() -> dict[str, Tensor]:
    return {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0], [4.0]])}


def test_amortized_parameters_start_as_the_global_ones():
    source, amortized = ParameterSource(parameters(), None), ParameterSource(parameters(), (3,))
    for plain, start, many in zip(
        source(None), parameters().values(), amortized(torch.randn(5, 3)), strict=True
    ):
        assert torch.equal(plain, start)
        torch.testing.assert_close(many, start.expand(5, *start.shape))


def test_amortized_parameters_depend_on_the_context():
    source = ParameterSource(parameters(), (3,))
    randomize(source, 1.0)
    a, b = source(torch.randn(5, 3))
    assert a.shape == (5, 2)
    assert b.shape == (5, 2, 1)
    assert (a[0] != a[1]).all()
    assert (b[0] != b[1]).all()


@pytest.mark.parametrize("direction", ["Forward", "backward", None])
def test_initialize_knows_two_directions(direction):
    message = f'`direction` must be "forward" or "inverse"; got {direction!r}.'
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        ActNorm(4).initialize(torch.randn(3, 4), direction=direction)


def test_initialize_maps_when_nothing_depends_on_data():
    bijection, x = build("affine_first", False), torch.randn(7, 5).double()
    before = {key: value.clone() for key, value in bijection.state_dict().items()}
    torch.testing.assert_close(bijection.initialize(x), bijection.inverse(x)[0])
    assert all(torch.equal(before[key], value) for key, value in bijection.state_dict().items())
