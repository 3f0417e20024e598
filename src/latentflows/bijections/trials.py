"""A trial of a layer of another library: values to try it on, the networks it calls, and its errors, explained."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from latentflows.core import noise
from latentflows.core.errors import CombinationError, LatentFlowsError
from latentflows.core.shapes import Shape

TRIAL_ROWS = 4  # normflows' ActNorm needs more than one
Result = TypeVar("Result")


@contextmanager
def explained(source: object, event: Shape, context: Shape | None, wanted: str) -> Iterator[None]:
    """Say what was tried, and what was wanted, where a trial raises an error of the other library."""
    try:
        yield
    except LatentFlowsError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        given = (
            "no context: give `context_shape` if it needs one" if context is None else f"a context {context}"
        )
        raise CombinationError(
            f"`{type(source).__name__}` cannot be applied to events {event} with {given}. It must be {wanted}; it "
            f"says: {error}"
        ) from error


def draw(source: object, shape: Shape, rows: int = TRIAL_ROWS) -> Tensor:
    """Draw N(0, I) of shape (1, rows, *shape), with the type and the device of a module's largest parameter.

    Of its largest buffer where it has no parameters. The largest, since a small one may be of another type.
    """
    module = source if isinstance(source, nn.Module) else nn.Module()
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    like = max(parameters or buffers or [torch.zeros(())], key=Tensor.numel)
    return noise.standard_normal((1, rows, *shape), like=like)


def count(source: object, call: Callable[[], Result]) -> tuple[int | None, Result | None]:
    """Count the networks that `call` evaluates inside a module; return that and what it returned.

    Both are None if it raises `NotImplementedError`, or Pyro's `KeyError`, where a transform finds points that it has
    mapped itself and no others. A network is a module with parameters that returns a tensor, and what it calls inside
    is part of it.
    """
    counts = [0]

    def enter(*_: object) -> None:
        counts.append(0)

    def leave(part: nn.Module, arguments: object, output: object) -> None:
        inside = counts.pop()
        is_network = isinstance(output, Tensor) and next(part.parameters(), None) is not None
        counts[-1] += 1 if is_network else inside

    handles = []
    for part in source.modules() if isinstance(source, nn.Module) else ():
        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        result = call()
    except NotImplementedError:
        return None, None
    except KeyError as error:
        if "intermediates cache" not in str(error):
            raise
        return None, None
    finally:
        for handle in handles:
            handle.remove()
    return counts[0], result


def count_exact(
    layer: nn.Module, call: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[int | None, tuple[Tensor, Tensor] | None]:
    """Count the networks that `call` evaluates inside a layer, as `count`; refuse one that draws random numbers.

    An estimate may be exact at the start, or a step be rejected twice, so generators are looked at beside results.

    Raises:
        CombinationError: if the second call draws random numbers; the first may, to set the layer up.
    """
    with torch.enable_grad():  # some layers need gradients to get as far as their random numbers
        passes, first = count(layer, call)
        if first is None:
            return None, None
        states = _generator_states()
        second = call()
        drawn = states != _generator_states()
    for one, other in zip(first, second, strict=True):
        drawn = drawn or not torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)
    if drawn:
        raise CombinationError(
            f"`{type(layer).__name__}` draws random numbers in eval mode, so it gives the same points other values or "
            "log-determinants, and no density can rest on it as exact. Use a deterministic layer; in place of a "
            "residual flow, which estimates its log-determinant, a coupling or a continuous flow "
            "(`latentflows.models.zuko_flows.cnf`)."
        )
    with torch.no_grad():  # as where it is sampled from or evaluated
        call()
    return passes, first


def _generator_states() -> bytes:
    """Return the states of the generators that all share: those of Python, numpy, and torch on every device in use."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    tensors = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if on_gpu else [])]
    return pickle.dumps((random.getstate(), np.random.get_state(), [state.tolist() for state in tensors]))
