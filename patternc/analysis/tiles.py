"""Which tiles of a grid may hold an allowed pair: contraction per row tile, column lists, and bisection for the holes.

`live` and the tiles that are not full are both outer sets, so neither an empty nor a full verdict is ever wrong.
"""

from __future__ import annotations

import functools

import numpy as np

from patternc.analysis.contract import contract
from patternc.analysis.evaluate import evaluate
from patternc.analysis.grid import Grid
from patternc.analysis.runs import MOST_KEYS, NOTHING, Runs, from_members, intersect, ragged_arange, subtract, total_length, union
from patternc.analysis.split import jumps, split
from patternc.expr.arithmetic import terms
from patternc.expr.index import Index
from patternc.expr.node import postorder
from patternc.expr.pattern import Pattern
from patternc.forms import MOST_POSITIONS, afford
from patternc.passes import Conjunct, TooManyConjuncts, disjuncts, variables

FEW_TILES = 1 << 17
HOLLOW = ("mod", "read", "member", "inside", "abs", "mul")  # operations whose solutions on one variable may have holes


def spread(x: Index, grid: Grid) -> int:
    """How many consecutive values an expression takes on every whole tile; 1 if unknown."""
    if x.op == "var":
        return grid.axis(x.args[0]).tile if x.args[0] in ("q", "k") else 1
    if x.op == "sum":
        parts = terms(x)[1]
        if all(abs(w) == 1 for w in parts.values()) and _independent(list(parts)):
            return sum(spread(t, grid) - 1 for t in parts) + 1
    if x.op == "div" and x.args[1].op == "const":
        return max(spread(x.args[0], grid) // x.args[1].args[0], 1)
    return 1


def _independent(parts: list[Index]) -> bool:
    names = [variables(p) for p in parts]
    return sum(len(n) for n in names) == len(frozenset().union(*names))


def always_met(core: Index, grid: Grid) -> bool:
    """A residue class that meets every whole tile cannot rule one out (ragged tiles are left to the tile classes)."""
    return core.op == "mod" and core.args[1].op == "const" and core.args[1].args[0] <= spread(core.args[0], grid)


def live_runs(p: Pattern, grid: Grid, within: Runs | None = None, known: dict | None = None) -> Runs:
    """Runs of tiles outside which a lowered pattern allows nothing, inside `within`; `known` holds parts that were asked before."""
    known = {} if known is None else known
    if p not in known:
        try:
            known[p] = _any_of(disjuncts(p), grid, within)
        except TooManyConjuncts:  # combine the runs of the parts instead: sound, a little loose
            parts = [live_runs(part, grid, within, known) for part in p.args]
            known[p] = union(parts) if p.op == "or" else functools.reduce(intersect, parts)
    return known[p]


def _any_of(conjuncts: list[Conjunct], grid: Grid, within: Runs | None) -> Runs:
    """The union over conjuncts; inside `within` each is only asked for what those before it left, and simple ones come first."""
    if within is None:
        return union([conjunct_runs(c, grid) for c in conjuncts])
    found = []
    for c in sorted(conjuncts, key=lambda c: len(jumps(c))):
        if len(within[0]):
            found.append(conjunct_runs(c, grid, within))
            within = subtract(within, union(found[-1:]), grid.total)
    return union(found)


def conjunct_runs(conjunct: Conjunct, grid: Grid, within: Runs | None = None) -> Runs:
    """The same for one conjunct: one run per row tile by contraction, then what has holes."""
    conjunct = {core: bounds for core, bounds in conjunct.items() if not always_met(core, grid)}
    scope = grid.everything if within is None else within
    alone = {name: {} for name in ("q", "k")}
    joint: Conjunct = {}
    for core, bounds in conjunct.items():
        names = variables(core)
        hollow = any(n.op in HOLLOW for n in postorder(core))
        side = alone[next(iter(names))] if len(names) == 1 and hollow else joint
        side[core] = bounds
    # Comparisons on one variable are narrowed by intervals too: that is free and bounds what is looked at below.
    narrowed = {**joint, **alone["q"], **alone["k"]}
    runs = _one_run_per_row(narrowed, grid) if narrowed else scope
    if within is not None and narrowed:
        runs = intersect(runs, within)
    for axis in (grid.row, grid.column):
        if alone[axis.name] and len(runs[0]):
            allowed = _tiles_of_one_variable(alone[axis.name], axis)
            runs = _keep_rows(runs, allowed, grid) if axis is grid.row else _keep_columns(runs, allowed, grid)
    # Where few tiles are left, those with an uncertain verdict are cheaper looked at (tile classes) than cut.
    cuts, done = jumps(joint) if within is None or total_length(within) > FEW_TILES else [], True
    if cuts and len(runs[0]):
        runs, done = split(narrowed, runs, grid, cuts)
    if any(_has_holes(core, grid, cuts if done else []) for core in joint):
        runs = _bisect(narrowed, runs, grid)
    return runs


def _one_run_per_row(conjunct: Conjunct, grid: Grid) -> Runs:
    rows = np.arange(grid.row.tiles, dtype=np.int64)
    column = grid.column
    domain, alive = contract(conjunct, {grid.row.name: grid.row.span(rows), column.name: (np.int64(column.first), np.int64(column.last))})
    narrowed = next((bounds for x, bounds in domain.items() if x.op == "var" and x.args[0] == column.name), (column.first, column.last))
    start, stop = (np.broadcast_to(x, rows.shape) for x in column.tiles_of(*narrowed))
    keep = np.broadcast_to(alive, rows.shape) & (stop > start)
    keys = rows[keep] * grid.width
    return keys + start[keep], keys + stop[keep]


def _tiles_of_one_variable(conjunct: Conjunct, axis) -> np.ndarray:
    """Tiles of one axis that hold a position where the comparisons hold, looked at position by position: exact, O(n)."""
    afford(axis.count, MOST_POSITIONS, "positions", "use a shorter length")
    positions, ok = axis.places()
    for core, (low, high) in conjunct.items():
        value = evaluate(core, {axis.name: positions})
        ok = ok & (value >= low) & (value <= high)
    return ok.any(1)


def _keep_rows(runs: Runs, allowed: np.ndarray, grid: Grid) -> Runs:
    keep = allowed[runs[0] // grid.width]
    return runs[0][keep], runs[1][keep]


def _keep_columns(runs: Runs, allowed: np.ndarray, grid: Grid) -> Runs:
    """Cut every run to the allowed column tiles; runs whose columns are all allowed stay whole."""
    start, stop = from_members(np.flatnonzero(allowed))
    if not len(start):
        return NOTHING
    row = runs[0] // grid.width
    a, b = runs[0] - row * grid.width, runs[1] - row * grid.width
    first, last = np.searchsorted(stop, a, "right"), np.searchsorted(start, b, "left")
    count = np.maximum(last - first, 0)
    piece = ragged_arange(first, count)
    of = np.repeat(np.arange(len(a)), count)
    base = (row * grid.width)[of]
    return base + np.maximum(a[of], start[piece]), base + np.minimum(b[of], stop[piece])


def _has_holes(core: Index, grid: Grid, cut: list[Index]) -> bool:
    """Whether the solutions in the column variable may be more than one run, in a box that was cut at the operations `cut`."""
    name = grid.column.name
    for x in postorder(core):
        if name not in variables(x) or any(x is y for y in cut):
            continue
        if x.op == "mod" and not (x.args[1].op == "const" and x.args[1].args[0] <= spread(x.args[0], grid)):
            return True
        if x.op in ("member", "inside", "mul") or (
            x.op == "read" and not (len(x.args) == 2 and (x.args[0].args[0].rising or x.args[0].args[0].falling))
        ):
            return True
        if x.op == "sum" and sum(name in variables(t) for t in terms(x)[1]) > 1:
            return True
        if x.op in ("min", "max", "div", "abs") and sum(name in variables(c) for c in x.children) > 1:
            return True
        if x.op == "abs":
            return True
    return False


def _bisect(conjunct: Conjunct, runs: Runs, grid: Grid, chunk: int = 1 << 19) -> Runs:
    """Halve runs and contract each half, until every box is one tile: about three boxes for every tile that is kept."""
    found: list[np.ndarray] = []
    row = runs[0] // grid.width
    todo = [(row, runs[0] - row * grid.width, runs[1] - row * grid.width)]
    while todo:
        row, start, stop = todo.pop()
        if len(row) > chunk:
            todo += [(row[s], start[s], stop[s]) for s in np.array_split(np.arange(len(row)), -(-len(row) // chunk))]
            continue
        domain, alive = contract(conjunct, grid.box(row, start, stop))
        narrowed = next((bounds for x, bounds in domain.items() if x.op == "var" and x.args[0] == grid.column.name), None)
        if narrowed is not None:
            a, b = grid.column.tiles_of(*narrowed)
            start, stop = np.maximum(start, a), np.minimum(stop, b)
        keep = np.broadcast_to(alive, row.shape) & (stop > start)
        row, start, stop = row[keep], start[keep], stop[keep]
        single = stop - start == 1
        found.append(row[single] * grid.width + start[single])
        afford(sum(map(len, found)), MOST_KEYS, "partial tiles")
        row, start, stop = row[~single], start[~single], stop[~single]
        if len(row):
            middle = (start + stop) // 2
            todo.append((np.concatenate([row, row]), np.concatenate([start, middle]), np.concatenate([middle, stop])))
    return from_members(np.sort(np.concatenate(found))) if found else NOTHING
