"""Layouts digit by digit: where natural tiles are boxes of digits and no comparison mentions two, tiles are products.

A neighbourhood on a cube of 64 is three problems of 64 positions each.  The tiles of each are found as of any pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patternc.analysis.grid import Axis, Grid
from patternc.analysis.runs import Runs, members, union
from patternc.expr.bounds import INF
from patternc.expr.index import Index
from patternc.expr.node import postorder
from patternc.expr.pattern import K, Pattern, Q, all_of, between
from patternc.expr.transform import substitute
from patternc.orders.digits import Order
from patternc.orders.simplify import in_digits, pruned
from patternc.passes import TooManyConjuncts, disjuncts, variables


@dataclass(frozen=True, eq=False)
class Factor:
    """One digit: its grid of boxes, the live and the full ones, and the allowed pairs of its values (None if not known)."""

    grid: Grid
    live: Runs
    full: Runs
    pairs: int | None


def factors(p: Pattern, grid: Grid, analyse: Callable) -> list[Factor] | None:
    """The digits of a specialised pattern, most significant first; None where its tiles are no products.

    Args:
        analyse: `layout.analyse`, for the pattern of one digit on a grid.
    """
    order = order_of(p)
    axes = None if order is None else _axes(order, grid)
    if axes is None:
        return None
    try:
        found = [c for conjunct in disjuncts(in_digits(p, order, "k"), 1) if (c := pruned(conjunct, order)) is not None]
    except TooManyConjuncts:
        return None
    parts: list[list[Pattern]] = [[] for _ in order.strides]
    for core, (low, high) in found[0].items() if len(found) == 1 else ():
        digits = {int(name[1:]) for name in variables(core) if name[0] in "qk" and name[1:].isdigit()}
        if len(digits) != 1 or len(variables(core)) > 2:
            return None
        parts[digits.pop()].append(between(core, None if low == -INF else int(low), None if high == INF else int(high)))
    if len(found) != 1:
        return None
    out = []
    for i, (own, (row, column)) in enumerate(zip(parts, axes)):
        mapping = {Index("var", f"q{i}"): Q, Index("var", f"k{i}"): K}
        tiles = analyse(substitute(all_of(*own), mapping), Grid(row, column))
        if not tiles.exact:
            return None
        out.append(Factor(tiles.grid, union([tiles.full, tiles.partial]), tiles.full, tiles.pairs))
    return out


def order_of(p: Pattern) -> Order | None:
    """The digits that `q // c` and `q % c` name where both sides' are read; None where none are, or they are not nested."""
    read: dict[int, set[str]] = {}
    for x in postorder(p):
        if x.op in ("div", "mod") and x.args[1].op == "const" and (x.args[0] is Q or x.args[0] is K):
            read.setdefault(x.args[1].args[0], set()).add(f"{x.args[0].args[0]} {x.op}")
    strides = sorted(read, reverse=True)
    if not any({"q mod", "k mod"} <= how for how in read.values()) or any(a % b for a, b in zip(strides, strides[1:])) or 1 in read:
        return None
    return Order((*strides, 1))


def _axes(order: Order, grid: Grid) -> list[tuple[Axis, Axis]] | None:
    """Rows and columns of every digit's grid; None where tiles are no boxes, or where they or the first digit are cut off."""
    sides = []
    for axis in (grid.row, grid.column):
        period, tile = order.strides[0], axis.tile
        if axis.first % max(tile, period) or axis.count % max(tile, period) or axis.first % period or axis.count % period:
            return None
        own = []
        for stride, extent in zip(order.strides, order.extents):
            first, count = (axis.first // stride, axis.count // stride) if extent is None else (0, extent)
            box = min(count, max(1, tile // stride))
            if count % box or (tile > stride and tile % stride):
                return None
            own.append(Axis(axis.name, first, count, box))
        if np.prod([a.tile for a in own]) != tile:
            return None
        sides.append(own)
    return list(zip(*sides))


def product(found: list[Factor], grid: Grid, part: Callable[[Factor], Runs]) -> Runs:
    """Tiles of the whole grid, in the runs that the last digit makes, from one part of every factor."""
    row = column = np.zeros(1, np.int64)
    for factor in found[:-1]:
        keys = members(part(factor))
        own_row, own_column = keys // factor.grid.width, keys % factor.grid.width
        row = (row[:, None] * factor.grid.row.tiles + own_row).ravel()
        column = (column[:, None] * factor.grid.column.tiles + own_column).ravel()
    last = found[-1]
    start, stop = part(last)
    own = start // last.grid.width
    begin = (row[:, None] * last.grid.row.tiles + own) * grid.width + column[:, None] * last.grid.column.tiles + (start - own * last.grid.width)
    return union([(begin.ravel(), (begin + (stop - start)).ravel())])


