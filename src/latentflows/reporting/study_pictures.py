"""Pictures of a study side by side: the data, and samples of every arm at one seed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from latentflows.reporting.base import COMMANDS, Picture, read_pictures
from latentflows.studies.results.results import Results


@dataclass(frozen=True)
class Shown:
    """A picture with its heading, its run and the link to it."""

    heading: str
    picture: Picture
    run: str
    link: str | None


def study_pictures(results: Results, links: Mapping[tuple[str, int], str | None]) -> tuple[int, list[Shown]]:
    """The seed at which most arms have samples, the first of these; the data, then samples of every arm at it."""
    study = results.study
    has_samples = {
        seed: sum(
            (results.folder / run.run / "samples" / "samples.png").is_file()
            for (_, other), run in results.runs.items()
            if other == seed
        )
        for seed in study.seeds
    }
    seed = max(study.seeds, key=lambda seed: has_samples[seed])
    data, samples = [], []
    for arm, label in study.labels.items():
        run = results.runs.get((arm, seed))
        if run is None:
            continue
        pictures = {picture.file: picture for picture in read_pictures(results.folder / run.run)}
        source = (run.run, links.get((arm, seed)))
        if "data.png" in pictures and not data:
            data.append(Shown("Data", pictures["data.png"], *source))
        if "samples.png" in pictures:
            samples.append(Shown(label, pictures["samples.png"], *source))
        if "latents.png" in pictures:
            samples.append(Shown(f"{label}: q(z) and p(z)", pictures["latents.png"], *source))
    return seed, data + samples


def without_pictures(results: Results) -> tuple[str, str | None]:
    """What to do where no run has pictures: draw those of a finished one, or go on."""
    finished = [run for run in results.runs.values() if run.status == "finished"]
    if not finished:
        return "No run has finished, so there are no pictures yet.", None
    folder = shlex.quote(str(results.folder / finished[0].run))
    return "No run of this seed has pictures. To make them:", COMMANDS["samples/index.json"].format(
        folder=folder
    )
