"""Autoregressive flows: the order of dependence in both directions, and every way of computing the inverse."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from latentflows.bijections import Inverse, InverseAutoregressive
from latentflows.bijections import autoregressive as module
from latentflows.core.errors import ConfigurationError
from latentflows.transforms import Additive, Affine, RationalQuadraticSpline
from tests.bijections.cases import randomize

TRANSFORMS = [Affine(), Additive(), RationalQuadraticSpline(num_bins=2)]
ORDERS = [None, "reversed", torch.tensor([2, 5, 0, 1, 4, 3])]
FAST = ["incremental", "jacobi"]


def layer(dim=6, context_shape=None, *, width=None, depth=2, scale=1.0, activation="tanh", **settings):
    made = InverseAutoregressive(
        dim,
        width=width or 2 * dim,
        depth=depth,
        activation=activation,
        context_shape=context_shape,
        **settings,
    ).double()
    randomize(made, scale)
    return made


def inverse_and_gradients(made, method, x, context=None):
    """Return u, the log-determinant, and the gradients of a function of both in x, context and parameters."""
    made.inversion = method
    inputs = [x.clone().requires_grad_(), *([] if context is None else [context.clone().requires_grad_()])]
    u, log_det = made.inverse(*inputs)
    weight = torch.linspace(-1, 2, u.numel(), dtype=u.dtype).view_as(u)
    total = (u * weight).sum() + (
        log_det * torch.linspace(0.5, 1, len(log_det), dtype=u.dtype)[:, None]
    ).sum()
    return [u, log_det, *torch.autograd.grad(total, [*inputs, *made.parameters()], allow_unused=True)]


def assert_same(actual, expected, tolerance=1e-10):
    for a, b in zip(actual, expected, strict=True):
        if a is None or b is None:  # a parameter that nothing depends on
            assert a is None or not a.any()
            assert b is None or not b.any()
            continue
        error = (a - b).abs().max() / (1 + b.abs().max())
        assert error < tolerance


@pytest.mark.parametrize("made", [layer(), Inverse(layer())], ids=["iaf", "maf"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_jacobian_is_lower_triangular_and_every_entry_below_counts(made, direction):
    run = made if direction == "forward" else made.inverse
    jacobian = torch.func.jacrev(lambda v: run(v)[0])(torch.randn(6).double())
    assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))
    assert jacobian.tril()[tuple(torch.tril_indices(6, 6))].all()


@pytest.mark.parametrize("order", ORDERS, ids=["natural", "reversed", "permuted"])
def test_dependence_follows_the_order(order):
    made = layer(order=order)
    place = torch.arange(6) if order is None else made.network.order.argsort()
    jacobian = torch.func.jacrev(lambda v: made(v)[0])(torch.randn(6).double())
    assert torch.equal(jacobian != 0, place[:, None] >= place)


def test_the_network_reads_the_base_noise():
    made, u = layer(), torch.randn(1, 1, 6).double()
    shift, raw = made.network(u[0]).unbind(1)
    scale = raw / (1 + raw.abs() / 3)
    torch.testing.assert_close(made(u)[0][0], u[0] * scale.exp() + shift)
    torch.testing.assert_close(made(u)[1][0], scale.sum(-1))


def test_an_event_of_any_shape_is_flattened():
    flat, made = layer(), layer(dim=6)
    made = InverseAutoregressive((2, 3), width=12, depth=2, activation="tanh").double()
    made.load_state_dict(flat.state_dict())
    u = torch.randn(4, 2, 3).double()
    x, log_det = made(u)
    torch.testing.assert_close((x.flatten(1), log_det), flat(u.flatten(1)))
    torch.testing.assert_close(made.inverse(x)[0], u)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("context", [None, 3])
def test_every_inversion_equals_the_loop_in_values_and_gradients(scale, transform, context):
    made = layer(11, context, width=15, transform=transform, scale=scale)
    features = None if context is None else torch.randn(4, 3).double()
    x = made(torch.randn(2, 4, 11).double(), features)[0].detach() + 0.1
    expected = inverse_and_gradients(made, "loop", x, features)
    for method in FAST:
        assert_same(inverse_and_gradients(made, method, x, features), expected)


@pytest.mark.parametrize("order", ORDERS, ids=["natural", "reversed", "permuted"])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "elu", "silu", "tanh", "gelu"])
def test_every_inversion_equals_the_loop_at_any_order_depth_and_activation(order, depth, activation):
    made = layer(6, 3, order=order, depth=depth, activation=activation)
    features = torch.randn(5, 3).double()
    x = made(torch.randn(1, 5, 6).double(), features)[0].detach()
    expected = inverse_and_gradients(made, "loop", x, features)
    for method in FAST:
        assert_same(inverse_and_gradients(made, method, x, features), expected)


@pytest.mark.parametrize("dim", [1, 2, 3, 40])
def test_any_number_of_variables_is_solved(dim):
    made = layer(dim, width=max(dim, 3))  # 40 of them are halved several times
    x = made(torch.randn(1, 3, dim).double())[0].detach()
    expected = inverse_and_gradients(made, "loop", x)
    for method in FAST:
        assert_same(inverse_and_gradients(made, method, x), expected)


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_none_and_of_one(method, rows):
    made = layer(9, 2, inversion=method)
    u, context = torch.randn(rows, 9).double().requires_grad_(), torch.randn(rows, 2).double()
    x, _ = made(u, context)
    back, log_det = made.inverse(x, context)
    assert back.shape == (rows, 9)
    assert log_det.shape == (rows,)
    torch.testing.assert_close(back, u)
    log_det.sum().backward()


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_gradients_are_those_of_finite_differences(method, context, transform):
    made = layer(4, context, width=4, transform=transform, inversion=method)
    x, features = torch.randn(2, 4).double(), None if context is None else torch.randn(2, 2).double()
    wrapped = Inverse(made)
    names, values = zip(*wrapped.named_parameters(), strict=True)

    def run(x, features, *parameters):
        return torch.func.functional_call(wrapped, dict(zip(names, parameters, strict=True)), (x, features))

    inputs = [None if v is None else v.detach().clone().requires_grad_() for v in (x, features, *values)]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_second_derivatives_are_those_of_the_loop(method, transform):
    made, x = layer(5, width=6, transform=transform), torch.randn(1, 2, 5).double()
    found = []
    for how in (method, "loop"):
        made.inversion = how
        leaf = x.clone().requires_grad_()
        u, log_det = made.inverse(leaf)
        (gradient,) = torch.autograd.grad((u**2).sum() + log_det.sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad((gradient**2).sum(), [leaf, *made.parameters()], allow_unused=True))
    assert_same(*found)


class Steeper(Affine):
    """Not x = u e^s + t: twice that."""

    def forward(self, u, raw):
        x, log = super().forward(u, raw)
        return 2 * x, log + math.log(2)

    def inverse(self, x, raw):
        u, log = super().inverse(x / 2, raw)
        return u, log - math.log(2)


@pytest.mark.parametrize("method", FAST)
def test_a_map_that_derives_from_the_affine_one_is_solved_as_itself(method):
    made, u = layer(transform=Steeper(), inversion=method), torch.randn(2, 3, 6).double()
    x, log_det = made(u)
    back, opposite = made.inverse(x)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(opposite, -log_det)


def test_a_vectorized_jacobian_is_that_of_the_loop():
    made, x = layer(5, width=6, inversion="incremental"), torch.randn(5).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: made.inverse(v)[0], x, vectorize=True)
    expected = torch.func.jacrev(lambda v: made.inverse(v)[0])(x)
    torch.testing.assert_close(jacobian, expected)
    forward = torch.func.jacfwd(lambda v: made.inverse(v)[0])(x)
    torch.testing.assert_close(forward, expected)


def test_gradients_of_the_inverse_are_those_of_the_implicit_function():
    made = layer(4)
    x = torch.randn(4).double()
    u = made.inverse(x)[0]
    backward = torch.func.jacrev(lambda v: made.inverse(v)[0])(x)
    forward = torch.func.jacrev(lambda v: made(v)[0])(u.detach())
    torch.testing.assert_close(backward @ forward, torch.eye(4).double())


def test_a_gradient_taken_under_autocast_is_that_of_float32():
    made, x = layer(inversion="incremental").float(), torch.randn(4, 6)
    found = []
    for enabled in (False, True):
        made.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            u, log_det = made.inverse(x)
            (u.sum() + log_det.sum()).backward()
        found.append([parameter.grad.clone() for parameter in made.parameters()])
    torch.testing.assert_close(*found)


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.3)


def normalized(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer)


def doubled(layer):
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)


@pytest.mark.parametrize("change", [pruned, normalized, doubled])
def test_the_inverse_is_that_of_weights_that_a_call_makes_anew(change):
    made = layer()
    for masked in made.network.layers():
        change(masked)
    x = torch.randn(4, 6).double()
    for _ in range(2):  # a second backward pass: nothing may hold on to the graph of the first
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        u, log_det = made.inverse(x)  # the first call with these parameters
        log_det.sum().backward()
        again, opposite = made(u.detach())
        torch.testing.assert_close(again, x)
        torch.testing.assert_close(opposite, -log_det)


def test_the_gradient_is_that_of_the_weights_at_the_time_of_the_inverse():
    made, x = layer(inversion="incremental"), torch.randn(2, 6).double()
    found = []
    for change in (0, 1):
        leaf = x.clone().requires_grad_()
        u, log_det = made.inverse(leaf)
        with torch.no_grad():
            made.network.rest[-1].weight.add_(change)
        found.append(torch.autograd.grad(u.sum() + log_det.sum(), leaf))
    torch.testing.assert_close(*found)


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("dim", "width"), [(16, 32), (32, 31), (24, 200)])
def test_the_incremental_inverse_has_at_most_the_arithmetic_of_one_pass(dim, width):
    made = layer(dim, width=width, inversion="incremental")
    x = torch.randn(3, dim).double().requires_grad_()
    one_pass = flops(lambda: made(x))
    assert 0.5 * one_pass < flops(lambda: made.inverse(x)) <= one_pass
    u, log_det = made.inverse(x)
    assert flops(lambda: (u.sum() + log_det.sum()).backward()) <= 3 * one_pass


def test_the_gradient_of_an_inverse_keeps_u_and_no_hidden_layer():
    made, kept = layer(32, width=64, inversion="incremental"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made.inverse(torch.randn(1000, 32).double().requires_grad_())
    assert sum(t.numel() for t in kept if 1000 in t.shape) <= 3 * 32_000  # u, and x as it came and transposed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_transient_that_overflows_spoils_nothing(dtype):
    made = layer(20, width=40, activation="relu", scale=20.0, inversion="jacobi").to(dtype)
    x = 1e4 * torch.randn(6, 20, dtype=dtype)
    u, log_det = made.inverse(x)
    assert torch.isfinite(u).all()
    made.inversion = "incremental"
    expected, expected_log_det = made.inverse(x)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(u, expected, **tolerance)
    torch.testing.assert_close(log_det, expected_log_det, **tolerance)


@pytest.mark.parametrize(
    ("dim", "rows", "expected"), [(8, 1, "incremental"), (64, 4, "jacobi"), (64, 512, "incremental")]
)
def test_auto_takes_jacobi_where_calls_are_what_costs(dim, rows, expected):
    made = InverseAutoregressive(dim, width=256, depth=2)
    assert made._problem(torch.zeros(rows, dim)).method == expected


def test_auto_on_a_gpu_takes_few_launches_unless_a_graph_is_captured(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert [module._quickest(dim, 10**9, gpu) for dim in (8, 64)] == ["incremental", "jacobi"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert module._quickest(64, 10**9, gpu) == "incremental"


def test_float32_is_as_exact_as_the_loop():
    made = layer(30, width=60).float()
    u = torch.randn(50, 30)
    x = made(u)[0].detach()
    errors = {}
    for method in ("loop", *FAST):
        made.inversion = method
        errors[method] = (made.inverse(x)[0] - u).abs().max().item()
    assert max(errors[method] for method in FAST) < 10 * errors["loop"] + 1e-5


def test_the_context_reaches_the_first_variable():
    made = layer(4, context_shape=2)
    u = torch.zeros(2, 4).double()
    x, _ = made(u, torch.tensor([[0.0, 0.0], [1.0, -1.0]]).double())
    assert x[0, 0] != x[1, 0]


def test_one_variable_is_enough():
    made = layer(1)
    u = torch.randn(5, 1).double()
    x, log_det = made(u)
    torch.testing.assert_close(x, u * log_det[0].exp() + (x[0] - u[0] * log_det[0].exp()))
    torch.testing.assert_close(made.inverse(x)[0], u)


def test_scales_stay_within_their_bound():
    made = layer(2, scale_bound=0.5)
    made.network.rest[-1].bias.data.fill_(1e9)
    assert 0.99 < made(torch.zeros(2).double())[1] < 1.0


def test_it_starts_as_the_identity_for_every_transform():
    for transform in TRANSFORMS:
        made, u = InverseAutoregressive(3, width=4, depth=1, transform=transform), torch.randn(5, 3)
        torch.testing.assert_close(made(u)[0], u)
        torch.testing.assert_close(made(u)[1], torch.zeros(5), atol=1e-6, rtol=0)


def test_an_order_survives_a_save_and_load():
    permuted, other = layer(order=torch.tensor([3, 1, 5, 0, 2, 4])), layer(order="reversed")
    other.load_state_dict(permuted.state_dict())
    u = torch.randn(4, 6).double()
    torch.testing.assert_close(other(u), permuted(u))
    torch.testing.assert_close(other.inverse(u), permuted.inverse(u))
    with pytest.raises(RuntimeError, match="order"):
        layer().load_state_dict(permuted.state_dict())


def test_a_network_too_narrow_is_refused():
    with pytest.raises(ConfigurationError, match=r"`width` must be at least 5 .* 6 variables; got 4"):
        InverseAutoregressive(6, width=4, depth=1)
    with pytest.raises(ConfigurationError, match=r"at least 6 .* 6 variables and the context; got 5"):
        InverseAutoregressive(6, width=5, depth=1, context_shape=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inversion": "newton"}, r"`inversion` must be one of \('auto', .*\); got 'newton'"),
        (
            {"order": "backwards"},
            "`order` must be None, \"reversed\", or a permutation as a tensor of integers; got 'backwards'",
        ),
        (
            {"order": torch.tensor([0, 0, 1])},
            r"`order` must be a permutation of 0 to 2; got torch.int64 \[0, 0, 1\]",
        ),
        ({"transform": Additive(), "scale_bound": 2.0}, "`scale_bound` is that of the default map; got 2.0"),
        ({"scale_bound": -math.inf}, "`scale_bound` must be positive and finite"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        InverseAutoregressive(3, width=4, depth=1, **settings)


def test_an_unknown_way_to_invert_is_refused_whenever_it_is_set():
    made = InverseAutoregressive(3, width=4, depth=1)
    with pytest.raises(ConfigurationError, match=r"`inversion` must be one of .*; got 'fast'"):
        made.inversion = "fast"
    assert made.inversion == "auto"


def test_a_transform_is_an_instance():
    with pytest.raises(ConfigurationError, match=r"got the class. Write `Affine\(\)`"):
        InverseAutoregressive(3, width=4, depth=1, transform=Affine)
