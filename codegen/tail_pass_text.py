"""The text of the one-pass kernels of a linear tail (`tail_pass.py`): who loads, who sums states, who computes results, and their barriers.

A chunk is 64 rows and 64 keys.  The side that heads share has one tile in it, the other side one for each of these heads.  Tiles of x
are numbered over a program, and so are pairs of tiles of y and z: number i is in slot i % STAGES of its ring.  Its barrier `full` is
waited for with the parity of i // STAGES, its barrier `empty` with the other one.  States go through BUFFERS buffers in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from patternc.codegen.frame import indent, wrap
from patternc.codegen.hopper_text import assigned, names, typed
from patternc.codegen.tail_pass_form import OF_ROWS, PassForm
from patternc.codegen.tail_text import FEATURES, indented

HELPERS = (
    '''
@gluon.jit
def _store_rows(ptr, stride_b, stride_h, stride_n, b, head, first, column, values):
    """Store the rows of a tile that are there."""
    row = first + tl.arange(0, values.shape[0], tl.SliceLayout(1, values.type.layout))[:, None]
    at = ptr + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h + column
    at += row.to(tl.int64) * stride_n + tl.arange(0, values.shape[1], tl.SliceLayout(0, values.type.layout))[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=row >= 0)
''',
)


def _partition(name: str, doc: str, own: list[str], lines: list[str]) -> tuple[str, str]:
    """The text of a function, and its entry in `warp_specialize`, `{own}` being what it alone is given."""
    read = [n for n in names(lines) if n not in own and n not in assigned(lines)]
    text = f'@gluon.jit\ndef {name}(\n{wrap([*(f"{x}: tl.constexpr" for x in own), *typed(read)])}\n):\n    """{doc}"""\n{indent(lines)}'
    return text, f"({name}, ({'{own}, ' if own else ''}{', '.join(read)})),"


def _chunk(f: PassForm) -> str:
    return "c = from_chunk + t" if f.of_rows else "c = from_chunk + chunks - 1 - t"


def _first(f: PassForm, matrix: str) -> str:
    """Where chunk c of a matrix begins."""
    if f.mirrored:
        return "n_q - (c + 1) * 64 - offset" if matrix in OF_ROWS else "n_k - (c + 1) * 64"
    return "c * 64 + offset" if matrix in OF_ROWS else "c * 64"


def _at(f: PassForm, role: str) -> str:
    """Where the tile of a role is: halves of the features take all columns, slices theirs."""
    matrix = f.roles[role]
    head = "kv_h * GROUP + r" if matrix in OF_ROWS else "kv_h"
    return f"[b, {head}, {_first(f, matrix)}, {'column' if role in 'zuo' and not f.apart else '0'}]"


def loads(f: PassForm) -> tuple[str, str]:
    """The warp that loads."""

    def ring(name: str, members: str, number: str, stages: str) -> list[str]:
        roles = [role for role in members if role in f.roles]
        size = " + ".join(f"{role}_desc.block_type.nbytes" for role in roles)
        return [
            f"{name}_slot = {number} % {stages}",
            f"mbarrier.wait({name}_empty.index({name}_slot), ({number} // {stages} & 1) ^ 1)",
            f"mbarrier.expect({name}_full.index({name}_slot), {size})",
            *(f"_load({x}_desc, {_at(f, x)}, {name}_full.index({name}_slot), {x}_tiles.index({name}_slot))" for x in roles),
        ]

    x, yz = ("x", "xu", "2"), ("yz", "yz", "STAGES")
    (one, once, depth), (many, often, depths) = (yz, x) if f.of_rows else (x, yz)
    lines = [
        "for t in range(chunks):",
        *indented([_chunk(f), *ring(one, once, "t", depth), "for r in range(GROUP):"]),
        *indented(indented(["n = t * GROUP + r", *ring(many, often, "n", depths)])),
    ]
    return _partition("_loads", "Loads the tiles of every chunk.", [], lines)


def _layout(name: str, columns: str) -> str:
    return f"{name}: tl.constexpr = tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, {columns}, 16])"


PLAIN = "tl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])"  # few threads have a row, so that sums over it are mostly a thread's own
SIGN = {True: "1.0 - 2.0 * (column // W)", False: "1.0"}  # of the half of the features, by whether they are apart


def _features(f: PassForm, x: str, columns: str) -> str:
    return x if f.feature == "identity" else f"_{FEATURES[f.feature]}_features({x}, {SIGN[f.apart]}, 0, {columns})"


def _live(f: PassForm, chunk: str, layout: str) -> list[str]:
    """Which of a chunk's keys are read at all."""
    key = f"tl.arange(0, 64, tl.SliceLayout(1, {layout}))"
    return [
        f"key = {f'({chunk} + 1) * 64 - 1 - {key}' if f.mirrored else f'{chunk} * 64 + {key}'}",
        "live = tl.load(live_ptr + b * per_row * n_k + key, mask=key < n_k, other=0) != 0",
    ]


