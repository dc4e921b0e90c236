"""The text of the one-pass kernels of a linear tail (`tail_pass.py`): who loads, who sums states, who computes results, and their barriers.

A chunk is 64 rows and 64 keys; there is a state for each, or for each two.  The side that heads share has one tile in it, the other side
one for each of these heads.  Tiles of the results' side, x and u, are numbered over a program (ring `x`), and so are pairs of tiles of y and
z (ring `yz`): number i is in slot i % STAGES of its ring.  Its barrier `full` is waited for with the parity of i // STAGES, its barrier
`empty` with the other one.  States go through BUFFERS buffers in the same way (ring `s`), and results through two places (ring `o`).
"""

from __future__ import annotations

from patternc.codegen.frame import indent, wrap
from patternc.codegen.hopper_text import assigned, names, typed
from patternc.codegen.tail_pass_form import OF_ROWS, PassForm, SumsForm
from patternc.codegen.tail_text import FEATURES, indented

HELPERS = (
    '''
@tl._core.builtin
def _add(desc, place, tile, _semantic=None):
    """Add a tile to what is stored, as `tma.async_atomic_add` of later versions of Triton does."""
    place = _semantic._convert_to_ir_values(place, require_i64=False)
    _semantic.builder.create_async_tma_reduce(tl._core.ir.DESCRIPTOR_REDUCE_KIND.ADD, desc.handle, place, tile.handle)
''',
    '''
@gluon.jit
def _announce(count_ptr, count):
    """Let other programs know how many results are there, all of which this warp has stored."""
    text: tl.constexpr = """{
        .reg .pred first;
        mov.u32 $0, %laneid;
        setp.eq.u32 first, $0, 0;
        cp.async.bulk.wait_group 0;
        bar.warp.sync 0xffffffff;
        @first st.release.gpu.global.u32 [$1], $2;
    }"""
    tl.inline_asm_elementwise(text, "=&r,l,r,~{memory}", [count_ptr, count], dtype=tl.int32, is_pure=False, pack=1)
''',
    '''
@gluon.jit
def _await(count_ptr, count):
    """Wait until another program has announced so many results."""
    text: tl.constexpr = """{
        .reg .pred early;
        again: ld.acquire.gpu.global.u32 $0, [$1];
        setp.lt.u32 early, $0, $2;
        @early bra again;
        bar.warp.sync 0xffffffff;
        fence.proxy.async;
    }"""
    tl.inline_asm_elementwise(text, "=&r,l,r,~{memory}", [count_ptr, count], dtype=tl.int32, is_pure=False, pack=1)
''',
)


def partition(name: str, doc: str, own: list[str], lines: list[str]) -> tuple[str, str]:
    """The text of a function, and its entry in `warp_specialize`, `{own}` being what it alone is given."""
    local = {*own, *assigned(lines)}
    read = [n for n in names(lines) if n not in local]
    text = f'@gluon.jit\ndef {name}(\n{wrap([*(f"{x}: tl.constexpr" for x in own), *typed(read)])}\n):\n    """{doc}"""\n{indent(lines)}'
    return text, f"({name}, ({'{own}, ' if own else ''}{', '.join(read)})),"


def chunk(f: PassForm) -> str:
    return "c = from_chunk + t" if f.of_rows else "c = from_chunk + chunks - 1 - t"


def first(f: PassForm | SumsForm, matrix: str) -> str:
    """Where chunk c of a matrix begins."""
    if f.mirrored:
        return "n_q - (c + 1) * 64 - offset" if matrix in OF_ROWS else "n_k - (c + 1) * 64"
    return "c * 64 + offset" if matrix in OF_ROWS else "c * 64"


def place(f: PassForm, matrix: str) -> str:
    """Where a tile is: halves of the features take all columns, slices theirs."""
    head = "kv_h * GROUP + r" if matrix in OF_ROWS else "kv_h"
    column = "column" if f.described[matrix] == "W" and not f.apart else "0"
    return f"[b, {head}, {first(f, matrix)}, {column}]"


