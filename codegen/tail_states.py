"""The states of slots: what each adds to the state that it passes on, and the sums of that over earlier, or later, slots."""

from __future__ import annotations

from patternc.codegen.tail_text import SHAPES, TailKernel, Text, dot, finish, indented

CENTRE = [
    "c = tl.sum(s * z[:, None], 0) / tl.maximum(tl.sum(z * z, 0), 1e-30)  # of all c, s - z c^T is smallest with this one",
    "s -= z[:, None] * c[None, :]",
]
STORE = "tl.store(state, s.to(states_ptr.dtype.element_ty))"
STORE_C = "tl.store(vectors_ptr + vector + BLOCK_D + e, c)"
STORE_SUMS = "tl.store(vectors_ptr + vector + d, sums)"


def _program(t: Text, parts: str) -> list[str]:
    """Which slot, key head and half of the features a program works on, and which slice of the columns of v."""
    return [
        f"halves: tl.constexpr = {t.form.halves}",
        f"parts = {parts}",
        "program = tl.program_id(0)",
        "half = program % halves",
        "column = program // halves % tl.cdiv(BLOCK_DV, SLICE) * SLICE",
    ]


def _place(vectors: bool) -> list[str]:
    """Where the program's half of a slot's state is."""
    return [
        "cell = tl.cast((b * (HEADS // GROUP) + kv_h) * slots + slot, tl.int64) * halves + half",
        "state = states_ptr + cell * BLOCK_D * BLOCK_DV + d[:, None] * BLOCK_DV + e[None, :]",
        *["vector = cell * (BLOCK_D + BLOCK_DV)"] * vectors,
    ]


def key_states(t: Text) -> TailKernel:
    """Sums over the keys of a slot."""
    step = [
        "first_key = slot_key + i * BLOCK_N", *t.keys("BLOCK_N"), *t.feeds(),
        t.load("k", "BLOCK_N"), t.load("v", "BLOCK_N", "column"),
        f"phi = tl.where(feeds[:, None], _{t.name}_features(k_tile, sign, d, D), 0.0)",
        "z += tl.sum(phi, 0)",
        dot("s", "tl.trans(phi.to(v_tile.dtype))", "v_tile"),
    ]  # fmt: skip
    last = [*CENTRE, STORE, "tl.store(vectors_ptr + vector + d, z)", STORE_C]
    loop = ["for i in tl.range(0, tl.cdiv(key_stop - slot_key, BLOCK_N), num_stages=STAGES):", *indented(step)]
    doc = "phi(k)^T v and the sums of phi(k) over the keys of each slot, centred."
    return _states(t, "key_states", ("k", "v"), [], ["z = tl.zeros([BLOCK_D], tl.float32)", *loop, *last], doc)


def row_states(t: Text) -> TailKernel:
    """Sums over the rows of a slot, of all query heads that share keys."""
    sums = t.form.sums
    step = [
        "h = kv_h * GROUP + i // per", "first_row = slot_row + i % per * BLOCK_N", *t.rows("BLOCK_N", last=False),
        *t.base("q"), *t.base("do"), t.load("q", "BLOCK_N"), t.load("do", "BLOCK_N", "column"),
        f"phi = tl.where({'(row_ok & reads)' if t.form.gated else 'row_ok'}[:, None], _{t.name}_features(q_tile, sign, d, D), 0.0)",
        *[f"z += tl.sum(phi * tl.load(dsums_ptr + {t.row_vector}, mask=row_ok, other=0.0)[:, None], 0)"] * sums,
        dot("s", "tl.trans(phi.to(do_tile.dtype))", "do_tile"),
    ]  # fmt: skip
    loop = [
        "count = tl.cdiv(row_stop - slot_row, BLOCK_N)", "per = tl.maximum(count, 1)",
        *["z = tl.zeros([BLOCK_D], tl.float32)"] * sums,
        "for i in tl.range(0, tl.maximum(count, 0) * GROUP, num_stages=STAGES):", *indented(step),
        STORE, *["tl.store(vectors_ptr + vector + d, z)"] * sums,
    ]  # fmt: skip
    doc = "phi(q)^T do over the rows of each slot: what they add to the gradient of the state that enters it."
    return _states(t, "row_states", ("q", "do"), ["dsums_ptr"] * sums, loop, doc)


def _states(t: Text, name: str, matrices: tuple[str, str], more: list[str], body: list[str], doc: str) -> TailKernel:
    keys = name == "key_states"
    lines = [
        *_program(t, "halves * tl.cdiv(BLOCK_DV, SLICE)"),
        "slot = first_slot + program // parts % needed  # the sums of others are not read",
        "kv_h = program // parts // needed % (HEADS // GROUP)", "b = program // parts // needed // (HEADS // GROUP)",
        *t.row_of_tables(), "sign = 1.0 - 2.0 * half", "d = tl.arange(0, BLOCK_D)", "e = column + tl.arange(0, SLICE)",
        *_place(keys or t.form.sums), *t.slot(),
        *(line for m in matrices for line in t.base(m) if keys),
        "s = tl.zeros([BLOCK_D, SLICE], tl.float32)", *body,
    ]  # fmt: skip
    parameters = [*t.loaded(*matrices), *more, "states_ptr", *["vectors_ptr"] * (keys or t.form.sums), *t.tables(), "first_slot", "needed"]
    return finish(name, doc, parameters, lines, (*SHAPES, "SLICE", "SLOT", "BLOCK_N", "ALIGN", "STAGES", "PRECISION"))


