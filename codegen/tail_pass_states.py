"""The text of the one-pass kernels of a linear tail (`tail_pass_text.py`): the warpgroup that sums a state."""

from __future__ import annotations

from patternc.codegen.tail_pass_form import PassForm
from patternc.codegen.tail_pass_text import PLAIN, buffer, make, partition, product_layout, state_of
from patternc.codegen.tail_text import indented

HELPERS = (
    '''
@gluon.jit
def _pieces_before(chunk, unit, each, both):
    """How many pieces end before a chunk where one begins: they end at multiples of `unit` and of `each`, of which `both` is the least common one."""
    return chunk // unit + chunk // each - chunk // both
''',
    '''
@gluon.jit
def _high(x):
    """The upper halves of numbers, as bfloat16, two at a time."""
    return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0x7632;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
''',
    '''
@gluon.jit
def _low(x):
    """What `_high` leaves, as bfloat16."""
    text: tl.constexpr = """{
        .reg .b32 a, b;
        and.b32 a, $1, 0xffff0000;
        and.b32 b, $2, 0xffff0000;
        sub.f32 a, $1, a;
        sub.f32 b, $2, b;
        cvt.rn.bf16x2.f32 $0, b, a;
    }"""
    return tl.inline_asm_elementwise(text, "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
''',
    '''
@gluon.jit
def _rows_of(x, i: tl.constexpr, layout: tl.constexpr):
    """64 rows of at most 128."""
    if x.shape[0] > 64:
        x = tl.convert_layout(x.reshape([2, 64, x.shape[1]]).permute((1, 2, 0)).split()[i], layout)
    return x
''',
)


def states(f: PassForm) -> tuple[str, str]:
    """The warpgroup that sums a state and hands on, before every chunk, what the chunks before it have added."""
    makes = f.made and not f.made_by_results
    hand_on = [
        state_of(f),
        "mbarrier.wait(s_empty.index((p - BUFFERS) % 2), (p - BUFFERS) // 2 & 1, pred=p >= BUFFERS)",
        *([f"{buffer(f, 0)}.store(s.to(state_tiles.dtype))"] if f.terms == 1 else _two_terms(f)),
        "fence_async_shared()",
        "mbarrier.arrive(s_full.index(p % 2), count=1)",
    ]
    n, total = ("t", "chunks") if f.of_rows else ("n", "chunks * GROUP")
    when = "t % 2 == 0" if f.paired else "" if f.of_rows else "r == 0"
    step = [
        *([f"if {when}:", *indented(hand_on)] if when else hand_on),
        f"slot = {n} % STAGES",
        *([] if makes else [f"mbarrier.wait({'yz_ready' if f.made else 'yz_full'}.index(slot), {n} // STAGES & 1)"]),
        f"y, z = {f.y}_tiles.index(slot).reshape([64, D]), {f.z}_tiles.index(slot).reshape([64, W])",
        "more = warpgroup_mma(y.permute((1, 0)), z, s, is_async=True)",
        *([f"if {n} + 1 < {total}:  # beside the product", *indented(make(f, f"{n} + 1"))] if makes else []),
        "s = warpgroup_mma_wait(0, deps=[more])",
        "mbarrier.arrive(yz_empty.index(slot), count=1)",
        *["mbarrier.arrive(yz_empty.index(slot), count=1, pred=t % 2 == 1)  # one result alone reads the second chunk"] * f.paired,
    ]
    lines = [
        product_layout("layout", "W"),
        *[f"plain: tl.constexpr = {PLAIN}"] * makes,
        "s = tl.zeros([D, W], tl.float32, layout)",
        "if spans > 1:",
        *indented(_entering(f)),
        *(["if chunks > 0:", *indented(make(f, "0"))] if makes else []),
        "for t in range(chunks):",
        *indented(step if f.of_rows else ["for r in range(GROUP):", *indented(["n = t * GROUP + r", *step])]),
    ]
    return partition("_states", "Sums y^T z over the chunks.", [], lines)


def _two_terms(f: PassForm) -> list[str]:
    """A state as a sum of two, 64 rows at a time, since registers hold little beside it."""
    store = [
        "rows = _rows_of(s, i, layout)",
        f"{buffer(f, 0)}.slice(i * 64, 64, 0).store(_high(rows))",
        f"{buffer(f, 1)}.slice(i * 64, 64, 0).store(_low(rows))",
    ]
    return ["for i in tl.static_range(D // 64):", *indented(store)]


def _entering(f: PassForm) -> list[str]:
    """The state that enters a program's slots, from memory: [features, columns of v], here perhaps transposed."""
    rows, columns = "tl.arange(0, D, tl.SliceLayout(1, layout))[:, None]", "tl.arange(0, W, tl.SliceLayout(0, layout))[None, :]"
    columns = columns if f.apart else f"column + {columns}"
    d, e = (columns, rows) if f.transposed else (rows, columns)
    return [
        f"d, e = {d}, {e}",
        # What enters is where the first piece is that keys of this program have, or the last one that its rows have: pieces of rows are counted
        # from the second program on, and the last program may end before a multiple of `each`.
        "piece = tl.minimum(_pieces_before(from_chunk, unit, each, both), cells - 1)",
        "cell = (b * (HEADS // GROUP) + kv_h).to(tl.int64) * cells + piece",
        *["cell = cell * 2 + column // W"] * f.apart,
        "s = tl.load(states_ptr + cell * D * D + d * D + e)",
    ]
