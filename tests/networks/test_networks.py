"""What every network does: shapes, contexts broadcast over samples, zero starts, refusals."""

import re

import pytest
import torch

from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.networks import (
    MLP,
    CouplingConvolution,
    GatedConvolutionDecoder,
    GatedConvolutionEncoder,
    GatedMLP,
    LastLayer,
    MaskedMLP,
    ResidualConvolution,
    ResidualMLP,
    WaveNet,
)
from latentflows.networks.base import activation, add_over_samples

DENSE = {"mlp": MLP, "gated_mlp": GatedMLP}
dense = pytest.mark.parametrize("kind", DENSE.values(), ids=DENSE)


@dense
@pytest.mark.parametrize("in_shape", [4, (2, 3)])
@pytest.mark.parametrize("out_shape", [5, (2, 1, 3)])
@pytest.mark.parametrize("depth", [1, 3])
def test_dense_networks_flatten_what_comes_in_and_shape_what_goes_out(kind, in_shape, out_shape, depth):
    network = kind(in_shape, out_shape, width=6, depth=depth)
    shape = (in_shape,) if isinstance(in_shape, int) else in_shape
    out = network(torch.randn(7, *shape))
    assert out.shape == (7, *network.out_shape)
    assert network.out_shape == ((out_shape,) if isinstance(out_shape, int) else out_shape)


@dense
def test_without_an_output_shape_the_features_come_out(kind):
    network = kind(4, None, width=6, depth=2)
    assert network.out_shape == (6,)
    assert network(torch.randn(3, 4)).shape == (3, 6)
    assert network.last.linear is None


