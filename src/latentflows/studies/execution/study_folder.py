"""The folder of a study: what it may hold, and `study.json` and `plan.json` in it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflows.core.errors import ConfigurationError
from latentflows.core.files import is_partial, write_atomically
from latentflows.studies.planning.study import Study
from latentflows.studies.planning.study_file import checked
from latentflows.studies.settings.overrides import MAY_DIFFER, changed_keys, flat, read_mapping

if TYPE_CHECKING:
    from latentflows.studies.planning.plan import Plan

LOCK = ".lock"
_WORDS = ("name", "description", "published")  # what is said about a study changes none of its runs
_REMOVED = ".removed"  # runs on their way out: a crash in the middle leaves no half of one among the runs


def check_folder(study: Study, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else than the study, or the study where nobody asked to go on with it.

    A study that goes on may have more seeds than before, and other titles and labels.

    Raises:
        ConfigurationError: saying what is there and what to do.
    """
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"`out` must be a folder; {out} is a file. Choose another one.")
    path = out / "study.json"
    if not path.is_file():
        if out.is_dir() and any(not _is_ours(item) for item in out.iterdir()):
            raise ConfigurationError(
                f"{out} is not an empty folder and holds no study. Choose another `out`."
            )
        return
    if overwrite:
        return
    before = read_back(path)
    changed = _changed(before, study)
    if changed:
        raise ConfigurationError(
            f"{out} holds another study ({before.name!r}), which differs in {', '.join(changed)}. Choose another "
            "`out`, or replace it with --overwrite."
        )
    if not resume:
        raise ConfigurationError(
            f"{out} holds this study already. Continue it with --resume, choose another `out`, or replace it with "
            "--overwrite."
        )


def _changed(before: Study, after: Study) -> list[str]:
    """Name the keys in which two studies differ in what they run and compare.

    More seeds than before, titles and labels, another way to write the same settings, and where and how runs are
    carried out are no difference; nor is where data lie that have a name.
    """
    written = {"seeds", "base", "arms", "factors", *_WORDS}
    one, two = (flat(study.model_dump(mode="json", exclude=written)) for study in (before, after))
    changed = changed_keys(one, two) + ([] if set(before.seeds) <= set(after.seeds) else ["seeds (fewer)"])
    two = _arms(after, before.seeds[0])
    try:
        one = _arms(before, before.seeds[0])
    except ConfigurationError:  # of a version with other settings
        one = {}
    if one.keys() != two.keys():
        return [*changed, "arms"]
    for arm, settings in one.items():
        own_data = two[arm]["data.name"] in ("folder", "arrays")  # which nothing but their place tells apart
        may_differ = MAY_DIFFER - {"data.root"} if own_data else MAY_DIFFER
        changed += [key for key in changed_keys(settings, two[arm]) if key not in may_differ]
    return list(dict.fromkeys(changed))


def _arms(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """What every arm runs, by its name."""
    return {
        arm.name: flat(study.configuration(arm, seed).model_dump(mode="json"))
        | {"solve": study.solves_for(arm)}
        for arm in study.all_arms()
    }


def _is_ours(path: Path) -> bool:
    """Whether a file is what this package leaves in a folder before it holds a study."""
    return path.name in (LOCK, _REMOVED) or is_partial(path)


def prepare_folder(plan: Plan, out: Path, command: str, *, overwrite: bool) -> None:
    """Write `study.json` and `plan.json`; to overwrite is to remove record, plan and runs first.

    The plan comes last: after a crash in between there is none, rather than one of another study.
    """
    if overwrite:
        (out / "study.jsonl").unlink(missing_ok=True)
        (out / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(out / _REMOVED, ignore_errors=True)
        if (out / "runs").exists():
            os.replace(out / "runs", out / _REMOVED)
    shutil.rmtree(out / _REMOVED, ignore_errors=True)
    study = plan.study
    # `study` is what the file said; the rest has every arm by name, for those who read the folder.
    whole = {**study.listed(), "study": study.model_dump(mode="json")}
    _write(out / "study.json", {"format": 1, "command": command, **whole})
    _write(out / "plan.json", plan.to_json())


def read_back(path: Path) -> Study:
    """Return the study that a `study.json` was written for.

    Raises:
        ConfigurationError: if it holds none.
    """
    raw = read_mapping(path)
    content = raw.get("study", raw)  # folders of earlier versions have its keys alone
    known = {key: value for key, value in content.items() if key in Study.model_fields}
    return checked(known, str(path))


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
