"""The causal Transformer: what depends on what, the cache, its cost."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.networks import CausalTransformer

T, FEATURES, OUT = 5, 2, 3


def network(*, context=0, absolute=False, width=8, depth=2, heads=2, tokens=T):
    made = CausalTransformer(
        tokens, FEATURES, OUT, width=width, depth=depth, heads=heads, context=context, absolute=absolute
    ).double()
    for parameter in made.parameters():  # the head starts at zero
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def steps(net, x, context=None):
    cache, outs = net.cache(x, context), []
    for i in range(x.shape[1]):
        out, cache = net.step(x[:, i - 1] if i else None, cache)
        outs.append(out)
    return torch.stack(outs, 1), cache


@pytest.mark.parametrize("absolute", [False, True])
def test_outputs_depend_on_all_tokens_before_and_on_no_other(absolute):
    net, x = network(absolute=absolute), torch.randn(1, T, FEATURES).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v)[0], x)[:, :, 0].abs().amax((1, 3))
    assert torch.equal(jacobian.triu(), torch.zeros_like(jacobian))
    assert jacobian[tuple(torch.tril_indices(T, T, -1))].all()


@pytest.mark.parametrize("per_token", [False, True], ids=["vector", "per_token"])
@pytest.mark.parametrize("absolute", [False, True])
def test_steps_with_a_cache_equal_one_pass(absolute, per_token):
    net = network(context=4, absolute=absolute)
    x, context = torch.randn(6, T, FEATURES).double(), torch.randn(3, T if per_token else 1, 4).double()
    with torch.no_grad():
        outs, cache = steps(net, x, context)
    torch.testing.assert_close(outs, net(x, context), rtol=1e-12, atol=1e-12)
    assert cache.position == T
    grown, _ = steps(net, x, context)  # with gradients recorded
    torch.testing.assert_close(grown, outs, rtol=1e-12, atol=1e-12)


def test_gradients_through_steps_are_those_of_one_pass():
    net, x = network(), torch.randn(3, T, FEATURES).double()
    weight = torch.randn(3, T, OUT).double()
    grads = [
        torch.autograd.grad((out * weight).sum(), list(net.parameters()))
        for out in (steps(net, x)[0], net(x))
    ]
    torch.testing.assert_close(*grads)


def test_the_cache_is_written_in_place_and_held_by_nobody_else():
    net, x = network(), torch.randn(3, T, FEATURES).double()
    with torch.no_grad():
        first = net.cache(x)
        _, second = net.step(None, first)
        _, third = net.step(x[:, 0], second)
        assert third.keys[0].data_ptr() == first.keys[0].data_ptr()
        assert (first.position, third.position) == (0, 2)
        assert third.keys[1].shape == (3, 2, T, 4)
        again, _ = net.step(x[:, 0], second)  # the same step from the same value
        torch.testing.assert_close(again, net(x)[:, 1])
    assert not any("cache" in name or "keys" in name for name in vars(net))


def test_contexts_are_added_over_samples():
    net, x = network(context=4), torch.randn(6, T, FEATURES).double()
    context = torch.randn(2, 1, 4).double()
    torch.testing.assert_close(net(x, context), net(x, context.repeat(3, 1, 1)))
    assert (net(x, context) != net(x, context.flip(0))).any()


def test_a_context_per_token_reaches_its_token_and_those_after():
    net, x, context = network(context=4), torch.randn(1, T, FEATURES).double(), torch.randn(1, T, 4).double()
    change = (net(x, context) - net(x, context.index_fill(1, torch.tensor([2]), 0.0))).abs().amax((0, 2))
    assert torch.equal(change > 0, torch.tensor([False, False, True, True, True]))


def test_shorter_rows_are_read_as_the_start_of_longer_ones():
    net, x = network(), torch.randn(3, T, FEATURES).double()
    torch.testing.assert_close(net(x[:, :3]), net(x)[:, :3])


def test_rotary_attention_depends_on_distances_alone():
    net = network(depth=1)
    layer, h = net.layers[0], torch.randn(1, 2, 8).double()
    near = layer(h, net.rotation[:, :2])
    torch.testing.assert_close(layer(h, net.rotation[:, 3:5]), near)
    assert not torch.allclose(layer(h, net.rotation[:, [0, 3]]), near)


def test_absolute_positions_tell_equal_tokens_apart():
    x = torch.ones(1, T, FEATURES).double()
    net = network(absolute=True)
    before = net(x)[0]
    net.positions.data[3] += 1
    change = (net(x)[0] - before).abs().amax(1)
    assert torch.equal(change > 0, torch.arange(T) >= 3)


def test_it_starts_at_zero():
    net = CausalTransformer(T, FEATURES, OUT, width=8, depth=2, heads=2)
    assert not net(torch.randn(4, T, FEATURES)).any()
    assert not net.head.linear.bias.any()


def test_layer_norm_runs_in_float32_under_autocast():
    net, seen = network().float(), []
    for module in net.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    x = torch.randn(2, T, FEATURES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        steps(net, x)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert len(seen) == 5 * (1 + T)


def test_cost_is_as_stated():
    width, depth, tokens = 32, 3, 16
    net = network(width=width, depth=depth, tokens=tokens).requires_grad_(False)
    layers = sum(p.numel() for p in net.layers.parameters())
    assert 1.0 <= layers / (depth * 12 * width**2) < 1.1
    x = torch.randn(1, tokens, FEATURES).double()
    stated = depth * (24 * width**2 * tokens + 4 * tokens**2 * width) + 2 * tokens * width * (FEATURES + OUT)
    one_pass = flops(lambda: net(x))
    assert one_pass == pytest.approx(stated, rel=0.01)
    stated -= depth * 4 * width * (tokens**2 - tokens * (tokens + 1) // 2)
    cached = flops(lambda: steps(net, x))
    assert cached == pytest.approx(stated, rel=0.01)
    assert cached < one_pass


def flops(run):
    """Counted with plain attention: the counter does not know the fused one of the CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_no_rows_give_no_rows():
    net = network(context=4)
    assert net(torch.zeros(0, T, FEATURES).double(), torch.zeros(0, 1, 4).double()).shape == (0, T, OUT)


