"""Glow and Real NVP on images: what they are made of, densities, how levels fit, and that they learn."""

import itertools
import math
import re

import pytest
import torch
from torch.distributions import Normal

from latentflows import Flow, StandardGaussian
from latentflows.bijections import ActNorm, AffineCoupling, Chain, LULinear, Split, Squeeze
from latentflows.core.errors import ConfigurationError
from latentflows.models.image_flows import glow, real_nvp_image, to_pixels
from latentflows.testing import randomize

SMALL = {"glow": {"num_steps": 2, "width": 4}, "real_nvp_image": {"num_blocks": 1, "width": 4}}
MAKE = {"glow": glow, "real_nvp_image": real_nvp_image}
both = pytest.mark.parametrize("name", MAKE)


def make(name, shape, num_levels=2, **settings):
    return MAKE[name](shape, num_levels=num_levels, **SMALL[name], **settings)


def smooth(count, shape):
    """Return pictures of bright disks on dark ground, with noise, in (0, 1)."""
    axis = torch.linspace(-1, 1, shape[-1])
    center = torch.rand(count, 2) - 0.5
    square = (axis[:, None] - center[:, :1, None]) ** 2 + (axis[None] - center[:, 1:, None]) ** 2
    disk = (0.4 - square).mul(20).sigmoid()[:, None].expand(count, *shape)
    return (0.8 * disk + 0.2 * torch.rand(count, *shape)).clamp(1e-3, 1 - 1e-3)


def bits_per_dim(flow, x):
    return (-flow().log_prob(x).mean() / (x[0].numel() * math.log(2)) + 8).item()


