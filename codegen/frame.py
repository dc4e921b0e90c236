"""The parts that kernels share: the signature, and what a plan adds to a kernel (positions, bounds, loops, masks)."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from patternc.codegen import bounds
from patternc.codegen.code import COL, HEAD, ROW, Statement
from patternc.codegen.printer import Printer
from patternc.codegen.uses import Uses, is_pointer
from patternc.plan import AxisPlan, Plan

# Names in kernels that an arg's statements must not take.
TAKEN = (
    "b h g kv_h n_q n_k i r0 r1 tile row_tiles program first first_col last_col rows cols start whole slot slots periods "
    "turn slot_offsets at vectors col_tile ahead s entry head piece pieces low high own cuts entries long "
    "allowed acc total peak lse delta o dq dk dv swap q_start q_row q_col k_row k_col q_tile k_tile v_tile do_tile bounds triton tl"
).split()


def indent(lines, depth: int = 1) -> str:
    return "\n".join("    " * depth + line if line else "" for line in lines)


def wrap(items: list[str]) -> str:
    """Comma-separated items in indented lines of at most 120 characters; an item stays on one line."""
    text = ", ".join(item.replace(" ", "\0") for item in items) + ","
    lines = textwrap.wrap(text, 120, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def closing(mask) -> str:
    """The end of a module: its pattern."""
    return "\n".join(f"# {line}".rstrip() for line in ["Pattern:", *str(mask).splitlines()])


def is_wide(parameter: str) -> bool:
    """Whether a number is passed in 64 bits: the strides of matrices."""
    return parameter.endswith(("_stride_b", "_stride_h")) and "_of_" not in parameter and not parameter.startswith("bounds")


def header(name: str, parameters: list[str], constants: list[str], doc: str) -> str:
    """The signature: no number is specialised by its value, so that other lengths reuse a compiled kernel."""
    typed = [f"{p}: tl.int64" if is_wide(p) else p for p in parameters]
    numbers = [f'"{p}"' for p in parameters if not is_pointer(p)]
    return (
        f"@triton.jit(do_not_specialize=[\n{wrap(numbers)}\n])\ndef {name}(\n{wrap(typed)}\n"
        f'{wrap([f"{c}: tl.constexpr" for c in constants])}\n):\n    """{doc}"""\n'
    )


ABOUT_RUNS = "lo..hi of a run hold all that any row of the tile allows, inner_lo..inner_hi only what every row allows."


@dataclass(frozen=True)
class Turns:
    """Heads whose tiles one loop takes, those of one after those of the other: one pipeline for all of them.

    Attributes:
        count: text of the number of heads.
        head: text of a head from its number, with `{}` for it.
        lines: statements for each head.
    """

    count: str
    head: str
    lines: tuple[str, ...]

    def begin(self, tiles: str) -> list[str]:
        """The head and the tile number `i` of a turn, for `tiles` tiles a head (divisors: see `PartText._decode`)."""
        one, tiles = f"{self.count} == 1", f"tl.maximum({tiles}, 1)"
        number = f"(0 if {one} else turn // {tiles})" if self.count.isidentifier() else f"turn // {tiles}"
        place = f"turn if {one} else turn % {tiles}" if self.count.isidentifier() else f"turn % {tiles}"
        return [f"i = {place}", f"h = {self.head.format(number)}", *self.lines]


class Text:
    """What kernels do with a plan's bounds and mask in any order of positions; each order says where the columns of a tile begin
    (`_start`) and what their positions are (`_places`).

    Attributes:
        unit: what a kernel visits, "tiles" or "boxes".
        bounds_of: what the runs' bounds are, "Columns" or "Values" (of a digit).
        exists: the text of a test that a column exists; None where scores of those that do not need no mask.
        allowed: the name of the mask.
        tiles, printed, masked, bounded: loops, statements of the mask and the bounds, and whether there are any.
        cut: the loops run a share of their iterations only (`schedule.Deal.share`).
        turns: the loops take the tiles of several heads in turn.
    """

    unit, bounds_of, allowed, cut = "tiles", "Columns", "allowed", False
    turns: Turns | None = None
    tiles: bounds.Tiles
    printed: list[Statement]
    exists: str | None
    masked: bool
    bounded: bool

    @property
    def alike(self) -> bool:
        """Whether all heads visit the same tiles with the same mask."""
        return not self.tiles.parameters and not any(s.level & HEAD for s in self.printed)

    def hoisted(self, head: bool) -> list[str]:
        """Statements of the mask and of the bounds outside the loops; `head`: those that depend on the head, else the others."""
        lines = [s.text for s in self.printed if not s.level & COL and bool(s.level & HEAD) == head]
        return [f"# {self.bounds_of} {ABOUT_RUNS}", *lines] if lines and self.bounded else lines

    def before(self) -> list[str]:
        about = f"# {self.unit.capitalize()} of each run: [start, stop), of which [full_start, full_stop) are full."
        return [about, *self.tiles.before] if self.tiles.before else []

    def loops(self, load, masked_step, full_step) -> list[str]:
        """The two loops.  `load(check)` gives the statements that load tiles, the steps give those that follow."""
        out = []
        for loop, partial in ((self.tiles.partial, True), (self.tiles.full, False)):
            if loop is None:
                continue
            about = f"partial {self.unit}, masked" if partial else f"full {self.unit}"
            count = f"{self.turns.count} * {loop.count}" if self.turns else loop.count
            first, stop = (f"{count} * {end} // pieces" for end in ("low", "high")) if self.cut else ("0", count)
            counter = "turn" if self.turns else "i"
            out += [*loop.before(first), f"for {counter} in tl.range({first}, {stop}, num_stages=STAGES):  # {about}"]
            begin = self.turns.begin(loop.count) if self.turns else []
            body = [*begin, *loop.tile, *self._start(), *(self._columns() if partial else ()), *load(partial)]
            if partial:
                body += self._mask()
            out += ["    " + line for line in [*body, *(masked_step if partial else full_step)]]
        return out

    def _columns(self) -> list[str]:
        """The columns' positions and what the pattern reads for them: early, so that the product hides the reads' latency."""
        return [*self._places(), *(s.text for s in self.printed if s.level & COL and not s.level & ROW)]

    def _mask(self) -> list[str]:
        """Statements that set scores outside the pattern, and outside the columns there are, to -inf."""
        lines = [s.text for s in self.printed if s.level & COL and s.level & ROW]
        conditions = [text for text in (self.exists, self.allowed if self.masked else None) if text]
        if len(conditions) == 2 and " < " in conditions[0]:
            conditions[0] = f"({conditions[0]})"
        return [*lines, f's = tl.where({" & ".join(conditions)}, s, float("-inf"))'] if conditions else lines


class Frame(Text):
    """The parts of a kernel's text that come from the plan: positions, bounds, masks.  `boxframe.BoxFrame` is the same in digits."""

    def __init__(self, plan: Plan, axis: AxisPlan, rows: str, block_m: str, block_n: str):
        row, col = ("q", "k") if rows == "q" else ("k", "q")
        head = HEAD if rows == "k" else 0
        scalars = {v: (v, 0) for v in ("b", "n_q", "n_k", "r0", "r1", "q_start")}
        variables = {row: (f"{row}_row", ROW), col: (f"{col}_col", COL), "h": ("h", head), **scalars}
        self.rows, self.uses, self.block_n = rows, Uses(), block_n
        # Queries that do not exist have lse = +inf, so that their weights vanish; keys must be masked.
        self.exists = "k_col < n_k" if rows == "q" else None
        self.tiles = bounds.tiles(axis, block_n)
        numbered = (f"{name}_{i}" for i in range(axis.count + 1) for name in bounds.FIELDS)
        assigned = re.findall(r"\w+", " ".join(line.partition(" = ")[0] for line in self.tiles.before))
        printer = Printer(variables, self.uses, (*TAKEN, *numbered, *bounds.STEP, *assigned))
        roots = bounds.roots(axis, printer.index) if axis.kind == "formula" else {}
        mask = printer.pattern(plan.mask)
        if mask is not None:
            roots["allowed"] = mask
        self.masked, self.bounded = mask is not None, axis.kind == "formula" and bool(axis.all_runs)
        self.printed = printer.statements(roots)
        self.parameters = [*self.tiles.parameters, *self.uses.parameters()]

    constants = ()  # kernel constants beside those of all kernels
    vector_length = "whole"  # of lse and delta, for one head

    def tile(self) -> list[str]:
        """How many tiles of rows there are."""
        return [f"row_tiles = tl.cdiv(n_{self.rows}, BLOCK_{'M' if self.rows == 'q' else 'N'})"]

    def first(self) -> list[str]:
        """The first row of the tile."""
        return [f"first = tile * BLOCK_{'M' if self.rows == 'q' else 'N'}"]

    def place(self) -> list[str]:
        """The rows of the tile, for kernels without columns."""
        return self.first()

    def row_vectors(self) -> list[str]:
        """The rows' entries of lse in base 2 and of delta."""
        return [
            "at = tl.cast(b * HEADS + h, tl.int64) * whole + first + tl.arange(0, BLOCK_M)",
            "lse = tl.load(lse2_ptr + at)",
            "delta = tl.load(delta_ptr + at)",
        ]

    def column_vectors(self, check: bool) -> list[str]:
        """The same for the queries of a tile of columns."""
        return ["at = vectors + start + tl.arange(0, BLOCK_M)", "lse = tl.load(lse2_ptr + at)", "delta = tl.load(delta_ptr + at)"]

    def load_rows(self, name: str, pointer: str) -> list[str]:
        """Load one value a row from a vector [B, H, n_q]; -inf where there is no row."""
        return [
            "rows = first + tl.arange(0, BLOCK_M)",
            f'{name} = tl.load({pointer} + tl.cast(b * HEADS + h, tl.int64) * n_q + rows, mask=rows < n_q, other=float("-inf"))',
        ]

    def store_rows(self, pointer: str, value: str) -> list[str]:
        """Store one value a row in a vector [B, H, n_q]."""
        return [
            "rows = first + tl.arange(0, BLOCK_M)",
            f"tl.store({pointer} + tl.cast(b * HEADS + h, tl.int64) * n_q + rows, {value}, mask=rows < n_q)",
        ]

    def positions(self) -> list[str]:
        """`r0`, `r1`, the row positions, the range of columns, and what the pattern reads."""
        row = self.rows
        origin, count = ("q_start + ", "n_q") if row == "q" else ("", "n_k")
        first, last = ("0", "n_k - 1") if row == "q" else ("q_start", "q_start + n_q - 1")
        return [
            "q_start = _scalar(q_start_value, b * q_start_stride)",
            *self.uses.prologue(),
            f"r0 = {origin}first",
            f"r1 = {origin}tl.minimum(first + BLOCK_{'M' if row == 'q' else 'N'}, {count}) - 1",
            f"first_col = {first}",
            f"last_col = {last}",
            f"{row}_row = (r0 + tl.arange(0, BLOCK_{'M' if row == 'q' else 'N'}))[:, None]",
        ]

    def _start(self) -> list[str]:
        return [f"start = col_tile * {self.block_n}"]

    def _places(self) -> list[str]:
        name = "k_col = (start" if self.rows == "q" else "q_col = (q_start + start"
        return [f"{name} + tl.arange(0, {self.block_n}))[None, :]"]
