"""Splitting a union into disjoint parts that want different orders, merged by their log-sum-exps.

Worth it only where one order cannot serve both sides, as in `causal & (window(128) | dilate(128))`: a part costs a program for
every row tile again, and the reading and writing of partial results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from patternc.args import Bound
from patternc.cards import card
from patternc.expr.node import fact, postorder, roomy
from patternc.expr.pattern import H, Pattern, all_of, negate
from patternc.orders.choose import TILE, Option, axes_in_digits, options
from patternc.passes import lower
from patternc.plan import make_plan
from patternc.rates import HALF, Shape

MOST_ALTERNATIVES = 3


def alternatives(p: Pattern) -> tuple[list[Pattern], list[Pattern]]:
    """`(common, [a, b, ..])` of `common & (a | b | ..)`; no alternatives where there is not exactly one union."""
    if p.op == "or":
        return [], list(p.args)
    unions = [x for x in p.args if x.op == "or"] if p.op == "and" else []
    if len(unions) != 1:
        return [], []
    return [x for x in p.args if x is not unions[0]], list(unions[0].args)


@fact
@roomy
def splits(p: Pattern) -> list[tuple[Pattern, ...]]:
    """Ways to cut a pattern into disjoint parts, of which at least one has bounds in another order; none where heads differ (`orders.heads`)."""
    common, either = alternatives(p)
    if not 2 <= len(either) <= MOST_ALTERNATIVES or any(x.op == "arg" or x is H for x in postorder(p)):
        return []
    found = []
    for last in reversed(range(len(either))):  # what is left of one alternative without the others
        order = [*either[:last], *either[last + 1 :], either[last]]
        parts = tuple(all_of(*common, a, *(negate(b) for b in order[:i])) for i, a in enumerate(order))
        if all(lower(part).op != "false" for part in parts) and any(axes_in_digits(part)["k"] for part in parts):
            found.append(parts)
    return found


@dataclass(frozen=True)
class Way:
    """One way to run a direction: its disjoint parts, one launch each, and the predicted microseconds, launches and merges included."""

    parts: tuple[Pattern, ...]
    time: float


def ways(p: Pattern, bound: Bound, column: str, shape: Shape = HALF, quick: bool = False) -> list[Way]:
    """The ways to run one direction ("k": q tiles over keys, "q": k tiles over queries), as one and in parts, fastest first; of those
    that are slower than the fastest not all, if that is to be `quick`.

    Parts in the natural order come first: what is left of a scattered part without a contiguous one keeps its shape in its own
    order, and the other way round a contiguous part would be full of holes.
    """

    @cache
    def best(part: Pattern) -> Option:
        plan = make_plan(part)
        return options(part, plan.forward if column == "k" else plan.transposed, bound, column, shape)[0]

    programs = (bound.n_q if column == "k" else 2 * bound.n_k) / TILE * bound.heads * bound.batch  # dk and dv are two results
    merge = card().launch + card().microseconds(card().merge_of(shape) * programs, programs)
    whole = best(p)
    found = [Way((p,), card().launch + whole.time)]
    for parts in splits(p):
        time = card().launch + merge * (len(parts) - 1)
        if quick and time + whole.time * whole.full >= found[0].time:  # what is full must be visited in every order
            continue
        for part in sorted(parts, key=lambda part: not axes_in_digits(part)[column]):
            time += best(part).time
            if quick and time >= found[0].time:
                break
        else:
            natural = [best(part).order.natural for part in parts]
            if natural == sorted(natural, reverse=True) and not all(natural):
                found = sorted([*found, Way(parts, time)], key=lambda way: way.time)
    return found


def parts_at(p: Pattern, bound: Bound, shape: Shape = HALF, column: str = "k") -> tuple[Pattern, ...]:
    """The parts that a length asks for in one direction: the pattern alone, or parts that are predicted to be faster together."""
    return ways(p, bound, column, shape, quick=True)[0].parts if isinstance(bound.q_start, int) and splits(p) else (p,)
