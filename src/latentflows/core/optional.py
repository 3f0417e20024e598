"""Packages that only some functions need: imported where they are used, with a hint where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch.distributions import Distribution

from latentflows.core.errors import ConfigurationError


def import_optional(name: str, *, install: str) -> ModuleType:
    """Import a package that may be missing, and leave torch's argument checks as they were.

    Importing zuko turns the validation of `torch.distributions` off for the whole process, so that `Normal(0.0, -1.0)`
    passes; here the setting is what it was before. A program that imports zuko itself has it off all the same.

    Args:
        name: The module to import.
        install: What to give to `pip install`.

    Raises:
        ConfigurationError: with the command that installs it.
    """
    validates = Distribution._validate_args
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name != package:
            raise  # the package is there, and something that it imports is not
        raise ConfigurationError(
            f"`{package}` is needed here and is not installed. Run: pip install '{install}'"
        ) from None
    finally:
        Distribution.set_default_validate_args(validates)