def test_more_tokens_than_declared_are_refused():
    net, x = network(), torch.randn(1, T + 1, FEATURES).double()
    with pytest.raises(ShapeError, match="At most 5 tokens can be read; got 6"):
        net(x)
    with pytest.raises(ShapeError, match="At most 5 tokens"):
        steps(net, x)


@pytest.mark.parametrize(("width", "heads"), [(9, 3), (8, 3), (4, 4)])
def test_an_odd_head_width_is_refused(width, heads):
    expected = re.escape(f"got width {width} and {heads} heads")
    with pytest.raises(ConfigurationError, match=f"`width` must be an even multiple of `heads`.*{expected}"):
        network(width=width, heads=heads)


def test_sizes_must_be_positive():
    with pytest.raises(ConfigurationError, match="`depth` must be a positive integer; got 0"):
        network(depth=0)


@pytest.mark.parametrize("assign", [False, True])
def test_a_network_built_on_meta_turns_positions_once_it_is_loaded(assign):
    net, x = network(absolute=True).float(), torch.randn(3, T, FEATURES)
    with torch.device("meta"):
        other = network(absolute=True).float()
    if not assign:
        other = other.to_empty(device="cpu")
        other.rotation.fill_(7.0)  # whatever the memory held
    other.load_state_dict(net.state_dict(), assign=assign)
    assert torch.equal(other(x), net(x))
    assert "rotation" not in net.state_dict()


def test_a_context_is_refused_by_a_network_without_one_and_asked_for_by_one_with_it():
    x, context = torch.randn(2, T, FEATURES).double(), torch.randn(2, 1, 4).double()
    with pytest.raises(
        CombinationError, match=r"`CausalTransformer` was built without a context; got .*\(2, 1, 4\)"
    ):
        network()(x, context)
    with pytest.raises(CombinationError, match="`CausalTransformer` was built for a context; got none"):
        network(context=4).cache(x)
