"""What the kernels visit at one length: the plan's runs as tiles, made disjoint and chosen among the way the kernels do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patternc.analysis.evaluate import evaluate_all
from patternc.analysis.grid import Axis, Grid
from patternc.analysis.specialise import specialise
from patternc.args import Bound
from patternc.choices import SORTS, Listed, Stepped, kinds, step_rank, tile_lists
from patternc.expr.index import Index
from patternc.expr.pattern import Pattern
from patternc.layout import layout
from patternc.passes import lower, variables
from patternc.plan import AxisPlan


@dataclass(frozen=True, eq=False)
class Segment:
    """Tiles `start .. stop - 1` of every row tile, int64 [B', H', row tiles]; `rank(x)`, where given, counts the chosen ones before x."""

    start: np.ndarray
    stop: np.ndarray
    full: bool
    rank: Callable | None = None

    def before(self, x: np.ndarray) -> np.ndarray:
        return x if self.rank is None else self.rank(x)

    @property
    def count(self) -> np.ndarray:
        return np.where(self.stop > self.start, self.before(self.stop) - self.before(self.start), 0)

    def holds(self, tile) -> np.ndarray:
        """Whether a tile, or one for every row tile, is visited here."""
        tile = np.broadcast_to(tile, self.start.shape)
        return (self.start <= tile) & (tile < self.stop) & (self.before(tile + 1) > self.before(tile))


@dataclass(frozen=True, eq=False)
class Visits:
    """Tiles that the kernels visit in one direction, summed over heads and batch rows.

    Attributes:
        pairs: positions covered by visited tiles, ragged edges counted as they are.
        full_tiles, partial_tiles: tiles visited without and with a mask.
        segments: where they are, in batch rows and heads that differ; None for lists.
    """

    pairs: int
    full_tiles: int
    partial_tiles: int
    segments: tuple[Segment, ...] | None


def visits(p: Pattern, axis: AxisPlan, bound: Bound, tile: tuple[int, int], transposed: bool = False) -> Visits:
    """Count what a plan's kernels visit.

    Args:
        p: the pattern as the user wrote it.
        axis: the direction of its plan.
        bound: sizes and args.
        tile: rows and columns of a tile of that direction (q x k; k x q when transposed).
    """
    if axis.kind == "list":
        exact = layout(p, bound, tile if not transposed else tile[::-1], transposed=transposed)
        return Visits(exact.visited_pairs, exact.whole_tiles, exact.full_tiles + exact.partial_tiles - exact.whole_tiles, None)
    bound = bound.numpy()
    segments = _table_segments(p, bound, tile, transposed) if axis.kind == "table" else formula_segments(axis, bound, tile, transposed)
    pairs = full_tiles = partial_tiles = 0
    grid = _grid(bound, tile, 0, transposed)
    row, column = grid.row, grid.column
    heights = np.minimum((np.arange(row.tiles) + 1) * row.tile, row.count) - np.arange(row.tiles) * row.tile
    missing = column.tiles * column.tile - column.count
    for segment in segments:
        batch, heads, _ = segment.start.shape
        times = (bound.batch // batch) * (bound.heads // heads)
        count = segment.count
        widths = count * column.tile - segment.holds(column.tiles - 1) * missing
        pairs += int((heights * widths).sum()) * times
        full_tiles += int(count.sum()) * times * segment.full
        partial_tiles += int(count.sum()) * times * (not segment.full)
    return Visits(pairs, full_tiles, partial_tiles, tuple(segments))


def choice_tables(axis: AxisPlan, bound: Bound, rows: int, cols: int, transposed: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`(flags, shared)` as kernels read them (`codegen.launch.ChoiceTables`), for an int `q_start`."""
    grid = _grid(bound, (rows, cols), bound.q_start, transposed)
    numbers = {"n_q": bound.n_q, "n_k": bound.n_k}
    flags = [kinds(run.rows, grid.row, bound.heads, numbers) for run in axis.flagged]
    if flags:
        heads = max(len(f) for f in flags)
        flags = np.stack([np.broadcast_to(f, (heads, f.shape[1])) for f in flags], 1).astype(np.int32)
    listed = axis.filler is not None and isinstance(axis.filler.columns, Listed)
    shared = tile_lists(axis.filler.columns.condition, grid.column, bound.heads, numbers) if listed else None
    return flags if len(flags) else None, shared


