"""The plan: what a kernel needs to know about a pattern, for every length at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.analysis.project import R0, R1, Interval, NeedsTable, Projection, Projector, Symbols, ordered
from patternc.choices import Choice, Listed, Stepped, choose
from patternc.expr.index import Index, const, where
from patternc.expr.node import fact, postorder, roomy
from patternc.expr.pattern import Pattern, between
from patternc.expr.transform import rewrite
from patternc.passes import Conjunct, TooManyConjuncts, disjuncts, lower

# A run's formulas use r0, r1 (first and last row position of the tile, absolute), n_q, n_k, h, b, scalar args and this:
Q_START = Index("var", "q_start")  # position of query 0; columns of a transposed plan are q_start .. q_start + n_q - 1


@dataclass(frozen=True)
class Run:
    """The columns that one tile of rows visits for one conjunct: inclusive absolute positions.

    Outside `lo..hi` no row of the tile allows a column.  Within `inner_lo..inner_hi` every row allows every column
    (empty where `inner_lo > inner_hi`).  Bounds may exceed the columns there are; whoever uses them clips.

    Attributes:
        rows: a condition on the row alone: without a row that meets it the run is empty, with one that does not nothing is full.
        columns: the tiles between the bounds that are visited, None for all.
    """

    lo: Index
    hi: Index
    inner_lo: Index
    inner_hi: Index
    rows: Pattern | None = None
    columns: Listed | Stepped | None = None

    @property
    def never_full(self) -> bool:
        low, high = self.inner_lo, self.inner_hi
        return low.op == high.op == "const" and low.args[0] > high.args[0]


@dataclass(frozen=True)
class AxisPlan:
    """How one direction (q tiles over keys, or k tiles over queries) finds its column tiles.

    Attributes:
        kind: "formula" (the kernel evaluates `runs`), "table" (it loads the same four numbers per run: int32
            [B', H', row tiles, count, 4]) or "list" (it loads lists of full and of partial tiles).
        runs: the formulas; empty for the other kinds.
        count: the number of runs per row tile ("formula" and "table").
        ascending: the runs' `lo` are proved to ascend within every row tile, so that clamping makes them disjoint.
        filler: one more run, of which only the tiles that no other run visits are visited: one that chooses among its tiles,
            or that is never full and would take full tiles away from the others.
    """

    kind: str
    runs: tuple[Run, ...]
    count: int
    ascending: bool
    filler: Run | None = None

    @property
    def flagged(self) -> tuple[Run, ...]:
        """The runs with a condition on the row."""
        return tuple(run for run in self.all_runs if run.rows is not None)

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The runs, the filler last."""
        return self.runs if self.filler is None else (*self.runs, self.filler)


@dataclass(frozen=True, eq=False)
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


MOST_RUNS = 8  # a kernel that would unroll more runs than this takes lists or one wide run


@fact
@roomy
def make_plan(p: Pattern) -> Plan:
    """The plan of a pattern: formulas where they say all there is to say, else tables (runtime data) or lists (static)."""
    lowered = lower(p)
    return Plan(mask_of(p), axis_plan(lowered, "k"), axis_plan(lowered, "q"))


def mask_of(p: Pattern) -> Pattern:
    """What partial tiles evaluate: lowering may copy subexpressions (`^`, `where`), and then `p` is better evaluated as it was written."""
    lowered = lower(p)
    return lowered if lowered.size <= 2 * p.size else p


