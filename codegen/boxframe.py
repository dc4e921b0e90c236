"""What a plan in digits adds to a kernel: boxes of rows, and one after the other what its parts visit.

The names are those of `frame.Frame`, whose place this takes.
"""

from __future__ import annotations

from patternc.codegen.boxparts import Digits, PartText
from patternc.codegen.uses import Uses
from patternc.orders.boxes import BoxAxis

ORDER_PARAMETERS = ("row_boxes",)  # boxes of the first digit's rows


class BoxFrame:
    """The parts of a kernel's text that come from one direction of a plan in digits: a box of rows, and what each part visits."""

    cut, turns = False, None  # as in `frame.Text`

    def __init__(self, axis: BoxAxis):
        self.axis, self.order, self.digits = axis, axis.order, Digits(axis.order)
        self.row = axis.row
        self.a = "M" if self.row == "q" else "N"
        self.free = [i for i in range(len(self.order.strides)) if i not in axis.tied]
        self.uses = Uses()
        taken: set[str] = set()
        self.parts = [PartText(axis, part, number, self.uses, taken) for number, part in enumerate(axis.parts, 1)]
        self.parameters = [*ORDER_PARAMETERS, *self.uses.parameters()]
        own = [f"{self.a}_{i}" for i in range(len(self.order.strides))]
        columns = [part.constants for part in self.parts]
        # Queries before keys.
        first = [*own, *columns[0]] if self.row == "q" else [*columns[0][:-1], *own, columns[0][-1]]
        self.constants = [*first, *(name for later in columns[1:] for name in later)]

    # ---- what the parts visit

    @property
    def alike(self) -> bool:
        return all(part.alike for part in self.parts)

    def hoisted(self, head: bool) -> list[str]:
        """Statements outside the loops; each of several parts has its own before its loops, so that they may share names."""
        return self.parts[0].hoisted(head) if len(self.parts) == 1 else []

    def before(self) -> list[str]:
        return self.parts[0].before() if len(self.parts) == 1 else []

    def loops(self, load, masked_step, full_step) -> list[str]:
        for part in self.parts:
            part.cut, part.turns = self.cut, self.turns
        if len(self.parts) == 1:
            return self.parts[0].loops(load, masked_step, full_step)
        lines = []
        for number, part in enumerate(self.parts, 1):
            shared = ", ".join(f"x{i}" for i in part.part.tied)
            lines += [f"# Part {number}: pairs of no other part{f'; a query and its keys share {shared}' if shared else ''}."]
            lines += [*part.vectors(), *part.hoisted(False), *part.hoisted(True), *part.before(), *part.loops(load, masked_step, full_step)]
        return lines

    # ---- rows

    def tile(self) -> list[str]:
        others = [f"tl.cdiv({self.order.extents[i]}, {self.a}_{i})" for i in range(1, len(self.order.strides))]
        return [f"row_tiles = {' * '.join(['row_boxes', *others])}"]

    def first(self) -> list[str]:
        return []

    def positions(self) -> list[str]:
        r = self.row
        lines = self.place()
        for i in range(len(self.order.strides)):
            lines.append(f"{r}{i}_row = ({r}{i}_first + {r}{i}_local)[:, None]" if i in self.free else f"{r}{i}_row = {r}{i}_first")
        return [*lines, *self.parts[0].vectors()] if len(self.parts) == 1 else lines

    def place(self) -> list[str]:
        r, a = self.row, self.a
        shared = ", ".join(f"x{i}" for i in self.axis.tied)
        one = f"; a query and its keys share {shared}" if shared and len(self.parts) == 1 else ""
        lines = [f"# A position is {self.order}, and a tile is a box of these digits{one}."]
        lines += ["q_start = _scalar(q_start_value, b * q_start_stride)", *self.uses.prologue(), "rest = tile"]
        # Tied digits change slowest: neighbouring programs read the same keys.
        inner = [*reversed(self.free), *reversed(self.axis.tied)]
        for i in inner:
            first, last = self.digits.range_of(r, i)
            count = "row_boxes" if i == 0 else f"tl.cdiv({self.order.extents[i]}, {a}_{i})"
            box = "rest" if i == inner[-1] else f"rest % {count}"
            lines.append(f"{r}{i}_first = {'' if first == '0' else f'{first} + '}{box if box == 'rest' else f'({box})'} * {a}_{i}")
            if i != inner[-1]:
                lines.append(f"rest = rest // {count}")
            lines.append(f"r0_{r}{i} = {r}{i}_first")
            lines.append(f"r1_{r}{i} = tl.minimum({r}{i}_first + {a}_{i} - 1, {last})")
        lines += self.digits.vectors(r, self.free, a, f"BLOCK_{a}", "first")
        lines.append(self.digits.position("first", r))
        lines.append(f"first_ok = {self.digits.exists('first', r, self.free)}")
        return lines

    def row_vectors(self) -> list[str]:
        """lse and delta of the rows; rows that do not exist have lse +inf."""
        return [
            "at = tl.cast(b * HEADS + h, tl.int64) * whole + first + first_offsets",
            'lse = tl.load(lse2_ptr + at, mask=first_ok, other=float("inf"))',
            "delta = tl.load(delta_ptr + at, mask=first_ok, other=0.0)",
        ]

    @property
    def vector_length(self) -> str:
        return "slots" if self.parts[0].gathered else "whole"

    def column_vectors(self, check: bool) -> list[str]:
        gathered = self.parts[0].gathered
        at = "at = slot + slot_offsets" if gathered else "at = start + start_offsets"
        # Gathered vectors have entries, +inf and 0, beyond the last value of the first digit.
        if not check or (gathered and self.free == [0]):
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