@pytest.mark.parametrize("context", [None, 2])
@both
def test_log_dets_are_those_of_the_jacobian_and_the_inverse_undoes(name, context):
    bijection = make(name, (1, 4, 4), context=context).double()
    randomize(bijection, 0.5)
    h = None if context is None else torch.randn(context).double()
    u = torch.randn(16).double()
    x, log_det = bijection(u, h)
    back, opposite = bijection.inverse(x, h)
    torch.testing.assert_close(back, u, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(opposite, -log_det)
    jacobian = torch.func.jacrev(lambda v: bijection(v, h)[0].flatten())(u)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    assert log_det.abs() > 1e-2


@pytest.mark.parametrize(
    ("name", "shape", "num_levels", "passes"),
    [
        ("glow", (1, 28, 28), 2, 5),
        ("glow", (3, 32, 32), 3, 8),
        ("glow", (2, 6, 2), 1, 2),
        ("real_nvp_image", (1, 28, 28), 3, 16),
        ("real_nvp_image", (3, 32, 32), 2, 10),
        ("real_nvp_image", (3, 5, 7), 1, 4),
    ],
)
def test_flat_noise_becomes_an_image(name, shape, num_levels, passes):
    bijection = make(name, shape, num_levels)
    assert bijection.passes == (passes, passes)
    flow = Flow(StandardGaussian(math.prod(shape)), bijection)
    x, log_p = flow().sample_and_log_prob((2,))
    assert x.shape == (2, *shape)
    torch.testing.assert_close(flow().log_prob(x), log_p, rtol=1e-4, atol=1e-2)


def test_glow_is_made_of_its_parts():
    kinds = [type(m) for m in make("glow", (3, 32, 32), 3).modules()]
    for kind, count in {AffineCoupling: 6, LULinear: 6, ActNorm: 6, Squeeze: 3, Split: 2}.items():
        assert kinds.count(kind) == count


def test_real_nvp_is_made_of_its_parts():
    bijection = make("real_nvp_image", (3, 32, 32), 3)
    kinds = [type(m) for m in bijection.modules()]
    for kind, count in {AffineCoupling: 16, ActNorm: 16, Squeeze: 2, Split: 2}.items():
        assert kinds.count(kind) == count
    assert all(m.network is None for m in bijection.modules() if isinstance(m, Split))


def test_checkerboards_and_halves_alternate():
    """In every run of couplings between squeezes, what stayed moves next."""
    bijection = make("real_nvp_image", (3, 8, 8), 2)
    masks = {}
    for part in (m.partition for m in bijection.modules() if isinstance(m, AffineCoupling)):
        stays = part.fixed if part.fixed is not None else torch.zeros(12).index_fill(0, part.stay, 1).bool()
        masks.setdefault(stays.shape, []).append(stays)
    assert [(tuple(shape), len(run)) for shape, run in masks.items()] == [
        ((6, 4, 4), 4),
        ((12,), 3),
        ((3, 8, 8), 3),
    ]
    for run in masks.values():
        assert all(torch.equal(before, ~after) for before, after in itertools.pairwise(run))


@both
def test_the_last_pixels_of_noise_are_those_of_the_finest_level(name):
    """Half of the noise is factored out at the finest level, and moves the image without the coarse networks."""
    bijection = make(name, (1, 8, 8)).double()
    u = torch.randn(64).double()
    moved = u.clone()
    moved[32:] += 1
    x, _ = bijection(u)
    assert not torch.equal(bijection(moved)[0], x)
    inner = next(m for m in bijection.modules() if isinstance(m, Split)).inner
    torch.testing.assert_close(inner(moved[:32])[0], inner(u[:32])[0])


@both
def test_a_batch_initializes_every_normalization(name):
    bijection = make(name, (1, 8, 8))
    x = smooth(64, (1, 8, 8))
    u = bijection.initialize(x)
    assert all(m.initialized for m in bijection.modules() if isinstance(m, ActNorm))
    assert u.shape == (64, 64)
    assert u.std().item() == pytest.approx(1, abs=0.1)
    flow = Flow(StandardGaussian(64), bijection)
    assert flow().log_prob(x).isfinite().all()
    assert flow().sample((3,)).isfinite().all()


@both
def test_the_context_reaches_every_level(name):
    bijection = make(name, (1, 8, 8), context=3).double()
    randomize(bijection, 0.3)
    u, context = torch.randn(64).double(), torch.randn(2, 3).double()
    first, second = bijection(u.expand(2, 64), context)[0]
    assert not torch.isclose(first, second).any()
    inner = next(m for m in bijection.modules() if isinstance(m, Split)).inner
    assert inner.context_shape == (3,)


@both
def test_likelihood_training_beats_independent_pixels(name):
    torch.manual_seed(0)
    x = smooth(256, (1, 8, 8))
    settings = {"num_steps": 3, "width": 16} if name == "glow" else {"num_blocks": 1, "width": 16}
    bijection = Chain([MAKE[name]((1, 8, 8), num_levels=2, **settings), to_pixels((1, 8, 8))])
    bijection.initialize(x)
    flow = Flow(StandardGaussian(64), bijection)
    start = bits_per_dim(flow, x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (-flow().log_prob(x[torch.randint(256, (64,))]).mean() / 64).backward()
        optimizer.step()
    unseen = smooth(256, (1, 8, 8))
    pixels = torch.logit(0.05 + 0.9 * unseen)
    slope = torch.log(0.9 / ((0.05 + 0.9 * unseen) * (0.95 - 0.9 * unseen)))
    independent = Normal(pixels.mean(0), pixels.std(0)).log_prob(pixels) + slope
    bits = bits_per_dim(flow, unseen)
    assert bits < start - 0.5
    assert bits < 8 - independent.mean().item() / math.log(2) - 0.3


@pytest.mark.parametrize(
    ("name", "shape", "num_levels", "times", "fit", "most", "multiple"),
    [
        ("glow", (1, 28, 28), 3, 3, 2, 2, 8),
        ("real_nvp_image", (1, 28, 28), 4, 3, 2, 3, 8),
        ("real_nvp_image", (3, 32, 24), 5, 4, 3, 4, 16),
    ],
)
def test_levels_must_fit(name, shape, num_levels, times, fit, most, multiple):
    message = (
        f"`num_levels` {num_levels} halves images {times} times, but {shape} can be halved {fit} times: at most "
        f"{most} levels fit. Use fewer, or pad the images to multiples of {multiple}."
    )
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make(name, shape, num_levels)


def test_where_no_level_fits_the_error_says_what_would():
    with pytest.raises(ConfigurationError, match=r"no level fits\. Pad the images to multiples of 2\."):
        make("glow", (1, 5, 4), 1)


def test_the_last_checkerboards_need_two_pixels():
    message = r"can be halved 1 times with 2 pixels left: at most 2 levels fit\. Use fewer, or pad .* multiples of 4"
    with pytest.raises(ConfigurationError, match=message):
        make("real_nvp_image", (1, 4, 4), 3)
    with pytest.raises(
        ConfigurationError, match=r"can be halved 1 times: at most 2 levels fit\. Use .* to multiples of 8"
    ):
        make("real_nvp_image", (1, 4, 4), 4)
    for shape, num_levels in (((1, 4, 4), 2), ((1, 4, 8), 3)):
        assert make("real_nvp_image", shape, num_levels).event_shape == shape
    with pytest.raises(
        ConfigurationError, match=r"A checkerboard needs two pixels or more; got images \(3, 1, 1\)"
    ):
        make("real_nvp_image", (3, 1, 1), 1)


@both
def test_an_image_has_three_axes(name):
    with pytest.raises(ConfigurationError, match=r"`event_shape` must be an image \(C, H, W\); got \(8, 8\)"):
        make(name, (8, 8))


def test_pixels_are_logit_normal():
    """log p(x) = log N(logit y) + log(0.9 / (y (1 - y))) for y = 0.05 + 0.9 x, in closed form."""
    x = torch.rand(5, 1, 2, 3).double()
    flow = Flow(StandardGaussian((1, 2, 3)), to_pixels((1, 2, 3))).double()
    y = 0.05 + 0.9 * x
    expected = Normal(0.0, 1.0).log_prob(torch.logit(y)) + torch.log(0.9 / (y * (1 - y)))
    torch.testing.assert_close(flow().log_prob(x), expected.sum((1, 2, 3)))


@pytest.mark.parametrize("margin", [0, 0.5, -1, math.nan])
def test_the_margin_leaves_room(margin):
    message = f"`margin` must lie between 0 and 0.5, both excluded; got {margin}"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        to_pixels(3, margin=margin)
