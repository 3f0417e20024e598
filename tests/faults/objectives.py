"""Faults to plant in `objectives`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "objectives/adversarial.py": [
        ("game: the critic learns in the sampler's turn", "else _Frozen(prior.critic)", "else prior.critic"),
    ],
    "objectives/autoencoder.py": [
        ("RAE: a mean is not asked for", 'model, ("likelihood_mean",)', "model, ()"),
        ("RAE: decay of all parts", "for p in model.likelihood.parameters()", "for p in model.parameters()"),
        ("sparse: activity of each point", "count = math.log(len(z))", "count = 0.0"),
    ],
    "objectives/base.py": [
        ("loss: summed over the batch", "return Value(points.mean(),", "return Value(points.sum(),"),
        (
            "KL of the wrong sign",
            "return mean_over_samples(trace.log_posterior - trace.log_prior)",
            "return mean_over_samples(trace.log_prior - trace.log_posterior)",
        ),
        (
            "closed-form KL taken from p to q",
            "kl_divergence(q, p) for q, p in trace.levels",
            "kl_divergence(p, q) for q, p in trace.levels",
        ),
        ("warm-up never ends", "return min(epoch / length, 1.0)", "return epoch / length"),
        (
            "stick the landing: the score stays in",
            "path = q.detached().log_prob(trace.z)",
            "path = q.log_prob(trace.z)",
        ),
    ],
    "objectives/constraint.py": [
        (
            "GECO: the average moves with the last piece alone",
            "gathered_over_processes(torch.stack(self._moved)).mean()",
            "self._moved[-1]",
        ),
        ("GECO: the multiplier descends", "(ascent.detach() - ascent)", "(ascent - ascent.detach())"),
        ("GECO: validation moves the average", "multiplier.training and torch.is_grad_enabled()", "True"),
        (
            "capacity: the KL is only held from above",
            ".mean().sign() * excess",
            ".mean().sign().clamp(min=0) * excess",
        ),
    ],
    "objectives/contrastive.py": [
        (
            "noise contrast: both sides have one label",
            'softplus(-terms["energy_base"])',
            'softplus(terms["energy_base"])',
        ),
    ],
    "objectives/density.py": [
        (
            "reverse KL: the energy is never annealed",
            "loss = log_density + joint_warm_up(epoch, self.warmup_epochs) * energy",
            "loss = log_density + energy",
        ),
    ],
    "objectives/divergence.py": [
        ("MMD: a point is compared with itself", " - within.diagonal(dim1=-2, dim2=-1)", ""),
        (
            "MMD: against N(0, I), whatever the prior",
            "drawn = p.sample(",
            "drawn = type(p)(0 * p.mean, 0 * p.log_scale).sample(",
        ),
    ],
    "objectives/elbo.py": [
        (
            "ELBO: beta on the reconstruction",
            "else beta * kl - reconstruction",
            "else kl - beta * reconstruction",
        ),
        (
            "ELBO: free bits of each point, not on average",
            "paid = groups.detach().mean(0) > self.free_bits",
            "paid = groups.detach() > self.free_bits",
        ),
        (
            "ELBO: what is annealed jointly leaves the prior out",
            "mean_over_samples(trace.log_likelihood + trace.log_prior)",
            "mean_over_samples(trace.log_likelihood)",
        ),
    ],
    "objectives/iwae.py": [
        (
            "IWAE: sign inside the soft maximum",
            "bound = log_weight.logsumexp(0) - math",
            "bound = -(-log_weight).logsumexp(0) + math",
        ),
        ("IWAE: log K forgotten", ".logsumexp(0) - math.log(len(log_weight))", ".logsumexp(0)"),
        (
            "IWAE: mean of the logs",
            "bound = log_weight.logsumexp(0) - math.log(len(log_weight))",
            "bound = log_weight.mean(0)",
        ),
        ("IWAE: weights of the paths not squared", "(share - share**2)", "(share - share)"),
    ],
    "objectives/prior.py": [
        (
            "second stage: z enters with the posterior's density",
            "nll = -trace.log_prior.mean(0)",
            "nll = -trace.log_posterior.mean(0)",
        ),
    ],
    "objectives/requirements.py": [
        (
            "a Cauchy has a mean",
            "if not isinstance(degrees, str) and degrees <= 1:",
            "if False:",
        ),
        (
            "a flow over a base without a constant passes",
            "    base = density_of(part.base)",
            "    base = part.distribution_type.density",
        ),
        (
            "the density of a solved flow is said to be exact",
            'return "approximate" if part.solved and base == "exact" else base',
            "return base",
        ),
        (
            "the question whether a prior can be weighed moves it",
            "with torch.no_grad():  # with gradients",
            "with torch.enable_grad():  # with gradients",
        ),
    ],
    "objectives/total_correlation.py": [
        (
            "beta-TC: the point itself counts as another one",
            "return weights.fill_diagonal_(-math.log(points))",
            "return weights",
        ),
        ("beta-TC: marginals after the sum", ".logsumexp(-2).sum(-1)", ".sum(-1).logsumexp(-1)"),
        (
            "FactorVAE: the discriminator learns from the model's term",
            "{name: p.detach() for name, p in",
            "{name: p for name, p in",
        ),
        (
            "FactorVAE: the encoder learns from the discriminator's loss",
            "own = at_least_float32(discriminator(z.detach()",
            "own = at_least_float32(discriminator(z",
        ),
    ],
    "objectives/vector_quantization.py": [
        (
            "VQ: beta weighs the other term",
            "codebook + self.commitment * commitment",
            "self.commitment * codebook + commitment",
        ),
    ],
}
