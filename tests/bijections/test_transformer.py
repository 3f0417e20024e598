"""Transformer autoregressive layers: order of dependence, ways of sampling, padding, guidance, precision."""

import re

import pytest
import torch
from torch.distributions import Normal

from latentflows.bijections import Chain, Inverse, TransformerAutoregressive
from latentflows.core.checks import values_unchecked
from latentflows.core.errors import (
    CombinationError,
    ConfigurationError,
    DataError,
    NonFiniteError,
    ShapeError,
)
from latentflows.networks.tokens import cut
from latentflows.transforms import Additive, RationalQuadraticSpline
from tests.bijections.cases import randomize

EVENTS = {
    "vector": ((6,), 2),
    "sequence": ((2, 4), 1),
    "sequence_patches": ((2, 6), 2),
    "image": ((2, 4, 4), 2),
}
events = pytest.mark.parametrize(("shape", "patch"), EVENTS.values(), ids=EVENTS)
both_orders = pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])


def layer(shape, *, scale=1.0, dtype=torch.float64, **settings):
    made = TransformerAutoregressive(shape, width=8, depth=2, heads=2, **settings).to(dtype)
    randomize(made, scale)
    return made


def draws(made, *batch):
    """Noise, and a context where one is taken."""
    u = torch.randn(*batch, *made.event_shape).double()
    return u, None if made.context_shape is None else torch.randn(batch[-1], *made.context_shape).double()


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@both_orders
@events
def test_token_parameters_depend_on_the_tokens_before_alone(shape, patch, reverse):
    """Their Jacobian is strictly lower block-triangular in the order of the layer, and complete below."""
    made = layer(shape, patch=patch, reverse=reverse)
    x = torch.randn(1, 1, *shape).double()

    def parameters(x):
        return made.network(made._tokens(x, None, None)[0]).squeeze(0)

    jacobian = torch.autograd.functional.jacobian(parameters, x)[:, :, 0, 0]  # (T, P d, *shape)
    by_token = cut(jacobian, patch, shape).abs().amax((1, 3))
    by_token = by_token.flip(1) if reverse else by_token
    assert torch.equal(by_token.triu(), torch.zeros_like(by_token))
    assert by_token[tuple(torch.tril_indices(made.num_tokens, made.num_tokens, -1))].all()


@both_orders
@events
@pytest.mark.parametrize(
    "transform", [None, Additive(), RationalQuadraticSpline()], ids=["affine", "add", "rqs"]
)
def test_all_ways_of_sampling_agree(shape, patch, reverse, transform):
    made = layer(shape, patch=patch, reverse=reverse, transform=transform, context_shape=3)
    u, context = draws(made, 2, 5)
    x, log_det = made(u, context)  # with gradients recorded
    for way in ("cached", "loop", "jacobi"):
        made.inversion = way
        with torch.no_grad():
            close(made(u, context), (x, log_det))
    report = made.jacobi(u, context)
    close((report.x, report.log_det), (x, log_det))
    assert report.passes <= made.num_tokens + 1
    assert not report.fallback.any()
    back, opposite = made.inverse(x, context)
    close((back, -opposite), (u, log_det))


def test_gradients_do_not_depend_on_the_way_of_sampling():
    made = layer((2, 4), context_shape=3)
    u, context = draws(made, 2, 5)
    gradients = []
    for way in ("cached", "loop", "jacobi"):
        made.inversion = way
        x, log_det = made(u.requires_grad_(), context)
        gradients.append(torch.autograd.grad((x.sin().sum() + log_det.sum()), [u, *made.parameters()]))
    close(gradients[0], gradients[1])
    close(gradients[2], gradients[1])


def test_a_draw_goes_token_after_token_through_the_whole_network_once():
    made, calls = layer((8,)), []
    step = made.network.step
    made.network.step = lambda *args: (calls.append(1), step(*args))[1]
    made.network.register_forward_hook(lambda *_: calls.append("pass"))
    with torch.no_grad():
        made(torch.randn(3, 8).double())
    assert calls == [1] * 8
    assert made.passes == (8, 1)
    assert Inverse(made).passes == (1, 8)


