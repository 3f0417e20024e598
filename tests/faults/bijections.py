"""Faults to plant in `bijections`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "bijections/adapters.py": [
        ("adapters: Pyro's last call outlives a step", 'name != "_cache_size"]', "False]"),
        ("adapters: inference mode as it is", "if torch.is_inference_mode_enabled():", "if False:"),
        (
            "zuko: a frozen layer's graph is used up",
            "if wanted and not traced and not value.requires_grad and self._is_partly_frozen():",
            "if False:",
        ),
        (
            "zuko: a frozen flow keeps a graph",
            "torch.is_grad_enabled() and (traced or self._reaches(value, context))",
            "torch.is_grad_enabled()",
        ),
        ("zuko: a numeric inverse hides NaN", "torch.where(back.isnan(), back, out)", "out"),
        (
            "zuko: directions not turned around",
            "used = made.inv if inverted else made",
            "used = made if inverted else made.inv",
        ),
        (
            "zuko: networks in low precision under autocast",
            "            full_precision(value),\n            _solver",
            "            _solver",
        ),
        (
            "zuko: a graph is kept under no_grad",
            "        if wanted:\n            return out, log_det\n",
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
            "zuko: axes that the transform lacks take rows of the context",
            "*[1] * extra, *context",
            "*context",
        ),
        (
            "zuko: a lazy transform of single values is taken by its word",
            "for extra in range(most):",
            "for extra in range(0):",
        ),
        (
            "zuko: rows of the trial pass for an axis of the event",
            "for n in itertools.count(TRIAL_ROWS) if n not in event",
            "for n in itertools.count(TRIAL_ROWS)",
        ),
        (
            "zuko: a row of the context passes for an axis of u",
            "return shape[max(len(shape) - axes, 0) :]",
            "return shape",
        ),
        (
            "normflows: counting sets the normalization",
            "trial = copy.deepcopy(flow).eval()",
            "trial = flow.eval()",
        ),
        (
            "normflows: contexts in the wrong order over samples",
            "context.to(value.dtype).expand(samples, *context.shape).flatten(0, 1)",
            "context.to(value.dtype).repeat_interleave(samples, 0)",
        ),
    ],
    "bijections/trials.py": [
        (
            "passes: parts of a network count as networks",
            "counts[-1] += 1 if is_network else inside",
            "counts[-1] += is_network + inside",
        ),
        (
            "normflows: random numbers of a layer's own generator pass as exact",
            "not torch.allclose(one, other,",
            "not torch.allclose(one, one,",
        ),
        (
            "normflows: an estimate that is exact at the start passes as exact",
            "drawn = states != _generator_states()",
            "drawn = False",
        ),
        (
            "normflows: a layer that is random only with gradients is explained as another",
            "    with torch.enable_grad():  # some layers",
            "    if True:  # some layers",
        ),
        (
            "normflows: a layer that fails without gradients is taken",
            "        call()\n    return passes, first",
            "        pass\n    return passes, first",
        ),
        (
            "normflows: numpy's random numbers go unseen",
            "np.random.get_state()",
            "None",
        ),
        (
            "normflows: tried in the type of the first parameter",
            "max(parameters or buffers or [torch.zeros(())], key=Tensor.numel)",
            "(parameters or buffers or [torch.zeros(())])[0]",
        ),
    ],
    "bijections/autoregressive.py": [
        (
            "IAF: angles are refused where nothing but the context is read",
            "elif dim == 1:",
            "elif dim == 0:",
        ),
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
            'if self.inversion == "loop" or is_traced() or',
            'if self.inversion == "loop" or',
        ),
        (
            "inversion: hooks of the layers are passed by",
            "is_traced() or self.network.has_hooks():",
            "is_traced():",
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
    "bijections/base.py": [
        (
            "chain: log-dets are not added",
            "value, log_det = member._inverse(value, context if member.context_shape else None, *masks)\n"
            "            log_dets.append(log_det)",
            "value, log_det = member._inverse(value, context if member.context_shape else None, *masks)\n"
            "            log_dets = [log_det]",
        ),
        (
            "chain: inverse in forward order",
            "        value, log_dets = x, []\n        for member in reversed(self.members):",
            "        value, log_dets = x, []\n        for member in self.members:",
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
        (
            "initialize: any other direction is the inverse",
            'if direction not in ("forward", "inverse"):',
            "if False:",
        ),
        (
            "what bfloat16 lacks is told in words of torch",
            'isinstance(error, NotImplementedError) or "type" in str(error)',
            '"type" in str(error)',
        ),
        (
            "a missing direction is sought on the wrong side of what is turned around",
            "missing_in(bijection.bijection, 1 - direction)",
            "missing_in(bijection.bijection, direction)",
        ),
    ],
    "bijections/coupling.py": [
        ("couplings: a loaded mask is ignored", "cut.cut = cut._contiguous()", "pass"),
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
            "self.network(read.masked_fill(padding, 0.0), context",
            "self.network(read, context",
        ),
        (
            "coupling: the network reads angles with a cut",
            "(entries.cos(), entries.sin())",
            "(entries, entries.sin())",
        ),
        (
            "coupling: the network reads cos 0 where entries move",
            "self.partition.split(part)[0] for part in (entries.cos(), entries.sin())",
            "stay.cos(), stay.sin()",
        ),
        (
            "coupling: all samples have the lengths of the first",
            "~valid.flatten(0, 1).unsqueeze(1)",
            "~valid[:1].expand(samples, -1, -1).flatten(0, 1).unsqueeze(1)",
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
    "bijections/elementwise.py": [
        (
            "elementwise: all samples have the lengths of the first",
            "        valid = valid.unsqueeze(2)\n",
            "        valid = valid[:1].unsqueeze(2)\n",
        ),
    ],
    "bijections/height_autoregressive.py": [
        (
            "height: all samples have the lengths of the first",
            "return valid.flatten(0, 1).unflatten(",
            "return valid[:1].expand_as(valid).flatten(0, 1).unflatten(",
        ),
        ("height: angles are taken", "check_line_transform(transform, type(self).__name__)", "transform"),
        ("height: contexts stay as long as autocast made them", "context.to(like.dtype)", "context"),
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
    "bijections/inputs.py": [
        (
            "guidance: anything may stand for no context",
            "if not isinstance(unconditional, Tensor):",
            "if False:",
        ),
        (
            "guidance: contexts that do not broadcast",
            'broadcast_shape(*batches, "context and unconditional")',
            "torch.broadcast_shapes(*batches)",
        ),
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
        (
            "actnorm: all samples have the lengths of the first",
            "torch.where(valid.unsqueeze(2), x, u), log_det * valid.sum(-1)",
            "torch.where(valid[:1].unsqueeze(2), x, u), log_det * valid[:1].sum(-1)",
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
        ("split: angles are taken", "check_line_transform(transform, type(self).__name__)", "transform"),
        ("split: its own network is not counted", "calls = 0 if network is None else 1", "calls = 0"),
        (
            "rescale: log-det of a single entry",
            "size(self.event_shape) * math.log(abs(scale))",
            "math.log(abs(scale))",
        ),
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
    "bijections/transformer.py": [
        (
            "transformer: Jacobi iteration under torch.compile and torch.func",
            "torch.is_grad_enabled() or is_traced():",
            "torch.is_grad_enabled():",
        ),
        (
            "guidance: a size that no samples leave open",
            "(len(value), 2, value.shape[1])",
            "(len(value), 2, -1)",
        ),
    ],
}
