"""The loops of one part of a direction in digits: which boxes of columns it visits, their positions, and its mask.

`M_i` and `N_i` are the extents of boxes of queries and of keys; those of the columns of part 2 are `M2_i` or `N2_i`.
"""

from __future__ import annotations

import re

from patternc.codegen import bounds
from patternc.codegen.bounds import FIELDS, RUN, Loop, Tiles
from patternc.codegen.code import COL, HEAD, ROW
from patternc.codegen.frame import TAKEN, Text
from patternc.codegen.printer import Printer
from patternc.codegen.uses import Uses
from patternc.orders.boxes import BoxAxis, BoxPart
from patternc.orders.digits import Order
from patternc.orders.vectors import VECTOR, sequence


class Digits:
    """The text of one side's digits and positions."""

    def __init__(self, order: Order):
        self.order = order

    def range_of(self, side: str, i: int) -> tuple[str, str]:
        """The first and the last value of a digit."""
        if i:
            return "0", str(self.order.extents[i] - 1)
        stride = self.order.strides[0]
        if side == "k":
            return "0", f"(n_k - 1) // {stride}"
        return f"_floordiv(q_start, {stride})", f"_floordiv(q_start + n_q - 1, {stride})"

    def vectors(self, side: str, free: list[int], letter: str, block: str, first: str) -> list[str]:
        """The local value of every free digit over the entries of a box, and their places beside its first entry."""
        lines = []
        for at, i in enumerate(free):
            later = " * ".join(f"{letter}_{e}" for e in free[at + 1 :])
            later = f"({later})" if "*" in later else later
            value = f"tl.arange(0, {block})" + (f" // {later}" if later else "")
            lines.append(f"{side}{i}_local = {value}{f' % {letter}_{i}' if at else ''}")
        return [*lines, f"{first}_offsets = {' + '.join(self._times(i, f'{side}{i}_local') for i in free)}"]

    def position(self, name: str, side: str) -> str:
        """The place in its sequence of a box's first entry."""
        parts = [self._times(i, f"{side}{i}_first") for i in range(len(self.order.strides))]
        return f"{name} = {' + '.join(parts)}{' - q_start' if side == 'q' else ''}"

    def exists(self, first: str, side: str, free: list[int], tied: tuple[int, ...] = ()) -> str:
        """Which entries of a box are positions of the sequence: its ends may cut the first digit, extents and lines the others.

        Digits that are `tied` to those of rows exist if the rows do.
        """
        parts = [f"({first} + {first}_offsets >= 0)", f"({first} + {first}_offsets < n_{side})"]

        def entry(i: int) -> str:
            return f"{side}{i}_first + {side}{i}_local" if i in free else f"{side}{i}_first"

        for i in range(1, len(self.order.strides)):
            if i in self.order.ragged and any(j not in tied for j in range(i, len(self.order.strides))):
                own = [self._times(j, f"({entry(j)})" if j in free else entry(j)) for j in range(i, len(self.order.strides))]
                parts.append(f"({' + '.join(own)} < {self.order.strides[i - 1]})")
            elif i in free:
                parts.append(f"({entry(i)} < {self.order.extents[i]})")
        return " & ".join(parts)

    def _times(self, i: int, value: str) -> str:
        return f"{self.order.strides[i]} * {value}" if self.order.strides[i] > 1 else value


