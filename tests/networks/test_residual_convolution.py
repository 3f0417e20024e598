"""Residual convolutions: shapes for any picture, a start that passes its input, no look at neighbors in the batch."""

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import (
    ResidualConvolutionDecoder,
    ResidualConvolutionEncoder,
    ResidualMapDecoder,
    ResidualMapEncoder,
)
from latentflows.networks.residual_convolution import ResidualBlock, _sizes


@pytest.mark.parametrize("image", [(1, 4, 4), (1, 28, 28), (3, 9, 7), (2, 32, 16)])
def test_any_picture_goes_in_and_comes_out(image):
    encoder = ResidualConvolutionEncoder(image, (2, 3), width=4, num_blocks=1)
    decoder = ResidualConvolutionDecoder(6, image, width=4, num_blocks=1)
    z = encoder(torch.randn(5, *image))
    assert z.shape == (5, 2, 3)
    assert decoder(z.flatten(1)).shape == (5, *image)


def test_a_picture_is_halved_down_to_four_pixels():
    assert _sizes((1, 28, 28), "x") == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert _sizes((1, 4, 100), "x") == [(4, 100)]
    assert len(_sizes((1, 1024, 1024), "x")) == 5


def test_a_block_starts_as_the_identity_and_learns():
    block, x = ResidualBlock(3), torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.second.weight.grad.abs().sum() > 0


def test_an_output_depends_on_every_pixel_of_its_own_picture_alone():
    torch.manual_seed(0)
    encoder = ResidualConvolutionEncoder((1, 8, 8), 3, width=4, num_blocks=1)
    torch.nn.init.normal_(encoder.last.linear.weight)
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(encoder(x)[0].sum(), x)
    assert (gradient[0] != 0).all()
    assert (gradient[1] == 0).all()


def test_the_number_of_features_is_that_of_the_last_hidden_layer():
    encoder = ResidualConvolutionEncoder((1, 8, 8), None, width=4)
    assert encoder.out_shape == (32,)
    assert encoder(torch.randn(2, 1, 8, 8)).shape == (2, 32)


@pytest.mark.parametrize("shape", [784, (28, 28), (1, 3, 8)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ConfigurationError, match="must be an image"):
        ResidualConvolutionEncoder(shape, 5, width=4)
    with pytest.raises(ConfigurationError, match="must be an image"):
        ResidualConvolutionDecoder(5, shape, width=4)


@pytest.mark.parametrize("key", ["width", "num_blocks"])
def test_sizes_must_be_positive(key):
    with pytest.raises(ConfigurationError, match=key):
        ResidualConvolutionEncoder((1, 8, 8), 5, **{"width": 4, key: 0})


@pytest.mark.parametrize(
    ("image", "small"),
    [((1, 8, 8), (3, 8, 8)), ((3, 28, 28), (4, 7, 7)), ((2, 9, 7), (3, 3, 2)), ((1, 5, 5), (2, 1, 1))],
)
def test_pictures_and_maps_go_into_each_other(image, small):
    encoder, decoder = (
        ResidualMapEncoder(image, small, width=4, num_blocks=1),
        ResidualMapDecoder(small, image, width=4, num_blocks=1),
    )
    x = torch.randn(5, *image)
    z = encoder(x)
    assert z.shape == (5, *small)
    assert decoder(z).shape == x.shape
    torch.testing.assert_close(encoder(x[:1]), z[:1], rtol=1e-4, atol=1e-5)  # no neighbors in the batch


def test_a_second_map_joins_at_its_place():
    encoder = ResidualMapEncoder((1, 8, 8), (3, 4, 4), width=4, num_blocks=1, beside=2)
    x, second = torch.randn(2, 1, 8, 8), torch.randn(2, 2, 4, 4)
    other = second.clone()
    other[0, :, 1, 2] += 1
    difference = (encoder(x, other) - encoder(x, second)).abs().sum(1)
    assert (difference[0] > 0).nonzero().tolist() == [[1, 2]]  # its blocks start as the identity
    assert (difference[1] == 0).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 8, 8), (3, 3, 3)), r"halved some times, rounded up: one of \[\(8, 8\), \(4, 4\)"),
        (((1, 8, 8), (3, 4, 2)), "halved some times"),
        (((64,), (3, 4, 4)), "Both must be maps"),
    ],
)
def test_maps_of_other_sizes_are_refused(shapes, message):
    with pytest.raises(ConfigurationError, match=message):
        ResidualMapEncoder(*shapes, width=4)
    with pytest.raises(ConfigurationError, match=message):
        ResidualMapDecoder(shapes[1], shapes[0], width=4)
