"""Other libraries, as oracles: imported without what their import changes in torch."""

from types import ModuleType

import pytest
from torch.distributions import Distribution


def peer(name: str) -> ModuleType:
    """Import a library, or skip the tests that need it; zuko would switch torch's validation off for all others."""
    validates = Distribution._validate_args
    try:
        return pytest.importorskip(name)
    finally:
        Distribution.set_default_validate_args(validates)
