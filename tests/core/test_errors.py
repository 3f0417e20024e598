"""One root for every error raised on purpose."""

import pytest

from latentflows.core import errors

KINDS = [
    errors.ShapeError,
    errors.DataError,
    errors.ConfigurationError,
    errors.CombinationError,
    errors.MissingDirectionError,
    errors.NonFiniteError,
    errors.CheckpointError,
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_of_this_library_and_value_errors(kind):
    assert issubclass(kind, errors.LatentFlowsError)
    assert issubclass(kind, ValueError)


def test_the_list_above_is_complete():
    found = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.LatentFlowsError)
    }
    assert found == {errors.LatentFlowsError, *KINDS}