class PartText(Text):
    """The loops over the boxes of columns of one part, and its mask."""

    unit, bounds_of = "boxes", "Values"

    def __init__(self, axis: BoxAxis, part: BoxPart, number: int, uses: Uses, taken: set[str]):
        """`number`: of the part, which later parts have in the names of their constants; `taken`: names that earlier ones assign."""
        self.digits, self.order, self.part = Digits(axis.order), axis.order, part
        self.row, self.column = axis.row, axis.column
        # The digits that number the entries of lse and delta where those of a box of queries lie together.
        self.gathered = sequence(axis) if self.column == "q" and axis.scattered else ()
        self.exists = "start_ok[None, :]" if self.row == "q" else None
        suffix = "" if number == 1 else str(number)
        self.b, self.offset, self.allowed = f"{'N' if self.row == 'q' else 'M'}{suffix}", f"OFFSET{suffix}", f"allowed{suffix}"
        self.block = "BLOCK_N" if self.row == "q" else "BLOCK_M"
        self.free = list(part.digits)
        variables = {name: (name, 0) for name in ("b", "n_q", "n_k", "q_start")}
        variables |= {"h": ("h", HEAD if self.row == "k" else 0)}
        for i in range(len(self.order.strides)):
            variables |= {f"r{end}_{self.row}{i}": (f"r{end}_{self.row}{i}", 0) for end in (0, 1)}
            variables |= {f"{self.row}{i}": (f"{self.row}{i}_row", 0 if i in axis.tied else ROW), f"{self.column}{i}": (f"{self.column}{i}_col", COL)}
        self.tiles = self._tiles()
        assigned = re.findall(r"\w+", " ".join(line.partition(" = ")[0] for line in self.tiles.before))
        fields = [f"{name}_{i}" for i in range(max(len(self.order.strides), *(d.count for d in part.digits.values()))) for name in FIELDS]
        printer = Printer(variables, uses, (*TAKEN, *fields, *assigned, *taken))
        roots = self._roots(printer)
        mask = printer.pattern(part.mask)
        if mask is not None:
            roots[self.allowed] = mask
        self.masked, self.bounded = mask is not None, True
        self.printed = printer.statements(roots)
        taken |= {statement.text.partition(" = ")[0] for statement in self.printed}

    @property
    def constants(self) -> list[str]:
        return [*(f"{self.b}_{i}" for i in range(len(self.order.strides))), self.offset]

    def vectors(self) -> list[str]:
        lines = self.digits.vectors(self.column, self.free, self.b, self.block, "start")
        return lines + (self._gathering() if self.gathered else [])

    def _gathering(self) -> list[str]:
        """The vectors' length, and what each position of a box adds to its entry in them."""
        first, last = self.digits.range_of("q", 0)
        extents = [str(extent) if extent else "periods" for extent in self.order.extents]
        text = f"q{self.free[0]}_local"
        for i in self.free[1:]:
            text = f"{_factor(text)} * {self.order.extents[i]} + q{i}_local"
        periods = f"periods = tl.cdiv({last} - {first} + 1, {VECTOR}) * {VECTOR} + {VECTOR}"
        return [periods, f"slots = {' * '.join(extents)}", f"slot_offsets = {text}"]

    def _slot(self) -> str:
        """The entry of a box's first position in gathered vectors."""
        text = ""
        for i in self.gathered:
            value = f"q{i}_first" if i else f"q0_first - {self.digits.range_of('q', 0)[0]}"
            text = f"{_factor(text)} * {self.order.extents[i] or 'periods'} + {value}" if text else value
        return f"slot = {text}"

    # ---- which boxes

    def _roots(self, printer: Printer) -> dict:
        if len(self.free) == 1:
            return bounds.roots(self.part.digits[self.free[0]], printer.index)
        return {f"{name}_{i}": printer.index(getattr(axis.runs[0], name)) for i, axis in self.part.digits.items() for name in FIELDS}

    def _tiles(self) -> Tiles:
        """Loops over the boxes of columns; with several free digits, over the product of their boxes."""
        if len(self.free) == 1:
            i = self.free[0]
            found = bounds.tiles(self.part.digits[i], f"{self.b}_{i}")
            lo = "lo_0" if self.part.digits[i].count == 1 else None
            return Tiles(found.parameters, (*self._origin("first_col", "last_col", i, lo), *found.before), found.partial, found.full)
        before = []
        for i in self.free:
            before += self._origin(f"origin_{i}", f"end_{i}", i, f"lo_{i}")
            names, fields = (", ".join(f"{name}_{i}" for name in group) for group in (RUN, FIELDS))
            before.append(f"{names} = _clip(*_tiles({fields}, origin_{i}, end_{i}, {self.b}_{i}), 0)")
            before.append(f"size_{i} = stop_{i} - start_{i}")
            before.append(f"full_{i} = full_stop_{i} - full_start_{i}")
            before.append(f"below_{i}, above_{i} = full_start_{i} - start_{i}, stop_{i} - full_stop_{i}")
        before.append("full_count = " + " * ".join(f"full_{i}" for i in self.free))
        full = Loop("full_count", (*self._decode([(f"full_start_{i}", f"full_{i}") for i in self.free]),))
        counts, tile = self._slabs()
        return Tiles((), (*before, *counts), Loop(f"partial_{2 * len(self.free)}", tuple(tile)), full)

    def _origin(self, origin: str, end: str, i: int, lo: str | None) -> list[str]:
        """The first value of a column digit that a box begins at, and the last value there is."""
        first, last = self.digits.range_of(self.column, i)
        lines = [f"{origin} = {first}", f"{end} = {last}"]
        return lines if lo is None else [*lines, f"{origin} = tl.where({self.offset}, tl.maximum({lo}, {origin}), {origin})"]

    def _slabs(self) -> tuple[list[str], list[str]]:
        """The product of outer intervals without that of inner ones, as boxes side by side: below and above the inner interval of
        each digit, within the inner intervals of the digits before it."""
        slabs = []
        for at, i in enumerate(self.free):
            before = [(f"full_start_{e}", f"full_{e}") for e in self.free[:at]]
            after = [(f"start_{e}", f"size_{e}") for e in self.free[at + 1 :]]
            for own in ((f"start_{i}", f"below_{i}"), (f"full_stop_{i}", f"above_{i}")):
                slabs.append([*before, own, *after])
        lines, tile, total = [], [], ""
        for number, slab in enumerate(slabs, 1):
            lines.append(f"partial_{number} = {f'{total} + ' if total else ''}{' * '.join(size for _, size in slab)}")
            if total:
                tile.append(f"later = i >= {total}")
                tile.append(f"place = tl.where(later, i - {total}, place)")
            else:
                tile.append("place = i")
            for i, (origin, size), old in zip(self.free, slab, slabs[number - 2] if total else [None] * len(slab)):
                for name, value, before in (("at", origin, old and old[0]), ("wide", size, old and old[1])):
                    if (name, i) == ("wide", self.free[0]) or value == before:
                        continue  # the size of the outermost digit is never divided by
                    tile.append(f"{name}_{i} = " + (f"tl.where(later, {value}, {name}_{i})" if total else value))
            total = f"partial_{number}"
        return lines, tile + self._decode([(f"at_{i}", f"wide_{i}") for i in self.free], "place")

    def _decode(self, parts: list[tuple[str, str]], place: str = "i") -> list[str]:
        """Box numbers `tile_i` of the free digits from a place in the product of `(origin, size)`.

        The first iteration of a pipelined loop is prepared before it is known to run, and compilers take a divisor for a proof that it is
        not zero: sizes count as 1 at least.
        """
        lines = []
        for i, (origin, size) in reversed(list(zip(self.free, parts))):
            if i == self.free[0]:
                lines.append(f"tile_{i} = {origin} + {place}")
            else:
                lines.append(f"tile_{i} = {origin} + {place} % tl.maximum({size}, 1)")
                lines.append(f"rest_{i} = {place} // tl.maximum({size}, 1)")
                place = f"rest_{i}"
        return lines

    # ---- columns

    def _start(self) -> list[str]:
        lines = []
        for i in range(len(self.order.strides)):
            if i not in self.free:
                value = f"{self.row}{i}_first"
            elif len(self.free) == 1:
                value = f"first_col + col_tile * {self.b}_{i}"
            else:
                value = f"origin_{i} + tile_{i} * {self.b}_{i}"
            lines.append(f"{self.column}{i}_first = {value}")
        return [*lines, self.digits.position("start", self.column), *([self._slot()] if self.gathered else [])]

    def _places(self) -> list[str]:
        lines = [f"{self.column}{i}_col = ({self.column}{i}_first + {self.column}{i}_local)[None, :]" for i in self.free]
        return [*lines, f"start_ok = {self.digits.exists('start', self.column, self.free, self.part.tied)}"]


def _factor(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
