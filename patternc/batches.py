"""Work for torch operations: q tiles whose runs have the same shape, in pieces that stay in the cache.

Consecutive q tiles whose runs have the same shape are one batch.  Its keys are a view (no copy) where the runs of each tile
join and move on by a constant step, as windows do, and are gathered otherwise; masks touch partial tiles only, and tiles of
one class share theirs.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch

from patternc.layout import Group
from patternc.masks import TileMasks

BUDGET = 1 << 20  # scores in memory at a time, which should stay in a core's cache

_of_group: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive q tiles with the same number of keys and the same kinds of key tiles.

    Attributes:
        row, count: first row of queries (counted from 0, not a position) and number of q tiles.
        height, width: rows of a tile, keys of a tile.
        start, step: tile i has the keys `start + i*step .. + width - 1`; or
        keys: int64 [count, width], the keys where they do not join.
        partial: `(first key, number of keys, classes)` of each partial run; classes is [count or 1, key tiles].
    """

    row: int
    count: int
    height: int
    width: int
    start: int
    step: int
    keys: np.ndarray | None
    partial: tuple[tuple[int, int, np.ndarray], ...]


def batches_of(group: Group) -> list[Batch]:
    """The batches of one group, in the order of rows; q tiles without keys are in none."""
    if group not in _of_group:
        _of_group[group] = list(_batches(group))
    return _of_group[group]


def _batches(group: Group):
    tiles, masks = group.tiles, TileMasks.of_group(group)
    grid = tiles.grid
    row, start, stop, full = tiles.table
    first = np.searchsorted(row, np.arange(grid.row.tiles + 1))
    n, bn = grid.column.count, grid.column.tile
    joined = np.zeros(len(row), bool)  # whether a run touches the one before it in its row
    joined[1:] = (row[1:] == row[:-1]) & (start[1:] == stop[:-1])

    def shape(a: int):
        s = slice(first[a], first[a + 1])
        height = min(grid.row.tile, grid.row.count - a * grid.row.tile)
        ragged = bool(len(stop[s])) and stop[s][-1] == grid.column.tiles and n % bn
        return height, ragged, (stop[s] - start[s]).tobytes(), full[s].tobytes(), bool(joined[s][1:].all())

    shapes = [shape(a) for a in range(grid.row.tiles)]
    a = 0
    while a < grid.row.tiles:
        b, joins = a + 1, shapes[a][-1]
        while b < grid.row.tiles and shapes[b] == shapes[a]:
            if first[a] < first[a + 1] and joins:  # a view needs a constant step, which is not negative
                step = start[first[b]] - start[first[b - 1]]
                if step < 0 or (b > a + 1 and step != start[first[a + 1]] - start[first[a]]):
                    break
            b += 1
        if first[a] < first[a + 1]:
            yield _batch(masks, a, b, first, start, stop, full, shapes[a][0], joins)
        a = b


def _batch(masks: TileMasks, a: int, b: int, first, start, stop, full, height: int, joins: bool) -> Batch:
    grid = masks.grid
    n, bn = grid.column.count, grid.column.tile
    runs = range(first[a], first[a + 1])
    offsets = np.cumsum([0] + [min(stop[r] * bn, n) - start[r] * bn for r in runs])
    partial = []
    for j, r in enumerate(runs):
        if not full[r]:
            tile = np.arange(a, b)[:, None] * grid.width + start[first[a:b] + j][:, None] + np.arange(stop[r] - start[r])
            classes = masks.classes(tile)
            partial.append((int(offsets[j]), int(offsets[j + 1] - offsets[j]), classes[:1] if (classes == classes[0]).all() else classes))
    keys = None
    if not joins:
        spans = [[np.arange(start[r] * bn, min(stop[r] * bn, n)) for r in range(first[t], first[t + 1])] for t in range(a, b)]
        keys = np.stack([np.concatenate(s) for s in spans])
    step = int(start[first[a + 1]] - start[first[a]]) * bn if b > a + 1 else 0
    return Batch(a * grid.row.tile, b - a, height, int(offsets[-1]), int(start[first[a]]) * bn, step, keys, tuple(partial))