def _buffer(f: PassForm, term: int) -> str:
    """A term of the state of chunk t."""
    return f"state_tiles.index(t % BUFFERS{f' * {f.terms} + {term}' if f.terms > 1 else ''})"


def states(f: PassForm) -> tuple[str, str]:
    """The warpgroup that sums a state and hands on, before every chunk, what the chunks before it have added."""
    hand_on = [
        "mbarrier.wait(s_empty.index((t - BUFFERS) % 2), (t - BUFFERS) // 2 & 1, pred=t >= BUFFERS)",
        "high = s.to(state_tiles.dtype)",
        f"{_buffer(f, 0)}.store(high)",
        *[f"{_buffer(f, 1)}.store((s - high.to(tl.float32)).to(state_tiles.dtype))"] * (f.terms == 2),
        "fence_async_shared()",
        "mbarrier.arrive(s_full.index(t % 2), count=1)",
    ]
    n, total = ("t", "chunks") if f.of_rows else ("n", "chunks * GROUP")
    step = [
        *(hand_on if f.of_rows else ["if r == 0:", *indented(hand_on)]),
        f"slot = {n} % STAGES",
        *([] if f.made else [f"mbarrier.wait(yz_full.index(slot), {n} // STAGES & 1)"]),
        "y, z = y_tiles.index(slot).reshape([64, D]), z_tiles.index(slot).reshape([64, W])",
        "more = warpgroup_mma(y.permute((1, 0)), z, s, is_async=True)",
        *([f"if {n} + 1 < {total}:  # beside the product", *indented(_make(f, f"{n} + 1"))] if f.made else []),
        "s = warpgroup_mma_wait(0, deps=[more])",
        "mbarrier.arrive(yz_empty.index(slot), count=1)",
    ]
    lines = [
        _layout("layout", "W"),
        *[f"plain: tl.constexpr = {PLAIN}"] * f.made,
        "s = tl.zeros([D, W], tl.float32, layout)",
        "if spans > 1:",
        *indented(_entering(f)),
        *(["if chunks > 0:", *indented(_make(f, "0"))] if f.made else []),
        "for t in range(chunks):",
        *indented(step if f.of_rows else ["for r in range(GROUP):", *indented(["n = t * GROUP + r", *step])]),
    ]
    return _partition("_states", "Sums y^T z over the chunks.", [], lines)


def _make(f: PassForm, number: str) -> list[str]:
    """Put features in the place of tiles of y or z, and 0 in that of dead keys."""
    slot, phase = ("0", "0") if number == "0" else (f"({number}) % STAGES", f"({number}) // STAGES & 1")
    lines = [f"mbarrier.wait(yz_full.index({slot}), {phase})"]
    for x, columns in (("y", "D"), ("z", "W")):
        if f.changed(x):
            features = _features(f, f"{x}_next.load(plain)", columns)
            mask = f.dead and f.of_rows
            lines.append(f"{x}_next = {x}_tiles.index({slot}).reshape([64, {columns}])")
            lines += _live(f, f"(from_chunk + {number})", "plain") if mask else []
            lines.append(f"{x}_next.store({f'tl.where(live[:, None], {features}, 0.0)' if mask else features}.to({x}_next.dtype))")
    return [*lines, "fence_async_shared()", f"mbarrier.arrive(yz_ready.index({slot}), count=1)"]


