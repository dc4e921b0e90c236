"""The value of a lowered pattern on arrays of positions (numpy)."""

from __future__ import annotations

import numpy as np

from patternc.errors import InternalError
from patternc.expr.node import Node, postorder


def evaluate(p: Node, positions: dict) -> np.ndarray:
    """Values of an index expression, or truth of a pattern without `not`, at broadcastable position arrays by variable name."""
    return evaluate_all([p], positions)[0]


def evaluate_all(roots: list[Node], positions: dict) -> list[np.ndarray]:
    """The values of several expressions; what they share is computed once."""
    value: dict[Node, np.ndarray] = {}
    for x in postorder(*roots):
        value[x] = _EVALUATE[x.op](x, *(value[c] for c in x.children)) if x.op != "var" else positions[x.args[0]]
    return [value[x] for x in roots]


def _sum(x, *atoms):
    total = x.args[0]
    for atom, w in zip(atoms, x.args[2::2]):
        total = total + (atom if w == 1 else -atom if w == -1 else w * atom)
    return total


def _reduce(operation):
    def apply(x, first, *rest):
        for other in rest:
            first = operation(first, other)
        return first

    return apply


def _in(x, core):
    _, low, high = x.args
    if low is None:
        return core <= high
    return (core >= low) if high is None else (core >= low) & (core <= high)


def _inside(x, data, *subscripts):
    ok = np.True_
    for s, size in zip(subscripts, data.values.shape):
        ok = ok & (np.asarray(s) >= 0) & (np.asarray(s) < size)
    return ok * 1


def _unknown(x, *_):
    raise InternalError(f"cannot evaluate operation `{x.op}`", typed=str(x))


class _Table(dict):
    def __missing__(self, op):
        return _unknown


_EVALUATE = _Table(
    {
        "const": lambda x: x.args[0],
        "data": lambda x: x.args[0],
        "sum": _sum,
        "mul": lambda x, a, b: a * b,
        "div": lambda x, a, b: a // b,
        "mod": lambda x, a, b: a % b,
        "min": _reduce(np.minimum),
        "max": _reduce(np.maximum),
        "abs": lambda x, a: np.abs(a),
        "where": lambda x, condition, a, b: np.where(condition, a, b),
        "read": lambda x, data, *s: data.at(*s).astype(np.int64, copy=False),
        "member": lambda x, data, position: data.contains(position) * 1,
        "inside": _inside,
        "true": lambda x: np.True_,
        "false": lambda x: np.False_,
        "in": _in,
        "and": _reduce(np.logical_and),
        "or": _reduce(np.logical_or),
    }
)
