"""The parts that the kernels of block sums share (see `patternc.tail_blocks`): their form, tiles, masks, states.

A state of a tile of keys is `phi(k)^T (v - c)` with one c for each batch row and key head, the mean of v, beside the sums of phi(k)
in float32: rounded with the mean in it, it would spoil dq, since with a norm do is nearly orthogonal to that mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from patternc.codegen.code import COL, HEAD, ROW, Statement
from patternc.codegen.frame import TAKEN
from patternc.codegen.printer import Printer
from patternc.codegen.tail_text import Form, Text
from patternc.codegen.uses import Uses
from patternc.expr.pattern import Pattern

LAUNCH = ("first_pair",)  # parameters of every kernel: the first (batch row, key head) of a pass


@dataclass(frozen=True)
class BlockForm(Form):
    """What kernels of block sums are generated for, beside the mask.

    Attributes:
        apart: query heads have states of rows of their own.
        dead: tables say which rows read states, and which keys are in them.
    """

    apart: bool = False

    @staticmethod
    def of(feature: str, sums: bool, apart: bool, dead: bool) -> BlockForm:
        return BlockForm(feature, sums, steps=False, gated=False, dead=dead, apart=apart)


@dataclass(frozen=True)
class BlockMask:
    """The statements that make `allowed` in one kernel, and what they read."""

    statements: tuple[Statement, ...]
    uses: Uses

    def of(self, *levels: int) -> list[str]:
        """The statements that depend on rows (ROW), columns (COL), both, or neither (0); with HEAD on the head too."""
        return [s.text for s in self.statements if s.level in levels]

    def prologue(self) -> list[str]:
        return ["q_start = _scalar(q_start_value, b * q_start_stride)", *self.uses.prologue()]

    def parameters(self) -> list[str]:
        return ["q_start_value", "q_start_stride", *self.uses.parameters()]


def print_mask(mask: Pattern, rows: str, taken: Iterable[str]) -> BlockMask:
    """The mask of a kernel with one program a tile of `rows`, "q" or "k"."""
    row, col = ("q", "k") if rows == "q" else ("k", "q")
    scalars = {v: (v, 0) for v in ("b", "n_q", "n_k", "q_start")}
    variables = {row: (f"{row}_row", ROW), col: (f"{col}_col", COL), "h": ("h", HEAD if rows == "k" else 0), **scalars}
    uses = Uses()
    printer = Printer(variables, uses, (*TAKEN, *taken))
    code = printer.pattern(mask)
    return BlockMask(tuple(printer.statements({"allowed": code})) if code is not None else (), uses)


class BlockText(Text):
    """Statements of the kernels of one form."""

    form: BlockForm

    # Rows and keys

    def places_of_rows(self, block: str) -> list[str]:
        """The rows of the tile at `first_row`, and which of them there are."""
        return [f"rows = first_row + tl.arange(0, {block})", "row_ok = rows < n_q"]

    def places_of_keys(self, block: str) -> list[str]:
        return [f"keys = first_key + tl.arange(0, {block})", "key_ok = keys < n_k"]

    # Programs

    def pair(self, before: str) -> list[str]:
        """Which batch row and key head a program works on, `before` being its number among all pairs of the pass."""
        return [
            f"own = {before}", "pair = first_pair + own", "kv_h = pair % (HEADS // GROUP)", "b = pair // (HEADS // GROUP)",
        ]  # fmt: skip

    def live(self, side: str) -> list[str]:
        """`row_live`, `key_live`: which rows read their tile's state, and which keys are in it."""
        if not self.form.dead:
            return []
        count = "n_q" if side == "row" else "n_k"
        return [f"{side}_live = tl.load(live_{side}s_ptr + list * {count} + {side}s, mask={side}_ok, other=0) != 0"]

    def live_tables(self, *sides: str) -> list[str]:
        return [f"live_{side}s_ptr" for side in sides] if self.form.dead else []

    def if_live(self, side: str, *values: str) -> list[str]:
        """`values` are 0 where their row, or key, has no part in states; names of tiles [rows, ..] or of vectors [rows]:."""
        if not self.form.dead:
            return []
        return [f"{x.rstrip(':')} = tl.where({side}_live{'' if x.endswith(':') else '[:, None]'}, {x.rstrip(':')}, 0.0)" for x in values]

    def list_of(self, side: str) -> list[str]:
        head = "b * HEADS + h" if side == "row" else "b * (HEADS // GROUP) + kv_h"
        return [f"list = tl.load({side}_list_ptr + {head})"]

    # States of rows and keys: [pairs, heads of them, tiles, halves, BLOCK_D, BLOCK_DV], vectors [.., halves, BLOCK_D]

    def state_of_rows(self, each: str = "g") -> list[str]:
        index = f"own * GROUP + {each}" if self.form.apart else "own"
        return [f"cell = tl.cast(({index}) * states + block, tl.int64) * {self.form.halves}"]

    def state_of_keys(self) -> list[str]:
        return [f"cell = tl.cast(own * states + block, tl.int64) * {self.form.halves}"]

    def load_states(self) -> list[str]:
        return self.each("s{h} = tl.load(states_ptr + (cell + {half}) * BLOCK_D * BLOCK_DV + d[:, None] * BLOCK_DV + e[None, :])")

    def load_vectors(self, z: bool = True, c: bool = True) -> list[str]:
        return self.each("z{h} = tl.load(vectors_ptr + (cell + {half}) * BLOCK_D + d)")


CENTRE = "c = tl.load(centre_ptr + pair * DV + e, mask=e < DV, other=0.0)"
COLUMNS = ["d = tl.arange(0, BLOCK_D)", "e = tl.arange(0, BLOCK_DV)"]


__all__ = ["CENTRE", "COLUMNS", "LAUNCH", "BlockForm", "BlockMask", "BlockText", "print_mask"]
