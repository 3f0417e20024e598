"""The size at which an arm costs what the budget says; no model is built that could not be trained here.

A size is tried under a watch, which ends the building of a model, or a step of it, that is too large for the memory of
this machine, and tells how much work a step was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from latentflows.core.errors import ConfigurationError, LatentFlowsError
from latentflows.studies.planning.budget import FLOPCounter, Workshop, shown_amount
from latentflows.studies.planning.study import Budget
from latentflows.studies.running.failures import is_out_of_memory
from latentflows.studies.settings.configuration import RunConfiguration

_LARGEST = 1 << 20  # of a size that is solved for
_UNCHANGED = 6  # doublings that change nothing, after which a size is given up
_LOOKED_AROUND = 64  # sizes beside one that cannot be built, such as a width that its heads do not divide
_BYTES = 16  # of a parameter in training: its float32, its gradient and the two averages of Adam
_MOST_TENSORS = 1 << 14  # of parameters in one model: building so many takes seconds
_LARGE_MODEL = 1 << 24  # parameters; up to here a model is built in an instant
_LARGE_STEP = 1e11  # FLOPs; up to here a step takes a few seconds at most
_FAR = 256  # of a target that is so many times an amount, a size may be some doublings away
_STEEP = 16  # no amount grows by more when a size is doubled


@dataclass(frozen=True)
class Solution:
    """The size at which an arm meets its budget: what it is, and what it then spends."""

    key: str
    value: int
    amount: float


class _TooLarge(Exception):  # not among the errors that say that a model has no such quantity
    """A size asks for more than this machine has."""


def _memory() -> int:
    """Return the bytes of memory of this machine; a tebibyte where it does not tell."""
    if not hasattr(os, "sysconf"):
        return 1 << 40
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Watch(FLOPCounter):
    """Counts parameters and FLOPs of what is done under it, and stops it where it grows too large."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters = self.tensors = 0
        self.room = _memory() // _BYTES

    def __enter__(self) -> _Watch:
        self._hook = register_module_parameter_registration_hook(self._register)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()

    def _register(self, _module: nn.Module, _name: str, parameter: Tensor | None) -> None:
        self.parameters += 0 if parameter is None else parameter.numel()
        self.tensors += 1
        self._refuse_beyond(self.parameters)
        if self.tensors > _MOST_TENSORS:
            raise _TooLarge(f"a model would have more than {_MOST_TENSORS:,} tensors of parameters")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(found, Tensor):
            self._refuse_beyond(found.numel())
        return found

    def _refuse_beyond(self, numbers: int) -> None:
        if numbers > self.room:
            raise _TooLarge(
                f"training would take more than the {_memory() / 2**30:.3g} GiB of memory of this machine"
            )


class _Sizes:
    """Tries the sizes of a key, each once: what they spend, or why they cannot be had."""

    def __init__(
        self, configure: Callable[[int], RunConfiguration], hold: str, target: float, workshop: Workshop
    ) -> None:
        self.configure, self.hold, self.target, self.workshop = configure, hold, target, workshop
        self.amounts: dict[int, float | None] = {}
        self.refusal = ""  # of the first size that cannot be built
        self.limit = ""  # why no larger size is tried
        self._smallest_step: int | None = None

    def amount(self, size: int) -> float | None:
        """Return what a size spends: None for one that cannot be built, infinity for one too large to be tried."""
        if size not in self.amounts:
            try:
                self.amounts[size] = self._tried(self.configure(size))
            except LatentFlowsError as error:
                self.amounts[size], self.refusal = None, self.refusal or str(error)
            except _TooLarge as error:
                self.amounts[size], self.limit = math.inf, str(error)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.amounts[size], self.limit = math.inf, "this machine has not enough memory"
        return self.amounts[size]

    def known(self) -> dict[int, float]:
        """Return what was spent by the sizes that could be tried."""
        return {size: found for size, found in self.amounts.items() if found is not None and found < math.inf}

    def _tried(self, configuration: RunConfiguration) -> float:
        timed = self.hold == "seconds"  # under a watch every operation takes longer: a step is counted first
        with _Watch() as watch:
            found = self.workshop.amount(configuration, "training_flops" if timed else self.hold)
        if timed:
            found = self.workshop.amount(configuration, self.hold)
        self._look_ahead(watch, found)
        return found

    def _look_ahead(self, watch: _Watch, found: float) -> None:
        """Note why no size can meet the target, where this one is far from it and as large as is tried at once."""
        smallest = self._smallest_step = self._smallest_step or watch.flops
        if self.hold in ("decoder_and_prior", "prior", "model"):
            if self.target > watch.room and watch.parameters > _LARGE_MODEL:
                self.limit = (
                    f"training would take more than the {_memory() / 2**30:.3g} GiB of memory of this machine"
                )
        elif watch.flops > max(_LARGE_STEP, 2 * smallest) and _FAR * found < self.target:
            self.limit = (
                f"one step and draw take {watch.flops:.2g} FLOPs, and would take {_FAR} times as many"
            )