def loads(f: PassForm) -> tuple[str, str]:
    """The warp that loads."""

    def ring(name: str, matrices: list[str], stages: str, number: str) -> list[str]:
        size = " + ".join(f"{m}_desc.block_type.nbytes" for m in matrices)
        return [
            f"{name}_slot = {number} % {stages}",
            f"mbarrier.wait({name}_empty.index({name}_slot), ({number} // {stages} & 1) ^ 1)",
            f"mbarrier.expect({name}_full.index({name}_slot), {size})",
            *(f"_load({m}_desc, {place(f, m)}, {name}_full.index({name}_slot), {m}_tiles.index({name}_slot))" for m in matrices),
        ]

    ours, theirs = ("x", f.ours, "AHEAD"), ("yz", [f.y, f.z], "STAGES")
    (name, matrices, stages), often = (theirs, ours) if f.of_rows else (ours, theirs)
    lines = [
        "for t in range(chunks):",
        *indented([chunk(f), *ring(name, matrices, stages, "t"), "for r in range(GROUP):"]),
        *indented(indented(["n = t * GROUP + r", *ring(*often, "n")])),
    ]
    return partition("_loads", "Loads the tiles of every chunk.", [], lines)


def product_layout(name: str, columns: str) -> str:
    return f"{name}: tl.constexpr = tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, {columns}, 16])"


# Few threads have a row, so that sums over it are mostly a thread's own; eight that follow one another have eight rows, which swizzled
# tiles keep in different banks.
PLAIN = "tl.BlockedLayout([1, 8], [8, 4], [4, 1], [0, 1])"
SIGN = {True: "1.0 - 2.0 * (column // W)", False: "1.0"}  # of the half of the features, by whether they are apart


def features(f: PassForm | SumsForm, x: str, columns: str, sign: str) -> str:
    return x if f.feature == "identity" else f"_{FEATURES[f.feature]}_features({x}, {sign}, 0, {columns})"


def live(f: PassForm | SumsForm, chunk: str, layout: str, rows: str = "64", first: str = "0") -> list[str]:
    """Which of a chunk's keys are read at all."""
    key = f"tl.arange(0, {rows}, tl.SliceLayout(1, {layout}))"
    key = key if first == "0" else f"({first} + {key})"
    return [
        f"key = {f'({chunk} + 1) * 64 - 1 - {key}' if f.mirrored else f'{chunk} * 64 + {key}'}",
        "live = tl.load(live_ptr + key, mask=key < n_k, other=0) != 0",
    ]


def make(f: PassForm, number: str) -> list[str]:
    """Put features in the place of tiles of y or z, and 0 in that of dead keys."""
    slot, phase = ("0", "0") if number == "0" else (f"({number}) % STAGES", f"({number}) // STAGES & 1")
    lines = [f"mbarrier.wait(yz_full.index({slot}), {phase})"]
    for x, columns in ((f.y, "D"), (f.z, "W")):
        if f.changed(x):
            made = features(f, "part.load(plain)", columns, SIGN[f.apart])
            mask = f.dead and f.of_rows
            change = [
                f"part = {x}_tiles.index({slot}).reshape([64, {columns}]).slice(half * 32, 32, 0)",
                *(live(f, f"(from_chunk + {number})", "plain", "32", "half * 32") if mask else []),
                f"part.store({f'tl.where(live[:, None], {made}, 0.0)' if mask else made}.to(part.dtype))",
            ]
            lines += ["for half in tl.static_range(2):  # fewer registers at a time", *indented(change)]
    return [*lines, "fence_async_shared()", f"mbarrier.arrive(yz_ready.index({slot}), count=1)"]


def state_of(f: PassForm) -> str:
    """The number of the state that the results of chunk t begin with."""
    return "p = t // 2" if f.paired else "p = t"


def buffer(f: PassForm, term: int) -> str:
    """A term of state p."""
    return f"state_tiles.index(p % BUFFERS{f' * {f.terms} + {term}' if f.terms > 1 else ''})"