def scan(t: Text, name: str, centred: bool = True) -> TailKernel:
    """`key_scan` and `row_scan`: in place of what slots add, the states that enter them, or the gradients of those that leave them.

    States of keys are `centred`, or as those of rows.  Programs take spans of `span` slots.  What a span adds in all is the result of
    `key_totals` and `row_totals`, which are needed where there is more than one: float32 [.., spans, BLOCK_D, BLOCK_DV + 1], the last column
    being sums of features.
    """
    keys, whole = name.startswith("key"), name.endswith("totals")
    centred = keys and centred
    vectors = centred or t.form.sums
    every = ["total", *["sums"] * vectors]
    step = [
        "slot = i" if keys else "slot = start + stop - 1 - i",
        *_place(vectors), "gain = tl.load(state).to(tl.float32)", *["gain_z = tl.load(gains_ptr + vector + d)"] * vectors,
        *["gain += gain_z[:, None] * tl.load(gains_ptr + vector + BLOCK_D + e)[None, :]"] * centred,
        *([] if whole else ["s = total", *(["z = sums", *CENTRE, STORE, STORE_C] if centred else [STORE]), *[STORE_SUMS] * vectors]),
        *_survives(t, "slot", "slot + 1", every), "total += gain", *["sums += gain_z"] * vectors,
    ]  # fmt: skip
    at = "totals_ptr + (pair * spans + {}) * BLOCK_D * (BLOCK_DV + 1)"
    place, column = f"{at} + d[:, None] * (BLOCK_DV + 1) + e[None, :]", f"{at} + d * (BLOCK_DV + 1) + BLOCK_DV"
    earlier = [
        "other = i" if keys else "other = spans - 1 - i", *_survives(t, "other * span", "tl.minimum((other + 1) * span, slots)", every),
        f"total += tl.load({place.format('other')})", *[f"sums += tl.load({column.format('other')})"] * vectors,
    ]  # fmt: skip
    body = [
        *_program(t, "halves * tl.cdiv(BLOCK_DV, SLICE)"),
        "spans = tl.cdiv(slots, span)", "own = program // parts % spans",
        "kv_h = program // parts // spans % (HEADS // GROUP)", "b = program // parts // spans // (HEADS // GROUP)",
        "pair = tl.cast(b * (HEADS // GROUP) + kv_h, tl.int64) * halves + half",
        *(t.row_of_tables() if t.form.gated else []), "d = tl.arange(0, BLOCK_D)", "e = column + tl.arange(0, SLICE)",
        "start = own * span", "stop = tl.minimum(start + span, slots)",
        "total = tl.zeros([BLOCK_D, SLICE], tl.float32)", *["sums = tl.zeros([BLOCK_D], tl.float32)"] * vectors,
        *([] if whole else [f"for i in range(0, {'own' if keys else 'spans - 1 - own'}):  # what earlier spans add", *indented(earlier)]),
        "for i in tl.range(start, stop, num_stages=STAGES):", *indented(step),
        *([f"tl.store({place.format('own')}, total)", *[f"tl.store({column.format('own')}, sums)"] * vectors] if whole else []),
    ]  # fmt: skip
    what = "the states that enter them" if keys else "the gradients of the states that leave them"
    doc = "What the slots of each span add, in all." if whole else f"In the place of what slots add, in a fixed order: {what}."
    tables = (["first_ptr"] * t.form.steps + ["base_ptr", "per_row"]) if t.form.gated else []
    own = ["gains_ptr"] * vectors if whole else ["vectors_ptr", "gains_ptr"] * vectors
    parameters = ["states_ptr", "totals_ptr", *own, *tables, "slots", "span"]
    return finish(name, doc, parameters, body, ("HEADS", "GROUP", "BLOCK_D", "BLOCK_DV", "SLICE", "SLOT", "STAGES"))


def _survives(t: Text, first: str, stop: str, names: list[str]) -> list[str]:
    """What is left of sums that pass slots `first` .. `stop - 1`: nothing, where states begin anew in one of them."""
    if not t.form.gated:
        return []
    key = f"tl.load(first_ptr + (table * (slots + 1) + {first}) * 2)" if t.form.steps else f"({first}) * SLOT"
    begin = f"begin = tl.load(base_ptr + table * (slots + 1) + {stop})  # the state that leaves holds the keys from here on"
    return [begin, f"survives = begin < {key}", *(f"{x} = tl.where(survives, {x}, 0.0)" for x in names)]
