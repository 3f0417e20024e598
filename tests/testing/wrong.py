"""Bijections with one error each.

The errors are those seen in published packages: factors not transposed, an elementwise absolute value in place of a
norm, a flag that is not saved, a masked network that is too narrow, sums in half precision, and their like.
"""

import torch
from torch import nn

from latentflows.bijections import ActNorm, InverseAutoregressive
from latentflows.bijections.base import DataDependent
from latentflows.core.errors import ShapeError
from tests.testing.right import MADE, Halves, Normalizing, OneWay, Radial, Sequences, Sylvester


class UntransposedSylvester(Sylvester):
    """The factors are those for column vectors, and multiply row vectors as they are."""

    transposed = False


class ElementwiseRadial(Radial):
    """The distance from the center is taken entry by entry."""

    def _distance(self, offset):
        return offset.abs()


class NarrowAutoregressive(InverseAutoregressive):
    """As if hidden units were too few for the later variables, and the check of the width were gone."""

    def __init__(self):
        super().__init__(5, width=8, depth=2)
        self.network.first.mask[:, 2:] = 0


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


class ForgetfulPosterior(DataDependent):
    """It has no inverse, and its flag is no buffer, so that one that was loaded starts from data again."""

    def __init__(self, dim=3):
        super().__init__(dim, passes=(0, None))
        self.log_scale, self.shift = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        del self.initialized
        self.initialized = torch.tensor(False)

    def _measure(self, value, valid, *, forward):
        self.log_scale.copy_(-value.std((0, 1)).log())
        self.shift.copy_(-value.mean((0, 1)) * self.log_scale.exp())

    def _forward(self, u, context):
        self._start(u, None, forward=True)
        return u * self.log_scale.exp() + self.shift, self.log_scale.sum()

    def _inverse(self, x, context):
        raise NotImplementedError


class NormalizingOneWay(ActNorm):
    """Noise that passes forward does not start it."""

    def _start(self, value, valid, *, forward):
        if not forward:
            super()._start(value, valid, forward=forward)


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


class SteepTails(Halves):
    """Beyond 5 it stretches by 2, in both directions, and says that it does not."""

    def _forward(self, u, context):
        return super()._forward(torch.where(u.abs() > 5, 2 * u - 5 * u.sign(), u), context)

    def _inverse(self, x, context):
        u, log_det = super()._inverse(x, context)
        return torch.where(u.abs() > 5, (u + 5 * u.sign()) / 2, u), log_det


class Clipped(Halves):
    """The inverse finds points within 6 alone, as a bisection does."""

    def _inverse(self, x, context):
        u, log_det = super()._inverse(x, context)
        return u.clamp(-6, 6), log_det


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


class LeakyPadding(Sequences):
    """The convolution reads what lies behind the end."""

    def _hide(self, frames, mask):
        return frames


class OverflowingPadding(Sequences):
    """What lies behind the end overflows before it is multiplied by zero."""

    def _hide(self, frames, mask):
        return frames * 8 * mask / 8


class LeakyContext(Sequences):
    """The convolution reads the context behind the end."""

    def _hide_context(self, frames, mask):
        return frames


class CountedPadding(Sequences):
    """The inverse transforms padding and counts it."""

    def _inverse(self, x, context, valid=None):
        return super()._inverse(x, context)


class SharedLengths(Sequences):
    """The lengths of the first sample are those of all samples."""

    def _coefficients(self, value, context, valid):
        return super()._coefficients(value, context, None if valid is None else valid[:1])


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


class Counted(Halves):
    """It infers a size that no rows leave open."""

    def _inverse(self, x, context):
        return super()._inverse(x.reshape(*x.shape[:2], -1), context)


class Mixing(Halves):
    """It subtracts the mean of the batch."""

    def _forward(self, u, context):
        return super()._forward(u - u.mean((0, 1)), context)


class MixingSamples(Halves):
    """The network reads the sample before, which shows only where a point has more than one."""

    def _coefficients(self, value, context):
        return super()._coefficients(value.roll(1, 0), context)


class AverageOfSamples(Halves):
    """The log-determinant is averaged over the samples of a point."""

    def _forward(self, u, context):
        x, log_det = super()._forward(u, context)
        return x, log_det.mean(0, keepdim=True)


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
