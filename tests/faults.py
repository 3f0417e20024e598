"""Faults to plant: per file, (what goes wrong, the text that stands there, the text that replaces it)."""

Fault = tuple[str, str, str]

FAULTS: dict[str, list[Fault]] = {
    "core/noise.py": [
        (
            "noise: the key is ignored past its first part",
            "    seed = mix(*key)\n",
            "    seed = mix(*key[:1])\n",
        ),
        (
            "noise: the generator is not given back",
            "    with torch.random.fork_rng(devices=devices):\n        yield",
            "    yield",
        ),
    ],
    "core/shapes.py": [
        ("sum_event: one axis too few", "flatten(-event_ndim)", "flatten(1 - event_ndim)"),
    ],
    "core/precision.py": [
        (
            "soft_bound: slope is not one at zero",
            "torch.rsub(value.abs(), 1, alpha=-1 / bound)",
            "torch.rsub(value.abs(), 1, alpha=-1) * bound",
        ),
    ],
    "networks/masked.py": [
        ("MADE: an output reads its own input", "inputs[:, None] > hidden", "inputs[:, None] >= hidden"),
        (
            "MADE: hidden masks one too strict",
            "MaskedLinear(hidden[:, None] >= hidden)",
            "MaskedLinear(hidden[:, None] > hidden)",
        ),
        (
            "MADE: degrees not spread over all variables",
            "torch.arange(width) * kinds // width",
            "torch.arange(width) % max(kinds - 1, 1)",
        ),
        ("MADE: too narrow is accepted", "if width < kinds:", "if width < kinds - 1:"),
    ],
    "networks/base.py": [
        (
            "context: repeated in the wrong order over samples",
            "features.view(samples, rows, width) + context_features)",
            "features.view(rows, samples, width) + context_features[:, None])",
        ),
        ("last layer does not start at zero", "            nn.init.zeros_(self.linear.weight)\n", ""),
    ],
    "bijections/base.py": [
        (
            "chain: log-dets are not added",
            "value, log_det = member._inverse(value, context if member.context_shape else None)\n"
            "            total = total + log_det",
            "value, log_det = member._inverse(value, context if member.context_shape else None)\n"
            "            total = log_det",
        ),
        (
            "chain: inverse in forward order",
            "        value, total = x, x.new_zeros(())\n        for member in reversed(self.members):",
            "        value, total = x, x.new_zeros(())\n        for member in self.members:",
        ),
        (
            "inverse: passes are not swapped",
            "passes=(bijection.passes[1], bijection.passes[0])",
            "passes=(bijection.passes[0], bijection.passes[1])",
        ),
        (
            "amortized parameters ignore the context",
            "at_least_float32(self.head(context))",
            "at_least_float32(self.head(context * 0))",
        ),
        (
            "align: context rows out of step with values",
            "if suffix != rows:",
            "if suffix != rows and len(rows) > 1:",
        ),
        ("half precision is not promoted", "align(at_least_float32(value), shape", "align(value, shape"),
    ],
    "bijections/coupling.py": [
        (
            "affine coupling: sign of the forward log-det",
            "log_scale.exp()), log_scale.sum(-1)",
            "log_scale.exp()), -log_scale.sum(-1)",
        ),
        (
            "affine coupling: sign of both log-dets' common scale",
            "(-log_scale).exp(), -log_scale.sum(-1)",
            "(-log_scale).exp(), log_scale.sum(-1)",
        ),
        (
            "affine coupling: network in low precision enters the bound",
            "raw = at_least_float32(self.network(",
            "raw = (self.network(",
        ),
        (
            "partition: a contiguous cut is merged the wrong way",
            "if self.cut > 0 else [move, stay]",
            "if self.cut > 0 else [stay, move]",
        ),
        ("additive coupling: inverse adds", "return move - raw,", "return move + raw,"),
    ],
    "bijections/autoregressive.py": [
        (
            "IAF: log-det counted once per dimension",
            "u, log_scale.exp()), log_scale.sum(-1)",
            "u, log_scale.exp()), log_scale.sum(-1) * u.shape[-1]",
        ),
        ("IAF: sign of the inverse log-det", "return u, -log_scale.sum(-1)", "return u, log_scale.sum(-1)"),
        ("IAF: one pass of the inverse is missing", "range(x.shape[-1])", "range(x.shape[-1] - 1)"),
        ("IAF: network in bfloat16 under autocast", "with full_precision(u):", "if True:"),
    ],
    "bijections/linear.py": [
        ("permutation: inverse does not undo it", '"back", torch.argsort(order)', '"back", order.clone()'),
        (
            "actnorm: initialized anew after a load",
            'self.register_buffer("initialized", torch.tensor(False))',
            'self.register_buffer("initialized", torch.tensor(False), persistent=False)',
        ),
        (
            "actnorm: log-det forgets the entries per channel",
            "self.log_scale.exp()), self.log_scale.sum() * self.repeats",
            "self.log_scale.exp()), self.log_scale.sum()",
        ),
        (
            "actnorm: variance instead of standard deviation",
            "scale.log().view_as",
            "(2 * scale.log()).view_as",
        ),
    ],
    "bijections/low_rank.py": [
        (
            "planar: published constraint, not the identity at zero",
            "addcmul(v, (bounded - inner)",
            "addcmul(v, (bounded - inner - 1)",
        ),
        ("planar: no constraint at all", "bounded = _bounded(inner)", "bounded = inner"),
        (
            "planar: derivative of tanh",
            "addcmul(bounded, bend * bend, bounded, value=-1)",
            "addcmul(bounded, bend, bounded, value=-1)",
        ),
        ("planar: tiny w blows v_hat up", ".clamp_min(floor)", " + floor**2"),
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
            "at_least_float32(log_scale).expand(self._mean.shape)",
            "at_least_float32(log_scale)",
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
    "distributions/likelihoods.py": [
        (
            "Bernoulli: sign of the logits in draws",
            "(draws < self.logits.sigmoid())",
            "(draws > self.logits.sigmoid())",
        ),
        ("Bernoulli: gray values accepted", "((x == 0) | (x == 1)).all()", "((x >= 0) & (x <= 1)).all()"),
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
    "models/vae.py": [
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
            "self.decode_mean(self.posterior(x).sample())",
            "self.decode_mean(getattr(self.posterior(x), 'base', self.posterior(x)).sample())",
        ),
        ("sampling ignores the temperature", "if temperature != 1:", "if temperature > 1:"),
        (
            "samples from N(0, I), whatever the prior",
            "return p.sample((num,) if not p.batch_shape else ())",
            "return torch.randn(num, *self.latent_shape).to(p.sample())",
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
    "models/presets.py": [
        ("real_nvp: every layer moves the same half", "first=i % 2 == 0", "first=True"),
        (
            "real_nvp: permutations change from one build to the next",
            "seed=i)",
            "seed=int(1e6 * nn.Linear(1, 1).bias.item()))",
        ),
    ],
    "objectives.py": [
        (
            "ELBO: beta on the reconstruction",
            "else beta * kl - reconstruction",
            "else kl - beta * reconstruction",
        ),
        (
            "ELBO: KL of the wrong sign",
            "        else:\n            kl = _mean_over_samples(trace.log_posterior - trace.log_prior)",
            "        else:\n            kl = _mean_over_samples(trace.log_prior - trace.log_posterior)",
        ),
        (
            "ELBO: closed form taken from p to q",
            "kl_divergence(q, p) for q, p in trace.levels",
            "kl_divergence(p, q) for q, p in trace.levels",
        ),
        ("loss: summed over the batch", "return Value(points.mean(),", "return Value(points.sum(),"),
        (
            "IWAE: sign inside the soft maximum",
            "trace.log_weight.logsumexp(0) - math",
            "-(-trace.log_weight).logsumexp(0) + math",
        ),
        ("IWAE: log K forgotten", ".logsumexp(0) - math.log(len(trace.log_weight))", ".logsumexp(0)"),
        (
            "IWAE: mean of the logs",
            "trace.log_weight.logsumexp(0) - math.log(len(trace.log_weight))",
            "trace.log_weight.mean(0)",
        ),
        ("warm-up never ends", "return min(epoch / length, 1.0)", "return epoch / length"),
        (
            "second stage: z enters with the posterior's density",
            "nll = -trace.log_prior.mean(0)",
            "nll = -trace.log_posterior.mean(0)",
        ),
    ],
}
