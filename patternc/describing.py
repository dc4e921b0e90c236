"""Plans as text: how each direction finds its tiles, with the formulas of its runs."""

from __future__ import annotations

from patternc.choices import Listed, Stepped
from patternc.orders.boxes import BoxAxis
from patternc.orders.heads import HeadsAxis
from patternc.plan import AxisPlan, Plan, Run

DIRECTIONS = {"forward": ("q tiles over keys", "forward, dq"), "transposed": ("k tiles over queries", "dk, dv")}


def describe_plan(plan: Plan) -> list[str]:
    """How each direction finds its tiles, with the formulas of its runs."""
    return [line for name in DIRECTIONS for line in describe_direction(name, getattr(plan, name))]


def describe_direction(name: str, axis: AxisPlan | BoxAxis | HeadsAxis) -> list[str]:
    what, used = DIRECTIONS[name]
    return describe_axis(f"{name} ({what}; {used})", axis, "keys" if name == "forward" else "queries")


def _describe_boxes(title: str, axis: BoxAxis, columns: str) -> list[str]:
    lines = [f"{title}: position = {axis.order}{_shared(axis.tied) if len(axis.parts) == 1 else ''}; boxes of the other digits"]
    for number, part in enumerate(axis.parts, 1):
        if len(axis.parts) > 1:
            lines.append(f"    disjoint part {number}{_shared(part.tied)}")
        for i, digit in part.digits.items():
            for run in digit.runs:
                lines.append(f"    x{i} of {columns} {run.lo} .. {run.hi}, every pair in {run.inner_lo} .. {run.inner_hi}")
    return lines


def _shared(tied: tuple[int, ...]) -> str:
    return f", {', '.join(f'x{i}' for i in tied)} shared" if tied else ""


def _describe_groups(title: str, axis: HeadsAxis, columns: str) -> list[str]:
    lines = [f"{title}: groups of heads, each with tiles of its own, in one launch"]
    for group, own in zip(axis.groups, axis.axes):
        lines += ["    " + line for line in [f"{group}: {group.pattern}", *describe_axis("    tiles", own, columns)]]
    return lines


def describe_axis(title: str, axis: AxisPlan | BoxAxis | HeadsAxis, columns: str) -> list[str]:
    if isinstance(axis, HeadsAxis):
        return _describe_groups(title, axis, columns)
    if isinstance(axis, BoxAxis):
        return _describe_boxes(title, axis, columns)
    if axis.kind == "list":
        return [f"{title}: lists of tiles, made for each length on the host"]
    if axis.kind == "table":
        return [f"{title}: a table, {plural(axis.count, 'run')} a row tile, made on the tensors' device"]
    order = "" if axis.count < 2 else ", in order" if axis.ascending else ", sorted in the kernel"
    lines = [f"{title}: formulas, {plural(len(axis.all_runs), 'run')} a row tile{order}"]
    for run in axis.all_runs:
        gaps = "in the gaps: " if run is axis.filler and axis.count else ""
        lines.append(f"    {gaps}{columns} {run.lo} .. {run.hi}, every pair in {run.inner_lo} .. {run.inner_hi}{_choice(run)}")
    return lines


def _choice(run: Run) -> str:
    """What a run takes of the tiles between its bounds."""
    rows = f", for rows where {run.rows}" if run.rows is not None else ""
    if isinstance(run.columns, Listed):
        return f"{rows}, in the tiles of a shared list: {run.columns.condition}"
    if isinstance(run.columns, Stepped):
        return f"{rows}, in steps of {run.columns.period} from {run.columns.low} .. {run.columns.high}"
    return rows


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