@both_orders
@events
def test_it_starts_as_the_identity_start_token_included(shape, patch, reverse):
    context_shape = 3 if len(shape) == 1 else (3, *shape[1:])
    sizes = {"width": 8, "depth": 2, "heads": 2, "patch": patch}
    made = TransformerAutoregressive(shape, **sizes, reverse=reverse, context_shape=context_shape).double()
    u, context = draws(made, 5)
    for out, log_det in (made(u, context), made.inverse(u, context)):
        assert torch.equal(out, u)
        assert not log_det.any()


def test_the_first_token_is_moved_by_what_is_learned_and_by_the_context():
    made = layer((2, 4), context_shape=3)
    u, context = draws(made, 2)
    x, _ = made(torch.zeros_like(u), context)
    assert (x[:, :, 0] != 0).all()
    assert (x[0, :, 0] != x[1, :, 0]).all()


def test_two_layers_in_opposite_orders_change_every_entry():
    first, second = layer((6,), patch=2), layer((6,), patch=2, reverse=True)
    made, u = Chain([first, second]), torch.randn(6).double()
    assert (made(u)[0] - u).abs().min() > 1e-6
    one = torch.autograd.functional.jacobian(lambda v: first(v)[0], u)
    assert (one == 0).sum() == 12 + 6  # tokens after it, and the other entry of its own token
    both = torch.autograd.functional.jacobian(lambda v: made(v)[0], u)
    assert (both == 0).sum() == 2  # the other entry of its own token, where the second layer starts


def test_a_map_context_is_cut_like_the_event_and_heard_in_its_order():
    for reverse in (False, True):
        made = layer((2, 4), context_shape=(3, 4), reverse=reverse)
        x, context = draws(made, 1)
        other = context.clone()
        other[..., 1] += 1
        change = (made.inverse(x, context)[0] - made.inverse(x, other)[0]).abs().amax((0, 1))
        expected = [True, True, False, False] if reverse else [False, True, True, True]
        assert torch.equal(change > 0, torch.tensor(expected))


def test_a_density_in_two_dimensions_integrates_to_one():
    made = Chain([layer((2,), scale=0.5), layer((2,), scale=0.5, reverse=True)])
    axis = torch.linspace(-15, 15, 601).double()
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        u, log_det = made.inverse(x)
    density = (Normal(0, 1).log_prob(u).sum(1) + log_det).exp()
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-3)
    assert (u - x).abs().max() > 0.5


# --- padding


