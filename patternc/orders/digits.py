"""An order is a mixed-radix digit system for positions; a tile of one side is a box over that side's digits.

Residue classes (x // d, x % d), n-D boxes (x // W, x % W) and their compositions are all this one thing, and the position
stays a linear function of the digits, so that tiles are read through strides.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.expr.arithmetic import linear
from patternc.expr.bounds import INF, Interval
from patternc.expr.index import Index
from patternc.expr.node import Node
from patternc.expr.pattern import K, Q
from patternc.expr.transform import substitute


@dataclass(frozen=True)
class Order:
    """A digit system: digit i is how often `strides[i]` fits into what the digits before it leave of a position.

    A stride need not divide the one before it.  `100 * x0 + 3 * x1 + x2` cuts lines of 100 into 33 pieces of 3 and one of 1, so that of
    x1 = 33 only x2 = 0 exists: the digit x1 is *ragged*.

    Attributes:
        strides: from the most significant digit to the least, which has 1; all different.
    """

    strides: tuple[int, ...]

    @property
    def extents(self) -> tuple[int | None, ...]:
        """How many values each digit takes; None for the first, which grows with the length."""
        return None, *(-(-above // own) for above, own in zip(self.strides, self.strides[1:]))

    @property
    def ragged(self) -> tuple[int, ...]:
        """Digits with whose last value not all values of the digits after them exist."""
        return tuple(i for i in range(1, len(self.strides)) if self.strides[i - 1] % self.strides[i])

    @property
    def natural(self) -> bool:
        return self.strides == (1,)

    def names(self, side: str) -> list[str]:
        """Names of the digits of "q" or "k"."""
        return [f"{side}{i}" for i in range(len(self.strides))]

    def digits(self, side: str) -> list[Index]:
        return [Index("var", name) for name in self.names(side)]

    def values(self, x) -> list:
        """The digits of positions, integers or arrays of them."""
        out = []
        for stride in self.strides:
            out.append(x // stride)
            x = x % stride
        return out

    def ranges(self) -> dict[str, Interval]:
        """Intervals of all digits that hold at every length."""
        tops = (INF, *(extent - 1 for extent in self.extents[1:]))
        return {name: (0, top) for side in ("q", "k") for name, top in zip(self.names(side), tops)}

    @property
    def coarser(self) -> Order:
        """The order whose last digit this one cuts: without the last ragged digit and those after it, at last the natural one."""
        return Order((*self.strides[: self.ragged[-1]], 1)) if self.ragged else NATURAL

    def refined(self, p: Node) -> Node:
        """A pattern in the digits of `coarser` in those of this order, not yet simplified."""
        last = len(self.coarser.strides) - 1
        whole = {"q": Q, "k": K} if self.coarser.natural else {side: self.coarser.digits(side)[last] for side in ("q", "k")}
        return substitute(p, {x: linear(0, dict(zip(self.digits(side)[last:], self.strides[last:]))) for side, x in whole.items()})

    def __str__(self):
        """`6 * x0 + x1`."""
        return " + ".join(f"{stride} * x{i}" if stride > 1 else f"x{i}" if not self.natural else "x" for i, stride in enumerate(self.strides))

    def split(self, digit: int, cut: int) -> Order | None:
        """The order with a digit cut into `digit // cut` and `digit % cut`; None if there is nothing to cut."""
        extent = self.extents[digit]
        if cut <= 1 or (extent is not None and cut >= extent):
            return None
        return Order(tuple(sorted({*self.strides, self.strides[digit] * cut}, reverse=True)))


NATURAL = Order((1,))
