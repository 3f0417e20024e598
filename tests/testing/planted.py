"""Bijections with one error each, and the properties that must name it.

The errors are those seen in published packages: factors not transposed, an elementwise absolute value in place of a
norm, a flag that is not saved, a masked network that is too narrow, sums in half precision, and their like.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from latentflows.bijections import Bijection
from latentflows.core.errors import ShapeError
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


class UntransposedSylvester(OneWay):
    """The factors are those for column vectors, and multiply row vectors as they are."""

    transposed = False

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


class Sylvester(UntransposedSylvester):
    """The same, right."""

    transposed = True


class ElementwiseRadial(OneWay):
    """The distance from the center is taken entry by entry."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.center, self.raw = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(2))

    def _distance(self, offset):
        return offset.abs()

    def _forward(self, u, context):
        alpha, beta = nn.functional.softplus(self.raw)
        beta = beta - alpha
        offset = u - self.center
        r = self._distance(offset)
        h = 1 / (alpha + r)
        across = torch.log1p(beta * h)
        along = torch.log1p(beta * h - beta * h * h * r)
        return u + beta * h * offset, ((u.shape[-1] - 1) * across + along).sum(-1)


class Radial(ElementwiseRadial):
    """The same, right."""

    def _distance(self, offset):
        return torch.linalg.vector_norm(offset, dim=-1, keepdim=True)


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
            self.shift.copy_(value.mean(0))
            self.log_scale.copy_(value.std(0).log())
            self._remember(True)
        return self.inverse(value)[0]

    def _forward(self, u, context):
        return u * self.log_scale.exp() + self.shift, self.log_scale.sum()

    def _inverse(self, x, context):
        return (x - self.shift) * (-self.log_scale).exp(), -self.log_scale.sum()


class ForgetfulNormalizing(Normalizing):
    """Its flag is a plain bool, so that one that was loaded starts from data again."""

    def _remember(self, done):
        self.done = done


class EagerNormalizing(Normalizing):
    """It starts from data whenever it is first used, in evaluation too."""

    def _inverse(self, x, context):
        if not self.done:
            self._remember(True)
            self.shift.data.copy_(x.mean((0, 1)))
        return super()._inverse(x, context)


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
        return self.hears(context)

    def _forward(self, u, context):
        shift, log_scale = self._coefficients(u, context)
        return u * log_scale.exp() + shift, log_scale.sum(-1)

    def _inverse(self, x, context):
        u = torch.zeros_like(x)
        for _ in range(x.shape[-1]):
            shift, log_scale = self._coefficients(u, context)
            u = (x - shift) * (-log_scale).exp()
        return u, -log_scale.sum(-1)


class PartlyDeaf(MADE):
    """The context does not reach the first variable, as where no hidden unit has degree 0."""

    def _heard(self, context):
        heard = super()._heard(context)
        return torch.where(
            torch.arange(heard.shape[-1], device=heard.device) % self.event_shape[0] > 0, heard, 0.0
        )


class WrongSign(Halves):
    """The inverse adds log-scales that it should subtract."""

    def _inverse(self, x, context):
        u, log_det = super()._inverse(x, context)
        return u, -log_det


class ReadsItself(Halves):
    """The scale depends on what it scales."""

    def _coefficients(self, value, context):
        shift, log_scale = super()._coefficients(value, context)
        return shift, log_scale * value[..., self.stay :].tanh()


class Counting(Halves):
    """A running mean goes on in evaluation."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.register_buffer("mean", torch.zeros(dim))

    def _forward(self, u, context):
        self.mean.mul_(0.9).add_(0.1 * u.detach().mean((0, 1)))
        return super()._forward(u, context)


class Half(Halves):
    """The log-determinant is left in the network's format."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x, log_det.to(self._format(u))

    def _format(self, u):
        on = torch.is_autocast_enabled(u.device.type)
        return torch.bfloat16 if on else u.dtype


class Rounded(Half):
    """The log-determinant is summed in the network's format and converted afterwards."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x, log_det.to(u.dtype)

    def _inverse(self, x, context):
        u, log_det = super()._inverse(x, context)
        return u, log_det.to(self._format(x)).to(x.dtype)


class Dishonest(Halves):
    """It calls its network once more than it says."""

    def _inverse(self, x, context):
        return super()._inverse(x, context)[0], super()._inverse(x, context)[1]


class Boastful(Halves):
    """It says that it needs three passes and makes one."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.passes = (1, 3)


class Single(Halves):
    """The log-determinant is always float32."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x, log_det.float()


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
        raw = at_least_float32(self.network(reads.flatten(0, 1))).view(*value.shape[:2], 2, -1) * mask
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


class LeakyPadding(Sequences):
    """The convolution reads what lies behind the end."""

    def _hide(self, frames, mask):
        return frames


class LeakyContext(Sequences):
    """The convolution reads the context behind the end."""

    def _hide_context(self, frames, mask):
        return frames


class CountedPadding(Sequences):
    """The inverse transforms padding and counts it."""

    def _inverse(self, x, context, valid=None):
        return super()._inverse(x, context)


class UnsavedOrder(Halves):
    """A random order lies in a list, which no checkpoint holds."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.order = torch.randperm(dim).tolist()

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x[..., self.order], log_det

    def _inverse(self, x, context):
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return super()._inverse(x[..., back], context)


