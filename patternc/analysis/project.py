"""Projection: the columns that a conjunct leaves to a tile of rows, by solving each comparison for the column variable.

The same code serves three kinds of numbers, through an `Algebra`: symbols (the formulas that kernels evaluate), and arrays
of a device (tables of runtime data).  *Outer* bounds hold for some row of the tile, *inner* bounds for every row; both come
from the same inversion, with the interval of the row part swapped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from patternc.analysis.tabulate import is_hard
from patternc.expr.arithmetic import add, divisor, linear, maximum, minimum, scale, terms
from patternc.expr.bounds import INF, interval
from patternc.expr.index import Index, where
from patternc.expr.pattern import all_of
from patternc.passes import Conjunct, variables

R0, R1 = Index("var", "r0"), Index("var", "r1")  # first and last row position of a tile


def ends(digit: str) -> tuple[Index, Index]:
    """First and last value of a row digit (`q0`, `k2`) in a tile that is a box of digits."""
    return Index("var", f"r0_{digit}"), Index("var", f"r1_{digit}")


def _first_of(x: Index) -> Index | None:
    """The variable of the first position (or digit) of a tile, for that of the last."""
    return Index("var", "r0" + x.args[0][2:]) if x.op == "var" and x.args[0].startswith("r1") else None


def ordered(a: Index, b: Index) -> bool:
    """Whether `a <= b` for every tile, from `0 <= r0 <= r1` and the intervals of the rest."""
    low, parts = terms(add(b, scale(a, -1)))
    for last, slope in list(parts.items()):
        first = _first_of(last)
        if first is not None:  # r1 = r0 + s with s >= 0
            parts[first] = parts.get(first, 0) + parts.pop(last)
            low = low if slope >= 0 else -INF
    for t, w in parts.items():
        least, most = (0, INF) if t.op == "var" and t.args[0].startswith("r0") else interval(t)
        if w:
            low += w * (least if w > 0 else most)
    return low >= 0


def least(a: Index, b: Index) -> Index:
    """`min(a, b)`, decided where the order of the two is provable."""
    return a if ordered(a, b) else b if ordered(b, a) else minimum(a, b)


def greatest(a: Index, b: Index) -> Index:
    return b if ordered(a, b) else a if ordered(b, a) else maximum(a, b)


FAR = 2**29  # beyond all positions; sums of a few such numbers fit into 32 bits


class NeedsTable(Exception):
    """The bounds depend on the values of a tensor, or on arithmetic that formulas do not bound usefully."""


class Symbols:
    """The algebra of formulas: bounds are index expressions in `r0`, `r1` and the call's numbers."""

    minimum, maximum = staticmethod(least), staticmethod(greatest)

    def __init__(self, spans: dict[str, tuple[Index, Index]]):
        """`spans`: the first and last value of every row variable in a tile."""
        self.spans = spans

    def leaf(self, x: Index):
        return self.spans[x.args[0]] if x.op == "var" and x.args[0] in self.spans else (x, x)

    def constant(self, value: int) -> Index:
        return Index("const", value)

    def at_most(self, a, b):
        return a <= b

    def both(self, a, b):
        return all_of(a, b)

    def select(self, condition, a, b):
        return where(condition, a, b)

    def read(self, x: Index, spans):
        raise NeedsTable

    def solve_read(self, x: Index, low, high, inner: bool):
        raise NeedsTable


@dataclass
class Interval:
    """What is known about the column: `low <= column <= high` (None is open), or nothing at all is possible."""

    low: object = None
    high: object = None
    empty: bool = False


@dataclass
class Projection:
    """The bounds of one conjunct for one tile of rows.

    Attributes:
        outer, inner: the column intervals.
        some, every: conditions on the tile alone: some row can (every row does) meet the comparisons without the column;
            None stands for true.
        tight: the outer interval misses nothing that the comparisons on the column say.
    """

    outer: Interval = field(default_factory=Interval)
    inner: Interval = field(default_factory=Interval)
    some: object = None
    every: object = None
    tight: bool = True


