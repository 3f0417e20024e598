"""Faults to plant in `models`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "models/flow_decoder.py": [
        ("flow likelihood: the order is taken backwards", "argsort().argsort()", "argsort()"),
    ],
    "models/image_flows.py": [
        ("levels: one too many is let through", "if halvings > fit:", "if halvings > fit + 1:"),
        (
            "real nvp: the same checkerboard every time",
            "checkerboard_mask(shape, even=i % 2 == 0)",
            "checkerboard_mask(shape, even=True)",
        ),
        ("pixels: no margin", "beyond = margin / (1 - 2 * margin)", "beyond = 0.0"),
    ],
    "models/presets.py": [
        ("real_nvp: one of two masks is ignored", 'own_mask is not None and mask != "half"', "False"),
        ("real_nvp: every layer moves the same half", "even = i % 2 == 0", "even = True"),
        ("real_nvp: a mask of one's own never changes", "== (1 if even else 0)", "== 1"),
        (
            "real_nvp: permutations change from one build to the next",
            "            layers.append(Permutation.random(dim, seed=i))",
            "            layers.append(Permutation.random(dim, seed=int(1e6 * nn.Linear(1, 1).bias.item())))",
        ),
        (
            "nsf: every coupling moves the same entries",
            "stays = alternating_mask(dim, even=i % 2 == 0)",
            "stays = alternating_mask(dim, even=True)",
        ),
        (
            "nsf: a permutation inside a pair",
            "if i and i % 2 == 0:\n            layers += [Permutation",
            "if i:\n            layers += [Permutation",
        ),
        (
            "nsf: no linear map at the end",
            "return Chain([*layers, LULinear(dim)])",
            "return Chain(layers)",
        ),
    ],
    "models/quantizer.py": [
        (
            "VQ: distances to far codes are rounded away",
            "self.codebook.mean(0)  # d",
            "0 * self.codebook[0]  # d",
        ),
        ("VQ: the codes' length is forgotten", "(book.square().sum(1) - 2 * products)", "(-2 * products)"),
        ("VQ: the gradient is not passed on", "+ (tokens - tokens.detach())", "+ (tokens - tokens).detach()"),
        (
            "VQ: decay is that of the new",
            "self.counts.lerp_(counts, 1 - self.decay)",
            "self.counts.lerp_(counts, self.decay)",
        ),
        (
            "VQ: codes in use restart, dead ones stay",
            "dead = self.counts < self",
            "dead = self.counts >= self",
        ),
        (
            "VQ: a restarted code is pulled back",
            "torch.where(dead[:, None], placed * mean, self.sums)",
            "self.sums",
        ),
        ("VQ: evaluation moves the codebook", "if self.training and torch.is_grad_enabled():", "if True:"),
        (
            "VQ: perplexity is the entropy",
            "torch.special.entr(shares).sum().exp()",
            "torch.special.entr(shares).sum()",
        ),
        (
            "VQ: places in column order",
            "return z.flatten(2).transpose(1, 2)",
            "return z.mT.flatten(2).transpose(1, 2)",
        ),
    ],
    "models/second_stage.py": [
        (
            "second stage: draws without the inner noise",
            "self._likelihood(u, context).sample()",
            "self._likelihood(u, context).mean",
        ),
        (
            "second stage: an inner density up to a constant passes",
            'part.density in ("exact", "estimate") for',
            'part.density != "" for',
        ),
    ],
    "models/segmentation.py": [
        (
            "segmentation: means of the posterior without a bound",
            "bounded[:, : self.dim] = soft_bound(raw[:, : self.dim], self.bound)",
            "bounded[:, : self.dim] = raw[:, : self.dim]",
        ),
    ],
    "models/vae.py": [
        ("vae: a prior of another posterior is accepted", "part.posterior not in own", "False"),
        (
            "vae: a flow hides that its base has no gradient",
            "        return drawn_parts(part.base)",
            "        return [part]",
        ),
        (
            "trace: prior at the base noise, not at z",
            "log_p = p.log_prob(z)",
            "log_p = p.log_prob(q.base.sample((num_samples,)) if hasattr(q, 'base') else z)",
        ),
        (
            "trace: weight with the prior's sign flipped",
            "self.log_likelihood + self.log_prior - self.log_posterior",
            "self.log_likelihood - self.log_prior - self.log_posterior",
        ),
        (
            "trace: prior and posterior swapped",
            "log_likelihood, log_p, log_q, levels",
            "log_likelihood, log_q, log_p, levels",
        ),
        (
            "reconstruction from the posterior of the mean",
            "self.decode_mean(self.encode(x, context).sample(), context)",
            "self.decode_mean(getattr(self.encode(x, context), 'base', self.encode(x, context)).sample(), context)",
        ),
        (
            "samples from N(0, I), whatever the prior",
            "return sample_rows(self.prior_at(context), num, temperature)",
            "return sample_rows(self._start(), num, temperature)",
        ),
        (
            "a prior without an inverse is accepted",
            "if not part.has_density:",
            "if not part.has_density and name != 'prior':",
        ),
        (
            "slow direction of the wrong part",
            '(("posterior", posterior, 0, "sampling"), ("prior", prior, 1, "density"))',
            '(("posterior", posterior, 1, "sampling"), ("prior", prior, 0, "density"))',
        ),
    ],
    "models/vqvae.py": [
        (
            "VQ-VAE-2: the bottom does not see the top",
            "torch.cat(above, 1)) if",
            "0 * torch.cat(above, 1)) if",
        ),
        ("VQ-VAE: numbers of codes are not compared", "found is not None and found != expected", "False"),
    ],
    "models/tarflow.py": [
        (
            "guidance: lengths are not looked at",
            "        bijection._valid(lengths, value, batch)",
            "        pass",
        ),
        (
            "guidance: noise has fewer rows than lengths",
            "    value = value.reshape(*batch, *bijection.base_shape)",
            "    value = u",
        ),
    ],
}
