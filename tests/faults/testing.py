"""Faults to plant in `testing`."""

from tests.faults.base import Fault

FAULTS: dict[str, list[Fault]] = {
    "testing/check.py": [
        (
            "check: what has one direction is never initialized",
            "Property(state.initialization)",
            "Property(state.initialization, _both)",
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
        ("check: a point has one sample", "        if context is None:\n", "        if False:\n"),
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
        (
            "check: samples have the same lengths",
            "torch.stack([lengths, lengths.roll(1)])",
            "torch.stack([lengths, lengths])",
        ),
        ("check: padding never overflows", "torch.finfo(value.dtype), [", "torch.finfo(torch.float16), ["),
    ],
    "testing/precision.py": [
        ("check: rounded log-determinants pass", "if rounded.all():", "if rounded.all() and False:"),
        ("check: tensors of two devices may meet", "if len(devices) > 1:", "if len(devices) > 2:"),
    ],
    "testing/state.py": [
        (
            "check: `initialize` is tried outside of an interval",
            "if subject.support_in(direction) == EVERYWHERE:",
            "if True:",
        ),
        ("check: loaded into a copy", "other = subject.build(0.5, draw=draw)", "other = subject.build(0.5)"),
        (
            "check: initialized once is not checked after load",
            "_expect_equal_tensors(_tensors(other), set_once, when)",
            "_expect_equal_tensors(_tensors(other), _tensors(other), when)",
        ),
        (
            "check: noise never initializes",
            "bijection.initialize(value, context, direction=direction)",
            "bijection.initialize(value, context)",
        ),
        ("check: a layer may wait on", "expect(not waiting,", "expect(True,"),
        (
            "check: evaluation may change state",
            '_tensors(bijection), before, f"after use',
            'before, before, f"after use',
        ),
    ],
}
