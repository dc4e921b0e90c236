"""Tables of runs for runtime data: the projection on tensors, without waiting for their device.

Data-dependent bounds come from running extremes of the data: where the running maximum first reaches a value, no earlier
entry does.  For data that rise or fall (documents, padding) that is exact; for any other data it is still sound.
"""

from __future__ import annotations

import weakref

import torch

from patternc.analysis.project import Interval, Projector
from patternc.args import Bound
from patternc.expr.index import Index
from patternc.expr.node import roomy
from patternc.expr.pattern import Pattern
from patternc.expr.table import Table
from patternc.extremes import Ordered
from patternc.passes import Conjunct
from patternc.plan import conjuncts_of, ranked


class Tensors:
    """The algebra of tensors [B or 1, H or 1, row tiles or 1] for `Projector`; plain integers stay plain."""

    def __init__(self, row: str, bound: Bound, first: torch.Tensor, last: torch.Tensor, tile: int):
        self.row, self.bound, self.tile = row, bound, tile
        self.device = first.device
        self.first, self.last = first, last
        self.arrays: dict[str, Ordered] = {}

    def leaf(self, x: Index):
        name = x.args[0]
        if x.op == "arg":
            value = self.bound.values[name]
            value = value if isinstance(value, int) else value.long().view(-1, 1, 1)
            return value, value
        if name == self.row:
            return self.first, self.last
        numbers = {"n_q": self.bound.n_q, "n_k": self.bound.n_k}
        if name in numbers:
            return (numbers[name],) * 2
        size = self.bound.heads if name == "h" else self.bound.batch
        span = torch.arange(size, device=self.device).view((1, -1, 1) if name == "h" else (-1, 1, 1))
        return span, span

    def constant(self, value: int) -> int:
        return value

    def tensor(self, x) -> torch.Tensor:
        return x if isinstance(x, torch.Tensor) else torch.full((1, 1, 1), int(x), device=self.device)

    def minimum(self, a, b):
        return min(a, b) if isinstance(a, int) and isinstance(b, int) else torch.minimum(self.tensor(a), self.tensor(b))

    def maximum(self, a, b):
        return max(a, b) if isinstance(a, int) and isinstance(b, int) else torch.maximum(self.tensor(a), self.tensor(b))

    def at_most(self, a, b):
        return a <= b

    def both(self, a, b):
        return a & b

    def select(self, condition, a, b):
        if isinstance(condition, bool):
            return a if condition else b
        return torch.where(condition, self.tensor(a), self.tensor(b))

    def _data(self, x: Index) -> Ordered | None:
        """The sequences that a read or membership takes its values from; None if they are not one sequence a batch row."""
        source = x.args[0]
        if source.op == "table":
            key = source.order + x.op
            if key not in self.arrays:
                data = _on_device(source.args[0], self.device)
                if x.op == "member":
                    size = max(int(source.args[0].extremes[1]) + 1, self.bound.n_k, self.bound.n_q)
                    data = torch.zeros(size, dtype=torch.long, device=self.device).index_fill_(0, data, 1)
                self.arrays[key] = Ordered(data.view(1, -1)) if data.ndim == 1 else None
            return self.arrays[key]
        name = source.args[0]
        if name not in self.arrays:
            base, _, first_seen = name.partition("#")
            data = self.bound.values[base].long()
            if data.ndim == 3 and data.shape[0] == 1 and len(x.args) == 3 and x.args[1].op == "var" and x.args[1].args[0] == "b":
                data = data[0]
            self.arrays[name] = None if data.ndim != 2 else Ordered(ranks(data), rising=True) if first_seen else Ordered(data)
        return self.arrays[name]

    def read(self, x: Index, spans):
        if x.op == "inside":
            return 0, 1
        data = self._data(x)
        if data is None:
            if x.args[0].op == "table":
                return x.args[0].args[0].extremes
            given = self.bound.values[x.args[0].args[0]].long()
            few = self._few_entries(x, given, spans)
            values = given.flatten(1)[:, None, None] if few is None else few
            return values.amin(-1), values.amax(-1)
        subscript, (low, high) = (x.args[1] if x.op == "member" else x.args[-1]), spans[-1]
        low, high = self.tensor(low), self.tensor(high)
        own = subscript.op == "var" and subscript.args[0] == self.row
        least, most = self._span_of_row_tiles(data) if own else data.span(low, high)
        if x.op == "member":  # what is outside the set's sequence is no member
            least = torch.where((low < 0) | (high >= data.values.shape[-1]), 0, least)
        return least, most

    def _few_entries(self, x: Index, given: torch.Tensor, spans) -> torch.Tensor | None:
        """The entries [B', H', row tiles, few] that a row tile reads of a tensor where one subscript is `row // size` and the rest are points."""
        index, count = [], 1
        for s, (low, high), size in zip(x.args[1:], spans, given.shape[1:]):
            steps = torch.zeros(1, dtype=torch.long, device=self.device)
            if low is not high:
                if count > 1 or s.op != "div" or s.args[0].op != "var" or s.args[1].op != "const":
                    return None
                count = (self.tile - 2) // s.args[1].args[0] + 2
                steps = torch.arange(count, device=self.device)
            index.append(torch.minimum(self.tensor(low)[..., None] + steps, self.tensor(high)[..., None]).clamp(0, size - 1))
        batch = torch.arange(given.shape[0], device=self.device).view(-1, 1, 1, 1)
        return given[(batch, *index)] if given.numel() else None

    def _span_of_row_tiles(self, data: Ordered):
        """Exact extremes over each row tile."""
        size = data.values.shape[-1]
        positions = (self.first[..., None] + torch.arange(self.tile, device=self.device)).minimum(self.last[..., None]).clamp(max=size - 1)
        positions = positions[:, 0]  # [B or 1, row tiles, tile]
        if data.values.shape[0] == 1:
            values = data.values[0][positions]
        else:
            wide = positions.expand(data.values.shape[0], -1, -1)
            values = data.values.gather(1, wide.reshape(wide.shape[0], -1)).view(wide.shape)
        return values.amin(-1)[:, None], values.amax(-1)[:, None]

    def solve_read(self, x: Index, low, high, inner: bool) -> Interval | None:
        data = self._data(x)
        if data is None or (x.op == "member" and not inner and not (isinstance(low, int) and low >= 1) and self._may_leave(x.args[1], data)):
            return None
        low, high = (None if low is None else self.tensor(low)), (None if high is None else self.tensor(high))
        return data.within(low, high) if inner else data.outside(low, high)

    def _may_leave(self, subscript: Index, data: Ordered) -> bool:
        """Whether a subscript in the column variable may lie outside the sequence, where nothing is a member."""
        if subscript.op != "var":
            return True
        start = 0 if subscript.args[0] == "k" else self.bound.q_start
        count = self.bound.n_k if subscript.args[0] == "k" else self.bound.n_q
        return not isinstance(start, int) or start + count > data.values.shape[-1]