class Piece:
    """Some q tiles of a batch, some heads, some rows of each tile: what one round of products works on."""

    def __init__(self, batch: Batch, tiles: slice, rows: slice, masks: TileMasks, device):
        self.batch, self.masks, self.rows, self.device = batch, masks, rows, device
        self.first, self.count = tiles.start, tiles.stop - tiles.start
        self.height = rows.stop - rows.start
        self.keys = None if batch.keys is None else torch.from_numpy(batch.keys[tiles]).to(device)

    def of_queries(self, x: torch.Tensor) -> torch.Tensor:
        """[Z, K, g, n, ..] to a view [count, Z, K, g, height, ..]."""
        b = self.batch
        x = x.narrow(3, b.row + self.first * b.height, self.count * b.height).unflatten(3, (self.count, b.height))
        return x[..., self.rows, :].movedim(3, 0) if x.ndim == 6 else x[..., self.rows].movedim(3, 0)

    def of_keys(self, x: torch.Tensor) -> torch.Tensor:
        """[Z, K, n, d] to [count, Z, K, width, d]: a view if the keys of a tile join."""
        b = self.batch
        if self.keys is not None:
            return x[:, :, self.keys].movedim(2, 0)
        z, heads, _, d = x.shape
        s0, s1, s2, s3 = x.stride()
        offset = x.storage_offset() + (b.start + self.first * b.step) * s2
        return x.as_strided((self.count, z, heads, b.width, d), (b.step * s2, s0, s1, s2, s3), offset)

    def add_keys(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """The transpose of `of_keys`: add [count, Z, K, width, d] to [Z, K, n, d]; tiles overlap, so one after the other."""
        b = self.batch
        for i in range(self.count):
            if self.keys is None:
                whole.narrow(2, b.start + (self.first + i) * b.step, b.width).add_(part[i])
            else:
                whole.index_add_(2, self.keys[i], part[i])

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """[count, Z, K, g, height, width], -inf where masked."""
        count, z, heads, share, height, d = q.shape
        s = torch.bmm((q * scale).flatten(3, 4).flatten(0, 2), k.flatten(0, -3).mT)
        s = s.view(count, z, heads, share, height, -1)
        for offset, width, classes in self.batch.partial:
            chosen = classes if len(classes) == 1 else classes[self.first : self.first + self.count]
            mask = self.masks.masks(chosen.ravel(), self.device).unflatten(0, chosen.shape)
            mask = mask[:, :, self.rows].movedim(1, 2).flatten(2)[..., :width]  # [count or 1, height, width of the run]
            s[..., offset : offset + width].masked_fill_(~mask[:, None, None, None], -torch.inf)
        return s


def pieces(group: Group, z: int, heads: int, share: int, device):
    """Yield `(slice of batch rows, slice of kv heads, piece)`, each with at most about `BUDGET` scores."""
    if not z:
        return
    masks = TileMasks.of_group(group)
    for batch in batches_of(group):
        cell = share * batch.height * batch.width
        if 2 * cell * batch.count >= BUDGET > cell:
            # One head fills a piece: its keys then stay a view, where several heads would be copied into one batch.
            parts = [(slice(i, i + 1), slice(j, j + 1)) for i in range(z) for j in range(heads)]
            rows, count = batch.height, BUDGET // cell
        elif cell * z * heads <= BUDGET:
            parts, rows, count = [(slice(0, z), slice(0, heads))], batch.height, max(1, BUDGET // (cell * z * heads))
        else:
            some = max(1, BUDGET // cell)
            parts = [(slice(i, i + 1), slice(j, min(j + some, heads))) for i in range(z) for j in range(0, heads, some)]
            rows, count = min(batch.height, max(1, BUDGET // (share * batch.width))), 1
        for t in range(0, batch.count, count):
            for r in range(0, batch.height, rows):
                piece = Piece(batch, slice(t, min(t + count, batch.count)), slice(r, min(r + rows, batch.height)), masks, device)
                for part in parts:
                    yield *part, piece
