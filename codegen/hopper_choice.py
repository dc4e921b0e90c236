"""How a forward for Hopper is launched: its row tile and configuration, and which program takes which row tiles.

Programs may stay, one for each processor, and take row tiles in rounds, so that the tiles of the next one are loaded while one is computed.
Where row tiles take different times, those of each round are dealt longest first to the programs that have had least (`ordered`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch

from patternc.codegen import configs, hopper, hopper_ranges
from patternc.codegen.call import Call
from patternc.codegen.configs import Config
from patternc.codegen.device import kept_on, processors
from patternc.codegen.hopper import RowTile
from patternc.codegen.lines import Lines, lines_of

# Measured on an H100 and an H200 (docs/performance.md).  Programs stay where they have so many rounds of row tiles: MANY, or FEW of row tiles that
# differ, which an order makes even.  Then rows may be SHORT, except at head_dim 64; else they must be LONG to be faster than by the portable kernel.
MANY, FEW, SHORT, LONG = 16, 3, 2, 12
DIFFER = 1.25  # times the mean: a longer row tile makes them differ
BEGIN = 2.0  # tiles that the beginning and the end of a row tile take as long as
UNEVEN = 0.01  # of the time of all: what an order must save


@dataclass(frozen=True)
class Choice:
    """What a call's layout decides.

    Attributes:
        lines: what the plan is of.
        items: row tiles, of all batch rows, heads and lines.
        find: `find()`, their `tiles`.
        buffered: the queries of the next row tile are loaded while one is computed.
    """

    lines: Lines
    tile: RowTile
    config: Config
    items: int
    find: Callable[[], np.ndarray | None]
    buffered: bool

    @cached_property
    def tiles(self) -> np.ndarray | None:
        """How many tiles of columns each row tile visits, [B or 1, H or 1, row tiles of a line]; None where only tensors say it."""
        return self.find()

    @property
    def length(self) -> float | None:
        """How many tiles of columns a row tile visits on average."""
        return None if self.tiles is None else float(self.tiles.mean())

    @property
    def differ(self) -> bool:
        """Whether some row tiles are known to visit more tiles than others."""
        return self.tiles is not None and float(self.tiles.max(initial=0)) > DIFFER * self.length

    def stays(self, device: torch.device) -> bool:
        """Whether programs stay.  Where nothing of the next row tile runs beside this one, as at head_dim 256, the device deals long equal rows
        as well."""
        if self.items < (FEW if self.differ else MANY) * processors(device):
            return False
        return self.differ or self.buffered or self.length is None or self.length < LONG


def sizes(lines: Lines, matrices: dict[str, torch.Tensor]) -> tuple[RowTile, Config]:
    """The row tile and the configuration for matrices of one layout."""
    q, k = matrices["q"], matrices["k"]
    tile = hopper.row_tile(lines.plan, q.shape[3], q.shape[1], k.shape[1])
    return tile, replace(configs.candidates("forward", "hopper", q.shape[3], q.shape[3], 2)[0], block_m=tile.positions)


def choose(call: Call, matrices: dict[str, torch.Tensor]) -> Choice:
    """The choice for matrices of one layout, of a plan that the kernel covers."""
    q, lines = matrices["q"], lines_of(call.plan)
    tile, config = sizes(lines, matrices)
    n_q = call.lengths[0] if call.lengths else q.shape[2]
    items = lines.count * q.shape[0] * q.shape[1] // tile.pack * -(-n_q // (lines.count * tile.positions))

    def tiles() -> np.ndarray | None:
        found = call.tiles(lines, config.block_m, config.block_n) if call.tiles is not None else None
        return None if found is None else sum(found)

    return Choice(lines, tile, config, items, tiles, hopper.q_stages(q.shape[3]) > 1)


def pays(choice: Choice, head_dim: int, device: torch.device) -> bool:
    """Whether a forward that this kernel can run is faster by it than by the portable kernel, as far as was measured."""
    plan, tile = choice.lines.plan, choice.tile
    if plan.forward.kind == "list" or plan.forward.filler is not None:
        return False
    if choice.items < processors(device):  # the portable kernel's rows can be cut
        return False
    stays = choice.stays(device)
    if stays and tile.narrow:
        return True
    short = stays and head_dim > 64 and (hopper.narrow(plan) or hopper_ranges.ranged(plan))
    return choice.length is not None and choice.length >= (SHORT if short else LONG)


def dealt(choice: Choice, q: torch.Tensor, section: int) -> tuple[int, dict]:
    """How many programs there are, and the parameters by which they take row tiles.

    Args:
        section: heads whose row tiles are taken together (`hopper.constants`).
    """
    count = processors(q.device) if choice.stays(q.device) else choice.items
    order = ordered(choice, q, section, count) if count < choice.items else None
    table = _nothing(q.device) if order is None else kept_on(torch.from_numpy(order), q.device)
    return count, {"order_ptr": table, "ORDERED": order is not None}


@lru_cache
def _nothing(device: torch.device) -> torch.Tensor:
    return kept_on(torch.zeros(1, dtype=torch.int32), device)


def ordered(choice: Choice, q: torch.Tensor, section: int, programs: int) -> np.ndarray | None:
    """The row tiles by the numbers that programs take, int32 [items]; None where the usual order is as good, or nothing says more."""
    if choice.tiles is None or (q.is_cuda and torch.cuda.is_current_stream_capturing()):  # no copies to a device can be captured
        return None
    work = choice.tiles[_places(choice, q, section)] + BEGIN
    order = rounds(work, programs)
    usual, best = (np.bincount(np.arange(len(work)) % programs, work[x]).max() for x in (slice(None), order))
    return order if best < (1 - UNEVEN) * usual else None


def _places(choice: Choice, q: torch.Tensor, section: int) -> tuple[np.ndarray, ...]:
    """Batch row, head and row tile of every item, where they are in `choice.tiles`: `_place` of the kernel's text."""
    kinds, heads, row_tiles = choice.tiles.shape
    item, packs = np.arange(choice.items), q.shape[1] // choice.tile.pack
    part, within = np.divmod(item, row_tiles * section)
    part //= choice.lines.count
    batch, of_heads = np.divmod(part, packs // section)
    head = (of_heads * section + within % section) * choice.tile.pack
    return np.minimum(batch, kinds - 1), np.minimum(head, heads - 1), row_tiles - 1 - within // section


def rounds(work: np.ndarray, programs: int) -> np.ndarray:
    """An order of items in rounds of `programs`: those of a round stay in it, the longest one goes to the program that has least so far."""
    order, load = np.arange(len(work), dtype=np.int32), np.zeros(programs)
    for first in range(0, len(work), programs):
        own = np.arange(first, min(first + programs, len(work)))
        least = np.argsort(load[: len(own)], kind="stable")
        longest = own[np.argsort(-work[own], kind="stable")]
        order[first + least] = longest
        load[least] += work[longest]
    return order
