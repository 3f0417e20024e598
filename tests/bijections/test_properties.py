"""What every bijection must do, one property per test, over all cases; float64 unless said."""

import copy
import io
import pickle
import re
import warnings

import pytest
import torch

from latentflows.bijections import Bijection
from latentflows.core.errors import MissingDirectionError, ShapeError
from latentflows.networks import MLP, GatedMLP, MaskedMLP
from tests.bijections.cases import (
    CASES,
    CHEAP,
    CONDITIONED,
    DIRECTED,
    INSTANCES,
    INVERTIBLE,
    MISSING,
    SCALES,
    build,
    context_of,
    run,
    value_of,
)

directed = pytest.mark.parametrize(("name", "context", "direction"), DIRECTED)
instances = pytest.mark.parametrize(("name", "context"), INSTANCES)
invertible = pytest.mark.parametrize(("name", "context"), INVERTIBLE)
scaled = pytest.mark.parametrize("scale", SCALES)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def out_shape(bijection, direction):
    return bijection.event_shape if direction == "forward" else bijection.base_shape


@pytest.mark.parametrize("rows", [(), (5,)], ids=["one_context", "contexts"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5), (3, 2, 5)], ids=["point", "B", "KB", "SKB"])
@directed
def test_value_and_log_det_have_the_batch_shape(name, context, direction, batch, rows):
    bijection = build(name, context)
    h = context_of(bijection, *rows)
    value, log_det = run(bijection, direction, value_of(bijection, direction, *batch, context=h), h)
    full = torch.broadcast_shapes(batch, rows) if bijection.context_shape else batch
    assert value.shape == (*full, *out_shape(bijection, direction))
    assert log_det.shape == full


@scaled
@directed
def test_log_det_is_that_of_the_jacobian(name, context, direction, scale):
    bijection = build(name, context, scale=scale)
    for _ in range(3):
        h = context_of(bijection)
        value = value_of(bijection, direction, context=h)
        jacobian = torch.func.jacrev(lambda v, h=h: run(bijection, direction, v, h)[0])(value)
        count = value.numel()
        expected = torch.linalg.slogdet(jacobian.view(count, count)).logabsdet
        close(run(bijection, direction, value, h)[1], expected)


@scaled
@invertible
def test_inverse_undoes_forward_and_negates_the_log_det(name, context, scale):
    bijection = build(name, context, scale=scale)
    u, h = value_of(bijection, "forward", 6), context_of(bijection, 6)
    x, log_det = bijection(u, h)
    back, opposite = bijection.inverse(x, h)
    close(back, u, 1e-8)
    close(opposite, -log_det)


@scaled
@invertible
def test_forward_undoes_inverse(name, context, scale):
    bijection = build(name, context, scale=scale)
    h = context_of(bijection, 6)
    x = value_of(bijection, "inverse", 6, context=h) + 0.1
    u, log_det = bijection.inverse(x, h)
    back, opposite = bijection(u, h)
    close(back, x, 1e-8)
    close(opposite, -log_det)


@scaled
@directed
def test_every_parameter_and_the_input_get_a_finite_gradient(name, context, direction, scale):
    bijection = build(name, context, scale=scale)
    h = context_of(bijection, 6)
    value = value_of(bijection, direction, 6, context=h).requires_grad_()
    out, log_det = run(bijection, direction, value, h)
    ((out * torch.randn_like(out)).sum() + log_det.sum()).backward()
    for key, tensor in {"input": value, **dict(bijection.named_parameters())}.items():
        assert tensor.grad is not None, key
        assert torch.isfinite(tensor.grad).all(), key
        assert tensor.grad.any(), key


@pytest.mark.parametrize(("name", "context"), [p for p in INSTANCES if CASES[p.values[0]].identity])
def test_starts_as_the_identity(name, context):
    bijection = build(name, context, scale=None)
    direction = "inverse" if bijection.passes[0] is None else "forward"
    u, h = value_of(bijection, direction, 6), context_of(bijection, 6)
    x, log_det = run(bijection, direction, u, h)
    close(x, u, 1e-15)
    close(log_det, torch.zeros(6, dtype=torch.float64), 1e-15)