def leaves(f: PassForm) -> tuple[str, str]:
    """The warp that stores results, or adds them to what is stored, and gives their places to the next ones.

    The second half waits for what the first has stored, a few results at a time, since to announce one takes about as long as to find it: as
    many as warpgroups find in one turn of both, or in two where each has a result of every chunk.
    """
    total = "chunks * 2" if f.both else "chunks * GROUP" if f.of_rows else "chunks"
    together = 4 if f.both else 2

    def leave(m: str) -> list[str]:
        to = f"({m}_desc, {place(f, m)}, o_tiles.index(n % 2))"
        by_half = ["if column != 0:", f"    _add{to}", "else:", f"    _store{to}"]
        lines = [f"_add{to}"] if f.add else by_half if f.apart else [f"_store{to}"]
        return [f"if {first(f, m)} >= 0:", *indented(lines)] if f.may_begin_before else lines

    wait = [f"if (column != 0) & (n % {together} == 0):", f"    _await(counts_ptr, tl.minimum(n + {together}, total))"]
    announce = [f"if (column == 0) & ((n % {together} == {together - 1}) | (n == total - 1)):", "    _announce(counts_ptr, n + 1)"]
    step = [
        *(["t, r = n // GROUP, n % GROUP"] if f.of_rows else ["t = n // 2"] if f.both else ["t = n"]),
        chunk(f),
        "mbarrier.wait(o_made.index(n % 2), n // 2 & 1)",
        *wait * f.apart,
        *(["if n % 2 == 0:", *indented(leave(f.results[0])), "else:", *indented(leave(f.results[1]))] if f.both else leave(*f.results)),
        "tma.store_wait(0)",
        "mbarrier.arrive(o_empty.index(n % 2), count=1)",
        *announce * f.apart,
    ]
    lines = [f"total = {total}", "for n in range(total):", *indented(step)]
    return partition("_leaves", "Stores results, or adds them to what is stored.", [], lines)


def pointer_parameters(matrix: str) -> list[str]:
    return [f"{matrix}_ptr", *(f"{matrix}_stride_{axis}" for axis in "bhn")]


def in_turn() -> list[str]:
    """Programs are numbered as they begin, so that none waits for one that has not begun; the counts of a pair of halves follow that of programs."""
    return ["program = tl.atomic_add(counts_ptr, 1)", "counts_ptr += 1 + program // PARTS  # of results of the first half"]


def kernel(f: PassForm, beside: list[str]) -> list[str]:
    """Statements of the kernel: shared memory, barriers, and those that run beside each other."""
    shape = "[{}] + {}_desc.block_type.shape, {}_desc.layout"
    depths = {f.y: "STAGES", f.z: "STAGES"} | dict.fromkeys(f.ours, "AHEAD")
    places = [*((m, m, depth) for m, depth in depths.items()), ("o", f.results[0], 2)]
    lines = [f"{tiles}_tiles = tl.allocate_shared_memory({m}_desc.dtype, {shape.format(depth, m, m)})" for tiles, m, depth in places]
    layout = f"tl.NVMMASharedLayout.get_default_for([D, W], {f.y}_desc.dtype)"
    lines.append(f"state_tiles = tl.allocate_shared_memory({f.y}_desc.dtype, [{f'{f.terms} * ' if f.terms > 1 else ''}BUFFERS, D, W], {layout})")
    readers = "2" if f.paired or f.both else "GROUP" if f.of_rows else "1"
    arrivals = {"x_empty": "2" if f.both else "1", "yz_empty": f"1 + {readers}", "s_empty": readers}
    for ring, slots in (("x", "AHEAD"), ("yz", "STAGES"), ("s", 2), ("o", 2)):
        found = [f"{ring}_made" if ring == "o" else f"{ring}_full", f"{ring}_empty", *["yz_ready"] * (ring == "yz" and f.made)]
        lines += [f"{x} = tl.allocate_shared_memory(tl.int64, [{slots}, 1], mbarrier.MBarrierLayout())" for x in found]
        lines += [f"for i in tl.static_range({slots}):", *(f"    mbarrier.init({x}.index(i), count={arrivals.get(x, 1)})" for x in found)]
    of_features = "160, 176" if f.both else "160, 168" if f.transposed else "160, 184"
    registers = of_features if f.apart else "152, 152"  # the rest is for the first warpgroup
    return [*lines, "fence_async_shared()", "tl.warp_specialize([", *indented(beside), f"], [4, 4, 1, 1], [{registers}, 24, 24])"]
