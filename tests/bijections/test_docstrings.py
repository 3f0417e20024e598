"""Every public bijection and transform says its formula, what it costs, and where it comes from."""

import inspect

import pytest

from latentflows import bijections, transforms
from latentflows.bijections import Bijection
from latentflows.transforms import Transform

PUBLIC = [
    value
    for module, kind in ((bijections, Bijection), (transforms, Transform))
    for value in (getattr(module, name) for name in module.__all__)
    if inspect.isclass(value) and issubclass(value, kind) and not inspect.isabstract(value)
]
OF_NO_PAPER = {"Chain", "FromNormflows", "FromZuko", "Inverse", "Permutation", "Rescale", "Reshape"}


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_formula_cost_and_source_are_stated(kind):
    text = inspect.getdoc(kind)
    assert "Cost: " in text
    formulas = ("math:", "x = ", "Log-determinant 0")
    assert any(form in text for form in formulas) or kind.__name__ == "FromNormflows"
    assert ("arXiv" in text) != (kind.__name__ in OF_NO_PAPER)
