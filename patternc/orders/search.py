"""Which orders an expression suggests, which boxes serve them, and what each would visit."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from patternc.analysis.evaluate import evaluate
from patternc.analysis.grid import Axis
from patternc.analysis.specialise import specialise
from patternc.expr.arithmetic import terms
from patternc.expr.node import postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.orders.boxes import BoxAxis
from patternc.orders.digits import NATURAL, Order
from patternc.orders.simplify import in_digits
from patternc.passes import variables
from patternc.visits import tiles_of_runs

MOST_CUTS = 4  # digits beside the first
MOST_ORDERS = 16
LARGEST = 256  # values of one digit in a box


@roomy
def orders(lowered: Pattern) -> list[Order]:
    """The orders that `//` and `%` in the expression suggest, and again in what each cut leaves; the natural one is not among them."""
    found: list[Order] = []
    todo = [NATURAL]
    while todo and len(found) < MOST_ORDERS:
        order = todo.pop(0)
        if len(order.strides) > MOST_CUTS:
            continue
        p = in_digits(lowered, order, "k") if not order.natural else lowered
        for digit, cut in sorted(_cuts(p, order)):
            new = order.split(digit, cut)
            if new is not None and new not in found:
                found.append(new)
                todo.append(new)
    return found


def _cuts(p: Pattern, order: Order) -> set[tuple[int, int]]:
    """`(digit, c)` of every `// c` and `% c` whose argument is linear in a digit."""
    names = {name: i for side in ("q", "k") for i, name in enumerate([side] if order.natural else order.names(side))}
    out = set()
    for x in postorder(p):
        if x.op not in ("div", "mod") or x.args[1].op != "const":
            continue
        c = x.args[1].args[0]
        for t, w in terms(x.args[0])[1].items():
            if t.op == "var" and t.args[0] in names:
                out.add((names[t.args[0]], c // math.gcd(w, c)))
    return out


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
        rows, columns: extents by digit, powers of two; 1 for tied digits.
        offset: boxes of columns begin where the bounds of the row box begin, not at multiples of their extents.
        first_boxes: boxes of the first digit's rows.
        programs: boxes of rows.
        tiles, full: boxes of columns that they visit, and those of them that need no mask, for one head; where the first digit is
            tied, as if its last period were whole.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    offset: bool
    first_boxes: int
    programs: int
    tiles: int
    full: int


@lru_cache(maxsize=1024)
def choose_boxes(axis: BoxAxis, sizes: Sizes, rows: int, columns: int) -> Boxes | None:
    """The boxes of `rows` and `columns` positions that visit least; None where a digit's bounds depend on other digits."""
    free = list(axis.digits)
    digits = {i: _Digit(axis, i, sizes) for i in free}
    if not all(d.alone for d in digits.values()):
        return None
    tied = math.prod(len(_values(axis.order, i, *sizes.span(axis.row))) for i in axis.tied)
    best = None
    for offset in (False, True) if all(d.count == 1 for d in axis.digits.values()) else (False,):
        for a, b in itertools.product(_shapes(axis.order, free, rows), _shapes(axis.order, free, columns)):
            counts = [digits[i].count(a[j], b[j], offset) for j, i in enumerate(free)]
            programs, tiles, full = (tied * math.prod(c[part] for c in counts) for part in range(3))
            # Of boxes that visit equally many, those with the longest last digit read memory in the longest pieces.
            key = tiles, -full, programs, [-x for x in reversed(b)]
            if best is None or key < best[0]:
                first = counts[free.index(0)][0] if 0 in free else len(_values(axis.order, 0, *sizes.span(axis.row)))
                best = key, Boxes(_spread(axis, free, a), _spread(axis, free, b), offset, first, programs, tiles, full)
    return best[1] if best else None


