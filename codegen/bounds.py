"""The text that finds the column tiles of one row tile: from formulas, from a table of bounds, or from lists of tiles.

Each run gives up to two segments of partial tiles and one of full tiles.  A kernel has one loop over the partial tiles of
all runs and one over the full tiles of all runs; a loop counter becomes a tile by a chain of selects over the segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from patternc.codegen.code import Code
from patternc.errors import InternalError
from patternc.expr.index import Index
from patternc.plan import AxisPlan

FIELDS = ("lo", "hi", "inner_lo", "inner_hi")
RUN = ("start", "stop", "full_start", "full_stop")
TABLE_PARAMETERS = ("bounds_ptr", "bounds_stride_b", "bounds_stride_h")
LIST_PARAMETERS = ("group_ptr", "partial_ptr", "partial_tiles_ptr", "full_ptr", "full_tiles_ptr")


@dataclass(frozen=True)
class Loop:
    """A loop over tiles: the text of its length, and the statements that make `col_tile` from the counter `i`."""

    count: str
    tile: tuple[str, ...]


@dataclass(frozen=True)
class Tiles:
    """Statements before the loops, and the loops; no loop where a plan has no such tiles.

    Attributes:
        parameters: kernel parameters that the statements read.
    """

    parameters: tuple[str, ...]
    before: tuple[str, ...]
    partial: Loop | None
    full: Loop | None


def roots(axis: AxisPlan, index: Callable[[Index], Code]) -> dict[str, Code]:
    """The formulas of a plan's runs by the names that `tiles` reads."""
    return {f"{name}_{i}": index(getattr(run, name)) for i, run in enumerate(axis.runs) for name in FIELDS}


def tiles(axis: AxisPlan, block: str) -> Tiles:
    """The text for a plan.

    Args:
        block: name of the number of columns of a tile.  The text reads `tile` (of rows), `row_tiles`, `b`, `h`, and the
            positions `first_col` and `last_col`; a formula plan also the names of `roots`.
    """
    if axis.kind == "list":
        return _lists()
    if axis.kind not in ("formula", "table"):
        raise InternalError(f"no kernel for a plan of kind `{axis.kind}`")
    count = axis.count
    if count == 0:
        return Tiles((), (), None, None)
    lines = _table(count) if axis.kind == "table" else []
    for i in range(count):
        lines.append(f"{_names(RUN, i)} = _tiles({_names(FIELDS, i)}, first_col, last_col, {block})")
    if not axis.ascending:
        lines += _sort(count)
    for i in range(count):
        lines.append(f"{_names(RUN, i)} = _clip({_names(RUN, i)}, {f'stop_{i - 1}' if i else 0})")
    partial = [segment for i in range(count) for segment in ((f"start_{i}", f"full_start_{i}"), (f"full_stop_{i}", f"stop_{i}"))]
    full = [(f"full_start_{i}", f"full_stop_{i}") for i in range(count)]
    if axis.kind == "formula" and all(_never(run.inner_lo, run.inner_hi) for run in axis.runs):  # then full_start is full_stop or stop
        partial, full = [(f"start_{i}", f"stop_{i}") for i in range(count)], []
    more, partial_loop = _loop("partial", partial)
    lines += more
    more, full_loop = _loop("full", full)
    return Tiles(TABLE_PARAMETERS if axis.kind == "table" else (), (*lines, *more), partial_loop, full_loop)


def _names(names: tuple[str, ...], i: int) -> str:
    return ", ".join(f"{name}_{i}" for name in names)


def _never(low: Index, high: Index) -> bool:
    return low.op == high.op == "const" and low.args[0] > high.args[0]


def _table(count: int) -> list[str]:
    lines = [f"bounds = bounds_ptr + tl.cast(b, tl.int64) * bounds_stride_b + h * bounds_stride_h + tile * {4 * count}"]
    return lines + [f"{name}_{i} = tl.load(bounds + {4 * i + j})" for i in range(count) for j, name in enumerate(FIELDS)]


def _sort(count: int) -> list[str]:
    """Odd-even transposition: the runs in order of their start; a pair of neighbours is swapped where it is out of order."""
    lines = []
    for round_ in range(count):
        for i in range(round_ % 2, count - 1, 2):
            lines.append(f"swap = start_{i} > start_{i + 1}")
            for name in RUN:
                lines.append(f"{name}_{i}, {name}_{i + 1} = _swap({name}_{i}, {name}_{i + 1}, swap)")
    return lines


def _loop(kind: str, segments: list[tuple[str, str]]) -> tuple[list[str], Loop | None]:
    """Statements that count the segments' tiles, and the loop over them."""
    if not segments:
        return [], None
    lines, tile = [], [f"col_tile = i + {segments[0][0]}"]
    total = ""
    for number, (start, stop) in enumerate(segments, 1):
        lines.append(f"{kind}_{number} = {f'{total} + ' if total else ''}{stop} - {start}")
        total = f"{kind}_{number}"
        if number < len(segments):
            tile.append(f"col_tile = tl.where(i >= {total}, i - {total} + {segments[number][0]}, col_tile)")
    return lines, Loop(total, tuple(tile))


def _lists() -> Tiles:
    """`partial_ptr[row]`, `partial_ptr[row + 1]` delimit a row tile's part of `partial_tiles_ptr`; the same for full tiles."""
    before = ["list_row = tl.load(group_ptr + h) * (row_tiles + 1) + tile"]
    for kind in ("partial", "full"):
        before.append(f"{kind}_begin = tl.load({kind}_ptr + list_row)")
        before.append(f"{kind}_count = tl.load({kind}_ptr + list_row + 1) - {kind}_begin")
    loops = (Loop(f"{kind}_count", (f"col_tile = tl.load({kind}_tiles_ptr + {kind}_begin + i)",)) for kind in ("partial", "full"))
    return Tiles(LIST_PARAMETERS, tuple(before), *loops)
