"""The text of the fused backward for Hopper (`fused.py`): who loads, who computes, who adds to dq, and their barriers.

A program has 128 keys, 64 for each of two warpgroups, and visits tiles of 64 queries, or of 128 at head_dim 64, number g of `total`: all of one
head, then those of the next head that shares the keys.  Scores and what follows from them are [keys, queries], so that weights are operands from
registers; at head_dim 64 keys and values are, too.

    s = k q^T, dp = v do^T, p = exp2(s - lse), ds = p (dp - delta), dv += p do, dk += ds q, dq += ds^T k

The last sum is over the keys of both warpgroups: each leaves its ds in shared memory and finds half of dq, of 64 queries half of the columns, of 128
queries 64 of these.  It does so one tile late, beside the scores of the next queries, when the other's ds is there as well.
"""

from __future__ import annotations

from patternc.codegen.fused_order import KEYS
from patternc.codegen.kernels import WHOLE
from patternc.codegen.tail_pass_text import HELPERS as OF_PASSES, partition, product_layout
from patternc.codegen.tail_text import indented

HELPERS = (
    *OF_PASSES,
    '''
@gluon.jit
def _product(a, b, none, D: tl.constexpr):
    """Issue a b^T."""
    return warpgroup_mma(a, b.reshape([64, D]).permute((1, 0)), none, use_acc=False, is_async=True)
''',
    '''
@gluon.jit
def _columns(ds_tiles, place, k_tiles, none, own: tl.constexpr, D: tl.constexpr):
    """Issue half `own` of the columns of ds^T k over all keys."""
    W: tl.constexpr = D // 2
    part = none
    for i in tl.static_range(2):
        keys = k_tiles.index(i).reshape([64, D]).slice(own * W, W, 1)
        part = warpgroup_mma(ds_tiles.index(place * 2 + i).permute((1, 0)), keys, part, use_acc=i > 0, is_async=True)
    return part
''',
    '''
@gluon.jit
def _rows(ds_tiles, place, k_tiles, part, own: tl.constexpr, i: tl.constexpr, D: tl.constexpr):
    """Issue ds^T k of part `own` of the queries, over the keys of warpgroup i."""
    keys = k_tiles.index(i).reshape([64, D])
    return warpgroup_mma(ds_tiles.index((place * 2 + own) * 2 + i).permute((1, 0)), keys, part, use_acc=i > 0, is_async=True)
''',
    '''
@gluon.jit
def _leave(values, tile, desc, b, head, row, D: tl.constexpr):
    """Store 64 rows through the memory of a tile that nobody reads any more."""
    tile.reshape([64, D]).store(values.to(tile.dtype))
    fence_async_shared()
    _store(desc, [b, head, row, 0], tile)
    tma.store_wait(0)
''',
)

HEAD = "h = kv_h * GROUP + (0 if GROUP == 1 else g // count)"
NEXT = "(begin + (g + 1) % count)"  # the next entry
PHASE = "g // STAGES & 1"


def slot_of(parts: int, part: int) -> str:
    """Where part of a tile of queries is, in parts of 64."""
    return "g % STAGES" if parts == 1 else f"g % STAGES * {parts} + {part}"


def following(parts: int, part: int) -> tuple[str, str, str]:
    """The slot of the 64 queries after a part, its phase, and the wait's condition."""
    if part + 1 < parts:
        return slot_of(parts, part + 1), PHASE, ""
    return slot_of(parts, 0).replace("g %", "(g + 1) %"), PHASE.replace("g //", "(g + 1) //"), ", pred=g + 1 < total"


