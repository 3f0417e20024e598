"""Faults to plant in `training`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "training/masks.py": [
        ("masks: the gradient goes by", "gradient.mul_(self.vector)", "pass"),
        ("masks: the numbers go by", "numbers.detach().mul_(self.vector)", "pass"),
        ("masks: taken for granted for good", 'layer.__dict__.pop("is_clean", None)', "pass"),
        ("masks: a shared weight gets one of two", "if owners[layer.weight] == 1", "if owners"),
    ],
    "training/diagnostics.py": [
        (
            "diagnostics: what draws add stays in",
            "variance_of_first(mean) - added, within",
            "variance_of_first(mean), within",
        ),
        ("diagnostics: noise counts as activity", "proven = across - margin", "proven = across"),
        (
            "diagnostics: the width of q(z) without that of its means",
            "whole = (within + across)",
            "whole = within",
        ),
        ("diagnostics: points are needles", "(within > 0) & ", ""),
    ],
    "training/initialization.py": [
        (
            "prior from data: the context is left out",
            "prior.initialize(model.read_by_posterior(*batch))",
            "prior.initialize(batch.x)",
        ),
        (
            "initialization: priors start again in every stage",
            "    waiting = waiting_priors(model.prior)\n",
            "    waiting = [p for p in model.prior.modules() if isinstance(p, DataDependentPrior)]\n",
        ),
        (
            "initialization: the base is given z itself",
            "yield from _reached(prior.base, u,",
            "yield from _reached(prior.base, z,",
        ),
        (
            "initialization: frozen parameters of a prior are set",
            'if prior.reads == "latents" and any(p in trainable for p in prior.parameters())',
            'if prior.reads == "latents"',
        ),
        ("initialization: frozen parts too", "and any(p in trainable for p in part.parameters())", ""),
        (
            "initialization: prior meets the base noise",
            "model.prior_at(batch.context), z)",
            "model.prior_at(batch.context), torch.randn_like(z))",
        ),
    ],
    "training/learner.py": [
        (
            "adam: the weight decay of its short form is the coupled one",
            '"fused", "decoupled_weight_decay")',
            '"fused")',
        ),
        (
            "learner: a skipped step is counted in the codebook",
            "            module.begin()\n",
            "            pass\n",
        ),
    ],
    "training/loop.py": [
        (
            "types: of data and parameters are not compared",
            "if not types or batch.x.dtype in types:",
            "if True:",
        ),
        (
            "seconds: of the first run torch's imports",
            "    torch.optim.SGD([torch.zeros(1)], lr=0.1)",
            "    pass",
        ),
    ],
    "training/record.py": [
        ("resume: each process from a checkpoint of its own", "if len(set(steps)) > 1:", "if False:"),
        (
            "resume: on other data of the same number",
            '"training_data": data_hash(train),',
            '"training_data": "",',
        ),
    ],
    "training/session.py": [
        ("diagnostics: judged from the first step on", "if learns and settled else {}", "if learns else {}"),
        (
            "signals: a fit by EM does not look at them",
            "with interruptible():",
            "if True:",
        ),
    ],
    "training/stacked.py": [
        (
            "together: of blocks nobody is told",
            "        self._tell_of_blocks(ready, choice)\n",
            "",
        ),
        ("together: measuring moves the first run", "session.learner.restore(before)", "pass"),
        ("together: an early stop waits for nobody", "stage = min(", "stage = max("),
        (
            "together: a run that has left answers with the row it left",
            "if member.in_step and not self._has_left(member)]",
            "if member.in_step]",
        ),
        (
            "together: after an error runs share the optimizer's count of steps",
            "            self.alone = True\n            self._leave(ready)\n",
            "            self.alone = True\n",
        ),
        (
            "together: of a stack that is given up runs share the optimizer's count of steps",
            "            self._leave(ready)\n            self._forget()",
            "            self._forget()",
        ),
    ],
    "training/stacked_member.py": [
        (
            "together: a run with a skipped step stays in step",
            "good = progress.rate_scale == 1.0 and taken == progress.stage_steps",
            "good = True",
        ),
    ],
    "training/stacked_program.py": [
        (
            "together: validation takes what a part refuses",
            "sums = torch.where(torch.stack(noted).all(), sums, torch.nan)",
            "pass",
        ),
    ],
    "training/stacked_recorder.py": [
        ("together: writing in place is left out", "if node.target in _RESHAPING and", "if"),
        ("together: attention is said to draw", '"dropout_p" not in names or', "True or"),
    ],
    "training/stacked_state.py": [
        (
            "together: gradients are clipped by the largest norm of all",
            "limit / norm if norm > limit else 1.0 for norm in norms",
            "limit / max(norms) for norm in norms",
        ),
        (
            "together: a run that leaves keeps its row",
            "            learner.own()\n",
            "            pass\n",
        ),
        ("together: moments of a resumed run are forgotten", "self._attach_moments()\n\n", "pass\n\n"),
    ],
    "training/stacked_step.py": [
        (
            "together: a step that is not finite moves the weights",
            "                self.stack.detach(row)\n",
            "                pass\n",
        ),
        (
            "together: every run gets the first one's noise",
            "batch = member.session.batch(member.ask)",
            "batch = filled[0].session.batch(member.ask)",
        ),
        ("together: nobody looks whether numbers agree", "        self._check(ready)\n", "        pass\n"),
        (
            "together: nobody looks whether gradients agree",
            ", (gradient, result.gradients[row])]",
            "]",
        ),
    ],
}