@dense
def test_depth_counts_hidden_layers(kind):
    layers = [m for m in kind(4, 5, width=6, depth=3).modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 3 + 1


@dense
def test_context_over_samples_equals_explicit_repetition(kind):
    network = kind(4, 5, width=6, depth=2, context=3)
    x, context = torch.randn(8, 4), torch.randn(2, 3)
    repeated = context.repeat(4, 1)
    torch.testing.assert_close(network(x, context), network(x, repeated))
    assert (network(x, context) != network(x, context.flip(0))).any()


def test_masked_context_over_samples_equals_explicit_repetition():
    network = MaskedMLP(4, 2, width=6, depth=2, context=3, zero_last=False)
    x, context = torch.randn(8, 4), torch.randn(2, 3)
    torch.testing.assert_close(network(x, context), network(x, context.repeat(4, 1)))
    assert (network(x, context) != network(x, context.flip(0))).any()


def test_add_over_samples_adds_each_row_to_its_own_points():
    features = torch.zeros(4, 1)
    out = add_over_samples(features, torch.tensor([[1.0], [2.0]]))
    assert out.flatten().tolist() == [1.0, 2.0, 1.0, 2.0]
    assert add_over_samples(features, None) is features


@pytest.mark.parametrize(
    "network",
    [
        MLP(4, 5, width=6, depth=2, zero_last=True),
        GatedMLP(4, 5, width=6, depth=2, zero_last=True),
        MaskedMLP(4, 2, width=6, depth=2),
    ],
    ids=["mlp", "gated_mlp", "masked_mlp"],
)
def test_zero_last_starts_at_zero_and_can_leave_it(network):
    out = network(torch.randn(3, 4))
    assert not out.any()
    out.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("name", ["relu", "elu", "silu", "tanh", "gelu"])
def test_activations_by_name(name):
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(activation(name)(x), getattr(torch.nn.functional, name)(x))


def test_an_unknown_activation_is_refused_with_the_names_there_are():
    with pytest.raises(
        ConfigurationError, match=r"`activation` must be one of \['elu', .*'tanh'\]; got 'swish'"
    ):
        MLP(4, 5, width=6, depth=2, activation_name="swish")


@pytest.mark.parametrize("bad", [0, -3, 2.5])
@pytest.mark.parametrize("name", ["width", "depth"])
@dense
def test_sizes_are_positive_integers(kind, name, bad):
    sizes = {"width": 6, "depth": 2} | {name: bad}
    with pytest.raises(
        ConfigurationError, match=re.escape(f"`{name}` must be a positive integer; got {bad}.")
    ):
        kind(4, 5, **sizes)


def test_output_shapes_are_positive():
    with pytest.raises(ShapeError, match="`out_shape` must hold positive integers"):
        LastLayer(4, (2, 0))


IMAGES = [(1, 8, 8), (1, 28, 28), (2, 27, 31), (3, 32, 32), (1, 4, 5)]


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_convolutions_take_images_of_any_size(image):
    encoder = GatedConvolutionEncoder(image, (2, 3), width=4)
    decoder = GatedConvolutionDecoder(6, image, width=4)
    assert encoder(torch.randn(2, *image)).shape == (2, *encoder.out_shape) == (2, 2, 3)
    assert decoder(torch.randn(2, 6)).shape == (2, *decoder.out_shape) == (2, *image)


def test_convolutional_encoder_without_output_shape_gives_features():
    encoder = GatedConvolutionEncoder((1, 8, 8), None, width=4)
    assert encoder(torch.randn(2, 1, 8, 8)).shape == (2, *encoder.out_shape) == (2, 32)


def test_every_pixel_counts_in_the_encoder_and_every_latent_in_the_decoder():
    x = torch.randn(1, 2, 9, 7, requires_grad=True)
    GatedConvolutionEncoder((2, 9, 7), 3, width=4)(x).square().sum().backward()
    assert (x.grad != 0).all()
    z = torch.randn(1, 2, 3, requires_grad=True)
    image = GatedConvolutionDecoder((2, 3), (2, 9, 7), width=4)(z)
    assert image.shape == (1, 2, 9, 7)
    image.square().sum().backward()
    assert (z.grad != 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedConvolutionEncoder(784, 5, width=4), "`in_shape` must be an image (C, H, W)"),
        (lambda: GatedConvolutionEncoder((1, 3, 8), 5, width=4), "at least 4 x 4 pixels"),
        (lambda: GatedConvolutionDecoder(5, (28, 28), width=4), "`out_shape` must be an image (C, H, W)"),
        (lambda: GatedConvolutionEncoder((1, 8, 8), 5, width=0), "`width` must be a positive integer; got 0"),
        (lambda: GatedConvolutionEncoder((1, 8, 8), 5, width=4, context=2), "takes no context; use kind mlp"),
        (lambda: GatedConvolutionDecoder(5, (1, 8, 8), width=4, context=2), "takes no context; use kind mlp"),
    ],
)
def test_convolutions_refuse_what_they_cannot_do(make, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


def test_gated_layers_multiply_by_a_sigmoid():
    network = GatedMLP(4, None, width=3, depth=1)
    x = torch.randn(5, 4)
    value, gate = network.first.linear(x).chunk(2, -1)
    torch.testing.assert_close(network(x), value * gate.sigmoid())


VECTOR, MAP = {"in_shape": 4, "out_shape": 5}, {"in_shape": (2, 4), "out_shape": (3, 4)}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (MLP, VECTOR | {"depth": 1}),
        (GatedMLP, VECTOR | {"depth": 1}),
        (ResidualMLP, VECTOR | {"num_blocks": 1}),
        (CouplingConvolution, MAP),
        (ResidualConvolution, MAP | {"num_blocks": 1}),
        (WaveNet, MAP | {"depth": 1}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_context_is_refused_without_a_place_for_it_and_asked_for_with_one(kind, sizes):
    without, heard = kind(**sizes, width=3), kind(**sizes, width=3, context=2)
    x, context = torch.randn(4, *without.in_shape), torch.randn(2, 2)
    assert without(x).shape == heard(x, context).shape
    with pytest.raises(
        CombinationError, match=rf"`{kind.__name__}` was built without a context; got .*\(2, 2\)"
    ):
        without(x, context)
    with pytest.raises(CombinationError, match=rf"`{kind.__name__}` was built for a context; got none"):
        heard(x)
