"""Faults to plant in `evaluation`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "evaluation/annealing.py": [
        (
            "annealing: the last kick is a whole one",
            "(1 if i + 1 < num_steps else 0.5) * size_of_step",
            "size_of_step",
        ),
        (
            "annealing: momentum at the end is free",
            "change = log_f - 0.5 * momentum.double().square().flatten(2).sum(-1) - energy",
            "change = log_f - energy",
        ),
        (
            "annealing: chains back walk forward",
            "self._anneal(z, self.betas[::-1], self.steps.flip(0), 3)",
            "self._anneal(z, self.betas, self.steps, 3)",
        ),
        (
            "annealing: noise depends on how many images are wanted",
            "shape = (len(z), len(self.block.x), *z.shape[2:])",
            "shape = (len(z), self.count, *z.shape[2:])",
        ),
    ],
    "evaluation/bounds.py": [
        (
            "bounds: a divergence below zero passes",
            "    if prior is not None:\n        solver",
            "    if None:\n        solver",
        ),
    ],
    "evaluation/base.py": [
        ("a stated error is no excuse", "(error + stated + solver_error)", "error"),
        (
            "weights: a posterior's estimate is weighed",
            "unweighable_parts(model, prior, posterior=posterior)",
            "unweighable_parts(model, prior, posterior=False)",
        ),
        (
            "evaluation: masses get the offset of densities",
            "return 0.0 if model.likelihood.distribution_type.discrete else",
            "return",
        ),
        (
            "evaluation: gray levels pass for real values",
            '    if source.values == "unit":\n        return "density on gray levels without noise"\n',
            "",
        ),
        ("evaluation: what is no likelihood has an NLL", "if not kind.normalized:", "if False:"),
    ],
    "evaluation/codes.py": [
        (
            "bound of codes: the mass of the codes is left out",
            "self.reconstruction - self.code_nll",
            "self.reconstruction",
        ),
    ],
    "evaluation/disentanglement.py": [
        (
            "disentanglement: a mean of draws passes for the closed form",
            '"closed form" if draws is None else f"mean of {draws} draws"',
            '"closed form"',
        ),
        (
            "MIG: gap to the worst latent",
            "best[0] - best[1]) / entropy",
            "best[0] - information.min(0).values) / entropy",
        ),
        ("DCI: latents count alike", "(rows / total * torch", "(torch.ones_like(rows) / len(rows) * torch"),
    ],
    "evaluation/distances.py": [
        ("frechet: divisor n", "(len(x) - 1) ** 0.5", "len(x) ** 0.5"),
        ("kernel distance: points are paired with themselves", " - _cubic(a.square().sum(1), a).sum()", ""),
        ("manifold: a point is its own neighbor", "        squared[rows, rows + start] = torch.inf\n", ""),
        ("manifold: the border is outside", "inside = squared <= radius", "inside = squared < radius"),
        (
            "coverage by the balls of the samples",
            "covered.append(inside.any(1))",
            "covered.append(inside.any(0))",
        ),
    ],
    "evaluation/exact.py": [
        (
            "bits per dimension: nats",
            "self.nll / (self.num_dimensions * math.log(2))",
            "self.nll / self.num_dimensions",
        ),
    ],
    "evaluation/features.py": [
        (
            "features: modules without weights are one",
            'f"{_structure(module)} {channels} {self.mean} {self.std}"',
            'f"{type(module).__qualname__} {channels} {self.mean} {self.std}"',
        ),
        (
            "features: an address is part of the extractor",
            're.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))',
            "repr(value)",
        ),
    ],
    "evaluation/gaps.py": [
        (
            "gaps: the encoder's posterior is scored twice",
            "_log_weights(model, one, p, block, num_samples, seed) for one in (q, best, early)",
            "_log_weights(model, one, p, block, num_samples, seed) for one in (q, q, early)",
        ),
        (
            "gaps: the two levels are taken for independent",
            "(best - evidence).exp() - best",
            "best - evidence",
        ),
        (
            "gaps: a fixed scale is optimized",
            'if isinstance(conditional, AmortizedGaussian) and conditional.scale != "amortized":',
            "if False:",
        ),
        ("gaps: context features stay", "return [*parameters, change], lambda", "return parameters, lambda"),
    ],
    "evaluation/integration.py": [
        (
            "integration: the error is that of the probes",
            "float(error.double().mean())",
            "float(scored.standard_error.mean())",
        ),
        ("integration: an exact divergence has probes", "if p.num_probes is not None:", "if True:"),
    ],
    "evaluation/holes.py": [
        (
            "holes: in the mode that the model is in",
            "with evaluation_mode(model), torch.no_grad():",
            "with torch.no_grad():",
        ),
        ("mmd: points are paired with themselves", "        values[rows - start, rows] = 0\n", ""),
        (
            "mmd: the given labels are no relabeling",
            "p_value=(1 + as_large) / (1 + num_permutations)",
            "p_value=as_large / num_permutations",
        ),
        (
            "classifier test: tested on what it was trained on",
            "order[:, count // 2 :].flatten()",
            "order[:, : count // 2].flatten()",
        ),
    ],
    "evaluation/information.py": [
        (
            "information: the upper bound counts the own encoding",
            "rest = log_q.masked_fill(is_own, -torch.inf).logsumexp(1)",
            "rest = log_q.logsumexp(1)",
        ),
        (
            "information: an estimate of the prior has a lower bound",
            'if kl is None or p.density == "estimate" else',
            "if kl is None else",
        ),
        ("units: means of draws look active", "activity=spread - error.mean(0)", "activity=spread"),
    ],
    "evaluation/intervals.py": [
        ("jackknife: error of independent values", "(num_groups - 1) / math.sqrt(num_groups) *", "1 /"),
    ],
    "evaluation/neighbors.py": [
        ("neighbors: norms count twice", "norms - 2 * part @ references.T", "norms - part @ references.T"),
        (
            "neighbors: the share of samples farther than the test images",
            "(nearest < baseline.quantile(level))",
            "(nearest > baseline.quantile(level))",
        ),
    ],
    "evaluation/protocol.py": [
        (
            "protocol: another number of blocks in one column",
            'if name != "seed" and',
            'if name not in ("seed", "num_blocks") and',
        ),
        (
            "protocol: figures of means and draws in one column",
            'if name != "seed" and',
            'if name not in ("seed", "shown") and',
        ),
    ],
    "evaluation/segmentation.py": [
        ("energy distance: draws paired with themselves", "/ (count * (count - 1))", "/ count**2"),
        (
            "IoU: two empty masks disagree",
            "torch.where(either == 0, torch.ones_like(both)",
            "torch.where(either == 0, torch.zeros_like(both)",
        ),
        ("frequencies: error with the noise of the draws", "square() - noise_part)", "square())"),
    ],
    "evaluation/target.py": [
        ("target: a message names another argument", ', name="num_points")', ")"),
        ("target: log Z is forgotten", ".double() + log_normalizer", ".double()"),
        ("target: weights turned over", "log_mean_weight(-self.reverse", "log_mean_weight(self.reverse"),
    ],
}
