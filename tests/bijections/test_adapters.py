"""Transforms of zuko and torch behave as ours: direction, log-determinant, passes, shapes, refusals."""

import copy
import itertools
import math
import re

import pytest
import torch
from torch import nn
from torch.distributions import (
    AbsTransform,
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
)
from torch.distributions.transforms import ReshapeTransform

from latentflows import Flow, Inverse, StandardGaussian
from latentflows.bijections import FromZuko
from latentflows.core import noise
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from tests.peers import peer

zuko = peer("zuko")
D, FEATURES, ROWS = 3, 2, 5

ZUKO = {  # a flow of zuko by its number of context features, and the passes of two layers
    "maf": (lambda c: zuko.flows.MAF(D, c, transforms=2, hidden_features=[8]), (8, 2)),
    "maf_two_groups": (lambda c: zuko.flows.MAF(4, c, transforms=2, passes=2, hidden_features=[8]), (6, 2)),
    "nice": (lambda c: zuko.flows.NICE(D, c, transforms=2, hidden_features=[8]), (4, 2)),
    "spline": (lambda c: zuko.flows.NSF(D, c, transforms=2, bins=4, hidden_features=[8]), (8, 2)),
}
NUMERIC = {  # the same where zuko inverts or integrates numerically, with the error to expect
    "naf": (lambda c: zuko.flows.NAF(D, c, transforms=1, hidden_features=[8], signal=4), (80, 2), 1e-5),
    "sospf": (lambda c: zuko.flows.SOSPF(D, c, transforms=2, hidden_features=[8]), (8, 2), 1e-5),
    "cnf": (lambda c: zuko.flows.CNF(D, c, hidden_features=[8]), None, 1e-3),
}


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def from_zuko(make, context, **settings):
    """Return a zuko flow in float64 and its adapted transform."""
    flow = make(FEATURES if context else 0).double()
    dim = flow().event_shape[0] if not context else flow(torch.zeros(FEATURES).double()).event_shape[0]
    return flow, FromZuko(flow.transform, dim, context_shape=FEATURES if context else None, **settings)


def inputs(bijection, *batch):
    u = torch.randn(*batch, *bijection.base_shape).double()
    context = torch.randn(ROWS, *bijection.context_shape).double() if bijection.context_shape else None
    return u, context


def jacobian_log_det(bijection, x, context):
    """Return log|det du/dx| of one row from autograd, which goes through zuko's own calls of autograd."""
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection.inverse(v, context)[0], x)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", ZUKO)
def test_a_zuko_transform_is_a_bijection(name, context):
    flow, bijection = from_zuko(ZUKO[name][0], context)
    u, h = inputs(bijection, 2, ROWS)
    x, log_det = bijection(u, h)
    close(x, flow.transform(h).inv(u))
    assert log_det.shape == (2, ROWS)
    back, opposite = bijection.inverse(x, h)
    close(back, u, 1e-9)
    close(opposite, -log_det, 1e-9)
    row = None if h is None else h[3]
    close(opposite[1, 3], jacobian_log_det(bijection, x[1, 3].detach(), row))


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", NUMERIC)
def test_numeric_inverses_are_as_exact_as_stated(name, context):
    make, passes, tolerance = NUMERIC[name]
    _, bijection = from_zuko(make, context)
    assert passes in (None, bijection.passes)
    u, h = inputs(bijection, ROWS)
    x, log_det = bijection(u, h)
    back, opposite = bijection.inverse(x, h)
    close(back, u, tolerance)
    close(opposite, -log_det, tolerance)
    row = None if h is None else h[3]
    close(opposite[3], jacobian_log_det(bijection, x[3].detach(), row), tolerance)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", ZUKO)
def test_passes_are_counted(name, context):
    _, bijection = from_zuko(ZUKO[name][0], context)
    assert bijection.passes == ZUKO[name][1]
    assert Inverse(bijection).passes == ZUKO[name][1][::-1]


def test_what_makes_parameters_from_the_context_counts_too():
    layer = zuko.flows.ElementWiseTransform(D, FEATURES)
    assert FromZuko(layer, D, context_shape=FEATURES).passes == (1, 1)
    assert FromZuko(zuko.flows.ElementWiseTransform(D), D).passes == (0, 0)


@pytest.mark.parametrize("context", [False, True])
def test_a_flow_has_the_density_that_zuko_gives(context):
    flow, bijection = from_zuko(ZUKO["maf"][0], context)
    x, h = inputs(bijection, 4, ROWS)
    ours = Flow(StandardGaussian(D), bijection).double()(h)
    close(ours.log_prob(x), flow(h).log_prob(x))
    draws, log_p = ours.sample_and_log_prob((2,))
    close(log_p, flow(h).log_prob(draws), 1e-9)


