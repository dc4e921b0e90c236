"""Bounds of an index expression when bounds of its variables are known: intervals, one pass, no search."""

from __future__ import annotations

import math

from patternc.expr.node import Node, fact

INF = math.inf
Interval = tuple[float, float]

# What holds in every call: positions and numbers of heads and rows are not negative, sequences are not empty.
ALWAYS: dict[str, Interval] = {"q": (0, INF), "k": (0, INF), "h": (0, INF), "b": (0, INF), "n_q": (1, INF), "n_k": (1, INF)}


def bounds(x: Node, env: dict[str, Interval]) -> Interval:
    """An interval that holds `x`; infinite ends where nothing is known.

    Args:
        x: an index expression.
        env: intervals of variables and of scalar args by name, and of the values of a tensor arg as `name[]`.
    """
    op, args = x.op, x.args
    if op in ("const", "length"):
        return args[0], args[0]
    if op in ("var", "arg"):
        return env.get(args[0], (-INF, INF))
    if op == "sum":
        low = high = args[0]
        for atom, w in zip(args[1::2], args[2::2]):
            a, b = bounds(atom, env)
            low, high = (low + w * a, high + w * b) if w > 0 else (low + w * b, high + w * a)
        return low, high
    if op == "mul":
        return _corners(bounds(args[0], env), bounds(args[1], env), lambda u, v: 0 if 0 in (u, v) else u * v)
    if op in ("div", "mod"):
        a, b = bounds(args[0], env)
        c, d = bounds(args[1], env)
        c, d = max(c, 1), max(d, 1)  # a divisor is proved to be at least 1
        if op == "div":
            return _corners((a, b), (c, d), _quotient)
        return (a, b) if 0 <= a and b < c else (0, min(b, d - 1) if a >= 0 else d - 1)
    if op in ("min", "max"):
        pick = min if op == "min" else max
        parts = [bounds(c, env) for c in args]
        return pick(a for a, _ in parts), pick(b for _, b in parts)
    if op == "abs":
        a, b = bounds(args[0], env)
        return max(a, -b, 0), max(-a, b)
    if op == "where":
        (a, b), (c, d) = bounds(args[1], env), bounds(args[2], env)
        return min(a, c), max(b, d)
    if op in ("member", "inside"):
        return 0, 1
    if op == "read" and args[0].op in ("table", "data"):
        return args[0].args[0].extremes
    if op == "read":
        return env.get(f"{args[0].args[0]}[]", (-INF, INF))
    return -INF, INF


def _corners(one: Interval, two: Interval, f) -> Interval:
    values = [f(u, v) for u in one for v in two]
    return min(values), max(values)


def _quotient(a: float, b: float) -> float:
    """Floor division that knows infinities."""
    if abs(a) == INF:
        return a
    if b == INF:
        return 0 if a >= 0 else -1
    return a // b


@fact
def interval(x: Node) -> Interval:
    """Bounds that hold in every call, whatever the args are."""
    return bounds(x, ALWAYS)
