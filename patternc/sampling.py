"""About what lists of tiles visit, from a few rows of tiles: orders are compared before any list is made."""

from __future__ import annotations

import numpy as np

from patternc.analysis.grid import Axis, Grid, Sample
from patternc.analysis.runs import Runs, intersect, members, subtract
from patternc.analysis.tiles import live_runs
from patternc.args import Bound
from patternc.cells import specialisations
from patternc.expr.bounds import bounds
from patternc.expr.pattern import Pattern, negate
from patternc.layout import look
from patternc.passes import decide, lower, negation_normal

LOOKED = 32  # partial tiles whose pairs are looked at


def sampled(p: Pattern, bound: Bound, tile: tuple[int, int], chosen: np.ndarray) -> np.ndarray:
    """Full and partial tiles of some rows of q tiles, summed over heads and batch rows.

    Args:
        chosen: int [rows], numbers of q tiles.
    Returns:
        float64 [rows, 2].  Of the tiles that intervals leave undecided a few are looked at, and the others are taken to be like them.
    """
    out = np.zeros((len(chosen), 2))
    for start, heads, batch, own in specialisations(lower(p), bound.numpy()):
        grid = Grid(Sample("q", start, bound.n_q, tile[0], tuple(chosen.tolist())), Axis("k", 0, bound.n_k, tile[1]))
        full, partial = map(members, _decided(own, grid))
        kinds = np.bincount(look(own, grid, partial[:: -(-len(partial) // LOOKED)])[0], minlength=3) if len(partial) else np.ones(3)
        full, partial = (np.bincount(keys // grid.width, minlength=len(chosen)) for keys in (full, partial))
        found = np.stack([full + partial * (kinds[2] / kinds.sum()), partial * (kinds[1] / kinds.sum())], 1)
        out += found * (len(heads) * len(batch))
    return out


def _decided(p: Pattern, grid: Grid) -> tuple[Runs, Runs]:
    """Tiles that are full by intervals, and those that may hold a pair and are not."""
    env = grid.ranges()
    live = live_runs(p, grid)
    rest = live_runs(decide(negation_normal(negate(p)), lambda x: bounds(x, env)), grid, live)
    return subtract(live, rest, grid.total), intersect(live, rest)
