"""Small bijections without an error, from which the wrong ones differ in a line or two."""

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from latentflows.bijections import ActNorm, Bijection, Chain
from latentflows.core.precision import at_least_float32


class Halves(Bijection):
    """A correct affine coupling, from which most of the wrong ones below differ in one line."""

    def __init__(self, dim=4, context_shape=None):
        super().__init__(dim, passes=(1, 1), context_shape=context_shape)
        self.stay = self.event_shape[0] // 2
        features = 0 if self.context_shape is None else self.context_shape[0]
        self.network = nn.Linear(self.stay + features, 2 * (self.event_shape[0] - self.stay))

    def _coefficients(self, value, context):
        stays = value[..., : self.stay]
        if context is not None:
            stays = torch.cat([stays, context.expand(len(stays), *context.shape)], -1)
        shift, log_scale = at_least_float32(self.network(stays)).chunk(2, -1)
        return shift, log_scale.tanh()

    def _forward(self, u, context):
        shift, log_scale = self._coefficients(u, context)
        moved = u[..., self.stay :] * log_scale.exp() + shift
        return torch.cat([u[..., : self.stay], moved], -1), log_scale.sum(-1)

    def _inverse(self, x, context):
        shift, log_scale = self._coefficients(x, context)
        moved = (x[..., self.stay :] - shift) * (-log_scale).exp()
        return torch.cat([x[..., : self.stay], moved], -1), -log_scale.sum(-1)


class OneWay(Bijection):
    """What the wrong maps without an inverse share."""

    def __init__(self, dim, context_shape=None):
        super().__init__(dim, passes=(0, None), context_shape=context_shape)

    def _inverse(self, x, context):
        raise NotImplementedError


class Sylvester(OneWay):
    """A bend in the plane of two triangular factors, written for row vectors."""

    transposed = True

    def __init__(self, dim=4):
        super().__init__(dim)
        self.first, self.second, self.rotation = (
            nn.Parameter(torch.randn(dim, dim) * 0.01) for _ in range(3)
        )
        self.offset = nn.Parameter(torch.zeros(dim))

    def _forward(self, u, context):
        rotation = torch.linalg.matrix_exp(self.rotation - self.rotation.T)
        r, r_tilde = self.first.triu(), self.second.triu()
        r, r_tilde = (
            factor - factor.diagonal().diag() + factor.diagonal().tanh().diag() for factor in (r, r_tilde)
        )
        inner, outer = r_tilde @ rotation.T, rotation @ r
        if self.transposed:
            inner, outer = inner.T, outer.T
        bend = (u @ inner + self.offset).tanh()
        slope = (1 - bend**2) * 0.9 * r.diagonal() * r_tilde.diagonal()
        return u + 0.9 * bend @ outer, slope.log1p().sum(-1)