def _grid(bound: Bound, tile: tuple[int, int], start: int, transposed: bool) -> Grid:
    bm, bn = tile[::-1] if transposed else tile
    return Grid.of(bound.n_q, bound.n_k, bm, bn, q_start=start, transposed=transposed)


def _table_segments(p: Pattern, bound: Bound, tile: tuple[int, int], transposed: bool) -> list[Segment]:
    from patternc.tables import run_table, runtime_conjuncts

    runs = run_table(runtime_conjuncts(lower(p)), "q" if transposed else "k", bound.torch(), tile[0]).numpy().astype(np.int64)
    starts = np.asarray(bound.q_start).reshape(-1)
    batch = max(len(runs), len(starts))
    runs = np.broadcast_to(runs, (batch, *runs.shape[1:]))
    tiles = np.stack([tiles_of_runs(runs[b], _grid(bound, tile, int(starts[b % len(starts)]), transposed).column) for b in range(batch)])
    return _plain_segments(tiles)


def _plain_segments(tiles: np.ndarray, rank=None) -> list[Segment]:
    """The partial and full tiles of runs [.., runs, 4] of tile bounds."""
    out = []
    for start, stop, full_start, full_stop in np.moveaxis(tiles, (-2, -1), (0, 1)):
        out += [Segment(start, full_start, False, rank), Segment(full_stop, stop, False, rank), Segment(full_start, full_stop, True, rank)]
    return out


def formula_segments(axis: AxisPlan, bound: Bound, tile: tuple[int, int], transposed: bool) -> list[Segment]:
    """The formulas' values as tiles, for the batch rows and heads that differ; args that are tensors are read only if they are scalars."""
    formulas = [x for run in axis.all_runs for x in (run.lo, run.hi, run.inner_lo, run.inner_hi)]
    columns = axis.filler.columns if axis.filler is not None else None
    stepped = isinstance(columns, Stepped)
    formulas += [columns.low, columns.high] if stepped else []
    conditions = [run.rows for run in axis.flagged] + ([columns.condition] if isinstance(columns, Listed) else [])
    names = frozenset().union(*map(variables, [*formulas, *conditions]))
    scalars = {n: v for n, v in bound.values.items() if bound.uses[n].kind == "scalar"}
    batched = not isinstance(bound.q_start, int) or "b" in names or any(not isinstance(v, int) for v in scalars.values())
    batch, heads = (bound.batch if batched else 1), (bound.heads if "h" in names else 1)
    parts = [_row_segments(axis, formulas, bound, scalars, b, heads, tile, transposed) for b in range(batch)]
    if batch == 1 or not parts[0]:
        return parts[0]
    return [_stack(same) for same in zip(*parts)]


def _stack(rows: tuple[Segment, ...]) -> Segment:
    """The same segment of every batch row."""

    def rank(x):
        return np.concatenate([s.before(x[b : b + 1]) for b, s in enumerate(rows)])

    return Segment(np.concatenate([s.start for s in rows]), np.concatenate([s.stop for s in rows]), rows[0].full, rank)


