"""How a term's pairs R = D - E can be summed: the class of R at one length, and the ranges of keys behind it.

Two kinds of condition are factors: a key that R never uses is dead, a row that R never uses has no range.  What is left of a
conjunct bounds the keys of each row, and the class is read off those bounds:

    P   R(q) = low(q) .. last(q), `last` never falls, `low` is constant between resets: one forward scan
    PS  the union of a P and of the mirror image of one: two scans
    N   `f(q) != g(k)`: a disjoint union of equalities of bits, each of class P or PS in orders of its own (`tail_levels`)
    X   anything else: states of tiles, summed by a 0/1 matrix (`tail_blocks`)

`0` stands for an R without pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from patternc.analysis.ranges import Ranges, ranges_of
from patternc.args import Bound
from patternc.cells import specialisations
from patternc.expr.node import postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.passes import TooManyConjuncts, disjuncts, lower
from patternc.tail_levels import ordered

NOTHING = 2**30  # the lowest key of a row without keys: beyond all positions


@dataclass(frozen=True, eq=False)
class Prefix:
    """Class P for one batch row: row q reads the live keys of `low .. last`.

    Attributes:
        low: int64 [n_q], NOTHING where the row reads no key.  The distinct values are where the scan resets.
        last: int64 [n_q], never falls; it may lie beyond the last key.
        live: bool [n_k], keys that are read at all; None if all are.
        shift: `last[q] == q - shift` wherever a row reads a key; None if there is no such number.
    """

    low: np.ndarray
    last: np.ndarray
    live: np.ndarray | None
    shift: int | None

    @property
    def resets(self) -> int:
        """How often the scan begins anew."""
        return len(np.unique(self.low[self.low < NOTHING])) - 1


@dataclass(frozen=True, eq=False)
class Scan:
    """One pass over the keys: `rows[b]` is the place of batch row b in `prefixes`.

    A mirrored scan goes through the last keys and rows first: its prefixes are those of the mirror image of the pairs, where
    row i is row n_q - 1 - i, and the positions of rows and keys count down from n_k - 1.
    """

    mirrored: bool
    prefixes: tuple[Prefix, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Level:
    """Scans in an order of rows and one of keys, from which positions count: `rows` and `keys` say which is at each place (int64)."""

    rows: np.ndarray
    keys: np.ndarray
    scans: tuple[Scan, ...]


@dataclass(frozen=True, eq=False)
class TailPlan:
    """The class of R at one length.

    Attributes:
        kind: "P", "PS", "N", "X", or "0" where there is no pair.
        why: what decided that, in words.
        scans: of the classes P and PS; together they pass every pair once.
        levels: of class N; together they pass every pair once.
    """

    kind: str
    why: str
    scans: tuple[Scan, ...] = ()
    levels: tuple[Level, ...] = ()

    def __str__(self):
        return f"class {self.kind}: {self.why}"


def _joined(parts: list[Ranges]) -> tuple[np.ndarray, np.ndarray] | None:
    """The union of the ranges of every row as one range each; None where some row's has a gap."""
    low, high, some = parts[0].low, parts[0].high, parts[0].some
    for part in parts[1:]:
        both = some & part.some
        if (both & (np.maximum(low, part.low) > np.minimum(high, part.high) + 1)).any():
            return None
        low = np.where(both, np.minimum(low, part.low), np.where(some, low, part.low))
        high = np.where(both, np.maximum(high, part.high), np.where(some, high, part.high))
        some = some | part.some
    return np.where(some, low, NOTHING), np.where(some, high, -1)


def _narrowed(part: Ranges) -> Ranges:
    """Live keys that lie together bound the rows' ranges instead."""
    places = np.flatnonzero(part.live)
    if places[-1] - places[0] + 1 > len(places):
        return part
    return replace(part, low=np.maximum(part.low, places[0]), high=np.minimum(part.high, places[-1]), live=np.ones_like(part.live))


def _prefix(parts: list[Ranges], rows: np.ndarray) -> Prefix | str:
    """The ranges of some conjuncts as a prefix, or why they are none."""
    if any((part.live != parts[0].live).any() for part in parts[1:]):
        parts = [_narrowed(part) for part in parts]
    live = parts[0].live
    if any((part.live != live).any() for part in parts[1:]):
        return "its parts use different keys"
    joined = _joined(parts)
    if joined is None:
        return "the keys of a row are in several ranges"
    low, high = joined
    some, low = low < NOTHING, np.maximum(low, 0)
    a, b = low[some], high[some]
    inside = np.minimum(b, len(live) - 1)
    if (np.diff(inside) < 0).any():
        return "the last key of a row falls"
    if ((np.diff(a) != 0) & (a[1:] <= inside[:-1])).any():
        return "the first key of a row moves while earlier rows' keys are still read"
    if len(a) and a.min() == a.max() > 0:  # one range from a key on that all rows share: the keys before it are dead
        live, low = live & (np.arange(len(live)) >= a[0]), np.where(some, 0, NOTHING)
    gap = rows[some] - b
    shift = int(gap[0]) if len(gap) and (gap == gap[0]).all() else None
    # Rows without keys go where their neighbours are: a row before all others reads up to key -1.
    last = rows - shift if shift is not None else np.maximum.accumulate(np.where(some, np.minimum(high, len(live) - 1), -1))
    return Prefix(np.where(some, low, NOTHING), last, None if live.all() else live, shift)


def _mirrored(parts: list[Ranges]) -> list[Ranges]:
    """The same pairs with both sequences reversed."""
    most = len(parts[0].live) - 1
    return [
        replace(p, low=np.where(p.some, most - p.high, 0)[::-1], high=np.where(p.some, most - p.low, -1)[::-1], live=p.live[::-1]) for p in parts
    ]


