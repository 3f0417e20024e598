"""Directions that take many steps compile into one graph too; the suite of properties compiles the cheap ones."""

import warnings

import pytest
import torch

from tests.bijections.cases import FEATURES, build

SLOW = {
    "iaf_incremental": "inverse",
    "iaf_jacobi": "inverse",
    "maf_spline": "forward",
    "transformer_reversed": "forward",
    "transformer_jacobi": "forward",
    "height": "forward",
}


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no_gradients"])
@pytest.mark.parametrize("name", SLOW)
def test_the_slow_direction_is_one_graph(name, gradients):
    bijection = build(name, True)
    direction = getattr(bijection, SLOW[name])
    value, context = torch.randn(2, 3, *bijection.event_shape).double(), torch.randn(3, FEATURES).double()
    torch.compiler.reset()
    with warnings.catch_warnings(), torch.set_grad_enabled(gradients):
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(direction, fullgraph=True, backend="eager")(value, context)
    for got, expected in zip(compiled, direction(value, context), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
