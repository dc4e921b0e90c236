"""The forward for Hopper, in Gluon: one warp loads tiles by TMA, two or three warpgroups of 64 rows compute, one row tile after the other.

The rows of a consumer may be those of up to four query heads that share keys (`pack_of`): a row tile of 32 positions visits fewer keys
than one of 128.  Where the pattern is causal the keys at its own positions are a tile of their own, as narrow as they are few, and the
tiles of other keys end where it begins (`narrow`).

The plan, the printer and the text that finds tiles are those of the portable kernel (`kernels.py`), which is its twin in every test
and takes whatever `covers` refuses.  The ring of tiles is simulated before a text leaves this file (`hopper_ring.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from patternc.codegen import bounds, helpers, hopper_ranges, hopper_ring, hopper_text
from patternc.codegen.code import COL, ROW
from patternc.codegen.configs import Config
from patternc.codegen.frame import Frame, closing, header, indent
from patternc.codegen.generated import Kernel, Source
from patternc.codegen.hopper_consumer import consumer
from patternc.codegen.hopper_text import assigned, function
from patternc.compile import provably_causal
from patternc.expr.node import Node
from patternc.expr.pattern import K, Pattern, Q, between
from patternc.expr.transform import rewrite
from patternc.passes import variables
from patternc.plan import Plan
from patternc.signature import signature

WIDTHS = (64, 128, 256)  # of heads
ROWS = 64  # of a consumer
PACKS = (4, 2)  # query heads whose rows a consumer may have
MOST_SECTION = 8  # query heads whose row tiles are taken together
HEADER = '''
from triton.experimental import gluon
from triton.experimental.gluon import language as tl  # what the portable kernels compute by tl is spelt the same here
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

# Triton 3.7 renamed both.
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

'''
DOC = "o = softmax(q k^T * scale) v over the pattern; lse is its natural log-sum-exp [B, H, n_q].  score_scale is scale * log2(e)."


def header_of(about: str) -> str:
    """The beginning of a module of kernels in Gluon."""
    return f'"""{about}"""\n{HEADER}'


LEFT = {"heads": "groups of heads with plans of their own", "boxes": "tiles that are boxes of digits"}  # to portable kernels, by kind of axis


def covers(plan: Plan, later: bool = False) -> str | None:
    """Why the forward of a plan is left to the portable kernel; None where this one can run it.

    Args:
        later: the kernel adds to what earlier parts of the pattern found.
    """
    axis = plan.forward
    if later:
        return "a later part of a pattern"
    if axis.kind in LEFT:
        return LEFT[axis.kind]
    if axis.kind == "formula" and not axis.all_runs:
        return "nothing is allowed"
    return None


@dataclass(frozen=True)
class RowTile:
    """The rows that a program computes at once.

    Attributes:
        pack: query heads whose rows a consumer has.
        consumers: warpgroups, of ROWS rows each.
        narrow: the keys at its own positions are a tile of their own.
    """

    pack: int = 1
    consumers: int = 2
    narrow: bool = False

    @property
    def positions(self) -> int:
        return ROWS * self.consumers // self.pack


def row_tile(plan: Plan, head_dim: int, heads: int, kv_heads: int) -> RowTile:
    """The row tile of a plan's forward.

    At head_dim 64 exponentials take as long as products, and three consumers keep both units busy.  A narrow tile is as wide as the row
    tile has positions, of which layouts want a power of two.
    """
    pack = pack_of(plan, head_dim, heads, kv_heads)
    own = pack > 1 and narrow(plan)
    return RowTile(pack, 3 if head_dim == 64 and not own else 2, own)


def pack_of(plan: Plan, head_dim: int, heads: int, kv_heads: int) -> int:
    """Query heads whose rows a consumer has: as many as share keys, where all heads see one pattern and registers allow."""
    by_head = plan.forward.kind == "list" or "h" in variables(plan.mask) or any(use.over_heads for use in signature(plan.mask).values())
    packs = () if by_head or head_dim > 128 else PACKS
    return next((p for p in packs if heads // kv_heads % p == 0), 1)


@lru_cache(maxsize=1024)
def narrow(plan: Plan) -> bool:
    """Whether the keys at a row tile's own positions are a tile of their own."""
    axis = plan.forward
    return axis.kind in ("formula", "table") and axis.filler is None and bool(axis.count) and provably_causal(plan.mask)


def _earlier(mask: Pattern) -> Pattern:
    """The mask for keys before a row tile's own positions: their distance is at least 1."""
    return _at_distances(mask, 1, None)


def _near(mask: Pattern) -> Pattern:
    """The mask for keys at a row tile's own positions, of which there are at most 128 / 2."""
    return _at_distances(mask, 1 - ROWS, ROWS - 1)


