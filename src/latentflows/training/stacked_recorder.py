"""The operations on plain tensors that some code comes down to, noted as they run, as a function of its inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from latentflows.core.errors import CombinationError

_ATEN = torch.ops.aten
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)
_SAME = (_ATEN.detach.default, _ATEN.alias.default)
_RESHAPING = (*_VIEWS, *_SAME, _ATEN.expand.default)
_BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


def recorded_operations(code: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Run `code`, which reads `inputs`, and return a function of tensors of their shapes that repeats its operations.

    Below `torch.func` and autograd no trace is left of either: the function computes the gradients that `code` took.
    Other tensors that it reads are kept as they are. Reshapes that change nothing are left out.

    Cost: of the function, that of its operations. Memory while recording: all values at once.

    Raises:
        CombinationError: where a decision or a shape depends on values, or a random number is drawn.
    """
    recorder = _Recorder(inputs)
    with recorder:
        outputs = code()
    return recorder.function(outputs)


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.nodes: dict[int, fx.Node] = {}
        self.kept: list[Tensor] = []  # so that no two tensors have one id
        for number, tensor in enumerate(inputs):
            self._name(tensor, self.graph.placeholder(f"input_{number}"))
        self.varying = set(self.graph.nodes)  # what follows from the inputs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _asks_for_values(func, args) and any(self._varies(value) for value in args):
            raise CombinationError(f"a decision depends on values (`{func.__name__}`)")
        if _draws(func, args, kwargs):
            raise CombinationError(
                f"random numbers are drawn by `{func.__name__}`, not by `latentflows.core.noise`"
            )
        out = func(*args, **kwargs)
        if func in _RESHAPING and (func in _SAME or _layout(out) == _layout(args[0])):
            self._name(out, self._node(args[0]))
            return out
        read, named = map_aggregate((tuple(args), dict(kwargs)), self._node_or_value)
        if func in _VIEWS and read[0].target in _VIEWS:
            read = (read[0].args[0], *read[1:])  # of two in a row the first is not needed
        node = self.graph.call_function(func, read, named)
        if self.varying.intersection(node.all_input_nodes):
            self.varying.add(node)
        if isinstance(out, Tensor):
            self._name(out, node)
        elif isinstance(out, list | tuple):
            for index, value in enumerate(out):
                if isinstance(value, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    self._name(value, item)
                    if node in self.varying:
                        self.varying.add(item)
        return out

    def function(self, outputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.graph.output(tuple(self._node(tensor) for tensor in outputs))
        for node in reversed(self.graph.nodes):  # nothing else is taken for dead: it might write in place
            if node.target in _RESHAPING and not node.users:
                self.graph.erase_node(node)
        self.kept, self.nodes = [], {}
        return fx.GraphModule(self.constants, self.graph)

    def _name(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = node
        self.kept.append(tensor)

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self.nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor
            self._name(tensor, self.graph.create_node("get_attr", name))
        return self.nodes[id(tensor)]

    def _varies(self, value: Any) -> bool:
        return isinstance(value, Tensor) and self.nodes.get(id(value)) in self.varying

    def _node_or_value(self, value: Any) -> Any:
        return self._node(value) if isinstance(value, Tensor) else value


def _asks_for_values(func: Any, args: Sequence[Any]) -> bool:
    """Whether what comes out, or its shape, is decided by values; indexing by positions is not, by a mask it is."""
    if func is _ATEN.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return any(tag in func.tags for tag in _BY_VALUE)


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether random numbers are drawn; attention is said to draw some, and does so for dropout alone."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return "dropout_p" not in names or given.get("dropout_p", 0.0) > 0


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype
