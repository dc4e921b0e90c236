"""Masked linear attention over the tiles of one group of a layout: states, runs of full tiles, partial tiles."""

from __future__ import annotations

import weakref

import numpy as np
import torch

from patternc.analysis.runs import from_members, union
from patternc.layout import Group
from patternc.masks import TileMasks

CHUNK = 1 << 21  # elements of products and of states of rows that are in use at a time

MOST_MASKS = 4096  # classes of partial tiles whose masks are looked at for dead rows and keys

_of_group: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class TailPlan:
    """How the tiles of R act, for one group of a layout.

    Attributes:
        live_rows, live_keys: bool [tiles, tile], the rows and keys that R uses; None if all.
        runs: `(row, start, stop)` of the runs of full tiles, sorted.
        prefix: int64 [row tiles], the row reads the sum of tiles below it.  suffix: the row reads tiles from it on.
        middle: `(row, start, stop)` of the other runs of full tiles, sorted by row.
        partial: tile keys of partial tiles, sorted.

    Args:
        factors: a tile that is full but for rows and keys that R never uses counts as full.
    """

    def __init__(self, group: Group, factors: bool = True):
        tiles, self.masks = group.tiles, TileMasks.of_group(group)
        grid = self.grid = tiles.grid
        full, keys = tiles.full, self.masks.keys
        width, self.columns = grid.width, grid.column.tiles
        row, column = keys // width, keys % width
        outer, row_any, key_any = self._class_facts(factors and len(self.masks.examples) <= MOST_MASKS)
        of = self.masks.of
        live_rows = np.zeros((grid.row.tiles, grid.row.tile), bool)
        live_keys = np.zeros((grid.column.tiles, grid.column.tile), bool)
        live_rows[full[0] // width] = True
        edges = np.zeros(self.columns + 1, np.int64)
        np.add.at(edges, full[0] % width, 1)
        np.add.at(edges, full[1] - full[0] // width * width, -1)
        live_keys[np.cumsum(edges)[:-1] > 0] = True
        live_rows.reshape(-1)[grid.row.count :] = live_keys.reshape(-1)[grid.column.count :] = False
        np.logical_or.at(live_rows, row, row_any[of])
        np.logical_or.at(live_keys, column, key_any[of])
        # A mask that is all live rows times all live keys is full in all that counts.
        whole = outer[of] & (row_any[of] == live_rows[row]).all(1) & (key_any[of] == live_keys[column]).all(1)
        self.partial, self.classes = keys[~whole], of[~whole]
        start, stop = union([full, from_members(keys[whole])])
        row = start // width
        start, stop = start - row * width, stop - row * width
        self.runs = row, start, stop
        first, last = start == 0, (stop == self.columns) & (start > 0)
        self.prefix = np.zeros(grid.row.tiles, np.int64)
        self.prefix[row[first]] = stop[first]
        self.suffix = np.full(grid.row.tiles, self.columns)
        self.suffix[row[last]] = start[last]
        between = ~(first | last)
        self.middle = row[between], start[between], stop[between]
        self.live_rows = live_rows if whole.any() else None
        self.live_keys = live_keys if whole.any() else None

    @staticmethod
    def of_group(group: Group, factors: bool = True) -> TailPlan:
        made = _of_group.setdefault(group, {})
        if factors not in made:
            made[factors] = TailPlan(group, factors)
        return made[factors]

    def _class_facts(self, look: bool, chunk: int = 256):
        """For every class: is its mask rows times keys, and the rows and keys that it uses; no to all where nobody looks."""
        count, grid = len(self.masks.examples), self.grid
        outer, rows, keys = np.zeros(count, bool), np.zeros((count, grid.row.tile), bool), np.zeros((count, grid.column.tile), bool)
        for a in range(0, count if look else 0, chunk):
            mask = self.masks.evaluate(self.masks.examples[a : a + chunk])
            s = slice(a, a + chunk)
            rows[s], keys[s] = mask.any(2), mask.any(1)
            outer[s] = (mask == (rows[s][:, :, None] & keys[s][:, None])).all((1, 2))
        return outer, rows, keys

    def matrix(self, a: int, b: int, like: torch.Tensor) -> tuple[slice, torch.Tensor] | None:
        """The 0/1 matrix of the middle runs of row tiles a..b-1 and the columns it spans, or None if there are none."""
        row, start, stop = self.middle
        s = slice(np.searchsorted(row, a), np.searchsorted(row, b))
        if s.start == s.stop:
            return None
        low, high = int(start[s].min()), int(stop[s].max())
        edges = np.zeros((b - a, high - low + 1), np.int8)
        np.add.at(edges, (row[s] - a, start[s] - low), 1)
        np.add.at(edges, (row[s] - a, stop[s] - low), -1)
        return slice(low, high), torch.from_numpy(np.cumsum(edges, 1)[:, :-1]).to(like)


class TailTiles:
    """One group's tensors, cut into tiles: q [Z, row tiles, g*bm, F], k [Z, key tiles, bn, F], v [Z, key tiles, bn, dv]."""

    def __init__(self, plan: TailPlan, q, k, v):
        self.plan, self.g = plan, q.shape[2]
        self.q, self.k, self.v = self.rows(q), self.keys(k), self.keys(v)
        self.size = q.shape[-1] * v.shape[-1]  # of one state

    def rows(self, x):
        """[B', K, g, n, e] to tiles, the g heads of a group stacked; rows that R never uses are zeroed."""
        axis = self.plan.grid.row
        x = torch.nn.functional.pad(x, (0, 0, 0, axis.tiles * axis.tile - axis.count)).unflatten(3, (axis.tiles, axis.tile))
        if self.plan.live_rows is not None:
            x = x * torch.from_numpy(self.plan.live_rows).to(x)[..., None]
        return x.movedim(2, 3).flatten(3, 4).flatten(0, 1)

    def keys(self, x):
        """[B', K, n, e] to tiles; keys that R never uses are zeroed in phi(k) and in v, and so in their gradients."""
        axis, live = self.plan.grid.column, self.plan.live_keys
        x = torch.nn.functional.pad(x, (0, 0, 0, axis.tiles * axis.tile - axis.count)).unflatten(2, (axis.tiles, axis.tile)).flatten(0, 1)
        return x if live is None else x * torch.from_numpy(live).to(x)[..., None]

    def uncut_rows(self, x, heads: int):
        """The inverse of `rows`."""
        axis = self.plan.grid.row
        x = x.unflatten(0, (-1, heads)).unflatten(3, (self.g, axis.tile)).movedim(3, 2).flatten(3, 4)
        return x[..., : axis.count, :]

    def uncut_keys(self, x, heads: int):
        return x.unflatten(0, (-1, heads)).flatten(2, 3)[:, :, : self.plan.grid.column.count]

    def row_chunks(self):
        step = max(1, CHUNK // (self.size * len(self.q)))
        return [(a, min(a + step, self.q.shape[1])) for a in range(0, self.q.shape[1], step)]

    def partial_chunks(self):
        """Yield row tiles, key tiles and masks [N, g*bm, bn] of some partial tiles."""
        plan, width = self.plan, self.plan.grid.width
        step = max(1, CHUNK // (len(self.q) * max(self.q[0, 0].numel(), self.k[0, 0].numel(), self.q.shape[2] * self.k.shape[2])))
        for a in range(0, len(plan.partial), step):
            keys = plan.partial[a : a + step]
            mask = plan.masks.masks(plan.classes[a : a + step], self.q.device).repeat(1, self.g, 1)
            yield *(torch.from_numpy(x).to(self.q.device) for x in (keys // width, keys % width)), mask

    def sums(self, states):
        """Running sums of the states: `below[:, j]` of tiles before j, `above[:, j]` of tiles from j on; None if nobody reads them."""
        plan, below, above = self.plan, None, None
        z, n = states.shape[:2]
        if plan.prefix.any():
            below = states.new_zeros(z, n + 1, *states.shape[2:])
            for j in range(int(plan.prefix.max())):
                torch.add(below[:, j], states[:, j], out=below[:, j + 1])
        if (plan.suffix < n).any():
            above = states.new_zeros(z, n + 1, *states.shape[2:])
            for j in range(n - 1, int(plan.suffix.min()) - 1, -1):
                torch.add(above[:, j + 1], states[:, j], out=above[:, j])
        return states if len(plan.middle[0]) else None, below, above

    def states(self):
        return self.sums(self.k.mT @ self.v)

    def of_rows(self, states, a: int, b: int):
        """The states that row tiles a..b-1 read: [Z, b-a, F, dv], or None if they read none."""
        plan, (each, below, above) = self.plan, states
        total = None
        for source, where, nothing in ((below, plan.prefix[a:b], 0), (above, plan.suffix[a:b], plan.columns)):
            if source is not None and (where != nothing).any():
                part = source[:, torch.from_numpy(where).to(source.device)]
                total = part if total is None else total.add_(part)
        middle = plan.matrix(a, b, self.q) if each is not None else None
        if middle is not None:
            part = torch.matmul(middle[1], each[:, middle[0]].flatten(2)).unflatten(2, each.shape[2:])
            total = part if total is None else total.add_(part)
        return total

    def forward(self):
        out = self.q.new_zeros(*self.q.shape[:3], self.v.shape[-1])
        states = self.states()
        for a, b in self.row_chunks():
            total = self.of_rows(states, a, b)
            if total is not None:
                torch.matmul(self.q[:, a:b], total, out=out[:, a:b])
        for i, j, mask in self.partial_chunks():
            out.index_add_(1, i, (self.q[:, i] @ self.k[:, j].mT).masked_fill_(~mask, 0.0) @ self.v[:, j])
        return out

    def backward(self, d):
        """Gradients of q, k and v in tiles for the gradient d [Z, row tiles, g*bm, dv] of the result."""
        plan, dq = self.plan, torch.zeros_like(self.q)
        states = self.states()
        each, below, above = (None if s is None else torch.zeros_like(s) for s in states)
        for a, b in self.row_chunks():
            total = self.of_rows(states, a, b)
            if total is None:
                continue
            torch.matmul(d[:, a:b], total.mT, out=dq[:, a:b])
            torch.matmul(self.q[:, a:b].mT, d[:, a:b], out=total)  # the gradient of the states that these rows read
            for sink, where, nothing in ((below, plan.prefix[a:b], 0), (above, plan.suffix[a:b], plan.columns)):
                if sink is not None and (where != nothing).any():
                    keep = np.flatnonzero(where != nothing)
                    sink.index_add_(1, torch.from_numpy(where[keep]).to(d.device), total[:, torch.from_numpy(keep).to(d.device)])
            middle = plan.matrix(a, b, self.q) if each is not None else None
            if middle is not None:
                each[:, middle[0]] += torch.matmul(middle[1].mT, total.flatten(2)).unflatten(2, total.shape[2:])
        del states
        dz = self._spread(each, below, above)
        dk, dv = (torch.zeros_like(self.k), torch.zeros_like(self.v)) if dz is None else (self.v @ dz.mT, self.k @ dz)
        for i, j, mask in self.partial_chunks():
            qi, kj, vj, di = self.q[:, i], self.k[:, j], self.v[:, j], d[:, i]
            weights, dweights = ((x @ y.mT).masked_fill_(~mask, 0.0) for x, y in ((qi, kj), (di, vj)))
            dq.index_add_(1, i, dweights @ kj)
            dk.index_add_(1, j, dweights.mT @ qi)
            dv.index_add_(1, j, weights.mT @ di)
        return dq, dk, dv

    def _spread(self, each, below, above):
        """The transpose of `sums`: the gradient of each tile's state."""
        n = self.plan.columns
        if below is not None:
            for j in range(n - 1, 0, -1):
                below[:, j].add_(below[:, j + 1])
            each = below[:, 1:] if each is None else each.add_(below[:, 1:])
        if above is not None:
            for j in range(1, n):
                above[:, j].add_(above[:, j - 1])
            each = above[:, :n] if each is None else each.add_(above[:, :n])
        return each