def _at_distances(mask: Pattern, low: int, high: int | None) -> Pattern:
    """An equal pattern where `low <= q - k <= high`: comparisons of the distance lose the sides that hold anyway."""

    def change(x: Node) -> Node | None:
        if x.op != "in" or x.args[0] is not Q - K:
            return None
        _, least, most = x.args
        least = None if least is not None and least <= low else least
        return between(Q - K, least, None if None not in (most, high) and most >= high else most)

    return rewrite(mask, change)


class HopperFrame(Frame):
    """What a plan adds to the kernel: its bounds for a row tile, its mask for the 64 rows of one consumer, in the products' layout."""

    def __init__(self, plan: Plan, narrow: bool = False):
        super().__init__(plan, plan.forward, "q", "BLOCK_M", "BLOCK_N")
        self.narrow, self.ranged = narrow, not narrow and hopper_ranges.ranged(plan)
        if narrow:
            self.tiles, self.exists = bounds.tiles(plan.forward, "BLOCK_N", shifted=True), "(column >= 0) & (column < n_k)"
        self.scalars = [s.text for s in self.printed if not s.level & (ROW | COL)]
        self.row_lines = [s.text for s in self.printed if s.level & ROW and not s.level & COL]
        self.columns = self._columns()
        self.mask = self._mask()
        if self.mask and not self.uses.arrays:  # few tiles reach beyond the keys
            edge = "(start < 0) | (start + COLUMNS > n_k)" if narrow else "start + COLUMNS > n_k"
            self.mask = [f"if {edge}:", f'    s = tl.where({self.exists}, s, float("-inf"))', *self._without_edge()]

    def _without_edge(self) -> list[str]:
        exists, self.exists = self.exists, None
        try:
            return self._mask()
        finally:
            self.exists = exists

    def _places(self) -> list[str]:
        places = "(start + tl.arange(0, COLUMNS, tl.SliceLayout(0, layout)))[None, :]"
        if not self.narrow:
            return [f"k_col = {places}"]
        return [f"column = {places}", f"k_col = {'tl.maximum(column, 0)  # what is read there exists' if self.uses.arrays else 'column'}"]

    def rows_in(self, layout: str) -> list[str]:
        """The positions of a consumer's rows, head by head."""
        first = "r0" if self.ranged else "r0 + own * (64 // PACK)"
        return [f"q_row = ({first} + tl.arange(0, 64, tl.SliceLayout(1, {layout})) % (64 // PACK))[:, None]", *self.row_lines]

    def find(self) -> list[str]:
        """Statements that find the tiles of a row tile, from `tile`, `b` and `h`, or of `rows` rows from `first` on."""
        *scalars, _ = self.positions()  # the last one are the rows, which have a layout here
        if self.narrow:
            ends = ["first_col = r0 % BLOCK_N - BLOCK_N  # tiles end at r0", "last_col = tl.minimum(n_k, r0) - 1"]
            scalars = [*(line for line in scalars if not line.startswith(("first_col", "last_col"))), *ends]
        if self.ranged:
            runs = [line for line in self.before() if line.startswith(("#", "start_0"))]
            return [*(line.replace("BLOCK_M", "rows") for line in scalars), *self.scalars, *runs]
        counts = [f"{kind}_count = {loop.count if loop else 0}" for kind, loop in (("partial", self.tiles.partial), ("full", self.tiles.full))]
        counts = [line for line in counts if line.partition(" = ")[0] != line.partition(" = ")[2]]
        return [*self.tile(), *self.first(), *scalars, *self.scalars, *self.before(), *counts]

    def tile_lines(self, kind: str) -> list[str] | None:
        """Statements that make `col_tile` from the number `i` among the partial or the full tiles; None where there are none."""
        loop = getattr(self.tiles, kind)
        if loop is None:
            return None
        if loop.table is None:
            return list(loop.tile)
        return [f"col_tile = tl.load({loop.table} + i)"]


def shared_bytes(config: Config, head_dim: int, own: RowTile) -> int:
    """Shared memory of the kernel for 16-bit inputs: rings of tiles, and up to 1 KiB for barriers and conversions."""
    q_rows = ROWS * own.consumers * q_stages(head_dim)
    return (q_rows + 2 * config.stages * config.block_n + own.narrow * 2 * own.positions) * head_dim * 2 + 1024


def q_stages(head_dim: int) -> int:
    """Row tiles whose queries there is shared memory for."""
    return 2 if head_dim <= 128 else 1