@directed
def test_declared_passes_are_the_network_calls(name, context, direction):
    bijection, calls = build(name, context), []
    h = context_of(bijection, 5)
    value = value_of(bijection, direction, 2, 5, context=h)
    for module in bijection.modules():
        if isinstance(module, (MLP, GatedMLP, MaskedMLP)):
            module.register_forward_hook(lambda *_: calls.append(1))
    run(bijection, direction, value, h)
    assert len(calls) == bijection.passes[0 if direction == "forward" else 1]


@pytest.mark.parametrize(("name", "context", "direction"), MISSING)
def test_missing_direction_is_refused(name, context, direction):
    bijection = build(name, context)
    what = {"forward": "no forward map", "inverse": "no inverse"}[direction]
    place = {"forward": "a likelihood or a prior", "inverse": "a posterior"}[direction]
    expected = rf"^`{type(bijection).__name__}` has {what}, so .*\. Use it as {place}, or choose a bijection"
    with pytest.raises(MissingDirectionError, match=expected):
        run(bijection, direction, torch.randn(2, *bijection.event_shape).double(), context_of(bijection, 2))


@pytest.mark.parametrize(("name", "context"), CONDITIONED)
def test_another_context_gives_another_value(name, context):
    bijection = build(name, context)
    direction = "inverse" if bijection.passes[0] is None else "forward"
    value, h = value_of(bijection, direction, 5), context_of(bijection, 5)
    out, _ = run(bijection, direction, value, h)
    other, _ = run(bijection, direction, value, h.roll(1, 0))
    assert ((out - other).abs().amax(-1).flatten() > 1e-3).all()


@directed
def test_batch_equals_row_by_row(name, context, direction):
    bijection = build(name, context)
    h = context_of(bijection, 5)
    value = value_of(bijection, direction, 2, 5, context=h)
    out, log_det = run(bijection, direction, value, h)
    for k in range(2):
        for b in range(5):
            one, one_log_det = run(bijection, direction, value[k, b], None if h is None else h[b])
            close(out[k, b], one)
            close(log_det[k, b], one_log_det)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@directed
def test_dtype_is_kept(name, context, direction, dtype):
    bijection = build(name, context, scale=0.3, dtype=dtype)
    h = context_of(bijection, 3, dtype=dtype)
    out, log_det = run(bijection, direction, value_of(bijection, direction, 3, context=h, dtype=dtype), h)
    assert out.dtype == log_det.dtype == dtype


@directed
def test_extreme_parameters_and_inputs_give_finite_values_and_gradients(name, context, direction):
    bijection = build(name, context, scale=20.0, dtype=torch.float32)
    h = context_of(bijection, 8, dtype=torch.float32)
    shape = bijection.base_shape if direction == "forward" else bijection.event_shape
    value = torch.randn(8, *shape)
    value = (
        torch.tensor([1e4, -1e4, 1.0, 0.0]).repeat_interleave(2).view(-1, *[1] * len(shape)) * value.sign()
    )
    if "actnorm" in name or name == "chain":  # e^20 times e^20 times 1e4 leaves float32 by design
        for key, parameter in bijection.named_parameters():
            if key.endswith("log_scale"):
                parameter.data.clamp_(-7, 7)
    value.requires_grad_()
    out, log_det = run(bijection, direction, value, h)
    assert torch.isfinite(out).all()
    assert torch.isfinite(log_det).all()
    (out.mean() + log_det.mean()).backward()
    for key, tensor in {"input": value, **dict(bijection.named_parameters())}.items():
        assert torch.isfinite(tensor.grad).all(), key


