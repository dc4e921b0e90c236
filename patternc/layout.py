"""The exact tiles of a pattern at one length: which are empty, partial or full, and how many pairs they allow.

Nothing here looks at all pairs: the work is proportional to the row tiles and the runs, plus the pairs of one tile of each
class of partial tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from patternc.analysis.classes import count_pairs, group, shape_columns
from patternc.analysis.exact import contraction_is_exact
from patternc.analysis.grid import Grid
from patternc.analysis.orbits import Orbits, period_of
from patternc.analysis.runs import NOTHING, Runs, from_members, intersect, members, subtract, total_length, union
from patternc.analysis.tiles import live_runs
from patternc.args import Bound
from patternc.cells import specialised
from patternc.expr.bounds import bounds
from patternc.expr.node import roomy
from patternc.expr.pattern import Pattern, negate
from patternc.forms import tile_shape
from patternc.orders.factored import factors, product
from patternc.passes import decide, lower, negation_normal

FEW_CLASSES = 256  # up to here partial tiles are always decided by their pairs
MOST_CLASSES = 4096  # and up to here unless contraction is exact by itself
MANY_ROWS = 64  # tiles of rows, from which on it is worth asking whether tiles are products
MANY_TILES = 1 << 15  # partial ones, from which on it is worth asking whether they repeat


@dataclass(frozen=True, eq=False)
class TileRuns:
    """The tiles of one head and batch row, as runs of equal kind, sorted by row and start, disjoint.

    Attributes:
        grid: rows (q tiles, or k tiles when transposed) and columns.
        full, partial: runs of tile keys `row * grid.width + column`.
        exact: no partial tile is empty or full in truth.
        pairs: the number of allowed pairs; None if that was not asked for or `exact` is false.
    """

    grid: Grid
    full: Runs
    partial: Runs
    exact: bool
    pairs: int | None

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`(row, start, stop, full)` of every run, sorted by row and start."""
        start = np.concatenate([self.full[0], self.partial[0]])
        stop = np.concatenate([self.full[1], self.partial[1]])
        kind = np.arange(len(start)) < len(self.full[0])
        order = np.argsort(start, kind="stable")
        row = start[order] // self.grid.width
        base = row * self.grid.width
        return row, start[order] - base, stop[order] - base, kind[order]

    row = property(lambda self: self.table[0])
    start = property(lambda self: self.table[1])
    stop = property(lambda self: self.table[2])
    is_full = property(lambda self: self.table[3])

    @property
    def full_tiles(self) -> int:
        return total_length(self.full)

    @property
    def partial_tiles(self) -> int:
        return total_length(self.partial)

    @cached_property
    def whole(self) -> tuple[Runs, Runs]:
        """`(full, partial)` as kernels take them: a full tile that is cut off by the last column needs a mask, so it is partial."""
        if self.grid.column.count % self.grid.column.tile == 0:
            return self.full, self.partial
        last = (np.arange(self.grid.row.tiles, dtype=np.int64) * self.grid.width) + self.grid.column.tiles - 1
        cut = intersect(self.full, (last, last + 1))
        return subtract(self.full, cut, self.grid.total), union([self.partial, cut])

    def area(self, runs: Runs) -> int:
        """The number of positions that runs of tiles cover, ragged edges counted as they are."""
        row = runs[0] // self.grid.width
        base = row * self.grid.width
        box = self.grid.box(row, runs[0] - base, runs[1] - base)
        (a, b), (c, d) = box["q"], box["k"]
        return int(((b - a + 1) * (d - c + 1)).sum())

    def kinds(self) -> np.ndarray:
        """Dense int8 [row tiles, column tiles]: 0 empty, 1 partial, 2 full.  For pictures and tests."""
        out = np.zeros(self.grid.total, np.int8)
        out[members(self.partial)] = 1
        out[members(self.full)] = 2
        return out.reshape(self.grid.row.tiles, self.grid.width)[:, : self.grid.column.tiles]


@dataclass(frozen=True, eq=False)
class Group:
    """Heads and batch rows that share one set of tiles, and the specialised pattern they share."""

    heads: tuple[int, ...]
    batch: tuple[int, ...]
    tiles: TileRuns
    pattern: Pattern


@dataclass(frozen=True, eq=False)
class Layout:
    """The tiles of a pattern for every head and batch row of a call.

    Attributes:
        n_q, n_k, heads, batch: sizes.
        tile: rows and columns of a tile, (q, k).
        groups: the distinct sets of tiles.
    """

    n_q: int
    n_k: int
    heads: int
    batch: int
    tile: tuple[int, int]
    groups: tuple[Group, ...] = field(default=())

    @property
    def exact(self) -> bool:
        return all(g.tiles.exact for g in self.groups)

    def _sum(self, what) -> int:
        return sum(what(g.tiles) * len(g.heads) * len(g.batch) for g in self.groups)

    whole_tiles = property(lambda self: self._sum(lambda t: total_length(t.whole[0])))
    full_tiles = property(lambda self: self._sum(lambda t: t.full_tiles))
    partial_tiles = property(lambda self: self._sum(lambda t: t.partial_tiles))
    visited_pairs = property(lambda self: self._sum(lambda t: t.area(t.full) + t.area(t.partial)))

    @property
    def allowed_pairs(self) -> int | None:
        """Summed over heads and batch rows; None where the layout was not asked to count."""
        if any(g.tiles.pairs is None for g in self.groups):
            return None
        return self._sum(lambda t: t.pairs)

    def __repr__(self):
        tiles = f"full_tiles={self.full_tiles}, partial_tiles={self.partial_tiles}, exact={self.exact}"
        return f"Layout(n_q={self.n_q}, n_k={self.n_k}, tile={self.tile}, {tiles})"