def _entering(f: PassForm) -> list[str]:
    """The state that enters a program's slots, from memory: [features, columns of v], here perhaps transposed."""
    rows, columns = "tl.arange(0, D, tl.SliceLayout(1, layout))[:, None]", "tl.arange(0, W, tl.SliceLayout(0, layout))[None, :]"
    columns = columns if f.apart else f"column + {columns}"
    d, e = (rows, columns) if "u" not in f.roles else (columns, rows)
    lines = [
        f"d, e = {d}, {e}",
        f"cell = (b * (HEADS // GROUP) + kv_h).to(tl.int64) * slots + {'first_slot' if f.of_rows else 'tl.minimum(first_slot + span, slots) - 1'}",
        *["cell = cell * 2 + column // W"] * f.apart,
        "s = tl.load(states_ptr + cell * D * D + d * D + e).to(tl.float32)",
    ]
    if f.of_rows:
        lines += ["vectors = vectors_ptr + cell * (2 * D)", "s += tl.load(vectors + d) * tl.load(vectors + D + e)  # states of keys are centred"]
    return lines


STATE_LEFT = "mbarrier.arrive(s_empty.index(t % 2), count=1)"


def results(f: PassForm) -> tuple[str, str]:
    """A warpgroup that computes the results of every other tile of x."""
    n = "t" if f.of_rows else "n"
    make = [f"x.store({_features(f, 'x.load(plain)', 'D')}.to(x.dtype))", "fence_async_shared()"] if f.featured("x") else []
    step = [
        f"slot = {n} % STAGES",
        f"mbarrier.wait({'yz_ready' if f.made else 'yz_full'}.index(slot), {n} // STAGES & 1)",
        "w = warpgroup_mma(x, y_tiles.index(slot).reshape([64, D]).permute((1, 0)), no_w, use_acc=False, is_async=True)",
        *(["w, o = warpgroup_mma_wait(0, deps=[w, o])", STATE_LEFT] if f.of_rows else ["w = warpgroup_mma_wait(0, deps=[w])"]),
        "w = tl.convert_layout(tl.where(allowed, w, 0.0).to(x_tiles.dtype), w_layout)",
        "o = warpgroup_mma(w, z_tiles.index(slot).reshape([64, W]), o, is_async=True)",
        "o = warpgroup_mma_wait(0, deps=[o])",
        "mbarrier.arrive(yz_empty.index(slot), count=1)",
    ]
    through = step
    if not f.of_rows:
        through = ["o = warpgroup_mma_wait(0, deps=[o])", STATE_LEFT, "for r in range(GROUP):", *indented(["n = t * GROUP + r", *step])]
    gradient = ["u = u_tiles.index(x_slot).reshape([64, W]).load(o_layout)", f"o = _{FEATURES[f.feature]}_gradient(u, {SIGN[f.apart]}, o, 0, W)"]
    each = [
        _chunk(f),
        "x_slot = number % 2",
        *(_load_sum(f) if f.add else []),
        "mbarrier.wait(x_full.index(x_slot), number // 2 & 1)",
        "x = x_tiles.index(x_slot).reshape([64, D])",
        *make,
        "mbarrier.wait(s_full.index(t % 2), t // 2 & 1)  # after all tiles of earlier chunks have been there",
        *(f"o = warpgroup_mma(x, {_buffer(f, i)}, {'o' if i else 'no_o'}, use_acc={i > 0}, is_async=True)" for i in range(f.terms)),
        *through,
        *(gradient if "u" in f.roles and f.feature != "identity" else []),
        *([*_live(f, "c", "o_layout"), "o = tl.where(live[:, None], o, 0.0)"] if f.dead and not f.of_rows else []),
        "mbarrier.arrive(x_empty.index(x_slot), count=1)",
        *(_add_sum(f) if f.add else ["tma.store_wait(0)"]),
        *_leave(f),
    ]
    lines = [
        _layout("layout", "64"),
        _layout("o_layout", "W"),
        "w_layout: tl.constexpr = tl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)",
        *[f"plain: tl.constexpr = {PLAIN}"] * f.featured("x"),
        "i, j = tl.arange(0, 64, tl.SliceLayout(1, layout))[:, None], tl.arange(0, 64, tl.SliceLayout(0, layout))[None, :]",
        f"allowed = j {'<=' if f.of_rows != f.mirrored else '>='} i",
        "no_w, no_o = tl.zeros([64, 64], tl.float32, layout), tl.zeros([64, W], tl.float32, o_layout)",
        f"for number in range(own, chunks{' * GROUP' if f.of_rows else ''}, 2):",
        *indented(["t = number // GROUP", "r = number % GROUP"] if f.of_rows else ["t = number"]),
        *indented(each),
        "tma.store_wait(0)",
    ]
    return _partition("_results", "Computes every other result, from number `own` on.", ["own"], lines)


