"""The plan that a length asks for: each direction in the order whose predicted time is least."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from patternc.args import Bound
from patternc.cards import card
from patternc.expr.node import fact, postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.orders.boxes import BoxAxis, box_axis
from patternc.orders.count import Boxes, Sizes, choose_boxes
from patternc.orders.digits import NATURAL, Order
from patternc.orders.search import orders
from patternc.passes import lower, variables
from patternc.plan import AxisPlan, Plan
from patternc.rates import HALF, Rate, Shape, mask_weight
from patternc.sampling import sampled
from patternc.visits import Visits, visits

TILE = 64  # rows and columns of the tiles that orders are compared by, where such tiles were measured
KERNEL = {"k": "forward", "q": "backward_dkdv"}  # whose times decide the order of a direction


@dataclass(frozen=True)
class Option:
    """One order for one direction at one length.

    Attributes:
        axis: how tiles are found.
        boxes: the boxes of digits that were counted; None in the natural order.
        pairs: positions in visited tiles, for all heads.
        time: predicted microseconds, launches not counted.
        full: share of the visited tiles that need no mask.
    """

    axis: AxisPlan | BoxAxis
    boxes: Boxes | None
    pairs: int
    time: float
    full: float = 0.0

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
    # What differs by head is asked of the heads that see the same (`orders.heads`).
    if moving or variables(lowered) & {"h", "b"} or any(x.op in ("arg", "mul") for x in postorder(lowered)):
        return {"k": [], "q": []}
    forward = [axis for order in orders(lowered) if (axis := box_axis(lowered, order, "k")) is not None]
    return {"k": forward, "q": [axis for one in forward if (axis := box_axis(lowered, one.order, "q")) is not None]}


def visits_of(p: Pattern, axis: AxisPlan | BoxAxis, bound: Bound, tile: tuple[int, int], transposed: bool = False) -> Visits:
    """What kernels visit in one direction (`visits.visits`), in digits too; `tile` is rows and columns of that direction."""
    if axis.kind != "boxes":
        return visits(p, axis, bound, tile, transposed)
    return _in_boxes(choose_boxes(axis, Sizes(bound.n_q, bound.n_k, bound.q_start), *tile), tile, bound.heads * bound.batch)


def _in_boxes(boxes: Boxes, tile: tuple[int, int], times: int) -> Visits:
    return Visits(boxes.tiles * tile[0] * tile[1] * times, boxes.full * times, (boxes.tiles - boxes.full) * times, None)


def options(p: Pattern, natural: AxisPlan, bound: Bound, column: str, shape: Shape = HALF) -> list[Option]:
    """The natural order and those in digits of one direction, by predicted time; `bound` has an int `q_start`."""
    found, positions = [], max(bound.q_start + bound.n_q, bound.n_k)
    # Where one value of the first digit holds all positions there is nothing to gain from that cut.
    for axis in (natural, *(one for one in axes_in_digits(p)[column] if one.order.strides[0] < positions)):
        rate = card().rate(KERNEL[column], access_of(axis, bound), shape)
        option = predicted(p, axis, bound, KERNEL[column], rate)
        if option is not None:
            found.append(option)
    return sorted(found, key=lambda option: option.time)


def predicted(p: Pattern, axis: AxisPlan | BoxAxis, bound: Bound, kernel: str, rate: Rate) -> Option | None:
    """What a kernel visits in one direction, and how long that takes; None where boxes do not serve.  Lists of tiles are estimated."""
    rows, columns = rate.config.tile(kernel)
    transposed = kernel == "backward_dkdv"
    heads = bound.heads * bound.batch
    boxes, mask = None, lower(p)
    if axis.kind == "boxes":
        boxes, mask = choose_boxes(axis, Sizes(bound.n_q, bound.n_k, bound.q_start), rows, columns), axis.mask
        if boxes is None:
            return None
        programs, seen = boxes.programs, _in_boxes(boxes, (rows, columns), heads)
    else:
        programs = -(-(bound.n_k if transposed else bound.n_q) // rows)
        tile = (columns, rows) if transposed else (rows, columns)
        seen = _sampled(p, bound, tile) if axis.kind == "list" else _visited(p, axis, bound, (rows, columns), transposed)
    work = rate.work(programs * heads, seen.full_tiles, seen.partial_tiles, mask_weight(mask))
    full = seen.full_tiles / max(1, seen.full_tiles + seen.partial_tiles)
    return Option(axis, boxes, seen.pairs, card().microseconds(work, programs * heads), full)


def access_of(axis: AxisPlan | BoxAxis, bound: Bound) -> str:
    """How kernels reach memory, where nothing about the tensors hinders it (`codegen.access`)."""
    if axis.kind != "boxes":
        return "descriptors"
    whole = all(x % axis.order.strides[0] == 0 for x in (bound.n_q, bound.n_k, bound.q_start))
    return "box descriptors" if axis.one_digit and whole else "boxes"


def _visited(p: Pattern, axis: AxisPlan, bound: Bound, tile: tuple[int, int], transposed: bool) -> Visits:
    """`visits.visits`; kept for static patterns, since parts and groups of heads are compared in several ways."""
    if bound.values:
        return visits(p, axis, bound, tile, transposed)
    kept = p.facts.setdefault("visited", {})
    key = id(axis), bound.n_q, bound.n_k, bound.q_start, bound.heads, bound.batch, tile, transposed
    if key not in kept:
        if len(kept) >= MOST_SAMPLED:
            kept.clear()
        kept[key] = axis, visits(p, axis, bound, tile, transposed)
    return kept[key][1]


SAMPLES, SAMPLED_TILES = 4, 4  # places that are looked at, and tiles of queries at each
SAMPLED_HEADS = 4
GOLDEN = (5**0.5 - 1) / 2
MOST_SAMPLED = 256  # lengths that are kept


def _sampled(p: Pattern, bound: Bound, tile: tuple[int, int]) -> Visits:
    """About what lists of tiles would visit, from a few tiles of queries: lists are long to make, and seldom chosen."""
    kept = p.facts.setdefault("sampled_visits", {})
    key = bound.n_q, bound.n_k, bound.q_start, bound.heads, bound.batch, tile
    if key in kept:
        return kept[key]
    tiles = -(-bound.n_q // tile[0])
    some = replace(bound, heads=min(bound.heads, SAMPLED_HEADS))
    if tiles <= SAMPLES * SAMPLED_TILES + 2:
        seen = sampled(p, some, tile, np.arange(tiles)).sum(0)
    else:  # tiles at the ends may be like no other, and those between may repeat: places are spread like the golden ratio's multiples
        places = [1 + int((GOLDEN * (i + 1)) % 1 * (tiles - 1 - SAMPLED_TILES)) for i in range(SAMPLES)]
        inner = [place + i for place in places for i in range(SAMPLED_TILES)]
        found = sampled(p, some, tile, np.array([0, *inner, tiles - 1]))
        seen = found[0] + found[-1] + found[1:-1].mean(0) * (tiles - 2)
    full, partial = (round(float(x) * bound.heads / some.heads) for x in seen)
    if len(kept) >= MOST_SAMPLED:
        kept.clear()
    kept[key] = Visits((full + partial) * tile[0] * tile[1], full, partial, None)
    return kept[key]


def plan_at(p: Pattern, natural: Plan, bound: Bound, shape: Shape = HALF) -> Plan:
    """The natural plan, or one with a direction in digits where that is predicted to be faster."""
    if not isinstance(bound.q_start, int) or not any(axes_in_digits(p).values()):
        return natural
    forward, transposed = (options(p, axis, bound, column, shape)[0].axis for axis, column in ((natural.forward, "k"), (natural.transposed, "q")))
    if forward is natural.forward and transposed is natural.transposed:
        return natural
    return replace(natural, forward=forward, transposed=transposed)
