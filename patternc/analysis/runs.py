"""Algebra of runs: sorted, disjoint, half-open intervals on one integer axis, as a pair of int64 arrays `(start, stop)`.

A tile of a grid is the key `row * width + column` with `width` one more than the number of columns, so that runs of
neighbouring rows never touch.  Every operation costs O(runs log runs), however many tiles the runs hold.
"""

from __future__ import annotations

import numpy as np

from patternc.forms import afford

MOST_KEYS = 1 << 24  # tiles and runs that are listed one by one: some hundred bytes and half a microsecond each
Runs = tuple[np.ndarray, np.ndarray]
NOTHING: Runs = (np.empty(0, np.int64), np.empty(0, np.int64))


def union(parts: list[Runs]) -> Runs:
    """The union of run sets whose members may be unsorted and overlap."""
    parts = [p for p in parts if len(p[0])]
    if not parts:
        return NOTHING
    start = parts[0][0] if len(parts) == 1 else np.concatenate([p[0] for p in parts])
    stop = parts[0][1] if len(parts) == 1 else np.concatenate([p[1] for p in parts])
    if len(parts) > 1 or (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")
        start, stop = start[order], stop[order]
    furthest = np.maximum.accumulate(stop)
    first = np.flatnonzero(np.concatenate([[True], start[1:] > furthest[:-1]]))
    return start[first], np.concatenate([furthest[first[1:] - 1], furthest[-1:]])


def intersect(a: Runs, b: Runs) -> Runs:
    if not len(a[0]) or not len(b[0]):
        return NOTHING
    first = np.searchsorted(b[1], a[0], "right")
    last = np.searchsorted(b[0], a[1], "left")
    count = np.maximum(last - first, 0)
    ib = ragged_arange(first, count)
    ia = np.repeat(np.arange(len(count)), count)
    return np.maximum(a[0][ia], b[0][ib]), np.minimum(a[1][ia], b[1][ib])


def subtract(a: Runs, b: Runs, total: int) -> Runs:
    """`a` without `b`; `total` is the end of the axis."""
    if not len(b[0]):
        return a
    gaps = (np.concatenate([[0], b[1]]), np.concatenate([b[0], [total]]))
    keep = gaps[1] > gaps[0]
    return intersect(a, (gaps[0][keep], gaps[1][keep]))


def ragged_arange(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """`start[0], start[0]+1, ..` of `count[0]` values, then the same for the next.  Raises LimitError beyond MOST_KEYS."""
    ends = np.cumsum(count)
    afford(int(ends[-1]) if len(ends) else 0, MOST_KEYS, "partial tiles")
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - count, count) + np.repeat(start, count)


def members(runs: Runs) -> np.ndarray:
    """Every key in the runs."""
    return ragged_arange(runs[0], runs[1] - runs[0])


def total_length(runs: Runs) -> int:
    return int((runs[1] - runs[0]).sum())


def from_members(keys: np.ndarray) -> Runs:
    """Runs of sorted distinct keys."""
    if not len(keys):
        return NOTHING
    breaks = np.flatnonzero(np.diff(keys) != 1)
    return keys[np.concatenate([[0], breaks + 1])], keys[np.concatenate([breaks, [len(keys) - 1]])] + 1
