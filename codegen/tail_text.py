"""The parts that the kernels of a linear tail share: their form, programs, slots, states, masks.

A scan goes through the slots of `tail_slots`.  What it carries is a state in float32: the sum of `phi(k)^T v` over the keys of
earlier slots, or, backwards, of `phi(q)^T do` over the rows of later ones.  Programs take segments of `span` slots each; the
states that enter them lie in memory as [B, Hkv, segments, F * DV + F]: a matrix [F, DV], and a vector [F] of sums of features.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.codegen.frame import header, indent
from patternc.tail_plan import NOTHING

FEATURES = {"softmax": "softmax", "elu+1": "elu", "relu": "relu", "identity": "identity"}
STATE = "(d < D)[:, None] & (e < DV)[None, :]"

SHAPES = ["HEADS", "GROUP", "D", "DV", "BLOCK_D"]
CONSTANTS = {
    "key_states": [*SHAPES, "SLICE"], "row_states": [*SHAPES, "SLICE"], "scan": ["WIDTH", "BLOCK_W", "REVERSE"],
    "extras": ["HEADS", "GROUP", "DV", "BLOCK_DV"], "forward": [*SHAPES, "SLICE"],
    "backward_q": [*SHAPES, "BLOCK_DV"], "backward_k": [*SHAPES, "BLOCK_DV"], "backward_v": [*SHAPES, "SLICE"],
}  # fmt: skip
UNSLOTTED = {"scan": [], "extras": ["ALIGN"]}  # the last constexprs of kernels that go through no slots


@dataclass(frozen=True)
class Form:
    """What the kernels of a tail are generated for; patterns differ in what they print of it only.

    Attributes:
        feature: a name in FEATURES.
        sums: also the sum of each row's weights.
        steps: a table says where slots begin; else slot t begins at key `t * BLOCK`, its rows `offset` further.
        gated: rows read the keys from one of their own on, or none: states begin anew.
        dead: a table says which keys are read at all.
        mirrored: rows and keys are counted from the last ones.
    """

    feature: str
    sums: bool
    steps: bool
    gated: bool
    dead: bool
    mirrored: bool = False

    @property
    def halves(self) -> int:
        """How many features there are for every entry of a vector: softmax(x) and softmax(-x), or one."""
        return 2 if self.feature == "softmax" else 1


class Text:
    """Statements of the kernels of one form.

    Args:
        single: the program works on one half of the features, by the number `half`; else on all of them.
    """

    def __init__(self, form: Form, single: bool = False):
        self.form, self.single = form, single and form.halves == 2
        self.name = FEATURES[form.feature]
        self.halves = ("_a", "_b") if form.halves == 2 and not single else ("",)
        self.signs = ("sign",) if self.single else ("1.0", "-1.0")

    # What a call gives

    def tables(self) -> list[str]:
        """Parameters that say where slots are and which keys rows read."""
        f = self.form
        tables = ["first_ptr", "last_ptr"] * f.steps + ["low_ptr", "base_ptr"] * f.gated + ["live_ptr"] * f.dead
        return [*tables, *(["per_row"] if tables else []), *([] if f.steps else ["offset"]), "slots", "span", "n_q", "n_k"]

    def row_of_tables(self) -> list[str]:
        f = self.form
        return ["table = b * per_row  # the tables' batch row"] if f.steps or f.gated or f.dead else []

    def program(self, sliced: bool) -> list[str]:
        """Which segment and key head a program works on, and which slice of the values or half of the features."""
        parts = "tl.cdiv(DV, SLICE)" if sliced else "2" if self.single else None
        over = " // parts" if parts else ""
        return [
            *([f"parts = {parts}"] if parts else []),
            "segments = tl.cdiv(slots, span)",
            "program = tl.program_id(0)",
            f"segment = program{over} % segments",
            f"kv_h = program{over} // segments % (HEADS // GROUP)",
            f"b = program{over} // segments // (HEADS // GROUP)",
            *self.row_of_tables(),
            *(["half = program % parts", "sign = 1.0 - 2.0 * half"] if self.single else []),
            "start = segment * span",
            "stop = tl.minimum(start + span, slots)",
            "at = tl.arange(0, BLOCK)",
            "d = tl.arange(0, BLOCK_D)",
            "e = program % parts * SLICE + tl.arange(0, SLICE)" if sliced else "e = tl.arange(0, BLOCK_DV)",
        ]

    def base(self, name: str, head: str) -> list[str]:
        base = f"{name}_base = {name}_ptr + tl.cast(b, tl.int64) * {name}_stride_b * ALIGN + tl.cast({head}, tl.int64) * {name}_stride_h * ALIGN"
        if not self.form.mirrored:
            return [base, f"{name}_stride = {name}_stride_n * ALIGN"]
        count = "n_k" if name in ("k", "v", "dk", "dv") else "n_q"
        return [base, f"{name}_base += tl.cast({count} - 1, tl.int64) * {name}_stride_n * ALIGN", f"{name}_stride = -{name}_stride_n * ALIGN"]

    @property
    def row_vector(self) -> str:
        """Where a vector [B, HEADS, n_q] has the entries of the slot's rows."""
        return f"tl.cast(b * HEADS + h, tl.int64) * n_q + {'n_q - 1 - rows' if self.form.mirrored else 'rows'}"

    def parameters(self, *names: str) -> list[str]:
        return [p for name in names for p in (f"{name}_ptr", f"{name}_stride_b", f"{name}_stride_h", f"{name}_stride_n")]

    # A slot

    def slot(self, rows: bool, keys: bool = True, ends: bool = True) -> list[str]:
        """Where slot `slot` begins, which of its keys and rows there are, and which of them the states hold.

        Args:
            rows, keys: whether the kernel uses the slot's rows and keys.
            ends: whether it uses the state that leaves the slot.
        """
        f = self.form
        if f.steps:
            lines = [
                "where = first_ptr + (table * (slots + 1) + slot) * 2", "first_key = tl.load(where)",
                *(["first_row = tl.load(where + 1)"] if rows else []),
            ]  # fmt: skip
        else:
            lines = ["first_key = slot * BLOCK", *(["first_row = first_key + offset"] if rows else [])]
        if keys:
            lines += ["keys = first_key + at", f"key_ok = keys < {'tl.load(where + 2)' if f.steps else 'n_k'}"]
            lines += ["key_there = key_ok", "key_ok = key_ok & (tl.load(live_ptr + table * n_k + keys, mask=key_ok, other=0) != 0)"] if f.dead else []
        if rows:
            lines += ["rows = first_row + at", f"row_ok = {'rows < tl.load(where + 3)' if f.steps else '(rows >= 0) & (rows < n_q)'}"]
            if f.gated:
                lines.append(f"low = tl.load(low_ptr + table * n_q + rows, mask=row_ok, other={NOTHING})")
                lines.append("reads = low < first_key  # rows that read the state")
            lines += ["last = tl.load(last_ptr + table * n_q + rows, mask=row_ok, other=-1)"] if f.steps and keys else []
        if f.gated and ends:
            lines += ["begin = tl.load(base_ptr + table * (slots + 1) + slot + 1)  # the state that leaves the slot holds the keys from here on"]
            lines += ["feeds = keys >= begin"] if keys else []
        return lines

    @property
    def stored(self) -> str:
        """The keys of a slot whose gradients are stored, those that no row reads included."""
        return "key_there" if self.form.dead else "key_ok"

    def allowed(self, transposed: bool) -> list[str]:
        """Which rows of a slot read which of its keys."""
        f = self.form
        row, col = ("[None, :]", "[:, None]") if transposed else ("[:, None]", "[None, :]")
        conditions = [f"(keys{col} <= last{row})" if f.steps else f"(at{col} <= at{row})"]
        conditions += [f"(keys{col} >= low{row})"] if f.gated else []
        conditions += [f"key_ok{col}"] if f.dead else []
        return [f"allowed = {' & '.join(conditions)}"]

    def when(self, condition: str, value: str) -> str:
        """`value` where a vector of rows, or a number, says so; states that begin anew only are gated."""
        return f"tl.where({condition}, {value}, 0.0)" if self.form.gated else value

    # Features and states

    def features(self, x: str, tile: str, ok: str, like: str | None = None, then: tuple[str, ...] = ()) -> list[str]:
        """Features in float32 and, rounded to the dtype of `like`, as operands of products.

        Args:
            then: what else is made of each half, while it is at hand in float32: statements with `{h}` for the half's suffix, of
                which those with `+=` begin with `=`.
        """
        out = []
        for i, (half, sign) in enumerate(zip(self.halves, self.signs)):
            out.append(f"{x}{half} = _{self.name}_features({tile}, {sign}, {ok}, d, D)")
            out += [f"{x}{half}16 = {x}{half}.to({like}.dtype)"] if like else []
            out += [line.format(h=half).replace("+=", "+=" if i else "=") for line in then]
        return out

    def rounded(self, x: str, like: str) -> list[str]:
        return [f"{x}{h}16 = {x}{h}.to({like}.dtype)" for h in self.halves]

    def gradient(self, tile: str, features: str) -> str:
        return f"_{self.name}_gradient({tile}, {self.signs[0]}, {features}, d, D)"

    def dots(self, out: str, pairs: list[tuple[str, str]], start: str | None = None) -> list[str]:
        """`out` = the sum of products, on top of `start`."""
        lines = []
        for i, (x, y) in enumerate(pairs):
            total = start if i == 0 else out
            lines.append(f"{out} = tl.dot({x}, {y}, {'' if total is None else total + ', '}input_precision=PRECISION)")
        return lines

    def apart(self, out: str, pairs: list[tuple[str, str]], there: str, gate: str | None = None, add: bool = False) -> list[str]:
        """The same sum of products that do not accumulate in one another, for `there` rows: the compiler spreads a product that
        ends in another over rows alone, and 64 rows are too few for 8 warps."""
        condition = f"({there} & {gate})[:, None]" if gate and self.form.gated else f"{there}[:, None]"
        lines = []
        for i, (x, y) in enumerate(pairs):
            lines.append(f"{out} {'+' if add or i else ''}= tl.where({condition}, tl.dot({x}, {y}, input_precision=PRECISION), 0.0)")
        return lines

    def state_base(self) -> list[str]:
        return [
            f"WIDTH: tl.constexpr = {self.form.halves} * D * (DV + 1)",
            "state = states_ptr + tl.cast((b * (HEADS // GROUP) + kv_h) * segments + segment, tl.int64) * WIDTH",
        ]

    def _place(self, half: str) -> str:
        row = "(d[:, None] + half * D)" if self.single else "(d[:, None] + D)" if half == "_b" else "d[:, None]"
        return f"state + {row} * DV + e[None, :]"

    def load_state(self, name: str) -> list[str]:
        return [f"{name}{h} = tl.load({self._place(h)}, mask={STATE}, other=0.0)" for h in self.halves]

    def store_state(self, name: str) -> list[str]:
        return [f"tl.store({self._place(h)}, {name}{h}, mask={STATE})" for h in self.halves]

    def _vector(self, half: str) -> str:
        return f"state + {self.form.halves} * D * DV + d" + (" + half * D" if self.single else " + D" if half == "_b" else "")

    def load_vector(self, name: str) -> list[str]:
        return [f"{name}{h} = tl.load({self._vector(h)}, mask=d < D, other=0.0)" for h in self.halves]

    def store_vector(self, name: str) -> list[str]:
        return [f"tl.store({self._vector(h)}, {name}{h}, mask=d < D)" for h in self.halves]


