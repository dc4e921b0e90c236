"""Splitting a union into disjoint parts that want different orders, merged by their log-sum-exps.

Worth it only where one order cannot serve both sides, as in `causal & (window(128) | dilate(128))`: a part costs a program for
every row tile again, and the reading and writing of partial results.
"""

from __future__ import annotations

from patternc.args import Bound
from patternc.expr.node import fact, postorder, roomy
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.orders.choose import TILE, axes_in_digits, options
from patternc.passes import lower
from patternc.plan import make_plan
from patternc.rates import HALF, Shape, card

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
    """Ways to cut a pattern into disjoint parts, of which at least one has bounds in another order."""
    common, either = alternatives(p)
    if not 2 <= len(either) <= MOST_ALTERNATIVES or any(x.op == "arg" for x in postorder(p)):
        return []
    found = []
    for last in reversed(range(len(either))):  # what is left of one alternative without the others
        order = [*either[:last], *either[last + 1 :], either[last]]
        parts = tuple(all_of(*common, a, *(negate(b) for b in order[:i])) for i, a in enumerate(order))
        if all(lower(part).op != "false" for part in parts) and any(axes_in_digits(part)["k"] for part in parts):
            found.append(parts)
    return found


def parts_at(p: Pattern, bound: Bound, shape: Shape = HALF) -> tuple[Pattern, ...]:
    """The parts that a length asks for: the pattern alone, or parts that are predicted to be faster together.

    Parts in the natural order come first: what is left of a scattered part without a contiguous one keeps its shape in its own
    order, and the other way round a contiguous part would be full of holes.
    """
    if not isinstance(bound.q_start, int) or not splits(p):
        return (p,)

    def best(part: Pattern) -> tuple[float, bool]:
        plan = make_plan(part)
        forward, transposed = (options(part, axis, bound, column, shape)[0] for axis, column in ((plan.forward, "k"), (plan.transposed, "q")))
        return forward.time + transposed.time, forward.order.natural

    programs = (bound.n_q + bound.n_k) / TILE * bound.heads * bound.batch
    another = 2 * card().launch + card().microseconds(card().merge_of(shape) * programs, programs)
    chosen, least = (p,), best(p)[0]
    for parts in splits(p):
        total, natural = another * (len(parts) - 1), []
        for part in parts:
            time, own = best(part) if total < least else (0, True)
            total += time
            natural.append(own)
        if total < least and natural == sorted(natural, reverse=True):
            chosen, least = parts, total
    return chosen
