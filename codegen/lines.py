"""Boxes of equally spaced positions as sequences of their own.

In an order `s * x0 + x1` whose boxes extend along x0 only, a query and its keys share x1: the positions of one x1 are a *line*, along which
the pattern is one of its own, whose plan is that of any other pattern.  `causal & dilate(4) & window(2048)` is `causal & window(512)` on 4
lines.  The forward for Hopper runs plans on lines, of which a sequence without an order is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from patternc.expr.index import Index
from patternc.expr.pattern import K, Q
from patternc.expr.transform import substitute
from patternc.passes import variables
from patternc.plan import Plan, make_plan

DIGITS = {Index("var", "q0"): Q, Index("var", "k0"): K}


@dataclass(frozen=True)
class Lines:
    """A plan along each of `count` lines; line r has the positions r, r + count, r + 2 * count and so on."""

    plan: Plan
    count: int


@lru_cache(maxsize=1024)
def lines_of(plan: Plan) -> Lines:
    """The lines that a plan's forward is of, one where its positions keep their order; a plan in digits whose boxes are no lines stays what
    it is."""
    axis = plan.forward
    if axis.kind != "boxes" or not axis.one_digit or axis.tied != (1,) or len(axis.order.strides) != 2:
        return Lines(plan, 1)
    mask = axis.parts[0].mask
    if not variables(mask) <= {"q0", "k0", "h", "b"}:
        return Lines(plan, 1)
    along = make_plan(substitute(mask, DIGITS))
    own = along.forward
    if own.kind != "formula" or own.flagged or own.filler is not None:  # their tables are made for positions
        return Lines(plan, 1)
    return Lines(along, axis.order.strides[0])
