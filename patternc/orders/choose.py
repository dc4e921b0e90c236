"""The plan that a length asks for: each direction in the order whose predicted time is least."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.args import Bound
from patternc.expr.node import postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.orders.boxes import BoxAxis, box_axis
from patternc.orders.search import Boxes, Sizes, choose_boxes, orders
from patternc.passes import lower
from patternc.plan import AxisPlan, Plan
from patternc.visits import visits

TILE = 64  # rows and columns of the tiles that orders are compared by
# Times in units of one full 64 x 64 tile, fitted to published rows of windows (the study of orders); to be measured on the card.
PARTIAL = 0.15  # more for a tile with a mask
PROGRAM = 2.3  # start and end of a program
POINTERS = 1.1  # tiles that are read by pointers, beside descriptors


@dataclass(frozen=True)
class Option:
    """One order for one direction at one length.

    Attributes:
        axis: how tiles are found.
        pairs: positions in visited tiles, for all heads.
        time: predicted, in units of a full tile.
    """

    axis: AxisPlan | BoxAxis
    pairs: int
    time: float

    @property
    def strides(self) -> tuple[int, ...]:
        return self.axis.order.strides if isinstance(self.axis, BoxAxis) else (1,)


@roomy
def axes_in_digits(p: Pattern) -> dict[str, list[BoxAxis]]:
    """The orders of both directions ("k": q tiles over keys, "q": k tiles over queries) in which a static pattern has bounds."""
    lowered = lower(p)
    if any(x.op == "arg" for x in postorder(lowered)):
        return {"k": [], "q": []}
    found = orders(lowered)
    return {column: [axis for order in found if (axis := box_axis(lowered, order, column)) is not None] for column in ("k", "q")}


def options(p: Pattern, natural: AxisPlan, in_digits: list[BoxAxis], bound: Bound, column: str) -> list[Option]:
    """The natural order and those in digits, by predicted time; `bound` has an int `q_start`."""
    sizes = Sizes(bound.n_q, bound.n_k, bound.q_start)
    rows, transposed = (bound.n_q, False) if column == "k" else (bound.n_k, True)
    seen = visits(p, natural, bound, (TILE, TILE), transposed)
    found = [Option(natural, seen.pairs, _time(seen.full_tiles, seen.partial_tiles, -(-rows // TILE) * bound.heads))]
    for axis in in_digits:
        boxes = choose_boxes(axis, sizes, TILE, TILE)
        if boxes is not None:
            tiles = boxes.tiles * bound.heads
            time = _time(boxes.full * bound.heads, tiles - boxes.full * bound.heads, boxes.programs * bound.heads, POINTERS)
            found.append(Option(axis, tiles * TILE * TILE, time))
    return sorted(found, key=lambda option: option.time)


def _time(full: int, partial: int, programs: int, rate: float = 1.0) -> float:
    return rate * (full + partial) + PARTIAL * partial + PROGRAM * programs


def plan_at(p: Pattern, natural: Plan, in_digits: dict[str, list[BoxAxis]], bound: Bound) -> Plan:
    """The natural plan, or one with a direction in digits where that is predicted to be faster."""
    if not isinstance(bound.q_start, int) or not any(in_digits.values()):
        return natural
    forward, transposed = (
        options(p, axis, in_digits[column], bound, column)[0].axis for axis, column in ((natural.forward, "k"), (natural.transposed, "q"))
    )
    if forward is natural.forward and transposed is natural.transposed:
        return natural
    return replace(natural, forward=forward, transposed=transposed)


__all__ = ["Boxes", "Option", "axes_in_digits", "options", "plan_at"]
