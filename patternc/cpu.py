"""The exact part with torch operations: the tiles of the layout, forward and backward, on any device and in any dtype.

Consecutive q tiles whose runs have the same shape are one batch.  Its keys are a view (no copy) where the runs of each tile
join and move on by a constant step, as windows do, and are gathered otherwise; masks touch partial tiles only, and tiles of
one class share theirs.  A row's softmax is done at once, so only lse is kept for the backward, which recomputes weights
(FlashAttention-2, arXiv 2307.08691).  Scores live for one batch of tiles at a time: `BUDGET` bounds them.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass

import numpy as np
import torch

from patternc.args import ArgUse, Bound, bind
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.layout import Group, Layout, layout
from patternc.masks import Selection, TileMasks
from patternc.tail import rms_norm, tail

BUDGET = 1 << 20  # scores in memory at a time, which should stay in a core's cache

_of_group: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive q tiles with the same number of keys and the same kinds of key tiles.

    Attributes:
        row, count: first row of queries (counted from 0, not a position) and number of q tiles.
        height, width: rows of a tile, keys of a tile.
        start, step: tile i has the keys `start + i*step .. + width - 1`; or
        keys: int64 [count, width], the keys where they do not join.
        partial: `(first key, number of keys, classes)` of each partial run; classes is [count or 1, key tiles].
    """

    row: int
    count: int
    height: int
    width: int
    start: int
    step: int
    keys: np.ndarray | None
    partial: tuple[tuple[int, int, np.ndarray], ...]


def batches_of(group: Group) -> list[Batch]:
    """The batches of one group, in the order of rows; q tiles without keys are in none."""
    if group not in _of_group:
        _of_group[group] = list(_batches(group))
    return _of_group[group]


def _batches(group: Group):
    tiles, masks = group.tiles, TileMasks.of_group(group)
    grid = tiles.grid
    row, start, stop, full = tiles.table
    first = np.searchsorted(row, np.arange(grid.row.tiles + 1))
    n, bn = grid.column.count, grid.column.tile
    joined = np.zeros(len(row), bool)  # whether a run touches the one before it in its row
    joined[1:] = (row[1:] == row[:-1]) & (start[1:] == stop[:-1])

    def shape(a: int):
        s = slice(first[a], first[a + 1])
        height = min(grid.row.tile, grid.row.count - a * grid.row.tile)
        ragged = bool(len(stop[s])) and stop[s][-1] == grid.column.tiles and n % bn
        return height, ragged, (stop[s] - start[s]).tobytes(), full[s].tobytes(), bool(joined[s][1:].all())

    shapes = [shape(a) for a in range(grid.row.tiles)]
    a = 0
    while a < grid.row.tiles:
        b, joins = a + 1, shapes[a][-1]
        while b < grid.row.tiles and shapes[b] == shapes[a]:
            if first[a] < first[a + 1] and joins:  # a view needs a constant step, which is not negative
                step = start[first[b]] - start[first[b - 1]]
                if step < 0 or (b > a + 1 and step != start[first[a + 1]] - start[first[a]]):
                    break
            b += 1
        if first[a] < first[a + 1]:
            yield _batch(masks, a, b, first, start, stop, full, shapes[a][0], joins)
        a = b


def _batch(masks: TileMasks, a: int, b: int, first, start, stop, full, height: int, joins: bool) -> Batch:
    grid = masks.grid
    n, bn = grid.column.count, grid.column.tile
    runs = range(first[a], first[a + 1])
    offsets = np.cumsum([0] + [min(stop[r] * bn, n) - start[r] * bn for r in runs])
    partial = []
    for j, r in enumerate(runs):
        if not full[r]:
            tile = np.arange(a, b)[:, None] * grid.width + start[first[a:b] + j][:, None] + np.arange(stop[r] - start[r])
            classes = masks.classes(tile)
            partial.append((int(offsets[j]), int(offsets[j + 1] - offsets[j]), classes[:1] if (classes == classes[0]).all() else classes))
    keys = None
    if not joins:
        spans = [[np.arange(start[r] * bn, min(stop[r] * bn, n)) for r in range(first[t], first[t + 1])] for t in range(a, b)]
        keys = np.stack([np.concatenate(s) for s in spans])
    step = int(start[first[a + 1]] - start[first[a]]) * bn if b > a + 1 else 0
    return Batch(a * grid.row.tile, b - a, height, int(offsets[-1]), int(start[first[a]]) * bn, step, keys, tuple(partial))


