"""Faults to plant: per file, (what goes wrong, the text that stands there, the text that replaces it)."""

Fault = tuple[str, str, str]

FAULTS: dict[str, list[Fault]] = {
    "cli.py": [
        (
            "command line: a run is to be continued and replaced",
            "    check_choice(resume, overwrite)\n",
            "",
        ),
    ],
    "core/noise.py": [
        (
            "noise: the key is ignored past its first part",
            "    seed = mix(*key)\n",
            "    seed = mix(*key[:1])\n",
        ),
        ("noise: other draws are handed out", "if value is None or expected != draw:", "if value is None:"),
        (
            "noise: the generator is not given back",
            "    with torch.random.fork_rng(devices=devices):\n        yield",
            "    yield",
        ),
    ],
    "core/optional.py": [
        (
            "optional: the checks of torch stay off",
            "        Distribution.set_default_validate_args(validates)",
            "        pass",
        ),
        ("optional: a broken package is called missing", "if error.name != package:", "if False:"),
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
    "core/dense.py": [
        (
            "dense: no second derivative of a transposed weight",
            "ctx.save_for_backward(x, weight)",
            "ctx.save_for_backward(x.contiguous(), weight.contiguous())",
        ),
        ("dense: a bias with gaps is read as if it had none", "bias.contiguous()", "bias"),
        ("dense: a bias that is broadcast is taken", " and bias.shape == (features,)", ""),
        ("dense: a mode does not see large products", " or torch._C._len_torch_dispatch_stack() > 0", ""),
        ("dense: oneDNN switched off is used", "\n        and torch._C._get_mkldnn_enabled()", ""),
        ("dense: the bias is forgotten", "_PRODUCT(a, b, bias,", "_PRODUCT(a, b, None,"),
        (
            "dense: gradient of the weight is transposed",
            "_product(gradient.t(), x.contiguous().t())",
            "_product(x.contiguous().t(), gradient.t())",
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
    "networks/residual.py": [
        ("residual block: no skip connection", "return h + step", "return step"),
        ("residual block: the gate has no sigmoid", "self.gate(context).sigmoid()", "self.gate(context)"),
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
            "height-causal: zero times infinity",
            "h.masked_fill(valid == 0, 0.0)",
            "h * valid",
        ),
        (
            "height-causal: too few layers are accepted",
            "if seen < before[1] - 1:",
            "if seen < before[1] - 2:",
        ),
    ],
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
        ("padding is not set to zero", "h if valid is None else h * valid", "h"),
        (
            "context: a map over another space is taken",
            "if shape[1:] not in ((), space):",
            "if False:",
        ),
        ("last layer does not start at zero", "            nn.init.zeros_(self.linear.weight)\n", ""),
    ],
    "core/checks.py": [
        (
            "checks: a look breaks the capture of a CUDA graph",
            " or torch.cuda.is_current_stream_capturing()",
            "",
        ),
        ("checks: infinity counts as finite", "bool(value.isfinite().all())", "bool((~value.isnan()).all())"),
        (
            "checks: no look is noted",
            "noted.append(value.isfinite().all())",
            "noted.append(value.isnan().any() >= 0)",
        ),
        ("checks: vmap behind another transform is not seen", "value = get_unwrapped(value)", "break"),
    ],
    "transforms/affine.py": [
        (
            "affine: inverse log-derivative keeps its sign",
            "(-log_scale).exp(), -log_scale",
            "(-log_scale).exp(), log_scale",
        ),
        (
            "affine: log-derivative of the unbounded number",
            "log_scale.exp()), log_scale",
            "log_scale.exp()), scale",
        ),
        (
            "affine: shift and scale swapped",
            "torch.addcmul(shift, u, log_scale.exp())",
            "torch.addcmul(log_scale.exp(), u, shift)",
        ),
        ("additive: inverse adds", "return x - raw[0]", "return x + raw[0]"),
    ],
    "transforms/spline.py": [
        (
            "spline: slopes at the ends swapped",
            "part, whole, slope = _curve(t, 1 - t, left, right)",
            "part, whole, slope = _curve(t, 1 - t, right, left)",
        ),
        (
            "spline: log-derivative without the chord",
            "(slope / whole * (chord / whole)).log()",
            "(slope / whole / whole).log()",
        ),
        ("spline: inverse takes the other root", "falls = half.signbit()", "falls = ~half.signbit()"),
        (
            "spline: inverse keeps the sign of the log-derivative",
            "(whole / slope * (whole / chord)).log()",
            "(slope / whole * (chord / whole)).log()",
        ),
    ],
    "bijections/inputs.py": [
        (
            "align: context rows out of step with values",
            "if suffix != rows:",
            "if suffix != rows and len(rows) > 1:",
        ),
        ("half precision is not promoted", "    value = at_least_float32(value)\n", ""),
        (
            "lengths: finer frames in the wrong order",
            "valid.repeat_interleave(frames // valid.shape[-1], -1)",
            "valid.repeat(1, 1, frames // valid.shape[-1])",
        ),
        ("lengths: a mask is taken for lengths", " or lengths.dtype == torch.bool)", ")"),
        (
            "lengths: one frame too many is accepted",
            "(lengths <= frames), 0.0",
            "(lengths <= frames + 1), 0.0",
        ),
        ("a context keeps its type", "context = context.to(value.dtype)", "pass"),
        (
            "a context that is not finite passes",
            "if context is not None and not all_finite(context):",
            "if False:",
        ),
        ("what is no tensor meets torch", "if not isinstance(value, Tensor):", "if False:"),
        ("parameters of another type are not told", "    if not own:\n", "    if True:\n"),
    ],
    "bijections/base.py": [
        (
            "chain: log-dets are not added",
            "value, log_det = member._inverse(value, context if member.context_shape else None, *masks)\n"
            "            total = total + log_det",
            "value, log_det = member._inverse(value, context if member.context_shape else None, *masks)\n"
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
            "actnorm: initialized anew after a load",
            'self.register_buffer("initialized", torch.tensor(False))',
            'self.register_buffer("initialized", torch.tensor(False), persistent=False)',
        ),
        (
            "lengths: an inverse passes the mask of its own event on",
            "tuple(fit_frames(mask, self.bijection.event_shape[-1]) for mask in valid)",
            "valid",
        ),
        ("parameters of float32 whatever the default", ".to(torch.get_default_dtype()) for", ".float() for"),
        (
            "lengths: a chain is blamed for its member",
            "if not isinstance(layer, Chain | Inverse)), self)",
            "), self)",
        ),
        ("actnorm: flag is never raised", "            self.initialized.fill_(True)\n", ""),
        (
            "actnorm: initialized by every pass",
            "        self.measuring = False\n\n    def _start",
            "        self.measuring = True\n\n    def _start",
        ),
        (
            "actnorm: noise that passes forward is mapped back",
            'passing = self.forward if direction == "forward"',
            'passing = self.forward if direction == "inverse"',
        ),
    ],
    "bijections/coupling.py": [
        (
            "coupling: network in low precision enters the bound",
            "out = at_least_float32(out).view(",
            "out = out.view(",
        ),
        (
            "coupling: the output is read variable by variable",
            "self.transform.size, *self.partition.move_shape)\n        return out.movedim(1, 0)",
            "*self.partition.move_shape, self.transform.size)\n        return out.movedim(-1, 0)",
        ),
        (
            "coupling: a contiguous cut is merged the wrong way",
            "if self.cut > 0 else [move, stay]",
            "if self.cut > 0 else [stay, move]",
        ),
        (
            "coupling: what overflows at a staying entry poisons the gradient",
            "apply(move, raw.masked_fill(fixed, 0.0))",
            "apply(move, raw)",
        ),
        ("coupling: padding moves by rounding", "torch.where(fixed, move, moved)", "moved"),
        (
            "coupling: a masked network sees what moves",
            "value.masked_fill(~self.fixed, 0.0), value",
            "value, value",
        ),
        (
            "coupling: padding that is not finite reaches the other frames",
            "self.network(stay.masked_fill(padding, 0.0), context",
            "self.network(stay, context",
        ),
        ("coupling: padding is transformed", "fixed is None else fixed\n", "fixed is None else None\n"),
        (
            "coupling: a network that cannot mask takes lengths",
            "len(self.event_shape) == 2 and isinstance(self.network, FrameMasked)",
            "len(self.event_shape) == 2",
        ),
        (
            "coupling: a mask that varies in space is cut by its first pixel",
            "if (by_channel != by_channel[:, :1]).any():",
            "if False:",
        ),
        (
            "coupling: the checkerboard is stripes",
            "torch.arange(length).view(-1,",
            "0 * torch.arange(length).view(-1,",
        ),
    ],
    "bijections/autoregressive.py": [
        (
            "IAF: log-det counted once per dimension",
            "else log.sum(-1).view(u.shape[:2])",
            "else (log.sum(-1) * flat.shape[-1]).view(u.shape[:2])",
        ),
        (
            "IAF: one pass of the loop is missing",
            "for i in range(x.shape[1]):",
            "for i in range(x.shape[1] - 1):",
        ),
        (
            "IAF: network in bfloat16 under autocast",
            "        flat, features = self._rows(u, context)\n        with full_precision(u):",
            "        flat, features = self._rows(u, context)\n        if True:",
        ),
        ("IAF: the loop takes parameters out of order", "raw if order is None else raw[..., order]", "raw"),
        (
            "IAF: u is left in the order it was solved in",
            "u = u if order is None else u[:, order.argsort()]",
            "u = u if order is None else u[:, order]",
        ),
        (
            "inversion: fast paths under torch.func",
            'if self.inversion == "loop" or is_traced():',
            'if self.inversion == "loop":',
        ),
        (
            "inversion: every transform is taken for an affine one",
            "self.transform.scale_bound if type(self.transform) is Affine else None",
            "3.0",
        ),
        (
            "inversion: what derives from an affine map is taken for one",
            "type(self.transform) is Affine",
            "isinstance(self.transform, Affine)",
        ),
    ],
    "bijections/linear.py": [
        ("permutation: inverse does not undo it", '"back", torch.argsort(order)', '"back", order.clone()'),
        (
            "permutation: padding is permuted too",
            "return out if valid is None else torch.where(valid.unsqueeze(2), out, value)",
            "return out",
        ),
        (
            "actnorm: log-det forgets the entries per channel",
            "return x, log_det * self.repeats",
            "return x, log_det",
        ),
        (
            "actnorm: log-det counts padding",
            "return torch.where(valid.unsqueeze(2), u, x), log_det * valid.sum(-1)",
            "return torch.where(valid.unsqueeze(2), u, x), log_det * self.repeats",
        ),
        (
            "actnorm: variance instead of standard deviation",
            "scale = variance.sqrt()",
            "scale = variance",
        ),
        ("actnorm: padding overflows", "        value = hide_padding(value, valid)\n", ""),
        (
            "actnorm: statistics that overflow are taken",
            "if not (log_scale.isfinite() & shift.isfinite()).all():",
            "if False:",
        ),
        (
            "actnorm: gradients meet padding",
            "torch.addcmul(self.shift, hide_padding(u, valid)",
            "torch.addcmul(self.shift, u",
        ),
        ("permutation: any numbers are an order", "or order.dtype not in _INTEGERS:", "or False:"),
        (
            "actnorm: padding counts in the statistics",
            "torch.ones_like(value) if valid is None else",
            "torch.ones_like(value) if True else",
        ),
        (
            "actnorm: the same numbers whichever way the batch passes",
            "(-scale.log(), -mean / scale) if forward else",
            "(scale.log(), mean) if forward else",
        ),
    ],
    "bijections/multiscale.py": [
        (
            "squeeze: the two axes of a block are swapped",
            "permute(0, 1, 2, 4, 6, 3, 5)",
            "permute(0, 1, 2, 6, 4, 3, 5)",
        ),
        (
            "split: sign of the inverse log-det",
            "self.transform.inverse(rest, self._raw(kept, context))",
            "self.transform.inverse(rest, self._raw(kept, context))\n            log_derivative = -log_derivative",
        ),
        ("split: network in low precision enters the bound", "at_least_float32(raw).view(", "raw.view("),
        (
            "split: the network hears no context",
            "self.network(rows, context) if self.reads_context",
            "self.network(rows, context * 0) if self.reads_context",
        ),
        ("split: its own network is not counted", "calls = 0 if network is None else 1", "calls = 0"),
        (
            "rescale: log-det of a single entry",
            "size(self.event_shape) * math.log(abs(scale))",
            "math.log(abs(scale))",
        ),
    ],
    "bijections/adapters.py": [
        ("zuko: a numeric inverse hides NaN", "torch.where(back.isnan(), back, out)", "out"),
        (
            "zuko: directions not turned around",
            "used = made.inv if inverted else made",
            "used = made if inverted else made.inv",
        ),
        (
            "zuko: networks in low precision under autocast",
            "with full_precision(value), _solver_that_ends(self.transform):",
            "with _solver_that_ends(self.transform):",
        ),
        (
            "zuko: a graph is kept under no_grad",
            "        if torch.is_grad_enabled():\n            return out, log_det\n",
            "        if True:\n            return out, log_det\n",
        ),
        (
            "zuko: a solver that diverged ends a training run",
            "            if not all_finite(value.new_tensor(torch.nan)):\n                raise\n",
            "            raise\n",
        ),
        (
            "zuko: rows of a solver that diverged have no gradient",
            "torch.nan * (total + sum(parameter.sum() for parameter in self.parameters()))",
            "torch.nan * total.detach()",
        ),
        (
            "passes: parts of a network count as networks",
            "counts[-1] += 1 if is_network else inside",
            "counts[-1] += is_network + inside",
        ),
        (
            "normflows: counting sets the normalization",
            "trial = copy.deepcopy(flow).eval()",
            "trial = flow.eval()",
        ),
        (
            "normflows: contexts in the wrong order over samples",
            "context.expand(samples, *context.shape).flatten(0, 1)",
            "context.repeat_interleave(samples, 0)",
        ),
    ],
    "bijections/height_autoregressive.py": [
        (
            "height: rows are runs of frames",
            "value.unflatten(-1, (-1, self.height)).transpose(-1, -2)",
            "value.unflatten(-1, (self.height, -1))",
        ),
        ("height: network in low precision under autocast", "with full_precision(x):", "if True:"),
        ("height: the network reads padding", "read = _hidden(rows, columns)", "read = rows"),
        (
            "height: a column with some padding counts",
            ".all(-1)[:, None, None]",
            ".any(-1)[:, None, None]",
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
        (
            "radial: another norm one way",
            "            distance = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)\n",
            "            distance = offset.abs().sum(-1, keepdim=True)\n",
        ),
        (
            "radial: elementwise absolute value instead of the norm",
            "torch.linalg.vector_norm(offset, dim=-1, keepdim=True) * rate",
            "offset.abs() * rate",
        ),
        (
            "radial: log-det counts every direction as across",
            "alpha=self.event_shape[0] - 1",
            "alpha=self.event_shape[0]",
        ),
        (
            "radial: no constraint at all",
            "list(rate.unbind(-2)), _bounded(strength)",
            "list(rate.unbind(-2)), strength",
        ),
        (
            "radial: root that cancels",
            "torch.where(outer, larger, positive / larger)",
            "larger + half.clamp_max(0)",
        ),
        ("radial: inverse in forward order", "in reversed(layers):", "in layers:"),
    ],
    "bijections/sylvester.py": [
        (
            "sylvester: R~ not transposed",
            "torch.baddbmm(b, along, r_inner)",
            "torch.baddbmm(b, along, r_inner.mT)",
        ),
        ("sylvester: R not transposed", "torch.bmm(bends[-1], r.mT)", "torch.bmm(bends[-1], r)"),
        (
            "sylvester: neither factor transposed",
            "(factors.triu(1) + diagonal.diag_embed()).unbind(1)",
            "(factors.tril(-1) + diagonal.diag_embed()).unbind(1)",
        ),
        (
            "sylvester: reflections know nothing of each other",
            "(unit.mT @ unit).triu(1)",
            "(unit.mT @ unit).triu(1) * 0",
        ),
        ("sylvester: diagonals not bounded", "_LARGEST * raw_diagonal.tanh()", "_LARGEST * raw_diagonal"),
        ("sylvester: diagonals reach -1", "_LARGEST = math.sqrt(1 - 1e-3)", "_LARGEST = math.sqrt(1)"),
        (
            "sylvester: derivative of tanh",
            "torch.addcmul(product, bend * bend, product, value=-1)",
            "torch.addcmul(product, bend, product, value=-1)",
        ),
        ("sylvester: no layer is reversed", "return y.flip(-1) if layer % 2 else y", "return y"),
        ("sylvester: a new layer cannot learn", "torch.ones(num_layers, m)", "torch.zeros(num_layers, m)"),
    ],
    "bijections/matrix.py": [
        (
            "matrix: no rows leave a size open",
            "columns.reshape(rows, channels, samples * positions)",
            "columns.reshape(rows, channels, -1)",
        ),
        ("lu: log-det forgets the frames", "return out, log_det * self.positions", "return out, log_det"),
        ("matrix: log-det counts padding", "log_det * valid.sum(-1)", "log_det * self.positions"),
        ("matrix: gradients meet padding", "inverse=False), hide_padding(u, valid))", "inverse=False), u)"),
        ("matrix: padding is mixed", "torch.where(valid.unsqueeze(2), out, value)", "out"),
        (
            "lu: rows permuted the wrong way in the inverse",
            "index_select(-1, self.order)",
            "index_select(-2, self.order)",
        ),
        ("lu: factors in the other order", "(lower @ upper)", "(upper @ lower)"),
        ("lu: sign forgotten", ".exp() * self.sign", ".exp()"),
        (
            "lu: rotation starts with the soft bound applied twice",
            "raw = log_scale / (1 - log_scale.abs() / _BOUND)",
            "raw = log_scale",
        ),
        ("triangular: places transposed", "rows * channels + columns", "columns * channels + rows"),
        (
            "triangular: shift not taken off",
            "centered = centered - _over",
            "centered = centered + _over",
        ),
        (
            "orthogonal: reflections know nothing of each other",
            "system = inner.triu(1) +",
            "system = inner.tril(-1) +",
        ),
        ("orthogonal: starts anywhere", "mirrors[:, 1::2] = mirrors[:, ::2]", "pass"),
        ("matrix: samples take each other's contexts", ".permute(1, 2, 0, 3)", ".permute(0, 2, 1, 3)"),
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
    "distributions/base.py": [
        ("sampling ignores the temperature", "if temperature != 1:", "if temperature > 1:"),
        ("categorical draws: an entry without mass is drawn", "columns, right=True)", "columns)"),
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
    "distributions/vamp.py": [
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
    "distributions/codes.py": [
        ("codes: draws are not tempered", "/ self.temperature, ()))", ", ()))"),
        (
            "codes: two temperatures are one",
            "temperature=self.temperature * temperature",
            "temperature=temperature",
        ),
    ],
    "evaluation/codes.py": [
        (
            "bound of codes: the mass of the codes is left out",
            "self.reconstruction - self.code_nll",
            "self.reconstruction",
        ),
    ],
    "objectives/vector_quantization.py": [
        (
            "VQ: beta weighs the other term",
            "codebook + self.commitment * commitment",
            "self.commitment * codebook + commitment",
        ),
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
    "training/stacked_program.py": [
        (
            "together: validation takes what a part refuses",
            "sums = torch.where(torch.stack(noted).all(), sums, torch.nan)",
            "pass",
        ),
    ],
    "training/stacked_member.py": [
        (
            "together: a run with a skipped step stays in step",
            "good = progress.rate_scale == 1.0 and taken == progress.stage_steps",
            "good = True",
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
    "training/stacked_recorder.py": [
        ("together: writing in place is left out", "if node.target in _RESHAPING and", "if"),
        ("together: attention is said to draw", '"dropout_p" not in names or', "True or"),
    ],
    "training/learner.py": [
        (
            "learner: a skipped step is counted in the codebook",
            "            module.begin()\n",
            "            pass\n",
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
    "models/vqvae.py": [
        (
            "VQ-VAE-2: the bottom does not see the top",
            "torch.cat(above, 1)) if",
            "0 * torch.cat(above, 1)) if",
        ),
        ("VQ-VAE: numbers of codes are not compared", "found is not None and found != expected", "False"),
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
    "models/flow_decoder.py": [
        ("flow likelihood: the order is taken backwards", "argsort().argsort()", "argsort()"),
    ],
    "evaluation/base.py": [
        (
            "evaluation: masses get the offset of densities",
            "return 0.0 if model.likelihood.distribution_type.discrete else",
            "return",
        ),
        ("evaluation: what is no likelihood has an NLL", "if not kind.normalized:", "if False:"),
    ],
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
    "evaluation/information.py": [
        (
            "information: the upper bound counts the own encoding",
            "rest = log_q.masked_fill(is_own, -torch.inf).logsumexp(1)",
            "rest = log_q.logsumexp(1)",
        ),
        ("units: means of draws look active", "activity=spread - error.mean(0)", "activity=spread"),
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
    "evaluation/holes.py": [
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
    "evaluation/neighbors.py": [
        ("neighbors: norms count twice", "norms - 2 * part @ references.T", "norms - part @ references.T"),
        (
            "neighbors: the share of samples farther than the test images",
            "(nearest < baseline.quantile(level))",
            "(nearest > baseline.quantile(level))",
        ),
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
            "nsf: no linear map at the end",
            "chain += [layer, Permutation.random(dim, seed=i), LULinear(dim)]",
            "chain += [layer]",
        ),
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
    "objectives/divergence.py": [
        ("MMD: a point is compared with itself", " - within.diagonal(dim1=-2, dim2=-1)", ""),
        (
            "MMD: against N(0, I), whatever the prior",
            "drawn = p.sample(",
            "drawn = type(p)(0 * p.mean, 0 * p.log_scale).sample(",
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
    "objectives/autoencoder.py": [
        ("RAE: decay of all parts", "for p in model.likelihood.parameters()", "for p in model.parameters()"),
        ("sparse: activity of each point", "count = math.log(len(z))", "count = 0.0"),
    ],
    "objectives/density.py": [
        (
            "reverse KL: the energy is never annealed",
            "loss = log_density + joint_warm_up(epoch, self.warmup_epochs) * energy",
            "loss = log_density + energy",
        ),
    ],
    "objectives/requirements.py": [
        (
            "a flow over a base without a constant passes",
            "return density_of(part.base) if isinstance(part, Flow) else",
            "return",
        ),
        (
            "the question whether a prior can be weighed moves it",
            "with torch.no_grad():  # with gradients",
            "with torch.enable_grad():  # with gradients",
        ),
    ],
    "evaluation/exact.py": [
        (
            "bits per dimension: nats",
            "self.nll / (self.num_dimensions * math.log(2))",
            "self.nll / self.num_dimensions",
        ),
    ],
    "testing/density.py": [
        (
            "check: the Jacobian is not compared",
            "torch.linalg.slogdet(matrix).logabsdet,\n",
            "found,\n",
        ),
        ("check: a fold is not seen", "bool((sign == sign[:1]).all())", "bool((sign == sign).all())"),
        (
            "check: opposite log-determinants up to the sign",
            "expect_close(opposite, -log_det, tolerance",
            "expect_close(opposite.abs(), log_det.abs(), tolerance",
        ),
        (
            "check: lost dependencies are allowed",
            "lost = apart.sum(0) - (block - 1)",
            "lost = 0 * apart.sum(0)",
        ),
        ("check: any integral is one", "abs(total - 1) < 0.01", "abs(total - 1) < 10"),
    ],
    "testing/gradients.py": [
        (
            "check: a gradient of zeros will do",
            "silent = found & silent if draw else found",
            "silent = set()",
        ),
        (
            "check: any slope will do",
            "<= 1e-5 * (1 + abs(expected))",
            "<= 1e5 * (1 + abs(expected))",
        ),
    ],
    "testing/interface.py": [
        ("check: calls are not counted", "module.register_forward_hook(lambda *_: calls.append(1))", "pass"),
        (
            "check: more passes than needed may be declared",
            "expect(calls == declared[direction],",
            "expect(calls <= (declared[direction] or 0),",
        ),
        (
            "check: any message will do",
            "lost = [part for part in parts if part not in str(error)]",
            "lost = []",
        ),
    ],
    "testing/lengths.py": [
        (
            "check: padding holds the same",
            'trials = [("value", torch.where(valid, value, junk), context) for junk in kinds]',
            'trials = [("value", value, context) for junk in kinds]',
        ),
        ("check: padding never overflows", "torch.finfo(value.dtype), [", "torch.finfo(torch.float16), ["),
    ],
    "testing/precision.py": [
        ("check: rounded log-determinants pass", "if rounded.all():", "if rounded.all() and False:"),
        ("check: tensors of two devices may meet", "if len(devices) > 1:", "if len(devices) > 2:"),
    ],
    "testing/state.py": [
        ("check: loaded into a copy", "other = subject.build(0.5, draw=draw)", "other = subject.build(0.5)"),
        (
            "check: initialized once is not checked after load",
            'set_once, "after load and another `initialize`")',
            '_tensors(other), "after load and another `initialize`")',
        ),
        (
            "check: evaluation may change state",
            '_tensors(bijection), before, f"after use',
            'before, before, f"after use',
        ),
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
    "distributions/resampled.py": [
        (
            "LARS: one attempt too many",
            "logsumexp(0), (max_attempts - 1) * log_rejection",
            "logsumexp(0), max_attempts * log_rejection",
        ),
        ("LARS: a rejected proposal is drawn", "accepted.int().argmax(0)", "accepted.int().argmin(0)"),
    ],
    "distributions/normalizer.py": [
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
    "distributions/energy.py": [
        (
            "energy: weights upside down",
            "            return -self.energy(z)",
            "            return self.energy(z)",
        ),
    ],
    "distributions/sampling.py": [
        (
            "Langevin: the move's own density is left out",
            " + 0.5 * (xi.flatten(1).square() - back.flatten(1).square()).sum(1)",
            "",
        ),
    ],
    "distributions/ode.py": [
        ("dopri5: one error for the whole batch", ".mean(1).sqrt()", ".mean().sqrt().expand(len(y))"),
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
    "objectives/contrastive.py": [
        (
            "noise contrast: both sides have one label",
            'softplus(-terms["energy_base"])',
            'softplus(terms["energy_base"])',
        ),
    ],
    "objectives/adversarial.py": [
        ("game: the critic learns in the sampler's turn", "else _Frozen(prior.critic)", "else prior.critic"),
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
    "studies/measuring/groups.py": [
        (
            "annealing: other binarizations than those of the NLL beside it",
            "draw_once(subject.source, count, seed=settings.seed),",
            "draw_once(subject.source, count, seed=settings.seed + 1),",
        ),
        (
            "samples: another classifier for every seed",
            "seed=_CLASSIFIER_SEED,",
            "seed=subject.settings.seed,",
        ),
        (
            "information: a slow posterior is asked for n squared densities",
            "settings.information is None and slow > _FEW_PASSES",
            "settings.information is None and slow < 0",
        ),
    ],
    "studies/measuring/measure.py": [
        (
            "evaluation: figures are replaced in silence",
            'if before and old != after["protocol"]:',
            'if before and old.keys() != after["protocol"].keys():',
        ),
        (
            "evaluation: what is there is measured again",
            'if asked is None or (before.get("asked") == asked and "reason" not in before):',
            "if asked is None:",
        ),
        (
            "evaluation: a refusal takes the place of figures",
            'if "reason" not in found or "figures" not in before:',
            "if True:",
        ),
        (
            "evaluation: a fault in a group loses the run",
            "    except Exception as error:",
            "    except LatentFlowsError as error:",
        ),
    ],
    "studies/results/protocols.py": [
        (
            "comparison: figures of two protocols in one column",
            'field != "seed" and one != two',
            'field == "split" and one != two',
        ),
    ],
    "studies/statistics/resampling.py": [
        (
            "bootstrap: BCa without its acceleration",
            "float(np.sum(centered**3)) / (6",
            "0.0 / (6",
        ),
        (
            "bootstrap: all resamples are equally likely",
            "factorials[num] / factorials[counts].prod(axis=1)",
            "1.0 + 0 * factorials[counts].prod(axis=1)",
        ),
        ("sign flips: ties by rounding are lost", " - 1e-12 * float(np.abs(values).sum())", ""),
    ],
    "studies/statistics/significance.py": [
        (
            "Holm: a larger p-value is corrected less than a smaller one",
            "highest = max(highest, min(",
            "highest = max(0.0, min(",
        ),
        (
            "Holm: a comparison that failed is forgotten",
            "(len(p_values) - rank) * p",
            "(len(known) - rank) * p",
        ),
        ("power: of a one-sided test", "stdtrit(num - 1, 1 - level / 2)", "stdtrit(num - 1, 1 - level)"),
        ("t-test: normal instead of Student", "2 * stdtr(num - 1, -abs(mean)", "2 * stdtr(1e6, -abs(mean)"),
    ],
    "studies/statistics/differences.py": [
        (
            "power: at the level of a single comparison",
            "comparison.level / comparison.num_comparisons, diff",
            "comparison.level, diff",
        ),
        (
            "comparison: a difference counts without the correction",
            "return self.corrected_p_value is not None and self.corrected_p_value <= self.level",
            "return self.p_value is not None and self.p_value <= self.level",
        ),
    ],
    "studies/results/images.py": [
        (
            "error over images: that of one arm",
            "total, num = one - two if total is None else total + one - two, num + 1",
            "total, num = one if total is None else total + one, num + 1",
        ),
        (
            "error over images: of another evaluation",
            " or not math.isclose(values.mean(), figure.mean, rel_tol=1e-9)",
            "",
        ),
    ],
    "studies/results/verdicts.py": [
        (
            "verdict: half of the interval passes for all of it",
            "-smallest < found.low and found.high < smallest",
            "found.high < smallest",
        ),
    ],
    "studies/results/rows.py": [
        (
            "results: FLOPs of another stage",
            "planned.stage_flops.get(epoch.stage)",
            "next(iter(planned.stage_flops.values()), None)",
        ),
    ],
    "reporting/study_figures.py": [
        (
            "curves: a mean over fewer seeds at the end",
            "if len(found) == len(runs):",
            "if found:",
        ),
        ("curves: stages run into each other", "stages.setdefault(key[0], [])", 'stages.setdefault("", [])'),
    ],
    "reporting/latex.py": [
        (
            "LaTeX: text is not escaped",
            'return "".join(_ESCAPES.get(character, character) for character in text)',
            "return text",
        ),
    ],
    "reporting/export.py": [
        ("export: a file of somebody else is replaced", "    if foreign:\n", "    if False:\n"),
        (
            "export: files of an earlier export count as those of somebody else",
            "[*dict.fromkeys([*contents, *listed])]",
            "list(contents)",
        ),
        ("export: a study without results", 'any(run.status == "finished" for run in', "any(run for run in"),
    ],
    "reporting/base.py": [
        (
            "report: to go on with a study is to replace it",
            'word not in ("--resume", "--overwrite")',
            'word not in ("--resume",)',
        ),
    ],
    "reporting/compared_groups.py": [
        (
            "comparison: an error over data passes for a deviation over seeds",
            "found.standard_deviation if over_seeds else",
            "found.standard_deviation if len(quantities) > 1 else",
        ),
        (
            "comparison: runs that did not finish count",
            'run is None or run.status != "finished"',
            "run is None",
        ),
    ],
    "evaluation/intervals.py": [
        ("jackknife: error of independent values", "(num_groups - 1) / math.sqrt(num_groups) *", "1 /"),
    ],
    "evaluation/protocol.py": [
        (
            "protocol: figures of means and draws in one column",
            'if name != "seed" and',
            'if name not in ("seed", "shown") and',
        ),
    ],
    "evaluation/disentanglement.py": [
        (
            "MIG: gap to the worst latent",
            "best[0] - best[1]) / entropy",
            "best[0] - information.min(0).values) / entropy",
        ),
        ("DCI: latents count alike", "(rows / total * torch", "(torch.ones_like(rows) / len(rows) * torch"),
    ],
    "generation/latents.py": [
        (
            "traversal: another latent than its row says",
            "z[rows, :, torch.tensor(chosen)]",
            "z[rows, :, rows]",
        ),
        ("attribute: with the sign of its absence", "means[1] - means[0]", "means[0] - means[1]"),
    ],
    "data/readers/shapes2d.py": [
        (
            "shapes2d: factors stay behind in the shuffle",
            "factors[rows, 0], rows, factors[rows])",
            "factors[rows, 0], rows, factors[: len(rows)])",
        ),
        ("shapes2d: hearts upside down", "q = 1.2 * u, -1.2 * v + 0.1", "q = 1.2 * u, 1.2 * v + 0.1"),
    ],
    "data/energies.py": [
        ("energy: no wall", " + ((x.abs() - _BOX).clamp_min(0) / _WALL).square().sum(1) / 2", ""),
        ("energy: draws are cut where two bumps meet", "points[2 * noise", "points[noise"),
        (
            "energy: the normalizer of the box's unit",
            "2 * math.log(2 * _EDGE / _CELLS)",
            "math.log(2 * _EDGE)",
        ),
    ],
    "data/unlabeled.py": [
        ("unlabeled: the others are left out", "like=labels) >= self.share", "like=labels) < self.share"),
    ],
    "evaluation/target.py": [
        ("target: log Z is forgotten", ".double() + log_normalizer", ".double()"),
        ("target: weights turned over", "log_mean_weight(-self.reverse", "log_mean_weight(self.reverse"),
    ],
    "generation/steering.py": [
        ("guidance: away from nothing", "part(torch.zeros_like(context))", "part(context)"),
        (
            "guidance: a velocity towards what has no label",
            "given + weight * (given - without)",
            "given - weight * (given - without)",
        ),
        ("guidance: no temperature", "p.base if temperature == 1 else", "p.base if True else"),
        ("steps: the prior keeps them", "            prior.solver = solver\n", "            pass\n"),
    ],
    "data/ambiguous_shapes.py": [
        (
            "ambiguous shapes: every mask as likely as any",
            "steps = self.probabilities[indices].cumsum(-1)",
            "steps = self.probabilities[indices].sign().cumsum(-1) / 4",
        ),
    ],
    "distributions/amortized_mixture.py": [
        (
            "amortized mixture: anchors beyond the bound",
            "soft_bound(self.anchors + means.unflatten(-1, shape), self.mean_bound)",
            "self.anchors + soft_bound(means.unflatten(-1, shape), self.mean_bound)",
        ),
    ],
    "models/segmentation.py": [
        (
            "segmentation: means of the posterior without a bound",
            "bounded[:, : self.dim] = soft_bound(raw[:, : self.dim], self.bound)",
            "bounded[:, : self.dim] = raw[:, : self.dim]",
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
    "studies/settings/overrides.py": [
        ("overrides: those of one arm reach the others", "copy.deepcopy(dict(raw))", "dict(raw)"),
    ],
    "reporting/table.py": [
        (
            "table: the bound is as loose as the mean is noisy",
            "run.protocol.num_images * quantity.monte_carlo_error**2 / 2",
            "quantity.monte_carlo_error**2 / 2",
        ),
        (
            "table: FLOPs that were planned pass for those that were spent",
            'if budget is None or budget.hold != "training_flops":',
            "if True:",
        ),
        (
            "table: seconds that were planned pass for those that were taken",
            "        amount = amount if took is None else took.mean\n",
            "",
        ),
    ],
    "studies/planning/budget.py": [
        (
            "budget: decoder and prior leave the decoder out",
            'parts = ("prior",) if hold == "prior" else ("prior", "likelihood")',
            'parts = ("prior",)',
        ),
        (
            "budget: the first size that is tried is taken",
            "    best = min(built, key=lambda size: abs(built[size] - target))",
            "    best = max(built)",
        ),
        (
            "budget: FLOPs of the forward pass alone",
            "        torch.autograd.grad(loss, learned, allow_unused=True)",
            "        pass",
        ),
        (
            "budget: work that a batch shares is counted for a single data point",
            "    count = max(1, _batch(stage, len(source)) // stage.accumulate_grad_batches)",
            "    count = 1",
        ),
        (
            "budget: steps that take turns are all like the first",
            "    if not objective.takes_turns:\n        return [(objective, 1.0)]",
            "    if True:\n        return [(objective.at(0), 1.0)]",
        ),
        (
            "budget: attention on a CPU costs nothing",
            "        formula = _FORMULAS.get(func._overloadpacket)",
            "        formula = flop_registry.get(func._overloadpacket)",
        ),
    ],
    "studies/planning/plan.py": [
        (
            "plan: arms may be measured by different protocols",
            "    _check_protocols(whole)\n",
            "",
        ),
        (
            "plan: runs have the sizes that were not solved",
            "study.configuration(arm, seed, _overrides(by_name[arm.name].solved))",
            "study.configuration(arm, seed)",
        ),
        (
            "plan: seconds are measured anew when a study goes on",
            "            self.amounts = {name: arm.amount for name, arm in settled.items()}",
            "            pass",
        ),
        (
            "plan: faults of an arm stand beside the arms",
            '.replace("\\n", "\\n  ") for text in texts)',
            " for text in texts)",
        ),
        (
            "plan: an amount is not checked",
            "    if abs(amount - target) > budget.within * target:",
            "    if abs(amount - target) > budget.within * target * 1e9:",
        ),
    ],
    "studies/running/together.py": [
        (
            "together: memory that lacks beside others is final",
            " or result.reason == OUT_OF_MEMORY):",
            "):",
        ),
        (
            "together: an error of the group is everybody's",
            "each.error, each.failed_as_group = error, isinstance(error, Exception)",
            "each.error = error",
        ),
        (
            "together: who goes alone hears of no stop",
            '        stopped = stopped or result.status == "interrupted"\n        end(',
            "        end(",
        ),
    ],
    "studies/planning/study_file.py": [
        (
            "study: an override is one of an arm that solves for it",
            "    if study.solves_for(arm) in keys:\n        return False\n",
            "",
        ),
        (
            "study: a wrong key hides what the others say",
            "        faults += _validated(rest)[1]\n",
            "        pass\n",
        ),
        ("study: nobody looks what an override reaches", "    if lost:\n", "    if False:\n"),
    ],
    "studies/planning/study.py": [
        (
            "study: the arm that others meet solves for a size",
            "if arm.name not in held and arm.solve not in (None, NOT_HELD)",
            "if False",
        ),
        ("study: no arm has a counterpart", "(place | of).items()", "(of | place).items()"),
        (
            "study: what is changed for all wins over an arm",
            "[*arm.overrides, *(solved or []), *own]",
            "[*(solved or []), *own]",
        ),
    ],
    "studies/building/likelihoods.py": [
        (
            "DLGM: all levels are decoded",
            "above = c.latent_dim - c.posterior.dims(c.latent_dim)[-1]",
            "above = 0",
        ),
    ],
    "studies/building/levels.py": [
        (
            "levels: the label passes for a level",
            "read = (classes or 0) + sum(dims[:index])",
            "read = sum(dims[:index])",
        ),
        (
            "levels: each reads the top",
            "select, network = Select(read - above, read)",
            "select, network = Select(0, above)",
        ),
    ],
    "generation/plane.py": [
        (
            "plane: the second latent points down",
            "(_BINS - 1 - places[inside, 1])",
            "places[inside, 1]",
        ),
    ],
    "studies/settings/combinations.py": [
        (
            "combinations: Gaussians of classes pass for one Gaussian",
            'by_class = _labels_prior(c) and prior != "standard"',
            "by_class = False",
        ),
        (
            "combinations: the prior of two stages is looked at in the first",
            '"standard" if c.training.plan == "two_stage" else tag_of(type(c.prior))',
            "tag_of(type(c.prior))",
        ),
    ],
    "studies/settings/model_combinations.py": [
        (
            "model: settings that it does not look at are ignored",
            "if getattr(c, key) != _default(key)",
            "if False",
        ),
    ],
    "studies/settings/posteriors.py": [
        ("settings: Gaussians of classes learn from their draws", "return not labels", "return True"),
    ],
    "studies/settings/models.py": [
        ("codes: one pixel is halved again", "    if asked <= most:\n", "    if asked <= most + 1:\n"),
        (
            "codes: a map of the right size is halved again",
            "while max(_halved(picture, steps)) > _CODES:",
            "while max(_halved(picture, steps)) >= _CODES:",
        ),
    ],
    "studies/building/models.py": [
        (
            "flow on data: pixels without the sigmoid",
            'if c.data.preparation == "dequantized":',
            'if c.data.preparation == "unit":',
        ),
    ],
    "studies/building/codes.py": [
        (
            "codes: the prior hears no label",
            '"context_shape": given[0] if given else None,',
            '"context_shape": None,',
        ),
    ],
    "studies/measuring/bounds.py": [
        (
            "evaluation: importance samples that there are none of are taken",
            "return isinstance(model, VAE) and bounds_missing(model) is None",
            "return True",
        ),
        ("codes: levels change their names", '_LEVELS = ("top", "bottom")', '_LEVELS = ("bottom", "top")'),
        (
            "flow on data: an exact likelihood passes for one of importance samples",
            "weighted = settings.num_importance_samples if isinstance(model, VAE) else None",
            "weighted = settings.num_importance_samples",
        ),
    ],
    "generation/pictures.py": [
        (
            "class means: data leave their class twice",
            "own + z - z[(kinds",
            "own + z + z[(kinds",
        ),
        (
            "beside: what was given comes last",
            "torch.cat([first, rest], 1)",
            "torch.cat([rest, first], 1)",
        ),
    ],
    "generation/drawing.py": [
        (
            "classes: rows and columns change places",
            "torch.tensor(labels).repeat_interleave(num_each)",
            "torch.tensor(labels).repeat(num_each)",
        ),
    ],
    "training/loop.py": [
        (
            "seconds: of the first run torch's imports",
            "    torch.optim.SGD([torch.zeros(1)], lr=0.1)",
            "    pass",
        ),
    ],
    "training/session.py": [
        (
            "signals: a fit by EM does not look at them",
            "with interruptible():",
            "if True:",
        ),
    ],
    "reporting/run_page.py": [
        (
            "page: a collapsed run is green",
            'if record.status == "finished" and (wrong := _faults(run)):',
            'if record.status != "finished" and (wrong := _faults(run)):',
        ),
    ],
    "studies/execution/record.py": [
        ("record: a torn line stays", "    file.truncate(whole)\n    return whole", "    return end"),
        ("record: a torn line is read", "enumerate(texts[:-1], 1)", "enumerate(texts, 1)"),
        (
            "record: a full disk leaves half a line",
            "            file.truncate(whole)\n            raise",
            "            raise",
        ),
    ],
    "studies/execution/locks.py": [
        (
            "lock: one of the dead passes for held",
            "return _lives(_read(path)) if free is None else not free",
            "return True",
        ),
        (
            "lock: a file that was removed is held",
            "return os.path.samestat(os.fstat(file), path.stat())",
            "return True",
        ),
        (
            "lock: a dead holder counts",
            "ProcessLookupError:\n        return False",
            "ProcessLookupError:\n        return True",
        ),
        (
            "lock: two take over from one dead holder",
            "if _lives(_read(path)):  # by now it is another one's",
            "if False:",
        ),
        (
            "lock: without locks whoever opens the file holds it",
            "if granted is None and not is_new:",
            "if granted is None and not is_new and not _lives(_read(path)):",
        ),
    ],
    "studies/execution/engines/local.py": [
        ("pool: a job dies with its process", "_RETRIES = 1", "_RETRIES = 0"),
        ("pool: a stop starts what waits", "                    waiting.clear()\n", ""),
        (
            "pool: a process that is being born hears of no stop",
            "_pass_on([worker], at_once=told > 1)",
            "pass",
        ),
        (
            "pool: a signal that was only noted is waited for",
            "        self.process.join(_INSIST)\n        while",
            "        self.process.join()\n        while",
        ),
    ],
    "studies/execution/study_folder.py": [
        (
            "study: a crash leaves the plan of another study",
            '        (out / "plan.json").unlink(missing_ok=True)\n',
            "",
        ),
    ],
    "studies/execution/engines/ray.py": [
        ("Ray: a job dies with its process", "        self.waiting.append(job)\n", ""),
        (
            "Ray: a machine without the folder is taken",
            "        if not (read and",
            "        if False and not (read and",
        ),
    ],
    "studies/execution/compare.py": [
        (
            "study: the estimate knows no work",
            "self.work = plan.work()",
            "self.work = dict.fromkeys(plan.work(), 1.0)",
        ),
        (
            "study: a run has two lines",
            "        if (run.arm, run.seed) in self.told:\n            return\n",
            "",
        ),
        ("study: runs of a dead job are forgotten", "apart += [(run,) for run in self._open(job)]", "pass"),
        ("study: a worker is idle", "len(groups) < workers", "len(groups) < 1"),
    ],
    "studies/execution/job.py": [
        ("job: an interrupt ends one run alone", '== "interrupted" for outcome', '== "" for outcome'),
    ],
    "studies/execution/progress.py": [
        (
            "estimate: every run counts by its work",
            "per_run.get(arm, pace * self.work[arm])",
            "pace * self.work[arm]",
        ),
        (
            "estimate: an arm of which nothing is known counts as the mean",
            "pace * self.work[arm])",
            "sum(per_run.values()) / len(per_run))",
        ),
        (
            "estimate: what an earlier process did counts as speed",
            "/ (self.fraction - before)",
            "/ self.fraction",
        ),
    ],
}
