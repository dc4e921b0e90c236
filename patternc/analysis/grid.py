"""The grid of tiles over one head's pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from patternc.forms import afford

MOST_ROWS = 1 << 22  # of tiles: some seconds, and 536 million tokens in tiles of 128

@dataclass(frozen=True)
class Axis:
    """Positions `first .. first + count - 1` of the variable `name`, in tiles of `tile`; the last tile may be ragged."""

    name: str
    first: int
    count: int
    tile: int

    @property
    def tiles(self) -> int:
        return -(-self.count // self.tile)

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def span(self, tile, stop=None):
        """First and last position of the tiles `tile .. stop - 1` (one tile without `stop`)."""
        stop = tile + 1 if stop is None else stop
        return self.first + tile * self.tile, np.minimum(self.first + stop * self.tile - 1, self.last)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """`(positions, exist)`, [tiles, tile]: the positions of every tile, and which of them there are."""
        positions = self.span(np.arange(self.tiles))[0][:, None] + np.arange(self.tile)
        return positions, positions <= self.last

    def tiles_of(self, low, high):
        """Half-open range of the tiles that hold the positions `low .. high`; empty where low > high."""
        start = (np.maximum(low, self.first) - self.first) // self.tile
        stop = (np.minimum(high, self.last) - self.first) // self.tile + 1
        return start, np.where(low > high, start, stop)


@dataclass(frozen=True)
class Sample(Axis):
    """Some tiles of an axis, those of the numbers `chosen`, as rows of a grid."""

    chosen: tuple[int, ...] = ()

    @property
    def tiles(self) -> int:
        return len(self.chosen)

    def span(self, tile, stop=None):
        """First and last position of chosen tiles."""
        return super().span(np.array(self.chosen)[tile])


@dataclass(frozen=True)
class Grid:
    """Rows of tiles (one axis) over columns of tiles (the other).  Keys of tiles are `row * width + column`."""

    row: Axis
    column: Axis
    width: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "width", self.column.tiles + 1)

    @staticmethod
    def of(n_q: int, n_k: int, bm: int, bn: int, q_start: int | None = None, transposed: bool = False) -> Grid:
        q = Axis("q", n_k - n_q if q_start is None else q_start, n_q, bm)
        k = Axis("k", 0, n_k, bn)
        grid = Grid(k, q) if transposed else Grid(q, k)
        afford(grid.row.tiles, MOST_ROWS, "rows of tiles")
        return grid

    @property
    def total(self) -> int:
        return self.row.tiles * self.width

    @cached_property
    def everything(self):
        keys = np.arange(self.row.tiles, dtype=np.int64) * self.width
        return keys, keys + self.column.tiles

    def axis(self, name: str) -> Axis:
        return self.row if self.row.name == name else self.column

    def box(self, row, start, stop=None) -> dict:
        """Position intervals of the boxes `row x (start .. stop - 1)`, by variable name."""
        return {self.row.name: self.row.span(row), self.column.name: self.column.span(start, stop)}

    def boxes(self, keys: np.ndarray) -> dict:
        row = keys // self.width
        return self.box(row, keys - row * self.width)

    def ranges(self) -> dict:
        """The whole domain, by variable name."""
        return {a.name: (a.first, a.last) for a in (self.row, self.column)}
