"""The text of the Hopper forward: who loads, who computes, and the barriers between them.

K and V go through rings of STAGES tiles each.  Tile number g is in slot g % STAGES; its barrier `full` is waited for with the parity
of g // STAGES by the consumers, its barrier `empty` with the other parity by the producer, both count from g = 0 on.  A program takes
row tiles until none is left, and g counts over all of them: the tiles of the next one are loaded while this one is computed.  Q goes
through rings of Q_STAGES tiles, one for each consumer, whose output leaves from there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from patternc.codegen import hopper_ranges
from patternc.codegen.frame import indent, wrap

HELPERS = (
    '''
@gluon.jit
def _item(order_ptr, number, items, ORDERED: tl.constexpr):
    """The row tile that is dealt as number `number`; beyond the last one any."""
    number = tl.minimum(number, items - 1)
    return tl.load(order_ptr + number) if ORDERED else number
''',
    '''
@gluon.jit
def _place(
    item, n_q, HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, SECTION: tl.constexpr, LINES: tl.constexpr, BLOCK_M: tl.constexpr
):
    """A row tile by its number, with its batch row, first head, key head and line: sections of heads and lines, in each the last rows first,
    since often they have most keys."""
    row_tiles = tl.cdiv(n_q, BLOCK_M)
    section = item // (row_tiles * SECTION)
    within = item % (row_tiles * SECTION)
    heads = section // LINES
    h = (heads % (HEADS // PACK // SECTION) * SECTION + within % SECTION) * PACK
    return row_tiles - 1 - within // SECTION, heads // (HEADS // PACK // SECTION), h, h // GROUP, section % LINES
''',
    '''
@gluon.jit
def _fetch(desc, tiles, full, empty, g, b, head, line, row, STAGES: tl.constexpr):
    """Load the tile that starts at `row` as number g of a ring."""
    slot = g % STAGES
    mbarrier.wait(empty.index(slot), (g // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(slot), desc.block_type.nbytes)
    _load(desc, [b, head, line, row, 0], full.index(slot), tiles.index(slot))
''',
    '''
@gluon.jit
def _scores(q, k, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, layout: tl.constexpr):
    """Issue q @ k^T."""
    zero = tl.zeros([64, BLOCK_N], tl.float32, layout)
    return warpgroup_mma(q, k.reshape([BLOCK_N, BLOCK_D]).permute((1, 0)), zero, use_acc=False, is_async=True)
''',
    '''
@gluon.jit
def _weights(s, total, peak, score_scale):
    """One tile of the online softmax, in base 2: `peak` is the largest scaled score so far, `total` the sum of weights."""
    higher = tl.maximum(peak, tl.max(s, 1) * score_scale)
    p = tl.exp2(s * score_scale - higher[:, None])
    shrink = tl.exp2(peak - higher)
    return p, total * shrink + tl.sum(p, 1), higher, shrink
''',
    '''
@gluon.jit
def _leave(
    acc, total, peak, q_tiles, place, o_desc, lse_ptr, item, n_q, own: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    PACK: tl.constexpr, SECTION: tl.constexpr, LINES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr, s_rows: tl.constexpr,
    o_rows: tl.constexpr,
):
    """Store 64 rows of an item; o leaves through the memory of their queries, which nobody reads any more."""
    tile, b, h, _, line = _place(item, n_q, HEADS, GROUP, PACK, SECTION, LINES, BLOCK_M)
    first = tile * BLOCK_M
    out = q_tiles.index(place)
    share = tl.convert_layout(1.0 / tl.where(total > 0, total, 1.0), o_rows)
    out.reshape([64, BLOCK_DV]).store((acc * share[:, None]).to(q_tiles.dtype))
    fence_async_shared()
    _store(o_desc, [b, h, line, first + own * (64 // PACK), 0], out)
    lse = tl.where(total > 0, (peak + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    row = tl.arange(0, 64, s_rows)
    rows = first + own * (64 // PACK) + row % (64 // PACK)
    tl.store(lse_ptr + ((b * HEADS + h + row // (64 // PACK)).to(tl.int64) * n_q + rows) * LINES + line, lse, mask=rows < n_q)
''',
)


@dataclass(frozen=True)
class Pieces:
    """What a plan adds to the text.

    Attributes:
        calls: the call that finds the tiles of a row tile ("find") and what it returns ("results"), and calls that give the column tile of
            the number `i` ("partial", "full"), one of them perhaps absent, and masked scores ("mask"; of the tile of a row tile's own
            positions "first mask"), absent where nothing is masked.
        rows: statements about the rows' positions, `q_row`.
        shared: parameters and constants of the kernel that all these read.
        narrow: the keys at a row tile's own positions are a tile of their own, k0 and v0, before all others.
        consumers: how many compute.
        ranged: what the call returns where each consumer visits tiles of its own (`hopper_ranges.py`), else None.
    """

    calls: dict[str, str]
    rows: tuple[str, ...]
    shared: tuple[str, ...]
    narrow: bool = False
    consumers: int = 2
    ranged: list[str] | None = None

    def find(self, own: bool) -> list[str]:
        """Statements that find the tiles of a row tile."""
        if self.ranged is None:
            return [f"{self.calls['results']} = {self.calls['find']}"]
        return hopper_ranges.find(self.calls["find"], self.ranged, own)

    @property
    def rings(self) -> list[str]:
        """Names of the rings of tiles."""
        return ["q", "k", "v", *(["k0", "v0"] if self.narrow else [])]

    @property
    def barriers(self) -> list[str]:
        return [f"{ring}_{state}" for ring in self.rings for state in ("full", "empty")]

    def start(self, tile: str) -> str:
        """Where a tile of columns begins."""
        return f"start = {'first_col + ' if self.narrow else ''}{tile} * BLOCK_N"

    @property
    def kinds(self) -> list[str]:
        """Kinds of tiles in the order in which they are taken: a mask is best made while there are products to wait for."""
        return [kind for kind in (("full", "partial") if self.narrow else ("partial", "full")) if kind in self.calls]

    @property
    def more(self) -> str:
        """How many tiles a row tile has, at least."""
        return "partial_count + full_count" if self.ranged is None else "whole_stop - whole_start"

    def tile(self, number: str) -> str:
        """The tile of a number, 0 where there is none: all of it the mask forbids."""
        if self.ranged is not None:
            return "whole_start" if number == "0" else f"(whole_start + {number})"
        first, *others = self.kinds
        calls = {kind: self.calls[kind].replace("(i,", "({},").replace("(i)", "({})") for kind in self.kinds}
        found = calls[first].format(number)
        if others:
            found = f"tl.where({number} < {first}_count, {found}, {calls[others[0]].format(f'{number} - {first}_count')})"
        return f"tl.where(partial_count + full_count > 0, {found}, 0)" if number == "0" else found

    def masked(self, number: str, mask: list[str]) -> list[str]:
        """Statements that mask the scores of the tile of a number, where it is a partial one."""
        if not mask:
            return []
        if self.ranged is not None:
            return hopper_ranges.masked(number, mask)
        lines = [self.start(self.tile(number)), *mask]
        if "full" not in self.kinds:
            return lines
        condition = {"partial": f"({number} < partial_count) | (full_count == 0)", "full": f"{number} >= full_count"}[self.kinds[0]]
        return [f"if {condition}:", *("    " + line for line in lines)]


def function(name: str, given: list[str], lines: list[str], result: str, doc: str) -> tuple[str, str]:
    """`(text, call)` of a function of the given parameters and of what else the lines read."""
    own = [g.partition(":")[0] for g in given]
    local = {*own, *assigned(lines)}
    read = [n for n in names([*lines, result]) if n not in local]
    text = f'@gluon.jit\ndef {name}(\n{wrap([*given, *typed(read)])}\n):\n    """{doc}"""\n{indent([*lines, f"return {result}"])}'
    return text, f"{name}({', '.join([*own, *read])})"


def names(lines: Iterable[str]) -> dict[str, None]:
    """The variables that statements read, in order; upper case names last.  Functions and modules are none."""
    tree = ast.parse("\n".join(lines))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    read = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and id(n) not in called)
    found = list(dict.fromkeys(n.id for n in read if n.id not in ("tl", "float", "mbarrier", "tma")))
    return dict.fromkeys([*(n for n in found if not n.isupper()), *(n for n in found if n.isupper())])


def assigned(lines: Iterable[str]) -> dict[str, None]:
    """The variables that statements assign, in order."""
    tree = ast.parse("\n".join(lines))
    return dict.fromkeys(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def typed(parameters: Iterable[str]) -> list[str]:
    return [f"{p}: tl.constexpr" if p.isupper() else p for p in parameters]


REGISTERS = {2: 240, 3: 160}  # of a consumer's thread, by the number of consumers
SIZES = ["order_ptr", "items", "n_q", "HEADS", "GROUP", "PACK", "SECTION", "LINES", "ORDERED"]
SIZES += ["BLOCK_M", "BLOCK_D", "BLOCK_DV", "BLOCK_N", "STAGES", "Q_STAGES", "CONSUMERS"]
ITEM = "_item(order_ptr, {}, items, ORDERED)"
ITEMS = [
    "g, turn = 0, 0  # tiles of columns, and row tiles, before this one: counted one by one, so that the compiler sees that a warp agrees",
    f"following = {ITEM.format('tl.program_id(0)')}",
    "for number in range(tl.program_id(0), items, tl.num_programs(0)):",
    "    item = following",
    f"    following = {ITEM.format('number + tl.num_programs(0)')}",
]
TILE = "tile, b, h, kv_h, line = _place({}, n_q, HEADS, GROUP, PACK, SECTION, LINES, BLOCK_M)"


def _parameters(own: list[str], pieces: Pieces) -> list[str]:
    return list(dict.fromkeys([*own, *(f"{ring}_tiles" for ring in pieces.rings), *pieces.barriers, *pieces.shared, *SIZES]))


def producer_parameters(pieces: Pieces) -> list[str]:
    return _parameters([f"{ring}_desc" for ring in pieces.rings], pieces)


def consumer_parameters(pieces: Pieces) -> list[str]:
    return _parameters(["o_desc", "lse_ptr", "score_scale"], pieces)


def producer(pieces: Pieces) -> str:
    """The warp that loads: Q, then K and V of every tile in the order in which they are used, V beside the scores of the next tile."""
    last = _fetch("v", "g - 1", "late", "late_b, late_head, late_line")
    lines = [
        TILE.format("item"),
        *pieces.find(own=False),
        "for own in tl.static_range(CONSUMERS):",
        "    place = turn % Q_STAGES * CONSUMERS + own",
        "    mbarrier.wait(q_empty.index(place), (turn // Q_STAGES & 1) ^ 1)",
        "    mbarrier.expect(q_full.index(place), q_desc.block_type.nbytes)",
        "    _load(q_desc, [b, h, line, first + own * (64 // PACK), 0], q_full.index(place), q_tiles.index(place))",
        *([_fetch("k0", "turn", "r0"), "if turn > 0:", "    " + last] if pieces.narrow else []),
        pieces.start(pieces.tile("0")),
        _fetch("k", "g"),
        *([_fetch("v0", "turn", "r0")] if pieces.narrow else []),
        "late_b, late_head, late_line, late = b, kv_h, line, start",
        "g += 1",
        f"for i in range(1, {pieces.more}):",
        "    " + pieces.start(pieces.tile("i")),
        "    " + _fetch("k", "g"),
        "    " + last,
        "    late = start",
        "    g += 1",
        *([] if pieces.narrow else [last]),
        "turn += 1",
    ]
    text = '    """Loads the tiles of every row tile."""\n'
    begin = ["late_b, late_head, late_line, late = 0, 0, 0, 0  # the tile whose K is loaded, and whose V is not"] if pieces.narrow else []
    body = [*begin, *ITEMS, *("    " + line for line in lines), *([last] if pieces.narrow else [])]
    return f"@gluon.jit\ndef _producer(\n{wrap(typed(producer_parameters(pieces)))}\n):\n{text}{indent(body)}"


def _fetch(ring: str, number: str, row: str = "start", head: str = "b, kv_h, line") -> str:
    stages = "1" if ring.endswith("0") else "STAGES"
    return f"_fetch({ring}_desc, {ring}_tiles, {ring}_full, {ring}_empty, {number}, {head}, {row}, {stages})"


def kernel(pieces: Pieces) -> list[str]:
    """Statements of the kernel: shared memory, barriers, and the three that run beside each other."""
    counts = {"q": "CONSUMERS * Q_STAGES", "k": "STAGES", "v": "STAGES", "k0": "1", "v0": "1"}
    lines = [
        *(f"{x}_tiles = tl.allocate_shared_memory({x}_desc.dtype, [{counts[x]}] + {x}_desc.block_type.shape, {x}_desc.layout)" for x in pieces.rings),
        *(f"{x} = tl.allocate_shared_memory(tl.int64, [{counts[x.partition('_')[0]]}, 1], mbarrier.MBarrierLayout())" for x in pieces.barriers),
    ]
    for x in pieces.rings:
        readers = 1 if x == "q" else "CONSUMERS"  # that give a tile back
        lines += [f"for slot in tl.static_range({counts[x]}):", f"    mbarrier.init({x}_full.index(slot), count=1)"]
        lines += [f"    mbarrier.init({x}_empty.index(slot), count={readers})"]
    consume = ", ".join(consumer_parameters(pieces))
    return [
        *lines,
        "fence_async_shared()",
        "tl.warp_specialize([",
        *(f"    (_consumer, ({own}, {consume}))," for own in range(pieces.consumers)),
        f"    (_producer, ({', '.join(producer_parameters(pieces))})),",
        f"], {[*[4] * (pieces.consumers - 1), 1]}, {[*[REGISTERS[pieces.consumers]] * (pieces.consumers - 1), 24]})",
    ]
