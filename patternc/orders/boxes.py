"""What kernels need of a pattern in an order: disjoint parts with bounds for every digit, and masks in digits.

A tile of rows is a box of row digits, and visits boxes of column digits.  A digit that is *tied* in a part (`q1 == k1` in every
conjunct) has boxes of one value there, and its column value is its row value.  The other digits each have their own bounds; the
boxes visited are the product of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.analysis.project import NeedsTable, Projection, Projector, Symbols, ends, greatest, least
from patternc.expr.index import Index, const, where
from patternc.expr.node import postorder
from patternc.expr.pattern import Pattern, all_of, any_of
from patternc.orders.digits import Order
from patternc.orders.disjoint import conjuncts_in, disjoint, pattern_of, tie, ties
from patternc.orders.simplify import in_digits
from patternc.passes import Conjunct, TooManyConjuncts, variables
from patternc.plan import MOST_RUNS, AxisPlan, Run, ascending, closed, columns_of


@dataclass(frozen=True, eq=False)
class BoxPart:
    """Pairs that one loop over boxes of columns serves; those of different parts are disjoint, and their boxes may differ in shape.

    Attributes:
        mask: what partial boxes evaluate, in the digits of both sides.
        tied: digits whose value a column shares with its row.
        digits: for every other digit, how its boxes are found; with several such digits each has one run.
    """

    mask: Pattern
    tied: tuple[int, ...]
    digits: dict[int, AxisPlan]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for axis in self.digits.values() for run in axis.runs)


@dataclass(frozen=True, eq=False)
class BoxAxis:
    """One direction of a plan in digits.

    Attributes:
        order: the digit system.
        column: "k" for boxes of queries that visit boxes of keys, "q" the other way round.
        parts: what a tile of rows visits, one after the other.
    """

    order: Order
    column: str
    parts: tuple[BoxPart, ...]

    kind = "boxes"

    @property
    def row(self) -> str:
        return "q" if self.column == "k" else "k"

    @property
    def tied(self) -> tuple[int, ...]:
        """Digits of which a tile of rows holds one value: those that are tied in some part."""
        return tuple(i for i in range(len(self.order.strides)) if any(i in part.tied for part in self.parts))

    @property
    def one_digit(self) -> bool:
        """Whether boxes extend along one digit, beside one that is tied: equally spaced positions."""
        return len(self.parts) == 1 and len(self.parts[0].digits) == len(self.tied) == 1

    @property
    def scattered(self) -> bool:
        """Whether no digit of the boxes of columns is the last of a position, so that none of their positions are neighbours."""
        return len(self.parts) == 1 and max(self.parts[0].digits) < len(self.order.strides) - 1

    @property
    def mask(self) -> Pattern:
        """The masks of all parts."""
        return any_of(*(part.mask for part in self.parts))

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for part in self.parts for run in part.runs)


def box_axis(lowered: Pattern, order: Order, column: str) -> BoxAxis | None:
    """One direction of a pattern in an order; None where bounds of single digits do not say enough."""
    p = in_digits(lowered, order, column)
    if any(x.op in ("read", "member", "inside") or (x.op == "mod" and _names_digit(x, column)) for x in postorder(p)):
        return None
    try:
        groups = disjoint(conjuncts_in(p, order, column, MOST_RUNS), order, column)
        parts = [_part(p if len(groups) == 1 else None, group, order, column) for group in groups]
    except (TooManyConjuncts, NeedsTable):
        return None
    if not parts or None in parts:
        return None
    axis = BoxAxis(order, column, tuple(parts))
    return axis if len(axis.tied) < len(order.strides) else None


def _names_digit(x: Index, side: str) -> bool:
    return any(name[0] == side and name[1:].isdigit() for name in variables(x))


def _part(whole: Pattern | None, group: list[Conjunct], order: Order, column: str) -> BoxPart | None:
    """Conjuncts whose runs share their boxes; they have the same tied digits.  `whole`: what they are of, where they are all of it."""
    tied = ties(group[0], order)
    free = [i for i in range(len(order.strides)) if i not in tied]
    if not free:
        return None
    runs: dict[int, list[Run]] = {i: [] for i in free}
    for conjunct in group:
        own = _by_digit(conjunct, order, column, tied)
        if own is None:
            return None
        for i in free:
            projection = _project(own[i], conjunct, order, i, column)
            if not projection.tight:
                return None
            runs[i].append(_run(projection, order, i, column, tied))
    digits = {}
    for i, of_digit in runs.items():
        in_order = ascending(of_digit, _values(order, i, column)[0])
        digits[i] = AxisPlan("formula", tuple(in_order or of_digit), len(of_digit), in_order is not None)
    return BoxPart(_mask(whole, group, tied, column), tied, digits)


def _mask(whole: Pattern | None, group: list[Conjunct], tied: tuple[int, ...], column: str) -> Pattern:
    """The pattern as it is written, where it does not name tied digits of columns any more; else its conjuncts."""
    if whole is not None:
        mask = _without_ties(whole, tied)
        if not variables(mask) & {f"{column}{i}" for i in tied}:
            return mask
    return _without_ties(any_of(*map(pattern_of, group)), tied)


def _without_ties(p: Pattern, tied: tuple[int, ...]) -> Pattern:
    """The mask without what holds in every visited box."""
    known = {tie(i) for i in tied}
    if p in known:
        return all_of()
    if p.op in ("and", "or"):
        parts = [_without_ties(part, tied) for part in p.args]
        return (all_of if p.op == "and" else any_of)(*parts)
    return p


def _by_digit(conjunct: Conjunct, order: Order, column: str, tied: tuple[int, ...]) -> dict[int, Conjunct] | None:
    """The comparisons of a conjunct by the column digit that they bound; None where one still mentions a tied digit.

    One that mentions several digits bounds the most significant of them.  Those on the row alone empty the product wherever they
    empty one factor: they go to the row digit that they read alone, else to the first free one.
    """
    names, rows = ({name: i for i, name in enumerate(order.names(side))} for side in (column, "q" if column == "k" else "k"))
    out: dict[int, Conjunct] = {i: {} for i in range(len(names)) if i not in tied}
    for core, interval in conjunct.items():
        if any(core is tie(i).args[0] for i in tied):
            continue
        found = [names[v] for v in variables(core) if v in names]
        if any(i in tied for i in found):
            return None
        if not found:
            found = [rows[v] for v in variables(core) if v in rows]
            found = found if len(found) == 1 and found[0] in out else [min(out)]
        out[min(found)][core] = interval
    return out


def _project(own: Conjunct, conjunct: Conjunct, order: Order, i: int, column: str) -> Projection:
    """The bounds of digit `i`: outer ones for some value that the digits after it may have, inner ones for every such value."""
    row = "q" if column == "k" else "k"
    spans = {name: ends(name) for name in order.names(row)}
    for later, extent in list(enumerate(order.extents))[i + 1 :]:
        digit = Index("var", f"{column}{later}")
        low, high = conjunct.get(digit, (0, extent - 1))
        spans[digit.args[0]] = const(int(max(low, 0))), const(int(min(high, extent - 1)))
    return Projector(f"{column}{i}", Symbols(spans)).project(own)


def _exists(order: Order, level: int, row: str) -> Pattern:
    """Whether the values of a tile's digits from a ragged one on are those of a position."""
    return sum((ends(f"{row}{j}")[0] * order.strides[j] for j in range(level, len(order.strides))), const(0)) < order.strides[level - 1]


