"""How the programs of a kernel get their row tiles: in the usual order, or by a schedule (`patternc.balance`), cut into pieces or not.

A piece runs its share of the iterations of both loops.  What it finds goes to a workspace, in float32: a tile [rows, width] for
each entry that is a piece, of every head and batch row.  `pieces.py` prints the kernels that make rows of these tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FORMS = ("even", "dealt", "cut")
PARAMETERS = ("schedule_ptr", "entries", "long")


@dataclass(frozen=True)
class Deal:
    """One of `FORMS` for a kernel with one program a tile of `rows`, "q" or "k"."""

    form: str
    rows: str

    arrays = ()  # tables that deal heads (`deal.GroupDeal`)

    @property
    def cut(self) -> bool:
        return self.form == "cut"

    def parameters(self, *parts: str) -> list[str]:
        """Kernel parameters; `parts` are the results that pieces leave in the workspace."""
        if self.form == "even":
            return []
        return [*PARAMETERS, *(["cuts", *(f"part_{name}_ptr" for name in parts)] if self.cut else [])]

    def begin(self) -> list[str]:
        """Which tile, batch row and head a program works on, and which piece of it."""
        heads, h = ("HEADS", "h") if self.rows == "q" else ("(HEADS // GROUP)", "kv_h")
        if self.form == "even":
            lines = ["program = tl.program_id(0)", usual_tile(self.rows)]
            lines += [f"b = program // row_tiles // {heads}", f"{h} = program // row_tiles % {heads}"]
        else:
            lines = ["entry, head = _dealt(tl.program_id(0), tl.num_programs(0), entries, long)"]
            lines += [*entry(("tile", "piece", "pieces") if self.cut else ("tile",)), f"b = head // {heads}", f"{h} = head % {heads}"]
        return [*lines, "kv_h = h // GROUP"] if self.rows == "q" else lines

    heads = ("GROUP", "kv_h * GROUP + {}")  # the query heads that share a key head: how many, and each by its number

    def sharing(self) -> list[str]:
        """A loop over the query heads that share a key head, and its first statement."""
        count, head = self.heads
        return [f"for g in range(0, {count}):  # the query heads that share these keys", f"h = {head.format('g')}"]

    def share(self, apart: bool = False) -> list[str]:
        """A piece runs the share low / pieces to high / pieces of the loops' iterations; where the loops of heads are `apart`, its share
        of the loops of one head after the other."""
        if not self.cut:
            return []
        if not apart:
            return ["low, high = piece, piece + 1  # of the loops' iterations, in units of 1 / pieces"]
        ends = (f"tl.minimum(tl.maximum({self.heads[0]} * {p} - g * pieces, 0), pieces)" for p in ("piece", "(piece + 1)"))
        return [f"{name} = {end}" for name, end in zip(("low", "high"), ends)]

    def once(self, value: str, other: str) -> str:
        """What earlier parts of the pattern found is added by the first piece."""
        return f"tl.where(piece == 0, {value}, {other})" if self.cut else value

    def store(self, whole: list[str], parts: list[tuple[str, str | None]]) -> list[str]:
        """Store rows by the statements `whole`; those of pieces, the variables `parts`, in the workspace, each with the name of its
        width, or None for one value a row."""
        if not self.cut:
            return whole
        block = "BLOCK_M" if self.rows == "q" else "BLOCK_N"
        lines = ["if pieces == 1:", *("    " + line for line in whole), "else:", f"    own = (tl.cast(head, tl.int64) * cuts + entry) * {block}"]
        for name, width in parts:
            if width is None:
                lines.append(f"    tl.store(part_{name}_ptr + own + tl.arange(0, {block}), {name})")
            else:
                lines.append(f"    _store_part(part_{name}_ptr, own, {name}, {block}, {width})")
        return lines


def usual_tile(rows: str) -> str:
    """The row tile of a program, all heads of a tile one after the other."""
    return "tile = row_tiles - 1 - program % row_tiles  # last rows first: often they have most keys" if rows == "q" else "tile = program % row_tiles"


def entry(fields: tuple[str, ...]) -> list[str]:
    """Statements that read the first fields of a schedule's entry."""
    return [f"{name} = tl.load(schedule_ptr + 3 * entry{f' + {i}' if i else ''})" for i, name in enumerate(fields)]


@dataclass(frozen=True, eq=False)
class Dealt:
    """A schedule on a device.

    Attributes:
        table: int32 [entries, 3], `balance.Schedule.entries`.
        form, cuts, long: as in `balance.Schedule`.
    """

    table: torch.Tensor
    form: str
    cuts: int
    long: int

    def values(self) -> dict:
        """Kernel parameters by name."""
        return {"schedule_ptr": self.table, "entries": len(self.table), "long": self.long, **({"cuts": self.cuts} if self.cuts else {})}


__all__ = ["FORMS", "PARAMETERS", "Deal", "Dealt", "entry", "usual_tile"]
