"""What a plan in digits adds to a kernel: boxes of rows, the boxes of columns they visit, positions and masks in digits.

The names are those of `frame.Frame`, whose place this takes.  `M_i` and `N_i` are the extents of boxes of queries and of keys.
"""

from __future__ import annotations

import re

from patternc.codegen import bounds
from patternc.codegen.bounds import FIELDS, RUN, Loop, Tiles
from patternc.codegen.code import COL, HEAD, ROW
from patternc.codegen.frame import TAKEN, Text
from patternc.codegen.printer import Printer
from patternc.codegen.uses import Uses
from patternc.orders.boxes import BoxAxis
from patternc.orders.vectors import VECTOR, sequence

ORDER_PARAMETERS = ("row_boxes",)  # boxes of the first digit's rows


class BoxFrame(Text):
    """The parts of a kernel's text that come from one direction of a plan in digits."""

    unit, bounds_of, bounded = "boxes", "Values", True

    def __init__(self, axis: BoxAxis):
        self.axis, self.order = axis, axis.order
        self.row, self.column = axis.row, axis.column
        self.exists = "start_ok[None, :]" if self.row == "q" else None
        self.a, self.b = ("M", "N") if self.row == "q" else ("N", "M")  # extents of boxes of rows and of columns
        self.free = list(axis.digits)
        # Whether lse and delta of the columns come in the order of `vectors.sequence`.
        self.gathered = self.column == "q" and axis.scattered
        self.uses = Uses()
        digits = range(len(self.order.strides))
        variables = {name: (name, 0) for name in ("b", "n_q", "n_k", "q_start")}
        variables |= {"h": ("h", HEAD if self.row == "k" else 0)}
        for i in digits:
            variables |= {f"r{end}_{self.row}{i}": (f"r{end}_{self.row}{i}", 0) for end in (0, 1)}
            variables |= {f"{self.row}{i}": (f"{self.row}{i}_row", ROW), f"{self.column}{i}": (f"{self.column}{i}_col", COL)}
        self.tiles = self._tiles()
        assigned = re.findall(r"\w+", " ".join(line.partition(" = ")[0] for line in self.tiles.before))
        fields = [f"{name}_{i}" for i in range(max(len(digits), *(d.count for d in axis.digits.values()))) for name in FIELDS]
        printer = Printer(variables, self.uses, (*TAKEN, *fields, *assigned))
        roots = self._roots(printer)
        mask = printer.pattern(axis.mask)
        if mask is not None:
            roots["allowed"] = mask
        self.masked = mask is not None
        self.printed = printer.statements(roots)
        self.parameters = [*ORDER_PARAMETERS, *self.uses.parameters()]
        self.constants = [f"{side}_{i}" for side in "MN" for i in digits] + ["OFFSET"]

    # ---- which boxes

    def _roots(self, printer: Printer) -> dict:
        if len(self.free) == 1:
            return bounds.roots(self.axis.digits[self.free[0]], printer.index)
        return {f"{name}_{i}": printer.index(getattr(axis.runs[0], name)) for i, axis in self.axis.digits.items() for name in FIELDS}

    def _tiles(self) -> Tiles:
        """Loops over the boxes of columns; with several free digits, over the product of their boxes."""
        if len(self.free) == 1:
            i = self.free[0]
            found = bounds.tiles(self.axis.digits[i], f"{self.b}_{i}")
            lo = "lo_0" if self.axis.digits[i].count == 1 else None
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
        first, last = self._digit_range(self.column, i)
        lines = [f"{origin} = {first}", f"{end} = {last}"]
        return lines if lo is None else [*lines, f"{origin} = tl.where(OFFSET, tl.maximum({lo}, {origin}), {origin})"]

    def _digit_range(self, side: str, i: int) -> tuple[str, str]:
        if i:
            return "0", str(self.order.extents[i] - 1)
        stride = self.order.strides[0]
        if side == "k":
            return "0", f"(n_k - 1) // {stride}"
        return f"_floordiv(q_start, {stride})", f"_floordiv(q_start + n_q - 1, {stride})"

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
        """Box numbers `tile_i` of the free digits from a place in the product of `(origin, size)`."""
        lines = []
        for i, (origin, size) in reversed(list(zip(self.free, parts))):
            if i == self.free[0]:
                lines.append(f"tile_{i} = {origin} + {place}")
            else:
                lines.append(f"tile_{i} = {origin} + {place} % {size}")
                lines.append(f"rest_{i} = {place} // {size}")
                place = f"rest_{i}"
        return lines

    # ---- rows

    def tile(self) -> list[str]:
        others = [f"tl.cdiv({self.order.extents[i]}, {self.a}_{i})" for i in range(1, len(self.order.strides))]
        return [f"row_tiles = {' * '.join(['row_boxes', *others])}"]

    def first(self) -> list[str]:
        return []

    def positions(self) -> list[str]:
        r, strides = self.row, self.order.strides
        lines = self.place()
        for i in range(len(strides)):
            lines.append(f"{r}{i}_row = ({r}{i}_first + {r}{i}_local)[:, None]" if i in self.free else f"{r}{i}_row = {r}{i}_first")
        lines += self._vectors(self.column, self.b, f"BLOCK_{self.b}")
        lines.append(f"start_offsets = {self._offsets(self.column)}")
        return lines + (self._gathering() if self.gathered else [])

    def place(self) -> list[str]:
        r, a = self.row, self.a
        shared = ", ".join(f"x{i}" for i in self.axis.tied)
        lines = [f"# A position is {self.order}, and a tile is a box of these digits{f'; a query and its keys share {shared}' if shared else ''}."]
        lines += ["q_start = _scalar(q_start_value, b * q_start_stride)", *self.uses.prologue(), "rest = tile"]
        # Tied digits change slowest: neighbouring programs read the same keys.
        inner = [*reversed(self.free), *reversed(self.axis.tied)]
        for i in inner:
            first, last = self._digit_range(r, i)
            count = "row_boxes" if i == 0 else f"tl.cdiv({self.order.extents[i]}, {a}_{i})"
            box = "rest" if i == inner[-1] else f"rest % {count}"
            lines.append(f"{r}{i}_first = {'' if first == '0' else f'{first} + '}{box if box == 'rest' else f'({box})'} * {a}_{i}")
            if i != inner[-1]:
                lines.append(f"rest = rest // {count}")
            lines.append(f"r0_{r}{i} = {r}{i}_first")
            lines.append(f"r1_{r}{i} = tl.minimum({r}{i}_first + {a}_{i} - 1, {last})")
        lines += self._vectors(r, a, f"BLOCK_{a}")
        lines.append(self._position("first", r))
        lines.append(f"first_offsets = {self._offsets(r)}")
        lines.append(f"first_ok = {self._exists('first', r)}")
        return lines

    def _gathering(self) -> list[str]:
        """The vectors' length, and what each position of a box adds to its entry in them."""
        first, last = self._digit_range("q", 0)
        extents = [str(extent) if extent else "periods" for extent in self.order.extents]
        text = f"q{self.free[0]}_local"
        for i in self.free[1:]:
            text = f"{_factor(text)} * {self.order.extents[i]} + q{i}_local"
        periods = f"periods = tl.cdiv({last} - {first} + 1, {VECTOR}) * {VECTOR} + {VECTOR}"
        return [periods, f"slots = {' * '.join(extents)}", f"slot_offsets = {text}"]

    def _slot(self) -> str:
        """The entry of a box's first position in gathered vectors."""
        text = ""
        for i in sequence(self.axis):
            value = f"q{i}_first" if i else f"q0_first - {self._digit_range('q', 0)[0]}"
            text = f"{_factor(text)} * {self.order.extents[i] or 'periods'} + {value}" if text else value
        return f"slot = {text}"

    def _vectors(self, side: str, letter: str, block: str) -> list[str]:
        """The local value of every free digit over the entries of a box."""
        lines = []
        for at, i in enumerate(self.free):
            later = " * ".join(f"{letter}_{e}" for e in self.free[at + 1 :])
            later = f"({later})" if "*" in later else later
            value = f"tl.arange(0, {block})" + (f" // {later}" if later else "")
            lines.append(f"{side}{i}_local = {value}{f' % {letter}_{i}' if at else ''}")
        return lines

    def _position(self, name: str, side: str) -> str:
        """The place in its sequence of a box's first entry."""
        parts = [f"{s} * {side}{i}_first" if s > 1 else f"{side}{i}_first" for i, s in enumerate(self.order.strides)]
        return f"{name} = {' + '.join(parts)}{' - q_start' if side == 'q' else ''}"

    def _offsets(self, side: str) -> str:
        return " + ".join(f"{self.order.strides[i]} * {side}{i}_local" if self.order.strides[i] > 1 else f"{side}{i}_local" for i in self.free)

    def _exists(self, first: str, side: str) -> str:
        """Which entries of a box are positions of the sequence: the first digit's end may cut it, other digits' extents may."""
        parts = [f"({first} + {first}_offsets >= 0)", f"({first} + {first}_offsets < n_{side})"]
        return " & ".join(parts + [f"({side}{i}_first + {side}{i}_local < {self.order.extents[i]})" for i in self.free if i])

    def row_vectors(self) -> list[str]:
        """lse and delta of the rows; rows that do not exist have lse +inf."""
        return [
            "at = tl.cast(b * HEADS + h, tl.int64) * whole + first + first_offsets",
            'lse = tl.load(lse2_ptr + at, mask=first_ok, other=float("inf"))',
            "delta = tl.load(delta_ptr + at, mask=first_ok, other=0.0)",
        ]

    @property
    def vector_length(self) -> str:
        return "slots" if self.gathered else "whole"

    def column_vectors(self, check: bool) -> list[str]:
        at = "at = slot + slot_offsets" if self.gathered else "at = start + start_offsets"
        # Gathered vectors have entries, +inf and 0, beyond the last value of the first digit.
        if not check or (self.gathered and self.free == [0]):
            return [at, "lse = tl.load(lse2_ptr + vectors + at)", "delta = tl.load(delta_ptr + vectors + at)"]
        return [
            at,
            'lse = tl.load(lse2_ptr + vectors + at, mask=start_ok, other=float("inf"))',
            "delta = tl.load(delta_ptr + vectors + at, mask=start_ok, other=0.0)",
        ]

    def load_rows(self, name: str, pointer: str) -> list[str]:
        """Load one value a row from a vector [B, H, n_q]; -inf where there is no row."""
        at = f"{pointer} + tl.cast(b * HEADS + h, tl.int64) * n_q + first + first_offsets"
        return [f'{name} = tl.load({at}, mask=first_ok, other=float("-inf"))']

    def store_rows(self, pointer: str, value: str) -> list[str]:
        """Store one value a row in a vector [B, H, n_q]."""
        return [f"tl.store({pointer} + tl.cast(b * HEADS + h, tl.int64) * n_q + first + first_offsets, {value}, mask=first_ok)"]

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
        return [*lines, self._position("start", self.column), *([self._slot()] if self.gathered else [])]

    def _places(self) -> list[str]:
        lines = [f"{self.column}{i}_col = ({self.column}{i}_first + {self.column}{i}_local)[None, :]" for i in self.free]
        return [*lines, f"start_ok = {self._exists('start', self.column)}"]


def _factor(text: str) -> str:
    return text if text.isidentifier() else f"({text})"
