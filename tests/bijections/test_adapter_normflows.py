"""Layers of normflows behave as ours: direction, log-determinant, passes, shapes, refusals."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from latentflows import Chain, Flow, StandardGaussian
from latentflows.bijections import FromNormflows
from latentflows.core.errors import CombinationError, MissingDirectionError
from tests.bijections.test_adapters import ROWS, close, jacobian_log_det
from tests.peers import peer

nf = peer("normflows")
generator = np.random.default_rng(0)


def zero():
    """Return a network that is zero at the start."""
    made = nn.Linear(4, 4)
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def hamiltonian(step):
    """Return a layer that differentiates inside; with large steps it rejects every one."""
    target = nf.distributions.DiagGaussian(4)
    return nf.flows.HamiltonianMonteCarlo(target, 3, torch.full((4,), step).log(), torch.zeros(4))


class OwnGenerator(nn.Module):
    """A layer that draws from a generator of its own."""

    def forward(self, z):
        return z + generator.normal(), 0.0

    inverse = forward


class Differentiates(nn.Module):
    """A deterministic layer that differentiates inside, with gradients as it finds them."""

    def forward(self, z):
        z = z.detach().requires_grad_()
        return z + torch.autograd.grad((z**2).sum(), z)[0], 4 * math.log(3.0)

    inverse = forward


def layers(count=4):
    """Return layers of normflows with parameters away from their start, by name."""
    torch.manual_seed(0)
    half = count // 2
    mask = torch.tensor([1.0, 0.0] * half)
    made = {
        "coupling": nf.flows.AffineCouplingBlock(nf.nets.MLP([half, 8, count])),
        "masked": nf.flows.MaskedAffineFlow(
            mask, nf.nets.MLP([count, 8, count]), nf.nets.MLP([count, 8, count])
        ),
        "permute": nf.flows.Permute(count),
        "lu": nf.flows.LULinearPermute(count),
        "actnorm": nf.flows.ActNorm(count),
        "spline": nf.flows.CoupledRationalQuadraticSpline(count, 1, 8),
        "autoregressive": nf.flows.MaskedAffineAutoregressive(count, 8),
    }
    for layer in made.values():
        for parameter in layer.parameters():
            parameter.data.normal_(0, 0.3)
    made["actnorm"].data_dep_init_done.fill_(1.0)
    return made


NORMFLOWS = {
    "coupling": (1, 1),
    "masked": (2, 2),
    "permute": (0, 0),
    "lu": (0, 0),
    "actnorm": (0, 0),
    "spline": (1, 1),
    "autoregressive": (1, 4),
}


@pytest.mark.parametrize("name", NORMFLOWS)
def test_a_normflows_layer_is_a_bijection(name):
    layer = layers()[name].double()
    bijection = FromNormflows(layer, 4)
    assert bijection.passes == NORMFLOWS[name]
    u = torch.randn(2, ROWS, 4).double()
    x, log_det = bijection(u)
    expected, expected_log_det = layer(u.flatten(0, 1))
    close(x.flatten(0, 1), expected)
    close(log_det.flatten(), torch.as_tensor(expected_log_det).double().expand(2 * ROWS))
    assert log_det.shape == (2, ROWS)
    assert log_det.dtype == torch.float64
    back, opposite = bijection.inverse(x)
    close(back, u, 1e-7)
    close(opposite, -log_det, 1e-7)
    close(opposite[1, 3], jacobian_log_det(bijection, x[1, 3].detach(), None), 1e-7)


def test_a_normflows_layer_takes_a_context():
    layer = nf.flows.MaskedAffineAutoregressive(4, 8, context_features=3).double()
    bijection = FromNormflows(layer, 4, context_shape=3)
    u, h = torch.randn(2, ROWS, 4).double(), torch.randn(ROWS, 3).double()
    x, log_det = bijection(u, h)
    for k in range(2):
        expected, expected_log_det = layer(u[k], context=h)
        close(x[k], expected)
        close(log_det[k], expected_log_det)


def test_a_direction_that_normflows_lacks_is_missing():
    bijection = FromNormflows(nf.flows.Planar((4,)), 4)
    assert bijection.passes == (0, None)
    assert bijection(torch.zeros(3, 4))[1].shape == (3,)
    with pytest.raises(MissingDirectionError, match="`FromNormflows` has no inverse"):
        bijection.inverse(torch.zeros(3, 4))


def test_a_normflows_layer_may_change_the_shape_and_return_a_number():
    bijection = FromNormflows(nf.flows.Squeeze(), (1, 4, 4))
    assert bijection.base_shape == (4, 2, 2)
    u = torch.randn(2, 4, 2, 2)
    x, log_det = bijection(u)
    assert log_det.shape == (2,)
    assert torch.equal(bijection.inverse(x)[0], u)


def test_building_does_not_set_a_normalization_and_initialize_does():
    layer = nf.flows.ActNorm(4)
    bijection = FromNormflows(layer, 4)
    assert not layer.data_dep_init_done
    bijection.initialize(3 * torch.randn(100, 4) + 1)
    assert layer.data_dep_init_done
    close(layer.t.flatten(), torch.ones(4), 1)
    assert (layer.s > 0.8).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nf.flows.Residual(
                nf.nets.LipschitzMLP([4, 8, 4])
            ),  # two parameters in float64, all others not
            "`Residual` draws random numbers in eval mode",
        ),
        (
            lambda: nf.flows.MetropolisHastings(
                nf.distributions.DiagGaussian(4), nf.distributions.DiagGaussianProposal((4,), 0.1), 2
            ),
            "`MetropolisHastings` draws random numbers in eval mode",
        ),
        (lambda: nf.flows.Residual(zero()), "`Residual` draws random numbers in eval mode"),
        (
            lambda: nf.flows.Residual(zero(), exact_trace=True),  # numpy gives it the number of terms
            "`Residual` draws random numbers in eval mode",
        ),
        (lambda: hamiltonian(1.0), "`HamiltonianMonteCarlo` draws random numbers in eval mode"),
        (lambda: hamiltonian(100.0), "`HamiltonianMonteCarlo` draws random numbers in eval mode"),
        (
            lambda: OwnGenerator(),
            "`OwnGenerator` draws random numbers in eval mode",
        ),
        (lambda: Differentiates(), "and needs no gradients to be on; it says: element 0 of tensors"),
        (lambda: nn.Linear(4, 4), "`Linear` cannot be applied to events (4,) with no context"),
    ],
    ids=[
        "residual",
        "metropolis",
        "residual that is zero",
        "residual with all terms but a random number",
        "hamiltonian",
        "hamiltonian that stays",
        "generator",
        "gradients",
        "linear",
    ],
)
def test_what_is_no_deterministic_layer_is_refused(make, message):
    with pytest.raises(CombinationError, match=re.escape(message)):
        FromNormflows(make(), 4)


def test_a_layer_is_tried_in_the_type_of_its_largest_parameter():
    """In two dimensions a residual flow computes its log-determinant; its smallest parameters are in float64."""
    layer = nf.flows.Residual(nf.nets.LipschitzMLP([2, 8, 2], init_zeros=False)).eval()
    bijection = FromNormflows(layer, 2).eval()
    x = torch.randn(ROWS, 2)
    u, log_det = bijection.inverse(x)
    close(log_det[3], jacobian_log_det(bijection, x[3], None), 1e-5)
    close(bijection(u)[0], x, 1e-3)


def test_a_layer_may_draw_random_numbers_the_first_time():
    class Lazy(nn.Module):
        shift = None

        def forward(self, z):
            self.shift = torch.randn(4) if self.shift is None else self.shift
            return z + self.shift, 0.0

        def inverse(self, z):
            self.shift = torch.randn(4) if self.shift is None else self.shift
            return z - self.shift, 0.0

    assert FromNormflows(Lazy(), 4).passes == (0, 0)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nf.flows.GlowBlock(4, 8, use_lu=False), (4, 4, 4)),
        (lambda: nf.flows.BatchNorm(), 4),
        (lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8, dropout_probability=0.5), 4),
        (lambda: nf.flows.CircularCoupledRationalQuadraticSpline(4, 1, 8, ind_circ=[0, 1]), 4),
        (lambda: nf.flows.AutoregressiveRationalQuadraticSpline(4, 1, 8), 4),
        (lambda: nf.flows.InvertibleAffine(4, use_lu=False), 4),
        (lambda: nf.flows.Radial((4,)), 4),
    ],
    ids=["glow", "batch norm", "dropout", "circular", "autoregressive", "affine", "radial"],
)
def test_deterministic_layers_are_taken_as_they_start(make, shape):
    assert FromNormflows(make(), shape).passes[0] is not None


def test_a_whole_model_is_a_chain_of_its_layers():
    made = layers()
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4, trainable=False), [*made.values()]).double()
    chain = Chain([FromNormflows(layer, 4) for layer in model.flows])
    assert chain.passes == (5, 8)
    x = torch.randn(6, 4).double()
    ours = Flow(StandardGaussian(4), chain).double()().log_prob(x)
    close(ours, model.log_prob(x), 1e-6)  # normflows adds log-determinants up in float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [nf.flows.Permute(4)]),
        lambda: nf.flows.Merge(),
    ],
    ids=["model", "merge"],
)
def test_what_is_no_layer_is_refused(make):
    message = r"`FromNormflows` needs a layer that returns a tensor and its log-determinant; got \w+"
    with pytest.raises(CombinationError, match=message):
        FromNormflows(make(), 4)
