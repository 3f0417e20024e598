"""Faults to plant in `core`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "core/batches.py": [
        (
            "data: what is drawn changes the hash",
            "with noise.stream_on_cpu(0, noise.Purpose.DATA):",
            "if True:",
        ),
        ("data: the last points are not looked at", "len(source) - 1, count", "count - 1, count"),
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
            "return _product(gradient.t(), x.t())",
            "return _product(x.t(), gradient.t())",
        ),
        (
            "dense: gradient of the weight of few features is transposed",
            "turned.t().contiguous()",
            "turned",
        ),
        (
            "dense: gradient of the weight of few features lies across",
            "turned.t().contiguous()",
            "turned.t()",
        ),
    ],
    "core/files.py": [
        (
            "files: a temporary name is told",
            "os.strerror(error.errno), str(path))",
            "os.strerror(error.errno), str(temporary))",
        ),
        ("files: every format is read", "    if found != expected:\n", "    if False:\n"),
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
    "core/precision.py": [
        (
            "soft_bound: slope is not one at zero",
            "torch.rsub(value.abs(), 1, alpha=-1 / bound)",
            "torch.rsub(value.abs(), 1, alpha=-1) * bound",
        ),
    ],
    "core/running.py": [
        (
            "running: a loop without steps is never taken in",
            "        if not self._in_step:\n            self.commit()",
            "        return",
        ),
        ("running: a piece of a step is taken in", "if not self._in_step:", "if True:"),
        (
            "running: a step never ends",
            "        self._in_step = False\n",
            '        self._in_step = vars(self).get("_in_step", False)\n',
        ),
        (
            "running: what was taken in stays",
            "        self._take_in()\n        self.leave()",
            "        self._take_in()",
        ),
    ],
    "core/shapes.py": [
        ("sum_event: one axis too few", "flatten(-event_ndim)", "flatten(1 - event_ndim)"),
    ],
}