@pytest.mark.parametrize("name", ["maf", "naf", "cnf"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_reach_every_parameter(name, direction):
    _, bijection = from_zuko({**ZUKO, **NUMERIC}[name][0], context=True)
    value, h = inputs(bijection, ROWS)
    value, h = value.requires_grad_(), h.requires_grad_()
    out, log_det = bijection(value, h) if direction == "forward" else bijection.inverse(value, h)
    ((out * torch.randn_like(out)).sum() + log_det.sum()).backward()
    for key, tensor in {"value": value, "context": h, **dict(bijection.named_parameters())}.items():
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["maf", "naf", "cnf"])
def test_no_grad_leaves_no_graph(name):
    _, bijection = from_zuko({**ZUKO, **NUMERIC}[name][0], context=False)
    with torch.no_grad():
        u = torch.randn(2, D).double()
        assert not any(t.requires_grad for t in (*bijection(u), *bijection.inverse(u)))


@pytest.mark.parametrize("name", ["maf", *NUMERIC])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_a_frozen_flow_lets_others_learn(name, direction):
    """zuko's numeric layers leave a graph that is spent behind; a loss of what comes out must not meet it."""
    _, bijection = from_zuko({**ZUKO, **NUMERIC}[name][0], context=False)
    value = inputs(bijection, ROWS)[0]
    bijection.requires_grad_(False)
    out, _ = bijection(value) if direction == "forward" else bijection.inverse(value)
    assert not out.requires_grad
    scale = torch.ones((), dtype=out.dtype, requires_grad=True)
    (scale * out).sum().backward()
    assert scale.grad.item() == pytest.approx(out.sum().item())


def test_a_flow_of_which_one_layer_is_frozen_lets_the_others_learn():
    _, bijection = from_zuko(
        lambda c: zuko.flows.NAF(D, c, transforms=2, hidden_features=[8], signal=4), False
    )
    first, *_, last = bijection.transform.transforms
    assert isinstance(first, nn.Module)
    bijection.requires_grad_(False)
    last.requires_grad_(True)
    x = inputs(bijection, ROWS)[0]
    out, log_det = bijection.inverse(x)
    (out.sum() + log_det.sum()).backward()
    found = torch.cat([p.grad.flatten() for p in last.parameters()])
    bijection.requires_grad_(True)
    out, log_det = bijection.inverse(x)
    wanted = torch.autograd.grad(out.sum() + log_det.sum(), list(last.parameters()))
    close(found, torch.cat([g.flatten() for g in wanted]))


@pytest.mark.parametrize("frozen", [False, True])
def test_transforms_of_functions_differentiate_what_asks_for_no_gradient(frozen):
    """Not through zuko's numeric layers, whose own calls of autograd they refuse."""
    _, bijection = from_zuko(ZUKO["maf"][0], context=False)
    bijection.requires_grad_(not frozen)
    x, direction = inputs(bijection, ROWS)[0], torch.randn(ROWS, D).double()

    def log_det(v):
        return bijection.inverse(v)[1].sum()

    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_det(at), at)
    close(torch.func.grad(log_det)(x), slope, 1e-8)
    close(torch.func.jvp(log_det, (x,), (direction,))[1], (slope * direction).sum(), 1e-8)


def test_a_constant_transform_gives_what_needs_no_gradient():
    x, _ = FromZuko(ExpTransform().inv, D)(torch.zeros(ROWS, D))
    assert x.numpy().shape == (ROWS, D)


def elementwise(shape, kind=zuko.transforms.AdditiveTransform):
    """Return a lazy transform of single values with a parameter for each entry of the shape."""
    with noise.stream(0):
        return Shifts(nn.Linear(FEATURES, math.prod(shape)), shape, kind).double()


class Shifts(nn.Module):
    def __init__(self, network, shape, kind):
        super().__init__()
        self.network, self.shape, self.kind = network, shape, kind

    def forward(self, context):
        return self.kind(self.network(context).unflatten(-1, self.shape))


def affine_of_torch(axes):
    """Return the kind of a transform of torch whose shapes are those of its parameters."""
    return lambda shift: AffineTransform(shift, 2.0, event_dim=axes)


@pytest.mark.parametrize(
    ("make", "event"),
    [
        *(
            (lambda: ZUKO["maf"][0](FEATURES).transform, event)
            for event in [(4, D), (2, D), (1, D), (2, 4, D)]
        ),
        (lambda: ZUKO["spline"][0](FEATURES).transform, (4, D)),
        (lambda: NUMERIC["cnf"][0](FEATURES).transform, (4, D)),
        *((lambda: elementwise((D,)), event) for event in [(D,), (4, D)]),
        *((lambda: elementwise((4, D)), event) for event in [(4, D), (4, 4, D)]),
        *((lambda: elementwise((D,), affine_of_torch(0)), event) for event in [(D,), (1, D), (4, D)]),
        *((lambda: elementwise((D,), affine_of_torch(1)), event) for event in [(D,), (1, D), (4, D)]),
    ],
)
def test_every_row_has_its_own_context_under_axes_that_the_transform_lacks(make, event):
    transform = make().double()
    bijection = FromZuko(transform, event, context_shape=FEATURES)
    for rows in (1, 2, 4):
        x, context = torch.randn(2, rows, *event).double(), torch.randn(rows, FEATURES).double()
        u, log_det = bijection.inverse(x, context)
        for k, i in itertools.product(range(2), range(rows)):
            expected, ladj = transform(context[i]).call_and_ladj(x[k, i])
            close(u[k, i], expected, 1e-4)
            close(log_det[k, i], ladj.sum(), 1e-3)
        back, opposite = bijection(u, context)
        close(back, x, 1e-3)
        close(opposite, -log_det, 1e-3)