@both_orders
@pytest.mark.parametrize("context_shape", [None, 3, (3, 6)], ids=["none", "vector", "map"])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_padding_is_left_alone_and_changes_nothing(reverse, context_shape, patch, direction):
    made = layer((2, 6), reverse=reverse, context_shape=context_shape, patch=patch)
    run = made if direction == "forward" else made.inverse
    value, context = draws(made, 2, 4)
    lengths = torch.tensor([[6, 4, 1, 0], [3, 5, 6, 2]])
    out, log_det = run(value, context, lengths=lengths)
    padding = torch.arange(6) >= (lengths // patch * patch)[..., None, None]
    padding = padding.expand_as(value)
    assert torch.equal(out[padding], value[padding])
    assert torch.equal(log_det == 0, lengths < patch)
    noisy = torch.where(padding, torch.randn_like(value) * 100, value)
    other, other_log_det = run(noisy, context, lengths=lengths)
    close(other[~padding], out[~padding], 1e-12)
    close(other_log_det, log_det, 1e-12)
    if direction == "forward":
        back, opposite = made.inverse(out, context, lengths=lengths)
        close((back, -opposite), (value, log_det))
        report = made.jacobi(value, context, lengths=lengths)
        close((report.x, report.log_det), (out, log_det))


@both_orders
@pytest.mark.parametrize("context_shape", [None, (3, 6)], ids=["none", "map"])
def test_a_padded_sequence_is_moved_like_the_short_one(reverse, context_shape):
    """The weights of a layer of 4 frames are those of one of 6: positions are relative."""
    long = layer((2, 6), reverse=reverse, context_shape=context_shape)
    short_context = None if context_shape is None else (3, 4)
    short = TransformerAutoregressive(
        (2, 4), width=8, depth=2, heads=2, reverse=reverse, context_shape=short_context
    ).double()
    short.load_state_dict(long.state_dict())
    x, context = draws(long, 5)
    lengths = torch.full((5,), 4)
    for way in ("inverse", "forward"):
        out, log_det = getattr(long, way)(x, context, lengths=lengths)
        brief = None if context is None else context[..., :4]
        expected, expected_log_det = getattr(short, way)(x[..., :4], brief)
        close((out[..., :4], log_det), (expected, expected_log_det))


@both_orders
def test_a_context_that_overflows_on_padding_is_not_heard(reverse):
    made = layer((2, 6), reverse=reverse, context_shape=(3, 6))
    x, context = draws(made, 2)
    lengths = torch.tensor([6, 2])
    spoiled = context.clone()
    spoiled[1, :, 2:] = torch.finfo(context.dtype).max
    for run in (made, made.inverse):
        close(run(x, spoiled, lengths=lengths), run(x, context, lengths=lengths), 1e-12)


@pytest.mark.parametrize("inversion", ["cached", "jacobi"])
def test_stacked_weights_draw_from_noise_that_they_share(inversion):
    members = [layer((2, 4), inversion=inversion) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    u = torch.randn(5, 2, 4).double()

    def drawn(parameters, buffers):
        return torch.func.functional_call(members[0], (parameters, buffers), (u,))[0]

    with torch.no_grad():
        found = torch.func.vmap(drawn)(parameters, buffers)
        for x, member in zip(found, members, strict=True):
            close(x, member(u)[0], 1e-12)


def test_padding_that_is_no_number_does_not_reach_a_gradient():
    made = layer((2, 4), reverse=True)
    x = torch.randn(3, 2, 4).double()
    x[..., 2:] = float("nan")
    with values_unchecked():  # as `fit` runs a step
        u, log_det = made.inverse(x, lengths=torch.full((3,), 2))
    (u[..., :2].sum() + log_det.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


def test_vectors_and_images_take_no_lengths():
    for shape in ((4,), (1, 2, 2)):
        with pytest.raises(ShapeError, match="takes no `lengths`"):
            layer(shape)(torch.zeros(2, *shape).double(), lengths=torch.tensor([1, 2]))


# --- Jacobi


def test_padding_does_not_delay_convergence():
    made = layer((2, 6), reverse=True)
    u, _ = draws(made, 5)
    report = made.jacobi(u, lengths=torch.tensor([2, 1, 0, 2, 2]))
    assert report.passes <= 3
    assert report.residual[2] == 0


def test_rows_that_do_not_converge_are_reported_and_solved_exactly():
    made = layer((8,), scale=2.0, context_shape=3)
    u, context = draws(made, 3, 4)
    calm = made.jacobi(u, context)
    assert calm.passes > 4
    assert not calm.fallback.any()
    hasty = made.jacobi(u, context, max_passes=3)
    assert hasty.passes == 3
    assert hasty.fallback.all()
    assert (hasty.residual > 1e-6).all()
    exact, log_det = made(u, context)
    close((hasty.x, hasty.log_det), (exact, log_det))
    mixed = made.jacobi(u, context, max_passes=3, tolerance=hasty.residual.median().item())
    assert 0 < mixed.fallback.sum() < 12
    assert torch.equal(mixed.fallback, mixed.residual > hasty.residual.median())
    close(mixed.x[mixed.fallback], exact[mixed.fallback])
    assert (mixed.x - exact)[~mixed.fallback].abs().max() > 1e-9  # a loose tolerance is another distribution


def test_the_residual_is_measured_at_the_point_that_is_returned():
    made = layer((8,), scale=2.0)
    u, _ = draws(made, 20)
    report = made.jacobi(u, max_passes=3, tolerance=100.0)
    assert not report.fallback.any()
    assert report.passes == 1  # accepted as it stands
    report = made.jacobi(u, tolerance=0.05)
    back, log_det = made.inverse(report.x)
    again = made.transform.forward(u, made._raw(made.network(report.x[..., None])).squeeze(-1))[0]
    residual = ((again - report.x).abs() / again.abs().clamp_min(1)).amax(1)
    close(report.residual, residual)
    close(report.log_det, -log_det)
    assert (back - u).abs().max() > 1e-9


@pytest.mark.parametrize("settings", [{"max_passes": 0}, {"tolerance": 0.0}, {"tolerance": float("nan")}])
def test_bad_settings_of_jacobi_are_refused(settings):
    with pytest.raises(ConfigurationError, match=f"`{next(iter(settings))}` must be"):
        layer((4,)).jacobi(torch.zeros(4).double(), **settings)


# --- guidance


@pytest.mark.parametrize("rule", ["linear", "gaussian"])
@pytest.mark.parametrize("context_shape", [3, (3, 4)], ids=["vector", "map"])
@both_orders
def test_guidance_of_weight_zero_or_towards_the_same_context_is_forward(rule, context_shape, reverse):
    made = layer((2, 4), context_shape=context_shape, reverse=reverse)
    u, context = draws(made, 2, 5)
    lengths = torch.tensor([4, 3, 2, 1, 4])
    x, _ = made(u, context, lengths=lengths)
    close(made.sample_guided(u, context, 0 * context, weight=0.0, rule=rule, lengths=lengths), x)
    close(made.sample_guided(u, context, context, weight=3.0, rule=rule, lengths=lengths), x)
    one = torch.zeros(made.context_shape).double()  # no batch axes
    guided = made.sample_guided(u, context, one, weight=2.0, rule=rule)
    close(guided, made.sample_guided(u, context, 0 * context, weight=2.0, rule=rule))
    assert (guided - made(u, context)[0]).abs().amax((2, 3)).min() > 1e-4


def test_no_samples_are_guided_to_none():
    made = layer((2, 4), context_shape=3)
    for batch in ((0, 5), (0,)):
        u, context = draws(made, *batch)
        assert made.sample_guided(u, context, 0 * context, weight=1.0).shape == u.shape


def test_guided_gaussians_match_the_closed_form():
    """Each guided token, given those before, follows p(x | c)^(1 + w) / p(x)^w as the layer has them."""
    made, weight = layer((3,), scale=0.6, context_shape=2), 1.5
    context, none = torch.randn(2).double(), torch.zeros(2).double()
    u = torch.randn(7, 3).double()
    x = made.sample_guided(u, context, none, weight=weight, rule="gaussian")

    def gaussians(c):
        """Mean and deviation of every token, given the guided ones before it."""
        zero, log_det = made.inverse(x, c.expand(7, 2))[0], 0
        raw = made._raw(made.network(x[..., None], c.expand(7, 1, 2))).squeeze(-1)
        shift, log_scale = made.transform.forward(torch.zeros_like(zero), raw)
        return Normal(shift + log_det, log_scale.exp())

    given, without = gaussians(context), gaussians(none)
    ratio = (given.scale / without.scale).clamp_max(1) ** 2
    precision = ((1 + weight) - weight * ratio) / given.scale**2
    mean = ((1 + weight) * given.mean - weight * ratio * without.mean) / given.scale**2 / precision
    close(x, mean + u / precision.sqrt())


def test_what_cannot_be_guided_is_refused():
    u, context = torch.zeros(2, 4).double(), torch.zeros(2, 3).double()
    with pytest.raises(
        CombinationError, match="a context and an affine or additive map; got context shape None"
    ):
        layer((4,)).sample_guided(u, context, context, weight=1.0)
    with pytest.raises(
        CombinationError, match=re.escape("got context shape (3,) and RationalQuadraticSpline")
    ):
        layer((4,), context_shape=3, transform=RationalQuadraticSpline()).sample_guided(
            u, context, context, weight=1.0
        )
    made = layer((4,), context_shape=3)
    with pytest.raises(ConfigurationError, match="`weight` of guidance"):
        made.sample_guided(u, context, context, weight=-1.0)
    with pytest.raises(ShapeError, match=re.escape("`unconditional` must end in (3,); got shape (2,)")):
        made.sample_guided(u, context, torch.zeros(2).double(), weight=1.0)
    with pytest.raises(ShapeError, match=re.escape("needs a context ending in (3,); got none")):
        made.sample_guided(u, None, context, weight=1.0)
    with pytest.raises(
        DataError, match=re.escape("tensor ending in (3,); got a NoneType. Give what stood for")
    ):
        made.sample_guided(u, context, None, weight=1.0)
    with pytest.raises(ShapeError, match=re.escape("context and unconditional must broadcast")):
        made.sample_guided(u, context, torch.zeros(3, 3).double(), weight=1.0)
    with pytest.raises(NonFiniteError):
        made.sample_guided(u + float("nan"), context, context, weight=1.0)


# --- the rest


def test_an_exception_leaves_nothing_behind():
    made = layer((6,))
    u, _ = draws(made, 3)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    names, step, calls = set(vars(made.network)), made.network.step, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*args)

    with torch.no_grad():
        expected = made(u)
        made.network.step = failing
        with pytest.raises(KeyboardInterrupt):
            made(u)
        del made.network.step
        assert set(vars(made.network)) == names
        assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())
        close(made(u), expected, 0)


def test_float32_ways_of_sampling_agree_to_rounding():
    made = layer((2, 16), dtype=torch.float32)
    u = torch.randn(8, 2, 16)
    with torch.no_grad():
        x, log_det = made(u)
        made.inversion = "loop"
        close(made(u), (x, log_det), 1e-4)
    report = made.jacobi(u)
    close((report.x, report.log_det), (x, log_det), 1e-4)


def test_autocast_changes_nothing():
    made = layer((2, 4), dtype=torch.float32, context_shape=3)
    u, context = torch.randn(5, 2, 4), torch.randn(5, 3)
    expected = made(u, context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, log_det = made(u, context)
        back, opposite = made.inverse(x, context.bfloat16())
        report = made.jacobi(u, context)
    assert {t.dtype for t in (x, log_det, back, opposite, report.x)} == {torch.float32}
    close((x, log_det), expected, 1e-6)
    close(report.x, x, 1e-4)


@pytest.mark.parametrize(("shape", "patch"), [((4,), 4), (1, 1), ((3, 1), 1), ((3, 2, 2), 2)])
def test_a_single_token_is_refused(shape, patch):
    with pytest.raises(CombinationError, match=r"needs two or more; .* is one"):
        layer(shape, patch=patch)


@pytest.mark.parametrize(
    ("shape", "context_shape"), [((4,), (3, 4)), ((2, 4), (3, 5)), ((2, 4), (3, 4, 4)), ((1, 2, 2), (3, 4))]
)
def test_a_context_of_another_size_is_refused(shape, context_shape):
    with pytest.raises(CombinationError, match=re.escape(f"as the event {shape}; got {context_shape}")):
        layer(shape, context_shape=context_shape)


def test_an_unknown_way_of_sampling_is_refused():
    with pytest.raises(ConfigurationError, match=r"`inversion` must be one of .*; got 'quick'"):
        layer((4,), inversion="quick")