def _two_sided(parts: list[Ranges], rows: np.ndarray) -> tuple[Prefix | None, Prefix] | None:
    """The prefixes of a forward and of a mirrored scan that share no pair; None where the parts are not of class PS."""
    forward = [part for part in parts if isinstance(_prefix([part], rows), Prefix)]
    backward = [part for part in parts if not any(part is other for other in forward)]
    ranges = [_joined(side) for side in (forward, backward) if side]
    if not backward or any(one is None for one in ranges):
        return None
    if forward:
        (low, high), (other_low, other_high) = ranges
        if (np.maximum(low, other_low) <= np.minimum(high, other_high)).any():
            return None
    before, after = _prefix(forward, rows) if forward else None, _prefix(_mirrored(backward), len(parts[0].live) - 1 - rows[::-1])
    return None if isinstance(before, str) or isinstance(after, str) else (before, after)


def _levels(parts: list[Ranges], rows: np.ndarray, n_k: int) -> TailPlan | None:
    """The levels of parts that are `f(q) != g(k)`, each of class P or PS; None where they are not."""
    found = ordered(parts, rows)
    if found is None:
        return None
    levels, numbers = [], np.arange(len(rows))
    for level in found:
        some = [part for part in level.parts if part.pairs]
        prefix = _prefix(some, numbers) if some else None
        both = (prefix, None) if prefix is None or isinstance(prefix, Prefix) else _two_sided(some, numbers)
        if both is None:
            return None
        scans = (Scan(mirrored, (side,), (0,)) for mirrored, side in zip((False, True), both) if side is not None)
        levels += [Level(level.rows, level.keys, tuple(scans))] if some else []
    return TailPlan("N", "", (), tuple(levels))


Found = tuple[str, str, Prefix | None, object]  # class, why, prefixes of the forward and of the mirrored scan; of class N None and the levels


def class_of(p: Pattern, rows: np.ndarray, n_k: int) -> Found:
    """What is found for one specialised pattern."""
    try:
        conjuncts = disjuncts(p)
    except TooManyConjuncts:
        return "X", "it falls into too many parts", None, None
    parts = ranges_of(conjuncts, rows, n_k)
    if not parts:
        return "0", "no pair at this length", None, None
    unsolved = [core for part in parts for core in part.unsolved]
    if unsolved:
        levels = _levels(parts, rows, n_k)
        data = any(x.op == "data" for x in postorder(unsolved[0]))
        why = "equal values do not lie together" if data else f"`{unsolved[0]}` bounds no range of keys"
        return ("X" if levels is None else "N"), why, None, levels
    found = _prefix(parts, rows)
    if isinstance(found, Prefix):
        return "P", _words(found), found, None
    both = _two_sided(parts, rows)
    if both is None:
        return "X", found, None, None
    sides = [f"{_words(side, mirrored)}" for side, mirrored in zip(both, (False, True)) if side is not None]
    return "PS", "; ".join(sides), *both


def _words(p: Prefix, mirrored: bool = False) -> str:
    sign = (p.shift or 0) * (-1 if mirrored else 1)
    end = "a step function of q" if p.shift is None else "q" if sign == 0 else f"q {'-' if sign > 0 else '+'} {abs(sign)}"
    dead = "" if p.live is None else f", but for {np.count_nonzero(~p.live)} that no row reads"
    times = "" if p.resets < 1 else f", beginning anew {p.resets} time{'s' * (p.resets > 1)}"
    return f"row q reads the keys {'from' if mirrored else 'up to'} {end}{' on' if mirrored else ''}{dead}{times}"


def _scan(mirrored: bool, found: list[Prefix | None], n_q: int) -> Scan | None:
    """The scan of the batch rows' prefixes, equal ones once; None where no row has one."""
    distinct = list(dict.fromkeys(found))
    if distinct == [None]:
        return None
    nothing = Prefix(np.full(n_q, NOTHING), np.full(n_q, -1), None, None)
    return Scan(mirrored, tuple(nothing if p is None else p for p in distinct), tuple(distinct.index(p) for p in found))


@roomy
def tail_plan(rest: Pattern, bound: Bound) -> TailPlan:
    """The class of R = D - E for the sizes and args of a call; the work is proportional to the rows and keys, not to the pairs.

    Args:
        rest: R, as `all_of(domain, negate(exact))` makes it.
        bound: sizes and args; tensors of other devices are copied, which waits for them.
    """
    bound = bound.numpy()
    if not (bound.n_q and bound.n_k and bound.batch and bound.heads):
        return TailPlan("0", "no pair at this length")
    kept: dict[tuple, Found] = {}
    of_row: list[Found | None] = [None] * bound.batch
    for start, heads, batch, pattern in specialisations(lower(rest), bound):
        if len(heads) < bound.heads:
            return TailPlan("X", "it differs from head to head")
        if (start, pattern) not in kept:
            kept[start, pattern] = class_of(pattern, start + np.arange(bound.n_q), bound.n_k)
        for b in batch:
            of_row[b] = kept[start, pattern]
    kinds = {kind: why for kind, why, *_ in reversed(of_row)}
    kind = next(k for k in ("X", "N", "PS", "P", "0") if k in kinds)
    if kind == "N" and len(set(map(id, of_row))) == 1:
        return replace(of_row[0][3], why=kinds[kind])
    if kind not in ("P", "PS"):
        return TailPlan("X" if kind == "N" else kind, kinds[kind])
    scans = [_scan(mirrored, [found[2 + mirrored] for found in of_row], bound.n_q) for mirrored in (False, True)]
    return TailPlan(kind, kinds[kind], tuple(scan for scan in scans if scan is not None))
