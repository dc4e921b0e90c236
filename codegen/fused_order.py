"""In which order the programs of the fused backward (`fused.py`) add to dq: tables that are made once for a plan and its lengths.

A program has a tile of keys, and adds to dq of every tile of queries that it visits.  Numbers are rounded where they are added, so the
order must not depend on which program is faster: each waits, at each tile of queries, for those that are dealt before it.  Programs are
dealt the last keys first.  So nobody waits for a program that has not begun, and under causal patterns, where all go through queries from
their own positions on, hardly anybody waits at all: the program of the keys after one's own is at the next tile already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from patternc.codegen.device import kept_on
from patternc.visits import Segment

KEYS = 128  # of a tile
QUERIES = {64: 128, 128: 64}  # of a tile, by head_dim
MOST_VISITS = 1 << 22  # that tables are made for: 32 MiB of them


@dataclass(frozen=True, eq=False)
class Order:
    """Which tiles of queries the tiles of KEYS keys visit.

    Attributes:
        queries: of a tile.
        segments: of each key tile (`visits.formula_segments`), the same in all heads and batch rows.
        n_q, n_k: lengths.
        visits, most: how many tiles a key tile visits, on average and at most.
        alike: all key tiles that visit any begin with the same tile of queries.
        gaps: some tile of queries is visited by none.
    """

    queries: int
    segments: tuple[Segment, ...]
    n_q: int
    n_k: int
    visits: float
    most: int
    alike: bool
    gaps: bool

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """`first`, int32 [key tiles + 1], where the entries of a key tile begin, and `entries`, int32 [visits + 1, 2]: twice the tile of queries,
        plus 1 where it is masked, and how many programs add to this tile before; the last one is read and not used."""
        rows, queries = -(-self.n_k // KEYS), -(-self.n_q // self.queries)
        ragged = rows - 1 if self.n_k % KEYS else rows  # keys that do not exist are masked
        key, query, masked = [], [], []
        for s in self.segments:
            start, count = s.start.ravel(), np.maximum(s.stop - s.start, 0).ravel()
            own = np.repeat(np.arange(rows), count)
            key.append(own)
            query.append(np.arange(len(own)) + np.repeat(start - (np.cumsum(count) - count), count))
            masked.append(np.where(own >= ragged, 1, int(not s.full)))
        key, query, masked = (np.concatenate([np.zeros(0, np.int64), *x]) for x in (key, query, masked))
        in_turn = np.argsort(query * rows + (rows - 1 - key), kind="stable")
        before = np.empty(len(key), np.int64)
        before[in_turn] = np.arange(len(key)) - np.searchsorted(query[in_turn], query[in_turn])
        entries = np.stack([2 * query + masked, before], 1)[np.argsort(key * queries + query, kind="stable")]
        first = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=rows))])
        return first.astype(np.int32), np.concatenate([entries, np.zeros((1, 2), np.int64)]).astype(np.int32)

    @cached_property
    def _on(self) -> dict[torch.device, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def there(self, device: torch.device) -> bool:
        """Whether the tables are on a device, or can be copied to it: nothing can while a CUDA graph is captured."""
        return device in self._on or device.type != "cuda" or not torch.cuda.is_current_stream_capturing()

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The tables on a device."""
        if device not in self._on:
            self._on[device] = tuple(kept_on(torch.from_numpy(x), device) for x in self.tables)
        return self._on[device]


def order_of(segments: Iterable[Segment], n_q: int, n_k: int, queries: int) -> Order | None:
    """The order for segments of key tiles, in tiles of so many queries; None where heads or batch rows differ, or where tables would be long."""
    rows, segments = -(-n_k // KEYS), tuple(segments)
    if any(s.start.shape[:2] != (1, 1) for s in segments):
        return None
    count, begin, change = np.zeros(rows, np.int64), np.full(rows, np.iinfo(np.int64).max), np.zeros(-(-n_q // queries) + 1, np.int64)
    for s in segments:
        start, stop = s.start.ravel(), s.stop.ravel()
        some = stop > start
        count += np.where(some, stop - start, 0)
        begin = np.where(some, np.minimum(begin, start), begin)
        np.add.at(change, start[some], 1)
        np.add.at(change, stop[some], -1)
    if count.sum() > MOST_VISITS:
        return None
    alike, gaps = len(np.unique(begin[count > 0])) < 2, bool((np.cumsum(change)[:-1] == 0).any())
    return Order(queries, segments, n_q, n_k, float(count.mean()), int(count.max()), alike, gaps)
