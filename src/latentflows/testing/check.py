"""The list of properties, and one call that tries them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from latentflows.core.errors import ConfigurationError
from latentflows.core.noise import mix, stream
from latentflows.testing import density, gradients, interface, lengths, precision, state
from latentflows.testing.base import EVERYWHERE, Settings, Source, Subject, Support


def _always(subject: Subject) -> str:
    return ""


def _context(subject: Subject) -> str:
    return "" if subject.context_shape else "it takes no context"


def _missing(subject: Subject) -> str:
    return "it has both directions" if len(subject.directions) == 2 else ""


def _both(subject: Subject) -> str:
    return "" if len(subject.directions) == 2 else "it has one direction only"


def _identity(subject: Subject) -> str:
    return "" if subject.settings.identity_at_start else "`identity_at_start` is not promised"


def _autoregressive(subject: Subject) -> str:
    return "" if subject.settings.autoregressive_block else "`autoregressive_block` is not given"


def _plane(subject: Subject) -> str:
    if subject.base_shape != (2,) or subject.event_shape != (2,):
        return "the event does not have two entries"
    if subject.settings.base_support != EVERYWHERE or subject.settings.event_support != EVERYWHERE:
        return "the support has an end"
    return _both(subject)


def _endless(subject: Subject) -> str:
    ends = (*subject.settings.base_support, *subject.settings.event_support)
    return "" if all(map(math.isinf, ends)) else "the support has an end"


def _padded(subject: Subject) -> str:
    return "" if subject.first.variable_lengths else "it takes no `lengths`"


def _padded_both(subject: Subject) -> str:
    return _padded(subject) or _both(subject)


@dataclass(frozen=True)
class Property:
    """Something that every bijection must do.

    Attributes:
        check: Raises AssertionError, with what was expected and got, where it does not hold.
        left_out: Returns why the property does not concern a subject, or "" where it does.
    """

    check: Callable[[Subject], None]
    left_out: Callable[[Subject], str] = _always

    @property
    def summary(self) -> str:
        """The property in one sentence."""
        return (self.check.__doc__ or "").partition("\n")[0]

    def run(self, subject: Subject) -> None:
        """Check the subject; every draw is a function of its seed.

        Raises:
            AssertionError: where the property does not hold.
        """
        with stream(mix(subject.settings.seed, 4)):
            self.check(subject)


PROPERTIES: dict[str, Property] = {
    "declaration": Property(interface.declaration),
    "shapes": Property(interface.shapes),
    "rows": Property(interface.rows),
    "strides": Property(interface.strides),
    "log_det": Property(density.log_det),
    "orientation": Property(density.orientation),
    "round_trip": Property(density.round_trip, _both),
    "tails": Property(density.tails, _endless),
    "normalized": Property(density.normalized, _plane),
    "identity": Property(density.identity, _identity),
    "dependencies": Property(density.dependencies, _autoregressive),
    "context": Property(interface.context_matters, _context),
    "gradients": Property(gradients.gradients),
    "gradient_values": Property(gradients.gradient_values),
    "extremes": Property(gradients.extremes),
    "passes": Property(interface.passes),
    "missing_direction": Property(interface.missing_direction, _missing),
    "wrong_event_shape": Property(interface.wrong_event_shape),
    "wrong_context": Property(interface.wrong_context),
    "non_finite": Property(interface.non_finite),
    "purity": Property(state.purity),
    "copies": Property(state.copies),
    "saving": Property(state.saving),
    "initialization": Property(state.initialization),
    "dtypes": Property(precision.dtypes),
    "autocast": Property(precision.autocast),
    "device": Property(precision.device),
    "compilation": Property(precision.compilation),
    "padding": Property(lengths.padding, _padded),
    "padded_round_trip": Property(lengths.padded_round_trip, _padded_both),
}


_HOOKS = (
    "  What the hooks get: values (K, B, *event) and a context (B, *context), always with these leading axes. What "
    "they return: the value and a log-determinant that broadcasts to (K, B)."
)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        bijection: Name of the class.
        passed: Properties that hold.
        failed: What was expected and got, by property.
        left_out: Why a property was not tried, by property.
    """

    bijection: str
    passed: tuple[str, ...]
    failed: dict[str, str]
    left_out: dict[str, str]

    def __str__(self) -> str:
        tried = len(self.passed) + len(self.failed)
        if not self.failed:
            return f"`{self.bijection}` has all {tried} properties."
        lines = [f"`{self.bijection}` lacks {len(self.failed)} of {tried} properties:"]
        by_message: dict[str, list[str]] = {}
        for name, found in self.failed.items():  # one fault may show in many properties
            by_message.setdefault(found, []).append(name)
        lines += [f"  {', '.join(names)}: {found}" for found, names in by_message.items()]
        return "\n".join([*lines, _HOOKS] if self.failed.get("rows", "").startswith("raised") else lines)


