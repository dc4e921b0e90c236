"""Interval contraction: narrow boxes of positions to where a conjunct of comparisons can hold (HC4-revise).

All boxes are treated at once (arrays), and all comparisons of a conjunct share one domain per node, so `q - k in [0, 511]`
and `k <= 3` narrow each other.  Every step only over-approximates, so a box that dies holds no allowed pair.
Source: Benhamou et al., "Revising hull and box consistency", 1999.
"""

from __future__ import annotations

import numpy as np

from patternc.errors import InternalError
from patternc.expr.arithmetic import terms
from patternc.expr.index import Index
from patternc.expr.node import postorder
from patternc.passes.normal import INF, Conjunct

Domain = dict[Index, tuple]


def nodes_of(conjunct: Conjunct) -> list[Index]:
    """The integer nodes of a conjunct, children first, without tables and sets (they are facts, not values)."""
    return [n for n in postorder(*conjunct) if n.op != "data"]


def _nodes_above(conjunct: Conjunct, known: Domain) -> list[Index]:
    """`nodes_of` without the known nodes and what is below them only."""
    out: list[Index] = []
    seen = set(known)

    def visit(x: Index) -> None:
        if x not in seen and x.op != "data":
            seen.add(x)
            for child in x.children:
                visit(child)
            out.append(x)

    for core in conjunct:
        visit(core)
    return out


