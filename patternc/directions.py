"""What was decided for one direction of kernels at one length, beside what it was compared with."""

from __future__ import annotations

from dataclasses import dataclass

from patternc.args import Bound
from patternc.balance import Balance, Costs, balance, of_groups, row_tiles
from patternc.describing import describe_direction
from patternc.expr.pattern import Pattern
from patternc.layout import layout
from patternc.orders.boxes import BoxAxis
from patternc.orders.choose import Option
from patternc.orders.heads import COLUMNS, HeadsAxis, access_of, compared, plan_at
from patternc.orders.parts import Way, splits, ways
from patternc.plan import AxisPlan, make_plan
from patternc.rates import Shape, mask_weight

KERNEL_TILE = (64, 64)  # what visits are counted in


@dataclass(frozen=True)
class Piece:
    """One set of pairs that one launch treats.

    Attributes:
        pattern, axis: the pairs, and how their tiles are found.
        allowed: how many pairs there are, for all heads of a batch row; None where that is not known.
        orders: the orders there are, best first, under "" or, by groups of heads, under the heads; empty where there is only the
            natural one.
        balance: how programs get the row tiles; None where only tensors say how long rows are, or where groups of heads have
            programs of their own.
    """

    pattern: Pattern
    axis: AxisPlan | BoxAxis | HeadsAxis
    allowed: int | None
    orders: dict[str, list[Option]]
    balance: Balance | None


@dataclass(frozen=True)
class Direction:
    """The kernels "forward" and dq, or "transposed", dk and dv.

    Attributes:
        name: one of `describing.DIRECTIONS`.
        ways: as one and in parts, fastest first; empty where there is one way.
        pieces: the disjoint parts of the first way; the pattern alone where there is one.
    """

    name: str
    ways: tuple[Way, ...]
    pieces: tuple[Piece, ...]

    def lines(self) -> list[str]:
        """The direction in words."""
        out = []
        for number, piece in enumerate(self.pieces, 1):
            if len(self.pieces) > 1:
                out.append(f"part {number}    {piece.pattern}")
            out += describe_direction(self.name, piece.axis)
            for heads, found in piece.orders.items():
                allowed = piece.allowed if not heads else None
                out.append(f"orders    {self.name}{heads and f', {heads}'}: position = {found[0].order}, predicted {_us(found[0].time)}")
                out += [f"          {_option(option, allowed)}" for option in found]
            if piece.balance is not None:
                out.append(f"balance   {self.name}: {piece.balance}")
            elif piece.axis.kind == "table":
                out.append(f"balance   {self.name}: usual order, since only data on the device say how long rows are")
        if self.ways:
            out.append(f"split     {self.name}: " + "; ".join(f"{_parts(way)} {_us(way.time)}" for way in self.ways))
        return out


def _parts(way: Way) -> str:
    return f"{len(way.parts)} parts ({', '.join(map(str, way.parts))})" if len(way.parts) > 1 else "as one"


def _us(time: float) -> str:
    return f"{time:.3g} us" if time < 1000 else f"{time / 1000:.3g} ms"


def _option(option: Option, allowed: int | None) -> str:
    """`8 * x0 + x1: 8,257,536 pairs visited (11% masked away), boxes of 64x1 by 64x1 values, 106 us`."""
    waste = f" ({1 - allowed / option.pairs:.0%} masked away)" if allowed is not None and option.pairs else ""
    boxes = ""
    if option.boxes is not None:
        rows, *columns = ["x".join(map(str, box)) for box in (option.boxes.rows, *option.boxes.columns)]
        begin = ", from where rows begin" if any(option.boxes.offset) else ""
        boxes = f", boxes of {rows} by {' and '.join(columns)} values{begin}"
    return f"{option.order}: {option.pairs:,} pairs visited{waste}{boxes}, {_us(option.time)}"


def directions(p: Pattern, bound: Bound, batch: int, kv_heads: int, shape: Shape) -> tuple[Direction, Direction]:
    """Both directions of a pattern; `bound` is that of one batch row."""
    return tuple(_direction(p, name, bound, batch, kv_heads, shape) for name in COLUMNS)


def _direction(p: Pattern, name: str, bound: Bound, batch: int, kv_heads: int, shape: Shape) -> Direction:
    found = tuple(ways(p, bound, COLUMNS[name], shape)) if isinstance(bound.q_start, int) and splits(p) else ()
    parts = found[0].parts if found else (p,)
    return Direction(name, found, tuple(_piece(part, name, bound, batch, kv_heads, shape) for part in parts))


def _piece(p: Pattern, name: str, bound: Bound, batch: int, kv_heads: int, shape: Shape) -> Piece:
    natural = make_plan(p)
    axis = getattr(plan_at(p, natural, bound, shape), name)
    orders = {key.removeprefix(name).removeprefix(", "): found for key, found in compared(p, natural, bound, shape).items() if key.startswith(name)}
    allowed = layout(p, bound, KERNEL_TILE, count=True).allowed_pairs if orders else None
    return Piece(p, axis, allowed, orders, _balance(p, axis, name, bound, batch, kv_heads, shape))


def _balance(p: Pattern, axis, name: str, bound: Bound, batch: int, kv_heads: int, shape: Shape) -> Balance | None:
    if axis.kind == "heads" or not bound.heads:
        return None
    kernel, copies = ("forward", bound.heads) if name == "forward" else ("backward_dkdv", kv_heads)
    tiles = row_tiles(p, axis, bound, KERNEL_TILE, name == "transposed")
    if tiles is None:
        return None
    costs = Costs.of(kernel, access_of(axis, bound), shape, KERNEL_TILE, mask_weight(axis.mask if axis.kind == "boxes" else make_plan(p).mask))
    return balance(of_groups(costs.work(tiles), bound.heads // copies), copies * batch, costs, name == "forward")