def _row_segments(axis: AxisPlan, formulas: list[Index], bound: Bound, scalars: dict, b: int, heads: int, tile, transposed: bool) -> list[Segment]:
    """One batch row: segments with arrays [1, heads, row tiles]."""
    start = _of_row(bound.q_start, b)
    grid = _grid(bound, tile, start, transposed)
    args = {n: _of_row(v, b) for n, v in scalars.items()}
    numbers = {"n_q": bound.n_q, "n_k": bound.n_k, "b": b, "q_start": start}
    ends = dict(zip(("r0", "r1"), grid.row.span(np.arange(grid.row.tiles))))
    formulas = [specialise(x, args) for x in formulas] if args else formulas
    values = np.zeros((1, heads, grid.row.tiles, len(formulas)), np.int64)
    for h in range(heads):
        for i, found in enumerate(evaluate_all(formulas, numbers | ends | {"h": h})):
            values[0, h, :, i] = found
    numbers |= args
    runs = values[..., : 4 * len(axis.all_runs)].reshape(1, heads, grid.row.tiles, len(axis.all_runs), 4)
    for i, run in enumerate(axis.all_runs):
        if run.rows is not None:
            kind = kinds(run.rows, grid.row, heads, numbers)
            runs[..., i, 1] = np.where(kind > 0, runs[..., i, 1], runs[..., i, 0] - 1)
            runs[..., i, 3] = np.where(kind > 1, runs[..., i, 3], runs[..., i, 2] - 1)
    tiles = tiles_of_runs(runs[..., : len(axis.runs), :], grid.column)
    segments = _plain_segments(tiles)
    if axis.filler is None:
        return segments
    pieces = _pieces(tiles, tiles_of_runs(runs[..., -1:, :], grid.column)[..., 0, :])
    columns = axis.filler.columns
    if columns is None:
        return segments + _plain_segments(pieces)
    if isinstance(columns, Stepped):
        low, high = values[..., -2], values[..., -1]

        def rank(x):
            return step_rank(x, low, high, grid.column, columns.period)

        return segments + [Segment(start, stop, False, rank) for start, stop, *_ in np.moveaxis(pieces, (-2, -1), (0, 1))]
    return segments + _listed_segments(pieces, columns, grid.column, heads, numbers)


def _listed_segments(pieces: np.ndarray, columns: Listed, column: Axis, heads: int, numbers: dict) -> list[Segment]:
    shared = tile_lists(columns.condition, column, heads, numbers)
    head = np.arange(heads)[None, :, None] % len(shared)
    rank = {sort: (lambda x, i=i: shared[head, i, x]) for i, sort in enumerate(SORTS)}
    out = []
    for start, stop, full_start, full_stop in np.moveaxis(pieces, (-2, -1), (0, 1)):
        out += [Segment(start, full_start, False, rank["live"]), Segment(full_start, full_stop, False, rank["ragged"])]
        out += [Segment(full_stop, stop, False, rank["live"]), Segment(full_start, full_stop, True, rank["full"])]
    return out


def _pieces(tiles: np.ndarray, filler: np.ndarray) -> np.ndarray:
    """The parts of the filler's tile bounds [.., 4] between those of disjoint runs [.., runs, 4], before the first, and after the last."""
    reached = np.concatenate([np.zeros_like(filler[..., None, 0]), tiles[..., 1]], -1)
    following = np.concatenate([tiles[..., 0], filler[..., None, 1]], -1)
    start = np.maximum(filler[..., None, 0], reached)
    stop = np.maximum(np.minimum(filler[..., None, 1], following), start)
    full_start = np.clip(filler[..., None, 2], start, stop)
    return np.stack([start, stop, full_start, np.maximum(np.clip(filler[..., None, 3], start, stop), full_start)], -1)


def _of_row(value, b: int) -> int:
    return value if isinstance(value, int) else int(value[0 if len(value) == 1 else b])


def tiles_of_runs(runs: np.ndarray, column: Axis) -> np.ndarray:
    """Position bounds [.., runs, 4] to disjoint tile bounds (start, stop, full start, full stop), by the kernels' own rules."""
    if runs.shape[-2] == 0:
        return runs
    low, high, inner_low, inner_high = np.moveaxis(runs, -1, 0)
    low, high = np.maximum(low, column.first), np.minimum(high, column.last)
    start = np.where(low <= high, (low - column.first) // column.tile, 0)
    stop = np.where(low <= high, (high - column.first) // column.tile + 1, 0)
    full_start = -(-(np.maximum(inner_low, column.first) - column.first) // column.tile)
    full_stop = (np.minimum(inner_high, column.last) + 1 - column.first) // column.tile
    if start.shape[-1] > 1:
        order = np.argsort(start, axis=-1, kind="stable")
        start, stop, full_start, full_stop = (np.take_along_axis(x, order, -1) for x in (start, stop, full_start, full_stop))
    reached = 0
    for j in range(start.shape[-1]):
        start[..., j] = np.maximum(start[..., j], reached)
        stop[..., j] = np.maximum(stop[..., j], start[..., j])
        reached = stop[..., j]
    full_start = np.clip(full_start, start, stop)
    return np.stack([start, stop, full_start, np.maximum(np.clip(full_stop, start, stop), full_start)], -1)
