"""The text of the one-pass kernels of a linear tail (`tail_pass_text.py`): the warpgroups that compute results."""

from __future__ import annotations

from patternc.codegen.tail_pass_form import PassForm, Sum
from patternc.codegen.tail_pass_text import (
    PLAIN,
    SIGN,
    buffer,
    chunk,
    features,
    live,
    make,
    partition,
    place,
    pointer_parameters,
    product_layout,
    state_of,
)
from patternc.codegen.tail_text import FEATURES, indented

HELPERS = (
    '''
@gluon.jit
def _store_rows(ptr, stride_b, stride_h, stride_n, b, head, first, column, values, add):
    """Store the rows of a tile that are there, or add them to what is stored."""
    row = first + tl.arange(0, values.shape[0], tl.SliceLayout(1, values.type.layout))[:, None]
    at = ptr + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h + column
    at += row.to(tl.int64) * stride_n + tl.arange(0, values.shape[1], tl.SliceLayout(0, values.type.layout))[None, :]
    values += tl.load(at, mask=(row >= 0) & add, other=0).to(tl.float32)
    tl.store(at, values.to(ptr.dtype.element_ty), mask=row >= 0)
''',
)


def results(f: PassForm, number: int) -> tuple[str, str]:
    """A warpgroup that computes every other result; of two sums, sum `number` of every tile."""
    s = f.sums[number]
    gradient = f"o = _{FEATURES[f.feature]}_gradient(u, {SIGN[f.apart]}, o, 0, W)"
    last = [f"u = {tile(f, s.u)}.load(o_layout)", *_given_back(f), gradient] if s.u else [LEFT.format("x", f"{turn(f)} % AHEAD")]
    each = [
        *(make(f, "t") if f.made_by_results else []),
        chunk(f),
        f"mbarrier.wait(x_full.index({turn(f)} % AHEAD), {turn(f)} // AHEAD & 1)",
        *_begin(f, s),
        state_of(f),
        *(_weights_first(f, s) if f.of_rows and not f.paired else _state_first(f, s)),
        *([] if f.held(s) else last),
        *([*live(f, "c", "o_layout"), "o = tl.where(live[:, None], o, 0.0)"] if f.dead and not f.of_rows else []),
        *_leave(f, s),
    ]
    lines = [
        product_layout("layout", "64"),
        product_layout("o_layout", "W"),
        *["w_rows: tl.constexpr = tl.DotOperandLayout(operand_index=0, parent=layout, k_width=2)"] * f.held(s),
        *[f"plain: tl.constexpr = {PLAIN}"] * (f.featured(s.x) and not f.held(s) or f.made_by_results),
        "o_rows: tl.constexpr = tl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)",
        "i, j = tl.arange(0, 64, tl.SliceLayout(1, layout))[:, None], tl.arange(0, 64, tl.SliceLayout(0, layout))[None, :]",
        f"allowed = j {'<=' if f.of_rows != f.mirrored else '>='} i",
        "no_w, no_o = tl.zeros([64, 64], tl.float32, layout), tl.zeros([64, W], tl.float32, o_layout)",
        "for t in range(chunks):" if f.both else f"for number in range(own, chunks{' * GROUP' if f.of_rows else ''}, 2):",
        *indented([] if f.both else ["t, r = number // GROUP, number % GROUP"] if f.of_rows else ["t = number"]),
        *indented(each),
    ]
    doc = f"Computes {s.o}, in place `own`." if f.both else "Computes every other result, from number `own` on."
    return partition(f"_{s.o}" if f.both else "_results", doc, ["own"], lines)


LEFT = "mbarrier.arrive({}_empty.index({}), count=1)"


def turn(f: PassForm) -> str:
    """The number of a tile of x."""
    return "t" if f.both else "number"


def tile(f: PassForm, m: str) -> str:
    """A matrix' tile of the results' side."""
    return f"{m}_tiles.index({turn(f)} % AHEAD).reshape([64, {f.described[m]}])"


def _given_back(f: PassForm) -> list[str]:
    """Give back a tile that threads have read: a barrier alone does not keep the copy that follows from overtaking the reads of slower warps."""
    return ["fence_async_shared()", LEFT.format("x", f"{turn(f)} % AHEAD")]


