"""Vectors of one value a position, laid out so that the positions of a box lie together: tied digits first, then the others.

A kernel that visits queries in residue classes reads their lse and delta as one piece; in the order of positions each would
be a piece of memory of its own.
"""

from __future__ import annotations

import numpy as np

from patternc.orders.boxes import BoxAxis

VECTOR = 256  # vectors are a multiple of this long, which is at least as much as any tile


def whole(n: int) -> int:
    """The length of vectors of `n` queries: aligned, more than `n`, and such that the tiles that read them never leave them."""
    return (n // VECTOR + 1) * VECTOR


def sequence(axis: BoxAxis) -> tuple[int, ...]:
    """The digits that number the entries of such a vector, most significant first."""
    return (*axis.tied, *axis.parts[0].digits)


def gathered(axis: BoxAxis, first: int, count: int) -> np.ndarray:
    """For every entry, which of the positions `first .. first + count - 1` it belongs to, counted from `first`; `count` for none.

    The first digit has entries for `VECTOR` values and more beyond its last, so that no tile of it leaves its piece of memory.
    """
    order = axis.order
    position = np.zeros(1, np.int64)
    for i in sequence(axis):
        begin, extent = 0, order.extents[i]
        if extent is None:
            begin = first // order.strides[0]
            extent = (-(-((first + count - 1) // order.strides[0] + 1 - begin) // VECTOR) + 1) * VECTOR
        position = (position[:, None] + order.strides[i] * np.arange(begin, begin + extent)).ravel()
    position -= first
    return np.where((position >= 0) & (position < count), position, count)