@dataclass(frozen=True)
class TailKernel:
    """One generated kernel: its text, runtime parameters and constexprs, in order."""

    name: str
    text: str
    parameters: tuple[str, ...]
    constants: tuple[str, ...]


def finish(name: str, doc: str, parameters: list[str], body: list[str]) -> TailKernel:
    constants = [*CONSTANTS[name], "BLOCK", *UNSLOTTED.get(name, ["ALIGN", "STAGES", "PRECISION"])]
    text = header(name, parameters, constants, doc) + indent(body)
    return TailKernel(name, text, tuple(parameters), tuple(constants))


def loop(body: list[str], reverse: bool = False) -> list[str]:
    if not reverse:
        return ["for slot in tl.range(start, stop, num_stages=STAGES):", *indented(body)]
    return ["for i in tl.range(0, stop - start, num_stages=STAGES):", *indented(["slot = stop - 1 - i", *body])]


def heads(t: Text, names: tuple[str, ...], body: list[str]) -> list[str]:
    """A loop over the query heads that share the slot's keys."""
    bases = [line for name in names for line in t.base(name, "h")]
    return ["for g in range(0, GROUP):  # the query heads that share these keys", *indented(["h = kv_h * GROUP + g", *bases, *body])]


def indented(lines: list[str]) -> list[str]:
    return ["    " + line if line else "" for line in lines]


LOAD_Q = "q_tile = _load_slot(q_base, first_row, row_ok, q_stride, d, D, BLOCK)"
LOAD_K = "k_tile = _load_slot(k_base, first_key, key_ok, k_stride, d, D, BLOCK)"
LOAD_V = "v_tile = _load_slot(v_base, first_key, key_ok, v_stride, e, DV, BLOCK)"
LOAD_DO = "do_tile = _load_slot(do_base, first_row, row_ok, do_stride, e, DV, BLOCK)"
EACH_KEY_TILE = "one program a segment, key head and slice of the values"


def load_extra(t: Text) -> str:
    return f"extra = tl.load(extra_ptr + {t.row_vector}, mask=row_ok, other=0.0)"


def kept(t: Text, *names: str) -> list[str]:
    """States that survive the slot."""
    return [f"{n}{h} = {t.when('begin < first_key', f'{n}{h}')}" for n in names for h in t.halves] if t.form.gated else []
