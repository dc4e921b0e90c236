"""The columns that single rows read, as one range a row: projection with the values of every row, so that bounds are exact.

A comparison on the key alone does not bound a range but says which keys are live.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.analysis.data import Data
from patternc.analysis.evaluate import evaluate
from patternc.analysis.project import Interval, Projector
from patternc.expr.bounds import INF
from patternc.expr.index import Index
from patternc.expr.pattern import Pattern, all_of, any_of, between
from patternc.passes import Conjunct, variables


class _Rows:
    """The algebra of `Projector` for single rows: arrays of their values, so that outer and inner bounds are one thing."""

    minimum, maximum = staticmethod(np.minimum), staticmethod(np.maximum)

    def __init__(self, live: np.ndarray, used: np.ndarray):
        self.live, self.used = live, used  # keys and rows that their own conditions leave

    def constant(self, value: int) -> int:
        return value

    def at_most(self, a, b):
        return a <= b

    def both(self, a, b):
        return a & b

    def select(self, condition, a, b):
        return np.where(condition, a, b)

    def solve_read(self, x: Index, low, high, inner: bool) -> Interval | None:
        data = x.args[0].args[0]
        if x.op != "read" or not data.values.size:
            return None
        if data.rising:
            first = 0 if low is None else np.searchsorted(data.values, low, "left")
            return Interval(first, len(data.values) - 1 if high is None else np.searchsorted(data.values, high, "right") - 1)
        equal = low is not None and high is not None and np.all(low == high)
        return self._together(data, np.broadcast_to(low, self.used.shape)) if equal else None

    def _together(self, data: Data, wanted: np.ndarray) -> Interval | None:
        """Where the wanted values are, if the live keys of each lie together."""
        places = np.flatnonzero(self.live[: len(data.values)])
        values, of = np.unique(data.values[places], return_inverse=True)
        if not len(values):
            return Interval(empty=True)
        first, last = np.full(len(values), len(places)), np.full(len(values), -1)
        np.minimum.at(first, of, np.arange(len(places)))
        np.maximum.at(last, of, np.arange(len(places)))
        at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
        found = values[at] == wanted
        apart = last - first + 1 != np.bincount(of)
        if apart[at[found & self.used]].any():
            return None
        return Interval(np.where(found, places[first[at]], 0), np.where(found, places[last[at]], -1))


class _RowProjector(Projector):
    def __init__(self, rows: np.ndarray, live: np.ndarray, used: np.ndarray):
        super().__init__("k", _Rows(live, used))
        self.rows = rows

    def span(self, x: Index):
        value = evaluate(x, {"q": self.rows})
        return value, value


@dataclass(frozen=True, eq=False)
class Ranges:
    """The keys `low .. high` of each row that conjuncts leave, among its live keys; `unsolved` cores bound no range."""

    conjunct: Conjunct
    low: np.ndarray
    high: np.ndarray
    live: np.ndarray
    unsolved: tuple[Index, ...]

    @property
    def some(self) -> np.ndarray:
        return (self.low <= self.high) & (self.high >= 0) & (self.low < len(self.live))

    @property
    def pairs(self) -> bool:
        """Whether there may be any."""
        before = np.concatenate([[0], np.cumsum(self.live)])
        low, high = np.maximum(self.low[self.some], 0), np.minimum(self.high[self.some], len(self.live) - 1)
        return bool((before[high + 1] > before[low]).any())


def _factor(conjunct: Conjunct, *names: str) -> Pattern:
    """The comparisons of a conjunct that mention no other variables."""
    return all_of(*(
        between(core, None if low == -INF else int(low), None if high == INF else int(high))
        for core, (low, high) in conjunct.items() if variables(core) <= set(names)
    ))  # fmt: skip


def _ranges(alike: list[Conjunct], rows: np.ndarray, n_k: int) -> Ranges:
    """The ranges of conjuncts that differ in what they say of the key alone."""
    keys = np.arange(n_k)
    return _bounded(alike[0], np.broadcast_to(evaluate(any_of(*(_factor(c, "k") for c in alike)), {"k": keys}), keys.shape), rows)


def _bounded(conjunct: Conjunct, live: np.ndarray, rows: np.ndarray) -> Ranges:
    used = np.broadcast_to(evaluate(_factor(conjunct, "q"), {"q": rows}), rows.shape)
    mixed = {core: bound for core, bound in conjunct.items() if variables(core) == {"q", "k"}}
    projector, found, unsolved = _RowProjector(rows, live, used), Interval(), []
    for core, bound in mixed.items():
        one = projector.project({core: bound})
        if not one.tight:
            unsolved.append(core)
        found = projector._meet(found, one.outer)
    low, high = (default if x is None else x for x, default in ((found.low, 0), (found.high, len(live) - 1)))
    low, high = (np.broadcast_to(np.asarray(x, np.int64), rows.shape) for x in (low, high))
    return Ranges(conjunct, low, np.where(used & (not found.empty), high, -1), live, tuple(unsolved))


def without(part: Ranges, core: Index, rows: np.ndarray) -> Ranges:
    """The ranges that are left without the condition on one core."""
    return _bounded({x: bound for x, bound in part.conjunct.items() if x is not core}, part.live, rows)


def ranges_of(conjuncts: list[Conjunct], rows: np.ndarray, n_k: int) -> list[Ranges]:
    """The ranges of all conjuncts that have pairs; those that differ in what they say of the key alone are one part."""
    groups: dict[frozenset, list[Conjunct]] = {}
    for conjunct in conjuncts:
        if _ranges([conjunct], rows, n_k).pairs:
            rest = frozenset((core, bound) for core, bound in conjunct.items() if variables(core) != {"k"})
            groups.setdefault(rest, []).append(conjunct)
    return [_ranges(alike, rows, n_k) for alike in groups.values()]
