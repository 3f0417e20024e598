"""Adapters in less usual places: Pyro's transforms, half-precision contexts, inference mode."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import ComposeTransform, ExpTransform, Normal, StackTransform, TanhTransform
from torch.distributions.transforms import CumulativeDistributionTransform

from latentflows import Flow, Inverse, StandardGaussian
from latentflows.bijections import FromNormflows, FromZuko
from latentflows.core.errors import CombinationError
from latentflows.models import presets
from tests.peers import peer

zuko = peer("zuko")
nf = peer("normflows")
pyro = peer("pyro.distributions.transforms")


def log_det_of_the_jacobian(bijection, x):
    jacobians = [torch.autograd.functional.jacobian(lambda row: bijection.inverse(row)[0], row) for row in x]
    return torch.linalg.slogdet(torch.stack(jacobians)).logabsdet


@pytest.mark.parametrize("name", ["planar", "radial", "sylvester", "block_autoregressive"])
def test_a_transform_of_pyro_without_an_inverse_has_none(name):
    bijection = FromZuko(getattr(pyro, name)(3), 3).double()
    assert bijection.passes == (None, 0)
    x = torch.randn(4, 3).double()
    torch.testing.assert_close(bijection.inverse(x)[1], log_det_of_the_jacobian(bijection, x))


@pytest.mark.parametrize("name", ["planar", "affine_autoregressive", "spline"])
def test_what_pyro_keeps_of_a_call_neither_stops_a_copy_nor_outlives_a_step(name):
    bijection = FromZuko(getattr(pyro, name)(3), 3)
    x = torch.randn(1, 4, 3)  # with both leading axes, so that it reaches Pyro as the same object each time
    before = bijection.inverse(x)[0]
    copied = copy.deepcopy(bijection)
    torch.testing.assert_close(copied.inverse(x)[0], before)
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(0.5)
    assert not torch.equal(bijection.inverse(x)[0], before)
    assert not torch.equal(bijection.inverse(x)[1], copied.inverse(x)[1])


def test_the_inverse_of_a_module_would_not_learn_and_is_refused():
    transform = pyro.affine_autoregressive(3)
    with pytest.raises(
        CombinationError, match=r"its parameters would not be trained. Adapt the transform itself"
    ):
        FromZuko(transform.inv, 3)
    with pytest.raises(CombinationError, match="its parameters would not be trained"):
        FromZuko(ComposeTransform([ExpTransform().inv, transform.inv]), 3)
    turned = Inverse(FromZuko(transform, 3))
    assert any(parameter.requires_grad for parameter in turned.parameters())


def test_transforms_of_torch_whose_log_derivative_has_axes_of_its_own():
    bijection = FromZuko(StackTransform([ExpTransform().inv, TanhTransform().inv], dim=-1), 2)
    x = torch.rand(4, 2).double() * 0.8 + 0.1
    torch.testing.assert_close(bijection.inverse(x)[1], log_det_of_the_jacobian(bijection, x))


def test_a_transform_onto_an_interval_is_tried_on_points_of_it():
    bijection = FromZuko(CumulativeDistributionTransform(Normal(0.0, 1.0)), 2)
    x = torch.randn(4, 2)
    torch.testing.assert_close(bijection(bijection.inverse(x)[0])[0], x, rtol=1e-3, atol=1e-3)


ADAPTED = {
    "zuko": lambda: FromZuko(zuko.flows.GF(4, 6).transform, 4, context_shape=6),
    "normflows": lambda: FromNormflows(
        nf.flows.MaskedAffineAutoregressive(4, 8, context_features=6, num_blocks=1), 4, context_shape=6
    ),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_context_in_half_precision_is_taken(name):
    flow = Flow(StandardGaussian(4), ADAPTED[name](), embed=nn.Linear(9, 6), context_shape=9)
    context, x = torch.randn(5, 9), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = flow(context).log_prob(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, flow(context).log_prob(x), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("name", ["cnf", "naf", "unaf", "sospf", "bpf"])
def test_flows_of_zuko_run_in_inference_mode(name):
    flow = Flow(StandardGaussian(2), getattr(presets, name)(2)).eval()
    x = torch.randn(3, 2)
    with torch.no_grad():
        expected = flow().log_prob(x)
    with torch.inference_mode():
        torch.testing.assert_close(flow().log_prob(x), expected)
        assert flow().sample((2,)).shape == (2, 2)