def constants(head_dim: int, heads: int, own: RowTile, lines: int = 1) -> dict[str, int]:
    """Constexprs beside those of the portable kernel: heads of a row tile, its buffers, how many heads' row tiles are taken together, and
    lines (`lines.py`)."""
    packs = heads // own.pack
    section = max(s for s in range(1, min(packs, MOST_SECTION // own.pack) + 1) if packs % s == 0)
    sizes = {"BLOCK_M": own.positions, "CONSUMERS": own.consumers, "PACK": own.pack}
    return sizes | {"Q_STAGES": q_stages(head_dim), "SECTION": section, "LINES": lines}


@lru_cache(maxsize=1024)
def generate(plan: Plan, narrow: bool = False, consumers: int = 2) -> Source:
    """The module of a plan's forward, for row tiles of that kind (`RowTile`); equal bytes for equal plans.  Raises InternalError where its ring
    would hang."""
    frame = HopperFrame(replace(plan, mask=_earlier(plan.mask)) if narrow else plan, narrow)
    own = HopperFrame(replace(plan, mask=_near(plan.mask)), narrow) if narrow else frame
    matrices = [f"{m}_desc" for m in ("q", "k", "v", *(["k0", "v0"] if narrow else []), "o")]
    read = dict.fromkeys((*frame.parameters, *own.parameters))
    parameters = [*matrices, "lse_ptr", "score_scale", "order_ptr", "items", "n_q", "n_k", "q_start_value", "q_start_stride", *read]
    constants = ["HEADS", "GROUP", "D", "DV", "BLOCK_D", "BLOCK_DV", "BLOCK_M", "BLOCK_N", "STAGES"]
    constants += ["CONSUMERS", "PACK", "Q_STAGES", "SECTION", "LINES", "ORDERED"]
    tiles = {} if frame.ranged else {kind: frame.tile_lines(kind) for kind in ("partial", "full")}
    given = {"tile", "b", "h", "own", "layout", "start", "i", "s"}
    functions, calls = [], {}
    doc = "Scores of the COLUMNS columns from `start` on, those outside the pattern set to -inf."
    scores = ["s", "start", "layout: tl.constexpr", "COLUMNS: tl.constexpr"]
    for kind, lines in tiles.items():
        if lines is not None:
            text, calls[kind] = function(f"_{kind}_tile", ["i"], lines, "col_tile", f"Tile of columns number i of the {kind} ones.")
            functions.append(text)
    if frame.mask:
        text, calls["mask"] = function("_masked", scores, [*frame.columns, *frame.mask], "s", doc)
        functions.append(text)
    if narrow:
        lines = [*own.rows_in("layout"), *own.columns, *own.mask]
        text, calls["first mask"] = function("_masked_first", [*scores, "own: tl.constexpr"], lines, "s", doc)
        functions.append(text)
    found = frame.find()
    fixed = hopper_ranges.FOUND if frame.ranged else ["first", "r0", "partial_count", "full_count", *(["first_col"] if narrow else [])]
    wanted = hopper_text.names([*frame.row_lines, *calls.values()]) | dict.fromkeys(fixed)
    results = [name for name in assigned(found) if name in wanted and name not in given]
    if frame.ranged:
        results = [*fixed, *(name for name in results if name not in fixed)]
    of, about = (["first", "rows"], "`rows` rows from `first` on") if frame.ranged else (["tile"], "a row tile")
    text, calls["find"] = function("_find_tiles", [*of, "b", "h"], found, ", ".join(results), f"Where the tiles of {about} are.")
    functions.append(text)
    calls["results"] = ", ".join(results)
    read = hopper_text.names([*calls.values(), *frame.row_lines])
    shared = [name for name in read if name in parameters or name in constants]
    shared = [name for name in (*parameters, *constants) if name in shared]
    pieces = hopper_text.Pieces(calls, tuple(frame.rows_in("s_layout")), tuple(shared), narrow, consumers, results if frame.ranged else None)
    kernel = hopper_text.kernel(pieces)
    top = header("forward", parameters, constants, DOC).replace("@triton.jit", "@gluon.jit")
    texts = [*functions, hopper_text.producer(pieces), consumer(pieces), top + indent(kernel)]
    body = "\n\n\n".join(texts)
    used = helpers.used_by(body, (*helpers.SOURCES, *hopper_ranges.HELPERS, *hopper_text.HELPERS)).replace("@triton.jit", "@gluon.jit")
    about = "A forward for Hopper generated by patternc; the pattern is named at the end."
    text = f"{header_of(about)}{used}\n\n{body}\n\n\n{closing(plan.mask)}\n"
    hopper_ring.check(text, consumers)
    reads = tuple(dict.fromkeys((*frame.uses.scalars, *own.uses.scalars))), tuple({**frame.uses.arrays, **own.uses.arrays}.values())
    made = Kernel("forward", body, tuple(parameters), tuple(constants), plan.forward, *reads, "hopper")
    return Source(text, {"forward": made}, "hopper", plan)