def _values(order: Order, i: int, column: str) -> tuple[Index, Index]:
    """First and last value of a column digit; of the first digit, for columns that may end within a period."""
    if i:
        return const(0), const(order.extents[i] - 1)
    first, last = columns_of(column)
    return first // order.strides[0], last // order.strides[0]


def _run(projection: Projection, order: Order, i: int, column: str, tied: tuple[int, ...]) -> Run:
    """Bounds of a digit; inner ones hold values only with which all values of the digits after it exist."""
    row = "q" if column == "k" else "k"
    lo, hi, inner_lo, inner_hi = closed(projection, *_values(order, i, column))
    exists = [_exists(order, level, row) for level in order.ragged if all(j in tied for j in range(level, len(order.strides)))]
    if exists and i == min(set(range(len(order.strides))) - set(tied)):  # rows that do not exist visit nothing
        hi, inner_hi = where(all_of(*exists), hi, lo - 1), where(all_of(*exists), inner_hi, inner_lo - 1)
    if projection.inner.empty:
        return Run(lo, hi, inner_lo, inner_hi)
    stride = order.strides[i]
    for level in (0, *order.ragged):
        # What the tied digits before this one leave of a period, or of the sequence.
        if level > i or any(j not in tied for j in range(level, i)) or (not level and order.natural):
            continue
        taken = sum((ends(f"{row}{j}")[0] * order.strides[j] for j in range(level, i)), const(0))
        first, last = columns_of(column) if level == 0 else (const(0), const(order.strides[level - 1] - 1))
        inner_hi = least(inner_hi, (last + 1 - taken) // stride - 1)
        if level == 0:
            inner_lo = greatest(inner_lo, (first + (stride - 1) - taken) // stride)
    return Run(lo, hi, inner_lo, inner_hi)
