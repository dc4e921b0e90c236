"""How kernels reach the matrices q, k, v, o, do, dq, dk, dv: by pointers, or by the tensor descriptors of Hopper's TMA.

An access prints parameters, statements before the first load, loads and stores; the rest of a kernel's text is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.orders.boxes import BoxAxis

VARIANTS = ("pointers", "descriptors", "rows", "boxes", "box descriptors", "tile descriptors", "hopper")


@dataclass(frozen=True)
class Matrix:
    """A matrix [B, heads, count, width] of a kernel.

    Attributes:
        name: prefix of its parameters.
        head: text of the head that the program works on.
        count, width, block, block_d: names of its number of rows and columns, and of the size of a tile.
    """

    name: str
    head: str
    count: str
    width: str
    block: str
    block_d: str


class Pointers:
    """Any strides with unit last stride.  Offsets of heads are 64 bits wide, those within a tile 32."""

    variant = "pointers"

    def parameters(self, m: Matrix) -> list[str]:
        return [f"{m.name}_ptr", f"{m.name}_stride_b", f"{m.name}_stride_h", f"{m.name}_stride_n"]

    def base(self, m: Matrix) -> list[str]:
        # Strides come in units of ALIGN elements: their alignment is known though their values are not specialised.
        n = m.name
        return [
            f"{n}_base = {n}_ptr + tl.cast(b, tl.int64) * {n}_stride_b * ALIGN + tl.cast({m.head}, tl.int64) * {n}_stride_h * ALIGN",
            f"{n}_stride = {n}_stride_n * ALIGN",
        ]

    def load(self, m: Matrix, first: str, check: bool) -> str:
        return f"_load_rows({m.name}_base, {first}, {m.name}_stride, {m.count}, {m.width}, {m.block}, {m.block_d}, {check})"

    def store(self, m: Matrix, first: str, values: str) -> str:
        return f"_store_rows({m.name}_base, {first}, {m.name}_stride, {m.count}, {values}, {m.width}, {m.block}, {m.block_d})"


class Boxes(Pointers):
    """Boxes of digits: rows `first + first_offsets` (or `start + start_offsets`), of which `first_ok` exist."""

    variant = "boxes"

    def load(self, m: Matrix, first: str, check: bool) -> str:
        ok = f"{first}_ok" if check else "None"
        return f"_load_box({m.name}_base, {first}, {first}_offsets, {ok}, {m.name}_stride, {m.width}, {m.block_d})"

    def store(self, m: Matrix, first: str, values: str) -> str:
        return f"_store_box({m.name}_base, {first}, {first}_offsets, {first}_ok, {m.name}_stride, {values}, {m.width}, {m.block_d})"


class Descriptors:
    """Descriptors of [B, heads, count, width] with blocks [1, 1, block, block_d]: what is outside loads as 0 and is not stored."""

    variant = "descriptors"

    def parameters(self, m: Matrix) -> list[str]:
        return [f"{m.name}_desc"]

    def base(self, m: Matrix) -> list[str]:
        return []

    def load(self, m: Matrix, first: str, check: bool) -> str:
        return f"{m.name}_desc.load([b, {m.head}, {first}, 0]).reshape({m.block}, {m.block_d})"

    def store(self, m: Matrix, first: str, values: str) -> str:
        return f"{m.name}_desc.store([b, {m.head}, {first}, 0], {values}.to({m.name}_desc.dtype).reshape(1, 1, {m.block}, {m.block_d}))"


class Rows:
    """Descriptors of contiguous tensors as [B * heads * count, width]: for lengths that are whole tiles only."""

    variant = "rows"

    def parameters(self, m: Matrix) -> list[str]:
        return [f"{m.name}_desc"]

    def base(self, m: Matrix) -> list[str]:
        heads = "HEADS" if m.head == "h" else "HEADS // GROUP"
        return [f"{m.name}_first = (b * ({heads}) + {m.head}) * {m.count}"]

    def load(self, m: Matrix, first: str, check: bool) -> str:
        return f"{m.name}_desc.load([{m.name}_first + {first}, 0])"

    def store(self, m: Matrix, first: str, values: str) -> str:
        return f"{m.name}_desc.store([{m.name}_first + {first}, 0], {values}.to({m.name}_desc.dtype))"


class BoxDescriptors:
    """Boxes of one digit, for lengths that are whole periods: descriptors of [B, heads, tied digit, free digit, width]."""

    variant = "box descriptors"

    def __init__(self, axis: BoxAxis):
        self.axis = axis

    def parameters(self, m: Matrix) -> list[str]:
        return [f"{m.name}_desc"]

    def base(self, m: Matrix) -> list[str]:
        return []

    def _place(self, m: Matrix) -> str:
        side = "q" if m.count == "n_q" else "k"
        digits = (*self.axis.tied, *self.axis.parts[0].digits)
        # Descriptors count the first digit from the sequence's own begin.
        own = [f"{side}{i}_first" + (f" - q_start // {self.axis.order.strides[0]}" if side == "q" and i == 0 else "") for i in digits]
        return f"[b, {m.head}, {', '.join(own)}, 0]"

    def load(self, m: Matrix, first: str, check: bool) -> str:
        return f"{m.name}_desc.load({self._place(m)}).reshape({m.block}, {m.block_d})"

    def store(self, m: Matrix, first: str, values: str) -> str:
        return f"{m.name}_desc.store({self._place(m)}, {values}.to({m.name}_desc.dtype).reshape(1, 1, 1, {m.block}, {m.block_d}))"


def access(variant: str, axis=None):
    """The access of a name in `VARIANTS`; a direction in digits has its own: descriptors where one describes its boxes.

    "tile descriptors" are descriptors in the natural order, and pointers to boxes: of lengths that are no whole periods.
    """
    if axis is not None and axis.kind == "boxes":
        return BoxDescriptors(axis) if variant == "descriptors" and axis.one_digit else Boxes()
    return {"pointers": Pointers, "descriptors": Descriptors, "tile descriptors": Descriptors, "rows": Rows}[variant]()
