"""Masks of partial tiles, one for each class of tiles, and the choice of heads and batch rows that share a set of tiles."""

from __future__ import annotations

import functools
import weakref

import numpy as np
import torch

from patternc.analysis.classes import group as group_by_columns, shape_columns
from patternc.analysis.evaluate import evaluate
from patternc.analysis.grid import Grid
from patternc.analysis.runs import members
from patternc.expr.pattern import Pattern
from patternc.layout import Group

KEPT = 1 << 25  # pairs of masks that are kept between calls; beyond, masks are evaluated when they are used

_of_group: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class TileMasks:
    """The masks of the partial tiles of one group of a layout.

    Attributes:
        keys: the tile keys of the partial tiles, sorted.
        of: the class of each; equal classes have equal masks.
        examples: the tile key of one tile of each class.
    """

    def __init__(self, group: Group):
        self.pattern: Pattern = group.pattern
        self.grid: Grid = group.tiles.grid
        self.keys = members(group.tiles.partial)
        first, self.of = group_by_columns(shape_columns(self.pattern, self.grid.boxes(self.keys), len(self.keys)), len(self.keys))
        self.examples = self.keys[first]
        self._kept: dict[torch.device, torch.Tensor] = {}

    @staticmethod
    def of_group(group: Group) -> TileMasks:
        """The masks of a group, made once as long as the group lives."""
        if group not in _of_group:
            _of_group[group] = TileMasks(group)
        return _of_group[group]

    def classes(self, keys: np.ndarray) -> np.ndarray:
        """The classes of partial tiles given by their keys."""
        return self.of[np.searchsorted(self.keys, keys)]

    def masks(self, classes: np.ndarray, device) -> torch.Tensor:
        """bool [len(classes), bm, bn] on `device`; false beyond the ragged edge of the last tiles."""
        device = torch.device(device)
        if len(self.examples) * self.grid.row.tile * self.grid.column.tile > KEPT:
            return torch.from_numpy(self.evaluate(self.examples[classes])).to(device)
        if device not in self._kept:
            self._kept[device] = torch.from_numpy(self.evaluate(self.examples)).to(device)
        kept = self._kept[device]
        return kept[classes[0] : classes[0] + 1] if len(classes) == 1 else kept[torch.from_numpy(classes).to(device)]

    def evaluate(self, keys: np.ndarray) -> np.ndarray:
        """bool [len(keys), bm, bn] by looking at every pair of the tiles."""
        box = self.grid.boxes(keys)
        at, ok = {}, True
        for axis, name in enumerate((self.grid.row.name, self.grid.column.name)):
            first, last = (np.broadcast_to(v, keys.shape)[:, None] for v in box[name])
            x = first + np.arange(self.grid.axis(name).tile)
            # A ragged tile repeats its last row and column instead of leaving the sequence; the surplus is masked away.
            at[name], ok = np.expand_dims(np.minimum(x, last), 2 - axis), ok & np.expand_dims(x <= last, 2 - axis)
        return np.array(np.broadcast_to(evaluate(self.pattern, at) & ok, (len(keys), self.grid.row.tile, self.grid.column.tile)))


class Selection:
    """The part of a call's tensors that belongs to one group: views where the heads are all there, copies where not.

    With all heads a selection keeps the sharing of kv heads (`share` query heads each); with some, kv heads are repeated.
    """

    def __init__(self, group: Group, heads: int, kv_heads: int, batch: int):
        self.share = heads // kv_heads if len(group.heads) == heads else 1
        self.rows = None if len(group.batch) == batch else group.batch
        self.heads = None if len(group.heads) == heads else group.heads
        self.kv_heads = None if self.heads is None else tuple(h // (heads // kv_heads) for h in group.heads)

    @property
    def whole(self) -> bool:
        """Whether the group has every head and batch row: `queries` and `keys` are then views that may be written."""
        return self.rows is None and self.heads is None

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, n, ..] to [B', K, share, n, ..]."""
        return self._take(x, self.heads).unflatten(1, (-1, self.share))

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """[B, Hkv, n, ..] to [B', K, n, ..]."""
        return self._take(x, self.kv_heads)

    def put_queries(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """The inverse of `queries`: write into `whole`."""
        part = part.flatten(1, 2)
        if self.heads is None:
            self._take(whole, None).copy_(part)
        else:
            for b, row in enumerate(self.rows or range(whole.shape[0])):
                whole[row].index_copy_(0, self._index(self.heads, whole), part[b].to(whole.dtype))

    def add_keys(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """The transpose of `keys`: add to `whole`."""
        if self.kv_heads is None:
            self._take(whole, None).add_(part)
        else:
            for b, row in enumerate(self.rows or range(whole.shape[0])):
                for j, head in enumerate(self.kv_heads):
                    whole[row, head] += part[b, j]

    def _take(self, x, heads):
        if self.rows is not None:
            x = x[self.rows[0] : self.rows[-1] + 1] if _consecutive(self.rows) else x[self._index(self.rows, x)]
        if heads is not None:
            x = x[:, heads[0] : heads[-1] + 1] if _consecutive(heads) else x[:, self._index(heads, x)]
        return x

    @staticmethod
    def _index(numbers, like) -> torch.Tensor:
        return torch.tensor(numbers, device=like.device)


def _consecutive(numbers) -> bool:
    return all(b - a == 1 for a, b in zip(numbers, numbers[1:]))


def without_autocast(function):
    """`function`, whose first argument is a tensor, computes in the dtypes that it chooses: a backward may run under autocast."""

    @functools.wraps(function)
    def run(first, *rest, **options):
        if not torch.is_autocast_enabled(first.device.type):
            return function(first, *rest, **options)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *rest, **options)

    return run