@directed
def test_use_changes_no_state(name, context, direction):
    bijection = build(name, context)
    before = copy.deepcopy(bijection.state_dict())
    h = context_of(bijection, 3)
    value = value_of(bijection, direction, 3, context=h)
    trained = run(bijection, direction, value, h)
    evaluated = run(bijection.eval(), direction, value, h)
    close(trained, evaluated, 0)
    after = bijection.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def saved(bijection: Bijection, name, context) -> Bijection:
    file = io.BytesIO()
    torch.save(bijection.state_dict(), file)
    file.seek(0)
    other = build(name, context, scale=0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
@instances
def test_copies_are_equal(name, context, how):
    bijection = build(name, context)
    other = {
        "state_dict": lambda: saved(bijection, name, context),
        "deepcopy": lambda: copy.deepcopy(bijection),
        "pickle": lambda: pickle.loads(pickle.dumps(bijection)),
    }[how]()
    direction = "inverse" if bijection.passes[0] is None else "forward"
    h = context_of(bijection, 3)
    value = value_of(bijection, direction, 3, context=h)
    close(run(other, direction, value, h), run(bijection, direction, value, h), 0)


@instances
def test_repr_names_the_class(name, context):
    bijection = build(name, context)
    assert repr(bijection).startswith(type(bijection).__name__ + "(")


@invertible
def test_autocast_keeps_log_dets_and_round_trips_in_float32(name, context):
    bijection = build(name, context, scale=0.5, dtype=torch.float32)
    u = value_of(bijection, "forward", 64, dtype=torch.float32)
    h = context_of(bijection, 64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, log_det = bijection(u, h)
        back, opposite = bijection.inverse(x, h)
    assert x.dtype == back.dtype == log_det.dtype == opposite.dtype == torch.float32
    close(back, u, 1e-3)
    close(opposite, -log_det, 1e-3)


@pytest.mark.parametrize(("name", "context", "direction"), CHEAP)
def test_compiles_into_one_graph(name, context, direction):
    bijection = build(name, context)
    h = context_of(bijection, 5)
    value = value_of(bijection, direction, 2, 5, context=h)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(
            lambda v, c: run(bijection, direction, v, c), fullgraph=True, backend="eager"
        )
        out = compiled(value, h)
    close(out, run(bijection, direction, value, h), 1e-12)


@directed
def test_wrong_event_shape_is_refused(name, context, direction):
    bijection = build(name, context)
    shape = bijection.base_shape if direction == "forward" else bijection.event_shape
    wrong = (2, *shape[:-1], shape[-1] + 1)
    expected = re.escape(f"must end in {shape}; got shape {wrong}")
    with pytest.raises(ShapeError, match=expected):
        run(bijection, direction, torch.zeros(wrong).double(), context_of(bijection, 2))


@instances
def test_missing_or_unwanted_context_is_refused(name, context):
    bijection = build(name, context)
    direction = "inverse" if bijection.passes[0] is None else "forward"
    value = value_of(bijection, direction, 2)
    h = None if context else torch.zeros(2, 3).double()
    message = (
        "needs a context ending in (3,); got none" if context else "takes no context; got one of shape (2, 3)"
    )
    with pytest.raises(ShapeError, match=re.escape(f"`{type(bijection).__name__}` {message}")):
        run(bijection, direction, value, h)


@pytest.mark.parametrize(("name", "context"), CONDITIONED)
def test_context_of_the_wrong_shape_is_refused(name, context):
    bijection = build(name, context)
    direction = "inverse" if bijection.passes[0] is None else "forward"
    value = value_of(bijection, direction, 2)
    with pytest.raises(ShapeError, match=re.escape("`context` must end in (3,); got shape (2, 4)")):
        run(bijection, direction, value, torch.zeros(2, 4).double())
    with pytest.raises(ShapeError, match=re.escape("must broadcast from the right; got (2,) and (5,)")):
        run(bijection, direction, value, torch.zeros(5, 3).double())
