"""Vectors of one value a position, laid out so that the positions of a box lie together: tied digits first, then the others.

A kernel that visits queries in residue classes reads their lse and delta as one piece; in the order of positions each would
be a piece of memory of its own.
"""

from __future__ import annotations

import numpy as np

from patternc.orders.boxes import BoxAxis


def sequence(axis: BoxAxis) -> tuple[int, ...]:
    """The digits that number the entries of such a vector, most significant first."""
    return (*axis.tied, *axis.digits)


def gathered(axis: BoxAxis, first: int, count: int) -> np.ndarray:
    """For every entry, which of the positions `first .. first + count - 1` it belongs to, counted from `first`; any, where there is none."""
    digits, order = sequence(axis), axis.order
    position = np.zeros(1, np.int64)
    for i in digits:
        extent = order.extents[i]
        values = np.arange(extent) if extent else np.arange(first // order.strides[0], (first + count - 1) // order.strides[0] + 1)
        position = (position[:, None] + order.strides[i] * values).ravel()
    return np.clip(position - first, 0, max(count - 1, 0))
