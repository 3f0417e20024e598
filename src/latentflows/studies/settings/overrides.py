"""From files and `key=value` overrides to a checked configuration and back; every fault is reported at once."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.studies.settings.base import Settings
from latentflows.studies.settings.combinations import combination_faults
from latentflows.studies.settings.configuration import USUAL_PREPARATION, RunConfiguration
from latentflows.studies.settings.models import CodesModel, FlowModel
from latentflows.studies.settings.options import LIST_OF, allowed_values, default_kind, parts, tag_of

_LAST = (
    "evaluation"  # what `config.yaml` ends with: a new section goes before it, or older runs seem cut short
)
# Settings that may differ when a run goes on: they change where and how it runs, not what it learns.
MAY_DIFFER = {"data.root", "training.accelerator", "training.checkpoint_every", "training.trackers"}
# Kinds that exist, but not in this place.
_NO_INVERSE = "it has no inverse, so it cannot score a z that it did not draw; use it as the posterior"
_MISPLACED = {
    ("prior", "planar"): _NO_INVERSE,
    ("prior", "sylvester_orthogonal"): _NO_INVERSE,
    ("prior", "sylvester_householder"): _NO_INVERSE,
    ("prior", "sylvester_triangular"): _NO_INVERSE,
    ("prior", "iaf"): "it needs one network pass per latent to score a z; use maf, which is its inverse",
    ("posterior", "maf"): "it needs one network pass per latent to draw a z; use iaf, which is its inverse",
    ("prior", "glow"): "it is a flow over images, for use in Python; see docs/multiscale.md",
    ("posterior", "standard"): "a posterior must depend on the data; use gaussian",
}


def read_configuration(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfiguration:
    """Read a YAML or TOML file (by its suffix), or the defaults, and apply overrides.

    Args:
        path: File; None for the defaults.
        overrides: Such as "posterior=iaf" and "training.epochs=20"; see `configuration_from`.

    Raises:
        ConfigurationError: with all faults, one per line, each naming the key, the value and what is allowed.
        CombinationError: with every reason why valid parts do not work together.
    """
    raw = {} if path is None else read_mapping(path)
    if "seeds" in raw and raw.keys() & {"arms", "factors"}:
        raise ConfigurationError(
            f"{path} is a study, not the configuration of one run. Run it by `latentflows study run {path}`."
        )
    return configuration_from(raw, overrides)


def read_whole_configuration(path: Path) -> RunConfiguration:
    """Read the file of a run folder, which `to_yaml` wrote, and refuse one that has lost a part.

    Raises:
        ConfigurationError: as `read_configuration`, and for a file that lacks a key: a default would pass for what is
            lost.
    """
    configuration = read_configuration(path)
    if lost := lost_part(path):
        raise ConfigurationError(f"{path} {lost}. Restore it, or train again into another folder.")
    return configuration


def lost_part(path: Path) -> str:
    """Say what a run's file lacks, which `to_yaml` wrote; empty where it is whole.

    The record beside it says how many settings there were. A later version may have more: their defaults are what the
    version did that wrote the file.
    """
    raw = read_mapping(path)
    if _LAST not in raw:
        return f"is cut short: it has no `{_LAST}`, with which it ended"
    if not path.read_bytes().endswith(b"\n"):
        return "is cut short: its last line has no end"
    there, written = flat(raw), _settings_of(path.with_name("run.json"))
    if written is None or len(there) >= written:
        return ""
    absent = [key for key in flat(configuration_from(raw).model_dump(mode="json")) if key not in there]
    if not absent:  # somebody wrote another configuration in its place
        return ""
    named = ", ".join(f"`{key}`" for key in absent)
    return f"is damaged: {written - len(there)} of its {written} settings are lost, among {named}"


def _settings_of(record: Path) -> int | None:
    """Return how many settings a run was written with; None where its record does not tell."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def read_mapping(path: Path | str) -> dict[str, Any]:
    """Return what a YAML or TOML file holds.

    Raises:
        ConfigurationError: if the file is missing, malformed, or no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, Loader=_StrictLoader)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file. Name a YAML or TOML file; an override is key=value, such as training.epochs=20."
        ) from None
    except IsADirectoryError:
        inside = f", such as {path / 'config.yaml'}" if (path / "config.yaml").is_file() else ""
        raise ConfigurationError(f"{path}: a folder. Name a YAML or TOML file{inside}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as text ({error}).") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        kind = path.suffix.lstrip(".") or "YAML"
        raise ConfigurationError(f"{path}: malformed {kind}: {_malformed(error)}.") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: lists or mappings are nested too deeply.") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigurationError(f"{path}: must hold `key: value` lines; got {_shown(raw)}.")
    return raw


def _malformed(error: Exception) -> str:
    """Say in one line what a parser said in several."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (at line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML would silently keep the last; `on` is a key like any other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":  # YAML 1.1 reads the key `on` as true
                key.tag = "tag:yaml.org,2002:str"
        keys: list[Any] = []
        for item, _ in node.value:
            key = self.construct_object(item, deep=True)
            if key in keys:
                first = node.value[keys.index(key)][0].start_mark.line + 1
                problem = f"key {key!r} is given twice, first at line {first}"
                raise yaml.constructor.ConstructorError(None, None, problem, item.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


def configuration_from(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfiguration:
    """Check a mapping of settings, with overrides applied, and fill in every default.

    `posterior=iaf` is short for `posterior.kind=iaf`. Naming a kind resets the other keys of its part, unless they
    are given by overrides too, in any order; naming `training.plan` keeps those that the new plan has as well. Models
    with codes for latents have the plan two_stage where none is named, a flow on images dequantized values.

    Raises:
        ConfigurationError: with all faults.
        CombinationError: with every reason why valid parts do not work together.
    """
    merged, faults = with_overrides(raw, overrides)
    _fill_in_usual(merged)
    for name in parts().keys() & merged.keys():
        part, kind = merged[name], default_kind(name)
        if isinstance(part, dict) and kind.tag in kind.model_fields:
            merged[name] = {kind.tag: tag_of(kind)} | part
    configuration = None
    try:
        configuration = RunConfiguration.model_validate(merged)
    except ValidationError as error:
        faults += list(dict.fromkeys(_fault(dict(item)) for item in error.errors()))
    if faults or configuration is None:
        raise ConfigurationError(_joined("The configuration has", faults))
    reasons = combination_faults(configuration)
    if reasons:
        raise CombinationError(_joined("The parts of the configuration do not fit;", reasons))
    if configuration.name is None:
        configuration = configuration.model_copy(update={"name": _usual_name(configuration)})
    return configuration


def _usual_name(c: RunConfiguration) -> str:
    """Name a run by its data and parts: posterior and prior, or the model, and every other kind that was chosen."""
    words = [c.posterior.kind, c.prior.kind] if c.model.kind == "vae" else [c.model.kind]
    if c.model.kind != "vae" and c.prior.kind != tag_of(default_kind("prior")):
        words.append(c.prior.kind)
    if isinstance(c.model, FlowModel) and c.model.objective != "maximum_likelihood":
        words.insert(1, c.model.objective)
    if c.condition.on != "nothing":
        words.append(c.condition.on)
    for part in ("network", "prior_base", "likelihood", "objective", "training"):
        kind, usual = tag_of(type(getattr(c, part))), tag_of(default_kind(part))
        if part == "training" and isinstance(c.model, CodesModel):
            usual = "two_stage"
        if kind != usual:
            words.append(f"{kind}_base" if part == "prior_base" else kind)
    return "-".join([c.data.name, *words])


def _fill_in_usual(merged: dict[str, Any]) -> None:
    """Name, in place, what a model needs and nothing was said of: a plan of two stages, values with a density."""
    model = merged.get("model")
    named = model.get("kind") if isinstance(model, dict) else None
    kind = parts()["model"].get(named) if isinstance(named, str) else None
    training, data = merged.get("training", {}), merged.get("data", {})
    if kind is not None and issubclass(kind, CodesModel) and isinstance(training, dict):
        merged["training"] = {"plan": "two_stage"} | training
    if kind is FlowModel and isinstance(data, dict) and data.get("preparation") is None:
        name = data.get("name", default_kind("data").model_fields["name"].default)
        if isinstance(name, str) and USUAL_PREPARATION.get(name, "continuous") != "continuous":
            merged["data"] = data | {"preparation": "dequantized"}


def with_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return a mapping of settings with overrides applied, unchecked, and the faults of those that do not apply."""
    own = copy.deepcopy(dict(raw))  # the arms of a study share `raw`
    merged = {key: _as_part(key, value) for key, value in own.items()}
    return merged, _apply(merged, overrides)


def to_yaml(configuration: RunConfiguration) -> str:
    """Write a complete file: every key with its value, reloadable as it stands."""
    values = configuration.model_dump(mode="json")
    for name, kinds in parts().items():
        if "" not in kinds:  # the key that tells the kinds apart comes first
            tag = next(iter(kinds.values())).tag
            values[name] = {tag: values[name][tag]} | values[name]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def differences(first: RunConfiguration, second: RunConfiguration) -> list[str]:
    """Return the dotted keys whose values differ."""
    one, two = (flat(item.model_dump(mode="json")) for item in (first, second))
    return changed_keys(one, two)


def changed_keys(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ."""
    return [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _as_part(name: str, value: Any) -> Any:
    """Read `posterior: iaf` as `posterior: {kind: iaf}`."""
    key = _key_of(name)
    return {key: value} if key and isinstance(value, str) else value


def _apply(merged: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply overrides in place, those that name a kind first; return the faults of those that cannot be applied."""
    faults: list[str] = []
    pairs: list[tuple[list[str], Any]] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            faults.append(f"`{text}`: an override must be key=value, such as training.epochs=20.")
        else:
            pairs.append((key.strip().split("."), _value(value.strip())))
    kinds = parts()
    for path, value in pairs:
        key = _key_of(path[0])
        if key and len(path) == 1:
            path.append(key)
        if key and path[1:] == [key] and "" not in kinds[path[0]]:
            merged[path[0]] = _reset(path[0], merged.get(path[0]), value)
    for path, value in pairs:
        place: Any = merged
        for step in path[:-1]:
            place = place.setdefault(step, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value
        elif len(path) > 2 or path[0] not in kinds:  # of a part, what was given in its place is named later
            faults.append(f"`{'.'.join(path)}`: `{'.'.join(path[:-1])}` has no keys inside it.")
    return faults


def _key_of(part: str) -> str:
    """Return the key that `part=value` is short for; empty where it is short for none."""
    if part == "data":
        return "name"
    return "" if "" in parts().get(part, {"": None}) else default_kind(part).tag


def _reset(part: str, before: Any, kind: str) -> dict[str, Any]:
    new = parts()[part].get(kind)
    if part != "training" or new is None or not isinstance(before, dict):
        return {}
    return {key: value for key, value in before.items() if key in new.model_fields}


def _value(text: str) -> Any:
    """Read an override's value: numbers stay text, which the typed fields read (also `1e-3`, which YAML does not)."""
    return {"null": None, "none": None, "true": True, "false": False}.get(text.lower(), text)


def _fault(error: dict[str, Any]) -> str:
    """Say in one line what is wrong with one key."""
    location = [step for step in error["loc"] if isinstance(step, str)]  # without the place inside a list
    kinds = parts()
    owner: type[Settings] = RunConfiguration
    path = location
    if location and location[0] in kinds:
        one_kind = "" in kinds[location[0]]
        path = location if one_kind else [location[0], *location[2:]]
        if one_kind or len(location) > 1:
            owner = kinds[location[0]]["" if one_kind else location[1]]
    key, value = ".".join(path), error.get("input")
    if error["type"] == "invalid_key":
        return f"`{key}` must hold keys that are text; got {_shown(value)}. Write such a key in quotes."
    if error["type"] == "extra_forbidden":
        return _unknown_key(path, owner, value)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = next(iter(kinds[key].values())).tag
        return _unknown_kind(key, tag, value.get(tag) if isinstance(value, dict) else value)
    if error["type"] in ("model_type", "model_attributes_type"):
        if owner is RunConfiguration:
            return f"`{key}` must be {' | '.join(kinds[key])}, or hold keys; got {_shown(value)}."
        return f"`{key}` must hold keys ({', '.join(owner.model_fields)}); got {_shown(value)}."
    if error["type"] == "finite_number":
        return f"`{key}` must be a finite number; got {_shown(value)}."
    if error["type"] == "value_error":
        return f"`{key}`: {error['ctx']['error']}; got {_shown(value)}."
    field = owner.model_fields[path[-1]]
    allowed = allowed_values(field)
    hint = _suggestion(value, allowed.removeprefix(LIST_OF).removesuffix(" or null").split(" | "))
    return f"`{key}` must be {allowed}; got {_shown(value)}.{hint}"


def _unknown_key(path: list[str], owner: type[Settings], value: Any) -> str:
    part = path[0] if len(path) > 1 else ""
    known = list(owner.model_fields)
    kind = f" with {owner.tag} {tag_of(owner)}" if part and owner.tag in owner.model_fields else ""
    where = f"`{part}`{kind}" if part else "a configuration"
    elsewhere = [name for name, other in parts().get(part, {}).items() if path[-1] in other.model_fields]
    belongs = f" It belongs to {owner.tag} {', '.join(elsewhere)}." if elsewhere else ""
    hint = belongs or _elsewhere(path[-1]) or _suggestion(path[-1], known)
    return f"`{'.'.join(path)}` (given {_shown(value)}) is no key of {where}, which has {', '.join(known)}.{hint}"


def _elsewhere(key: str) -> str:
    """Name the places of a configuration that have a key of this name."""
    places = [key] if key in RunConfiguration.model_fields else []
    for part, kinds in parts().items():
        if any(key in kind.model_fields and (part == "data" or key != kind.tag) for kind in kinds.values()):
            places.append(f"{part}.{key}")
    return f" Did you mean {' or '.join(places)}?" if places else ""


def _unknown_kind(part: str, tag: str, value: Any) -> str:
    names = list(parts()[part])
    reason = _MISPLACED.get((part, value)) if isinstance(value, str) else None
    hint = f" As a {part}, {value} will not do: {reason}." if reason else _suggestion(value, names)
    return f"`{part}.{tag}` must be {' | '.join(names)}; got {_shown(value)}.{hint}"


def _suggestion(value: Any, known: Sequence[str]) -> str:
    word = str(value).lower()
    close = [name for name in known if len(word) > 2 and name.startswith(f"{word}_")]
    close = close or difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _joined(head: str, faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    return "\n".join([f"{head} {len(faults)} faults:", *(f"  - {fault}" for fault in faults)])
