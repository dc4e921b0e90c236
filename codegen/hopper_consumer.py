"""The text of the consumers of the Hopper forward (`hopper_text.py`): a warpgroup each, which computes 64 rows of every row tile."""

from __future__ import annotations

from patternc.codegen import hopper_ranges
from patternc.codegen.frame import indent, wrap
from patternc.codegen.hopper_text import ITEM, ITEMS, TILE, Pieces, consumer_parameters, typed


def consumer(pieces: Pieces) -> str:
    """A warpgroup that computes 64 rows: the scores of a tile and the weighted values of the one before run beside the softmax."""
    mask = [f"s = {pieces.calls['mask']}"] if "mask" in pieces.calls else []
    mask = [line.replace("layout, COLUMNS", "s_layout, BLOCK_N") for line in mask]
    layouts = [
        "s_layout: tl.constexpr = tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16])",
        *["s0_layout: tl.constexpr = tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_M, 16])"] * pieces.narrow,
        "o_layout: tl.constexpr = tl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_DV, 16])",
        "p_layout: tl.constexpr = tl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)",
        "s_rows: tl.constexpr = tl.SliceLayout(1, s_layout)",
        "o_rows: tl.constexpr = tl.SliceLayout(1, o_layout)",
    ]
    begin = [
        *([] if pieces.narrow else [TILE.format("item"), *pieces.find(own=True)]),
        *pieces.rows,
        *(hopper_ranges.passing("early") if pieces.ranged else ["count = partial_count + full_count"]),
        "place = turn % Q_STAGES * CONSUMERS + own",
        "q = q_tiles.index(place).reshape([64, BLOCK_D])",
    ]
    lines = [*begin, *(_narrow_first(pieces, mask) if pieces.narrow else _first(pieces, mask))]
    lines += [
        "for i in range(1, count):",
        *("    " + line for line in _step(pieces.masked("i", mask))),
        *BEFORE,
        "values = warpgroup_mma(weights, v_tiles.index(before).reshape([BLOCK_N, BLOCK_DV]), acc, is_async=True)",
        *([*_ahead(pieces), "gone = item"] if pieces.narrow else [*ENDED, *(hopper_ranges.passing("late") if pieces.ranged else []), *LEAVE]),
        "turn += 1",
    ]
    last = [f"_leave({LEAVING.format('(turn + 1) % Q_STAGES * CONSUMERS + own', 'gone')})"] if pieces.narrow else []
    doc = '    """Computes 64 rows of every row tile, number `own`."""\n'
    body = [*layouts, *(_begin_ahead(pieces) if pieces.narrow else []), *ITEMS, *("    " + line for line in lines), *last, "tma.store_wait(0)"]
    return f"@gluon.jit\ndef _consumer(\n{wrap(['own: tl.constexpr', *typed(consumer_parameters(pieces))])}\n):\n{doc}{indent(body)}"


LEAVING = "acc, total, peak, q_tiles, {}, o_desc, lse_ptr, {}, n_q, own, HEADS, GROUP, PACK, SECTION, LINES, BLOCK_M, BLOCK_DV, s_rows, o_rows"
ENDED = ["acc = warpgroup_mma_wait(0, deps=[values])", "mbarrier.arrive(v_empty.index(before), count=1)"]
LEAVE = [
    f"_leave({LEAVING.format('place', 'item')})",
    "if Q_STAGES == 1:",
    "    tma.store_wait(0)",
    "    mbarrier.arrive(q_empty.index(place), count=1)",
]
LEFT = [
    "# The rows before have left meanwhile.",
    "tma.store_wait(0)",
    "mbarrier.arrive(q_empty.index((turn + 1) % Q_STAGES * CONSUMERS + own), count=1, pred=turn > 0)",
]
SCORES_AHEAD = "scores0 = _scores(q_tiles.index({}).reshape([64, BLOCK_D]), k0_tiles.index(0), BLOCK_M, BLOCK_D, s0_layout)"


def _begin_ahead(pieces: Pieces) -> list[str]:
    """Before the first row tile: what `_ahead` does for the others."""
    return [
        "mbarrier.wait(q_full.index(own), 0)",
        "mbarrier.wait(k0_full.index(0), 0)",
        SCORES_AHEAD.format("own"),
        f"gone = {ITEM.format('tl.program_id(0)')}  # the row tile whose rows leave",
        TILE.format("gone"),
        *pieces.find(own=True),
        "total, peak = tl.zeros([64], tl.float32, s_rows), tl.zeros([64], tl.float32, s_rows)",
        "acc = tl.zeros([64, BLOCK_DV], tl.float32, o_layout)",
        "s0 = warpgroup_mma_wait(0, deps=[scores0])",
        "mbarrier.arrive(k0_empty.index(0), count=1)",
    ]


def _ahead(pieces: Pieces) -> list[str]:
    """The first scores of the next row tile, and where its tiles are, beside the last product of this one."""
    return [
        "# The first scores of the next row tile; after the last one they are of nothing, and nobody uses them.",
        "more = number + tl.num_programs(0) < items",
        "ahead = (turn + 1) % Q_STAGES * CONSUMERS + own",
        "mbarrier.wait(q_full.index(ahead), (turn + 1) // Q_STAGES & 1, pred=more)",
        "mbarrier.wait(k0_full.index(0), (turn + 1) & 1, pred=more)",
        SCORES_AHEAD.format("ahead"),
        TILE.format("following"),
        *pieces.find(own=True),
        "acc = warpgroup_mma_wait(1, deps=[values])",
        "mbarrier.arrive(v_empty.index(before), count=1)",
        "s0 = warpgroup_mma_wait(0, deps=[scores0])",
        "mbarrier.arrive(k0_empty.index(0), count=1, pred=more)",
    ]


