"""Which boxes serve an order at one length, and what they visit: the least of all boxes of as many positions as a tile has."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from patternc.analysis.evaluate import evaluate_all
from patternc.analysis.grid import Axis
from patternc.orders.boxes import BoxAxis, BoxPart
from patternc.orders.digits import Order
from patternc.passes import variables
from patternc.visits import tiles_of_runs

LARGEST = 256  # values of one digit in a box
WORTH = 1 / 32  # of the tiles: less is not worth other kernels, for boxes that begin elsewhere, which some lengths would ask for and others not


@dataclass(frozen=True)
class Sizes:
    """What boxes are counted for."""

    n_q: int
    n_k: int
    q_start: int

    @property
    def numbers(self) -> dict[str, int]:
        return {"n_q": self.n_q, "n_k": self.n_k, "q_start": self.q_start}

    def span(self, side: str) -> tuple[int, int]:
        return (self.q_start, self.q_start + self.n_q - 1) if side == "q" else (0, self.n_k - 1)

@dataclass(frozen=True)
class Boxes:
    """Boxes for one direction of a plan.

    Attributes:
        rows: extents by digit, powers of two; 1 for tied digits.
        columns: the same for the columns of every part.
        offset: for every part, whether its boxes of columns begin where the bounds of the row box begin, not at multiples of
            their extents.
        first_boxes: boxes of the first digit's rows.
        programs: boxes of rows.
        tiles, full: boxes of columns that they visit, and those of them that need no mask, for one head.
    """

    rows: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    offset: tuple[bool, ...]
    first_boxes: int
    programs: int
    tiles: int
    full: int


@lru_cache(maxsize=1024)
def choose_boxes(axis: BoxAxis, sizes: Sizes, rows: int, columns: int) -> Boxes | None:
    """The boxes of `rows` and `columns` positions that visit least.

    None where bounds depend on more than positions and lengths, or where digits of few values hold no boxes of so many positions.
    """
    counts = [PartCounts(axis, part, sizes) for part in axis.parts]
    shapes = [_shapes(axis.order, list(part.digits), columns) for part in axis.parts]
    if not all(shapes) or not all(c.known for c in counts):
        return None
    best = None
    for a in _shapes(axis.order, [i for i in range(len(axis.order.strides)) if i not in axis.tied], rows):
        numbers = [-(-len(values) // extent) for values, extent in zip(counts[0].rows, a)]
        programs = math.prod(numbers)
        chosen = [c.best(a, own, numbers) for c, own in zip(counts, shapes)]
        tiles, full = sum(c[0] for c in chosen), sum(c[1] for c in chosen)
        # Of boxes that visit equally many, those with the longest last digit read memory in the longest pieces.
        key = tiles, -full, programs, [-x for c in chosen for x in reversed(c[3])]
        if best is None or key < best[0]:
            best = key, Boxes(a, tuple(c[3] for c in chosen), tuple(c[2] for c in chosen), numbers[0], programs, tiles, full)
    return best[1] if best else None


def counts_by_program(axis: BoxAxis, sizes: Sizes, boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """`(visited, full)` boxes of columns for every box of rows, int64 [programs], in the order in which kernels number boxes of rows."""
    digits = range(len(axis.order.strides))
    slowest = [*axis.tied, *(i for i in digits if i not in axis.tied)]  # the last digit changes fastest
    out = [np.int64(0), np.int64(0)]
    for part, extents, offset in zip(axis.parts, boxes.columns, boxes.offset):
        counts = PartCounts(axis, part, sizes)
        shape = [-(-len(values) // a) for values, a in zip(counts.rows, boxes.rows)]
        for sort in (0, 1):
            own = np.ones(shape, np.int64)
            for i in part.digits:
                own = own * counts.tiles(i, boxes.rows, offset, extents[i])[sort]
            out[sort] = out[sort] + own.transpose(slowest).ravel()
    return tuple(out)


def _shapes(order: Order, free: list[int], size: int) -> list[tuple[int, ...]]:
    """Boxes of `size` positions, by digit; a digit's box is not larger than the power of two that holds the digit."""
    most = [
        1 if i not in free else size if extent is None or len(free) == 1 else min(size, 1 << (extent - 1).bit_length())
        for i, extent in enumerate(order.extents)
    ]
    sides = [[1 << e for e in range(m.bit_length())] for m in most]
    return [box for box in itertools.product(*sides) if math.prod(box) == size]


