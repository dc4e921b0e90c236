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
    """A digit system: digit i of a position x is `x // strides[i]`, modulo `extents[i]` for all but the first.

    Attributes:
        strides: from the most significant digit to the least, which has 1; each divides the one before it.
    """

    strides: tuple[int, ...]

    @property
    def extents(self) -> tuple[int | None, ...]:
        """How many values each digit takes; None for the first, which grows with the length."""
        return None, *(above // own for above, own in zip(self.strides, self.strides[1:]))

    @property
    def natural(self) -> bool:
        return self.strides == (1,)

    def names(self, side: str) -> list[str]:
        """Names of the digits of "q" or "k"."""
        return [f"{side}{i}" for i in range(len(self.strides))]

    def digits(self, side: str) -> list[Index]:
        return [Index("var", name) for name in self.names(side)]

    def position(self, side: str) -> Index:
        return linear(0, dict(zip(self.digits(side), self.strides)))

    def ranges(self) -> dict[str, Interval]:
        """Intervals of all digits that hold at every length."""
        tops = (INF, *(extent - 1 for extent in self.extents[1:]))
        return {name: (0, top) for side in ("q", "k") for name, top in zip(self.names(side), tops)}

    def rewritten(self, p: Node) -> Node:
        """`p` with positions written in digits, not yet simplified."""
        return substitute(p, {Q: self.position("q"), K: self.position("k")})

    def __str__(self):
        """`6 * x0 + x1`."""
        return " + ".join(f"{stride} * x{i}" if stride > 1 else f"x{i}" if not self.natural else "x" for i, stride in enumerate(self.strides))

    def split(self, digit: int, cut: int) -> Order | None:
        """The order with a digit cut into `digit // cut` and `digit % cut`; None if its extent is no multiple of `cut`."""
        extent = self.extents[digit]
        if cut <= 1 or (extent is not None and (extent % cut or cut >= extent)):
            return None
        return Order(tuple(sorted({*self.strides, self.strides[digit] * cut}, reverse=True)))


NATURAL = Order((1,))