def test_autocast_is_off_inside():
    _, bijection = from_zuko(ZUKO["maf"][0], context=False)
    bijection, u = bijection.float(), torch.randn(64, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, log_det = bijection(u)
        back, _ = bijection.inverse(x)
    assert x.dtype == log_det.dtype == torch.float32
    close(back, u, 1e-4)
    close((x, log_det), bijection(u), 0)


def test_copies_are_equal():
    _, bijection = from_zuko(ZUKO["maf"][0], context=False)
    other = copy.deepcopy(bijection)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(bijection.state_dict())
    u = torch.randn(2, D).double()
    close(other(u), bijection(u), 0)


def test_a_numeric_inverse_that_leaves_its_range_is_told():
    flow = zuko.flows.NAF(D, transforms=1).double()
    bijection = FromZuko(flow.transform, D, verify=1e-3)
    assert bijection.passes == (82, 2)
    u = torch.zeros(4, D).double()
    bijection(u)
    u[1] = 1e3
    with pytest.warns(UserWarning, match=r"The numeric inverse failed in 1 of 4 rows \(largest error"):
        bijection(u)
    with pytest.raises(ConfigurationError, match="`verify` must be positive"):
        FromZuko(flow.transform, D, verify=0)


def test_a_numeric_inverse_gives_no_number_under_weights_that_are_nan():
    flow = zuko.flows.NAF(D, transforms=1)
    for parameter in flow.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.warns(UserWarning, match=r"The numeric inverse failed in 4 of 4 rows"):
        x, _ = FromZuko(flow.transform, D, verify=1e-3)(torch.zeros(4, D))
    assert x.isnan().any(1).all()


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize(
    "transform",
    [SigmoidTransform().inv, ComposeTransform([SigmoidTransform().inv, AffineTransform(1.0, 3.0)])],
    ids=["logit", "composed"],
)
def test_torch_transforms_sum_over_any_event(shape, transform):
    bijection = FromZuko(transform, shape)
    assert bijection.passes == (0, 0)
    u = torch.randn(2, 5, *shape).double()
    x, log_det = bijection(u)
    back, opposite = bijection.inverse(x)
    close(x, transform.inv(u))
    close(back, u)
    close(opposite, -log_det)
    close(opposite[1, 2], jacobian_log_det(bijection, x[1, 2], None))


def test_a_torch_transform_may_change_the_shape():
    bijection = FromZuko(ReshapeTransform((2, 3), (6,)), (2, 3))
    assert (bijection.base_shape, bijection.event_shape) == ((6,), (2, 3))
    u = torch.randn(5, 6)
    x, log_det = bijection(u)
    assert torch.equal(x, u.view(5, 2, 3))
    assert torch.equal(log_det, torch.zeros(5))


def test_a_torch_transform_without_zuko_in_the_process(monkeypatch):
    monkeypatch.delattr(torch.distributions.Transform, "call_and_ladj", raising=False)
    x, log_det = FromZuko(ExpTransform().inv, 2)(torch.tensor([1.0, 2.0]))
    close(x, torch.tensor([1.0, 2.0]).exp())
    assert log_det == 3


@pytest.mark.parametrize(
    ("make", "settings", "kind", "message"),
    [
        (lambda: zuko.flows.MAF(D), {}, CombinationError, "For a flow of zuko give its `.transform`"),
        (AbsTransform, {}, CombinationError, "`AbsTransform` is not bijective"),
        (
            ExpTransform,
            {"context_shape": 2},
            CombinationError,
            "`ExpTransform` is a constant and takes no context",
        ),
        (
            lambda: ReshapeTransform((2, 3), (6,)),
            {},
            ShapeError,
            "works on events of 2 axes; got `event_shape` (3,)",
        ),
    ],
    ids=["flow", "not_bijective", "constant", "larger_events"],
)
def test_what_makes_no_bijection_is_refused(make, settings, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        FromZuko(make(), D, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FromZuko(zuko.flows.MAF(3, context=2).transform, 3),
            "(3,) with no context: give `context_shape`",
        ),
        (
            lambda: FromZuko(zuko.flows.MAF(3).transform, 4),
            "`LazyComposedTransform` cannot be applied to events (4,)",
        ),
        (lambda: FromZuko(zuko.flows.MAF, 3), "MAF'>. Build it first."),
        (lambda: FromZuko(torch.nn.Linear(3, 3), 3), "It must be a transform, or a lazy transform of zuko"),
    ],
)
def test_what_zuko_or_torch_refuse_in_their_own_words_is_explained(make, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        make()
