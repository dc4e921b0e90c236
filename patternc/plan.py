"""The plan: what a kernel needs to know about a pattern, for every length at once."""

from __future__ import annotations

from dataclasses import dataclass

from patternc.expr.index import Index
from patternc.expr.pattern import Pattern

# Variables of a run's formulas besides n_q, n_k, h, b and scalar args.
R0, R1 = Index("var", "r0"), Index("var", "r1")  # first and last row position of the tile, absolute, r1 within the rows
Q_START = Index("var", "q_start")  # position of query 0; columns of a transposed plan are q_start .. q_start + n_q - 1


@dataclass(frozen=True)
class Run:
    """The columns that one tile of rows visits for one conjunct: inclusive absolute positions.

    Outside `lo..hi` no row of the tile allows a column.  Within `inner_lo..inner_hi` every row allows every column
    (empty where `inner_lo > inner_hi`).  Bounds may exceed the columns there are; whoever uses them clips.
    """

    lo: Index
    hi: Index
    inner_lo: Index
    inner_hi: Index


@dataclass(frozen=True)
class AxisPlan:
    """How one direction (q tiles over keys, or k tiles over queries) finds its column tiles.

    Attributes:
        kind: "formula" (the kernel evaluates `runs`), "table" (it loads the same four numbers per run: int32
            [B', H', row tiles, count, 4]) or "list" (it loads lists of full and of partial tiles).
        runs: the formulas; empty for the other kinds.
        count: the number of runs per row tile ("formula" and "table").
        ascending: the runs' `lo` are proved to ascend within every row tile, so that clamping makes them disjoint.
    """

    kind: str
    runs: tuple[Run, ...]
    count: int
    ascending: bool


@dataclass(frozen=True)
class Plan:
    """What the kernels of one pattern are generated from.

    Attributes:
        mask: the simplified pattern that partial tiles evaluate.
        forward: q tiles over k tiles (forward, dq).
        transposed: k tiles over q tiles (dk, dv).
    """

    mask: Pattern
    forward: AxisPlan
    transposed: AxisPlan
