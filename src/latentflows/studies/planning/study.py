"""The file of a study: arms or crossed factors, seeds, what is held equal; typed, with every fault named at once.

Nothing here imports torch, so that a mistake in a study is reported at once.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.studies.planning.faults import NOT_HELD, Faults, seeds_listed_twice, study_faults
from latentflows.studies.settings.base import Integer, Number, Settings
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.overrides import configuration_from

Overrides = list[str]
PIECES_ALONE = "pieces alone"  # as the context of a validation: what they say of each other is not looked at


def _of_32_bits(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed must be at least 0 and below 2**32; got {seed}")
    return seed


def _no_range(seed: Any) -> Any:
    """Refuse what pydantic would read as another number than it says: -3 for 0-3, 10 for 1_0."""
    if isinstance(seed, str) and re.search(r"\d[-_]\d", seed):
        raise ValueError(f"seeds are listed one by one, as seeds=0,1,2,3; got {seed!r}")
    return seed


Seed = Annotated[Integer, BeforeValidator(_no_range), AfterValidator(_of_32_bits)]


class Arm(Settings):
    """One arm of a study: overrides of the shared configuration."""

    name: str = Field(min_length=1, description="Name; part of the run folders' names.")
    label: str = Field(default="", description="Name to show; empty for the name.")
    overrides: Overrides = Field(default_factory=list, description='Such as ["prior=real_nvp"].')
    solve: str | None = Field(
        default=None,
        description="Key whose value is solved for, so that the arm meets the budget; null for the budget's, "
        "nothing for an arm that is not held to it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _label_is_name(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and not raw.get("label") and isinstance(raw.get("name"), str):
            return raw | {"label": raw["name"]}
        return raw


class Factor(Settings):
    """One axis of a crossed study: `levels` by name, or the `values` of a `key`."""

    name: str = Field(min_length=1, description="Name, by which `baseline` and `like` refer to it.")
    key: str | None = Field(default=None, description="Key that takes each of `values`, such as latent_dim.")
    values: list[int | float | str] = Field(default_factory=list, description="Values of `key`.")
    levels: list[Arm] = Field(default_factory=list, description="Or levels, written like arms.")

    @model_validator(mode="after")
    def _one_form(self) -> Factor:
        if (self.key is None) != (not self.values) or bool(self.values) == bool(self.levels):
            raise ValueError("give either `levels`, or a `key` and its `values`")
        names = [level.name for level in self.choices()]
        if len(set(names)) < len(names):
            raise ValueError(f"levels must differ; got {', '.join(names)}")
        return self

    def choices(self) -> list[Arm]:
        """Return the levels; the value 8 of the key `latent_dim` in the factor `latents` is the level `latents8`."""
        if self.levels:
            return self.levels
        return [
            Arm(
                name=re.sub(r"[^\w.-]", "-", f"{self.name}{value}"),
                label=f"{self.key}={value}",
                overrides=[f"{self.key}={value}"],
            )
            for value in self.values
        ]


Held = Literal["decoder_and_prior", "prior", "model", "training_flops", "sampling_flops", "seconds"]
_TOLERANCE = {"seconds": 0.1}


class Budget(Settings):
    """What is held equal over the arms, and what is solved for to reach it."""

    hold: Held = Field(
        description="Parameters of decoder and prior, of the prior, or of the whole model; FLOPs of all training or "
        "of drawing one data point; or measured seconds of training."
    )
    target: Number | None = Field(default=None, gt=0, description="The amount; null for that of `like`.")
    like: str | dict[str, str] | None = Field(
        default=None,
        description="Arm whose amount the others meet; in a crossed study the level of a factor, such as "
        "{prior: flow}: each arm then meets the one that differs from it in that factor alone.",
    )
    solve: str | None = Field(
        default=None,
        description="Key that is solved for in arms that name none: an integer such as latent_dim.",
    )
    tolerance: Number | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Largest relative difference from the amount; null for 0.02, or 0.1 for seconds.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Budget:
        if (self.target is None) == (self.like is None):
            raise ValueError("give either `target`, an amount, or `like`, the arm that has it")
        return self

    @property
    def within(self) -> float:
        """Largest relative difference from the amount."""
        return self.tolerance or _TOLERANCE.get(self.hold, 0.02)


class Published(Settings):
    """Figures that the literature reports for arms of a study."""

    source: str = Field(min_length=1, description="Title, year and identifier.")
    epochs: Number = Field(gt=0, description="Epochs of the published runs.")
    figures: dict[str, str] = Field(description="Figure with its spread, by the name of the arm.")


class Study(Settings):
    """What is compared: arms over seeds."""

    name: str = Field(min_length=1, description="Title.")
    description: str = Field(default="", description="What the study is about.")
    base: dict[str, Any] = Field(default_factory=dict, description="Configuration that all arms share.")
    arms: list[Arm] = Field(default_factory=list, description="What differs; crossed with the factors.")
    factors: list[Factor] = Field(default_factory=list, description="Axes, every level with every other.")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(description="Every arm runs with each of them.")
    baseline: str | dict[str, str] | None = Field(
        default=None,
        description="Arm that the others are compared with, null for the first; in a crossed study the level of a "
        "factor, such as {prior: none}: each arm is then compared with the one that differs from it in that factor "
        "alone.",
    )
    comparisons: list[tuple[str, str]] = Field(
        default_factory=list, description="Pairs of arms to compare; empty for each arm with its baseline."
    )
    budget: Budget | None = Field(default=None, description="What is held equal; null for nothing.")
    published: Published | None = Field(default=None, description="What the literature reports.")
    smallest_difference: Number | None = Field(
        default=None, gt=0, description="Difference in nats worth detecting, for the number of seeds needed."
    )

    @model_validator(mode="after")
    def _names_fit(self, info: ValidationInfo) -> Study:
        if info.context == PIECES_ALONE:
            return self
        faults = seeds_listed_twice(self.seeds) + study_faults(self)
        if faults:
            raise Faults(faults)
        return self

    def all_arms(self) -> list[Arm]:
        """Return the arms, crossed with the factors."""
        return [arm for arm, _ in self.crossed()]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the arms to compare: each with the one that it is compared with."""
        baseline = self.all_arms()[0].name if self.baseline is None else self.baseline
        return self.comparisons or list(self.counterparts(baseline).items())

    def listed(self) -> dict[str, Any]:
        """Return plain values of the study without factors, for those who read its folder."""
        baseline = self.baseline
        if not isinstance(baseline, str):  # without pairs there is one arm or one level, and any arm will do
            baseline = self.pairs()[0][1] if self.pairs() else self.all_arms()[0].name
        return self.model_dump(mode="json", exclude={"factors", "budget", "base"}) | {
            "arms": [arm.model_dump(mode="json") for arm in self.all_arms()],
            "baseline": baseline,
            "comparisons": [list(pair) for pair in self.pairs()],
            "interaction": self.interaction(),
        }

    def interaction(self) -> dict[str, Any] | None:
        """Return the arms of two axes with two levels each: both changes, each alone, neither, and what to call them.

        Changes are from the levels of the baseline, as far as it names them, else from the first ones.
        """
        axes = [*([self.arms] if self.arms else []), *(factor.choices() for factor in self.factors)]
        if [len(levels) for levels in axes] != [2, 2]:
            return None
        crossed = self.crossed()
        named = {arm.name: place for arm, place in crossed}
        start = (
            named[self.baseline] if isinstance(self.baseline, str) else crossed[0][1] | (self.baseline or {})
        )
        at = {tuple(place.values()): arm.name for arm, place in crossed}
        a, b = start.values()
        first, second = (
            next(level for level in levels if level.name != usual)
            for levels, usual in zip(axes, (a, b), strict=True)
        )
        return {
            "both": at[first.name, second.name],
            "first": at[first.name, b],
            "second": at[a, second.name],
            "neither": at[a, b],
            "labels": [first.label, second.label],
        }

    def crossed(self) -> list[tuple[Arm, dict[str, str]]]:
        """Return every arm with its place: the level of each factor, and under "" the listed arm it comes from."""
        axes = [*([""] if self.arms else []), *(factor.name for factor in self.factors)]
        return [
            (_joined(made), {axis: part.name for axis, part in zip(axes, made, strict=True)})
            for made in self.parts()
        ]

    def parts(self) -> list[list[Arm]]:
        """Return for every crossed arm the listed arm and the levels that it is made of."""
        axes = [factor.choices() for factor in self.factors]
        listed = [[arm] for arm in self.arms] or [[]]
        return [[*first, *levels] for first in listed for levels in product(*axes)]

    def counterparts(self, of: str | dict[str, str]) -> dict[str, str]:
        """Return for every other arm the one it is compared with: `of`, or the arm with that level.

        Raises:
            ValueError: if `of` names an arm, a factor or a level that is not there.
        """
        crossed = self.crossed()
        names = [arm.name for arm, _ in crossed]
        if isinstance(of, str):
            if of not in names:
                raise ValueError(f"must be one of {', '.join(dict.fromkeys(names))}; got {of!r}")
            return {name: of for name in names if name != of}
        for factor, level in of.items():
            choices = {each.name: [arm.name for arm in each.choices()] for each in self.factors}
            if factor not in choices:
                known = ", ".join(choices) or "none"
                raise ValueError(f"names the factor {factor!r}; the factors are {known}")
            if level not in choices[factor]:
                raise ValueError(
                    f"names the level {level!r} of {factor}; its levels are {', '.join(choices[factor])}"
                )
        if not of:
            raise ValueError("must name a factor and its level; got none")
        at = {frozenset(place.items()): arm.name for arm, place in crossed}
        found = {arm.name: at[frozenset((place | of).items())] for arm, place in crossed}
        return {name: other for name, other in found.items() if name != other}

    def solves_for(self, arm: Arm) -> str | None:
        """Return the key whose value the budget decides in an arm; None where all its sizes stay."""
        budget = self.budget
        if budget is None or arm.solve == NOT_HELD:
            return None
        if budget.like is not None and arm.name not in self.counterparts(budget.like):
            return None
        return arm.solve or budget.solve

    def configuration(self, arm: Arm, seed: int, solved: Overrides | None = None) -> RunConfiguration:
        """Return the configuration of one run; without trackers, unless the study names some.

        Raises:
            ConfigurationError: naming the arm, if its overrides do not apply.
        """
        own = [f"seed={seed}", f"name={arm.name}-seed{seed}"]
        try:
            configuration = configuration_from(self.base, [*arm.overrides, *(solved or []), *own])
        except LatentFlowsError as error:
            raise ConfigurationError(f"Arm {arm.name!r}: {error}") from None
        trackers = configuration.training.trackers or ()
        training = configuration.training.model_copy(update={"trackers": trackers})
        return configuration.model_copy(update={"training": training})


def _joined(levels: list[Arm]) -> Arm:
    """Return the arm that several levels make together."""
    return Arm(
        name="-".join(level.name for level in levels),
        label=", ".join(level.label for level in levels),
        overrides=[text for level in levels for text in level.overrides],
        solve=next((level.solve for level in levels if level.solve), None),
    )