BEFORE = ["before = (g - 1) % STAGES", "mbarrier.wait(v_full.index(before), (g - 1) // STAGES & 1)"]
NEXT = "mbarrier.wait(k_full.index((g + 1) % STAGES), (g + 1) // STAGES & 1, pred={} < count)"
NO_KEYS = "tl.full([64], -1.0e30, tl.float32, {})  # finite, so that rows without a key so far make no NaN"


def _first(pieces: Pieces, mask: list[str]) -> list[str]:
    """The first tile: nothing runs beside its softmax but what the other consumer does."""
    return [
        f"peak = {NO_KEYS.format('s_rows')}",
        "total = tl.zeros([64], tl.float32, s_rows)",
        "acc = tl.zeros([64, BLOCK_DV], tl.float32, o_layout)",
        "slot = g % STAGES",
        "mbarrier.wait(q_full.index(place), turn // Q_STAGES & 1)",
        "mbarrier.wait(k_full.index(slot), g // STAGES & 1)",
        "scores = _scores(q, k_tiles.index(slot), BLOCK_N, BLOCK_D, s_layout)",
        "if Q_STAGES > 1:",
        *("    " + line for line in LEFT),
        "s = warpgroup_mma_wait(0, deps=[scores])",
        "mbarrier.arrive(k_empty.index(slot), count=1)",
        *pieces.masked("0", mask),
        "p, total, peak, shrink = _weights(s, total, peak, score_scale)",
        NEXT.format("1"),
        "weights = tl.convert_layout(p.to(v_tiles.dtype), p_layout)",
        "g += 1",
    ]


def _narrow_first(pieces: Pieces, mask: list[str]) -> list[str]:
    """The keys at the rows' own positions, whose scores `s0` are there already, and the first of the other tiles beside them."""
    first = [f"s0 = {pieces.calls['first mask'].replace('layout, COLUMNS', 's0_layout, BLOCK_M').replace('(s, start', '(s0, r0')}"]
    return [
        *first,
        f"peak0 = {NO_KEYS.format('tl.SliceLayout(1, s0_layout)')}",
        "p0, total0, peak0, _ = _weights(s0, tl.zeros([64], tl.float32, tl.SliceLayout(1, s0_layout)), peak0, score_scale)",
        "slot = g % STAGES",
        "mbarrier.wait(k_full.index(slot), g // STAGES & 1)",
        "weights0 = tl.convert_layout(p0.to(v_tiles.dtype), p_layout)",
        "scores = _scores(q, k_tiles.index(slot), BLOCK_N, BLOCK_D, s_layout)",
        "if turn > 0:  # beside these the rows before leave",
        f"    _leave({LEAVING.format('(turn + 1) % Q_STAGES * CONSUMERS + own', 'gone')})",
        "total, peak = tl.convert_layout(total0, s_rows), tl.convert_layout(peak0, s_rows)",
        "mbarrier.wait(v0_full.index(0), turn & 1)",
        "values = warpgroup_mma(weights0, v0_tiles.index(0).reshape([BLOCK_M, BLOCK_DV]), acc, use_acc=False, is_async=True)",
        "s = warpgroup_mma_wait(1, deps=[scores])",
        "mbarrier.arrive(k_empty.index(slot), count=1)",
        *pieces.masked("0", mask),
        "p, total, peak, shrink = _weights(s, total, peak, score_scale)",
        *LEFT,
        NEXT.format("1"),
        "acc = warpgroup_mma_wait(0, deps=[values])",
        "mbarrier.arrive(v0_empty.index(0), count=1)",
        "acc = acc * tl.convert_layout(shrink, o_rows)[:, None]",
        "weights = tl.convert_layout(p.to(v_tiles.dtype), p_layout)",
        "g += 1",
    ]


def _step(mask: list[str]) -> list[str]:
    """A tile: its scores beside the weighted values of the tile before, and the softmax beside those."""
    return [
        "slot = g % STAGES",
        "scores = _scores(q, k_tiles.index(slot), BLOCK_N, BLOCK_D, s_layout)",
        *BEFORE,
        "values = warpgroup_mma(weights, v_tiles.index(before).reshape([BLOCK_N, BLOCK_DV]), acc, is_async=True)",
        "s = warpgroup_mma_wait(1, deps=[scores])",
        "mbarrier.arrive(k_empty.index(slot), count=1)",
        *mask,
        "p, total, peak, shrink = _weights(s, total, peak, score_scale)",
        "# The assembler moves nothing across this: without it the exponentials would follow the next wait.",
        NEXT.format("i + 1"),
        "acc = warpgroup_mma_wait(0, deps=[values])",
        "mbarrier.arrive(v_empty.index(before), count=1)",
        "acc = acc * tl.convert_layout(shrink, o_rows)[:, None]",
        "weights = tl.convert_layout(p.to(v_tiles.dtype), p_layout)",
        "g += 1",
    ]
