"""Integer arrays inside an analysed expression, with the facts that interval arithmetic needs about them."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np

GRANULE = 16  # entries a leaf of the minimum/maximum pyramid covers; tiles are multiples of it
_serial = itertools.count()


class Data:
    """A static array, or a runtime array of one batch row, for one analysis.  Equal only to itself.

    Attributes:
        values: the integers, of any shape; for a set of positions sorted and distinct.
        order: sorts nodes that hold it.
    """

    __slots__ = ("values", "order", "__dict__")

    def __init__(self, values):
        self.values = np.asarray(values)
        self.order = f"D{next(_serial)}"

    @cached_property
    def rising(self) -> bool:
        return self.values.ndim == 1 and bool((self.values[1:] >= self.values[:-1]).all())

    @cached_property
    def falling(self) -> bool:
        return self.values.ndim == 1 and not self.rising and bool((self.values[1:] <= self.values[:-1]).all())

    @cached_property
    def extremes(self) -> tuple[int, int]:
        if not self.values.size:  # every read is outside, and counts as 0
            return 0, 0
        if self.rising:
            return int(self.values[0]), int(self.values[-1])
        return int(self.values.min()), int(self.values.max())

    def at(self, *subscripts):
        """The entries at the subscripts, clipped into the array (whether one was inside is a comparison of its own)."""
        if not self.values.size:
            return np.zeros(np.broadcast_shapes(*(np.shape(s) for s in subscripts)), np.int64)
        return self.values[tuple(np.clip(s, 0, size - 1) for s, size in zip(subscripts, self.values.shape))]

    def range(self, *intervals):
        """Bounds of the entries whose subscripts lie in the intervals (arrays of low and high)."""
        if self.values.ndim > 1 or not self.values.size:
            return self._range_of_boxes(intervals)
        low, high = intervals[0]
        low = np.clip(low, 0, len(self.values) - 1)
        high = np.maximum(np.clip(high, 0, len(self.values) - 1), low)
        if self.rising:
            return self.values[low], self.values[high]
        if self.falling:
            return self.values[high], self.values[low]
        return self._pyramid_query(low, high)

    def _range_of_boxes(self, intervals):
        """Exact for single cells, the extremes of the whole array for larger boxes."""
        low, high = self.extremes
        shape = np.broadcast_shapes(*(np.shape(a) for pair in intervals for a in pair))
        point = np.ones(shape, bool)
        for a, b in intervals:
            point = point & (a == b)
        cell = np.broadcast_to(self.at(*(a for a, _ in intervals)), shape)
        return np.where(point, cell, low), np.where(point, cell, high)

    @cached_property
    def _pyramid(self):
        leaves = -(-len(self.values) // GRANULE)
        padded = np.concatenate([self.values, np.full(leaves * GRANULE - len(self.values), self.values[-1], self.values.dtype)])
        low, high = padded.reshape(leaves, GRANULE).min(1), padded.reshape(leaves, GRANULE).max(1)
        lows, highs = [low], [high]
        step = 1
        while 2 * step <= leaves:
            lows.append(np.minimum(lows[-1][:-step], lows[-1][step:]))
            highs.append(np.maximum(highs[-1][:-step], highs[-1][step:]))
            step *= 2
        flat = [np.concatenate(levels) for levels in (lows, highs)]
        starts = np.cumsum([0] + [len(level) for level in lows[:-1]])
        return flat[0], flat[1], starts

    def _pyramid_query(self, low, high):
        lows, highs, starts = self._pyramid
        a, b = low // GRANULE, high // GRANULE
        level = np.frexp((b - a + 1).astype(np.float64))[1] - 1
        left = starts[level] + a
        right = starts[level] + b - (1 << level) + 1
        point = low == high
        value = self.values[low]
        return (
            np.where(point, value, np.minimum(lows[left], lows[right])),
            np.where(point, value, np.maximum(highs[left], highs[right])),
        )

    # The entries by value.

    @cached_property
    def ranked(self) -> np.ndarray:
        """Subscripts of a one-dimensional array in the order of its entries."""
        return np.argsort(self.values, kind="stable")

    @cached_property
    def _sorted(self) -> np.ndarray:
        return self.values[self.ranked]

    def ranks_within(self, low, high):
        """`(first, last)`: `ranked[first:last]` are the subscripts of the entries in `low .. high`."""
        first = np.searchsorted(self._sorted, low, "left")
        return first, np.maximum(np.searchsorted(self._sorted, high, "right"), first)

    # The values as a sorted set of positions (operation `member`).

    def count_within(self, low, high):
        """How many of the positions lie in `low .. high`."""
        return np.maximum(np.searchsorted(self.values, high, "right") - np.searchsorted(self.values, low, "left"), 0)

    def contains(self, x):
        i = np.searchsorted(self.values, x)
        return (i < len(self.values)) & (self.values[np.minimum(i, len(self.values) - 1)] == x) if len(self.values) else np.zeros(np.shape(x), bool)

    @cached_property
    def first_seen(self) -> Data:
        """The array with every value replaced by the rank of its first occurrence: equal values stay equal, contiguous ids become sorted."""
        _, first, inverse = np.unique(self.values, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        return Data(rank[inverse.reshape(self.values.shape)])
