"""Dense layers through oneDNN: the values and derivatives of `functional.linear`, wherever they are asked for."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from latentflows.core import dense

needs_onednn = pytest.mark.skipif(dense._PRODUCT is None, reason="this build of PyTorch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Every product is worth it, and is counted."""
    found, product = [], dense._PRODUCT

    def counted(*arguments):
        found.append(1)
        return product(*arguments)

    monkeypatch.setattr(dense, "_WORTH", 1)
    if product is not None:
        monkeypatch.setattr(dense, "_PRODUCT", counted)
    return found


def tensors(rows=6, inputs=5, outputs=4, **settings):
    shapes = [(rows, inputs), (outputs, inputs), (outputs,)]
    return [torch.randn(*shape, **settings).requires_grad_() for shape in shapes]


def results(function, arguments):
    out = function(*arguments)
    wanted = [a for a in arguments if a is not None and a.requires_grad]
    return out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), wanted)


@needs_onednn
@pytest.mark.parametrize("rows", [1, 6, 130])
@pytest.mark.parametrize(("inputs", "outputs"), [(33, 17), (17, 33), (64, 65), (65, 66)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_linear(calls, rows, inputs, outputs, bias):
    x, weight, offset = tensors(rows, inputs, outputs)
    arguments = (x, weight, offset if bias else None)
    found = results(dense.linear, arguments)
    torch.testing.assert_close(found, results(functional.linear, arguments))
    assert all(value.is_contiguous() for value in found), "optimizers take the weight's layout for granted"
    assert len(calls) == 3


@needs_onednn
@pytest.mark.parametrize("make", [lambda x: x[:, ::2], lambda x: x[:, 3:8], lambda x: x[:1, :5].expand(7, 5)])
def test_rows_with_gaps_are_taken(calls, make):
    whole = torch.randn(7, 10, requires_grad=True)
    _, weight, bias = tensors()
    ours = results(lambda w: dense.linear(make(w), weight, bias), (whole,))
    torch.testing.assert_close(ours, results(lambda w: functional.linear(make(w), weight, bias), (whole,)))
    assert calls


@needs_onednn
def test_a_transposed_weight_and_a_gradient_with_gaps_are_taken(calls):
    x, weight, bias = torch.randn(6, 5), torch.randn(5, 4, requires_grad=True), torch.randn(4)

    def run(linear):
        return results(lambda w: linear(x, w.t(), bias)[:, 1:3], (weight,))

    torch.testing.assert_close(run(dense.linear), run(functional.linear))
    assert calls


@needs_onednn
def test_only_gradients_that_are_needed_are_computed(calls):
    x, weight, bias = tensors()
    dense.linear(x, weight.detach(), bias.detach()).sum().backward()
    assert len(calls) == 2
    dense.linear(x.detach(), weight.detach(), bias).sum().backward()
    assert len(calls) == 3


@needs_onednn
def test_second_derivatives_are_those_of_linear(calls):
    x, weight, bias = tensors()

    def penalty(linear):
        out = linear(linear(x, weight, bias).tanh(), weight.t())
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (weight, bias))

    torch.testing.assert_close(penalty(dense.linear), penalty(functional.linear), rtol=1e-4, atol=1e-4)
    assert calls


@needs_onednn
def test_batched_gradients_are_those_of_linear(calls):
    x, weight, bias = tensors()

    def batched(linear):
        out = linear(x, weight, bias).square()
        weights = torch.linspace(-1, 1, 3 * out.numel()).view(3, *out.shape)
        return torch.autograd.grad(out, x, weights, is_grads_batched=True)[0]

    torch.testing.assert_close(batched(dense.linear), batched(functional.linear))
    assert calls


@pytest.mark.parametrize(
    "transform", ["jacrev", "jacfwd", "vmap", "compile", "autocast", "double", "three_axes"]
)
def test_everything_else_is_linear_itself(calls, transform):
    x, weight, bias = (tensor.detach() for tensor in tensors())
    layer = lambda value: dense.linear(value, weight, bias)  # noqa: E731
    plain = lambda value: functional.linear(value, weight, bias)  # noqa: E731
    if transform == "compile":
        torch._dynamo.reset()
        ours, theirs = torch.compile(layer, fullgraph=True, backend="eager")(x), plain(x)
    elif transform == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours, theirs = layer(x), plain(x)
        assert ours.dtype == torch.bfloat16
    elif transform == "double":
        x, weight, bias = x.double(), weight.double(), bias.double()
        ours, theirs = layer(x), plain(x)
    elif transform == "three_axes":
        ours, theirs = layer(x[None]), plain(x[None])
    else:
        ours, theirs = (getattr(torch.func, transform)(function)(x) for function in (layer, plain))
    torch.testing.assert_close(ours, theirs)
    assert not calls


def test_a_build_without_onednn_takes_linear(monkeypatch):
    monkeypatch.setattr(dense, "_PRODUCT", None)
    monkeypatch.setattr(dense, "_WORTH", 1)
    arguments = tensors()
    torch.testing.assert_close(results(dense.linear, arguments), results(functional.linear, arguments))


def test_small_products_are_left_alone(monkeypatch):
    monkeypatch.setattr(dense, "_PRODUCT", lambda *_: pytest.fail("not worth it"))
    x, weight, bias = tensors()
    dense.linear(x, weight, bias)


def test_sizes_that_do_not_fit_are_refused_as_linear_refuses_them(calls):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dense.linear(torch.zeros(3, 4), torch.zeros(2, 5))


@pytest.mark.parametrize(
    "rows", [3, 2048]
)  # a product that is too small for the other library, and one that is not
def test_products_outside_autograd_are_those_of_torch(rows):
    whole, other, bias = torch.randn(rows, 96), torch.randn(48, 96), torch.randn(48)
    for a in (whole[:, :64], torch.randn(64, rows).t(), torch.randn(rows, 64)):
        for b in (other[:, 32:], torch.randn(64, 48).t()):
            torch.testing.assert_close(dense.product(a, b), a @ b.t(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(dense.product(a, b, bias), a @ b.t() + bias, rtol=1e-4, atol=1e-4)
            exact = dense.product(a.double(), b.double())
            torch.testing.assert_close(exact, a.double() @ b.double().t())


@needs_onednn
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(8)[::2],
        lambda: torch.randn(4, 2)[:, 1],
        lambda: torch.randn(1).expand(4),
        lambda: torch.randn(()),
        lambda: torch.randn(1),
        lambda: torch.randn(4, dtype=torch.complex64).conj().imag,
    ],
    ids=["strided", "column", "expanded", "0-d", "one", "negative view"],
)
def test_any_bias_is_taken_as_linear_takes_it(calls, make):
    x, weight, _ = tensors()
    bias = make().detach().requires_grad_()
    ours, theirs = (results(f, (x, weight, bias)) for f in (dense.linear, functional.linear))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(dense.product(x, weight, bias), theirs[0])
    assert bool(calls) == (bias.shape == (4,))


@pytest.mark.parametrize(
    "bias", [torch.zeros(3), torch.zeros(5), torch.zeros(4).double(), torch.zeros(4, device="meta")]
)
def test_a_bias_that_linear_refuses_is_refused(calls, bias):
    x, weight, _ = tensors()
    for function in (functional.linear, dense.linear, dense.product):
        with pytest.raises(RuntimeError):
            function(x, weight, bias)
    assert not calls


def test_a_weight_of_one_axis_is_taken_as_linear_takes_it(calls):
    x, weight = torch.randn(6, 5), torch.randn(5)
    torch.testing.assert_close(dense.linear(x, weight), functional.linear(x, weight))


def test_a_counter_of_operations_sees_large_products():
    x, weight, bias = tensors(128, 256, 128)
    with FlopCounterMode(display=False) as forward:
        dense.linear(x, weight, bias)
        dense.product(x, weight, bias)
    out = dense.linear(x, weight, bias)  # by the other library
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    once = 2 * 128 * 256 * 128
    assert (forward.get_total_flops(), backward.get_total_flops()) == (2 * once, 2 * once)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_tracer_sees_plain_operations(calls):
    x, weight, bias = (tensor.detach() for tensor in tensors())
    traced = torch.jit.trace(lambda value: dense.linear(value, weight, bias), x, check_trace=False)
    torch.testing.assert_close(traced(x[:3]), functional.linear(x[:3], weight, bias))
    assert not calls


def test_the_other_library_can_be_switched_off(calls, monkeypatch):
    x, weight, bias = (tensor.detach() for tensor in tensors())
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    dense.linear(x, weight, bias)
    dense.product(x, weight, bias)
    assert not calls
