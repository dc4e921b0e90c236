"""Ways to read a node as text: comparisons from an interval, and an exact part with its domain as an operator on smaller ones."""

from __future__ import annotations

from patternc.errors import PatterncError
from patternc.expr import arithmetic as ar, index as ix
from patternc.expr.index import Index
from patternc.expr.pattern import FULL, Pattern, all_of, any_of

COMPARISON, UNION, XOR, BOTH, SUM, PRODUCT, UNARY, ATOM = range(1, 9)  # how tightly operators bind, loosest first


def liftings(exact: Pattern, domain: Pattern):
    """Readings of (exact, domain) as `left & (rest, inside)` or `left | (rest, inside)`, with `inside` smaller than `domain`."""
    for op, join, symbol, level in (("and", all_of, "&", BOTH), ("or", any_of, "|", UNION)):
        parts = domain.args if domain.op == op else (domain,)
        inner = exact.args if exact.op == op else (exact,)
        common = {id(p) for p in parts} & {id(p) for p in inner}
        left = join(*(p for p in parts if id(p) in common))
        if op == "and":
            taken = {id(p) for p in parts}
            yield join, symbol, level, domain, all_of(*(p for p in inner if id(p) not in taken)), FULL
            yield join, symbol, level, domain, exact, FULL
        if common and len(common) < len(parts):
            yield join, symbol, level, left, join(*(p for p in inner if id(p) not in common)), join(*(p for p in parts if id(p) not in common))


def readings(core: Index, low: int | None, high: int | None):
    """Ways to write `low <= core <= high` as one comparison, best first, as (relation, left, right)."""
    _, parts = ar.terms(core)
    more = ar.linear(0, {a: c for a, c in parts.items() if c > 0})
    less = ar.linear(0, {a: -c for a, c in parts.items() if c < 0})
    both_sides = less.op != "const" and more.op != "const"
    candidates = []
    if low == high or None in (low, high):
        for value in (low, high):
            if value is not None:
                candidates += [("==", more, less)] * (both_sides and value == 0) + [("==", core, value)]
        if low == 1:
            candidates.append(("!=", core, 0))
    if high is None and both_sides:
        candidates += [("<=", less, more), ("<", less, more)]
    if low is None and both_sides:
        candidates += [("<=", more, less), ("<", more, less)]
    if high is None:
        candidates += [(">=", core, low), (">", core, low - 1)]
    if low is None:
        candidates += [("<", core, high + 1), ("<=", core, high)]
    for relation, left, right in candidates:
        if abs(right) <= ix.MAX_INT if isinstance(right, int) else True:
            yield relation, left, ix.as_index(right)
    if low is not None and high is not None:
        total, spread = low + high, high - low
        for factor in (1, 2):
            try:
                if total * factor % 2 == 0:
                    left = ar.absolute(ar.add(ar.scale(core, factor), ix.const(-total * factor // 2)))
                    yield "<=", left, ix.const(spread * factor // 2)
            except PatterncError:
                continue
