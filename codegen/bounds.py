"""The text that finds the column tiles of one row tile: from formulas, from a table of bounds, or from lists of tiles.

Each run gives up to two segments of partial tiles and one of full tiles.  A kernel has one loop over the partial tiles of
all runs and one over the full tiles of all runs; a loop counter becomes a tile by a chain of selects over the segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from patternc.choices import SORTS, Stepped
from patternc.codegen.code import Code
from patternc.errors import InternalError
from patternc.expr.index import Index
from patternc.plan import AxisPlan, Run

FIELDS = ("lo", "hi", "inner_lo", "inner_hi")
RUN = ("start", "stop", "full_start", "full_stop")
STEP = ("step_lo", "step_hi")
TABLE_PARAMETERS = ("bounds_ptr", "bounds_stride_b", "bounds_stride_h")
LIST_PARAMETERS = ("group_ptr", "partial_ptr", "partial_tiles_ptr", "full_ptr", "full_tiles_ptr")
FLAG_PARAMETERS = ("flags_ptr", "flags_stride_h")  # int32 [heads or 1, flagged runs, row tiles]
SHARED_PARAMETERS = ("shared_ptr", "shared_stride_h")  # `choices.tile_lists` of the filler's columns


@dataclass(frozen=True)
class Loop:
    """A loop over tiles: the text of its length, and the statements that make `col_tile` from the counter `i`.

    Attributes:
        table: where the tiles are entries of a table, which begins there; then `ahead` holds the entry of the next iteration, so
            that the loads of a tile need not wait for its number.
    """

    count: str
    tile: tuple[str, ...]
    table: str | None = None

    def before(self, first: str) -> list[str]:
        """Statements before a loop whose counter begins at `first`."""
        return [f"ahead = tl.load({self.table}{'' if first == '0' else f' + {first}'})"] if self.table else []


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


@dataclass(frozen=True)
class Segment:
    """Consecutive places `start .. stop - 1` of loop counters; `chosen` ones are places in the filler's choice, others tiles."""

    start: str
    stop: str
    chosen: bool = False


def roots(axis: AxisPlan, index: Callable[[Index], Code]) -> dict[str, Code]:
    """The formulas of a plan's runs by the names that `tiles` reads."""
    found = {f"{name}_{i}": index(getattr(run, name)) for i, run in enumerate(axis.all_runs) for name in FIELDS}
    if axis.filler is not None and isinstance(axis.filler.columns, Stepped):
        found |= {"step_lo": index(axis.filler.columns.low), "step_hi": index(axis.filler.columns.high)}
    return found


def tiles(axis: AxisPlan, block: str, shifted: bool = False) -> Tiles:
    """The text for a plan.

    Args:
        block: name of the number of columns of a tile.  The text reads `tile` (of rows), `row_tiles`, `b`, `h`, and the
            positions `first_col` and `last_col`; a formula plan also the names of `roots`.
        shifted: `first_col`, where tile 0 begins, may lie before column 0.
    """
    if axis.kind == "list":
        return _lists()
    if axis.kind not in ("formula", "table"):
        raise InternalError(f"no kernel for a plan of kind `{axis.kind}`")
    count = axis.count
    if not count and axis.filler is None:
        return Tiles((), (), None, None)
    parameters = TABLE_PARAMETERS if axis.kind == "table" else FLAG_PARAMETERS if axis.flagged else ()
    lines = _table(count) if axis.kind == "table" else _flags(axis)
    for i in range(count):
        fields = f"tl.maximum(lo_{i}, 0), hi_{i}, tl.maximum(inner_lo_{i}, 0), inner_hi_{i}" if shifted else _names(FIELDS, i)
        lines.append(f"{_names(RUN, i)} = _tiles({fields}, first_col, last_col, {block})")
    if not axis.ascending:
        lines += _sort(count)
    for i in range(count):
        lines.append(f"{_names(RUN, i)} = _clip({_names(RUN, i)}, {f'stop_{i - 1}' if i else 0})")
    never = axis.kind == "formula" and all(run.never_full for run in axis.runs)
    partial, full = _segments(range(count), never)
    if axis.filler is not None:
        parameters += () if axis.filler.columns is None or isinstance(axis.filler.columns, Stepped) else SHARED_PARAMETERS
        more, more_partial, more_full = _filler(axis.filler, count, block)
        lines, partial, full = lines + more, partial + more_partial, full + more_full
    more, partial_loop = _loop("partial", partial, axis.filler)
    lines += more
    more, full_loop = _loop("full", full, axis.filler)
    return Tiles(parameters, (*lines, *more), partial_loop, full_loop)


def _segments(runs, never_full: bool) -> tuple[list[Segment], list[Segment]]:
    """Partial and full tiles of runs; where nothing is full, full_start is full_stop or stop."""
    if never_full:
        return [Segment(f"start_{i}", f"stop_{i}") for i in runs], []
    partial = [s for i in runs for s in (Segment(f"start_{i}", f"full_start_{i}"), Segment(f"full_stop_{i}", f"stop_{i}"))]
    return partial, [Segment(f"full_start_{i}", f"full_stop_{i}") for i in runs]