def loads(parts: int) -> tuple[str, str]:
    """The warp that loads: keys and values once, then q and do of each tile, with what the softmax's rows need."""
    each = [HEAD, f"row = following // 2 * {64 * parts}", f"following = tl.load(entries_ptr + 2 * {NEXT})"]
    for part in range(parts):
        row = f"row + {64 * part}" if part else "row"
        each += [
            f"slot = {slot_of(parts, part)}",
            f"at = (b * HEADS + h).to(tl.int64) * whole + {row} + tl.arange(0, 64, layout)",
            "lse, delta = tl.load(lse2_ptr + at), tl.load(delta_ptr + at)",
            f"mbarrier.wait(empty.index(slot), ({PHASE}) ^ 1)",
            *(line for x in ("q", "do") for line in (
                f"mbarrier.expect({x}_full.index(slot), {x}_desc.block_type.nbytes)",
                f"_load({x}_desc, [b, h, {row}, 0], {x}_full.index(slot), {x}_tiles.index(slot))",
            )),
            "row_tiles.index(slot * 2).store(lse)",
            "row_tiles.index(slot * 2 + 1).store(delta)",
            "mbarrier.arrive(row_full.index(slot), count=1)",
        ]  # fmt: skip
    lines = [
        WHOLE,
        "layout: tl.constexpr = tl.BlockedLayout([2], [32], [1], [0])",
        "mbarrier.expect(kv_full.index(0), 2 * (k_desc.block_type.nbytes + v_desc.block_type.nbytes))",
        "for i in tl.static_range(2):",
        *(f"    _load({x}_desc, [b, kv_h, first + i * 64, 0], kv_full.index(0), {x}_tiles.index(i))" for x in "kv"),
        "following = tl.load(entries_ptr + 2 * begin)",
        "for g in range(total):",
        *indented(each),
    ]
    return partition("_loads", "Loads tiles.", [], lines)


def adds(parts: int) -> tuple[str, str]:
    """The warp that adds to dq: a tile of it belongs to each program in its turn, and the first one stores."""
    half = "tile * 64, i * (D // 2)" if parts == 1 else f"tile * {64 * parts} + i * 64, 0"
    each = [
        HEAD,
        "tile, before = following // 2, earlier",
        f"following, earlier = tl.load(entries_ptr + 2 * {NEXT}), tl.load(entries_ptr + 2 * {NEXT} + 1)",
        "count_ptr = counts_ptr + (b * HEADS + h) * query_tiles + tile",
        "_await(count_ptr, before)",
        "mbarrier.wait(dq_full.index(0), g & 1)",
        "for i in tl.static_range(2):",
        "    if before == 0:",
        f"        _store(dq_desc, [b, h, {half}], dq_tiles.index(i))",
        "    else:",
        f"        _add(dq_desc, [b, h, {half}], dq_tiles.index(i))",
        "tma.store_wait(0)",
        "mbarrier.arrive(dq_empty.index(0), count=1)",
        "_announce(count_ptr, before + 1)",
    ]
    lines = [
        "following, earlier = tl.load(entries_ptr + 2 * begin), tl.load(entries_ptr + 2 * begin + 1)",
        "for g in range(total):",
        *indented(each),
    ]
    return partition("_adds", "Adds to dq.", [], lines)


