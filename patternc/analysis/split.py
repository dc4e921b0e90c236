"""Cutting boxes where an operation jumps, so that contraction is exact in every piece.

`x % m` jumps where `x // m` changes and `T[s]` where `s` does.  Where few such values meet a box it is cut into one piece for
each: a row of a 2-D neighbourhood becomes one run for each line of the image, and a row of a block table one run for each entry.
"""

from __future__ import annotations

import numpy as np

from patternc.analysis.contract import contract
from patternc.analysis.grid import Grid
from patternc.analysis.runs import Runs, ragged_arange, union
from patternc.expr.index import Index
from patternc.expr.node import postorder
from patternc.passes import Conjunct, variables

MOST_PIECES = 1 << 21  # over all boxes of a conjunct
MOST_ENTRIES = 16  # of an array that a row tile reads, to be looked at one by one


def jumps(conjunct: Conjunct) -> list[Index]:
    """The operations to cut at: remainders, and reads of one axis whose entries neither rise nor fall."""
    return [x for x in postorder(*conjunct) if _is_remainder(x) or _is_jumping_read(x)]


def _is_remainder(x: Index) -> bool:
    return x.op == "mod" and x.args[1].op == "const"


def _is_jumping_read(x: Index) -> bool:
    return x.op == "read" and len(x.args) == 2 and x.args[1].op != "const" and not (x.args[0].args[0].rising or x.args[0].args[0].falling)


def split(conjunct: Conjunct, runs: Runs, grid: Grid, cuts: list[Index]) -> tuple[Runs, bool]:
    """Runs inside `runs` outside which the conjunct allows nothing, and whether every cut was made."""
    row = runs[0] // grid.width
    start, stop = runs[0] - row * grid.width, runs[1] - row * grid.width
    given: dict[Index, tuple[np.ndarray, np.ndarray]] = {}
    known: dict[Index, tuple[np.ndarray, np.ndarray]] = {}
    while True:
        domain, alive = contract(conjunct, grid.box(row, start, stop), sweeps=1, given=given, known=known)
        keep = np.flatnonzero(np.broadcast_to(alive, row.shape))
        column = next((bounds for x, bounds in domain.items() if x.op == "var" and x.args[0] == grid.column.name), None)
        if column is not None:
            a, b = (np.broadcast_to(v, row.shape) for v in grid.column.tiles_of(*column))
            start, stop = np.maximum(start, a), np.minimum(stop, b)
            keep = keep[(stop > start)[keep]]

        def kept(x, keep=keep, shape=row.shape):
            return np.broadcast_to(x, shape)[keep]

        if not known and all(grid.column.name in variables(x) or _in_vain(x, domain, grid) for x in cuts):
            # What rows alone decide stays as it is from here on.
            known = {x: domain[x] for x in _of_rows(conjunct, grid)}
            cuts = [x for x in cuts if grid.column.name in variables(x)]
        needed = {y for x in cuts for y in (x, *x.children) if y in domain}
        domain = {x: (kept(a), kept(b)) for x, (a, b) in domain.items() if x in needed}
        given, known = ({x: (kept(a), kept(b)) for x, (a, b) in kind.items()} for kind in (given, known))
        row, start, stop = row[keep], start[keep], stop[keep]
        todo = [(total, x) for x in cuts if (total := _pieces(x, domain).sum()) > len(row) and not _in_vain(x, domain, grid)]
        if not todo or min(todo, key=lambda t: t[0])[0] > MOST_PIECES:
            return union([(row * grid.width + start, row * grid.width + stop)]), not todo
        x = min(todo, key=lambda t: t[0])[1]
        of, node, low, high = _cut(x, domain)
        given, known = ({n: (a[of], b[of]) for n, (a, b) in kind.items()} for kind in (given, known))
        if node in given:
            low, high = np.maximum(low, given[node][0]), np.minimum(high, given[node][1])
        given[node] = low, high
        row, start, stop = row[of], start[of], stop[of]


def _of_rows(conjunct: Conjunct, grid: Grid) -> list[Index]:
    """The outermost nodes below the comparisons that vary with the row variable only."""
    out: list[Index] = []

    def visit(x: Index) -> None:
        if variables(x) == {grid.row.name}:
            out.append(x)
        elif x.op != "data":
            for child in x.children:
                visit(child)

    for core in conjunct:
        visit(core)
    return list(dict.fromkeys(out))


def _in_vain(x: Index, domain, grid: Grid) -> bool:
    """Whether cutting tells little: a row tile that reads an entry a row, or in which every piece would have all remainders."""
    if grid.column.name in variables(x):
        return False
    if not _is_remainder(x):
        low, high = domain[x.args[1]]
        return bool((high - low).sum() > MOST_ENTRIES * len(low))
    (low, high), m = domain[x.args[0]], x.args[1].args[0]
    return bool((low % m == 0).all() and (high % m == m - 1).all())


def _pieces(x: Index, domain) -> np.ndarray:
    """How many pieces each box is cut into at `x`."""
    if _is_remainder(x):
        low, high = domain[x.args[0]]
        return high // x.args[1].args[0] - low // x.args[1].args[0] + 1
    low, high = domain[x.args[1]]
    first, last = x.args[0].args[0].ranks_within(*domain[x])
    return np.minimum(high - low + 1, np.where(low == high, 1, last - first))


def _cut(x: Index, domain):
    """`(box of each piece, node, low, high)`: the node is between low and high in the piece."""
    if _is_remainder(x):
        node, m = x.args[0], x.args[1].args[0]
        low, high = domain[node]
        of, quotient = _enumerate(low // m, high // m + 1)
        return of, node, np.maximum(quotient * m, low[of]), np.minimum(quotient * m + m - 1, high[of])
    node, data = x.args[1], x.args[0].args[0]
    low, high = domain[node]
    first, last = data.ranks_within(*domain[x])
    by_value = (last - first < high - low + 1) & (low < high)
    of, at = _enumerate(np.where(by_value, first, low), np.where(by_value, last, high + 1))
    at = np.where(by_value[of], data.ranked[np.clip(at, 0, len(data.ranked) - 1)], at)
    inside = (at >= low[of]) & (at <= high[of])
    return of[inside], node, at[inside], at[inside]


def _enumerate(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All integers of the ranges, and the range of each."""
    count = np.maximum(stop - start, 0)
    return np.repeat(np.arange(len(count)), count), ragged_arange(start, count)
