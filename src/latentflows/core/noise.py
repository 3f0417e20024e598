"""The only place that draws random numbers in training, evaluation and generation.

Randomness is counter-based: inside `stream(*key)` every draw is a pure function of the key and of the order of
the draws. Training opens one stream per step from (seed, stage, step, shard), so that a run resumes exactly
without storing a generator's state, evaluation never disturbs training, and two arms of a study with one seed
see the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch
from torch import Tensor

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


def standard_normal(shape: Shape, *, like: Tensor) -> Tensor:
    """Draw N(0, 1) with the dtype (at least float32) and device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(shape, dtype=dtype, device=like.device)


def uniform(shape: Shape, *, like: Tensor) -> Tensor:
    """Draw U[0, 1) with the dtype (at least float32) and device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(shape, dtype=dtype, device=like.device)


def random_uint16(shape: Shape, device: torch.device | str = "cpu") -> Tensor:
    """Draw integers of {0, ..., 65535} as int32; four come from each 64-bit draw of the generator."""
    count = 1
    for n in shape:
        count *= n
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None)  # `to=None`: the whole range of int64
    return words.view(torch.int16)[:count].view(shape).to(torch.int32) + 32768


def permutation(count: int) -> Tensor:
    """Draw a permutation of 0 ... count - 1, on the CPU whatever the model's device."""
    return torch.randperm(count)