class Radial(OneWay):
    """Expand or contract around a center."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.center, self.raw = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(2))

    def _distance(self, offset):
        return torch.linalg.vector_norm(offset, dim=-1, keepdim=True)

    def _forward(self, u, context):
        alpha, beta = nn.functional.softplus(self.raw)
        beta = beta - alpha
        offset = u - self.center
        r = self._distance(offset)
        h = 1 / (alpha + r)
        across = torch.log1p(beta * h)
        along = torch.log1p(beta * h - beta * h * h * r)
        return u + beta * h * offset, ((u.shape[-1] - 1) * across + along).sum(-1)


class Normalizing(Bijection):
    """A correct data-dependent normalization: its flag is a buffer."""

    def __init__(self, dim=4):
        super().__init__(dim, passes=(0, 0))
        self.log_scale, self.shift = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self._remember(False)

    def _remember(self, done):
        self.register_buffer("done", torch.tensor(done))

    @torch.no_grad()
    def initialize(self, value, context=None, *, direction="inverse", lengths=None):
        if not self.done:
            mean, log_scale = value.mean(0), value.std(0).log()
            self.log_scale.copy_(log_scale if direction == "inverse" else -log_scale)
            self.shift.copy_(mean if direction == "inverse" else -mean * (-log_scale).exp())
            self._remember(True)
        return (self.inverse if direction == "inverse" else self)(value)[0]

    def _forward(self, u, context):
        return u * self.log_scale.exp() + self.shift, self.log_scale.sum()

    def _inverse(self, x, context):
        return (x - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum()


class Masked(nn.Module):
    """One hidden layer; output i reads inputs below i, as far as the hidden units carry them."""

    def __init__(self, dim, width):
        super().__init__()
        degrees, hidden = torch.arange(1, dim + 1), torch.arange(width) % (dim - 1) + 1
        self.register_buffer("reads", (hidden[:, None] >= degrees).float())
        self.register_buffer("gives", (degrees[:, None] > hidden).float().repeat(2, 1))
        self.first, self.last = nn.Linear(dim, width), nn.Linear(width, 2 * dim)

    def forward(self, value):
        features = nn.functional.linear(value, self.first.weight * self.reads, self.first.bias).tanh()
        return nn.functional.linear(features, self.last.weight * self.gives, self.last.bias)


class MADE(Bijection):
    """A correct masked autoregressive layer, if it is wide enough: it never looks."""

    def __init__(self, dim=6, width=5, context_shape=None):
        super().__init__(dim, passes=(1, dim), context_shape=context_shape)
        self.network = Masked(dim, width)
        if self.context_shape is not None:
            self.hears = nn.Linear(self.context_shape[0], 2 * dim)

    def _coefficients(self, value, context):
        with torch.autocast(value.device.type, enabled=False):
            raw = self.network(value)
            shift, log_scale = (raw if context is None else raw + self._heard(context)).chunk(2, -1)
        return shift, log_scale.tanh()

    def _heard(self, context):
        return self.hears(context.to(self.hears.weight.dtype))  # autocast may have made it half as long

    def _forward(self, u, context):
        shift, log_scale = self._coefficients(u, context)
        return u * log_scale.exp() + shift, log_scale.sum(-1)

    def _inverse(self, x, context):
        u = torch.zeros_like(x)
        for _ in range(x.shape[-1]):
            shift, log_scale = self._coefficients(u, context)
            u = (x - shift) * (-log_scale).exp()
        return u, -log_scale.sum(-1)


class Sequences(Bijection):
    """A correct coupling of channels for padded sequences (2, T); a context has as many frames."""

    variable_lengths = True

    def __init__(self, frames=5, context=False):
        super().__init__((2, frames), passes=(1, 1), context_shape=(1, frames) if context else None)
        self.network = nn.Conv1d(2 if context else 1, 2, 3, padding=1)

    def _coefficients(self, value, context, valid):
        mask = value.new_ones(()) if valid is None else valid.to(value.dtype).unsqueeze(-2)
        reads = self._hide(value[..., :1, :], mask)
        if context is not None:
            frames = context.to(value.dtype).expand_as(reads)
            reads = torch.cat([reads, self._hide_context(frames, mask)], -2)
        raw = (
            at_least_float32(self.network(reads.flatten(0, 1))).view(*value.shape[:2], 2, value.shape[-1])
            * mask
        )
        return raw[..., :1, :], raw[..., 1:, :].tanh()

    def _hide(self, frames, mask):
        return frames * mask

    def _hide_context(self, frames, mask):
        return frames * mask

    def _forward(self, u, context, valid=None):
        shift, log_scale = self._coefficients(u, context, valid)
        moved = u[..., 1:, :] * log_scale.exp() + shift
        return torch.cat([u[..., :1, :], moved], -2), log_scale.sum((-1, -2))

    def _inverse(self, x, context, valid=None):
        shift, log_scale = self._coefficients(x, context, valid)
        moved = (x[..., 1:, :] - shift) * (-log_scale).exp()
        return torch.cat([x[..., :1, :], moved], -2), -log_scale.sum((-1, -2))


class Logit(Bijection):
    """From (0, 1), whose ends it maps to infinity, to all numbers."""

    def __init__(self):
        super().__init__(3, passes=(0, 0))

    def _forward(self, u, context):
        x = u.log() - (-u).log1p()
        return x, -(logsigmoid(x) + logsigmoid(-x)).sum(-1)

    def _inverse(self, x, context):
        return x.sigmoid(), (logsigmoid(x) + logsigmoid(-x)).sum(-1)


RIGHT = {
    "halves": (Halves, {}),
    "halves_with_context": (lambda: Halves(context_shape=(3,)), {}),
    "halves_in_the_plane": (lambda: Halves(2), {}),
    "sylvester": (Sylvester, {}),
    "radial": (Radial, {}),
    "normalizing": (Normalizing, {}),
    "made": (MADE, {"autoregressive_block": 1}),
    "made_with_context": (lambda: MADE(context_shape=(3,)), {"autoregressive_block": 1}),
    "normalizing_from_the_unit_interval": (
        lambda: Chain([Logit(), ActNorm(3)]),
        {"base_support": (0.0, 1.0)},
    ),
    "sequences": (Sequences, {}),
    "sequences_with_context": (lambda: Sequences(context=True), {}),
}