def axis_plan(lowered: Pattern, column: str) -> AxisPlan:
    """How tiles of the other variable find their tiles of `column`."""
    runtime = any(n.op in ("read", "member") and n.args[0].op == "arg" for n in postorder(lowered))
    conjuncts = conjuncts_of(lowered)
    if conjuncts is None:
        return AxisPlan("table", (), 1, True) if runtime else AxisPlan("list", (), 0, True)
    if runtime:
        return AxisPlan("table", (), max(len(conjuncts), 1), len(conjuncts) <= 1)
    try:
        choices = [choose(c, column) for c in conjuncts]
        projector = Projector(column, Symbols({"q" if column == "k" else "k": (R0, R1)}))
        projections = [(projector.project(choice.rest), choice) for choice in choices]
    except NeedsTable:
        return AxisPlan("list", (), 0, True)
    runs = [run_of(*pair, column) for pair in projections if not pair[0].outer.empty]
    fillers = [run for run in runs if run.columns is not None]
    if len(fillers) > 1:
        return AxisPlan("list", (), 0, True)
    filler = fillers[0] if fillers else _shadow(runs)
    runs = [run for run in runs if run is not filler]
    in_order = ascending(runs, columns_of(column)[0])
    return AxisPlan("formula", tuple(in_order or runs), len(runs), in_order is not None, filler)


def _shadow(runs: list[Run]) -> Run | None:
    """The one run that is never full beside others that may be."""
    never = [run for run in runs if run.never_full]
    return never[0] if len(never) == 1 < len(runs) else None


def conjuncts_of(lowered: Pattern) -> list[Conjunct] | None:
    """The conjuncts that runs are made of, or None where there are too many."""
    try:
        return disjuncts(lowered, MOST_RUNS)
    except TooManyConjuncts:
        return None


def columns_of(column: str) -> tuple[Index, Index]:
    """First and last position of the columns there are."""
    return (const(0), Index("var", "n_k") - 1) if column == "k" else (Q_START, Q_START + Index("var", "n_q") - 1)


def run_of(projection: Projection, choice: Choice, column: str) -> Run:
    """The run of a conjunct; narrow residues fill no tile."""
    if isinstance(choice.columns, Stepped):
        projection = replace(projection, inner=Interval(empty=True))
    return Run(*closed(projection, *columns_of(column)), choice.rows, choice.columns)


def closed(projection: Projection, first: Index, last: Index) -> list[Index]:
    """Outer and inner bounds, open sides closed with the columns there are, conditions on the tile folded into empty intervals."""
    bounds = []
    for interval, condition in ((projection.outer, projection.some), (projection.inner, projection.every)):
        low = first if interval.low is None else interval.low
        high = last if interval.high is None else interval.high
        if interval.empty:
            low, high = const(0), const(-1)
        bounds += [low, high if condition is None else where(condition, high, low - 1)]
    return bounds


def ascending(runs: list[Run], first_column: Index) -> list[Run] | None:
    """The runs in an order in which `lo`, clipped to the columns there are, provably ascends; None if there is none."""

    def precedes(a: Run, b: Run) -> bool:
        return a is b or ordered(a.lo, b.lo) or ordered(a.lo, first_column)

    out: list[Run] = []
    rest = list(runs)
    while rest:
        first = next((r for r in rest if all(precedes(r, o) for o in rest)), None)
        if first is None:
            return None
        out.append(first)
        rest = [r for r in rest if r is not first]
    return out


def ranked(lowered: Pattern) -> Pattern:
    """`ids[x] == ids[y]` reads the ranks of first occurrence instead (the arg `ids#first`): contiguous ids become sorted."""

    def change(x):
        if x.op != "in" or x.args[1:] != (0, 0) or x.args[0].op != "sum" or x.args[0].args[2::2] not in ((1, -1), (-1, 1)):
            return None
        a, b = x.args[0].children
        if x.args[0].args[0] or not (a.op == b.op == "read" and a.args[0] is b.args[0] and a.args[0].op == "arg" and len(a.args) == len(b.args) == 2):
            return None
        source = Index("arg", a.args[0].args[0] + "#first")
        return between(source[a.args[1]] - source[b.args[1]], 0, 0)

    return rewrite(lowered, change)


__all__ = ["Q_START", "R0", "R1", "AxisPlan", "Plan", "Run", "axis_plan", "conjuncts_of", "make_plan", "ranked", "run_of"]
