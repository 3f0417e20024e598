"""The LU layer gives what other libraries give at equal weights; they are no dependency, so most runs skip this."""

import math

import pytest
import torch

from latentflows.bijections import Chain, Inverse, LULinear, OrthogonalLinear, Permutation
from tests.bijections.cases import randomize

DIM = 5


def unbounded(raw: torch.Tensor) -> torch.Tensor:
    """Return the log-scale that a raw diagonal stands for."""
    return raw / (1 + raw.abs() / math.log(1000))


def lu() -> LULinear:
    layer = LULinear(DIM).double()
    randomize(layer, 1.0)
    return layer


def check(layer, value, theirs, their_log_det):
    x, log_det = layer(value)
    torch.testing.assert_close(x, theirs)
    torch.testing.assert_close(log_det, their_log_det)


def test_lu_agrees_with_nflows():
    module = pytest.importorskip("nflows.transforms.lu")
    ours, theirs = lu(), module.LULinear(DIM).double()
    raw = ours.source.raw.detach().view(DIM, DIM)
    theirs.lower_entries.data = raw[theirs.lower_indices[0], theirs.lower_indices[1]]
    theirs.upper_entries.data = raw[theirs.upper_indices[0], theirs.upper_indices[1]]
    scale = unbounded(raw.diag()).exp()
    theirs.unconstrained_upper_diag.data = torch.log(torch.expm1(scale - theirs.eps))
    value = torch.randn(7, DIM).double()
    x, log_det = theirs(value)
    check(ours, value, x, log_det)
    check(Inverse(ours), x, value, -log_det)  # their own inverse needs a function that PyTorch has removed


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_lu_agrees_with_zuko(direction):
    module = pytest.importorskip("zuko.transforms")
    ours = lu()
    raw = ours.source.raw.detach().view(DIM, DIM)
    order = torch.tensor([3, 1, 4, 0, 2])
    ours.order.copy_(order)
    scale = unbounded(raw.diag()).exp()  # theirs is the diagonal of L, ours that of U
    lower_upper = raw.tril(-1) * scale + scale.diag() + raw.triu(1) / scale[:, None]
    linear, permute = module.LULinearTransform(lower_upper), module.PermutationTransform(order)
    value = torch.randn(7, DIM).double()
    if direction == "forward":
        x, log_det = linear.call_and_ladj(value)
        check(ours, value, permute(x), log_det)
    else:
        u, log_det = linear.inv.call_and_ladj(permute.inv(value))
        check(Inverse(ours), value, u, log_det)


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated:UserWarning")
def test_invertible_convolution_agrees_with_normflows():
    module = pytest.importorskip("normflows.flows.mixing")
    theirs = module.Invertible1x1Conv(DIM, use_lu=True).double()
    with torch.no_grad():
        for parameter in (theirs.L, theirs.U, theirs.log_S):
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = LULinear((DIM, 2, 3)).double()
    log_scale = theirs.log_S.detach()
    raw = log_scale / (1 - log_scale.abs() / math.log(1000))
    with torch.no_grad():
        ours.source.raw.copy_((theirs.L.tril(-1) + theirs.U.triu(1) + raw.diag()).flatten())
        ours.sign.copy_(theirs.sign_S)
        ours.order.copy_(theirs.P.argmax(1))
    value = torch.randn(4, DIM, 2, 3).double()
    x, log_det = theirs.inverse(value)  # their density direction multiplies by W
    check(ours, value, x, log_det.expand(4))


def test_reflections_agree_with_nflows():
    module = pytest.importorskip("nflows.transforms.orthogonal")
    ours, theirs = (
        OrthogonalLinear(DIM, num_reflections=4).double(),
        module.HouseholderSequence(DIM, 4).double(),
    )
    randomize(ours, 1.0)
    theirs.q_vectors.data = (
        ours.source.raw.detach().view(DIM, 4).T.flip(0)
    )  # theirs applies the first one first
    value = torch.randn(7, DIM).double()
    check(ours, value, *theirs(value))


def test_a_permutation_and_lu_are_the_linear_layer_of_neural_spline_flows():
    module = pytest.importorskip("nflows.transforms")
    order = torch.tensor([3, 1, 4, 0, 2])
    theirs = module.CompositeTransform([module.Permutation(order), module.LULinear(DIM, identity_init=True)])
    ours, value = Chain([Permutation(DIM, order), LULinear(DIM)]), torch.randn(7, DIM)
    check(ours, value, *theirs(value))
