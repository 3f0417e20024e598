"""From the file of a study, and what is changed in it on the command line, to a checked `Study`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.studies.planning.checking import checked
from latentflows.studies.planning.study import Arm, Budget, Study
from latentflows.studies.settings.configuration import RunConfiguration, items_of
from latentflows.studies.settings.overrides import flat, read_mapping, with_overrides


def read_study(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a YAML or TOML file with the keys of `Study`.

    Args:
        path: The file.
        overrides: Of the configuration that all arms share, such as training.epochs=5; and of the study's own
            `seeds=0,1,2`, `name`, `baseline`, and `budget.KEY`; `null` takes one away.

    An override of a key that some arms set, such as prior=mixture where others have prior=real_nvp, is added to the
    labels of those that take it: what the file calls them is no longer what they are.

    Raises:
        ConfigurationError: with every fault of the file, or for overrides that reach no arm.
    """
    raw = read_mapping(path)
    if raw and raw.keys() <= RunConfiguration.model_fields.keys():
        raise ConfigurationError(
            f"{path} is the configuration of one run, not a study, which has `seeds` and `arms` or `factors`. Train it "
            f"by `latentflows train {path}`."
        )
    study = _relabeled(checked(_changed(raw, overrides), str(path)), overrides)
    arms = [arm.name for arm in study.all_arms()]
    lost = [text for text, missed in untaken(study, overrides).items() if missed == arms]
    if lost:
        raise ConfigurationError(
            f"{', '.join(f'`{text}`' for text in lost)} would change nothing: {', '.join(arms)} set or solve for it "
            f"themselves, which comes after what all share. Change the arms in {path}, or leave it out."
        )
    return study


def unused(study: Study) -> list[str]:
    """Return the keys of `base` that no arm has from there: all set or solve for them, or choose parts without them."""
    base, _ = with_overrides(study.base, [])
    wanted = flat(base)
    left = dict.fromkeys(wanted)
    for arm in study.all_arms():
        has, solved = flat(with_overrides(base, arm.overrides)[0]), study.solves_for(arm)
        left = {
            key: None
            for key in left
            if key in ("seed", "name") or key == solved or key not in has or has[key] != wanted[key]
        }
    return list(left)


def _relabeled(study: Study, overrides: Sequence[str]) -> Study:
    """Return the study with labels that say what overrides made of arms, where the arms beside them differ in it."""
    shared = {
        frozenset(_keys([text])): text for text in overrides if not _is_own(text)
    }  # of one key the last counts

    def labeled(levels: list[Arm]) -> list[Arm]:
        own = [_keys(level.overrides) for level in levels]
        differ = set().union(*own)
        taken = [[text for keys, text in shared.items() if keys & (differ - has)] for has in own]
        return [
            level.model_copy(update={"label": ", ".join([level.label, *texts])})
            for level, texts in zip(levels, taken, strict=True)
        ]

    factors = [
        factor.model_copy(update={"levels": labeled(factor.levels)}) if factor.levels else factor
        for factor in study.factors
    ]
    return study.model_copy(update={"arms": labeled(study.arms), "factors": factors})


def _keys(overrides: Sequence[str]) -> set[str]:
    return set(flat(with_overrides({}, overrides)[0]))


def untaken(study: Study, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return for each override of what all arms share the arms that it does not reach: what they set comes after it.

    Arms with faults are left out; `plan` names those.

    Args:
        study: As `read_study` returned it.
        overrides: Those it was read with.
    """
    shared = {text.partition("=")[0].strip(): text for text in overrides if not _is_own(text)}
    found: dict[str, list[str]] = {text: [] for text in shared.values()}
    for arm in study.all_arms() if shared else []:
        for text in _missed(study, arm, list(found)):
            found[text].append(arm.name)
    return {text: arms for text, arms in found.items() if arms}


def _missed(study: Study, arm: Arm, overrides: Sequence[str]) -> list[str]:
    """Return the overrides whose value an arm does not have, but would if they came after its own."""
    try:
        usual = flat(study.configuration(arm, study.seeds[0]).model_dump(mode="json"))
    except LatentFlowsError:
        return []
    return [text for text in overrides if not _has(study, arm, usual, text)]


def _has(study: Study, arm: Arm, usual: dict[str, Any], override: str) -> bool:
    keys = flat(with_overrides({}, [override])[0])
    if study.solves_for(arm) in keys:
        return False
    try:
        asked = flat(study.configuration(arm, study.seeds[0], [override]).model_dump(mode="json"))
    except LatentFlowsError:  # its parts have no such key
        return False
    return all(usual.get(key) == asked.get(key) for key in keys)


_OWN = ("seeds", "name", "description", "baseline", "smallest_difference")
_NOTHING = "null"  # as a value; "none" may be the name of an arm


def _is_own(override: str) -> bool:
    """Whether an override changes the study, not what its arms share."""
    key, equals, value = override.partition("=")
    if key == "budget":
        return value == _NOTHING
    return bool(equals) and (key in _OWN or (key.startswith("budget.") and key != "budget."))


def _unknown_override(text: str, first: str) -> str:
    if first == "budget":
        return f"`{text}`: a budget has the keys {', '.join(Budget.model_fields)}. Give budget.KEY, or budget=null."
    if first == "base":
        return f"`{text}`: what all arms share is given by its own key, as latent_dim=4 in place of base.latent_dim=4."
    if first in _OWN:
        return f"`{text}`: `{first}` has no keys. Give {first}=VALUE."
    if first in Study.model_fields:
        return (
            f"`{text}`: `{first}` is changed in the file of the study; here {', '.join(_OWN)} and budget.KEY."
        )
    close = difflib.get_close_matches(first, [*_OWN, "budget", *RunConfiguration.model_fields], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"`{text}`: `{first}` is no key of a study or a configuration.{hint}"


def _changed(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply overrides: a study's own keys at once, the others to every arm, before the arm's own."""
    changed, shared, wrong = dict(raw), [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        first, _, rest = key.partition(".")
        if _is_own(text):
            if key == "seeds":
                changed[key] = items_of(value)
            elif rest:
                changed["budget"] = {
                    **(changed.get("budget") or {}),
                    rest: None if value == _NOTHING else value,
                }
            else:
                changed[key] = None if value == _NOTHING else value
        elif equals and first not in RunConfiguration.model_fields:
            wrong.append(_unknown_override(text, first))
        elif equals and key.strip() == "seed":
            wrong.append(f"`{text}`: every arm runs with each of `seeds`. Give seeds={value.strip()}.")
        else:
            shared.append(text)
    base, faults = with_overrides(changed.get("base") or {}, shared)
    if wrong or faults:
        raise ConfigurationError("\n".join([*wrong, *faults]))
    return changed | {"base": base} if shared else changed
