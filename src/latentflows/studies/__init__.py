"""Runs and comparisons: configuration, construction, one run, arms over seeds, and their statistics.

Each name is imported when it is first used: a mistake in a configuration is reported before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "configuration": ("RunConfiguration",),
    "overrides": ("configuration_from", "read_configuration", "to_yaml"),
    "build": ("build_data", "build_model", "build_options", "build_stages", "load_run"),
    "comparison": ("compare",),
    "study": ("Arm", "Budget", "Factor", "Study"),
    "study_file": ("read_study",),
    "planning": ("Plan", "plan"),
    "results": ("Results", "read_results"),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from latentflows.studies.build import build_data, build_model, build_options, build_stages, load_run
    from latentflows.studies.comparison import compare
    from latentflows.studies.configuration import RunConfiguration
    from latentflows.studies.overrides import configuration_from, read_configuration, to_yaml
    from latentflows.studies.planning import Plan, plan
    from latentflows.studies.results import Results, read_results
    from latentflows.studies.study import Arm, Budget, Factor, Study
    from latentflows.studies.study_file import read_study


__all__ = [
    "Arm",
    "Budget",
    "Factor",
    "Plan",
    "Results",
    "RunConfiguration",
    "Study",
    "build_data",
    "build_model",
    "build_options",
    "build_stages",
    "compare",
    "configuration_from",
    "load_run",
    "plan",
    "read_configuration",
    "read_results",
    "read_study",
    "to_yaml",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"latentflows.studies.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'latentflows.studies' has no attribute {name!r}")
