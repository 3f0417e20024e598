"""Faults to plant in `networks`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "networks/base.py": [
        (
            "context: repeated in the wrong order over samples",
            "features.view(samples, rows, *features.shape[1:])\n    return (grouped + context_features)",
            "features.view(rows, samples, *features.shape[1:])\n    return (grouped + context_features[:, None])",
        ),
        (
            "context: a gate is repeated in the wrong order over samples",
            "features.view(samples, rows, *features.shape[1:]) * context_features)",
            "features.view(rows, samples, *features.shape[1:]) * context_features[:, None])",
        ),
        ("padding: zero times infinity", "h.masked_fill(valid == 0, 0)", "h * valid"),
        ("padding is not set to zero", "h if valid is None else h.masked_fill(valid == 0, 0)", "h"),
        (
            "context: a map over another space is taken",
            "if shape[1:] not in ((), space):",
            "if False:",
        ),
        ("last layer does not start at zero", "            nn.init.zeros_(self.linear.weight)\n", ""),
    ],
    "networks/coupling_convolution.py": [
        (
            "coupling convolution: the last layer reads padding",
            "keep_frames(self.last(keep_frames(h, valid)), valid)",
            "keep_frames(self.last(h), valid)",
        ),
        (
            "residual convolution: a block reads padding",
            "layer(keep_frames(self.activation(step), valid))",
            "layer(self.activation(step))",
        ),
        ("coupling convolution: an even kernel is taken", "if kernel % 2 == 0:", "if False:"),
    ],
    "networks/height_causal.py": [
        (
            "height-causal: a row sees itself",
            "functional.pad(x, (0, 0, 1, 0))[:, :, :-1]",
            "x",
        ),
        (
            "height-causal: the cache keeps a row too few",
            "rows[:, :, rows.shape[2] - self.kernel + 1 :]",
            "rows[:, :, rows.shape[2] - self.kernel + 2 :]",
        ),
        (
            "height-causal: too few layers are accepted",
            "if seen < before[1] - 1:",
            "if seen < before[1] - 2:",
        ),
    ],
    "networks/inversion.py": [
        (
            "inversion: an input that is a function of another counts twice",
            "[value.view_as(value) for value in inputs]",
            "list(inputs)",
        ),
        (
            "inversion: no second derivatives of a map that preserves volume",
            "for value, g in pairs if value.requires_grad)",
            "for value, g in pairs)",
        ),
        (
            "inversion: finished variables contribute in part",
            "columns = [done, *[source]",
            "columns = [slice(done.start + 1, done.stop), *[source]",
        ),
        (
            "inversion: units of the context are forgotten",
            "            _add_product(state[heard.stop :], weight[heard.stop :, heard], below[heard])\n",
            "",
        ),
        (
            "inversion: the log-derivative of an affine map has the wrong sign",
            "        torch.mul(shifted, log.exp(), out=u)\n        self.logs.append(log)",
            "        torch.mul(shifted, log.exp(), out=u)\n        self.logs.append(-log)",
        ),
        (
            "jacobi: rows that are not at rest are returned",
            "left = (~rest).nonzero()[:, 0]",
            "left = (~rest).nonzero()[:0, 0]",
        ),
        (
            "jacobi: one row at rest counts for all",
            "if bool(rest.all()):",
            "if bool(rest.any()):\n            rest = rest | True",
        ),
        ("jacobi: a coarse tolerance", "8 * torch.finfo(x.dtype).eps", "torch.finfo(x.dtype).eps ** 0.5"),
        (
            "jacobi: transients spoil what is finished",
            "value.nan_to_num(0, largest, -largest).clamp_(-largest, largest)",
            "value",
        ),
        (
            "gradient of the inverse: the log-determinant's share is dropped",
            "if not log.requires_grad:",
            "if True:",
        ),
        (
            "gradient of the inverse: not solved, one step only",
            "        self.run(last)\n        self._carry(last, first)\n",
            "        self.run(last)\n",
        ),
        (
            "gradient of the inverse: units of the context are forgotten",
            "heard = slice(0, self.problem.counts[0])\n        for delta",
            "heard = slice(0, 0)\n        for delta",
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
        (
            "MADE: an order is read as places",
            "return torch.argsort(order.cpu()) + 1",
            "return order.cpu() + 1",
        ),
        (
            "MADE: contexts out of step with samples",
            "expand(-1, samples, -1).flatten(1)",
            "expand(-1, samples, -1).transpose(1, 2).flatten(1)",
        ),
        (
            "MADE: an overflow under the mask comes back",
            "if torch.is_grad_enabled():  # a gradient",
            "if False:  # a gradient",
        ),
    ],
    "networks/residual.py": [
        ("residual block: no skip connection", "return h + step", "return step"),
        ("residual block: the gate has no sigmoid", "self.gate(context).sigmoid()", "self.gate(context)"),
    ],
    "networks/wavenet.py": [
        ("wavenet: a dilated layer reads padding", "convolution(keep_frames(h, valid))", "convolution(h)"),
        (
            "wavenet: every layer has the same dilation",
            "kernel, dilation=growth**i, padding=kernel // 2 * growth**i",
            "kernel, padding=kernel // 2",
        ),
        (
            "wavenet: layers hear the features of the first",
            "features.narrow(1, 2 * self.width * i,",
            "features.narrow(1, 0,",
        ),
        (
            "wavenet: residual and skip change places",
            "h = h + mixed[:, self.width :]",
            "h = h + mixed[:, : self.width]",
        ),
    ],
}
