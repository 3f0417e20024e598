"""What is wrong with a study whose pieces can be read: with names that refer to each other, and with single arms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from latentflows.core.errors import LatentFlowsError
from latentflows.studies.settings.overrides import flat

if TYPE_CHECKING:
    from latentflows.studies.planning.study import Arm, Study
    from latentflows.studies.settings.configuration import RunConfiguration

_NAME = r"[A-Za-z0-9][\w.-]*\Z"
NOT_HELD = "nothing"  # as the key that is solved for: an arm that the budget does not hold


class Faults(ValueError):
    """Several faults of one object."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def seeds_listed_twice(seeds: Sequence[int]) -> list[str]:
    """Name the seeds that a study lists more than once."""
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if not twice:
        return []
    return [f"`seeds`: a seed must be listed once; got {', '.join(map(str, twice))} more often"]


def study_faults(study: Study) -> list[str]:
    """Say what the axes, the names and the references of a study get wrong."""
    if not study.arms and not study.factors:
        return ["a study needs `arms`, `factors`, or both"]
    names = [factor.name for factor in study.factors]
    if len(set(names)) < len(names):  # what is crossed is then not known
        return [f"factors must differ; got {', '.join(names)}"]
    axes = {"arms": study.arms} | {factor.name: factor.choices() for factor in study.factors}
    solving = [name for name, levels in axes.items() if any(level.solve for level in levels)]
    faults = _conflicts(study) + _name_faults(study)
    if len(solving) > 1:
        faults.append(f"`solve` must stand in one of arms and factors; got it in {', '.join(solving)}")
    return faults


def arm_faults(study: Study, arm: Arm) -> list[str]:
    """Say what is wrong with the settings of an arm, and with the key that is solved for in it; nothing is built."""
    reasons = _reasons(study, arm, [])
    faults = list(reasons)
    if arm.solve not in (None, NOT_HELD) and study.budget is None:
        faults.append(f"it solves for `{arm.solve}`, and the study has no `budget` to meet.")
    key = study.solves_for(arm) if arm.solve is None else arm.solve
    if key is None or key == NOT_HELD:
        return faults
    found = _reasons(study, arm, [f"{key}=1"])
    for reason in found:
        if " is no key of " in reason and reason not in reasons:  # another value than 1 may be the right one
            faults.append(f"no value of `{key}` can be built; with 1: {reason}")
    return faults if found else faults + _unsolvable(study, arm, key)


def _unsolvable(study: Study, arm: Arm, key: str) -> list[str]:
    """Refuse to solve for the seed, which `seeds` decides, or for what is no integer, of which 1 would do for all."""
    if key == "seed":
        return ["`seed` cannot be solved for: every arm runs with each of `seeds`. Solve for another key."]
    value = flat(study.configuration(arm, study.seeds[0], [f"{key}=1"]).model_dump()).get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return []
    return [
        f"`{key}` cannot be solved for: it must be an integer; 1 is read as {value!r}. Solve for another key."
    ]


def _reasons(study: Study, arm: Arm, solved: list[str]) -> list[str]:
    """Return every reason why an arm has no configuration."""
    try:
        study.configuration(arm, study.seeds[0], solved)
    except LatentFlowsError as error:
        head, *reasons = str(error).removeprefix(f"Arm {arm.name!r}: ").splitlines()
        return [reason.removeprefix("  - ") for reason in reasons] or [head]
    return []


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _conflicts(study: Study) -> list[str]:
    """Say which keys two parts of an arm set, or one sets and another solves for: its label would then be wrong."""
    faults = []
    for made in study.parts():
        setters: dict[str, str] = {}
        for part in made:
            for key in dict.fromkeys(map(_key, part.overrides)):
                if key in setters:
                    faults.append(f"`{key}` is set by {setters[key]} and by {part.name}, which are crossed")
                setters[key] = part.name
        for part in made:
            if part.solve in setters:
                faults.append(f"{part.name} solves for `{part.solve}`, which {setters[part.solve]} sets")
    return list(dict.fromkeys(faults))


