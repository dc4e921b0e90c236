"""What the scans of a linear tail begin with: states of segments, their sums, and what rows add for the centre of v."""

from __future__ import annotations

from patternc.codegen.tail_text import (
    EACH_KEY_TILE,
    LOAD_DO,
    LOAD_K,
    LOAD_Q,
    LOAD_V,
    TailKernel,
    Text,
    finish,
    heads,
    indented,
    kept,
    load_extra,
    loop,
)


def _zeros(name: str, halves, shape: str) -> list[str]:
    return [f"{name}{h} = tl.zeros([{shape}], tl.float32)" for h in halves]


def key_states(t: Text) -> TailKernel:
    feeds = "feeds & key_ok" if t.form.gated else "key_ok"
    step = [
        *t.slot(rows=False),
        LOAD_K, LOAD_V,
        *t.features("k", "k_tile", feeds),
        *kept(t, "s", "z"),
        *(line for h in t.halves for line in t.dots(f"s{h}", [(f"tl.trans(k{h}.to(v_tile.dtype))", "v_tile")], f"s{h}")),
        *(f"z{h} += tl.sum(k{h}, 0)" for h in t.halves),
    ]  # fmt: skip
    body = [
        *t.program(sliced=True), *t.base("k", "kv_h"), *t.base("v", "kv_h"), *t.state_base(),
        *_zeros("s", t.halves, "BLOCK_D, SLICE"), *_zeros("z", t.halves, "BLOCK_D"),
        *loop(step),
        *t.store_state("s"),
        "if program % parts == 0:", *indented(t.store_vector("z")),
    ]  # fmt: skip
    doc = f"What each segment adds to the state that it passes on: phi(k)^T v, and the sums of phi(k); {EACH_KEY_TILE}."
    return finish("key_states", doc, [*t.parameters("k", "v"), "states_ptr", *t.tables()], body)


def row_states(t: Text) -> TailKernel:
    f = t.form
    sums = [load_extra(t), *([f"extra = {t.when('reads', 'extra')}"] if f.gated else [])] if f.sums else []
    inner = [
        LOAD_Q, LOAD_DO, *sums,
        *([f"do_tile = {t.when('reads[:, None]', 'do_tile')}"] if f.gated else []),
        *t.features("q", "q_tile", "row_ok"),
        *(line for h in t.halves for line in t.dots(f"s{h}", [(f"tl.trans(q{h}.to(do_tile.dtype))", "do_tile")], f"s{h}")),
        *(f"z{h} += tl.sum(q{h} * extra[:, None], 0)" for h in t.halves if f.sums),
    ]  # fmt: skip
    step = [*t.slot(rows=True, keys=False), *kept(t, "s", *(["z"] if f.sums else [])), *heads(t, ("q", "do"), inner)]
    body = [
        *t.program(sliced=True), *t.state_base(),
        *_zeros("s", t.halves, "BLOCK_D, SLICE"), *(_zeros("z", t.halves, "BLOCK_D") if f.sums else []),
        *loop(step, reverse=True),
        *t.store_state("s"),
        *(["if program % parts == 0:", *indented(t.store_vector("z"))] if f.sums else []),
    ]  # fmt: skip
    doc = f"What each segment adds to the gradient of the state that enters it: phi(q)^T do; {EACH_KEY_TILE}."
    return finish("row_states", doc, [*t.parameters("q", "do"), *(["extra_ptr"] if f.sums else []), "states_ptr", *t.tables()], body)


def scan(t: Text) -> TailKernel:
    f = t.form
    survives = []
    if f.gated:
        first = "tl.load(first_ptr + (table * (slots + 1) + s * span) * 2)" if f.steps else "s * span * BLOCK"
        survives = [
            f"first_key = {first}",
            "begin = tl.load(base_ptr + table * (slots + 1) + tl.minimum((s + 1) * span, slots))",
            "total = tl.where(begin < first_key, total, 0.0)",
        ]
    body = [
        "segments = tl.cdiv(slots, span)",
        "pieces = tl.cdiv(WIDTH, BLOCK_W)",
        "program = tl.program_id(0)",
        *(["table = program // pieces // kv_heads * per_row  # the tables' batch row"] if f.gated else []),
        "column = program % pieces * BLOCK_W + tl.arange(0, BLOCK_W)",
        "state = states_ptr + tl.cast(program // pieces, tl.int64) * segments * WIDTH + column",
        "total = tl.zeros([BLOCK_W], tl.float32)",
        "for i in range(0, segments):",
        *indented([
            "s = segments - 1 - i if REVERSE else i",
            "at = state + tl.cast(s, tl.int64) * WIDTH",
            "gain = tl.load(at, mask=column < WIDTH)",
            "tl.store(at, total, mask=column < WIDTH)",
            *survives,
            "total += gain",
        ]),
    ]  # fmt: skip
    tables = (["first_ptr"] * f.steps + ["base_ptr", "per_row", "kv_heads"]) if f.gated else []
    doc = "What segments add, to the states that enter them: sums over earlier segments, or later ones, in a fixed order."
    return finish("scan", doc, ["states_ptr", *tables, "slots", "span"], body)


def extras(t: Text) -> TailKernel:
    body = [
        "tiles = tl.cdiv(n_q, BLOCK)",
        "program = tl.program_id(0)",
        "first = program % tiles * BLOCK",
        "h = program // tiles % HEADS",
        "b = program // tiles // HEADS",
        "e = tl.arange(0, BLOCK_DV)",
        "rows = first + tl.arange(0, BLOCK)",
        "row_ok = rows < n_q",
        *t.base("do", "h"),
        "do_tile = _load_slot(do_base, first, row_ok, do_stride, e, DV, BLOCK).to(tl.float32)",
        "centre = tl.load(centre_ptr + (b * (HEADS // GROUP) + h // GROUP) * DV + e, mask=e < DV, other=0.0)",
        "extra = tl.sum(do_tile * centre[None, :], 1)",
        *([f"extra += tl.load(dsums_ptr + {t.row_vector}, mask=row_ok, other=0.0)"] if t.form.sums else []),
        f"tl.store(extra_ptr + {t.row_vector}, extra, mask=row_ok)",
    ]  # fmt: skip
    doc = f"extra = do . centre{' + the gradient of the sums' if t.form.sums else ''} of each row [B, HEADS, n_q], one program a tile of rows."
    parameters = [*t.parameters("do"), *(["dsums_ptr"] if t.form.sums else []), "centre_ptr", "extra_ptr", "n_q"]
    return finish("extras", doc, parameters, body)
