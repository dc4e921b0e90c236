"""What the kernels visit at one length: the plan's runs as tiles, made disjoint the way the kernels do it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.analysis.evaluate import evaluate
from patternc.analysis.grid import Grid
from patternc.analysis.specialise import specialise
from patternc.args import Bound
from patternc.expr.pattern import Pattern
from patternc.layout import layout
from patternc.passes import lower, variables
from patternc.plan import AxisPlan


@dataclass(frozen=True, eq=False)
class Visits:
    """Tiles that the kernels visit in one direction, summed over heads and batch rows.

    Attributes:
        pairs: positions covered by visited tiles, ragged edges counted as they are.
        full_tiles, partial_tiles: tiles visited without and with a mask.
        tiles: int64 [B', H', row tiles, runs, 4]: start, stop, full start, full stop of every run; None for lists.
    """

    pairs: int
    full_tiles: int
    partial_tiles: int
    tiles: np.ndarray | None


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
    if axis.kind == "table":
        from patternc.tables import run_table, runtime_conjuncts

        runs = run_table(runtime_conjuncts(lower(p)), "q" if transposed else "k", bound.torch(), tile[0]).numpy().astype(np.int64)
    else:
        runs = _formula_runs(axis, bound, tile[0], transposed)
    repeat_b = bound.batch if runs.shape[0] == 1 else 1
    repeat_h = bound.heads if runs.shape[1] == 1 else 1
    pairs = full_tiles = partial_tiles = 0
    out = np.zeros_like(runs)
    starts = np.broadcast_to(np.asarray(bound.q_start), (runs.shape[0],)) if runs.shape[0] > 1 else np.asarray(bound.q_start).reshape(-1)[:1]
    for b in range(runs.shape[0]):
        grid = _grid(bound, tile, int(starts[b]), transposed)
        out[b] = tiles_of_runs(runs[b], grid)
        start, stop, full_start, full_stop = np.moveaxis(out[b], -1, 0)
        heights = np.minimum((np.arange(grid.row.tiles) + 1) * grid.row.tile, grid.row.count) - np.arange(grid.row.tiles) * grid.row.tile
        widths = np.minimum(stop * grid.column.tile, grid.column.count) - np.minimum(start * grid.column.tile, grid.column.count)
        pairs += int((heights[:, None] * widths).sum()) * repeat_b * repeat_h
        full = int((full_stop - full_start).sum())
        full_tiles += full * repeat_b * repeat_h
        partial_tiles += (int((stop - start).sum()) - full) * repeat_b * repeat_h
    return Visits(pairs, full_tiles, partial_tiles, out)


def _grid(bound: Bound, tile: tuple[int, int], start: int, transposed: bool) -> Grid:
    bm, bn = tile[::-1] if transposed else tile
    return Grid.of(bound.n_q, bound.n_k, bm, bn, q_start=start, transposed=transposed)


def _formula_runs(axis: AxisPlan, bound: Bound, rows: int, transposed: bool) -> np.ndarray:
    """The formulas' values, [B', H', row tiles, runs, 4]."""
    names = frozenset().union(*(variables(x) for run in axis.runs for x in (run.lo, run.hi, run.inner_lo, run.inner_hi)))
    scalars = {n: v for n, v in bound.values.items() if bound.uses[n].kind == "scalar"}
    batched = not isinstance(bound.q_start, int) or "b" in names or any(not isinstance(v, int) for v in scalars.values())
    batch, heads = (bound.batch if batched else 1), (bound.heads if "h" in names else 1)
    count = -(-(bound.n_k if transposed else bound.n_q) // rows)
    out = np.zeros((batch, heads, count, axis.count, 4), np.int64)
    for b in range(batch):
        start = _of_row(bound.q_start, b)
        grid = Grid.of(bound.n_q, bound.n_k, rows, rows, q_start=start, transposed=transposed)
        r0, r1 = grid.row.span(np.arange(count))
        for h in range(heads):
            numbers = {"n_q": bound.n_q, "n_k": bound.n_k, "b": b, "h": h, "q_start": start, **{n: _of_row(v, b) for n, v in scalars.items()}}
            for j, run in enumerate(axis.runs):
                for c, x in enumerate((run.lo, run.hi, run.inner_lo, run.inner_hi)):
                    out[b, h, :, j, c] = evaluate(specialise(x, numbers), {"r0": r0, "r1": r1})
    return out


def _of_row(value, b: int) -> int:
    return value if isinstance(value, int) else int(value[0 if len(value) == 1 else b])


def tiles_of_runs(runs: np.ndarray, grid: Grid) -> np.ndarray:
    """Position bounds [.., runs, 4] to disjoint tile bounds (start, stop, full start, full stop), by the kernels' own rules."""
    if runs.shape[-2] == 0:
        return runs
    column = grid.column
    low, high, inner_low, inner_high = np.moveaxis(runs, -1, 0)
    low, high = np.maximum(low, column.first), np.minimum(high, column.last)
    start = (low - column.first) // column.tile
    stop = np.where(low > high, start, (high - column.first) // column.tile + 1)
    full_start = -(-(np.maximum(inner_low, column.first) - column.first) // column.tile)
    full_stop = (np.minimum(inner_high, column.last) + 1 - column.first) // column.tile
    order = np.argsort(start, axis=-1, kind="stable")
    start, stop, full_start, full_stop = (np.take_along_axis(x, order, -1) for x in (start, stop, full_start, full_stop))
    reached = np.zeros_like(start[..., 0])
    for j in range(start.shape[-1]):
        start[..., j] = np.minimum(np.maximum(start[..., j], reached), np.maximum(stop[..., j], start[..., j]))
        stop[..., j] = np.maximum(stop[..., j], start[..., j])
        reached = np.maximum(reached, stop[..., j])
    full_start = np.clip(full_start, start, stop)
    return np.stack([start, stop, full_start, np.maximum(np.clip(full_stop, start, stop), full_start)], -1)