def _filler(filler: Run, count: int, block: str) -> tuple[list[str], list[Segment], list[Segment]]:
    """Run number `count` in the gaps that the `count` runs before it leave, and what it chooses there."""
    f = count
    lines = [f"# Run {f}{' in the gaps that the others leave' if count else ''}."]
    lines.append(f"{_names(RUN, f)} = _tiles({_names(FIELDS, f)}, first_col, last_col, {block})")
    pieces = range(f + 1, f + count + 2) if count else [f]
    for gap, piece in enumerate(pieces):
        stop = f"tl.minimum(stop_{f}, start_{gap})" if gap < count else f"stop_{f}"
        after = f"stop_{gap - 1}" if gap else 0
        lines.append(f"{_names(RUN, piece)} = _clip(start_{f}, {stop}, full_start_{f}, full_stop_{f}, {after})")
    if filler.columns is None:
        return lines, *_segments(pieces, filler.never_full)
    if isinstance(filler.columns, Stepped):
        lines += [
            f"# Tiles step_first + step_stride * j, and step_wide - 1 after each: {filler.columns.period} columns from one to the next.",
            f"step_stride = {filler.columns.period} // {block}",
            f"step_first, step_wide = _steps(step_lo - first_col, step_hi - first_col, step_stride, {block})",
        ]
        partial = []
        for piece in pieces:
            names = f"place_{piece}, place_stop_{piece}"
            lines.append(f"{names} = {', '.join(f'_step_place({x}_{piece}, step_first, step_wide, step_stride)' for x in ('start', 'stop'))}")
            partial.append(Segment(f"place_{piece}", f"place_stop_{piece}", True))
        return lines, partial, []
    lines.append(f"shared = shared_ptr + h * shared_stride_h  # tiles that hold columns where {_comment(filler)}")
    lines.append(f"wide = tl.cdiv(last_col - first_col + 1, {block}) + 1")
    partial, full = [], []
    inside = "full_start", "full_stop"
    parts = [("live", "start", "full_start"), ("ragged", *inside), ("live", "full_stop", "stop"), ("full", *inside)]
    for piece in pieces:
        for part, (sort, start, stop) in enumerate([("live", "start", "stop")] if filler.never_full else parts):
            name = f"{sort}_{piece}_{part}"
            lines.append(f"{name}, {name}_stop = _places(shared, {SORTS.index(sort)}, wide, {start}_{piece}, {stop}_{piece})")
            (full if sort == "full" else partial).append(Segment(name, f"{name}_stop", True))
    return lines, partial, full


def _comment(filler: Run) -> str:
    text = str(filler.columns.condition)
    return text if len(text) <= 60 else text[:57] + "..."


def _flags(axis: AxisPlan) -> list[str]:
    """Runs with a condition on the row: empty where no row of the tile meets it, without full tiles where not all do."""
    lines = []
    for slot, i in enumerate(i for i, run in enumerate(axis.all_runs) if run.rows is not None):
        at = f"flags_ptr + h * flags_stride_h + {f'{slot} * row_tiles + ' if slot else ''}tile"
        lines.append(f"flag = tl.load({at})  # 0, 1, 2: no row, some rows, all rows of the tile")
        lines.append(f"hi_{i} = tl.where(flag > 0, hi_{i}, lo_{i} - 1)")
        lines.append(f"inner_hi_{i} = tl.where(flag > 1, inner_hi_{i}, inner_lo_{i} - 1)")
    return lines


def _names(names: tuple[str, ...], i: int) -> str:
    return ", ".join(f"{name}_{i}" for name in names)


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


def _loop(kind: str, segments: list[Segment], filler: Run | None) -> tuple[list[str], Loop | None]:
    """Statements that count the segments' tiles, and the loop over them; segments of chosen tiles come last."""
    if not segments:
        return [], None
    lines, tile = [], [f"col_tile = i + {segments[0].start}"]
    total = ""
    for number, segment in enumerate(segments, 1):
        lines.append(f"{kind}_{number} = {f'{total} + ' if total else ''}{segment.stop} - {segment.start}")
        if total:
            tile.append(f"col_tile = tl.where(i >= {total}, i - {total} + {segment.start}, col_tile)")
        total = f"{kind}_{number}"
    plain = sum(not s.chosen for s in segments)
    if plain < len(segments):
        chosen = "_step_tile(col_tile, step_first, step_wide, step_stride)" if isinstance(filler.columns, Stepped) else None
        if chosen is None:
            tile.append(f"col_tile = tl.load(shared + col_tile{f', mask=i >= {kind}_{plain}, other=col_tile' if plain else ''})")
        else:
            tile.append(f"col_tile = {f'tl.where(i >= {kind}_{plain}, {chosen}, col_tile)' if plain else chosen}")
    return lines, Loop(total, tuple(tile))


def _lists() -> Tiles:
    """`partial_ptr[row]`, `partial_ptr[row + 1]` delimit a row tile's part of `partial_tiles_ptr`; the same for full tiles."""
    before = ["list_row = tl.load(group_ptr + h) * (row_tiles + 1) + tile"]
    for kind in ("partial", "full"):
        before.append(f"{kind}_begin = tl.load({kind}_ptr + list_row)")
        before.append(f"{kind}_count = tl.load({kind}_ptr + list_row + 1) - {kind}_begin")
    return Tiles(LIST_PARAMETERS, tuple(before), *(_listed(kind) for kind in ("partial", "full")))


def _listed(kind: str) -> Loop:
    """Lists have one entry more than is visited."""
    table = f"{kind}_tiles_ptr + {kind}_begin"
    return Loop(f"{kind}_count", ("col_tile = ahead", f"ahead = tl.load({table} + i + 1)"), table)
