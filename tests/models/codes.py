"""Small models of codes and their data; codes stand where latents are."""

import torch

from latentflows.core import noise
from latentflows.core.batches import Batch
from latentflows.core.noise import stream
from latentflows.distributions import AmortizedBernoulli, AutoregressiveCodes
from latentflows.models import VQVAE, Quantizer, vq_vae_2
from latentflows.networks import MLP
from tests.bijections.cases import randomize

DATA = (1, 8, 8)
SMALL = {
    "dim": 3,
    "num_codes": 6,
    "width": 4,
    "num_blocks": 1,
    "prior_width": 8,
    "prior_depth": 1,
    "heads": 2,
}


class Points:
    """Data points as a source."""

    def __init__(self, x, values="binary", context=None):
        self.x, self.values, self.context, self.bits_offset = x, values, context, 0.0
        self.event_shape = tuple(x.shape[1:])

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return Batch(self.x[indices], None if self.context is None else self.context[indices])


def tiny(codes=3, seed=0) -> VQVAE:
    """Two codes of two numbers each, and five binary data."""
    with stream(seed):
        prior = AutoregressiveCodes(2, codes, width=8, depth=1, heads=2)
        model = VQVAE(
            MLP((5,), (4,), width=8, depth=1),
            Quantizer((4,), codes, num_tokens=2),
            AmortizedBernoulli((5,), (4,), MLP((4,), (5,), width=8, depth=1)),
            prior,
        ).double()
        randomize(model, 0.7)
        model.levels[0].codebook.normal_()
        return model.eval()


def two_levels(seed=0, **settings) -> VQVAE:
    with stream(seed):
        model = vq_vae_2(DATA, ((2, 2), (4, 4)), likelihood=AmortizedBernoulli, **SMALL, **settings)
        randomize(model, 0.3)
        x, above = binary(3), []  # codes stand where latents are, so that all come to be chosen
        for encoder, level in zip(model.encoder, model.levels, strict=True):
            z = encoder(x, *above).detach()
            level.codebook.copy_(z.movedim(1, -1).flatten(0, 2)[noise.permutation(12)[:6]])
            above = [level(z).z.repeat_interleave(2, 2).repeat_interleave(2, 3)]
        return model.eval()


def binary(count=6, shape=DATA):
    return (torch.rand(count, *shape) < 0.5).float()
