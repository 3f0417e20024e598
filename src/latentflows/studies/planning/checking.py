"""From a mapping to a checked `Study`, or to all its faults: what is wrong in one place hides none of another.

Where some pieces are wrong, each is replaced by one that says nothing, and what is left is looked at again.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

from pydantic import ValidationError

from latentflows.core.errors import ConfigurationError
from latentflows.studies.planning.faults import arm_faults, seeds_listed_twice, shared_faults, study_faults
from latentflows.studies.planning.study import PIECES_ALONE, Arm, Budget, Factor, Published, Study

Place = tuple[int | str, ...]
_UNIONS = ("str", "int", "float", "dict[str,str]")  # members of a union, in the place of an error
_STAND_INS: dict[str | int, Any] = {
    "name": "unread",
    "seeds": [0],
    "hold": "model",
    "source": "unread",
    "epochs": 1,
    "figures": {},
}  # of what must be there


def checked(raw: dict[str, Any], source: str) -> Study:
    """Check a mapping with the keys of `Study`.

    Raises:
        ConfigurationError: with every fault, after the name of the source. Of arms that a malformed factor is crossed
            into no more can be said.
    """
    try:
        return Study.model_validate(raw)
    except ValidationError:
        faults = _all_faults(raw)
    if len(faults) == 1:
        raise ConfigurationError(f"{source} is no study: {faults[0]}.")
    text = "\n".join(f"  - {fault}" for fault in faults)
    raise ConfigurationError(f"{source} is no study; {len(faults)} faults:\n{text}")


def _all_faults(raw: dict[str, Any]) -> list[str]:
    rest, found, wrong, seen = copy.deepcopy(raw), [], set[Place](), set[Place]()
    while True:
        try:
            study = Study.model_validate(rest, context=PIECES_ALONE)
            break
        except ValidationError as error:
            items = [dict(item) for item in error.errors()]
        found += [_fault(item) for item in items]
        places = {_place(item) for item in items}
        if places <= seen:  # nothing was gained
            return list(dict.fromkeys(found))
        seen |= places
        extra = {_place(item) for item in items if item["type"] in ("extra_forbidden", "invalid_key")}
        wrong |= places - extra
        for place in places:
            _mend(rest, place, extra=place in extra)
        for key in ("seeds", "comparisons", "factors"):
            if key in rest:
                rest[key] = [item for item in rest[key] if item is not None]
        rest["seeds"] = rest["seeds"] or [0]
    found += seeds_listed_twice(study.seeds)
    if _is_crossed(wrong):
        found += study_faults(study)
        if ("base",) not in wrong and (study.arms or study.factors):
            found += _faults_of_arms(study, _unread(study, wrong))
    return list(dict.fromkeys(found))


def _place(item: dict[str, Any]) -> Place:
    """Return where a fault is: of texts in a list, of pairs and of references as a whole."""
    place = tuple(step for step in item["loc"] if step not in _UNIONS)
    for length, step in enumerate(place, 1):
        if step in ("overrides", "values", "baseline", "like", "figures"):
            return place[:length]
        if step == "comparisons":
            return place[: length + 1]
    return place


def _mend(raw: dict[str, Any], place: Place, *, extra: bool) -> None:
    """Put in place of a piece that is wrong one that says nothing; None in a list is left out of it."""
    owner: Any = raw
    for step in place[:-1]:
        owner = owner[step]
    last, before = place[-1], place[-2] if len(place) > 1 else None
    if extra:
        owner.pop(last, None)
    elif isinstance(last, int):
        named = before in ("arms", "levels")
        owner[last] = {"name": _name_of(owner[last], place)} if named else None
    elif last == "name" and before is not None:
        owner[last] = _name_of(None, place[:-1])
    elif last == "like":  # which arms are held is not known
        owner |= {"like": None, "solve": None, "target": 1.0}
    elif last == "target":
        owner[last] = None if owner.get("like") is not None else 1.0
    elif last == "budget":
        like = owner[last].get("like") if isinstance(owner[last], dict) else None
        usual = owner[last] if isinstance(owner[last], dict) else {"hold": "model"}
        owner[last] = usual | {"target": 1.0 if like is None else None}
    elif last in _STAND_INS:
        owner[last] = copy.copy(_STAND_INS[last])
    else:
        owner.pop(last, None)


def _name_of(given: Any, place: Place) -> str:
    return given if isinstance(given, str) and given else ".".join(map(str, place))


def _is_crossed(wrong: set[Place]) -> bool:
    """Whether it is known which arms there are: listed ones are a list, and factors differ at most within levels."""
    return ("arms",) not in wrong and all(
        "levels" in place[:-1] for place in wrong if place[:1] == ("factors",)
    )


def _unread(study: Study, wrong: set[Place]) -> set[str]:
    """Return the names of arms and levels whose settings could not be read."""
    levels: dict[Place, str] = {("arms", index): arm.name for index, arm in enumerate(study.arms)}
    for index, factor in enumerate(study.factors):
        levels |= {("factors", index, "levels", i): level.name for i, level in enumerate(factor.levels)}
    settings = ((), ("overrides",), ("solve",))
    return {name for at, name in levels.items() if any((*at, *each) in wrong for each in settings)}


def _faults_of_arms(study: Study, unread: set[str]) -> list[str]:
    """Say what is wrong with the settings of arms; sizes take a study without faults."""
    budget = study.budget
    if budget is not None and budget.like is not None:
        try:
            study.counterparts(budget.like)
        except ValueError:
            study = study.model_copy(
                update={"budget": budget.model_copy(update={"like": None, "solve": None})}
            )
    found: dict[str, list[str]] = {}
    read = []
    for made, arm in zip(study.parts(), study.all_arms(), strict=True):
        if unread.isdisjoint(part.name for part in made):
            read.append(arm)
            for fault in arm_faults(study, arm):
                found.setdefault(fault, []).append(arm.name)
    own = [f"{', '.join(dict.fromkeys(arms))}: {fault}" for fault, arms in found.items()]
    return [fault.rstrip(".") for fault in [*own, *shared_faults(study, read)]]


def _fault(item: dict[str, Any]) -> str:
    steps = [step for step in item["loc"] if step not in _UNIONS]
    key = ".".join(map(str, steps))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = {"arms": Arm, "factors": Factor, "budget": Budget, "published": Published}
        owner = known.get(str(steps[0]), Study) if len(steps) > 1 else Study
        close = difflib.get_close_matches(str(steps[-1]), list(owner.model_fields), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"`{key}` is no key here; the keys are {', '.join(owner.model_fields)}.{hint}"
    if item["type"] == "missing":
        return f"`{key}` is missing"
    if item["type"] != "value_error":
        shown = repr(item["input"])
        message += f"; got {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return f"`{key}`: {message}" if key else message