def counts_by_program(axis: BoxAxis, sizes: Sizes, boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """`(visited, full)` boxes of columns for every box of rows, int64 [programs], in the order in which kernels number boxes of rows."""
    tied = math.prod(len(_values(axis.order, i, *sizes.span(axis.row))) for i in axis.tied)
    visited = full = np.ones(tied, np.int64)
    for i in axis.digits:  # tied digits change slowest, and the last digit fastest
        digit = _Digit(axis, i, sizes)
        tiles = box_tiles(digit.bounds_of(boxes.rows[i]), digit.columns, boxes.columns[i], boxes.offset)
        visited, full = (np.outer(x, (tiles[..., at + 1] - tiles[..., at]).sum(-1)).ravel() for x, at in ((visited, 0), (full, 2)))
    return visited, full


def _spread(axis: BoxAxis, free: list[int], box: tuple[int, ...]) -> tuple[int, ...]:
    of = dict(zip(free, box))
    return tuple(of.get(i, 1) for i in range(len(axis.order.strides)))


def _shapes(order: Order, free: list[int], size: int) -> list[tuple[int, ...]]:
    """Boxes of `size` positions; a digit's box is not larger than the power of two that holds the digit."""
    most = [size if order.extents[i] is None or len(free) == 1 else min(size, 1 << (order.extents[i] - 1).bit_length()) for i in free]
    sides = [[1 << e for e in range(m.bit_length())] for m in most]
    return [box for box in itertools.product(*sides) if math.prod(box) == size]


def _values(order: Order, i: int, first: int, last: int) -> range:
    """The values of a digit over positions first .. last."""
    return range(first // order.strides[0], last // order.strides[0] + 1) if i == 0 else range(order.extents[i])


class _Digit:
    """One free digit of an axis at one length: its bounds for boxes of rows, and what boxes of columns they make."""

    def __init__(self, axis: BoxAxis, i: int, sizes: Sizes):
        self.rows, self.columns = (_values(axis.order, i, *sizes.span(side)) for side in (axis.row, axis.column))
        self.names = f"r0_{axis.row}{i}", f"r1_{axis.row}{i}"
        runs = axis.digits[i].runs
        # A tied first digit only says whether its period is whole, as nearly all are.
        numbers = dict(sizes.numbers)
        if 0 in axis.tied:
            numbers[f"r0_{axis.row}0"] = -(-max(sizes.span(side)[0] for side in "qk") // axis.order.strides[0])
        self.formulas = [[specialise(x, numbers) for x in (run.lo, run.hi, run.inner_lo, run.inner_hi)] for run in runs]
        outer = [x for run in runs for x in (specialise(run.lo, sizes.numbers), specialise(run.hi, sizes.numbers))]
        self.alone = all(variables(x) <= set(self.names) for x in (*outer, *itertools.chain(*self.formulas)))
        self.bounds: dict[int, np.ndarray] = {}
        self.counts: dict[tuple[int, int, bool], tuple[int, int, int]] = {}

    def bounds_of(self, a: int) -> np.ndarray:
        """int64 [row boxes, runs, 4] for boxes of `a` row values."""
        if a not in self.bounds:
            r0 = np.arange(self.rows.start, self.rows.stop, a)
            ends = dict(zip(self.names, (r0, np.minimum(r0 + a - 1, self.rows.stop - 1))))
            found = [[np.broadcast_to(evaluate(x, ends), r0.shape) for x in run] for run in self.formulas]
            self.bounds[a] = np.moveaxis(np.array(found, np.int64), 2, 0)
        return self.bounds[a]

    def count(self, a: int, b: int, offset: bool) -> tuple[int, int, int]:
        """`(row boxes, boxes of b column values that they visit, full ones)`."""
        if (a, b, offset) not in self.counts:
            extents = np.array([1 << e for e in range(LARGEST.bit_length())])  # all at once: arrays are short
            tiles = box_tiles(self.bounds_of(a)[:, None], self.columns, extents[:, None], offset)
            visited, full = (tiles[..., i + 1] - tiles[..., i] for i in (0, 2))
            for i, extent in enumerate(extents.tolist()):
                self.counts[a, extent, offset] = len(tiles), int(visited[:, i].sum()), int(full[:, i].sum())
        return self.counts[a, b, offset]


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
