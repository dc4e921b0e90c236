"""Tiles that a run chooses among those between its bounds.

Bounds say nothing about holes.  Three kinds of comparison leave holes that every tile of rows shares, so that kernels need
no list a row tile: conditions on the column alone (`k // 16 % 8 == 7`, `cols([..])`: one list of tiles for all rows),
residues of a period of whole tiles (`dilate(4096)`: arithmetic), and conditions on the row alone (one entry a row tile).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.analysis.evaluate import evaluate
from patternc.analysis.grid import Axis, Grid
from patternc.analysis.project import R0, R1, NeedsTable, Projector, Symbols
from patternc.analysis.specialise import specialise
from patternc.analysis.tiles import always_met
from patternc.expr.arithmetic import add, scale, terms
from patternc.expr.bounds import INF
from patternc.expr.index import Index
from patternc.expr.node import postorder
from patternc.expr.pattern import Pattern, all_of, between
from patternc.passes import Conjunct, variables

TILE = 64  # rows and columns of a tile as kernels like them: residue classes that meet all such tiles choose nothing
WHOLE = 128  # columns of the largest tile: a period of whole tiles is a multiple of it
NOMINAL = Grid.of(TILE, TILE, TILE, TILE)
HOLLOW = ("mod", "read", "member", "inside")


@dataclass(frozen=True)
class Listed:
    """Tiles that hold a column where `condition`, which reads no row and no arg, holds; full ones hold no other."""

    condition: Pattern


@dataclass(frozen=True)
class Stepped:
    """Tiles that hold a column congruent to one of `low .. high` modulo `period`; none of them is full."""

    low: Index
    high: Index
    period: int


@dataclass(frozen=True)
class Choice:
    """A conjunct taken apart.

    Attributes:
        rest: comparisons that bounds say all about.
        rows: a condition on the row alone, or None.
        columns: which columns between the bounds, or None for all.
    """

    rest: Conjunct
    rows: Pattern | None
    columns: Listed | Stepped | None


def choose(conjunct: Conjunct, column: str) -> Choice:
    """Take a conjunct apart.  Raises NeedsTable where nothing here serves."""
    row = "q" if column == "k" else "k"
    rest: Conjunct = {}
    alone: dict[str, list[Pattern]] = {row: [], column: []}
    steps: list[Stepped] = []
    for core, (low, high) in conjunct.items():
        names = variables(core) & {"q", "k"}
        if not _hollow(core, (low, high), column, row) or always_met(core, NOMINAL):
            rest[core] = low, high
        elif len(names) == 1 and _static(core):
            alone[next(iter(names))].append(between(core, None if low == -INF else int(low), None if high == INF else int(high)))
        else:
            steps.append(_step(core, low, high, column, row))
    if len(steps) + bool(alone[column]) > 1:
        raise NeedsTable
    columns = steps[0] if steps else Listed(all_of(*alone[column])) if alone[column] else None
    return Choice(rest, all_of(*alone[row]) if alone[row] else None, columns)


def _static(core: Index) -> bool:
    return variables(core) <= {"q", "k", "h", "n_q", "n_k"} and not any(x.op == "arg" for x in postorder(core))


def _hollow(core: Index, bounds, column: str, row: str) -> bool:
    """Whether bounds would say less than the comparison does."""
    if column not in variables(core):
        return row in variables(core) and _static(core) and any(x.op in HOLLOW for x in postorder(core))
    try:
        return not Projector(column, Symbols({row: (R0, R1)})).project({core: bounds}).tight
    except NeedsTable:
        return True


def _step(core: Index, low, high, column: str, row: str) -> Stepped:
    """`(column + rest) % period in low .. high`, or `(rest - column) % period`, with the columns for some row of a tile."""
    if core.op != "mod" or core.args[1].op != "const":
        raise NeedsTable
    inner, period = core.args[0], core.args[1].args[0]
    low, high = max(low, 0), min(high, period - 1)
    constant, parts = terms(inner)
    mine = [(t, w) for t, w in parts.items() if column in variables(t)]
    if period % WHOLE or high - low >= TILE or len(mine) != 1 or mine[0][0].op != "var" or abs(mine[0][1]) != 1:
        raise NeedsTable
    others = {t: w for t, w in parts.items() if t is not mine[0][0]}
    # A row part that moves faster than the rows would meet nearly every tile.
    if any(abs(w) != 1 or t.op not in ("var", "div", "arg") for t, w in others.items()) or sum(row in variables(t) for t in others) > 1:
        raise NeedsTable
    rest = add(inner, scale(mine[0][0], -mine[0][1]))
    a, b = Projector(column, Symbols({row: (R0, R1)})).span(rest)
    low, high = (low - b, high - a) if mine[0][1] == 1 else (a - high, b - low)
    return Stepped(low, high, period)


# Numbers at one length


def kinds(condition: Pattern, axis: Axis, heads: int, numbers: dict[str, int]) -> np.ndarray:
    """int8 [heads or 1, tiles]: 0 where no position of the tile meets the condition, 2 where all that exist do, else 1."""
    names = variables(condition)
    positions = {axis.name: np.arange(axis.first, axis.last + 1)[None], "h": np.arange(heads)[:, None]}
    met = np.broadcast_to(evaluate(specialise(condition, numbers), positions), (heads if "h" in names else 1, axis.count))
    padding = axis.tiles * axis.tile - axis.count
    some, every = (np.pad(met, ((0, 0), (0, padding)), constant_values=v).reshape(len(met), axis.tiles, axis.tile) for v in (False, True))
    return (some.any(2) * 1 + every.all(2)).astype(np.int8)


SORTS = ("live", "full", "ragged")  # tiles that hold a column of the list, hold nothing else, hold others too


def tile_lists(condition: Pattern, axis: Axis, heads: int, numbers: dict[str, int]) -> np.ndarray:
    """int32 [heads or 1, 6, tiles + 1]: for each of `SORTS` how many such tiles lie before a tile, then for each the tiles."""
    kind = kinds(condition, axis, heads, numbers)
    if axis.count % axis.tile:  # kernels mask a tile that is cut off
        kind[:, -1] = np.minimum(kind[:, -1], 1)
    out = np.zeros((len(kind), 6, axis.tiles + 1), np.int32)
    for i, chosen in enumerate((kind > 0, kind == 2, kind == 1)):
        out[:, i, 1:] = chosen.cumsum(1)
        for head, row in enumerate(chosen):
            tiles = np.flatnonzero(row)
            out[head, 3 + i, : len(tiles)] = tiles
    return out


def step_rank(x, low, high, axis: Axis, period: int):
    """How many tiles before tile `x` a `Stepped` run with these bounds chooses, counted from a period before the first column."""
    if period % axis.tile:
        return x
    stride = period // axis.tile
    first = (low - axis.first) // axis.tile
    wide = np.minimum((high - axis.first) // axis.tile - first + 1, stride)
    past = x - first % stride + stride
    return past // stride * wide + np.minimum(past % stride, wide)


__all__ = ["SORTS", "Choice", "Listed", "Stepped", "choose", "kinds", "step_rank", "tile_lists"]
