"""What kernels read beside a plan's formulas: tables of runtime data, lists of tiles, tables that runs choose by; kept with the pattern."""

from __future__ import annotations

import numpy as np
import torch

from patternc.analysis.runs import members
from patternc.args import Bound
from patternc.balance import tiles_of_layout
from patternc.codegen.device import kept_on
from patternc.codegen.parameters import ChoiceTables, TileLists
from patternc.errors import BackendError
from patternc.kept import unchanged
from patternc.layout import layout
from patternc.plan import AxisPlan
from patternc.tables import run_table
from patternc.visits import choice_tables

MOST_LENGTHS = 64  # lengths whose tile lists are kept
MOST_TABLES = 8  # tables of runtime data that are kept: two directions for a few sets of args


def bounds_of(compiled, bound: Bound, on_device: Bound, device: torch.device, direction: str, rows: int, cols: int):
    """The table or the lists that a plan reads beside its formulas."""
    axis = compiled.plan.forward if direction == "forward" else compiled.plan.transposed
    if axis.kind != "table":
        return static_of(compiled, axis, on_device, device, direction, rows, cols)
    key = unchanged(bound)
    if key is None:
        return run_table(compiled.conjuncts, "k" if direction == "forward" else "q", on_device, rows)
    kept = compiled.state.setdefault("tables", {})
    key = device, direction, rows, *key
    if key not in kept:
        if len(kept) >= MOST_TABLES:
            kept.pop(next(iter(kept)))
        # The values are kept beside their table, so that their memory, whose address is in the key, is not given to others.
        kept[key] = run_table(compiled.conjuncts, "k" if direction == "forward" else "q", on_device, rows), bound
    return kept[key][0]


def static_of(compiled, axis: AxisPlan, bound: Bound, device: torch.device, direction: str, rows: int, cols: int) -> TileLists | ChoiceTables:
    """The lists of one length; kept, since a static pattern's tiles depend on nothing else."""
    kept = compiled.state.setdefault("lists", {})
    start = bound.q_start
    if not isinstance(start, int):
        raise BackendError("this pattern's tiles are lists, and lists need `q_start` as an int", fix="give q_start as an int")
    # Only lists of all tiles depend on args, and those that are tensors are not kept.
    scalars = tuple(sorted(bound.values.items())) if axis.kind == "list" else ()
    key = (device, direction, rows, cols, bound.n_q, bound.n_k, bound.heads, start, scalars)
    known = all(isinstance(value, int) for _, value in scalars)
    if not known or key not in kept:
        made = (_make_lists if axis.kind == "list" else _make_choices)(compiled, axis, bound, device, rows, cols)
        if not known:
            return made
        if len(kept) >= MOST_LENGTHS:
            kept.pop(next(iter(kept)))
        kept[key] = made
    return kept[key]


def _make_choices(compiled, axis: AxisPlan, bound: Bound, device: torch.device, rows: int, cols: int) -> ChoiceTables:
    made = choice_tables(axis, bound, rows, cols, transposed=axis is compiled.plan.transposed)
    return ChoiceTables(*(None if x is None else kept_on(torch.from_numpy(x), device) for x in made))


def _make_lists(compiled, axis: AxisPlan, bound: Bound, device: torch.device, rows: int, cols: int) -> TileLists:
    """The exact layout, tile by tile."""
    transposed = axis is compiled.plan.transposed
    exact = layout(compiled.exact, bound, (cols, rows) if transposed else (rows, cols), transposed=transposed)
    group = np.zeros(bound.heads, np.int32)
    parts = {"full": ([], []), "partial": ([], [])}
    for i, cell in enumerate(exact.groups):
        group[list(cell.heads)] = i
        for (pointers, tiles), runs in zip(parts.values(), cell.tiles.whole):
            keys = members(runs)
            row = keys // cell.tiles.grid.width
            before = sum(len(t) for t in tiles)
            pointers.append(before + np.searchsorted(row, np.arange(cell.tiles.grid.row.tiles + 1)))
            tiles.append(keys - row * cell.tiles.grid.width)

    def tensor(x) -> torch.Tensor:
        return kept_on(torch.from_numpy(np.ascontiguousarray(x, np.int32)), device)

    def entries(tiles) -> torch.Tensor:
        return tensor(np.concatenate([*tiles, [0]]))  # kernels read one entry ahead

    return TileLists(
        tensor(group),
        tensor(np.stack(parts["partial"][0])),
        entries(parts["partial"][1]),
        tensor(np.stack(parts["full"][0])),
        entries(parts["full"][1]),
        tiles_of_layout(exact),
    )
