"""Pairs with `f(q) != g(k)` as a disjoint union of equalities, one for each bit of the values' numbers.

Level l holds the pairs whose numbers agree above bit l and differ in it.  With the keys sorted by (number >> l), and the rows by the
same with bit l turned, the rows and keys of a level that belong together lie together, and what else bounds the keys of a row
bounds their places there, since a sort that is stable keeps their order: each level is of class P or PS in orders of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from patternc.analysis.evaluate import evaluate
from patternc.analysis.ranges import Ranges, without
from patternc.expr.arithmetic import linear, terms
from patternc.expr.bounds import INF
from patternc.expr.index import Index
from patternc.passes import variables


@dataclass(frozen=True, eq=False)
class Ordered:
    """The ranges of one level.

    Attributes:
        rows, keys: int64 [n_q] and [n_k], which row and which key is at each place.
        parts: ranges of places, `low .. high`, of the row at each place.
    """

    rows: np.ndarray
    keys: np.ndarray
    parts: list[Ranges]


def ordered(parts: list[Ranges], rows: np.ndarray) -> list[Ordered] | None:
    """The levels of parts that are all `f(q) != g(k)` for the same f and g; None where they are not.

    Args:
        rows: positions of the rows.
    """
    joined = _joined(parts, rows)
    if joined is None:
        return None
    core, value, ranges = joined
    f, g = _sides(core, value, rows, np.arange(len(parts[0].live)))
    values, numbers = np.unique(np.concatenate([f, g]), return_inverse=True)
    f, g = numbers[: len(f)], numbers[len(f) :]
    levels = ((f >> bit ^ 1, g >> bit) for bit in range(max(len(values) - 1, 0).bit_length()))
    return [_level(ranges, *both) for both in levels]


def _joined(parts: list[Ranges], rows: np.ndarray) -> tuple[Index, int, list[Ranges]] | None:
    """The core and the one value that it must not have, and the ranges of its complement without that condition."""
    if any(len(part.unsolved) != 1 for part in parts):
        return None
    core = parts[0].unsolved[0]
    if any(part.unsolved[0] is not core for part in parts) or any(len(variables(t)) != 1 for t in terms(_inner(core))[1]):
        return None
    found: dict[frozenset, list] = {}
    for part in parts:
        others = frozenset((x, bound) for x, bound in part.conjunct.items() if x is not core)
        found.setdefault(others, []).append((*part.conjunct[core], part))
    missing, ranges = set(), []
    for sides in found.values():
        missing.add(_missing(core, [side[:2] for side in sides]))
        ranges.append(without(sides[0][2], core, rows))
        if any((side[2].live != ranges[-1].live).any() for side in sides) or ranges[-1].unsolved:
            return None
    return None if len(missing) > 1 or None in missing else (core, missing.pop(), ranges)


def _inner(core: Index) -> Index:
    return core.args[0] if core.op == "mod" else core


def _missing(core: Index, sides: list[tuple[float, float]]) -> int | None:
    """The one value, or remainder, that ranges of a core leave out; None if there is not just one."""
    first, last = (-INF, INF)
    if core.op == "mod":
        if core.args[1].op != "const":
            return None
        first, last = 0, core.args[1].args[0] - 1
    gaps, at = [], first
    for low, high in sorted((max(low, first), min(high, last)) for low, high in sides):
        if low > at:
            gaps.append((at, low - 1))
        at = max(at, high + 1)
    if at <= last and at < INF:
        gaps.append((at, last))
    return int(gaps[0][0]) if len(gaps) == 1 and gaps[0][0] == gaps[0][1] else None


def _sides(core: Index, value: int, rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f of the rows and g of the keys such that the core has the value where they are equal."""
    constant, parts = terms(_inner(core))
    f, g = (
        np.broadcast_to(evaluate(linear(0, {t: c for t, c in parts.items() if variables(t) == {name}}), {name: at}), at.shape).astype(np.int64)
        for name, at in (("q", rows), ("k", keys))
    )
    g = value - constant - g
    return (f % core.args[1].args[0], g % core.args[1].args[0]) if core.op == "mod" else (f, g)


def _level(ranges: list[Ranges], of_rows: np.ndarray, of_keys: np.ndarray) -> Ordered:
    n_k = len(of_keys)
    rows, keys = np.argsort(of_rows, kind="stable"), np.argsort(of_keys, kind="stable")
    places, first = of_keys[keys] * (n_k + 1) + keys, of_rows[rows] * (n_k + 1)
    parts = []
    for part in ranges:
        some = part.some[rows]
        low = np.searchsorted(places, first + np.clip(part.low, 0, n_k)[rows], "left")
        high = np.searchsorted(places, first + np.clip(part.high, -1, n_k - 1)[rows], "right") - 1
        parts.append(replace(part, low=np.where(some, low, 0), high=np.where(some, high, -1), live=part.live[keys], unsolved=()))
    return Ordered(rows, keys, parts)


__all__ = ["Ordered", "ordered"]