class SharedMemory(Halves):
    """Two names for one tensor, which safetensors refuses."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.also = self.network


class Unbounded(Halves):
    """The log-scale has no bound."""

    def _coefficients(self, value, context):
        shift, _ = super()._coefficients(value, context)
        return shift, shift


class StraightThrough(Halves):
    """The value is clamped, the gradient is not."""

    def _coefficients(self, value, context):
        shift, log_scale = super()._coefficients(value, context)
        return shift + (shift.clamp(-0.1, 0.1) - shift).detach(), log_scale


class InPlace(Halves):
    """It scales what the caller still holds."""

    def _forward(self, u, context):
        with torch.no_grad():
            u[..., : self.stay] *= 2
        return super()._forward(u, context)


class Noisy(Halves):
    """It draws random numbers."""

    def _inverse(self, x, context):
        torch.rand(3)
        return super()._inverse(x, context)


class OnTheCPU(Halves):
    """It makes a tensor without saying where."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x @ torch.eye(x.shape[-1], dtype=x.dtype), log_det


class Branching(Halves):
    """It looks at a value to decide what to do."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return (x, log_det) if u.mean() > 0 else (x + 0, log_det)


class Folding(OneWay):
    """A planar map without the constraint that keeps it from folding space."""

    def __init__(self, dim=3):
        super().__init__(dim)
        self.v, self.w = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(dim))

    def _forward(self, u, context):
        bend = (u @ self.w).tanh()[..., None]
        slope = (1 - bend[..., 0] ** 2) * (self.v @ self.w)
        return u + self.v * bend, (1 + slope).abs().log()


class Viewing(Halves):
    """It asks for a view that only contiguous values have."""

    def __init__(self, dim=4):
        super().__init__(dim, context_shape=(3,))

    def _forward(self, u, context):
        return super()._forward(u.view(-1, u.shape[-1]).view(u.shape), context)


class Mixing(Halves):
    """It subtracts the mean of the batch."""

    def _forward(self, u, context):
        return super()._forward(u - u.mean((0, 1)), context)


class Deaf(Halves):
    """It takes a context and does not listen."""

    def __init__(self, dim=4):
        super().__init__(dim, context_shape=(3,))

    def _coefficients(self, value, context):
        return super()._coefficients(value, 0 * context)


class Displaced(Halves):
    """As it is built, it is no identity."""


class Unused(Halves):
    """One parameter does nothing."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.idle = nn.Parameter(torch.zeros(1))


class Guessing(OneWay):
    """It has no inverse and returns something all the same."""

    def _forward(self, u, context):
        return u + 1, u.new_zeros(())

    def inverse(self, x, context=None, *, lengths=None):
        return x, x.new_zeros(x.shape[:-1])


class Unchecked(Halves):
    """Its public methods look at nothing."""

    def forward(self, u, context=None, *, lengths=None):
        return self._forward(u, context)

    def inverse(self, x, context=None, *, lengths=None):
        return self._inverse(x, context)


class Terse(Halves):
    """It refuses what it should, and says nothing of what was expected and given."""

    def forward(self, u, context=None, *, lengths=None):
        try:
            return super().forward(u, context, lengths=lengths)
        except ShapeError:
            raise ShapeError("wrong shape") from None


class FlatLogDet(Halves):
    """One log-determinant for the whole batch."""

    def inverse(self, x, context=None, *, lengths=None):
        u, log_det = super().inverse(x, context)
        return u, log_det.mean()


class Uncopyable(Halves):
    """A generator inside can be neither copied nor pickled."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.numbers = (n for n in range(3))


class OffByAConstant(Halves):
    """The density of x is three times what it should be."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x, log_det - 1.1

    def _inverse(self, x, context):
        u, log_det = super()._inverse(x, context)
        return u, log_det + 1.1


class Undeclared(Halves):
    """Its passes are no whole numbers."""

    def __init__(self, dim=4):
        super().__init__(dim)
        self.passes = (0.5, 1)


class Nameless(Halves):
    """Its repr does not say what it is."""

    def __repr__(self):
        return "flow"


@dataclass(frozen=True)
class Planted:
    """A wrong bijection, the properties that must fail, and words that must be in what they say."""

    make: Callable[[], Bijection]
    lacks: tuple[str, ...]
    says: str
    settings: dict = field(default_factory=dict)