def _weights(f: PassForm, s: Sum, n: str) -> list[str]:
    """Issue products of rows of x with those of tile number n of y."""
    x = "tl.convert_layout(x, w_rows)" if f.held(s) else "x"
    return [
        f"slot = {n} % STAGES",
        f"mbarrier.wait({'yz_ready' if f.made else 'yz_full'}.index(slot), {n} // STAGES & 1)",
        f"w = warpgroup_mma({x}, {s.y}_tiles.index(slot).reshape([64, D]).permute((1, 0)), no_w, use_acc=False, is_async=True)",
    ]


def _add_weighted(s: Sum, mask: str) -> list[str]:
    return [
        f"w = tl.convert_layout(tl.where({mask}, w, 0.0).to({s.y}_tiles.dtype), o_rows)",
        f"o = warpgroup_mma(w, {s.z}_tiles.index(slot).reshape([64, W]), o, is_async=True)",
    ]


def _of_state(f: PassForm, s: Sum) -> list[str]:
    turned = "" if s.y == f.y else ".permute((1, 0))"
    return [
        "mbarrier.wait(s_full.index(p % 2), p // 2 & 1)",
        *(f"o = warpgroup_mma(x, {buffer(f, i)}{turned}, {'o' if i else 'no_o'}, use_acc={i > 0}, is_async=True)" for i in range(f.terms)),
    ]


def _begin(f: PassForm, s: Sum) -> list[str]:
    """Take a tile of x, in registers where it is held."""
    make = features(f, "x" if f.held(s) else "x.load(plain)", "D", SIGN[f.apart]) if f.featured(s.x) else ""
    if f.held(s):
        return [f"x = {tile(f, s.x)}.load(o_rows)", *_given_back(f), *[f"x = {make}.to({s.x}_tiles.dtype)"] * bool(make)]
    return [f"x = {tile(f, s.x)}", *[f"x.store({make}.to(x.dtype))", "fence_async_shared()"] * bool(make)]


def _weights_first(f: PassForm, s: Sum) -> list[str]:
    """The weights of rows are found first, since they need no state, and registers for o only afterwards."""
    return [
        *_weights(f, s, "t"),
        "w = warpgroup_mma_wait(0, deps=[w])",
        *_of_state(f, s),
        *_add_weighted(s, "allowed"),
        "o = warpgroup_mma_wait(0, deps=[o])",
        LEFT.format("s", "p % 2"),
        LEFT.format("yz", "slot"),
    ]


def _state_first(f: PassForm, s: Sum) -> list[str]:
    """What the state gives, then the tiles that it is not of: every head of a group, or the chunk before and this one."""
    tiles, mask = ("t - t % 2, t + 1", "allowed | (n < t)") if f.paired else ("t * GROUP, (t + 1) * GROUP", "allowed")
    step = [
        *_weights(f, s, "n"),
        "w = warpgroup_mma_wait(0, deps=[w])",
        *_add_weighted(s, mask),
        "o = warpgroup_mma_wait(0, deps=[o])",
        LEFT.format("yz", "slot"),
    ]
    return [
        *_of_state(f, s),
        "o = warpgroup_mma_wait(0, deps=[o])",
        LEFT.format("s", "p % 2"),
        f"for n in range({tiles}):",
        *indented(step),
    ]


def _leave(f: PassForm, s: Sum) -> list[str]:
    """Hand a result on; TMA can neither store nor add one that begins before the first row."""
    _, head, start, column = place(f, s.o)[1:-1].split(", ")
    adds = "True" if f.add else "column != 0" if f.apart else "False"
    rows = f"_store_rows({', '.join([*pointer_parameters(s.o), 'b', head, 'first', column, 'o', adds])})"
    wait = ["if column != 0:", f"    _await(counts_ptr, {'t * 2 + own' if f.both else 'number'} + 1)"] * f.apart
    return [
        f"mbarrier.wait(o_empty.index(own), ({'t' if f.both else 'number // 2'} & 1) ^ 1)",
        *([f"first = {start}", "if first < 0:", *indented([*wait, rows])] if f.may_begin_before else []),
        "o_tiles.index(own).reshape([64, W]).store(o.to(o_tiles.dtype))",
        "fence_async_shared()",
        "mbarrier.arrive(o_made.index(own), count=1)",
    ]