def solve(
    configure: Callable[[int], RunConfiguration], key: str, budget: Budget, target: float, workshop: Workshop
) -> Solution:
    """Find the integer at which the amount comes nearest to the target.

    The amount must grow with the size; it is bracketed by doubling and then halved, so that a size n takes about
    2 log2(n) builds. Where some sizes cannot be built (a width that must be a multiple of the heads) the nearest ones
    that can be are tried. Doubling ends at the first size that spends the target, or that this machine could not train,
    or from which no size within its means is to be expected: the largest model takes at most 16 bytes of memory for
    each of its parameters.

    Args:
        configure: Makes the configuration with a size.
        key: What is solved for, for the message.
        budget: What is held, and how well.
        target: The amount to meet.
        workshop: Builds and measures.

    Raises:
        ConfigurationError: if no size comes within the tolerance, with the nearest sizes and their amounts.
    """
    sizes = _Sizes(configure, budget.hold, target, workshop)
    low, high = _bracket(sizes)
    if len(sizes.known()) == 1 and not sizes.limit:  # the target was met at once: perhaps by any size
        size = next(iter(sizes.known()))
        _nearest_built(size + 1, size, size + _LOOKED_AROUND, sizes)
    built = sizes.known()
    if not built:
        raise ConfigurationError(
            f"no value of `{key}` can be built; with 1: {sizes.refusal or sizes.limit.rstrip('.') + '.'}"
        )
    if len(set(built.values())) == 1 and len(built) > 1:
        raise ConfigurationError(
            f"`{key}` changes nothing of what is held ({budget.hold}). Solve for another key."
        )
    while high - low > 1:
        middle = _nearest_built((low + high) // 2, low, high, sizes)
        if middle is None:
            break
        low, high = (middle, high) if (sizes.amount(middle) or 0) <= target else (low, middle)
    built = sizes.known()
    best = min(built, key=lambda size: abs(built[size] - target))
    if abs(built[best] - target) > budget.within * target:
        raise ConfigurationError(_unmet(key, budget, target, sizes))
    return Solution(key, best, built[best])


def _unmet(key: str, budget: Budget, target: float, sizes: _Sizes) -> str:
    """Say that no size meets the target, which come nearest, and why no larger one was tried.

    Of seconds it is said of the timings alone: another value, or the same one timed again, may meet the target.
    """
    built = sizes.known()
    near = sorted(built, key=lambda size: (abs(built[size] - target), -built[size]))[:2]
    found = ", ".join(f"{size} gives {shown_amount(built[size], budget.hold)}" for size in sorted(near))
    larger = f" No larger one was tried: {sizes.limit}." if sizes.limit else ""
    timed = budget.hold == "seconds"
    varies = " Timings vary where the machine has other work: plan on a quiet one." if timed else ""
    return (
        f"no {'timing' if timed else 'value'} of `{key}` meets {shown_amount(target, budget.hold)} within "
        f"{100 * budget.within:.3g}%: {found}.{larger}{varies} Solve for another key, change a fixed size, or raise "
        "`budget.tolerance`."
    )


def _bracket(sizes: _Sizes) -> tuple[int, int]:
    """Return a size that spends less and one about twice as large that spends more, or the largest that was tried."""
    low, high, before, unchanged = 1, 1, None, 0
    while high < _LARGEST and not sizes.limit:
        # Where a power of two cannot be built, such as a width that three heads divide, the next that can be.
        size = (
            high
            if sizes.amount(high) is not None
            else _nearest_built(high + high // 2, high, 2 * high, sizes)
        )
        found = None if size is None else sizes.amount(size)
        if size is not None and found is not None and found >= sizes.target:
            near = found < math.inf or _STEEP * sizes.known().get(low, 0.0) >= sizes.target
            return low, size if near else low
        unchanged = unchanged + 1 if found == before else 0
        if unchanged == _UNCHANGED:  # not to build ever larger models of a size that is not counted
            break
        low, high, before = low if size is None else size, high * 2, found
    return (low, low) if sizes.limit else (low, high)


def _nearest_built(middle: int, low: int, high: int, sizes: _Sizes) -> int | None:
    """Return the size nearest to the middle that can be built, strictly between the ends; None if there is none."""
    for distance in range(min(_LOOKED_AROUND, max(middle - low, high - middle))):
        for size in (middle - distance, middle + distance):
            if low < size < high and sizes.amount(size) is not None:
                return size
    return None
