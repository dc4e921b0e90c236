"""When contraction alone is exact, so that no tile has to be looked at.

For a fixed row tile the allowed columns of these conjuncts are one run, and contraction finds its ends:
bounds on `q`, `k` and `q - k` (integer and unimodular); one comparison of a sorted array's entries at `q` and `k`; and
equality of those entries together with bounds on `q - k` that contain 0, where the diagonal joins neighbouring rows.
"""

from __future__ import annotations

from patternc.expr.index import Index
from patternc.expr.pattern import K, Pattern, Q
from patternc.passes import Conjunct, TooManyConjuncts, disjuncts

PLAIN = (Q, K, Q - K)


def contraction_is_exact(p: Pattern) -> bool:
    """Whether the live tiles of a specialised pattern, as contraction finds them, all hold an allowed pair."""
    try:
        return all(_one_run(c) for c in disjuncts(p))
    except TooManyConjuncts:
        return False


def _one_run(conjunct: Conjunct) -> bool:
    plain = [core for core in conjunct if any(core is x for x in PLAIN)]
    rest = [core for core in conjunct if not any(core is x for x in plain)]
    if not rest:
        return True
    if len(rest) > 1 or not _compares_sorted(rest[0]):
        return False
    if not plain:
        return True
    low, high = conjunct[plain[0]]
    return len(plain) == 1 and plain[0] is PLAIN[2] and low <= 0 <= high and conjunct[rest[0]] == (0, 0)


def _compares_sorted(core: Index) -> bool:
    """`D[q] - D[k]` for one sorted array D."""
    if core.op != "sum" or core.args[0] or core.args[2::2] not in ((1, -1), (-1, 1)):
        return False
    a, b = core.children
    if not (a.op == b.op == "read" and a.args[0] is b.args[0] and len(a.args) == len(b.args) == 2):
        return False
    data = a.args[0].args[0]
    return {id(a.args[1]), id(b.args[1])} == {id(Q), id(K)} and (data.rising or data.falling)