class Projector:
    """Projects conjuncts onto one column variable ("k" for q tiles, "q" for k tiles)."""

    def __init__(self, column: str, algebra):
        self.column, self.algebra = column, algebra
        self.tight = True

    def project(self, conjunct: Conjunct) -> Projection:
        out = Projection()
        for core, (low, high) in conjunct.items():
            low = None if low == -INF else self.algebra.constant(int(low))
            high = None if high == INF else self.algebra.constant(int(high))
            if self.column not in variables(core):
                self._condition(out, core, low, high)
                continue
            self.tight = True
            outer = self._solve(core, low, high, inner=False)
            out.tight = out.tight and self.tight
            inner = self._solve(core, low, high, inner=True)
            out.outer, out.inner = self._meet(out.outer, outer), self._meet(out.inner, inner)
        return out

    def _condition(self, out: Projection, core: Index, low, high) -> None:
        a, b = self.span(core)
        le, both = self.algebra.at_most, self.algebra.both
        for bound, some, every in ((low, (low, b), (low, a)), (high, (a, high), (b, high))):
            if bound is not None:
                out.some = le(*some) if out.some is None else both(out.some, le(*some))
                out.every = le(*every) if out.every is None else both(out.every, le(*every))

    def _meet(self, a: Interval, b: Interval) -> Interval:
        low = b.low if a.low is None else a.low if b.low is None else self.algebra.maximum(a.low, b.low)
        high = b.high if a.high is None else a.high if b.high is None else self.algebra.minimum(a.high, b.high)
        return Interval(low, high, a.empty or b.empty)

    # ---- intervals of what does not mention the column

    def span(self, x: Index):
        """Bounds of an expression without the column over the rows of the tile."""
        op, args, f = x.op, x.args, self.algebra
        if op == "const":
            return (f.constant(args[0]),) * 2
        if op in ("var", "arg"):
            return f.leaf(x)
        if op == "sum":
            low = high = f.constant(args[0])
            for atom, w in terms(x)[1].items():
                a, b = self.span(atom)
                low, high = (low + a * w, high + b * w) if w > 0 else (low + b * w, high + a * w)
            return low, high
        if op in ("read", "member", "inside"):
            return f.read(x, [self.span(s) for s in args[1:] if isinstance(s, Index)])
        if op in ("mod", "mul") and isinstance(f, Symbols) and is_hard(x):
            raise NeedsTable
        spans = [self.span(c) for c in x.children]
        if op in ("min", "max"):
            pick = f.minimum if op == "min" else f.maximum
            low, high = spans[0]
            for a, b in spans[1:]:
                low, high = pick(low, a), pick(high, b)
            return low, high
        if op == "abs":
            (a, b), zero = spans[0], f.constant(0)
            return f.maximum(f.maximum(a, a * 0 - b), zero), f.maximum(a * 0 - a, b)
        (a, b), (c, d) = spans
        if op in ("div", "mod"):
            c, d = (divisor(v) if isinstance(v, Index) else v for v in (c, d))
        if op == "div" and self._is_point(args[1]):
            return a // c, b // c
        if op == "mod" and self._is_point(args[1]):
            one = f.both(f.at_most(a // c, b // c), f.at_most(b // c, a // c))
            return f.select(one, a % c, a * 0), f.select(one, b % c, d - 1)
        if op == "mod":
            return a * 0, d - 1
        corners = [u // v for u in (a, b) for v in (c, d)] if op == "div" else [u * v for u in (a, b) for v in (c, d)]
        low = high = corners[0]
        for value in corners[1:]:
            low, high = f.minimum(low, value), f.maximum(high, value)
        return low, high

    def _is_point(self, x: Index) -> bool:
        return not variables(x) & {"q", "k"} and not any(n.op in ("read", "member") for n in (x, *x.children))

    # ---- inversion: which columns bring an expression into an interval

    def _solve(self, x: Index, low, high, inner: bool) -> Interval:
        """The columns that bring `x` into `low .. high`, for some row (outer) or for every row (inner)."""
        constant, parts = terms(x)
        mine = [(t, w) for t, w in parts.items() if self.column in variables(t)]
        if len(mine) != 1:
            return self._unknown(inner)
        (atom, w) = mine[0]
        rest = linear(constant, {t: c for t, c in parts.items() if t is not atom})
        a, b = self.span(rest)
        if inner:
            a, b = b, a
        low, high = (None if low is None else low - b), (None if high is None else high - a)
        if w < 0:
            low, high, w = (None if high is None else high * -1), (None if low is None else low * -1), -w
        if w > 1:
            low, high = (None if low is None else (low + (w - 1)) // w), (None if high is None else high // w)
        return self._invert(atom, low, high, inner)

    def _invert(self, x: Index, low, high, inner: bool) -> Interval:
        op, args, f = x.op, x.args, self.algebra
        if op == "var":
            return Interval(low, high)
        if op == "div" and self._is_point(args[1]):
            m = self.span(args[1])[0]
            return self._solve(args[0], None if low is None else low * m, None if high is None else high * m + (m - 1), inner)
        if op in ("min", "max"):
            return self._invert_extremum(x, low, high, inner)
        if op == "abs" and low is None:
            return self._solve(args[0], high * -1, high, inner)
        if op == "read" and len(args) == 2 or op == "member":
            inside = self._positions(args[1], f.solve_read(x, low, high, inner), inner)
            if inside is not None:
                return inside
        return self._unknown(inner)

    def _positions(self, subscript: Index, found: Interval | None, inner: bool) -> Interval | None:
        """From an interval of subscripts to one of columns."""
        return None if found is None else self._solve(subscript, found.low, found.high, inner)

    def _invert_extremum(self, x: Index, low, high, inner: bool) -> Interval:
        """`min(a, r) >= low` is both, `min(a, r) <= high` is either, with a in the column and r of the tile; `max` mirrors it.

        Where r decides for every row that counts, the bounds that a gives are moved out of the way: to everything, or to nothing.
        That is done to bounds of the column: numbers beyond all positions leave no room for the factors on the way there.
        """
        mine = [c for c in x.args if self.column in variables(c)]
        if len(mine) != 1:
            return self._unknown(inner)
        rest, out = [self.span(c) for c in x.args if c is not mine[0]], Interval()
        for bound, is_low in ((low, True), (high, False)):
            if bound is None:
                continue
            found = self._solve(mine[0], *((bound, None) if is_low else (None, bound)), inner)
            for a, b in rest:
                if inner:
                    a, b = b, a  # the least and the greatest that one row (outer), or every row (inner), reaches
                found = self._unless(found, self.algebra.at_most(*((bound, b) if is_low else (a, bound))), is_low == (x.op == "min"))
            out = self._meet(out, found)
        return out

    def _unless(self, found: Interval, met, needed: bool) -> Interval:
        """Nothing where a needed condition is not met; everything where one is met that is not needed."""
        f, far = self.algebra, self.algebra.constant(FAR)

        def moved(value, side: int):
            if value is None:
                return None
            return f.select(met, value, far * -side) if needed else f.select(met, far * side, value)

        return Interval(moved(found.low, -1), moved(found.high, 1), found.empty)

    def _unknown(self, inner: bool) -> Interval:
        self.tight = False
        return Interval(empty=inner)