PLANTED = {
    "untransposed_sylvester": Planted(
        UntransposedSylvester, ("log_det",), "against the Jacobian's: expected"
    ),
    "elementwise_radial": Planted(ElementwiseRadial, ("log_det",), "against the Jacobian's: expected"),
    "actnorm_forgets_after_load": Planted(
        ForgetfulNormalizing, ("initialization",), "after load and another `initialize`: expected parameters"
    ),
    "actnorm_starts_in_evaluation": Planted(EagerNormalizing, ("purity",), "but shift, done changed"),
    "narrow_made": Planted(
        lambda: MADE(width=3),
        ("dependencies",),
        "lost pairs: (3, 4), (3, 5), (4, 5). Is a masked network too narrow?",
        {"autoregressive_block": 1},
    ),
    "deaf_first_variable": Planted(
        lambda: PartlyDeaf(context_shape=(3,)),
        ("dependencies",),
        "entries [0] do not depend on the context",
        {"autoregressive_block": 1},
    ),
    "sign": Planted(WrongSign, ("log_det", "round_trip"), "log-determinant"),
    "scale_reads_itself": Planted(ReadsItself, ("log_det", "round_trip"), "inverse of forward"),
    "state_in_evaluation": Planted(Counting, ("purity",), "but mean changed"),
    "half_precision_log_det": Planted(Half, ("autocast",), "expected a log-determinant in torch.float32"),
    "rounded_log_det": Planted(Rounded, ("autocast",), "which has no more digits than bfloat16"),
    "one_pass_too_many": Planted(Dishonest, ("passes",), "inverse declares 1 network passes; counted 2"),
    "two_passes_too_few": Planted(Boastful, ("passes",), "inverse declares 3 network passes; counted 1"),
    "dtype": Planted(Single, ("dtypes",), "expected torch.float64, got torch.float32"),
    "padding_is_heard": Planted(LeakyPadding, ("padding",), "when only the value behind it changes"),
    "padding_of_the_context_is_heard": Planted(
        lambda: LeakyContext(context=True), ("padding",), "when only the context behind it changes"
    ),
    "padding_is_counted": Planted(CountedPadding, ("padding", "padded_round_trip"), "padding moved in rows"),
    "unsaved_order": Planted(UnsavedOrder, ("saving",), "one that loaded the saved state"),
    "shared_memory": Planted(SharedMemory, ("saving",), "shares its memory with"),
    "unbounded_scale": Planted(Unbounded, ("extremes",), "expected a finite value"),
    "straight_through": Planted(StraightThrough, ("gradient_values",), "along a random line: expected"),
    "in_place": Planted(InPlace, ("purity",), "writes into its input"),
    "random_numbers": Planted(Noisy, ("purity",), "draws random numbers"),
    "tensor_on_the_cpu": Planted(OnTheCPU, ("device",), "with everything on another device"),
    "branch_on_a_value": Planted(Branching, ("compilation",), "raised"),
    "folding": Planted(Folding, ("orientation",), "expected a determinant of one sign at all points"),
    "view": Planted(Viewing, ("strides",), "raised RuntimeError: view size is not compatible"),
    "mean_of_the_batch": Planted(Mixing, ("rows",), "within a batch, against that row alone"),
    "deaf": Planted(Deaf, ("context", "gradients"), "with another context, got changes"),
    "not_the_identity": Planted(
        Displaced, ("identity",), "against the identity: expected", {"identity_at_start": True}
    ),
    "unused_parameter": Planted(Unused, ("gradients",), "gradient of `idle`: expected one, got none"),
    "guessed_inverse": Planted(
        lambda: Guessing(4), ("missing_direction",), "expected MissingDirectionError, got no error"
    ),
    "unchecked": Planted(
        Unchecked, ("wrong_event_shape", "wrong_context", "non_finite"), "expected NonFiniteError, got"
    ),
    "terse": Planted(
        Terse, ("wrong_event_shape", "wrong_context"), "expected a message with 'must end in (4,)"
    ),
    "one_log_det_for_all": Planted(FlatLogDet, ("shapes", "rows"), "expected log-determinant"),
    "generator_inside": Planted(Uncopyable, ("copies",), "raised TypeError"),
    "off_by_a_constant": Planted(lambda: OffByAConstant(2), ("normalized", "log_det"), "expected 1, got 3.0"),
    "passes_of_no_number": Planted(Undeclared, ("declaration",), "expected `passes` of (forward, inverse)"),
    "nameless": Planted(Nameless, ("declaration",), "expected a repr that starts with the class"),
}
RIGHT = {
    "halves": (Halves, {}),
    "halves_with_context": (lambda: Halves(context_shape=(3,)), {}),
    "halves_in_the_plane": (lambda: Halves(2), {}),
    "sylvester": (Sylvester, {}),
    "radial": (Radial, {}),
    "normalizing": (Normalizing, {}),
    "made": (MADE, {"autoregressive_block": 1}),
    "made_with_context": (lambda: MADE(context_shape=(3,)), {"autoregressive_block": 1}),
    "sequences": (Sequences, {}),
    "sequences_with_context": (lambda: Sequences(context=True), {}),
}
