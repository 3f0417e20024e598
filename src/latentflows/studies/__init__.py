"""Runs and studies, in rooms.

Each imports those above it alone:

- `settings`: the typed configuration of a run, its files and overrides, and what combines with what;
- `building`: from settings to data, model, stages and options;
- `measuring`: what is measured of a trained model;
- `running`: one run and its folder, or all seeds of an arm together;
- `planning`: study files, budgets, the plan before anything trains, and the studies that come with the package;
- `execution`: engines, workers, locks and the record of a study;
- `statistics`: intervals, tests and their corrections, on plain numbers;
- `results`: what the folder of a study holds, read for reports and frames (above `statistics` alone).

Each name is imported when it is first used: a mistake in a configuration is reported before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "settings.configuration": ("RunConfiguration",),
    "settings.overrides": ("configuration_from", "read_configuration", "to_yaml"),
    "building.build": ("build_data", "build_model", "build_options", "build_stages", "load_run"),
    "execution.compare": ("compare",),
    "planning.study": ("Arm", "Budget", "Factor", "Study"),
    "planning.study_file": ("read_study",),
    "planning.plan": ("Plan", "plan"),
    "results.results": ("Results", "read_results"),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from latentflows.studies.building.build import (
        build_data,
        build_model,
        build_options,
        build_stages,
        load_run,
    )
    from latentflows.studies.execution.compare import compare
    from latentflows.studies.planning.plan import Plan, plan
    from latentflows.studies.planning.study import Arm, Budget, Factor, Study
    from latentflows.studies.planning.study_file import read_study
    from latentflows.studies.results.results import Results, read_results
    from latentflows.studies.settings.configuration import RunConfiguration
    from latentflows.studies.settings.overrides import configuration_from, read_configuration, to_yaml


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
