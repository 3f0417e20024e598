r"""Solve x = T(u; raw(u)) for u, where raw is a masked network: every hidden unit is computed once.

Units are sorted by degree: those of degree m read variables up to the m-th, and the (m + 1)-th variable reads units
up to degree m. So u is found one variable after the other, and each time only the units of one more degree are new.
Variables are taken in blocks: what finished blocks contribute to the next one is one large product per layer, and
the steps inside a block are small products over contiguous rows. In all, the arithmetic is that of one pass.

The derivative is found likewise, in one sweep from the last variable to the first, and not by unrolling.

Tensors are laid out (features, N). Layers are `weights` and `biases`, hidden ones from the first to the last
(W, D), (W, W) ... and (W, 1) or (W, N), then those of the output, (D, P, W) and (D, P, 1): what
`MaskedMLP.sorted_tensors` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from latentflows.core.dense import product
from latentflows.core.precision import full_precision
from latentflows.core.tracing import is_traced
from latentflows.networks.base import Activation, activate_, activation, in_place, through_activation

Pair = tuple[Tensor, Tensor]
Tensors = Sequence[Tensor]
Method = Literal["incremental", "jacobi"]
_UNITS = 40  # of each hidden layer in a block: small products then cost little more than their call
_LARGE = 1 << 22  # multiplications from which the other library is worth a second operation that adds
_MOST_PASSES = 32  # of a fixed-point iteration that has not converged yet


class Problem(NamedTuple):
    """What is solved, tensors apart.

    Attributes:
        activation_name: Nonlinearity of the hidden layers.
        counts: How many units of a hidden layer have a degree of at most 0, 1, ..., D.
        solve: The elementwise map T solved for u: (x, raw) -> (u, log du/dx), with raw (P, *shape of x).
        method: How u is found.
        affine_bound: b where T is x = u e^s + t with s = a / (1 + |a| / b); solving it needs half the operations.
    """

    activation_name: Activation
    counts: list[int]
    solve: Callable[[Tensor, Tensor], Pair]
    method: Method
    affine_bound: float | None = None

    def leaf(self) -> int:
        """Return how many variables are solved one after the other before products get larger."""
        return max(4, min(32, round(_UNITS * (len(self.counts) - 1) / self.counts[-1])))

    def units(self, variables: slice) -> slice:
        """Return the units whose degree says that they come with these variables."""
        return slice(self.counts[variables.start], self.counts[variables.stop])

    def new_units(self) -> list[int]:
        """Return how many units come with each variable."""
        return [after - before for before, after in pairwise(self.counts)]


def invert(problem: Problem, x: Tensor, weights: Tensors, biases: Tensors) -> Pair:
    """Return u (D, N) and log|det du/dx| (N,), differentiable in x, weights and biases.

    Cost: the arithmetic of one pass, in D steps; the gradient three passes and D steps. Nothing of size N W is kept
    for it: the pass at u is run again.

    Shape:
        x: (D, N).
    """
    return _Inversion.apply(problem, x, *weights, *biases)


class _Inversion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Tensor, *tensors: Tensor) -> Pair:
        weights, biases = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        solve = _jacobi if problem.method == "jacobi" else _incremental
        with torch.inference_mode():  # spares a tenth of the time: nothing counts versions or views
            u, log_det = solve(problem, x, weights, biases)
        u, log_det = u.clone(), log_det.clone()  # tensors that may be saved
        ctx.problem = problem
        ctx.save_for_backward(u, x, *tensors)
        return u, log_det

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, x, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or is_traced(*gradients):  # to be differentiated or vectorized once more
            return None, *_by_unrolling(ctx.problem, gradients, x, *tensors)
        weights, biases = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        with full_precision(u):
            return None, *_gradients(ctx.problem, x, u, weights, biases, *gradients)


class _Rows:
    """The output of the network, one variable after the other, and what T makes of it."""

    sign = 1  # of what the hidden layers contribute to `raw`

    def __init__(self, problem: Problem, x: Tensor, bias: Tensor) -> None:
        self.solve, self.logs = problem.solve, []
        self.u, self.raw = torch.zeros_like(x), bias.expand(-1, -1, x.shape[1]).clone()
        self.rows = list(zip(x.unbind(0), self.raw.unbind(0), self.u.unbind(0), strict=True))

    def find(self, i: int) -> None:
        """Solve for the i-th variable, whose raw parameters are complete."""
        x, raw, u = self.rows[i]
        value, log = self.solve(x, raw)
        u.copy_(value)
        self.logs.append(log)


class _AffineRows(_Rows):
    """The same for x = u e^s + t, s = a / (1 + |a| / b), in half the operations: `raw` holds x - t and -a."""

    sign = -1

    def __init__(self, problem: Problem, x: Tensor, bias: Tensor) -> None:
        assert problem.affine_bound is not None
        self.one, self.slope, self.logs = x.new_ones(()), 1 / problem.affine_bound, []
        self.u, self.raw = torch.zeros_like(x), torch.stack([x - bias[:, 0], -bias[:, 1].expand_as(x)], 1)
        self.rows = list(zip(*(part.unbind(0) for part in (*self.raw.unbind(1), self.u)), strict=True))

    def find(self, i: int) -> None:
        shifted, scale, u = self.rows[i]
        # no plain number: those cost a microsecond
        log = scale / torch.add(self.one, scale.abs(), alpha=self.slope)
        torch.mul(shifted, log.exp(), out=u)
        self.logs.append(log)


def _incremental(problem: Problem, x: Tensor, weights: Tensors, biases: Tensors) -> Pair:
    solver = _Solver(problem, x, weights, biases)
    solver.run(slice(0, len(x)))
    return solver.outputs.u, torch.stack(solver.outputs.logs).sum(0).expand(x.shape[1])


class _Solver:
    """Half of the variables, what they contribute to the rest, then the rest: down to a few, one after the other."""

    def __init__(self, problem: Problem, x: Tensor, weights: Tensors, biases: Tensors) -> None:
        self.problem, self.weights, self.act = problem, weights, in_place(problem.activation_name)
        self.outputs = (_AffineRows if problem.affine_bound else _Rows)(problem, x, biases[-1])
        self.states = [self.outputs.u, *(bias.expand(-1, x.shape[1]).clone() for bias in biases[:-1])]
        self.sizes, self.leaf = problem.new_units(), problem.leaf()
        heard = slice(0, problem.counts[0])  # units that read no variable, the context alone
        self.new = [state[heard.stop :].split(self.sizes) for state in self.states[1:]]
        for below, state, weight in zip(self.states[1:], self.states[2:], weights[1:], strict=False):
            self.act(below[heard])
            _add_product(state[heard.stop :], weight[heard.stop :, heard], below[heard])
            _add_product(state[heard], weight[heard, heard], below[heard])
        self.act(self.states[-1][heard])
        _add_product(
            self.outputs.raw.flatten(0, 1),
            weights[-1][:, :, heard].flatten(0, 1),
            self.states[-1][heard],
            self.outputs.sign,
        )

    def run(self, variables: slice) -> None:
        """Solve for these variables and compute the units that come with them."""
        count = variables.stop - variables.start
        if count <= self.leaf:
            self._one_by_one(variables)
            return
        first, last = _halves(variables)
        self.run(first)
        self._carry(first, last)
        self.run(last)

    def _carry(self, done: slice, later: slice) -> None:
        """Add what finished variables and their units contribute to later ones."""
        source, target = self.problem.units(done), self.problem.units(later)
        columns = [done, *[source] * (len(self.states) - 2)]
        for below, state, weight, read in zip(
            self.states, self.states[1:], self.weights, columns, strict=False
        ):
            _add_product(state[target], weight[target, read], below[read])
        raw, head = self.outputs.raw[later].flatten(0, 1), self.weights[-1][later, :, source].flatten(0, 1)
        _add_product(raw, head, self.states[-1][source], self.outputs.sign)

    def _one_by_one(self, variables: slice) -> None:
        # Entries of a weight that are masked meet rows that are not computed yet, which are finite: 0 times them is 0.
        units, sizes = self.problem.units(variables), self.sizes[variables]
        columns = [variables, *[units] * (len(self.states) - 2)]
        *sources, top = (state[rows] for state, rows in zip(self.states, [*columns, units], strict=True))
        layers = (
            zip(new[variables], weight[units, read].split(sizes), strict=True)
            for new, weight, read in zip(self.new, self.weights[:-1], columns, strict=True)
        )
        heads = zip(
            self.outputs.raw[variables].unbind(0),
            self.weights[-1][variables, :, units].unbind(0),
            strict=True,
        )
        find, act, sign, addmm = self.outputs.find, self.act, self.outputs.sign, torch.addmm
        for i, ((raw, head), *steps) in enumerate(zip(heads, *layers, strict=True), variables.start):
            addmm(raw, head, top, alpha=sign, out=raw)
            find(i)
            for (rows, weight), source in zip(steps, sources, strict=True):
                act(addmm(rows, weight, source, out=rows))


def _halves(variables: slice) -> tuple[slice, slice]:
    middle = (variables.start + variables.stop) // 2
    return slice(variables.start, middle), slice(middle, variables.stop)


def _add_product(target: Tensor, matrix: Tensor, source: Tensor, sign: int = 1) -> None:
    if not matrix.numel():
        return
    if target.numel() * len(source) < _LARGE:
        torch.addmm(target, matrix, source, alpha=sign, out=target)
    else:
        target.add_(product(matrix, source.t()), alpha=sign)


def _jacobi(problem: Problem, x: Tensor, weights: Tensors, biases: Tensors) -> Pair:
    """Iterate u <- T^-1(x; raw(u)); rows that do not come to rest are solved incrementally."""
    tolerance, largest = 8 * torch.finfo(x.dtype).eps, torch.finfo(x.dtype).max ** 0.5
    u, log = torch.zeros_like(x), x
    rest = x.new_zeros(x.shape[1], dtype=torch.bool)
    for _ in range(min(len(x) + 1, _MOST_PASSES)):
        value, log = problem.solve(x, _states(problem, u, weights, biases)[-1].transpose(0, 1))
        rest = ((value - u).abs() <= tolerance * (1 + value.abs())).all(0)
        u = value.nan_to_num(0, largest, -largest).clamp_(-largest, largest)  # a transient may overflow
        if bool(rest.all()):
            break
    log_det = log.expand(x.shape).sum(0)
    left = (~rest).nonzero()[:, 0]
    if len(left):
        biases = [biases[0][:, left] if biases[0].shape[1] > 1 else biases[0], *biases[1:]]
        u[:, left], log_det[left] = _incremental(problem, x[:, left], weights, biases)
    return u, log_det


def _unrolled(problem: Problem, x: Tensor, weights: Tensors, biases: Tensors) -> Pair:
    """One pass per variable, by operations that autograd sees."""
    act, u, logs = activation(problem.activation_name), torch.zeros_like(x), []
    for i in range(len(x)):
        features = u
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            features = act(weight @ features + bias)
        value, log = problem.solve(x[i], weights[-1][i] @ features + biases[-1][i])
        u = torch.cat([u[:i], value[None], u[i + 1 :]])
        logs.append(log.expand(x.shape[1]))
    return u, torch.stack(logs).sum(0)


def _by_unrolling(problem: Problem, gradients: Tensors, *inputs: Tensor) -> list[Tensor | None]:
    """Return the gradients in x, the weights and the biases by operations that autograd sees once more."""
    with torch.enable_grad():
        x, *rest = own = [value.view_as(value) for value in inputs]  # one input may be a function of another
        out = _unrolled(problem, x, rest[: len(rest) // 2], rest[len(rest) // 2 :])
    wanted, pairs = [v for v in own if v.requires_grad], zip(out, gradients, strict=True)
    outputs, given = zip(*((value, g) for value, g in pairs if value.requires_grad), strict=True)
    again = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=again, allow_unused=True))
    return [next(found) if value.requires_grad else None for value in own]


def _states(
    problem: Problem, u: Tensor, weights: Tensors, biases: Tensors, kept: list[Tensor] | None = None
) -> list[Tensor]:
    """Return u, the hidden layers, and the raw parameters (D, P, N) of one pass; `kept` is for its derivative."""
    states = [u]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        state = product(weight, states[-1].t()).add_(bias)
        before = activate_(problem.activation_name, state)
        if kept is not None:
            kept.append(before)
        states.append(state)
    head = weights[-1]
    raw = product(head.flatten(0, 1), states[-1].t()).view(*head.shape[:2], u.shape[1]).add_(biases[-1])
    return [*states, raw]


def _gradients(
    problem: Problem,
    x: Tensor,
    u: Tensor,
    weights: Tensors,
    biases: Tensors,
    of_u: Tensor,
    of_log_det: Tensor,
) -> list[Tensor]:
    r"""Return the gradients in x, the weights and the biases.

    The recursion is :math:`u_i = G(x_i, r_i), r_i = \mathrm{raw}_i(u_{<i})`. With the gradients given as
    :math:`\bar u_i` and :math:`\bar l`, what arrives at u_i in all is :math:`\lambda_i = \bar u_i + \sum_{j > i}
    \bar r_j \, \partial r_j / \partial u_i`, where :math:`\bar r_j = \lambda_j \, \partial u_j / \partial r_j + \bar l
    \, \partial l_j / \partial r_j`: a triangular system, solved from the last variable to the first.
    """
    kept: list[Tensor] = []
    *states, raw = _states(problem, u, weights, biases, kept)
    slope_x, slope_raw, of_x, of_raw = _local_derivatives(problem, x, raw, of_log_det)
    total, of_raw = (value.clone(memory_format=torch.contiguous_format) for value in (of_u, of_raw))
    sweep = _Sweep(problem, weights, kept, slope_raw, total, of_raw)
    sweep.run(slice(0, len(x)))
    deltas = sweep.finish()
    of_weights = [product(delta, state) for delta, state in zip(deltas, states, strict=False)]
    of_weights.append(product(of_raw.flatten(0, 1), states[-1]).view(weights[-1].shape))
    of_biases = [value.sum_to_size(bias.shape) for value, bias in zip([*deltas, of_raw], biases, strict=True)]
    return [of_x.addcmul_(total, slope_x), *of_weights, *of_biases]


def _local_derivatives(problem: Problem, x: Tensor, raw: Tensor, of_log_det: Tensor) -> list[Tensor]:
    """Return du/dx (D, N) and du/draw (D, P, N), then the gradients that the log-determinant gives to x and raw."""
    with torch.enable_grad():
        inputs = x.detach().requires_grad_(), raw.detach().requires_grad_()
        u, log = problem.solve(inputs[0], inputs[1].transpose(0, 1))
        slopes = torch.autograd.grad(u.sum(), inputs, retain_graph=True)
        if not log.requires_grad:
            return [*slopes, torch.zeros_like(x), torch.zeros_like(raw)]
        shares = torch.autograd.grad((log * of_log_det).sum(), inputs, allow_unused=True)
    return [*slopes, *(torch.zeros_like(v) if s is None else s for s, v in zip(shares, inputs, strict=True))]


class _Sweep:
    """The derivative of `_Solver`, from the last variable to the first.

    It completes `total` (D, N), `of_raw` (D, P, N) and `deltas` (W, N for each hidden layer, before the activation).
    """

    def __init__(
        self, problem: Problem, weights: Tensors, kept: Tensors, slope: Tensor, total: Tensor, of_raw: Tensor
    ) -> None:
        self.problem, self.weights, self.kept, self.slope = problem, weights, kept, slope
        self.total, self.of_raw = total, of_raw
        self.deltas = [torch.zeros_like(state) for state in kept]
        self.sources = [*self.deltas[1:], of_raw]  # where the gradient of each hidden layer comes from
        self.sizes, self.leaf = problem.new_units(), problem.leaf()

    def run(self, variables: slice) -> None:
        """Complete what belongs to these variables; all later ones have contributed."""
        if variables.stop - variables.start <= self.leaf:
            self._one_by_one(variables)
            return
        first, last = _halves(variables)
        self.run(last)
        self._carry(last, first)
        self.run(first)

    def finish(self) -> list[Tensor]:
        """Complete the units that read no variable, and return `deltas`."""
        heard = slice(0, self.problem.counts[0])
        for delta, source, weight, kept in reversed(list(self._layers())):
            _add_back(delta[heard], weight[..., heard], source)
            delta[heard] = through_activation(self.problem.activation_name, delta[heard], kept[heard])
        return self.deltas

    def _layers(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(self.deltas, self.sources, self.weights[1:], self.kept, strict=True)

    def _rows(self, variables: slice) -> list[slice]:
        return [*[self.problem.units(variables)] * (len(self.deltas) - 1), variables]

    def _carry(self, done: slice, earlier: slice) -> None:
        columns = self.problem.units(earlier)
        for (delta, source, weight, _), rows in zip(self._layers(), self._rows(done), strict=True):
            _add_back(delta[columns], weight[rows, ..., columns], source[rows])
        rows = self.problem.units(done)
        _add_back(self.total[earlier], self.weights[0][rows, earlier], self.deltas[0][rows])

    def _one_by_one(self, variables: slice) -> None:
        name, units, sizes = (
            self.problem.activation_name,
            self.problem.units(variables),
            self.sizes[variables],
        )
        layers = [
            (
                source[rows].flatten(0, -2),
                weight[rows, ..., units].flatten(0, -2).t().split(sizes),
                delta[units].split(sizes),
                kept[units].split(sizes),
            )
            for (delta, source, weight, kept), rows in zip(self._layers(), self._rows(variables), strict=True)
        ]
        layers.reverse()
        below, matrices = self.deltas[0][units], self.weights[0][units, variables].t().split(1)
        total = self.total[variables].split(1)
        of_raw, slopes = self.of_raw[variables].unbind(0), self.slope[variables].unbind(0)
        for i in reversed(range(len(sizes))):
            for source, weights, new, kept in layers:
                torch.addmm(new[i], weights[i], source, out=new[i])
                new[i].copy_(through_activation(name, new[i], kept[i]))
            torch.addmm(total[i], matrices[i], below, out=total[i])
            of_raw[i].addcmul_(slopes[i], total[i])


def _add_back(target: Tensor, matrix: Tensor, source: Tensor) -> None:
    _add_product(target, matrix.flatten(0, -2).t(), source.flatten(0, -2))
