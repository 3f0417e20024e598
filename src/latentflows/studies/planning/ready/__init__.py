"""The studies that come with the package: one YAML file each, beside this one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from latentflows.core.errors import ConfigurationError
from latentflows.studies.planning.study import Study
from latentflows.studies.planning.study_file import read_study

_FOLDER = Path(__file__).parent


def ready_studies() -> dict[str, Study]:
    """Return every study that comes with the package, by name."""
    return {path.stem: read_study(path) for path in sorted(_FOLDER.glob("*.yaml"))}


def find_study(source: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study by file or by name.

    Args:
        source: Path of a YAML or TOML file, or a name of `ready_studies`.
        overrides: See `read_study`.

    Raises:
        ConfigurationError: with every fault of the study, or if there is neither file nor name.
    """
    names = [path.stem for path in sorted(_FOLDER.glob("*.yaml"))]
    if source in names:
        return read_study(_FOLDER / f"{source}.yaml", overrides)
    path = Path(source)
    if not path.is_file() and path.suffix not in (".yaml", ".yml", ".toml"):
        close = difflib.get_close_matches(source, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigurationError(
            f"`{source}` is neither a file nor a study that comes with the package ({', '.join(names)}).{hint}"
        )
    return read_study(path, overrides)