def forward(x: Index, domain: Domain):
    """Bounds of a node from the bounds of its children."""
    op, args = x.op, x.args
    if op == "const":
        return args[0], args[0]
    if op == "sum":
        low = high = args[0]
        for atom, w in zip(args[1::2], args[2::2]):
            a, b = domain[atom]
            low, high = (low + w * a, high + w * b) if w > 0 else (low + w * b, high + w * a)
        return low, high
    if op == "mul":
        (a, b), (c, d) = domain[args[0]], domain[args[1]]
        corners = (a * c, a * d, b * c, b * d)
        return _least(corners), _greatest(corners)
    if op == "div":
        (a, b), (c, d) = domain[args[0]], domain[args[1]]
        if args[1].op == "const":
            return a // c, b // c
        corners = (a // c, a // d, b // c, b // d)
        return _least(corners), _greatest(corners)
    if op == "mod":
        (a, b), (c, d) = domain[args[0]], domain[args[1]]
        one = (a // c == b // c) & (np.asarray(c) == d)
        return np.where(one, a % c, 0), np.where(one, b % c, np.asarray(d) - 1)
    if op in ("min", "max"):
        pick = np.minimum if op == "min" else np.maximum
        low, high = domain[args[0]]
        for arg in args[1:]:
            a, b = domain[arg]
            low, high = pick(low, a), pick(high, b)
        return low, high
    if op == "abs":
        a, b = domain[args[0]]
        return np.maximum(np.maximum(a, -np.asarray(b)), 0), np.maximum(-np.asarray(a), b)
    if op == "read":
        return args[0].args[0].range(*(domain[s] for s in args[1:]))
    if op == "member":
        a, b = domain[args[1]]
        found = args[0].args[0].count_within(a, b)
        return (found == np.asarray(b) - a + 1) * 1, (found > 0) * 1
    if op == "inside":
        surely = possibly = np.ones(1, bool)
        for s, size in zip(args[1:], args[0].args[0].values.shape):
            a, b = domain[s]
            surely, possibly = surely & (np.asarray(a) >= 0) & (np.asarray(b) < size), possibly & (np.asarray(b) >= 0) & (np.asarray(a) < size)
        return surely * 1, possibly * 1
    raise InternalError(f"no interval for operation `{op}`", typed=str(x))


def _least(values):
    low = values[0]
    for v in values[1:]:
        low = np.minimum(low, v)
    return low


def _greatest(values):
    high = values[0]
    for v in values[1:]:
        high = np.maximum(high, v)
    return high


def backward(x: Index, domain: Domain, meet) -> None:
    """Narrow the children of a node to what its own bounds leave possible; `meet(node, low, high)` does the narrowing."""
    op, args = x.op, x.args
    low, high = domain[x]
    if op == "sum":
        parts = terms(x)[1]
        spans = {t: (w * domain[t][0], w * domain[t][1]) if w > 0 else (w * domain[t][1], w * domain[t][0]) for t, w in parts.items()}
        for t, w in parts.items():
            others_low = others_high = args[0]
            for u, (a, b) in spans.items():
                if u is not t:
                    others_low, others_high = others_low + a, others_high + b
            a, b = low - others_high, high - others_low
            if w < 0:
                a, b, w = -b, -a, -w
            meet(t, a if w == 1 else -(-a // w), b if w == 1 else b // w)
    elif op == "div" and args[1].op == "const":
        m = args[1].args[0]
        meet(args[0], low * m, high * m + m - 1)
    elif op == "mod" and args[1].op == "const":
        m = args[1].args[0]
        a, b = domain[args[0]]
        ra, rb = a % m, b % m
        meet(args[0], np.where((ra >= low) & (ra <= high), a, a + (low - a) % m), np.where((rb >= low) & (rb <= high), b, b - (b - high) % m))
    elif op == "min":  # all operands are at least `low`; the one that alone can be as small as `high` is
        for arg in args:
            others = _least([domain[x][0] for x in args if x is not arg])
            meet(arg, low, np.where(others > high, high, domain[arg][1]))
    elif op == "max":
        for arg in args:
            others = _greatest([domain[x][1] for x in args if x is not arg])
            meet(arg, np.where(others < low, low, domain[arg][0]), high)
    elif op == "abs":
        meet(args[0], -np.asarray(high), high)
    elif op == "read" and len(args) == 2:
        data = args[0].args[0]
        if data.rising:
            meet(args[1], np.searchsorted(data.values, low, "left"), np.searchsorted(data.values, high, "right") - 1)
        elif data.falling:
            back = data.values[::-1]
            size = len(back)
            meet(args[1], size - np.searchsorted(back, high, "right"), size - 1 - np.searchsorted(back, low, "left"))
    elif op == "member":
        _backward_member(args[0].args[0].values, args[1], np.asarray(low), domain, meet)
    elif op == "inside":
        wanted = np.asarray(low) >= 1
        for s, size in zip(args[1:], args[0].args[0].values.shape):
            a, b = domain[s]
            meet(s, np.where(wanted, np.maximum(a, 0), a), np.where(wanted, np.minimum(b, size - 1), b))


def _backward_member(positions, x: Index, low, domain: Domain, meet) -> None:
    """A position that must be a member lies between the first and the last member of its interval."""
    if not len(positions):
        return
    a, b = domain[x]
    i = np.searchsorted(positions, a, "left")
    j = np.searchsorted(positions, b, "right") - 1
    first = np.where(i < len(positions), positions[np.minimum(i, len(positions) - 1)], np.asarray(b) + 1)
    last = np.where(j >= 0, positions[np.maximum(j, 0)], np.asarray(a) - 1)
    wanted = low >= 1
    meet(x, np.where(wanted, first, a), np.where(wanted, last, b))


def contract(
    conjunct: Conjunct, box: dict, sweeps: int = 2, given: Domain | None = None, known: Domain | None = None
) -> tuple[Domain, np.ndarray]:
    """Narrow `box` (variable name -> (low, high) arrays) under a conjunct.

    Args:
        given: bounds that nodes lie in besides.
        known: bounds of nodes that were contracted before; what they are made of is not looked at again.

    Returns:
        the domain of every node, and whether each box survives.
    """
    order = nodes_of(conjunct) if not known else _nodes_above(conjunct, known)
    domain: Domain = dict(known or {})

    def meet(x: Index, low, high) -> None:
        if x.op != "const":
            a, b = domain[x]
            domain[x] = np.maximum(a, low), np.minimum(b, high)

    for sweep in range(sweeps):
        for x in order:
            if x.op == "var":
                if sweep == 0:
                    domain[x] = box[x.args[0]]
            elif sweep == 0:
                domain[x] = forward(x, domain)
            else:
                meet(x, *forward(x, domain))
            if sweep == 0 and x in conjunct:
                low, high = conjunct[x]
                a, b = domain[x]
                domain[x] = (a if low == -INF else np.maximum(a, int(low))), (b if high == INF else np.minimum(b, int(high)))
            if sweep == 0 and given and x in given:
                meet(x, *given[x])
        alive = _alive(order, domain)
        if not alive.any():
            break
        for x in reversed(order):
            if x.op not in ("var", "const"):
                backward(x, domain, meet)
    return domain, alive & _alive(order, domain)


def _alive(order, domain) -> np.ndarray:
    alive = np.ones(1, bool)
    for x in order:
        low, high = domain[x]
        alive = alive & (low <= high)
    return np.asarray(alive)
