"""The plan that a length asks for: each direction in the order whose predicted time is least."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.args import Bound
from patternc.expr.node import fact, postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.layout import layout
from patternc.orders.boxes import BoxAxis, box_axis
from patternc.orders.digits import NATURAL, Order
from patternc.orders.search import Sizes, choose_boxes, orders
from patternc.passes import lower, variables
from patternc.plan import AxisPlan, Plan
from patternc.visits import Visits, visits

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
    def order(self) -> Order:
        return self.axis.order if isinstance(self.axis, BoxAxis) else NATURAL


@fact
@roomy
def axes_in_digits(p: Pattern) -> dict[str, list[BoxAxis]]:
    """The orders of both directions ("k": q tiles over keys, "q": k tiles over queries) in which a static pattern has bounds."""
    lowered = lower(p)
    # Divisors that move with positions are not provably positive in digits.
    moving = any(x.op in ("div", "mod") and variables(x.args[1]) for x in postorder(lowered))
    if moving or any(x.op in ("arg", "mul") for x in postorder(lowered)):
        return {"k": [], "q": []}
    forward = [axis for order in orders(lowered) if (axis := box_axis(lowered, order, "k")) is not None]
    return {"k": forward, "q": [axis for one in forward if (axis := box_axis(lowered, one.order, "q")) is not None]}


def visits_of(p: Pattern, axis: AxisPlan | BoxAxis, bound: Bound, tile: tuple[int, int], transposed: bool = False) -> Visits:
    """What kernels visit in one direction (`visits.visits`), in digits too; `tile` is rows and columns of that direction."""
    if axis.kind != "boxes":
        return visits(p, axis, bound, tile, transposed)
    boxes = choose_boxes(axis, Sizes(bound.n_q, bound.n_k, bound.q_start), *tile)
    times = bound.heads * bound.batch
    return Visits(boxes.tiles * tile[0] * tile[1] * times, boxes.full * times, (boxes.tiles - boxes.full) * times, None)


def options(p: Pattern, natural: AxisPlan, bound: Bound, column: str) -> list[Option]:
    """The natural order and those in digits of one direction, by predicted time; `bound` has an int `q_start`."""
    sizes, transposed = Sizes(bound.n_q, bound.n_k, bound.q_start), column == "q"
    rows = bound.n_k if transposed else bound.n_q
    found = []
    for axis in (natural, *axes_in_digits(p)[column]):
        programs, rate = -(-rows // TILE), 1.0
        if axis is not natural:
            boxes = choose_boxes(axis, sizes, TILE, TILE)
            if boxes is None:
                continue
            described = axis.one_digit and all(x % axis.order.strides[0] == 0 for x in (bound.n_q, bound.n_k, bound.q_start))
            programs, rate = boxes.programs, 1.0 if described else POINTERS
        seen = _sampled(p, bound) if axis.kind == "list" else visits_of(p, axis, bound, (TILE, TILE), transposed)
        work = rate * (seen.full_tiles + seen.partial_tiles) + PARTIAL * seen.partial_tiles
        found.append(Option(axis, seen.pairs, work + PROGRAM * programs * bound.heads * bound.batch))
    return sorted(found, key=lambda option: option.time)


SAMPLES = 3
MOST_SAMPLED = 256  # lengths that are kept


def _sampled(p: Pattern, bound: Bound) -> Visits:
    """About what lists of tiles would visit, from a few tiles of queries: lists are long to make, and seldom chosen."""
    kept = p.facts.setdefault("sampled_visits", {})
    key = bound.n_q, bound.n_k, bound.q_start, bound.heads, bound.batch
    if key in kept:
        return kept[key]
    tiles = -(-bound.n_q // TILE)
    chosen = sorted({tiles * i // SAMPLES for i in range(1, SAMPLES)} | {0, tiles - 1})
    full = partial = 0
    for tile in chosen:
        rows = replace(bound, n_q=min(TILE, bound.n_q - tile * TILE), q_start=bound.q_start + tile * TILE)
        found = layout(p, rows, (TILE, TILE))
        full, partial = full + found.full_tiles, partial + found.partial_tiles
    full, partial = (x * tiles // len(chosen) for x in (full, partial))
    if len(kept) >= MOST_SAMPLED:
        kept.clear()
    kept[key] = Visits((full + partial) * TILE * TILE, full, partial, None)
    return kept[key]


def plan_at(p: Pattern, natural: Plan, bound: Bound) -> Plan:
    """The natural plan, or one with a direction in digits where that is predicted to be faster."""
    if not isinstance(bound.q_start, int) or not any(axes_in_digits(p).values()):
        return natural
    forward, transposed = (options(p, axis, bound, column)[0].axis for axis, column in ((natural.forward, "k"), (natural.transposed, "q")))
    if forward is natural.forward and transposed is natural.transposed:
        return natural
    return replace(natural, forward=forward, transposed=transposed)
