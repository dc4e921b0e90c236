"""How the programs of one group of heads get their row tiles, batch rows and heads, where heads see different patterns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.codegen.schedule import Deal, usual_tile
from patternc.codegen.uses import Array
from patternc.expr.table import Table
from patternc.orders.heads import HeadGroup


@dataclass(frozen=True)
class GroupDeal(Deal):
    """The usual order in a function that is given `program`, the program's number within the group.

    Attributes:
        number: of the group.
        apart: key heads may have query heads in other groups, which are left out.
    """

    number: int
    group: HeadGroup
    apart: bool

    @property
    def step(self) -> int | None:
        """How far the heads are from one another; None where that differs."""
        heads = self.group.heads
        step = heads[1] - heads[0] if len(heads) > 1 else 1
        return step if heads == tuple(range(heads[0], heads[-1] + 1, step)) else None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The heads, where they are not equally spaced, and how many of them are below each number."""
        heads = self.group.heads
        found = [] if self.step else [_array("heads", heads)]
        if self.apart:
            found.append(_array("below", tuple(np.searchsorted(heads, np.arange(heads[-1] + 2)).tolist())))
        return tuple(found)

    def head(self, place: str) -> str:
        """The head at a place of the group."""
        heads = self.group.heads
        if len(heads) == 1:
            return str(heads[0])
        if self.step is None:
            return f"tl.load(heads_ptr + {place})"
        return (f"{heads[0]} + " if heads[0] else "") + (place if self.step == 1 else f"{place} * {self.step}")

    def begin(self) -> list[str]:
        lines, count = [usual_tile(self.rows)], len(self.group.heads)
        if self.rows == "q":
            return [*lines, f"b = program // row_tiles // {count}", f"h = {self.head(f'program // row_tiles % {count}')}", "kv_h = h // GROUP"]
        if not self.apart:
            place = f"program // row_tiles % ({count} // GROUP) * GROUP"
            return [*lines, f"b = program // row_tiles // ({count} // GROUP)", f"kv_h = ({self.head(place)}) // GROUP"]
        lines += ["b = program // row_tiles // (HEADS // GROUP)", "kv_h = program // row_tiles % (HEADS // GROUP)"]
        ends = (("begin", "kv_h * GROUP"), ("end", "(kv_h + 1) * GROUP"))
        return lines + [f"{name} = tl.load(below_ptr + tl.minimum({head}, {self.group.heads[-1] + 1}))" for name, head in ends]

    @property
    def heads(self) -> tuple[str, str]:
        return ("(end - begin)", self.head("(begin + {})")) if self.apart else super().heads


def _array(name: str, values: tuple[int, ...]) -> Array:
    return Array(name, f"{name}_ptr", f"{name}_ptr", (str(len(values)),), Table.of(values), "array")