def _name_faults(study: Study) -> list[str]:
    given = [*study.arms, *study.factors, *(level for factor in study.factors for level in factor.levels)]
    odd = [each.name for each in given if not re.match(_NAME, each.name)]
    faults = [
        f"names must be of letters, digits, `_`, `-` and `.`, with a letter or digit first; got {name!r}"
        for name in odd
    ]
    arms = study.all_arms()
    for what, values in (("names", [a.name for a in arms]), ("labels", [a.label for a in arms])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            faults.append(f"{what} of arms must differ; got {', '.join(twice)} more than once")
    names_by_folder: dict[str, set[str]] = {}
    for arm in arms:
        names_by_folder.setdefault(arm.name.casefold(), set()).add(arm.name)
    faults += [
        f"names of arms must differ in more than case, as they name folders; got {' and '.join(sorted(alike))}"
        for alike in names_by_folder.values()
        if len(alike) > 1
    ]
    faults += _ignored(arms)
    references: list[tuple[str, str | dict[str, str]]] = []
    if study.baseline is not None:
        references.append(("baseline", study.baseline))
    if study.budget is not None and study.budget.like is not None:
        references.append(("budget.like", study.budget.like))
    for key, reference in references:
        try:
            counterparts = study.counterparts(reference)
        except ValueError as error:
            faults.append(f"`{key}` {error}")
        else:
            faults += _idle_solvers(arms, counterparts) if key == "budget.like" else []
    names = {arm.name for arm in arms}
    if study.published is not None:
        unknown = sorted(study.published.figures.keys() - names)
        if unknown:
            faults.append(f"`published` names {', '.join(unknown)}; the arms are {', '.join(sorted(names))}")
    return faults + _pair_faults(study.comparisons, names)


def _pair_faults(pairs: Sequence[tuple[str, str]], names: set[str]) -> list[str]:
    """Name the comparisons of what is not there, and those that are listed twice: each would count in the correction.

    A pair in the other order is the same comparison, with the sign of its difference turned.
    """
    faults = []
    for pair in pairs:
        unknown = [name for name in dict.fromkeys(pair) if name not in names]
        if unknown:
            faults.append(
                f"`comparisons` names {', '.join(unknown)}; the arms are {', '.join(sorted(names))}"
            )
        if pair[0] == pair[1]:
            faults.append(f"`comparisons` compares {pair[0]} with itself")
    sets = [frozenset(pair) for pair in pairs if pair[0] != pair[1]]
    for each in dict.fromkeys(sets):
        if sets.count(each) > 1:
            one, other = next(pair for pair in pairs if frozenset(pair) == each)
            faults.append(
                f"`comparisons` must list a pair once, in one order; got {one} with {other} {sets.count(each)} times"
            )
    return faults


def _idle_solvers(arms: list[Arm], held: dict[str, str]) -> list[str]:
    """Name the arms that ask for a size, and whose amount is the one that others meet."""
    return [
        f"{arm.name} solves for `{arm.solve}`, but `budget.like` has the others meet its amount as it stands: leave "
        "its `solve` out"
        for arm in arms
        if arm.name not in held and arm.solve not in (None, NOT_HELD)
    ]


def _ignored(arms: list[Arm]) -> list[str]:
    """Name what an arm asks for and would not get."""
    faults = []
    for key, instead in (("seed", "list `seeds`"), ("name", "an arm's `name` names its runs")):
        own = [arm.name for arm in arms if any(_key(text) == key for text in arm.overrides)]
        if own:
            faults.append(f"`{key}` cannot be an override of an arm: {instead}; given by {', '.join(own)}")
    return faults


_MUST_AGREE = {
    "data": ("name", "preparation", "validation", "test", "seed", "size", "mode"),
    "evaluation": ("split", "num_images", "num_importance_samples"),
    "condition": ("on",),  # p(x | label) is another figure than p(x)
}


def shared_faults(study: Study, arms: Sequence[Arm]) -> list[str]:
    """Name those of the arms that are one, and what they would be measured by differently: figures do not compare."""
    configurations = {}
    for arm in arms:
        with suppress(LatentFlowsError):  # of its own faults others speak
            configurations[arm.name] = study.configuration(arm, study.seeds[0])
    solved = {arm.name: study.solves_for(arm) for arm in arms}
    return _equal_arms(configurations, solved) + _protocol_faults(configurations)


def _equal_arms(
    configurations: Mapping[str, RunConfiguration], solved: Mapping[str, str | None]
) -> list[str]:
    """Name arms that would train the same twice: each adds a comparison, for which the tests are corrected."""
    alike: dict[str, list[str]] = {}
    for name, configuration in configurations.items():
        made = configuration.model_copy(update={"name": ""}).model_dump_json()
        alike.setdefault(f"{made} {solved[name]}", []).append(name)
    return [
        f"the arms {' and '.join(names)} have the same configuration, so they are one arm. Leave out all but one."
        for names in alike.values()
        if len(names) > 1
    ]


def _protocol_faults(configurations: Mapping[str, RunConfiguration]) -> list[str]:
    """Name what arms would be measured by differently: their figures could not be compared when all have run."""
    faults = []
    for part, keys in _MUST_AGREE.items():
        for key in keys:
            given: dict[Any, list[str]] = {}
            for name, configuration in configurations.items():
                given.setdefault(getattr(getattr(configuration, part), key), []).append(name)
            if len(given) > 1:
                shown = "; ".join(f"{value} in {', '.join(names)}" for value, names in given.items())
                faults.append(
                    f"`{part}.{key}` differs between arms ({shown}): figures by different protocols do not compare. "
                    "Give one value, in `base`."
                )
    return faults
