"""What kernels need of a pattern in an order: bounds for every digit, and a mask in digits.

A tile of rows is a box of row digits, and visits boxes of column digits.  A digit that is *tied* (`q1 == k1` in every
conjunct) has boxes of one value, and its column value is its row value.  The other digits each have their own bounds; the boxes
visited are the product of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.analysis.project import NeedsTable, Projection, Projector, Symbols, ends, greatest, least
from patternc.expr.index import Index, const, where
from patternc.expr.node import postorder
from patternc.expr.pattern import Pattern, all_of, any_of, between
from patternc.orders.digits import Order
from patternc.orders.simplify import in_digits, pruned
from patternc.passes import Conjunct, TooManyConjuncts, disjuncts, variables
from patternc.plan import MOST_RUNS, AxisPlan, Run, ascending, closed, columns_of


@dataclass(frozen=True, eq=False)
class BoxAxis:
    """One direction of a plan in digits.

    Attributes:
        order: the digit system.
        column: "k" for boxes of queries that visit boxes of keys, "q" the other way round.
        mask: what partial boxes evaluate, in the digits of both sides.
        tied: digits whose value a column shares with its row.
        digits: for every other digit, how its boxes are found; with several such digits each has one run.
    """

    order: Order
    column: str
    mask: Pattern
    tied: tuple[int, ...]
    digits: dict[int, AxisPlan]

    kind = "boxes"

    @property
    def row(self) -> str:
        return "q" if self.column == "k" else "k"

    @property
    def one_digit(self) -> bool:
        """Whether boxes extend along one digit, beside one that is tied: equally spaced positions."""
        return len(self.digits) == len(self.tied) == 1

    @property
    def scattered(self) -> bool:
        """Whether no digit of the boxes is the last of a position, so that none of their positions are neighbours."""
        return max(self.digits) < len(self.order.strides) - 1

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for axis in self.digits.values() for run in axis.runs)


def box_axis(lowered: Pattern, order: Order, column: str) -> BoxAxis | None:
    """One direction of a pattern in an order; None where bounds of single digits do not say all there is to say."""
    p = in_digits(lowered, order, column)
    if any(x.op in ("read", "member", "inside") for x in postorder(p)):
        return None
    try:
        conjuncts = [c for conjunct in disjuncts(p, MOST_RUNS) if (c := pruned(conjunct, order)) is not None]
    except TooManyConjuncts:
        return None
    row = "q" if column == "k" else "k"
    tied = tuple(i for i in range(len(order.strides)) if conjuncts and all(_ties(c, i) for c in conjuncts))
    free = [i for i in range(len(order.strides)) if i not in tied]
    if not free or not conjuncts or (len(free) > 1 and len(conjuncts) > 1):
        return None
    spans = {name: ends(name) for name in order.names(row)}
    runs: dict[int, list[Run]] = {i: [] for i in free}
    for conjunct in conjuncts:
        split = _by_digit(conjunct, order, column, tied)
        if split is None:
            return None
        for i in free:
            # Comparisons on several digits of the row empty the product wherever they empty one factor.
            own = split.get(i, {}) | (split.get(None, {}) if i == free[0] else {})
            try:
                projection = Projector(f"{column}{i}", Symbols(spans)).project(own)
            except NeedsTable:
                return None
            if not projection.tight:
                return None
            runs[i].append(_run(projection, order, i, column, whole_period(order, row, column) if 0 in tied and i == free[0] else None))
    digits = {}
    for i, of_digit in runs.items():
        in_order = ascending(of_digit, _values(order, i, column)[0])
        digits[i] = AxisPlan("formula", tuple(in_order or of_digit), len(of_digit), in_order is not None)
    return BoxAxis(order, column, _without_ties(p, tied), tied, digits)


def tie(i: int) -> Pattern:
    return between(Index("var", f"q{i}") - Index("var", f"k{i}"), 0, 0)


def _ties(conjunct: Conjunct, i: int) -> bool:
    core = tie(i).args[0]
    return conjunct.get(core) == (0, 0)


def _without_ties(p: Pattern, tied: tuple[int, ...]) -> Pattern:
    """The mask without what holds in every visited box."""
    known = {tie(i) for i in tied}
    if p in known:
        return all_of()
    if p.op in ("and", "or"):
        parts = [_without_ties(part, tied) for part in p.args]
        return (all_of if p.op == "and" else any_of)(*parts)
    return p


def _by_digit(conjunct: Conjunct, order: Order, column: str, tied: tuple[int, ...]) -> dict | None:
    """Comparisons by the column digit that they bound, or the row digit that they read alone; others on the row under None.

    None where one mentions several column digits.
    """
    names, rows = ({name: i for i, name in enumerate(order.names(side))} for side in (column, "q" if column == "k" else "k"))
    out: dict = {}
    for core, interval in conjunct.items():
        found = [names[v] for v in variables(core) if v in names]
        if len(found) == 1 and found[0] in tied and core is tie(found[0]).args[0]:
            continue
        if len(found) > 1 or (found and found[0] in tied):
            return None
        if not found:
            found = [rows[v] for v in variables(core) if v in rows]
            found = found if len(found) == 1 and found[0] not in tied else []
        out.setdefault(found[0] if found else None, {})[core] = interval
    return out


def _values(order: Order, i: int, column: str) -> tuple[Index, Index]:
    """First and last value of a column digit; of the first digit, for columns that may end within a period."""
    if i:
        return const(0), const(order.extents[i] - 1)
    first, last = columns_of(column)
    return first // order.strides[0], last // order.strides[0]


def whole_period(order: Order, row: str, column: str) -> Pattern:
    """Whether all columns exist whose first digit is that of the tile's rows."""
    first, last = columns_of(column)
    value, stride = ends(f"{row}0")[0], order.strides[0]
    return all_of((first + stride - 1) // stride <= value, value < (last + 1) // stride)


def _run(projection: Projection, order: Order, i: int, column: str, whole: Pattern | None) -> Run:
    """Periods that are cut off hold columns that do not exist, and no full boxes."""
    lo, hi, inner_lo, inner_hi = closed(projection, *_values(order, i, column))
    stride = order.strides[0]
    if not i and stride > 1 and not projection.inner.empty:
        first, last = columns_of(column)
        inner_lo, inner_hi = greatest(inner_lo, (first + stride - 1) // stride), least(inner_hi, (last + 1) // stride - 1)
    return Run(lo, hi, inner_lo, inner_hi if whole is None else where(whole, inner_hi, inner_lo - 1))