@roomy
def layout(p: Pattern, bound: Bound, tile: tuple[int, int] = (128, 128), transposed: bool = False, count: bool = False) -> Layout:
    """The tiles of a pattern at one length.

    Args:
        p: the pattern as the user wrote it.
        bound: sizes and args (`args.bind`).
        tile: rows and columns of a tile.
        transposed: rows are k tiles and columns q tiles.
        count: also count the allowed pairs exactly, whatever the number of classes.
    """
    bound, tile = bound.numpy(), tile_shape(tile)
    lowered = lower(p)
    groups: dict[tuple, list] = {}
    for start, heads, rows, pattern in specialised(lowered, bound):
        groups.setdefault((start, pattern), []).append((heads, rows))
    out = []
    for (start, pattern), cells in groups.items():
        grid = Grid.of(bound.n_q, bound.n_k, *tile, q_start=start, transposed=transposed)
        tiles = analyse(pattern, grid, count)
        for heads, rows in cells:
            out.append(Group(heads, rows, tiles, pattern))
    return Layout(bound.n_q, bound.n_k, bound.heads, bound.batch, tile, tuple(out))


@roomy
def analyse(p: Pattern, grid: Grid, count: bool = False) -> TileRuns:
    """Tiles of a specialised pattern on a grid: live = outer(P), full = live minus outer(~P), then tile classes."""
    if not grid.row.count or not grid.column.count or p.op == "false":
        return TileRuns(grid, NOTHING, NOTHING, True, 0)
    parts = factors(p, grid, lambda digit, own: analyse(digit, own, count)) if grid.row.tiles >= MANY_ROWS else None
    if parts is not None:
        live, full = (product(parts, grid, part) for part in (lambda factor: factor.live, lambda factor: factor.full))
        pairs = [factor.pairs for factor in parts]
        return TileRuns(grid, full, subtract(live, full, grid.total), True, None if None in pairs else math.prod(pairs))
    env = grid.ranges()
    complement = decide(negation_normal(negate(p)), lambda x: bounds(x, env))
    live = live_runs(p, grid)
    not_full = live_runs(complement, grid, live)
    full, partial = subtract(live, not_full, grid.total), intersect(live, not_full)
    found = _by_orbits(p, full, partial, grid)
    if found is not None:
        return found
    keys = members(partial)
    first, of = group(shape_columns(p, grid.boxes(keys), len(keys)), len(keys))
    if len(first) > FEW_CLASSES and not count:
        if contraction_is_exact(p) and contraction_is_exact(complement):
            return TileRuns(grid, full, partial, True, None)
        if len(first) > MOST_CLASSES:
            return TileRuns(grid, full, partial, False, None)
    return _decided(grid, full, partial, keys, *look(p, grid, keys, first, of))


def _by_orbits(p: Pattern, full: Runs, partial: Runs, grid: Grid) -> TileRuns | None:
    """The same for a pattern that repeats along the diagonal, where tiles are many: one tile of each orbit is looked at."""
    if total_length(partial) < MANY_TILES or (period := period_of(p, grid)) is None:
        return None
    rows = np.arange(grid.row.tiles, dtype=np.int64) * grid.width
    last = rows + grid.column.tiles - 1
    edge = union([(last, last + 1), (rows[-1:], rows[-1:] + grid.column.tiles)])  # ragged tiles are in no orbit
    inner, outer = subtract(partial, edge, grid.total), intersect(partial, edge)
    orbits = Orbits(inner, grid, period)
    kind, allowed = look(p, grid, orbits.examples)
    keys = members(outer)
    edge_kind, edge_allowed = look(p, grid, keys)
    tiles = _decided(grid, full, outer, keys, edge_kind, edge_allowed)
    pairs = tiles.pairs + int((orbits.count * allowed).sum())  # full ones too, whose area is not in `tiles`
    if (kind != 1).any():
        inner_keys = members(inner)
        kinds = kind[orbits.places(inner_keys)]
        full, partial = (union([found, from_members(inner_keys[kinds == k])]) for found, k in ((tiles.full, 2), (tiles.partial, 1)))
        return TileRuns(grid, full, partial, True, pairs)
    return TileRuns(grid, tiles.full, union([tiles.partial, inner]), True, pairs)


def look(p: Pattern, grid: Grid, keys: np.ndarray, first=None, of=None) -> tuple[np.ndarray, np.ndarray]:
    """`(kind, allowed pairs)` of tiles, by looking at one of each class: `first` are their places in `keys`, `of` the class of every key."""
    if first is None:
        first, of = group(shape_columns(p, grid.boxes(keys), len(keys)), len(keys))
    boxes = grid.boxes(keys[first])
    chosen = {name: tuple(np.broadcast_to(v, first.shape) for v in boxes[name]) for name in ("q", "k")}
    allowed = count_pairs(p, chosen)
    (q0, q1), (k0, k1) = chosen["q"], chosen["k"]
    kind = np.where(allowed == 0, 0, np.where(allowed == (q1 - q0 + 1) * (k1 - k0 + 1), 2, 1))
    return kind[of], allowed[of]


def _decided(grid: Grid, full: Runs, partial: Runs, keys: np.ndarray, kind: np.ndarray, allowed: np.ndarray) -> TileRuns:
    """The tiles when the partial ones, `keys`, are known to be empty, partial or full in truth."""
    pairs = int(allowed[kind == 1].sum())
    if (kind != 1).any():
        full, partial = union([full, from_members(keys[kind == 2])]), from_members(keys[kind == 1])
    tiles = TileRuns(grid, full, partial, True, None)
    return TileRuns(grid, full, partial, True, pairs + tiles.area(full))
