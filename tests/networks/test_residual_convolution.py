"""Residual convolutions: shapes for any picture, a start that passes its input, no look at neighbors in the batch."""

import pytest
import torch

from latentflows.core.errors import ConfigurationError
from latentflows.networks import ResidualConvolutionDecoder, ResidualConvolutionEncoder
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
