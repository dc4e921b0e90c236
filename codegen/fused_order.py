"""In which order the programs of the fused backward (`fused.py`) add to dq: tables that are made once for a plan and its lengths.

A program has a tile of keys, and adds to dq of every tile of queries that it visits.  Numbers are rounded where they are added, so the
order must not depend on which program is faster: each waits, at each tile of queries, for those that are dealt before it.  Programs are
dealt the last keys first.  So nobody waits for a program that has not begun, and under causal patterns, where all go through queries from
their own positions on, hardly anybody waits at all: the program of the keys after one's own is at the next tile already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from patternc.visits import Segment

QUERIES, KEYS = 64, 128  # of a tile
MOST_VISITS = 1 << 22  # that tables are made for: 32 MiB of them


@dataclass(frozen=True, eq=False)
class Order:
    """What programs read on a device.

    Attributes:
        first: int32 [key tiles + 1], where the entries of a key tile begin.
        entries: int32 [entries + 1, 2], for each visit twice the tile of queries, plus 1 where it is masked, and how many programs add to this
            tile before; the last one is read and not used.
        visits, most: how many entries a key tile has, on average and at most.
        alike: all key tiles begin with the same tile of queries.
        gaps: some tile of queries is in none.
    """

    first: torch.Tensor
    entries: torch.Tensor
    visits: float
    most: int
    alike: bool
    gaps: bool

    def to(self, device: torch.device) -> Order:
        return replace(self, first=self.first.to(device), entries=self.entries.to(device))


def order_of(segments: Iterable[Segment], n_q: int, n_k: int) -> Order | None:
    """The order for tiles of KEYS keys, each with segments of tiles of QUERIES queries (`visits.formula_segments`); None where heads or batch
    rows differ, or where tables would be long."""
    rows, segments = -(-n_k // KEYS), list(segments)
    if any(s.start.shape[:2] != (1, 1) for s in segments) or sum(int(s.count.sum()) for s in segments) > MOST_VISITS:
        return None
    ragged = rows - 1 if n_k % KEYS else rows  # keys that do not exist are masked
    none = np.zeros(0, np.int64)
    key, query, masked = [none], [none], [none]
    for s in segments:
        start, count = s.start.ravel(), np.maximum(s.stop - s.start, 0).ravel()
        own = np.repeat(np.arange(rows), count)
        key.append(own)
        query.append(np.arange(len(own)) + np.repeat(start - (np.cumsum(count) - count), count))
        masked.append(np.where(own >= ragged, 1, int(not s.full)))
    key, query, masked = map(np.concatenate, (key, query, masked))
    in_turn = np.lexsort((-key, query))
    first_of = np.searchsorted(query[in_turn], query[in_turn])
    before = np.empty(len(key), np.int64)
    before[in_turn] = np.arange(len(key)) - first_of
    entries = np.stack([2 * query + masked, before], 1)[np.lexsort((query, key))]
    first = np.searchsorted(np.sort(key), np.arange(rows + 1))
    padded = np.concatenate([entries, np.zeros((1, 2), np.int64)])
    tables = (torch.from_numpy(x.astype(np.int32)) for x in (first, padded))
    alike, gaps = len(np.unique(padded[first[:-1], 0] // 2)) == 1, len(np.unique(query)) < -(-n_q // QUERIES)
    return Order(*tables, len(key) / rows, int(np.diff(first).max()), alike, gaps)