class _Piece:
    """Some q tiles of a batch, some heads, some rows of each tile: what one round of products works on."""

    def __init__(self, batch: Batch, tiles: slice, rows: slice, masks: TileMasks, device):
        self.batch, self.masks, self.rows, self.device = batch, masks, rows, device
        self.first, self.count = tiles.start, tiles.stop - tiles.start
        self.height = rows.stop - rows.start
        self.keys = None if batch.keys is None else torch.from_numpy(batch.keys[tiles]).to(device)

    def of_queries(self, x: torch.Tensor) -> torch.Tensor:
        """[Z, K, g, n, ..] to a view [count, Z, K, g, height, ..]."""
        b = self.batch
        x = x.narrow(3, b.row + self.first * b.height, self.count * b.height).unflatten(3, (self.count, b.height))
        return x[..., self.rows, :].movedim(3, 0) if x.ndim == 6 else x[..., self.rows].movedim(3, 0)

    def of_keys(self, x: torch.Tensor) -> torch.Tensor:
        """[Z, K, n, d] to [count, Z, K, width, d]: a view if the keys of a tile join."""
        b = self.batch
        if self.keys is not None:
            return x[:, :, self.keys].movedim(2, 0)
        z, heads, _, d = x.shape
        s0, s1, s2, s3 = x.stride()
        offset = x.storage_offset() + (b.start + self.first * b.step) * s2
        return x.as_strided((self.count, z, heads, b.width, d), (b.step * s2, s0, s1, s2, s3), offset)

    def add_keys(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """The transpose of `of_keys`: add [count, Z, K, width, d] to [Z, K, n, d]; tiles overlap, so one after the other."""
        b = self.batch
        for i in range(self.count):
            if self.keys is None:
                whole.narrow(2, b.start + (self.first + i) * b.step, b.width).add_(part[i])
            else:
                whole.index_add_(2, self.keys[i], part[i])

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """[count, Z, K, g, height, width], -inf where masked."""
        count, z, heads, share, height, d = q.shape
        s = torch.bmm((q * scale).reshape(-1, share * height, d), k.reshape(-1, k.shape[-2], d).mT)
        s = s.view(count, z, heads, share, height, -1)
        for offset, width, classes in self.batch.partial:
            chosen = classes if len(classes) == 1 else classes[self.first : self.first + self.count]
            mask = self.masks.masks(chosen.ravel(), self.device).unflatten(0, chosen.shape)
            mask = mask[:, :, self.rows].movedim(1, 2).flatten(2)[..., :width]  # [count or 1, height, width of the run]
            s[..., offset : offset + width].masked_fill_(~mask[:, None, None, None], -torch.inf)
        return s


def _pieces(group: Group, z: int, heads: int, share: int, device):
    """Yield `(slice of batch rows, slice of kv heads, piece)`, each with at most about `BUDGET` scores."""
    masks = TileMasks.of_group(group)
    for batch in batches_of(group):
        cell = share * batch.height * batch.width
        if cell * z * heads <= BUDGET:
            parts, rows, count = [(slice(0, z), slice(0, heads))], batch.height, max(1, BUDGET // (cell * z * heads))
        else:
            some = max(1, BUDGET // cell)
            parts = [(slice(i, i + 1), slice(j, min(j + some, heads))) for i in range(z) for j in range(0, heads, some)]
            rows, count = min(batch.height, max(1, BUDGET // (share * batch.width))), 1
        for t in range(0, batch.count, count):
            for r in range(0, batch.height, rows):
                piece = _Piece(batch, slice(t, min(t + count, batch.count)), slice(r, min(r + rows, batch.height)), masks, device)
                for part in parts:
                    yield *part, piece


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the dtype itself."""
    return dtype if dtype == torch.float64 else torch.float32


def forward(q, k, v, tiles: Layout, scale: float, out_dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over the layout's pairs.

    Args:
        q: [B, H, Nq, D].  k: [B, Hkv, Nk, D].  v: [B, Hkv, Nk, Dv]; any strides, any float dtype.
        tiles: the layout, not transposed.
        scale: of the scores.
        out_dtype: q's dtype by default.
    Returns:
        out [B, H, Nq, Dv] in `out_dtype`, and lse [B, H, Nq] in float32 (float64 for float64); 0 and -inf without keys.
    """
    dtype = compute_dtype(q.dtype)
    out = q.new_zeros(*q.shape[:3], v.shape[-1], dtype=out_dtype)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=dtype)
    for group in tiles.groups:
        part = Selection(group, q.shape[1], k.shape[1], q.shape[0])
        qs, ks, vs = part.queries(q), part.keys(k), part.keys(v)
        o, L = qs.new_zeros(*qs.shape[:-1], v.shape[-1], dtype=out_dtype), qs.new_full(qs.shape[:-1], -torch.inf, dtype=dtype)
        for z, h, piece in _pieces(group, *qs.shape[:3], q.device):
            kk, vv = (piece.of_keys(x[z, h]).to(dtype) for x in (ks, vs))
            s = piece.scores(piece.of_queries(qs[z, h]).to(dtype), kk, scale)
            top = s.amax(-1, keepdim=True)
            top.masked_fill_(top == -torch.inf, 0.0)
            weights = s.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True)
            y = torch.bmm(weights.flatten(3, 4).flatten(0, 2), vv.reshape(-1, *vv.shape[-2:])).view(*s.shape[:-1], -1)
            piece.of_queries(o[z, h]).copy_(y.div_(total.clamp_min(torch.finfo(dtype).tiny)))
            piece.of_queries(L[z, h]).copy_(total.log_().add_(top).squeeze(-1))
        part.put_queries(out, o)
        part.put_queries(lse, L)
    return out, lse


def backward(d_out, d_lse, q, k, v, out, lse, tiles: Layout, scale: float):
    """Gradients of `forward`.

    Args:
        d_out: gradient of out.  d_lse: gradient of lse, or None.
        out, lse: what `forward` returned; the rest as there.
    Returns:
        dq, dk, dv in the dtypes of q, k, v.
    """
    dtype = compute_dtype(q.dtype)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    delta = (d_out.to(dtype) * out.to(dtype)).sum(-1)
    if d_lse is not None:
        delta = delta - d_lse
    empty = lse == -torch.inf
    delta, lse = delta.masked_fill(empty, 0.0), lse.masked_fill(empty, 0.0)
    for group in tiles.groups:
        part = Selection(group, q.shape[1], k.shape[1], q.shape[0])
        qs, ds, ls, deltas = (part.queries(x) for x in (q, d_out, lse, delta))
        ks, vs = part.keys(k), part.keys(v)
        gq, gk, gv = torch.zeros_like(qs), ks.new_zeros(ks.shape, dtype=dtype), vs.new_zeros(vs.shape, dtype=dtype)
        for z, h, piece in _pieces(group, *qs.shape[:3], q.device):
            kk, vv = (piece.of_keys(x[z, h]).to(dtype) for x in (ks, vs))
            kk, vv = (x.reshape(-1, *x.shape[-2:]) for x in (kk, vv))
            qq, dd = (piece.of_queries(x[z, h]).to(dtype) for x in (qs, ds))
            s = piece.scores(qq, kk, scale)
            shape, flat = s.shape, (-1, s.shape[3] * s.shape[4])
            weights = s.sub_(piece.of_queries(ls[z, h])[..., None]).exp_().view(*flat, shape[-1])
            qq, dd = qq.reshape(*flat, qq.shape[-1]), dd.reshape(*flat, dd.shape[-1])
            ds_ = torch.bmm(dd, vv.mT).sub_(piece.of_queries(deltas[z, h]).reshape(*flat, 1)).mul_(weights)
            piece.of_queries(gq[z, h]).copy_(torch.bmm(ds_, kk).mul_(scale).view(*shape[:-1], -1))
            piece.add_keys(gk[z, h], torch.bmm(ds_.mT, qq).mul_(scale).view(*shape[:3], shape[-1], -1))
            piece.add_keys(gv[z, h], torch.bmm(weights.mT, dd).view(*shape[:3], shape[-1], -1))
        part.put_queries(dq, gq)
        part.add_keys(dk, gk)
        part.add_keys(dv, gv)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


class TiledAttention(torch.autograd.Function):
    """`forward` and `backward` for autograd; saves q, k, v, out and lse."""

    @staticmethod
    def forward(ctx, q, k, v, tiles: Layout, scale: float, out_dtype=None):
        out, lse = forward(q, k, v, tiles, scale, out_dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.tiles, ctx.scale = tiles, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse):
        q, k, v, out, lse = ctx.saved_tensors
        if d_out is None and d_lse is None:
            return (None,) * 6
        d_out = torch.zeros_like(out) if d_out is None else d_out
        return *backward(d_out, d_lse, q, k, v, out, lse, ctx.tiles, ctx.scale), None, None, None


def tile_of(n_q: int, n_k: int) -> tuple[int, int]:
    """Tiles of 64 keep the scores of a window in the cache; short sequences take smaller ones."""
    return (64, 64) if max(n_q, n_k) > 256 else (16, 16)


def tail_tile_of(n_q: int, n_k: int) -> tuple[int, int]:
    """States cost F * dv / tile per token, so larger tiles than the exact part's."""
    return (128, 128) if max(n_q, n_k) > 512 else (32, 32) if max(n_q, n_k) > 64 else (8, 8)


@functools.lru_cache(maxsize=64)
def _layout_without_data(pattern: Pattern, call: tuple, tile: tuple[int, int]) -> Layout:
    *sizes, start, numbers = call
    uses = {name: ArgUse(name, "scalar") for name, _ in numbers}
    return layout(pattern, Bound(*sizes, start, False, uses, dict(numbers)), tile)


def layout_of(pattern: Pattern, call: Bound, tile: tuple[int, int]) -> Layout:
    """The layout of a call; kept between calls unless tensors decide it."""
    if not isinstance(call.q_start, int) or not all(isinstance(value, int) for value in call.values.values()):
        return layout(pattern, call, tile)
    return _layout_without_data(pattern, (call.n_q, call.n_k, call.heads, call.batch, call.q_start, tuple(call.values.items())), tile)


def attention(
    spec: Pattern | Attention, q, k, v, args: dict | None = None, *, scale: float | None = None, q_start=None, check: bool = False,
    tail_q=None, tail_k=None, exact_scale=None, tail_scale=None, initial_state=None, projection=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `patternc.reference.attention` computes, over the tiles of the layout; the arguments are described there.

    Returns:
        out [B, H, Nq, Dv] in q's dtype, and lse [B, H, Nq] of the exact part in float32 (float64 for float64).
    """
    call = bind(spec, args or {}, q.shape[2], k.shape[2], q.shape[1], q.shape[0], q_start, q.device, check)
    exact, term = (spec.exact, spec.term) if isinstance(spec, Attention) else (spec, None)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tiles = layout_of(exact, call, tile_of(call.n_q, call.n_k))
    out, lse = TiledAttention.apply(q, k, v, tiles, scale, None if term is None else compute_dtype(q.dtype))
    if term is None:
        return out, lse
    rest = layout_of(all_of(spec.domain, negate(exact)), call, tail_tile_of(call.n_q, call.n_k))
    y = tail(term, q if tail_q is None else tail_q, k if tail_k is None else tail_k, v, rest, initial_state, projection)
    if term.norm == "rms":
        out, y = rms_norm(out, exact_scale), rms_norm(y, tail_scale)
    return (out + y).to(q.dtype), lse
