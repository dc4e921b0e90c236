"""The parts that the kernels of a linear tail share: their form, slots, tiles, masks, features, states.

A term goes through the slots of `tail_slots`, each of at most SLOT keys and SLOT rows.  What rows read of earlier slots is a
state in memory, the sum of `phi(k)^T v` over their keys; what keys are read by in later slots is one too, the sum of
`phi(q)^T do` over their rows.  What a slot's rows read of its own keys is a masked product of tiles.  So no kernel waits for
another tile's result.

A state is [halves, BLOCK_D, BLOCK_DV] beside vectors [halves, BLOCK_D + BLOCK_DV], one for each batch row, key head and slot.
States of keys are centred: the matrix is `S - z c^T` with z = sum of phi(k) and the c that leaves least, both in the vectors.
Rounded as it is, S would spoil dq: with a norm, do is nearly orthogonal to the mean of v, which is most of S.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.codegen.frame import header, indent
from patternc.tail_plan import NOTHING
from patternc.tail_slots import Slots

FEATURES = {"softmax": "softmax", "elu+1": "elu", "relu": "relu", "identity": "identity"}
KERNELS = (
    "key_states", "key_totals", "key_scan", "forward", "backward_q", "row_states", "row_totals", "row_scan", "backward_k", "backward_v"
)  # fmt: skip
WIDTHS = {"q": "D", "k": "D", "v": "DV", "do": "DV", "dq": "D", "dk": "D", "dv": "DV", "o": "DV"}
OF_KEYS = ("k", "v", "dk", "dv")


@dataclass(frozen=True)
class Form:
    """What the kernels of a tail are generated for; patterns differ in what they print of it only.

    Attributes:
        feature: a name in FEATURES.
        sums: also the sum of each row's weights.
        steps: a table says where slots begin; else slot t begins at key `t * SLOT`, its rows `offset` further.
        gated: rows read the keys from one of their own on, or none: states begin anew.
        dead: a table says which keys are read at all.
        mirrored: rows and keys are counted from the last ones.
        described: q, k, v, do are loaded by descriptors, not by pointers.
    """

    feature: str
    sums: bool
    steps: bool
    gated: bool
    dead: bool
    mirrored: bool = False
    described: bool = False

    @staticmethod
    def of(feature: str, sums: bool, slots: Slots) -> Form:
        """Of the slots of a scan."""
        return Form(feature, sums, slots.first is not None, slots.low is not None, slots.live is not None, slots.mirrored)

    @property
    def halves(self) -> int:
        """How many features there are for every entry of a vector: softmax(x) and softmax(-x), or one."""
        return 2 if self.feature == "softmax" else 1


class Text:
    """Statements of the kernels of one form."""

    def __init__(self, form: Form):
        self.form = form
        self.name = FEATURES[form.feature]
        self.halves = ("_a", "_b") if form.halves == 2 else ("",)
        self.signs = ("1.0", "-1.0")

    def each(self, *lines: str) -> list[str]:
        """Statements for each half of the features, with `{h}`, `{sign}` and `{half}` for its suffix, sign and number."""
        return [line.format(h=h, sign=sign, half=i) for i, (h, sign) in enumerate(zip(self.halves, self.signs)) for line in lines]

    # What a call gives

    def tables(self, *more: str) -> list[str]:
        """Parameters that say where slots are and which keys rows read."""
        f = self.form
        tables = ["first_ptr", "last_ptr"] * f.steps + ["low_ptr", "base_ptr"] * f.gated + ["live_ptr"] * f.dead
        return [*tables, *(["per_row"] if tables else []), *([] if f.steps else ["offset"]), "slots", *more, "n_q", "n_k"]

    def row_of_tables(self) -> list[str]:
        f = self.form
        return ["table = b * per_row  # the tables' batch row"] if f.steps or f.gated or f.dead else []

    def loaded(self, *names: str) -> list[str]:
        return [f"{name}_desc" for name in names] if self.form.described else self.stored(*names)

    def stored(self, *names: str) -> list[str]:
        return [p for name in names for p in (f"{name}_ptr", f"{name}_stride_b", f"{name}_stride_h", f"{name}_stride_n")]

    def base(self, name: str, written: bool = False) -> list[str]:
        """Where a matrix of the program's head begins; descriptors know it."""
        if self.form.described and not written:
            return []
        head = "kv_h" if name in OF_KEYS else "h"
        return [
            f"{name}_base = {name}_ptr + tl.cast(b, tl.int64) * {name}_stride_b * ALIGN + tl.cast({head}, tl.int64) * {name}_stride_h * ALIGN"
        ]

    def _place(self, name: str, block: str) -> tuple[str, str, str]:
        """The first position of a tile in memory, and what else says where the tile is: `ok` rows and columns."""
        side, count = ("key", "n_k") if name in OF_KEYS else ("row", "n_q")
        first = f"{count} - first_{side} - {block}" if self.form.mirrored else f"first_{side}"
        return first, f"{side}_ok", "d" if WIDTHS[name] == "D" else "e"

    def load(self, name: str, block: str, column: str = "0") -> str:
        """A tile of `block` rows; `column` is the first one where a program takes a slice of the columns."""
        first, ok, columns = self._place(name, block)
        if self.form.described:
            head = "kv_h" if name in OF_KEYS else "h"
            wide = "BLOCK_D" if WIDTHS[name] == "D" else "SLICE" if column != "0" else "BLOCK_DV"
            return f"{name}_tile = {name}_desc.load([b, {head}, {first}, {column}]).reshape({block}, {wide})"
        return f"{name}_tile = _load_slot({name}_base, {first}, {ok}, {name}_stride_n * ALIGN, {columns}, {WIDTHS[name]}, {block})"

    def store(self, name: str, block: str, ok: str | None = None) -> list[str]:
        """Store the tile `name`, or add it to what is there."""
        first, usual, columns = self._place(name, block)
        at, size = f"{name}_base, {first}, {ok or usual}, {name}_stride_n * ALIGN, {columns}", f"{WIDTHS[name]}, {block}"
        return ["if ADD:", f"    {name} += _load_slot({at}, {size}).to(tl.float32)", f"_store_slot({at}, {name}, {size})"]

    @property
    def row_vector(self) -> str:
        """Where a vector [B, HEADS, n_q] has the entries of a tile's rows."""
        return f"tl.cast(b * HEADS + h, tl.int64) * n_q + {'n_q - 1 - rows' if self.form.mirrored else 'rows'}"

    # Slots and tiles

    def slot(self) -> list[str]:
        """Where slot `slot` begins and ends: its keys, and its rows."""
        if self.form.steps:
            return [
                "where = first_ptr + (table * (slots + 1) + slot) * 2",
                "slot_key = tl.load(where)", "slot_row = tl.load(where + 1)", "key_stop = tl.load(where + 2)", "row_stop = tl.load(where + 3)",
            ]  # fmt: skip
        return [
            "slot_key = slot * SLOT", "slot_row = slot_key + offset",
            "key_stop = tl.minimum(slot_key + SLOT, n_k)", "row_stop = tl.minimum(slot_row + SLOT, n_q)",
        ]  # fmt: skip

    def _indices(self, first: str, block: str) -> str:
        return f"{first} + {block} - 1 - tl.arange(0, {block})" if self.form.mirrored else f"{first} + tl.arange(0, {block})"

    def keys(self, block: str) -> list[str]:
        """The keys of the tile at `first_key`, and which of them there are."""
        lines = [f"keys = {self._indices('first_key', block)}", "key_ok = keys < key_stop"]
        if self.form.dead:
            lines += ["key_there = key_ok", "key_ok = key_ok & (tl.load(live_ptr + table * n_k + keys, mask=key_ok, other=0) != 0)"]
        return lines

    def feeds(self) -> list[str]:
        """Which of the keys the state holds that leaves the slot."""
        if not self.form.gated:
            return ["feeds = key_ok"]
        return ["feeds = key_ok & (keys >= tl.load(base_ptr + table * (slots + 1) + slot + 1))  # the state that leaves the slot begins there"]

    def rows(self, block: str, last: bool) -> list[str]:
        """The rows of the tile at `first_row`, and which of them there are, read the state, and read up to which key."""
        f = self.form
        lines = [f"rows = {self._indices('first_row', block)}", "row_ok = rows < row_stop" if f.steps else "row_ok = (rows >= 0) & (rows < row_stop)"]
        if f.gated:
            lines.append(f"low = tl.load(low_ptr + table * n_q + rows, mask=row_ok, other={NOTHING})")
            lines.append("reads = low < slot_key  # rows that read the state")
        if last:
            lines.append("last = tl.load(last_ptr + table * n_q + rows, mask=row_ok, other=-1)" if f.steps else "last = rows - offset")
        return lines

    def allowed(self, transposed: bool) -> list[str]:
        """Which rows read which keys: [rows, keys], or transposed.  What the accumulators' own axis has too much is not stored."""
        row, col = ("[None, :]", "[:, None]") if transposed else ("[:, None]", "[None, :]")
        conditions = [f"(keys{col} <= last{row})", f"row_ok{row}" if transposed else f"key_ok{col}"]
        conditions += [f"key_ok{col}"] if transposed and self.form.dead else []
        conditions += [f"(keys{col} >= low{row})"] if self.form.gated else []
        return [f"allowed = {' & '.join(conditions)}"]

    def reading(self, value: str, axis: str = "") -> str:
        """`value` for the rows that read the state: all, unless states begin anew."""
        return f"tl.where(reads{axis}, {value}, 0.0)" if self.form.gated else value

    def feeding(self, value: str) -> str:
        """`value` for the keys that the state holds which leaves the slot."""
        return f"tl.where(feeds[:, None], {value}, 0.0)" if self.form.gated or self.form.dead else value

    # Features and states

    def features(self, tile: str, like: str) -> list[str]:
        """`{tile}_a`, `{tile}_b` in float32, and rounded as operands of products: `{tile}_a16`."""
        return self.each(f"{tile}{{h}} = _{self.name}_features({tile}_tile, {{sign}}, d, D)", f"{tile}{{h}}16 = {tile}{{h}}.to({like}.dtype)")

    def operands(self, tile: str, like: str) -> list[str]:
        """The same where no one needs them in float32."""
        return self.each(f"{tile}{{h}}16 = _{self.name}_features({tile}_tile, {{sign}}, d, D).to({like}.dtype)")

    def gradient(self, out: str, tile: str) -> list[str]:
        """`out` = what a vector gains by the gradients `dphi_a`, `dphi_b` of its features."""
        terms = self.each(f"_{self.name}_gradient({tile}_tile, {{sign}}, dphi{{h}}, d, D)")
        return [f"{out} {'+=' if i else '='} {term}" for i, term in enumerate(terms)]

    def state(self, vectors: bool = True) -> list[str]:
        """Where the state of slot `slot` is."""
        index = f"(tl.cast(b * (HEADS // GROUP) + kv_h, tl.int64) * slots + slot) * {self.form.halves}"
        lines = [f"state = states_ptr + {index} * (BLOCK_D * BLOCK_DV)"]
        return lines + ([f"vector = vectors_ptr + {index} * (BLOCK_D + BLOCK_DV)"] if vectors else [])

    def load_states(self) -> list[str]:
        return self.each("s{h} = tl.load(state + {half} * BLOCK_D * BLOCK_DV + d[:, None] * BLOCK_DV + e[None, :])")

    def load_vectors(self, z: bool = True, c: bool = True) -> list[str]:
        at = "vector + {half} * (BLOCK_D + BLOCK_DV)"
        return self.each(*[f"z{{h}} = tl.load({at} + d)"] * z, *[f"c{{h}} = tl.load({at} + BLOCK_D + e)"] * c)


def dot(out: str, x: str, y: str, add: bool = True) -> str:
    """`out` += x @ y, or `out` = x @ y."""
    return f"{out} = tl.dot({x}, {y}, {f'{out}, ' if add else ''}input_precision=PRECISION)"


def dots(t: Text, out: str, x: str, y: str) -> list[str]:
    """`out` = the sum of x @ y over the halves, with `{h}` for the half's suffix."""
    return [dot(out, x.format(h=h), y.format(h=h), add=bool(i)) for i, h in enumerate(t.halves)]


@dataclass(frozen=True)
class TailKernel:
    """One generated kernel: its text, runtime parameters and constexprs, in order, and the matrices that it loads."""

    name: str
    text: str
    parameters: tuple[str, ...]
    constants: tuple[str, ...]


SHAPES = ["HEADS", "GROUP", "D", "DV", "BLOCK_D", "BLOCK_DV"]


def finish(name: str, doc: str, parameters: list[str], body: list[str], constants: tuple[str, ...]) -> TailKernel:
    return TailKernel(name, header(name, parameters, list(constants), doc) + indent(body), tuple(parameters), tuple(constants))


def indented(lines: list[str]) -> list[str]:
    return ["    " + line if line else "" for line in lines]
