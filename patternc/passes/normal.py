"""Negation normal form, bounds, and the disjunctive form that the analyses solve."""

from __future__ import annotations

from collections.abc import Callable

from patternc.errors import InternalError
from patternc.expr.arithmetic import linear, terms
from patternc.expr.bounds import INF, interval
from patternc.expr.index import Index, const
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import EMPTY, FULL, Pattern, all_of, any_of, between, negate
from patternc.expr.transform import substitute
from patternc.passes.rules import Rule, apply_rules

Conjunct = dict[Index, tuple[float, float]]  # core -> (low, high), all of which must hold
Bounds = Callable[[Index], tuple[float, float]]


def _not(p: Node) -> Node | None:
    if p.op != "not":
        return None
    (x,) = p.args
    if x.op == "in":
        core, low, high = x.args
        return any_of(*([between(core, None, low - 1)] if low is not None else []), *([between(core, high + 1, None)] if high is not None else []))
    if x.op in ("and", "or"):
        return (any_of if x.op == "and" else all_of)(*(negate(part) for part in x.args))
    return None


NEGATION = (Rule("~(A & B) -> ~A | ~B, ~(A | B) -> ~A & ~B, ~(x in [a, b]) -> x < a | x > b", _not),)


def negation_normal(p: Pattern) -> Pattern:
    """Before: total comparisons under and, or, not.  After: no `not`."""
    while True:  # bottom-up sweeps push a negation one level at a time
        new = apply_rules(p, NEGATION)
        if new is p:
            return p
        p = new


def decide(p: Pattern, bounds: Bounds = interval) -> Pattern:
    """Drop the bounds of comparisons that hold anyway, by intervals: `k >= 0` is true, `k in [0, 3]` is `k <= 3`."""
    return apply_rules(p, (Rule(DECIDED, lambda node: decided(node, bounds)),))


DECIDED = "x in I -> true, false, or a one-sided bound, by the interval of x"
UNWRAPPED = "f(x // m, x % m) in I -> or over j of (x // m == j) & f(j, x - j*m) in I"


def decided(node: Node, bounds: Bounds) -> Node | None:
    """The rule of `decide` at one node."""
    if node.op != "in":
        return None
    core, low, high = node.args
    a, b = bounds(core)
    if (low is not None and b < low) or (high is not None and a > high):
        return EMPTY
    low, high = (None if low is not None and a >= low else low), (None if high is not None and b <= high else high)
    return FULL if low is None and high is None else Pattern("in", core, low, high)


def unwrap(p: Pattern, bounds: Bounds, most: int = 2) -> Pattern:
    """Replace `x // m` and `x % m` by cases where the quotient takes at most `most` values under `bounds`.

    Case j has the guard `j*m <= x <= j*m + m - 1`, and reads `x // m` as j and `x % m` as `x - j*m`.
    """
    return decide(apply_rules(p, (Rule(UNWRAPPED, lambda node: unwrapped(node, bounds, most)),)), bounds)


def unwrapped(node: Node, bounds: Bounds, most: int = 2, worth: Callable[[Node], bool] = lambda atom: True) -> Node | None:
    """The rule of `unwrap` at one node, for the first `//` or `%` that is `worth` it."""
    if node.op != "in":
        return None
    for atom in postorder(node.args[0]):
        if atom.op not in ("div", "mod") or atom.args[1].op != "const" or not worth(atom):
            continue
        x, m = atom.args[0], atom.args[1].args[0]
        a, b = bounds(x)
        if abs(a) == INF or abs(b) == INF or not 1 <= b // m - a // m + 1 <= most:
            continue
        cases = []
        for j in range(int(a // m), int(b // m) + 1):
            constant, parts = terms(x)
            remainder = linear(constant - j * m, parts)
            mapping = {node_of(x, m, "div"): const(j), node_of(x, m, "mod"): remainder}
            cases.append(all_of(between(x, j * m, j * m + m - 1), substitute(node, mapping)))
        return any_of(*cases)
    return None


def node_of(x: Index, m: int, op: str) -> Index:
    return Index(op, x, const(m))


class TooManyConjuncts(Exception):
    """The disjunctive form grew past its limit; the caller falls back to combining runs."""


def literals(p: Pattern) -> list[Pattern]:
    return [n for n in postorder(p) if n.op == "in"]


def disjuncts(p: Pattern, limit: int = 64) -> list[Conjunct]:
    """The disjunctive form of a pattern without `not`, pruned while it grows: contradictions and absorbed parts are dropped.

    Raises:
        TooManyConjuncts: some part needs more than `limit`.
    """
    known: dict[Pattern, list[Conjunct] | None] = {}
    for part in postorder(p):
        if isinstance(part, Pattern) and part.op != "in":
            known[part] = _joined(part, known, limit)
    found = _of(p, known)
    if found is None:
        raise TooManyConjuncts
    return found


def _of(p: Pattern, known: dict) -> list[Conjunct] | None:
    """The conjuncts of a part; None where there are too many."""
    if p.op != "in":
        return known[p]
    core, low, high = p.args
    return [{core: (-INF if low is None else low, INF if high is None else high)}]


def _joined(p: Pattern, known: dict, limit: int) -> list[Conjunct] | None:
    if p.op in ("true", "false"):
        return [{}] if p.op == "true" else []
    if p.op not in ("and", "or"):
        raise InternalError(f"`{p.op}` reached the disjunctive form", typed=str(p))
    parts = [_of(x, known) for x in p.args]
    if any(part is None for part in parts):
        return None
    if p.op == "or":
        out = absorb([c for part in parts for c in part])
        return out if len(out) <= limit else None
    out: list[Conjunct] = [{}]
    for part in sorted(parts, key=len):
        out = absorb([m for c in out for d in part if (m := _meet(c, d)) is not None])
        if len(out) > limit:
            return None
    return out


def _meet(c: Conjunct, d: Conjunct) -> Conjunct | None:
    merged = dict(c)
    for core, (low, high) in d.items():
        a, b = merged.get(core, (-INF, INF))
        a, b = max(a, low), min(b, high)
        if a > b:
            return None
        merged[core] = (a, b)
    return merged


def absorb(conjuncts: list[Conjunct]) -> list[Conjunct]:
    """Drop every conjunct that lies inside another one; the order of the rest is kept."""

    def lies_in(c: Conjunct, d: Conjunct) -> bool:
        return all(core in c and c[core][0] >= low and c[core][1] <= high for core, (low, high) in d.items())

    keep: list[int] = []
    for i in sorted(range(len(conjuncts)), key=lambda i: len(conjuncts[i])):
        if not any(lies_in(conjuncts[i], conjuncts[j]) for j in keep):
            keep.append(i)
    return [conjuncts[i] for i in sorted(keep)]
