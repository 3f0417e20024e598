"""Faults to plant, by the file of the package that they are planted in; one module for every folder of it."""

from tests.faults import (
    bijections,
    command_line,
    core,
    data,
    distributions,
    evaluation,
    generation,
    models,
    networks,
    objectives,
    reporting,
    studies,
    testing,
    training,
    transforms,
)
from tests.faults.base import Fault

_FOLDERS = (
    bijections,
    command_line,
    core,
    data,
    distributions,
    evaluation,
    generation,
    models,
    networks,
    objectives,
    reporting,
    studies,
    testing,
    training,
    transforms,
)
FAULTS: dict[str, list[Fault]] = {
    file: faults for folder in _FOLDERS for file, faults in folder.FAULTS.items()
}