_static: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _on_device(table: Table, device: torch.device) -> torch.Tensor:
    """A static table's entries; copied to a device once, so that captured calls need no copy from the host."""
    copies = _static.setdefault(table, {})
    if device not in copies:
        copies[device] = torch.from_numpy(table.data.copy()).to(device)
    return copies[device]


def ranks(ids: torch.Tensor) -> torch.Tensor:
    """Every id [B', n] replaced by the position of its first occurrence."""
    order = ids.sort(dim=-1, stable=True).indices
    grouped = ids.gather(-1, order)
    fresh = torch.ones_like(grouped, dtype=torch.bool)
    fresh[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    place = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    group_start = torch.where(fresh, place, 0).cummax(-1).values
    return torch.empty_like(ids).scatter_(-1, order, order.gather(-1, group_start))


def runtime_conjuncts(lowered: Pattern) -> list[Conjunct] | None:
    """What `run_table` projects: the conjuncts of a lowered pattern, ids replaced by their ranks; None if there are too many."""
    return conjuncts_of(ranked(lowered))


@roomy
def run_table(conjuncts: list[Conjunct] | None, column: str, bound: Bound, tile: int) -> torch.Tensor:
    """The runs of every row tile: what the formulas of `plan.Run` would say, from the data.

    Args:
        conjuncts: from `runtime_conjuncts`.
        column: "k" for q tiles, "q" for k tiles.
        bound: sizes and args as torch tensors on the device (`Bound.torch`).
        tile: rows of a tile.
    Returns:
        int32 [B', H', row tiles, runs, 4]: lo, hi, inner_lo, inner_hi, clipped to the columns; B' and H' are 1 where nothing
        depends on them.
    """
    device = next((v.device for v in (*bound.values.values(), bound.q_start) if isinstance(v, torch.Tensor)), torch.device("cpu"))
    start = bound.q_start if isinstance(bound.q_start, int) else bound.q_start.long().view(-1, 1, 1)
    rows, row = (bound.n_q, "q") if column == "k" else (bound.n_k, "k")
    base = start if row == "q" else 0
    tiles = torch.arange(-(-rows // tile), device=device).view(1, 1, -1) * tile
    first = tiles + base
    end = base + rows - 1
    last = (first + tile - 1).clamp(max=end) if isinstance(end, int) else torch.minimum(first + tile - 1, end)
    if column == "k":
        column_first, column_last = 0, bound.n_k - 1
    else:
        column_first, column_last = start, start + bound.n_q - 1
    algebra = Tensors(row, bound, first, last, tile)
    projector = Projector(column, algebra)
    # Where the device alone knows the first position, queries may lie beyond the tensors that are read there: no tile of theirs is full.
    sure = None if isinstance(start, int) else (last < bound.n_k if column == "k" else start + bound.n_q <= bound.n_k)
    columns = []
    for projection in [projector.project(c) for c in conjuncts] if conjuncts else [None]:
        if projection is None:  # nothing is allowed, or there are too many conjuncts to tell
            nothing = algebra.tensor(column_first) - 1
            bounds = [column_first, column_last if conjuncts is None else nothing, column_first, nothing]
        else:
            bounds = []
            every = sure if projection.every is None else projection.every if sure is None else algebra.both(projection.every, sure)
            for interval, condition in ((projection.outer, projection.some), (projection.inner, every)):
                low = column_first if interval.low is None else algebra.maximum(interval.low, column_first)
                high = column_last if interval.high is None else algebra.minimum(interval.high, column_last)
                if interval.empty:
                    high = algebra.tensor(low) - 1
                bounds += [low, high if condition is None else algebra.select(condition, high, algebra.tensor(low) - 1)]
        columns.append(torch.stack(torch.broadcast_tensors(*(algebra.tensor(b) for b in bounds)), -1))
    shape = torch.broadcast_shapes(*(c.shape for c in columns), (1, 1, tiles.shape[-1], 4))
    return torch.stack([c.expand(shape) for c in columns], -2).to(torch.int32)
