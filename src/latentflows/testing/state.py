"""State: use leaves none behind, copies are equal, and what is saved comes back."""

from __future__ import annotations

import copy
import io
import pickle
import sys

import torch
from torch import Tensor

from latentflows.bijections import Bijection
from latentflows.bijections.base import waiting_layers
from latentflows.testing.base import EVERYWHERE, RESULTS, Subject, expect, expect_close, run


def purity(subject: Subject) -> None:
    """Use changes neither parameters, buffers, inputs nor random generators; training and evaluation agree."""
    bijection = subject.build()
    for direction in subject.directions:
        context = subject.context(3)
        value = subject.values(bijection, direction, 3, context=context)
        inputs = [tensor for tensor in (value, context) if tensor is not None]
        kept = [tensor.clone() for tensor in inputs]
        bijection = subject.build()
        before, generator = _tensors(bijection), torch.get_rng_state()
        first = run(bijection.train(), direction, value, context)
        again = run(bijection.train(), direction, value, context)
        evaluated = run(bijection.eval(), direction, value, context)
        with torch.no_grad():
            quiet = run(bijection.eval(), direction, value, context)
        expect(torch.equal(generator, torch.get_rng_state()), f"{direction} draws random numbers")
        _expect_equal_tensors(_tensors(bijection), before, f"after use, {direction}")
        unchanged = all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, kept, strict=True))
        expect(unchanged, f"{direction} writes into its input or its context")
        for what, other in (
            ("a second time", again),
            ("in evaluation", evaluated),
            ("without gradients", quiet),
        ):
            for name, got, expected in zip(RESULTS, other, first, strict=True):
                expect_close(
                    got, expected, subject.settings.tolerance, f"{direction} {what}, against training: {name}"
                )


def copies(subject: Subject) -> None:
    """A deep copy, and a pickled one where its class can be imported, maps alike."""
    bijection = subject.build()
    _expect_same_map(subject, copy.deepcopy(bijection), bijection, "a deep copy")
    kinds = {type(module) for module in bijection.modules()}
    if all(_importable(kind) for kind in kinds):
        _expect_same_map(subject, pickle.loads(pickle.dumps(bijection)), bijection, "a pickled copy")


def _importable(kind: type) -> bool:
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def saving(subject: Subject) -> None:
    """The saved state is contiguous tensors with memory of their own, and makes another one map alike."""
    bijection = subject.build()
    state = bijection.state_dict()
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        expect(isinstance(tensor, Tensor), f"state `{name}`: expected a tensor, got {type(tensor).__name__}")
        expect(
            tensor.is_contiguous(),
            f"state `{name}`: expected a contiguous tensor, as safetensors stores them",
        )
        owner = owners.setdefault(tensor.untyped_storage().data_ptr(), name) if tensor.numel() else name
        expect(owner == name, f"state `{name}` shares its memory with `{owner}`; safetensors refuses that")
    other = _loaded(subject, bijection, draw=1)
    _expect_same_map(subject, other, bijection, "one that loaded the saved state")


def _loaded(subject: Subject, bijection: Bijection, draw: int) -> Bijection:
    """Save, and load into another one that started elsewhere."""
    file = io.BytesIO()
    torch.save(bijection.state_dict(), file)
    file.seek(0)
    other = subject.build(0.5, draw=draw)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def initialization(subject: Subject) -> None:
    """`initialize` sets all layers and returns what the batch maps to; again, or after a load, it changes nothing."""
    for direction in subject.directions:
        bijection, context = subject.start(), subject.context(64)
        value = subject.values(bijection, direction, 64, context=context)
        if subject.support_in(direction) == EVERYWHERE:
            value = 1.5 * value
        out = bijection.initialize(value, context, direction=direction)
        waiting = sorted({type(layer).__name__ for layer in waiting_layers(bijection)})
        what = f"{direction}: expected `initialize` to set every layer; {waiting} still wait"
        expect(not waiting, f"{what}. Call `_start` first thing in `_forward` and in `_inverse`.")
        expected, _ = run(bijection, direction, value, context)
        what = f"what `initialize` returns, against {direction}"
        expect_close(out, expected, subject.settings.tolerance, what)
        set_once = _tensors(bijection)
        again = subject.values(bijection, direction, 64, context=context)
        bijection.initialize(again, context, direction=direction)
        _expect_equal_tensors(_tensors(bijection), set_once, f"{direction} after a second `initialize`")
        other = _loaded(subject, bijection, draw=2)
        for mode in (True, False):
            other.train(mode).initialize(again, context, direction=direction)
            run(other, direction, again, context)
            when = f"{direction} after load and another `initialize`"
            _expect_equal_tensors(_tensors(other), set_once, when)


def _tensors(bijection: Bijection) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, saved or not."""
    named = (*bijection.named_parameters(), *bijection.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def _expect_equal_tensors(now: dict[str, Tensor], before: dict[str, Tensor], when: str) -> None:
    expect(now.keys() == before.keys(), f"{when}: expected the tensors {sorted(before)}, got {sorted(now)}")
    changed = [name for name in before if not torch.equal(now[name], before[name])]
    expect(
        not changed, f"{when}: expected parameters and buffers as before, but {', '.join(changed)} changed"
    )


def _expect_same_map(subject: Subject, other: Bijection, bijection: Bijection, what: str) -> None:
    direction = subject.cheap[0]
    context = subject.context(3)
    value = subject.values(bijection, direction, 3, context=context)
    pairs = zip(run(other, direction, value, context), run(bijection, direction, value, context), strict=True)
    for name, (got, expected) in zip(RESULTS, pairs, strict=True):
        expect_close(got, expected, 0.0, f"{what}, {direction}: {name}")