def computes(masked: str, parts: int) -> tuple[str, str]:
    """A warpgroup; `masked` is the call that masks scores."""
    each = [
        "place, before = g % 2, (g + 1) % 2",
        f"first_query, partial = following // 2 * {64 * parts}, following % 2",
        f"following = tl.load(entries_ptr + 2 * {NEXT})",
        *(line for part in range(parts) for line in _of_part(masked, parts, part)),
    ]
    own = {x: f"{x}_tiles.index(own).reshape([64, D])" for x in "kv"}
    if parts > 1:
        own = {x: f"{tile}.load(tl.DotOperandLayout(operand_index=0, parent=s_layout, k_width=2))" for x, tile in own.items()}
    lines = [
        product_layout("s_layout", "64"),
        product_layout("layout", "D"),
        "w_layout: tl.constexpr = tl.DotOperandLayout(operand_index=0, parent=layout, k_width=2)",
        "columns: tl.constexpr = tl.SliceLayout(0, s_layout)",
        "none = tl.zeros([64, 64], tl.float32, s_layout)",
        "dk, dv = tl.zeros([64, D], tl.float32, layout), tl.zeros([64, D], tl.float32, layout)",
        "following = tl.load(entries_ptr + 2 * begin)",
        "mbarrier.wait(kv_full.index(0), 0)",
        *(f"{x} = {tile}" for x, tile in own.items()),
        "mbarrier.wait(q_full.index(0), 0, pred=total > 0)",
        "scores = _product(k, q_tiles.index(0), none, D)",
        "s = warpgroup_mma_wait(0, deps=[scores])",
        "for g in range(total):  # in no branch, so that the compiler sees that a warp agrees",
        *indented(each),
        "# dq of the last tile, if there is one",
        "last = (total + 1) % 2",
        "mbarrier.wait(ds_full.index(last), (total - 1) // 2 & 1, pred=total > 0)",
        *(_dq(parts, part, "last") for part in range(parts)),
        "dq = warpgroup_mma_wait(0, deps=[part])",
        "mbarrier.wait(dq_empty.index(0), total & 1, pred=total > 0)",
        *leave_dq(parts),
        "mbarrier.arrive(dq_full.index(0), count=1, pred=total > 0)",
        "_leave(dv, v_tiles.index(own), dv_desc, b, kv_h, first + own * 64, D)",
        "_leave(dk * scale, v_tiles.index(own), dk_desc, b, kv_h, first + own * 64, D)",
    ]
    return partition("_computes", "Computes what 64 keys are multiplied with, number `own`.", ["own"], lines)


def _dq(parts: int, part: int, place: str) -> str:
    """Issues dq of a tile, or what the keys of a warpgroup add to it."""
    if parts == 1:
        return f"part = _columns(ds_tiles, {place}, k_tiles, none, own, D)"
    return f"part = _rows(ds_tiles, {place}, k_tiles, {'part' if part else 'none'}, own, {part}, D)"


def _of_part(masked: str, parts: int, part: int) -> list[str]:
    """64 queries of a tile, and beside them dq of the tile before, or half of its sum."""
    slot, phase, condition = following(parts, part)
    place = "place * 2 + own" if parts == 1 else f"(place * {parts} + {part}) * 2 + own"
    first, last, others = part == 0, part == parts - 1, 1 + 2 // parts  # products that are issued after one and not waited for yet
    return [
        f"slot, start = {slot_of(parts, part)}, first_query{f' + {64 * part}' if part else ''}",
        "q, do = q_tiles.index(slot).reshape([64, D]), do_tiles.index(slot).reshape([64, D])",
        f"mbarrier.wait(do_full.index(slot), {PHASE})",
        "products = _product(v, do, none, D)",
        f"mbarrier.wait(row_full.index(slot), {PHASE})",
        "if partial == 1:",
        f"    s = {masked}",
        "lse = row_tiles.index(slot * 2).load(columns)",
        "p = tl.exp2(s * score_scale - lse[None, :])",
        "more_dv = warpgroup_mma(tl.convert_layout(p.to(q_tiles.dtype), w_layout), do, dv, is_async=True)",
        "dp = warpgroup_mma_wait(1, deps=[products])",
        "delta = row_tiles.index(slot * 2 + 1).load(columns)  # late, for registers",
        "ds = (p * (dp - delta[None, :])).to(q_tiles.dtype)",
        *(["mbarrier.wait(ds_empty.index(place), (g // 2 & 1) ^ 1)"] if first else []),
        f"ds_tiles.index({place}).store(ds)",
        "fence_async_shared()",
        *(["mbarrier.arrive(ds_full.index(place), count=1)"] if last else []),
        "more_dk = warpgroup_mma(tl.convert_layout(ds, w_layout), q, dk, is_async=True)",
        *([
            "# dq of the tile before, and the next scores; what there is not is computed of anything, and nobody uses it.",
            "mbarrier.wait(ds_full.index(before), (g - 1) // 2 & 1, pred=g > 0)",
        ] if first else []),
        _dq(parts, part, "before"),
        f"dv = warpgroup_mma_wait({others}, deps=[more_dv])",
        f"mbarrier.wait(q_full.index({slot}), {phase}{condition})",
        f"scores = _product(k, q_tiles.index({slot}), none, D)",
        f"dk = warpgroup_mma_wait({others}, deps=[more_dk])",
        "mbarrier.arrive(empty.index(slot), count=1)",
        *([
            "dq = warpgroup_mma_wait(1, deps=[part])",
            "mbarrier.arrive(ds_empty.index(before), count=1, pred=g > 0)",
            "mbarrier.wait(dq_empty.index(0), (g & 1), pred=g > 0)",
            *leave_dq(parts),
            "mbarrier.arrive(dq_full.index(0), count=1, pred=g > 0)",
            "s = warpgroup_mma_wait(0, deps=[scores])",
        ] if last else ["s, part = warpgroup_mma_wait(0, deps=[scores, part])"]),
    ]  # fmt: skip