class PropertyError(AssertionError):
    """A bijection lacks properties; the message says which, `report` holds everything found."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def check_bijection(
    bijection: Source,
    *,
    identity_at_start: bool = False,
    autoregressive_block: int | None = None,
    frame_group: int = 1,
    base_support: Support = EVERYWHERE,
    event_support: Support = EVERYWHERE,
    scales: tuple[float, ...] = (0.01, 1.0, 3.0),
    extreme_scale: float = 20.0,
    tolerance: float = 1e-9,
    seed: int = 0,
    skip: Collection[str] = (),
) -> Report:
    """Try every property of `PROPERTIES` on a bijection, and report all that fail together.

    It works on copies: the bijection given and the global random generators stay as they are. Keep it small, with at
    most about ten entries per event: the cost is some hundred passes and one backward pass per entry for each scale.

    Args:
        bijection: One as it is built, not initialized from data; or, better, a function that builds one, so that what
            is saved gets loaded into one that was built anew.
        identity_at_start: As it is built, it promises to be the identity.
        autoregressive_block: Entries that one step of an autoregressive layer makes (1 for a MADE); that no dependency
            is lost is then checked too.
        frame_group: Frames that a layer over sequences ties together; lengths that are tried are multiples of it.
        base_support: The interval in which every entry of u lies.
        event_support: The interval in which every entry of x lies.
        scales: Standard deviations of the random parameters.
        extreme_scale: The same where only overflow is looked for.
        tolerance: Largest error in float64, relative to 1 + |expected|; raise it for an iterative inverse.
        seed: Of all draws.
        skip: Names of properties to leave out.

    Returns:
        What passed and what was left out, with the reason.

    Raises:
        PropertyError: an AssertionError that lists every failed property with what was expected and got.
        ConfigurationError: for an unknown name in `skip`, a setting out of range, or something that is no bijection.
    """
    if isinstance(skip, str):
        raise ConfigurationError(
            f'`skip` must be a list of names; got the text {skip!r}. Write skip=["{skip}"].'
        )
    unknown = sorted(set(skip) - PROPERTIES.keys())
    if unknown:
        raise ConfigurationError(f"`skip` must hold names of {sorted(PROPERTIES)}; got {unknown}.")
    settings = Settings(
        identity_at_start=identity_at_start,
        autoregressive_block=autoregressive_block,
        frame_group=frame_group,
        base_support=base_support,
        event_support=event_support,
        scales=scales,
        extreme_scale=extreme_scale,
        tolerance=tolerance,
        seed=seed,
    )
    report = _report(Subject(bijection, settings), skip)
    if report.failed:
        raise PropertyError(report)
    return report


def _report(subject: Subject, skip: Collection[str]) -> Report:
    passed, failed, left_out = [], {}, {}
    for name, item in PROPERTIES.items():
        reason = "`skip` names it" if name in skip else item.left_out(subject)
        if reason:
            left_out[name] = reason
            continue
        try:
            item.run(subject)
        except AssertionError as error:
            failed[name] = str(error)
        except Exception as error:  # whatever a bijection raises where it should not is a finding
            failed[name] = f"raised {type(error).__name__}: {error}"
        else:
            passed.append(name)
    return Report(subject.name, tuple(passed), failed, left_out)
