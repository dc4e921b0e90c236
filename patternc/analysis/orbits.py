"""Patterns that repeat along the diagonal: tiles that a shift of queries and keys maps to each other have equal masks.

`causal & dilate(128)` has millions of partial tiles and one class a diagonal; nothing here touches the tiles one by one.
"""

from __future__ import annotations

import math

import numpy as np

from patternc.analysis.grid import Grid
from patternc.analysis.runs import Runs
from patternc.expr.node import postorder
from patternc.expr.pattern import K, Pattern, Q
from patternc.expr.transform import substitute
from patternc.passes import literals

MOST_ORBITS = 1 << 19


def period_of(p: Pattern, grid: Grid) -> int | None:
    """The least number of tiles by which queries and keys may be shifted together without changing a comparison; None if there is none."""
    if grid.row.tile != grid.column.tile:
        return None
    cores = {literal.args[0] for literal in literals(p)}
    divisors = {x.args[1].args[0] for x in postorder(*cores) if x.op in ("div", "mod") and x.args[1].op == "const"}
    shift = math.lcm(grid.row.tile, *divisors) if math.prod(divisors) < MOST_ORBITS else MOST_ORBITS
    period = shift // grid.row.tile
    if period * (grid.row.tiles + grid.column.tiles) > MOST_ORBITS:
        return None
    moved = {Q: Q + shift, K: K + shift}
    return period if all(substitute(core, moved) is core for core in cores) else None


class Orbits:
    """The diagonals of a pattern of some period, a diagonal of each row modulo the period being one orbit.

    Attributes:
        runs: runs of whole tiles.
        used: the orbits that meet the runs, and `count`, in how many tiles.
        examples: the key of one tile of each used orbit.
    """

    def __init__(self, runs: Runs, grid: Grid, period: int):
        self.runs, self.grid, self.period = runs, grid, period
        self.span = grid.row.tiles + grid.column.tiles
        row = runs[0] // grid.width
        start, stop = runs[0] - row * grid.width, runs[1] - row * grid.width
        base = self.base(row)
        steps = np.zeros(period * self.span + 1, np.int64)  # a run walks down the diagonals: from `start`'s to that of the last tile
        np.add.at(steps, base - stop + 1, 1)
        np.add.at(steps, base - start + 1, -1)
        tiles = np.cumsum(steps[:-1])
        self.used = np.flatnonzero(tiles)
        self.count = tiles[self.used]
        phase, diagonal = self.used // self.span, self.used % self.span - grid.column.tiles  # row - column
        first = np.maximum(diagonal, 0)
        rows = phase + -(-(first - phase) // period) * period
        self.examples = rows * grid.width + rows - diagonal

    def base(self, row: np.ndarray) -> np.ndarray:
        """The orbit of `(row, 0)`; that of `(row, column)` is `column` less."""
        return row % self.period * self.span + row + self.grid.column.tiles

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Where in `used` the orbits of tiles are."""
        row = keys // self.grid.width
        place = np.zeros(self.period * self.span, np.int64)
        place[self.used] = np.arange(len(self.used))
        return place[self.base(row) - (keys - row * self.grid.width)]
