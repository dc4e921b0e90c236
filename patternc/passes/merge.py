"""Fewer comparisons: intersect those on the same core, and drop inside an `or` what the `and` around it already says."""

from __future__ import annotations

from patternc.expr.bounds import INF
from patternc.expr.index import Index
from patternc.expr.pattern import EMPTY, FULL, Pattern, all_of, any_of

Known = dict[Index, tuple[float, float]]


def merge(p: Pattern, known: Known | None = None) -> Pattern:
    """Before: comparisons under `and` and `or`.  After: an equal pattern in which no bound is implied by those around it.

    `(d >= 0) & (abs(d) < 5)  ->  d in [0, 4]`, `(d >= 0) & ((abs(d) < 5) | (k < 4))  ->  (d >= 0) & ((d < 5) | (k < 4))`,
    `(d < 5) | (d >= 3)  ->  true`.
    """
    known = known or {}
    if p.op == "in":
        return _under(p, known)
    if p.op == "and":
        return _merge_and(p, known)
    if p.op == "or":
        return _merge_or([merge(part, known) for part in p.args])
    return p


def _interval(p: Pattern) -> tuple[Index, float, float]:
    core, low, high = p.args
    return core, (-INF if low is None else low), (INF if high is None else high)


def _literal(core: Index, low: float, high: float) -> Pattern:
    if low > high:
        return EMPTY
    if low == -INF and high == INF:
        return FULL
    return Pattern("in", core, None if low == -INF else int(low), None if high == INF else int(high))


def _under(p: Pattern, known: Known) -> Pattern:
    core, low, high = _interval(p)
    a, b = known.get(core, (-INF, INF))
    if max(a, low) > min(b, high):
        return EMPTY
    return _literal(core, -INF if low <= a else low, INF if high >= b else high)


def _merge_and(p: Pattern, known: Known) -> Pattern:
    own: Known = {}
    for part in p.args:
        if part.op == "in":
            core, low, high = _interval(part)
            a, b = own.get(core, (-INF, INF))
            own[core] = max(a, low), min(b, high)
    if any(low > high for low, high in own.values()):
        return EMPTY
    literals = [_under(_literal(core, *bounds), known) for core, bounds in own.items()]
    inner = dict(known)
    for core, (low, high) in own.items():
        a, b = inner.get(core, (-INF, INF))
        inner[core] = max(a, low), min(b, high)
    rest = [merge(part, inner) for part in p.args if part.op != "in"]
    out = all_of(*literals, *rest)
    # A part that shrank to a comparison may meet the others' cores once more.
    return merge(out, known) if any(r.op in ("in", "and") for r in rest) and out is not p else out


def _merge_or(parts: list[Pattern]) -> Pattern:
    """Comparisons on one core whose intervals touch become one."""
    spans: dict[Index, list[tuple[float, float]]] = {}
    for part in parts:
        if part.op == "in":
            core, low, high = _interval(part)
            spans.setdefault(core, []).append((low, high))
    out: list[Pattern] = []
    for part in parts:
        if part.op != "in":
            out.append(part)
            continue
        core = part.args[0]
        for low, high in _joined(spans.pop(core, [])):
            out.append(_literal(core, low, high))
    return any_of(*out)


def _joined(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    out: list[tuple[float, float]] = []
    for low, high in sorted(intervals):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], high)
        else:
            out.append((low, high))
    return out
