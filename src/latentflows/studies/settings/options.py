"""What a configuration can hold: parts, kinds, keys, defaults and allowed values, read off the typed classes."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from latentflows.studies.settings.base import Settings
from latentflows.studies.settings.configuration import RunConfiguration

LIST_OF = "a list of "
_COMPARISONS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Option:
    """One key of a configuration.

    Attributes:
        key: Dotted key, as an override takes it.
        kinds: Kinds of its part that have it; empty where all have it.
        default: Its default, as an override takes it.
        allowed: Allowed values in words.
        description: What it means.
    """

    key: str
    kinds: tuple[str, ...]
    default: str
    allowed: str
    description: str


def parts() -> dict[str, dict[str, type[Settings]]]:
    """Return the classes of every part by kind; a part that comes in one kind has it under the empty name."""
    found: dict[str, dict[str, type[Settings]]] = {}
    for name, field in RunConfiguration.model_fields.items():
        members = [
            kind
            for kind in _members(field.annotation)
            if isinstance(kind, type) and issubclass(kind, Settings)
        ]
        if members:
            found[name] = {"" if len(members) == 1 else tag_of(kind): kind for kind in members}
    return found


def tag_of(kind: type[Settings]) -> str:
    """Return the value of the key that tells this class apart from the others of its part."""
    return kind.model_fields[kind.tag].default


def default_kind(part: str) -> type[Settings]:
    """Return the class that a part has when nothing is said."""
    return type(RunConfiguration.model_fields[part].get_default(call_default_factory=True))


def kinds() -> list[Option]:
    """Return one option for every kind of every part that comes in several: `posterior=iaf` and its meaning."""
    return [
        Option(part, (name,), default_kind(part).tag, name, (kind.__doc__ or "").split("\n")[0])
        for part, classes in parts().items()
        for name, kind in classes.items()
        if name
    ]


def options() -> list[Option]:
    """Return every key, in the order of a written file."""
    classes = parts()
    listed: list[Option] = []
    for name, field in RunConfiguration.model_fields.items():
        listed += _options_of_part(name, classes[name]) if name in classes else [_option(name, (), field)]
    return listed


def _options_of_part(part: str, classes: dict[str, type[Settings]]) -> list[Option]:
    """Return the keys of a part; kinds that share a key in all that is said of it share its line."""
    having: dict[Option, list[str]] = {}
    for name, kind in classes.items():
        for key, field in kind.model_fields.items():
            if not name or key != kind.tag:
                having.setdefault(_option(f"{part}.{key}", (), field), []).append(name)
    return [
        option if len(names) == len(classes) else replace(option, kinds=tuple(names))
        for option, names in having.items()
    ]


def allowed_values(field: FieldInfo) -> str:
    """Say in words what a field takes."""
    members = _members(field.annotation)
    words = [_words(member) for member in members if member is not type(None)]
    if str in members and any(getattr(item, "min_length", 0) for item in field.metadata):
        words[words.index("text")] = "text that is not empty"
    limits = [
        f"{word} {value}"
        for item in field.metadata
        for limit, word in _COMPARISONS.items()
        if (value := getattr(item, limit, None)) is not None
    ]
    text = " or ".join(words) + (" " + " and ".join(limits) if limits else "")
    return text + (" or null" if type(None) in members else "")


def _option(key: str, kinds: tuple[str, ...], field: FieldInfo) -> Option:
    default = field.get_default(call_default_factory=True)
    return Option(key, kinds, written(default), allowed_values(field), field.description or "")


def written(value: Any) -> str:
    """Write a value as an override takes it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:  # Annotated[int, ...] inside a union
        return _words(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return LIST_OF + _words(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return {int: "an integer", float: "a number", bool: "true | false", str: "text"}[annotation]
