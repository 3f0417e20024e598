"""Faults to plant in `distributions`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "distributions/adapters.py": [
        (
            "torch: rows of an expanded batch share a draw",
            "1 if had == wanted else wanted for",
            "1 if had == wanted else 1 for",
        ),
        (
            "torch: the density of an expanded batch is not expanded",
            ".log_prob(value).expand(torch.broadcast_shapes(rows, self.batch_shape))",
            ".log_prob(value)",
        ),
        ("torch: discrete values pass as real ones", "if self.distribution.discrete:", "if False:"),
        (
            "torch: samples carry gradients",
            "with torch.no_grad():\n            return self._draw",
            "if True:\n            return self._draw",
        ),
        ("torch: an unnormalized density is accepted", "if not distribution.normalized:", "if False:"),
        ("Pyro: the class is not where pickle looks for it", 'if name == "PyroDistribution":', "if False:"),
    ],
    "distributions/amortized_mixture.py": [
        (
            "amortized mixture: anchors beyond the bound",
            "soft_bound(self.anchors + means.unflatten(-1, shape), self.mean_bound)",
            "self.anchors + soft_bound(means.unflatten(-1, shape), self.mean_bound)",
        ),
    ],
    "distributions/base.py": [
        ("sampling ignores the temperature", "if temperature != 1:", "if temperature > 1:"),
        ("categorical draws: an entry without mass is drawn", "columns, right=True)", "columns)"),
    ],
    "distributions/codes.py": [
        ("codes: draws are not tempered", "/ self.temperature, ()))", ", ()))"),
        (
            "codes: two temperatures are one",
            "temperature=self.temperature * temperature",
            "temperature=temperature",
        ),
    ],
    "distributions/continuous_bernoulli.py": [
        (
            "continuous Bernoulli: wrong side of large logits",
            "self.logits > 0, 1 - x, x)",
            "self.logits > 0, x, x)",
        ),
        ("continuous Bernoulli: no series near one half", "_SMALL = 0.5", "_SMALL = 0.0"),
        (
            "continuous Bernoulli: draws of the mirrored logits",
            "torch.where(self.logits > 0, 1 - rest, rest).clamp",
            "torch.where(self.logits > 0, rest, 1 - rest).clamp",
        ),
    ],
    "distributions/continuous_likelihoods.py": [
        ("Laplace: constant of one dimension", "- size(self.event_shape) * _LOG_2", "- _LOG_2"),
        ("Student t: exponent of another density", "0.5 * (self.degrees + 1)", "0.5 * self.degrees"),
        (
            "Student t: one radius for all degrees of freedom",
            "log_root = -torch.log1p(-u) / self.degrees",
            "log_root = -torch.log1p(-u)",
        ),
        (
            "Student t: a square that overflows",
            "2 * large.log() + torch.log1p((x / large).square() + (large.reciprocal().square() - 1))",
            "torch.log1p(x * x)",
        ),
        (
            "batch-optimal: fits to what it evaluates",
            "fit = self._fit if self.training and torch.is_grad_enabled() else None",
            "fit = self._fit",
        ),
        (
            "batch-optimal: fits where no gradient is recorded",
            "fit = self._fit if self.training and torch.is_grad_enabled() else None",
            "fit = self._fit if self.training else None",
        ),
        (
            "batch-optimal: a bad step stays in the average",
            "torch.where(finite, (fresh - self.mean_square) * weight, 0.0)",
            "(fresh - self.mean_square) * weight",
        ),
        (
            "batch-optimal: a piece counts as a step",
            "fresh = torch.stack(self._gathered).mean()",
            "fresh = self._gathered[-1]",
        ),
    ],
    "distributions/discretized.py": [
        (
            "categorical: draws of NaN are a level",
            "return drawn.masked_fill(self.logits.isnan().any(-1), torch.nan)",
            "return drawn",
        ),
        (
            "discretized logistic: the highest bin is closed",
            "torch.where(level >= levels - 1, above_lower, inside)",
            "inside",
        ),
        (
            "discretized: levels are cut, not rounded",
            "(x * (levels - 1)).round()",
            "(x * (levels - 1)).floor()",
        ),
        (
            "mixture of logistics: weights do not add up to one",
            "entries = (self.logits.log_softmax(-1) + masses).logsumexp(-1)\n        return sum_event(entries, len",
            "entries = (self.logits + masses).logsumexp(-1)\n        return sum_event(entries, len",
        ),
        ("coupled logistics: blue ignores green", "beta * red + gamma * green", "beta * red"),
    ],
    "distributions/em.py": [
        (
            "EM: no floor",
            "spread.clamp_min(self.floor)",
            "spread.clamp_min(1e-9)",
        ),
        (
            "EM: labels are ignored",
            "(labels.unsqueeze(-1) + self.log_weights)",
            "(0 * labels.exp().unsqueeze(-1) + self.log_weights)",
        ),
        ("EM: weights are over all classes", "by_class.sum(-1, keepdim=True)", "by_class.sum()"),
        (
            "EM: products of two variables count once",
            "torch.where(self.rows == self.columns, 0.5, 1.0)",
            "0.5",
        ),
        ("EM: the scale is not given back", "else run.scales * scale", "else run.scales"),
    ],
    "distributions/energy.py": [
        (
            "energy: weights upside down",
            "            return -self.energy(z)",
            "            return self.energy(z)",
        ),
    ],
    "distributions/flow.py": [
        ("flow: sign of the log-det of a draw", "return x, log_p - log_det", "return x, log_p + log_det"),
        (
            "flow: sign of the log-det of a score",
            "self.base.log_prob(u) + log_det",
            "self.base.log_prob(u) - log_det",
        ),
        (
            "flow: one noise for all rows",
            "return sample_shape if self.base.batch_shape else (*sample_shape, *self.batch_shape)",
            "return sample_shape",
        ),
    ],
    "distributions/flow_matching.py": [
        (
            "flow matching: the scale of the latents is forgotten",
            "return self.scale.expand(self.event_shape).log().sum()",
            "return self.scale.sum() * 0",
        ),
        (
            "flow matching: probes are summed",
            "integrals.mean(1) - self._log_scale()\n            parts",
            "integrals.sum(1) - self._log_scale()\n            parts",
        ),
    ],
    "distributions/gaussian.py": [
        (
            "standard normal: constant dropped",
            "size(self.event_shape) * (0.5 * _LOG_2PI + math.log(self.scale))",
            "size(self.event_shape) * math.log(self.scale)",
        ),
        (
            "standard normal: temperature missing from the density",
            "0.5 * _LOG_2PI + math.log(self.scale)",
            "0.5 * _LOG_2PI",
        ),
        (
            "diagonal normal: constant of one dimension",
            "constant = 0.5 * size(self.event_shape) * _LOG_2PI",
            "constant = 0.5 * _LOG_2PI",
        ),
        (
            "diagonal normal: samples with exp(log variance)",
            "torch.addcmul(self._mean, self.log_scale.exp(), standardized)",
            "torch.addcmul(self._mean, (2 * self.log_scale).exp(), standardized)",
        ),
        (
            "diagonal normal: shared log-scale counted once",
            "log_scale if whole else log_scale.expand(self._mean.shape)",
            "log_scale",
        ),
        (
            "diagonal normal: temperature on the variance",
            "self.log_scale + math.log(temperature)",
            "self.log_scale + 0.5 * math.log(temperature)",
        ),
        (
            "full normal: log-det of the covariance",
            "diagonal(dim1=-2, dim2=-1).log().sum(-1)",
            "diagonal(dim1=-2, dim2=-1).log().sum(-1) * 2",
        ),
        (
            "full normal: samples with the transpose",
            "(self.scale_tril @ standardized",
            "(self.scale_tril.mT @ standardized",
        ),
        (
            "amortized Gaussian: mean and scale swapped",
            "mean, scale = raw.chunk(2, -ndim)",
            "scale, mean = raw.chunk(2, -ndim)",
        ),
        (
            "amortized Gaussian: fixed scale read as variance",
            "math.log(self.scale)), event_ndim",
            "0.5 * math.log(self.scale)), event_ndim",
        ),
    ],
    "distributions/hierarchical.py": [
        (
            "hierarchy: a level's class decides whether it can be weighed",
            "    if isinstance(level, Flow):\n        return _sources(level.base, temperature)\n",
            "",
        ),
        (
            "hierarchy: the class of a level that reads decides whether it can be weighed",
            "all(source.weighable for source in sources)",
            "all(getattr(source, 'distribution_type', source).weighable for source in sources)",
        ),
        ("hierarchy: a level is not scored", "log_p = log_p + log_q", "log_p = log_p + 0 * log_q"),
        (
            "hierarchy: the lower levels stay warm",
            "return d if self.temperature == 1 else",
            "return d if True else",
        ),
        (
            "hierarchy: detached levels carry gradients",
            "tensors = {id(p): p.detach() for p in level.parameters()}",
            "tensors = {id(p): p for p in level.parameters()}",
        ),
        (
            "hierarchy: levels are joined before their features",
            "return join(own, joined, own_shape, stacked)",
            "return join(joined, own, stacked, own_shape)",
        ),
    ],
    "distributions/kl.py": [
        ("KL: p and q swapped", "_FORMULAS[type(q), type(p)](q, p)", "_FORMULAS[type(q), type(p)](p, q)"),
        (
            "KL diagonal: log ratio of the wrong sign",
            "+ 2 * (p.log_scale - q.log_scale)",
            "- 2 * (p.log_scale - q.log_scale)",
        ),
        (
            "KL standard: scale of a tempered prior forgotten",
            "(math.log(p.scale) - 0.5)",
            "-0.5",
        ),
        ("KL full: dimension dropped", "- mean_q.shape[-1])", "- 1)"),
    ],
    "distributions/likelihoods.py": [
        (
            "Bernoulli: sign of the logits in draws",
            "like=self.logits) < probability",
            "like=self.logits) > probability",
        ),
        (
            "Bernoulli: draws of NaN are black",
            "torch.where(probability.isnan(), probability, drawn.to(self.logits.dtype))",
            "drawn.to(self.logits.dtype)",
        ),
        ("Bernoulli: gray values accepted", "((x == 0) | (x == 1)).all()", "((x >= 0) & (x <= 1)).all()"),
        ("gray Bernoulli: passes for a likelihood", "normalized = False", "normalized = True"),
    ],
    "distributions/low_rank.py": [
        (
            "low rank: determinant of the diagonal alone",
            "log_det.to(self.log_scale.dtype) + self",
            "log_det.to(self.log_scale.dtype) * 0 + self",
        ),
        ("low rank: the norm of the shared part is forgotten", " + a.square().sum((-2, -1))", ""),
        ("low rank: only the diagonal is cooled", "self.factor * temperature", "self.factor"),
        ("low rank: the KL forgets the prior's scale", "+ dim * math.log(p.scale)", ""),
    ],
    "distributions/mixture.py": [
        (
            "mixture: a draw hides weights that are NaN",
            "return x.masked_fill(",
            "return x if len(x) else x.masked_fill(",
        ),
        (
            "mixture: the sum leaves log space",
            "        return (log_p + self.log_weights).logsumexp(-1).to(dtype)",
            "        return (log_p.exp() * self.log_weights.exp()).sum(-1).log().to(dtype)",
        ),
        (
            "mixture: weights forgotten in the density",
            "(log_p + self.log_weights)",
            "(log_p - math.log(log_p.shape[-1]))",
        ),
        (
            "mixture: a component without weight is drawn",
            "by_row, right=True).movedim",
            "by_row, right=False).movedim",
        ),
        (
            "mixture: the rows of a batch all draw the first row's components",
            "return index + first.expand(index.shape[cut:])",
            "return index",
        ),
        (
            "mixture: products in float32",
            "x.double(), mean.double(), log_scale.double()",
            "x, mean, log_scale",
        ),
        ("mixture: EM is kept where it is worse", ".mean()) >= score:", ".mean()) >= -math.inf:"),
        (
            "mixture: a soft label is not normalized",
            ".log_softmax(-1)\n        self.batch_shape",
            "\n        self.batch_shape",
        ),
        ("mixture: the start is too wide", "0.5 * math.log(1 - spread**2)", "math.log(1 - spread**2)"),
    ],
    "distributions/normalizer.py": [
        ("normalizer: a few draws are enough", "self.known.fill_(measured)", "self.known.fill_(True)"),
        (
            "normalizer: a bad step stays in the average",
            "torch.where(finite, moved, self.log_mean)",
            "moved",
        ),
        (
            "normalizer: a step that gathered nothing is taken in",
            "        if self._gathered:\n            gathered = gathered_over_processes",
            "        if True:\n            gathered = gathered_over_processes",
        ),
        ("normalizer: no gradient", "        return fresh\n", "        return fresh.detach()\n"),
        (
            "normalizer: a mixture does not feel what it is weighed by",
            "return z, log_p - log_p.detach()",
            "return z, (log_p - log_p).detach()",
        ),
    ],
    "distributions/ode.py": [
        ("dopri5: one error for the whole batch", ".mean(1).sqrt()", ".mean().sqrt().expand(len(y))"),
    ],
    "distributions/resampled.py": [
        (
            "LARS: the error of Z is that of any z",
            "        return -torch.expm1(log_mean) * grown + last\n",
            "        return torch.ones_like(log_mean)\n",
        ),
        (
            "LARS: one attempt too many",
            "logsumexp(0), (max_attempts - 1) * log_rejection",
            "logsumexp(0), max_attempts * log_rejection",
        ),
        ("LARS: a rejected proposal is drawn", "accepted.int().argmax(0)", "accepted.int().argmin(0)"),
    ],
    "distributions/sampling.py": [
        (
            "Langevin: the move's own density is left out",
            " + 0.5 * (xi.flatten(1).square() - back.flatten(1).square()).sum(1)",
            "",
        ),
    ],
    "distributions/vamp.py": [
        (
            "vamp: keeps what a vectorized pass gave",
            " or self.posterior.training or is_traced():",
            " or self.posterior.training:",
        ),
        ("vamp: kept components go stale", "or not _all_equal(self._kept[1], state)", ""),
        ("vamp: kept components of another precision", "or self._kept[0] != low ", ""),
        (
            "vamp: the posterior is registered",
            "self._shared = (posterior,)",
            "self._shared = nn.ModuleList([posterior])",
        ),
        ("vamp: weights are not learned", "if self.raw_weights is None else self.raw_weights\n", "\n"),
        ("vamp: data at the border cannot learn", "inputs.clamp(_MARGIN, 1 - _MARGIN)", "inputs.clamp(0, 1)"),
        ("exemplar: evaluation takes a subset", "sampled = self.training and", "sampled ="),
        ("exemplar: always the same subset", "noise.permutation(len(inputs))", "torch.arange(len(inputs))"),
    ],
}
