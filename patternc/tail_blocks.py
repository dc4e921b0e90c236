"""Block sums of states for a term's pairs R = D - E of class X: which states each tile of rows reads, and which tiles of keys it masks.

Rows and keys are cut into tiles of one size.  A tile of R is empty, full or partial.  With A the 0/1 matrix of the full ones,
row tile a reads the state `T_a = sum over b of A_ab S_b`, and key tile b gets the gradient `Z_b = sum over a of A_ab dT_a`.  These
sums are products with a block-sparse matrix: blocks of `TARGETS` sums and `CHUNK` states.  Where that leaves fewer blocks, the
states of `SUPER` tiles are summed first, and stand for them wherever a sum takes them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.args import Bound
from patternc.expr.pattern import Pattern
from patternc.layout import Layout, layout
from patternc.tail_tiles import TailPlan

TARGETS, CHUNK, SUPER = 64, 32, 16
TILES = 64, 128
TRAFFIC = 100  # products that take as long as reading or writing an entry of a state


@dataclass(frozen=True, eq=False)
class Lists:
    """Tiles in lists of several rows of tiles.

    Attributes:
        begin: int32 [lists, rows + 1], where a row's entries begin.
        entries: int32, with one more at the end.
    """

    begin: np.ndarray
    entries: np.ndarray


@dataclass(frozen=True, eq=False)
class Sums:
    """A 0/1 matrix [targets, sources] for each of several lists, as blocks that are not zero.

    Attributes:
        tiles: of one head's sources, without the sums of `SUPER` of them.
        heads: of sources, one after the other.
        supers: each head's sources have the sums of `SUPER` tiles after them.
        begin: int32 [lists, target blocks + 1], where a target block's entries begin.
        columns: int32, the first source of every block.
        weights: uint8 [blocks, TARGETS, CHUNK].
    """

    tiles: int
    heads: int
    supers: bool
    begin: np.ndarray
    columns: np.ndarray
    weights: np.ndarray

    @property
    def padded(self) -> int:
        """A head's sources without their sums, in whole chunks."""
        return -(-self.tiles // CHUNK) * CHUNK

    @property
    def width(self) -> int:
        """A head's sources with everything."""
        return self.padded + (-(-self.padded // SUPER // CHUNK) * CHUNK if self.supers else 0)


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a call's pairs are summed.

    Attributes:
        block: rows and keys of a tile.
        rows, keys: tiles of them.
        apart: heads differ, so that each has states of rows of its own; else the query heads that share keys share them.
        row_list, key_list: int32 [B, H] and [B, Hkv], the list of a query head and of a key head.
        partial: for every row tile of a list its partial tiles of keys.
        partial_keys: for every key tile of a list its partial tiles of rows, `g * rows + tile` for query head g of those that share the keys.
        sum_list: int32 [B, H or Hkv], the list of states of rows in `reads`.
        reads: of the states of key tiles that row tiles read.  feeds: its transpose, for lists of key heads.
        live_rows: uint8 [lists, n_q], 0 for rows that read no state, whatever their tile reads; None if there is none.
        live_keys: the same for keys that are in no state, [key lists, n_k].
    """

    block: int
    rows: int
    keys: int
    apart: bool
    row_list: np.ndarray
    key_list: np.ndarray
    partial: Lists
    partial_keys: Lists
    sum_list: np.ndarray
    reads: Sums
    feeds: Sums
    live_rows: np.ndarray | None
    live_keys: np.ndarray | None

    def work(self, features: int, value_dim: int) -> float:
        """What depends on the tiles' size, in products of two numbers, for the heads of a call."""
        state, pairs, lists = features * value_dim, self.key_list.size, np.bincount(self.row_list.ravel(), minlength=len(self.partial.begin))
        partial = np.dot(lists, self.partial.begin[:, -1] - self.partial.begin[:, 0]) * self.block**2 * (features + value_dim)
        blocks = np.dot(np.bincount(self.sum_list.ravel(), minlength=len(self.reads.begin)), self.reads.begin[:, -1] - self.reads.begin[:, 0])
        return partial + blocks * TARGETS * CHUNK * state + TRAFFIC * state * (2 * pairs * self.keys + 2 * self.sum_list.size * self.rows)


def best_blocks(rest: Pattern, bound: Bound, kv_heads: int, features: int, value_dim: int) -> Blocks:
    """The sums of R, in tiles of the size that is least work."""
    bound = bound.numpy()
    found = [blocks_of(layout(rest, bound, (tile, tile)), kv_heads) for tile in TILES if tile == TILES[0] or tile < max(bound.n_q, bound.n_k)]
    return min(found, key=lambda blocks: blocks.work(features, value_dim))


def blocks_of(tiles: Layout, kv_heads: int) -> Blocks:
    """The sums for an exact layout of R, whose tiles are square."""
    group_of = np.zeros((tiles.batch, tiles.heads), np.int32)
    for i, group in enumerate(tiles.groups):
        group_of[np.ix_(group.batch, group.heads)] = i
    apart = bool((group_of != group_of[:, :1]).any())
    # States of keys are shared by heads, so that all of these must leave out the same keys.
    plans = [TailPlan.of_group(group, factors=not apart) for group in tiles.groups]
    grid, share = plans[0].grid, tiles.heads // kv_heads
    # Key heads are alike where all of their query heads are.
    combined, key_list = np.unique(group_of.reshape(-1, share), axis=0, return_inverse=True)
    key_list = key_list.reshape(tiles.batch, kv_heads).astype(np.int32)
    by_key = [[plans[i] for i in row] for row in combined]
    sources = [row if apart else row[:1] for row in by_key]
    live_rows = live_keys = None
    if any(p.live_rows is not None for p in plans):
        live_rows = np.stack([_live(p.live_rows, grid.row) for p in plans])
        live_keys = np.stack([_live(row[0].live_keys, grid.column) for row in by_key])
    return Blocks(
        tiles.tile[0], grid.row.tiles, grid.column.tiles, apart, group_of, key_list,
        partial=_lists([(p.partial // grid.width, p.partial % grid.width) for p in plans], grid.row.tiles),
        partial_keys=_lists([_transposed(row) for row in by_key], grid.column.tiles),
        sum_list=group_of if apart else group_of[:, ::share],
        reads=_sums([[p.runs] for p in plans], grid.row.tiles, grid.column.tiles, False),
        feeds=_sums([[p.runs for p in row] for row in sources], grid.column.tiles, grid.row.tiles, True),
        live_rows=live_rows, live_keys=live_keys,
    )  # fmt: skip


def _live(live: np.ndarray | None, axis) -> np.ndarray:
    return np.ones(axis.count, np.uint8) if live is None else live.reshape(-1)[: axis.count].astype(np.uint8)


def _transposed(plans: list[TailPlan]) -> tuple[np.ndarray, np.ndarray]:
    """Key tiles and what they are read by, sorted by key tile."""
    width, rows = plans[0].grid.width, plans[0].grid.row.tiles
    key = np.concatenate([p.partial % width for p in plans])
    row = np.concatenate([g * rows + p.partial // width for g, p in enumerate(plans)])
    order = np.argsort(key, kind="stable")
    return key[order], row[order]


def _lists(parts: list[tuple[np.ndarray, np.ndarray]], rows: int) -> Lists:
    """Lists of `(row, entry)` sorted by row."""
    ends = np.cumsum([0, *(len(row) for row, _ in parts)])
    begin = np.stack([end + np.searchsorted(row, np.arange(rows + 1)) for end, (row, _) in zip(ends, parts)])
    return Lists(begin.astype(np.int32), np.concatenate([*(entry for _, entry in parts), [0]]).astype(np.int32))


def _sums(lists: list[list], targets: int, tiles: int, transposed: bool) -> Sums:
    """The matrices of lists of runs `(row, start, stop)`, one for each head of sources.  Sums of tiles are used if that leaves fewer blocks."""
    found = [_blocks(lists, targets, tiles, transposed, supers) for supers in (False, True)]
    supers = sum(len(columns) for columns, _, _ in found[1]) < sum(len(columns) for columns, _, _ in found[0])
    columns, weights, counts = zip(*found[supers])
    ends = np.cumsum([0, *map(len, columns)])
    begin = np.stack([end + np.concatenate([[0], np.cumsum(count)]) for end, count in zip(ends, counts)])
    return Sums(tiles, len(lists[0]), supers, begin.astype(np.int32), np.concatenate([*columns, [0]]).astype(np.int32), np.concatenate(weights))


def _blocks(lists: list[list], targets: int, tiles: int, transposed: bool, supers: bool) -> list[tuple]:
    """For every list its blocks that are not zero: first columns, weights, and how many each target block has."""
    shape = Sums(tiles, 1, supers, *[np.empty(0)] * 3)
    out = []
    for heads in lists:
        columns, weights, counts = [], [np.zeros((0, TARGETS, CHUNK), np.uint8)], []
        for first in range(0, targets, TARGETS):
            count = 0
            for g, runs in enumerate(heads):
                block = np.zeros((TARGETS, shape.width), np.uint8)
                part = _columns(runs, first, first + TARGETS, tiles) if transposed else _rows(runs, first, first + TARGETS, tiles)
                block[: len(part), :tiles] = part
                if supers:
                    whole = block[:, : shape.padded].reshape(TARGETS, -1, SUPER).all(2)
                    block[:, : shape.padded] &= ~np.repeat(whole, SUPER, 1).view(np.uint8) & 1
                    block[:, shape.padded : shape.padded + whole.shape[1]] = whole
                chunks = block.reshape(TARGETS, -1, CHUNK).swapaxes(0, 1)
                some = np.flatnonzero(chunks.any((1, 2)))
                columns.append(g * shape.width + some * CHUNK)
                weights.append(chunks[some])
                count += len(some)
            counts.append(count)
        out.append((np.concatenate(columns), np.concatenate(weights), counts))
    return out


def _rows(runs, first: int, stop: int, tiles: int) -> np.ndarray:
    """Rows first .. stop - 1 of the matrix of runs."""
    row, begin, end = runs
    s = slice(*np.searchsorted(row, (first, stop)))
    edges = np.zeros((stop - first, tiles + 1), np.int8)
    np.add.at(edges, (row[s] - first, begin[s]), 1)
    np.add.at(edges, (row[s] - first, end[s]), -1)
    return np.cumsum(edges, 1, dtype=np.int8)[:, :-1].view(np.uint8)


def _columns(runs, first: int, stop: int, rows: int) -> np.ndarray:
    """Columns first .. stop - 1 of the matrix of runs, transposed."""
    row, begin, end = runs
    begin, end = np.clip(begin, first, stop) - first, np.clip(end, first, stop) - first
    some = begin < end
    edges = np.zeros((rows, stop - first + 1), np.int8)
    np.add.at(edges, (row[some], begin[some]), 1)
    np.add.at(edges, (row[some], end[some]), -1)
    return np.cumsum(edges, 1, dtype=np.int8)[:, :-1].view(np.uint8).T


__all__ = ["CHUNK", "SUPER", "TARGETS", "Blocks", "Lists", "Sums", "best_blocks", "blocks_of"]
