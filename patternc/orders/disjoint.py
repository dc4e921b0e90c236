"""Conjuncts in digits, and how a union of them becomes disjoint parts.

`part_i = c_i & ~c_1 & .. & ~c_(i-1)`, the most contiguous first: what is left of a scattered part without a contiguous one is
a conjunct again, and the other way round a contiguous part would be full of holes.
"""

from __future__ import annotations

from patternc.expr.bounds import INF
from patternc.expr.index import Index
from patternc.expr.pattern import Pattern, all_of, between
from patternc.orders.digits import Order
from patternc.orders.simplify import pruned, simplifier
from patternc.passes import Conjunct, TooManyConjuncts, absorb, disjuncts

MOST_PARTS = 4  # a kernel has two loops for each


def tie(i: int) -> Pattern:
    return between(Index("var", f"q{i}") - Index("var", f"k{i}"), 0, 0)


def ties(conjunct: Conjunct, order: Order) -> tuple[int, ...]:
    """The digits whose value a column shares with its row."""
    return tuple(i for i in range(len(order.strides)) if conjunct.get(tie(i).args[0]) == (0, 0))


def pattern_of(conjunct: Conjunct) -> Pattern:
    return all_of(*(literal(core, low, high) for core, (low, high) in conjunct.items()))


def literal(core: Index, low: float, high: float) -> Pattern:
    return between(core, None if low == -INF else int(low), None if high == INF else int(high))


def conjuncts_in(p: Pattern, order: Order, column: str, limit: int) -> list[Conjunct]:
    """The conjuncts of a pattern in digits, each simplified by itself: what ties two digits may stand beside a union.

    Raises:
        TooManyConjuncts: there are more than `limit`.
    """
    out: list[Conjunct] = []
    for conjunct in disjuncts(p, limit):
        own = pattern_of(conjunct)
        for c in disjuncts(simplifier(order).simplify(own, column), limit):
            if (kept := pruned(c, order)) is not None:
                out.append(kept)
    out = absorb(out)
    if len(out) > limit:
        raise TooManyConjuncts
    return out


def disjoint(conjuncts: list[Conjunct], order: Order, column: str) -> list[list[Conjunct]]:
    """Groups of conjuncts; those of different groups have no pair in common.  Runs along one digit share a group.

    Raises:
        TooManyConjuncts: there would be more than `MOST_PARTS` groups.
    """
    groups: dict[tuple, list[Conjunct]] = {}
    for number, c in enumerate(conjuncts):
        tied = ties(c, order)
        groups.setdefault((tied, -1 if len(tied) == len(order.strides) - 1 else number), []).append(c)
    last = len(order.strides) - 1
    # A part whose last digit is tied is scattered; few comparisons leave few pieces of what is not there.
    ordered = sorted(groups.items(), key=lambda item: (last in item[0][0], min(map(len, item[1]))))
    done: list[Conjunct] = []
    out: list[list[Conjunct]] = []
    for (tied, _), group in ordered:
        pieces = group
        for earlier in done:
            pieces = [piece for c in pieces for piece in without(c, earlier, order, column)]
        done += group
        if len(group) > 1 and all(ties(piece, order) == tied for piece in pieces):
            out += [pieces] if pieces else []
        elif len(group) > 1:  # pieces of different conjuncts may overlap, and no longer share their boxes
            raise TooManyConjuncts
        else:
            out += [[piece] for piece in pieces]
        if len(out) > MOST_PARTS:
            raise TooManyConjuncts
    return out


def without(c: Conjunct, d: Conjunct, order: Order, column: str) -> list[Conjunct]:
    """`c & ~d` as disjoint conjuncts: one comparison of d fails, and those before it hold."""
    out: list[Conjunct] = []
    for core, (low, high) in sorted(d.items(), key=lambda item: item[1] != (0, 0)):  # what ties digits says most about the rest
        inside = meet(c, literal(core, low, high), order, column)
        if not inside:
            return [*out, c]
        below = meet(c, literal(core, -INF, low - 1), order, column) if low > -INF else []
        above = meet(c, literal(core, high + 1, INF), order, column) if high < INF else []
        out += below + above
        (c,) = inside
    return out


def meet(c: Conjunct, p: Pattern, order: Order, column: str) -> list[Conjunct]:
    """A conjunct and one more comparison, as one conjunct; none where they contradict each other.

    Raises:
        TooManyConjuncts: it takes several.
    """
    found = disjuncts(simplifier(order).simplify(all_of(pattern_of(c), p), column), 1)
    return [kept for x in found if (kept := pruned(x, order)) is not None]