def leave_dq(parts: int) -> list[str]:
    """What a warpgroup has found of dq goes to shared memory, and the warp that adds may read it."""
    return [f"dq_tiles.index(own).reshape([64, {'D // 2' if parts == 1 else 'D'}]).store(dq)", "fence_async_shared()"]


def rings(parts: int) -> dict[str, tuple[str, str]]:
    """Places for tiles, and whose descriptor tells their shape."""
    stages = "STAGES" if parts == 1 else f"STAGES * {parts}"
    return {x: (places, f"{x}_desc") for x, places in (("q", stages), ("do", stages), ("k", "2"), ("v", "2"), ("dq", "2"))}


def barriers(parts: int) -> dict[str, tuple[str, int]]:
    """Places, and arrivals of warpgroups or warps."""
    stages = rings(parts)["q"][0]
    of_queries = {"q_full": (stages, 1), "do_full": (stages, 1), "row_full": (stages, 1), "empty": (stages, 2)}
    return {"kv_full": ("1", 1), **of_queries, "ds_full": ("2", 2), "ds_empty": ("2", 2), "dq_full": ("1", 2), "dq_empty": ("1", 1)}


def kernel(prologue: list[str], beside: list[str], parts: int) -> list[str]:
    """Statements of the kernel: its tile of keys, shared memory, barriers, and those that run beside each other."""
    own, stages = rings(parts), rings(parts)["q"][0]
    return [
        "program = tl.atomic_add(counts_ptr, 1)  # programs are numbered as they begin, so that none waits for one that has not begun",
        "counts_ptr += 1  # of results that are added up",
        "within = program % (key_tiles * section)",
        "pair = program // (key_tiles * section) * section + within % section",
        "b, kv_h = pair // (HEADS // GROUP), pair % (HEADS // GROUP)",
        "key_tile = key_tiles - 1 - within // section",
        f"first, query_tiles = key_tile * {KEYS}, tl.cdiv(n_q, {64 * parts})",
        "begin = tl.load(first_ptr + key_tile)",
        "count = tl.load(first_ptr + key_tile + 1) - begin",
        "total = count * GROUP",
        *prologue,
        *(f"{x}_tiles = tl.allocate_shared_memory({y}.dtype, [{n}] + {y}.block_type.shape, {y}.layout)" for x, (n, y) in own.items()),
        f"ds_tiles = tl.allocate_shared_memory(q_desc.dtype, [{4 * parts}, 64, 64], tl.NVMMASharedLayout.get_default_for([64, 64], q_desc.dtype))",
        f"row_tiles = tl.allocate_shared_memory(tl.float32, [{stages} * 2, 64], tl.SwizzledSharedLayout(1, 1, 1, [0]))",
        *(f"{x} = tl.allocate_shared_memory(tl.int64, [{n}, 1], mbarrier.MBarrierLayout())" for x, (n, _) in barriers(parts).items()),
        *(line for x, (n, count) in barriers(parts).items() for line in (
            f"for i in tl.static_range({n}):", f"    mbarrier.init({x}.index(i), count={count})",
        )),
        "fence_async_shared()",
        "tl.warp_specialize([", *indented(beside), "], [4, 1, 1], [240, 24, 24])",
    ]  # fmt: skip
