"""The only place that draws random numbers in training, evaluation and generation.

Randomness is counter-based: inside `stream(*key)` every draw is a pure function of the key and of the order of
the draws. Training opens one stream per step from (seed, stage, step, shard), so that a run resumes exactly
without storing a generator's state, evaluation never disturbs training, and two arms of a study with one seed
see the same data in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from latentflows.core.errors import CombinationError
from latentflows.core.shapes import Shape

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a stream is for: the second part of its key, after the seed, so that no two uses share their draws."""

    ORDER = 1
    STEP = 2
    VALIDATION = 3
    EVALUATION = 4
    SAMPLE = 5
    RECONSTRUCT = 6
    INTERPOLATE = 7
    DATA = 8
    INITIALIZATION = 9
    SAMPLE_QUALITY = 10
    CLASSIFIER = 11
    LATENTS = 12
    DIAGNOSTICS = 13
    NORMALIZER = 14


def mix(*key: int) -> int:
    """Hash integers to 63 bits (the finalizer of SplitMix64, chained)."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (state ^ (part & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state = state ^ (state >> 31)
    return state >> 1


def reseed(*key: int) -> None:
    """Start the stream of `key` on every device in use, in place; call it only inside `preserved()`."""
    seed = mix(*key)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def preserved() -> Iterator[None]:
    """Give the caller's generators back unchanged at the end."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def stream(*key: int) -> Iterator[None]:
    """Make every draw inside a pure function of `key`; afterwards the generators are as before."""
    with preserved():
        reseed(*key)
        yield


@contextmanager
def stream_on_cpu(*key: int) -> Iterator[None]:
    """As `stream`, with draws of the CPU's generator for every device, which then are the same on all."""
    with (
        stream(*key),
        _watched(lambda draw: replace(draw, device=torch.device("cpu")).take().to(draw.device)),
    ):
        yield


@dataclass(frozen=True)
class Draw:
    """What was asked of the generator."""

    kind: Literal["normal", "uniform", "uint16", "permutation"]
    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def take(self) -> Tensor:
        """Ask the generator for it."""
        if self.kind == "normal":
            return torch.randn(self.shape, dtype=self.dtype, device=self.device)
        if self.kind == "uniform":
            return torch.rand(self.shape, dtype=self.dtype, device=self.device)
        if self.kind == "uint16":
            return _integers(self.shape, self.device)
        return torch.randperm(self.shape[0])


_watch: Callable[[Draw], Tensor] | None = None  # answers every draw, while there is one


@contextmanager
def _watched(watch: Callable[[Draw], Tensor]) -> Iterator[None]:
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


@contextmanager
def recorded() -> Iterator[list[Draw]]:
    """Note every draw made inside, in order."""
    draws: list[Draw] = []

    def note(draw: Draw) -> Tensor:
        draws.append(draw)
        return draw.take()

    with _watched(note):
        yield draws


@contextmanager
def given(draws: Sequence[Draw], values: Sequence[Tensor]) -> Iterator[None]:
    """Hand out `values`, which were drawn before, in place of fresh draws: each once, in order.

    So a program whose draws must be inputs, such as a vectorized one, gives what it would have drawn itself.

    Raises:
        CombinationError: where other draws than those of the list are made inside.
    """
    rest = iter(list(zip(draws, values, strict=True)))

    def hand_out(draw: Draw) -> Tensor:
        expected, value = next(rest, (None, None))
        if value is None or expected != draw:
            raise _differs(f"a {draw.kind} draw of shape {draw.shape} where {expected or 'none'} was to come")
        return value

    with _watched(hand_out):
        yield
    if next(rest, None) is not None:
        raise _differs("fewer draws")


def _differs(found: str) -> CombinationError:
    return CombinationError(
        f"Draws that are handed out must be the same every time; got {found}. Let the number and the shapes of draws "
        "depend on no values."
    )


def standard_normal(shape: Shape, *, like: Tensor) -> Tensor:
    """Draw N(0, 1) with the dtype (at least float32) and device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if _watch is not None:
        return _watch(Draw("normal", tuple(shape), dtype, like.device))
    return torch.randn(shape, dtype=dtype, device=like.device)


def uniform(shape: Shape, *, like: Tensor) -> Tensor:
    """Draw U[0, 1) with the dtype (at least float32) and device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if _watch is not None:
        return _watch(Draw("uniform", tuple(shape), dtype, like.device))
    return torch.rand(shape, dtype=dtype, device=like.device)


def random_uint16(shape: Shape, device: torch.device | str = "cpu") -> Tensor:
    """Draw integers of {0, ..., 65535} as int32; four come from each 64-bit draw of the generator."""
    if _watch is not None:
        return _watch(Draw("uint16", tuple(shape), torch.int32, torch.device(device)))
    return _integers(shape, device)


def _integers(shape: Shape, device: torch.device | str) -> Tensor:
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None)  # `to=None`: the whole range of int64
    return words.view(torch.int16)[:count].view(shape).to(torch.int32) + 32768


def permutation(count: int) -> Tensor:
    """Draw a permutation of 0 ... count - 1, on the CPU whatever the model's device."""
    if _watch is not None:
        return _watch(Draw("permutation", (count,), torch.int64, torch.device("cpu")))
    return torch.randperm(count)