def _leave(f: PassForm) -> list[str]:
    """Store a result; TMA cannot where it begins before the first row."""
    lines = [
        "o_tiles.index(own).reshape([64, W]).store(o.to(o_tiles.dtype))", "fence_async_shared()",
        *_by_half(f, lambda x, _: f"_store({x}_desc, {_at(f, 'o')}, o_tiles.index(own))"),
    ]  # fmt: skip
    if not f.may_begin_before:
        return lines
    _, head, first, column = _at(f, "o")[1:-1].split(", ")
    rows = _by_half(f, lambda _, m: f"_store_rows({', '.join([*pointer_parameters(m), 'b', head, 'first', column, 'o'])})")
    return [f"first = {first}", "if first < 0:", *indented(rows), "else:", *indented(lines)]


def pointer_parameters(matrix: str) -> list[str]:
    return [f"{matrix}_ptr", *(f"{matrix}_stride_{axis}" for axis in "bhn")]


def _by_half(f: PassForm, line: Callable[[str, str], str]) -> list[str]:
    """A statement about the result, a role and a matrix; where halves are apart, about that of the program's half."""
    first, second = line("o", f.roles["o"]), line("p", "p")
    return ["if column == 0:", "    " + first, "else:", "    " + second] if f.apart else [first]


def _load_sum(f: PassForm) -> list[str]:
    """Load what a result is added to, once the one before has left; of two halves the first is added."""
    first = ", pred=column == 0" * f.apart
    return [
        "tma.store_wait(0)",
        f"mbarrier.expect(o_full.index(own), o_desc.block_type.nbytes{first})",
        f"_load(o_desc, {_at(f, 'o')}, o_full.index(own), o_tiles.index(own){first})",
    ]


def _add_sum(f: PassForm) -> list[str]:
    lines = [
        "mbarrier.wait(o_full.index(own), number // 2 & 1)",
        "o += o_tiles.index(own).reshape([64, W]).load(o_layout).to(tl.float32)",
    ]
    return ["if column == 0:", *indented(lines)] if f.apart else lines


def kernel(f: PassForm, entries: list[str]) -> list[str]:
    """Statements of the kernel: shared memory, barriers, and those that run beside each other."""
    tiles = {"y": "STAGES", "z": "STAGES"}
    shape = "[{}] + {}_desc.block_type.shape, {}_desc.layout"
    lines = [f"{x}_tiles = tl.allocate_shared_memory({x}_desc.dtype, {shape.format(tiles.get(x, 2), x, x)})" for x in f.roles]
    layout = "tl.NVMMASharedLayout.get_default_for([D, W], y_desc.dtype)"
    lines.append(f"state_tiles = tl.allocate_shared_memory(y_desc.dtype, [{f'{f.terms} * ' if f.terms > 1 else ''}BUFFERS, D, W], {layout})")
    readers = "GROUP" if f.of_rows else "1"
    arrivals = {"yz_empty": f"1 + {readers}", "s_empty": readers}
    for ring in f.rings:
        slots = tiles.get(ring[0], 2)
        found = [f"{ring}_full", *[f"{ring}_empty"] * (ring != "o"), *["yz_ready"] * (ring == "yz" and f.made)]
        lines += [f"{x} = tl.allocate_shared_memory(tl.int64, [{slots}, 1], mbarrier.MBarrierLayout())" for x in found]
        lines += [f"for i in tl.static_range({slots}):", *(f"    mbarrier.init({x}.index(i), count={arrivals.get(x, 1)})" for x in found)]
    loading, summing, computing = entries
    beside = [*(computing.format(own=own) for own in range(2)), summing, loading]
    registers = "136, 208" if f.apart else "152, 152"  # the state is D x D, or half of it; the first warpgroup has what is left
    return [*lines, "fence_async_shared()", "tl.warp_specialize([", *indented(beside), f"], [4, 4, 1], [{registers}, 24])"]
