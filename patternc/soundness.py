"""What the analyses promise, as checks against the dense meaning: for the fuzzer and for tests, at sizes where n x n is small."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from patternc.args import bind
from patternc.errors import InternalError
from patternc.expr.pattern import Pattern
from patternc.layout import Layout, layout
from patternc.plan import make_plan
from patternc.visits import visits


@dataclass(frozen=True)
class Example:
    """One pattern at one length.

    Attributes:
        tile: rows and columns of a tile, (q, k).
        args: the pattern's runtime args.
    """

    pattern: Pattern
    n_q: int
    n_k: int
    heads: int = 1
    batch: int = 1
    tile: tuple[int, int] = (16, 16)
    q_start: object = None
    args: dict = field(default_factory=dict)

    def bind(self):
        return bind(self.pattern, self.args, self.n_q, self.n_k, self.heads, self.batch, self.q_start)

    def dense(self) -> np.ndarray:
        """bool [batch, heads, n_q, n_k]."""
        mask = self.pattern.dense(self.n_q, self.n_k, self.heads, self.batch, q_start=self.q_start, **self.args)
        return np.broadcast_to(mask.numpy(), (self.batch, self.heads, self.n_q, self.n_k))

    def describe(self) -> str:
        sizes = f"n_q={self.n_q}, n_k={self.n_k}, heads={self.heads}, batch={self.batch}, q_start={_shown(self.q_start)}, tile={self.tile}"
        lines = [f"pattern  {self.pattern}", f"sizes    {sizes}"]
        return "\n".join(lines + [f"arg      {name} = {_shown(value)}" for name, value in self.args.items()])


def _shown(value) -> str:
    return repr(value.tolist()) if hasattr(value, "tolist") else repr(value)


def check(example: Example) -> None:
    """All checks of one example.  Raises InternalError, naming what is wrong."""
    check_text(example.pattern)
    bound, dense = example.bind(), example.dense()
    plan = make_plan(example.pattern)
    for transposed, axis in ((False, plan.forward), (True, plan.transposed)):
        direction = "k tiles over queries" if transposed else "q tiles over keys"
        check_layout(layout(example.pattern, bound, example.tile, transposed), dense, f"layout, {direction}", transposed)
        check_layout(layout(example.pattern, bound, example.tile, transposed, count=True), dense, f"counting layout, {direction}", transposed)
        check_visits(example, bound, axis, dense, transposed, f"{axis.kind} plan, {direction}")


def check_text(p: Pattern) -> None:
    """`parse(str(p)) is p`."""
    from patternc.parsing import parse
    from patternc.printing import named_data

    if parse(str(p), **named_data(p)) is not p:
        raise InternalError("the printed pattern parses to another one", typed=str(p))


def block_counts(mask: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Allowed pairs, and all pairs, of every tile of a mask [n_r, n_c]: two int arrays [row tiles, column tiles]."""
    padded_shape = -(-mask.shape[0] // rows) * rows, -(-mask.shape[1] // columns) * columns

    def count(x):
        padded = np.zeros(padded_shape, np.int64)
        padded[: x.shape[0], : x.shape[1]] = x
        return padded.reshape(padded_shape[0] // rows, rows, padded_shape[1] // columns, columns).sum((1, 3))

    return count(mask), count(np.ones(mask.shape, bool))


def check_layout(found: Layout, dense: np.ndarray, what: str, transposed: bool = False) -> None:
    """Empty tiles hold no pair and full tiles all of theirs; with `exact`, partial tiles hold some and not all; pairs are counted right."""
    seen = np.zeros(dense.shape[:2], np.int64)
    rows, columns = found.tile[::-1] if transposed else found.tile
    for group in found.groups:
        kinds = group.tiles.kinds()
        for b in group.batch:
            for h in group.heads:
                seen[b, h] += 1
                mask = dense[b, h].T if transposed else dense[b, h]
                allowed, area = block_counts(mask, rows, columns)
                _expect(kinds.shape == allowed.shape, what, f"has {kinds.shape} tiles instead of {allowed.shape}")
                _expect(not allowed[kinds == 0].any(), what, "calls a tile empty that holds an allowed pair")
                _expect((allowed == area)[kinds == 2].all(), what, "calls a tile full that is not")
                if group.tiles.exact:
                    _expect((allowed > 0)[kinds == 1].all(), what, "says exact, and keeps an empty tile")
                    _expect((allowed < area)[kinds == 1].all(), what, "says exact, and masks a full tile")
                if group.tiles.pairs is not None:
                    _expect(group.tiles.pairs == mask.sum(), what, f"counts {group.tiles.pairs} pairs instead of {mask.sum()}")
    _expect((seen == 1).all(), what, "does not cover every head and batch row once")


def check_visits(example: Example, bound, axis, dense: np.ndarray, transposed: bool, what: str) -> None:
    """Visited tiles cover all allowed pairs, full ones are full, no tile is visited twice, and the totals are right."""
    rows, columns = example.tile[::-1] if transposed else example.tile
    found = visits(example.pattern, axis, bound, (rows, columns), transposed)
    if found.segments is None:
        return  # lists come from the layout, which is checked by itself
    pairs = full_tiles = partial_tiles = 0
    for b in range(example.batch):
        for h in range(example.heads):
            mask = dense[b, h].T if transposed else dense[b, h]
            allowed, area = block_counts(mask, rows, columns)
            times, full = np.zeros(allowed.shape, int), np.zeros(allowed.shape, bool)
            for segment in found.segments:
                batches, heads, _ = segment.start.shape
                at = b % batches, h % heads
                _expect(((segment.stop <= allowed.shape[1]) | (segment.count == 0)).all(), what, "leaves the columns")
                for tile in range(allowed.shape[1]):
                    held = segment.holds(tile)[at]
                    times[:, tile] += held
                    full[:, tile] |= held & segment.full
            _expect((times <= 1).all(), what, "visits a tile twice")
            _expect(not allowed[times == 0].any(), what, "does not visit an allowed pair")
            _expect((allowed == area)[full].all(), what, "leaves out the mask of a tile that is not full")
            pairs += int(area[times > 0].sum())
            full_tiles += int(full.sum())
            partial_tiles += int((times > 0).sum() - full.sum())
    totals, wanted = (found.pairs, found.full_tiles, found.partial_tiles), (pairs, full_tiles, partial_tiles)
    _expect(totals == wanted, what, f"counts (pairs, full, partial) = {totals} instead of {wanted}")


def _expect(ok, what: str, problem: str) -> None:
    if not ok:
        raise InternalError(f"{what}: {problem}")