def values_of(order: Order, i: int, first: int, last: int) -> range:
    """The values of a digit over positions first .. last."""
    return range(first // order.strides[0], last // order.strides[0] + 1) if i == 0 else range(order.extents[i])


class PartCounts:
    """One part of an axis at one length: its bounds for boxes of rows, and what boxes of columns they make."""

    def __init__(self, axis: BoxAxis, part: BoxPart, sizes: Sizes):
        digits = range(len(axis.order.strides))
        self.side, self.part, self.numbers = axis.row, part, sizes.numbers
        self.rows, self.columns = ([values_of(axis.order, i, *sizes.span(side)) for i in digits] for side in (axis.row, axis.column))
        self.formulas = {i: [x for run in own.runs for x in (run.lo, run.hi, run.inner_lo, run.inner_hi)] for i, own in part.digits.items()}
        names = {i: frozenset().union(*map(variables, own)) - set(self.numbers) for i, own in self.formulas.items()}
        own_names = {name: i for i in digits for name in self.names(i)}
        self.known = all(name in own_names for own in names.values() for name in own)
        self.read = {i: sorted({own_names[name] for name in own}) for i, own in names.items()} if self.known else {}  # row digits
        self.bounds: dict[tuple, np.ndarray] = {}
        self.counted: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        # Digits that read no row digit in common are counted apart.
        read = [i for own in self.read.values() for i in own]
        self.apart = len(read) == len(set(read))

    def names(self, i: int) -> tuple[str, str]:
        return f"r0_{self.side}{i}", f"r1_{self.side}{i}"

    def bounds_of(self, i: int, a: tuple[int, ...]) -> np.ndarray:
        """int64 [row boxes of digit 0 (1 where it is not read), .. of digit 1, .., runs, 4] for boxes of `a` row values."""
        key = i, *(a[j] for j in self.read[i])
        if key not in self.bounds:
            ends, shape = dict(self.numbers), [1] * len(self.rows)
            for j in self.read[i]:
                axis = [-1 if j == at else 1 for at in range(len(shape))]
                first = np.arange(self.rows[j].start, self.rows[j].stop, a[j])
                ends |= dict(zip(self.names(j), (first.reshape(axis), np.minimum(first + a[j] - 1, self.rows[j].stop - 1).reshape(axis))))
                shape[j] = len(first)
            found = np.empty((*shape, len(self.formulas[i])), np.int64)
            for at, value in enumerate(evaluate_all(self.formulas[i], ends)):
                found[..., at] = value
            self.bounds[key] = found.reshape(*shape, len(self.formulas[i]) // 4, 4)
        return self.bounds[key]

    def tiles(self, i: int, a: tuple[int, ...], offset: bool, extents) -> list[np.ndarray]:
        """Boxes that are visited, and full ones, int64 [row boxes ..] for an extent of column boxes, or [row boxes .., extents] for several."""
        several = np.ndim(extents) == 1
        bounds = self.bounds_of(i, a)
        tiles = box_tiles(bounds[..., None, :, :] if several else bounds, self.columns[i], extents[:, None] if several else extents, offset)
        return [(tiles[..., end] - tiles[..., end - 1]).sum(-1) for end in (1, 3)]

    def count(self, i: int, a: tuple[int, ...], offset: bool) -> tuple[np.ndarray, np.ndarray]:
        """`tiles` for extents 1, 2, 4 .. LARGEST, summed over row boxes where digits are counted apart."""
        key = i, offset, *(a[j] for j in self.read[i])
        if key not in self.counted:
            found = self.tiles(i, a, offset, 1 << np.arange(LARGEST.bit_length()))  # all at once: arrays are short
            self.counted[key] = tuple(x.sum(tuple(range(x.ndim - 1))) if self.apart else x for x in found)
        return self.counted[key]

    def best(self, a: tuple[int, ...], shapes: list[tuple[int, ...]], numbers: list[int]) -> tuple[int, int, bool, tuple[int, ...]]:
        """`(tiles, full ones, offset, box)` that visit least for boxes of `a` row values, of which there are `numbers`."""
        places = {i: [box[i].bit_length() - 1 for box in shapes] for i in self.part.digits}
        unread = math.prod(n for j, n in enumerate(numbers) if not any(j in own for own in self.read.values()))
        best = None
        for offset in (False, True) if all(own.count == 1 for own in self.part.digits.values()) else (False,):
            totals = []
            for sort in (0, 1):
                product = np.ones(len(shapes), np.int64)
                for i in self.part.digits:
                    product = product * self.count(i, a, offset)[sort][..., places[i]]
                totals.append((product.sum(tuple(range(product.ndim - 1))) * unread).tolist())
            for tiles, full, box in zip(*totals, shapes):
                key = tiles * (1 + WORTH * offset), -full, [-x for x in reversed(box)]
                if best is None or key < best[0]:
                    best = key, (tiles, full, offset, box)
        return best[1]


def box_tiles(bounds: np.ndarray, columns: range, b, offset: bool) -> np.ndarray:
    """Bounds of a digit [.., runs, 4] to disjoint box numbers (start, stop, full start, full stop); offset ones count from the first bound.

    `b`: the extent of a box, or an array of extents that broadcasts against the runs.
    """
    if not offset:
        return tiles_of_runs(bounds, Axis("", columns.start, len(columns), b))
    origin = np.clip(bounds[..., 0].min(-1, keepdims=True), columns.start, columns.stop - 1)
    low, high = np.maximum(bounds[..., 0], columns.start), np.minimum(bounds[..., 1], columns.stop - 1)
    inner = np.maximum(bounds[..., 2], columns.start), np.minimum(bounds[..., 3], columns.stop - 1)
    moved = np.stack([low, np.where(bounds[..., 0] > bounds[..., 1], low - 1, high), *inner], -1) - origin[..., None]
    return tiles_of_runs(moved, Axis("", 0, len(columns), b))
