"""From the file of a study, and what is changed in it on the command line, to a checked `Study`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latentflows.core.errors import ConfigurationError
from latentflows.studies.planning.study import Arm, Budget, Factor, Published, Study
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.overrides import read_mapping, with_overrides


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a YAML or TOML file with the keys of `Study`.

    Args:
        path: The file.
        overrides: Of the configuration that all arms share, such as training.epochs=5; and of the study's own
            `seeds=0,1,2`, `name`, `baseline`, and `budget.KEY`.

    Raises:
        ConfigurationError: with every fault of the file.
    """
    return checked(_changed(read_mapping(path), overrides), str(path))


def checked(raw: dict[str, Any], source: str) -> Study:
    """Check a mapping with the keys of `Study`.

    Raises:
        ConfigurationError: with every fault, after the name of the source.
    """
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        faults = list(dict.fromkeys(_fault(dict(item)) for item in error.errors()))
        if len(faults) == 1:
            raise ConfigurationError(f"{source} is no study: {faults[0]}.") from None
        text = "\n".join(f"  - {fault}" for fault in faults)
        raise ConfigurationError(f"{source} is no study; {len(faults)} faults:\n{text}") from None


def _fault(item: dict[str, Any]) -> str:
    steps = [step for step in item["loc"] if step not in ("str", "dict[str,str]")]  # members of a union
    key = ".".join(map(str, steps))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = {"arms": Arm, "factors": Factor, "budget": Budget, "published": Published}
        owner = known.get(str(steps[0]), Study) if len(steps) > 1 else Study
        close = difflib.get_close_matches(str(steps[-1]), list(owner.model_fields), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"`{key}` is no key here; the keys are {', '.join(owner.model_fields)}.{hint}"
    if item["type"] != "value_error":
        shown = repr(item["input"])
        message += f"; got {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return f"`{key}`: {message}" if key else message


_OWN = ("seeds", "name", "description", "baseline", "smallest_difference")


def _changed(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides: a study's own keys at once, the others to every arm, before the arm's own."""
    changed, shared = dict(raw), []
    for text in overrides:
        key, equals, value = text.partition("=")
        first, _, rest = key.partition(".")
        if equals and key == "seeds":
            changed["seeds"] = [item for item in re.split(r"[\s,]+", value.strip("[] ")) if item]
        elif equals and key in _OWN:
            changed[key] = value
        elif equals and first == "budget" and rest:
            changed["budget"] = {**(changed.get("budget") or {}), rest: value}
        elif equals and first not in RunConfiguration.model_fields:
            known = [*_OWN, "budget", *RunConfiguration.model_fields]
            close = difflib.get_close_matches(first, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"`{text}`: `{first}` is no key of a study or a configuration.{hint}")
        elif equals and key.strip() == "seed":
            raise ConfigurationError(
                f"`{text}`: every arm runs with each of `seeds`. Give seeds={value.strip()}."
            )
        else:
            shared.append(text)
    if shared:
        base, faults = with_overrides(changed.get("base") or {}, shared)
        if faults:
            raise ConfigurationError(" ".join(faults))
        changed["base"] = base
    return changed
