"""Rows of tiles that are much longer than others: which programs start first, and which rows several programs share.

Row tiles of a window take equal times, and the order of their programs does not matter.  A global row takes as long as
hundreds of others: started last it keeps one processor busy when all others are done.  So long rows are dealt first, and
where even that leaves processors idle they are cut into pieces, whose results a second kernel puts together.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from patternc.args import Bound
from patternc.cards import card
from patternc.expr.pattern import Pattern
from patternc.layout import Layout, layout
from patternc.orders.boxes import BoxAxis
from patternc.orders.count import Sizes, choose_boxes, counts_by_program
from patternc.plan import AxisPlan
from patternc.rates import Shape
from patternc.visits import formula_segments

PROCESSORS = 132  # of an H100 or H200
RESIDENT = 2  # programs that share a processor, each at half its rate
SHORTEST = 16  # tiles: no shorter row is long
LONG_ALONE, LEAST_PIECE = 32, 8  # tiles: rows that are cut where there are few of them, and the pieces of such rows
TURNS = 3  # pieces of such rows that a processor takes one after the other, at most
USUAL = 2  # times the median: a causal row is at most that long
LATE = 0.1  # of the whole time: rows that would be late by less stay where neighbours read the same keys


Tiles = tuple[np.ndarray, np.ndarray]  # full and partial tiles of each row tile, [B or 1, H or 1, row tiles]


@dataclass(frozen=True)
class Costs:
    """Microseconds of one processor.

    Attributes:
        full, partial: for a tile without and with a mask.
        program: for the start and the end of a program.
        piece: more for a piece of a row tile: its result is written and read in float32.
        launch: for one launch more, on all processors.
    """

    full: float
    partial: float
    program: float
    piece: float
    launch: float

    @staticmethod
    def of(kernel: str, access: str, shape: Shape, tile: tuple[int, int], weight: int) -> Costs:
        """As measured on the card, for tiles of so many queries and keys, and a mask of that weight (`rates.mask_weight`)."""
        rate, rows = card().rate(kernel, access, shape, tile), tile[1] if kernel == "backward_dkdv" else tile[0]
        return Costs(rate.full, rate.partial + rate.mask * weight, rate.program, card().merge_of(shape) * rows / 64, card().launch)

    def work(self, tiles: Tiles) -> np.ndarray:
        """What row tiles cost beside the start of a program."""
        full, partial = tiles
        return self.full * full + self.partial * partial


@dataclass(frozen=True, eq=False)
class Schedule:
    """The order in which the row tiles of one direction are dealt to programs.

    Attributes:
        entries: int32 [entries, 3], (row tile, piece, pieces): first the pieces of rows that are cut, those of a row side by side,
            then long rows, longest first, then the others in the kernels' usual order.
        cuts: how many first entries are pieces.
        long: how many first entries are long, pieces among them: programs of all heads and batch rows take these before any other.
    """

    entries: np.ndarray
    cuts: int
    long: int

    @property
    def form(self) -> str:
        """What kernels must do for it: "cut" where rows have pieces, else "dealt"."""
        return "cut" if self.cuts else "dealt"


def row_tiles(p: Pattern, axis: AxisPlan | BoxAxis, bound: Bound, tile: tuple[int, int], transposed: bool = False) -> Tiles | None:
    """How many tiles the row tiles of one direction visit.

    Args:
        p: the pattern, for plans whose tiles are lists.
        tile: rows and columns of a tile of that direction (q x k; k x q when transposed).
    Returns:
        None where only tensors say it (tables of runtime data, scalars or starts on a device): nothing may wait for these.
    """
    scalars = (value for name, value in bound.values.items() if bound.uses[name].kind == "scalar")
    if axis.kind == "table" or not isinstance(bound.q_start, int) or not all(isinstance(value, int) for value in scalars):
        return None
    if axis.kind == "boxes":
        sizes = Sizes(bound.n_q, bound.n_k, bound.q_start)
        visited, full = counts_by_program(axis, sizes, choose_boxes(axis, sizes, *tile))
        return full[None, None], (visited - full)[None, None]
    if axis.kind == "list":
        return tiles_of_layout(layout(p, bound, tile[::-1] if transposed else tile, transposed=transposed))
    segments = formula_segments(axis, bound, tile, transposed)
    nothing = np.zeros((1, 1, -(-(bound.n_k if transposed else bound.n_q) // tile[0])), np.int64)
    full, partial = (sum((s.count for s in segments if s.full == kind), nothing) for kind in (True, False))
    return np.broadcast_arrays(full, partial)


def all_tiles(bound: Bound, tile: tuple[int, int], transposed: bool = False) -> Tiles:
    """The same if row tiles visited all tiles."""
    rows, cols = (bound.n_k, bound.n_q) if transposed else (bound.n_q, bound.n_k)
    full = np.full((1, 1, -(-rows // tile[0])), -(-cols // tile[1]), np.int64)
    return full, np.zeros_like(full)


def tiles_of_layout(exact: Layout) -> Tiles:
    """The same from exact tiles, one batch row's."""
    found, of = [], np.zeros(exact.heads, int)
    for i, cell in enumerate(exact.groups):
        grid = cell.tiles.grid
        found.append([np.bincount(start // grid.width, stop - start, grid.row.tiles) for start, stop in cell.tiles.whole])
        of[list(cell.heads)] = i
    full, partial = np.array(found).swapaxes(0, 1)[:, None, of if len(found) > 1 else [0]]
    return full, partial


def of_groups(work: np.ndarray, group: int) -> np.ndarray:
    """The work of programs that treat `group` heads each, [kinds, row tiles], from that of heads [B or 1, H or 1, row tiles]."""
    batch, heads, rows = work.shape
    kinds = work * group if heads == 1 else work.reshape(batch, heads // group, group, rows).sum(2)
    return kinds.reshape(kinds.shape[0] * kinds.shape[1], rows)


def schedule(work: np.ndarray, copies: int, costs: Costs, processors: int = PROCESSORS, last_first: bool = True) -> Schedule | None:
    """The schedule of one direction; None where the usual order is as good.

    Rows are long from twice the median on.  They are cut where the longest, sharing its processor, would outlast everything else by
    more than a second kernel takes: into pieces that are not long, or if that is more take a quarter of a processor's share of all work.

    Where programs are fewer than processors, long rows are cut so that all pieces run at once (`pieces_of_few`).

    Args:
        work: [kinds, row tiles] of one program, without its start.
        copies: programs for every row tile: heads (of keys, for dk/dv) times batch rows.
        last_first: the usual order of the kernels: last rows first, or first rows first.
    """
    rows = work.max(0, initial=0) + costs.program
    share = float((work + costs.program).sum(1).mean()) * copies / processors
    if copies * len(rows) < processors and rows.max(initial=0) > LONG_ALONE * costs.full:
        return in_pieces(rows, pieces_of_few(rows, copies, costs, processors), np.zeros(len(rows), bool), last_first)
    longest, usual = rows.max(initial=0), max(SHORTEST * costs.full, USUAL * float(np.median(rows)) if len(rows) else 0)
    if longest <= usual or RESIDENT * longest <= LATE * share:
        return None
    pieces = np.ones(len(rows), np.int64)
    if RESIDENT * longest > max(share, RESIDENT * usual) + costs.launch:
        pieces = np.ceil(rows / max(usual, share / 4)).astype(np.int64)
    return in_pieces(rows, pieces, rows > usual, last_first)


def pieces_of_few(rows: np.ndarray, copies: int, costs: Costs, processors: int = PROCESSORS) -> np.ndarray:
    """Into how many pieces to cut rows where they are fewer than processors.

    Pieces of a row are equal, so one more than run at once would double the time: pieces are rounded down to what fits, or, where that
    would leave processors idle, to what fits into a few turns.
    """
    most = np.maximum(1, rows // (LEAST_PIECE * costs.full)).astype(np.int64)
    found = []
    for turns in range(1, TURNS + 1):
        places = turns * RESIDENT * processors / copies
        pieces = np.minimum(np.maximum(1, rows / rows.sum() * places).astype(np.int64), most)
        found.append(((rows / pieces).max() * -(-int(pieces.sum()) * copies // (RESIDENT * processors)) + turns * costs.piece, turns, pieces))
    return min(found, key=lambda x: x[:2])[2]


def in_pieces(rows: np.ndarray, pieces: np.ndarray, long: np.ndarray, last_first: bool = True) -> Schedule:
    """The schedule that cuts row tiles, which take times `rows`, into so many `pieces`, and deals those that are cut or `long` first."""
    tiles = np.arange(len(rows))[:: -1 if last_first else 1]
    rank = np.where(pieces > 1, 0, np.where(long, 1, 2))[tiles]
    tiles = tiles[np.lexsort((np.where(rank < 2, -rows[tiles], 0), rank))]
    repeated = np.repeat(tiles, pieces[tiles])
    piece = np.arange(len(repeated)) - np.repeat(np.cumsum(pieces[tiles]) - pieces[tiles], pieces[tiles])
    entries = np.stack([repeated, piece, pieces[repeated]], 1).astype(np.int32)
    cut = int(pieces[pieces > 1].sum())
    return Schedule(entries, cut, cut + int((long & (pieces == 1)).sum()))


# ---- what a schedule is worth


def programs(work: np.ndarray, copies: int, costs: Costs, found: Schedule | None, last_first: bool = True) -> np.ndarray:
    """Times of all programs in the order in which they start."""
    if found is None:
        found = in_pieces(work.max(0), *(np.full(work.shape[1], x) for x in (1, False)), last_first)
    tile, _, pieces = found.entries.T
    times = work[:, tile] / pieces + costs.program + costs.piece * (pieces > 1)
    times = np.resize(times, (copies, len(tile)))
    return np.concatenate([times[:, : found.long].T.ravel(), times[:, found.long :].ravel()])


def makespan(times: np.ndarray, processors: int = PROCESSORS, resident: int = 1) -> float:
    """When the last of programs is done that start in this order; `resident` of them share a processor, each at its fraction of the rate."""
    ends = [0.0] * (processors * resident)
    for time in times.tolist():
        heapq.heapreplace(ends, ends[0] + time * resident)
    return max(ends)


@dataclass(frozen=True)
class Balance:
    """What a schedule does for one direction at one length.

    Attributes:
        rows, long, cut, pieces: row tiles, those of them that are dealt first, those that are cut, and into how many pieces in all.
        usual, time: when the last program is done, in units of the time that all would take evenly spread: in the usual order, and
            by the schedule (the same where there is none).
    """

    rows: int
    long: int
    cut: int
    pieces: int
    usual: float
    time: float

    def __str__(self):
        if not self.long:
            return f"usual order, {self.time:.2f} of the ideal time"
        what = f"{self.cut} cut into {self.pieces} pieces" if self.cut else "not cut"
        return f"{self.long} long of {self.rows} row tiles first, {what}: {self.time:.2f} of the ideal time ({self.usual:.2f} in the usual order)"


def balance(work: np.ndarray, copies: int, costs: Costs, last_first: bool = True, processors: int = PROCESSORS) -> Balance:
    """What `schedule` decides of the same arguments, and what that gains."""
    found = schedule(work, copies, costs, processors, last_first)
    ideal = float((work + costs.program).sum(1).mean()) * copies / processors or 1.0
    usual, time = (makespan(programs(work, copies, costs, one, last_first), processors) / ideal for one in (None, found))
    if found is None:
        return Balance(work.shape[1], 0, 0, 0, usual, usual)
    cut = int((found.entries[: found.cuts, 1] == 0).sum())
    return Balance(work.shape[1], cut + found.long - found.cuts, cut, found.cuts, usual, time)
