"""The exact part with torch operations: the tiles of the layout, forward and backward, on any device and in any dtype.

A row's softmax is done at once over all its runs, so only lse is kept for the backward, which recomputes weights
(FlashAttention-2, arXiv 2307.08691).  Scores live for one piece of work at a time (see `patternc.batches`).
"""

from __future__ import annotations

import functools

import torch

from patternc.args import ArgUse, Bound
from patternc.batches import pieces
from patternc.expr.pattern import Pattern
from patternc.layout import Layout, layout
from patternc.masks import Selection, without_autocast


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, else the dtype itself."""
    return dtype if dtype == torch.float64 else torch.float32


@without_autocast
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
        o, L = part.queries(out), part.queries(lse)  # the results themselves if the group is whole
        if not part.whole:
            o, L = torch.zeros_like(o), torch.full_like(L, -torch.inf)
        for z, h, piece in pieces(group, *qs.shape[:3], q.device):
            kk, vv = (piece.of_keys(x[z, h]).to(dtype) for x in (ks, vs))
            s = piece.scores(piece.of_queries(qs[z, h]).to(dtype), kk, scale)
            top = s.amax(-1, keepdim=True)
            top.masked_fill_(top == -torch.inf, 0.0)
            weights = s.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True)
            y = torch.bmm(weights.flatten(3, 4).flatten(0, 2), vv.flatten(0, 2)).view(*s.shape[:-1], -1)
            piece.of_queries(o[z, h]).copy_(y.div_(total.clamp_min(torch.finfo(dtype).tiny)))
            piece.of_queries(L[z, h]).copy_(total.log_().add_(top).squeeze(-1))
        if not part.whole:
            part.put_queries(out, o)
            part.put_queries(lse, L)
    return out, lse


@without_autocast
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
        for z, h, piece in pieces(group, *qs.shape[:3], q.device):
            kk, vv = (piece.of_keys(x[z, h]).to(dtype) for x in (ks, vs))
            kk, vv = (x.flatten(0, 2) for x in (kk, vv))
            qq, dd = (piece.of_queries(x[z, h]).to(dtype) for x in (qs, ds))
            s = piece.scores(qq, kk, scale)
            shape, flat = s.shape, (kk.shape[0], s.shape[3] * s.shape[4])
            weights = s.sub_(piece.of_queries(ls[z, h])[..., None]).exp_().view(*flat, shape[-1])
            qq, dd = qq.reshape(*flat, qq.shape[-1]), dd.reshape(*flat, dd.shape[-1])
            ds_ = torch.bmm(dd, vv.mT).sub_(piece.of_queries(deltas[z, h]).reshape(*flat, 1)).mul_(weights)
            piece.of_queries(gq[z, h]).copy_(torch.bmm(ds_, kk).mul_(scale).view(*shape[:-1], kk.shape[-1]))
            piece.add_keys(gk[z, h], torch.bmm(ds_.mT, qq).mul_(scale).view(*shape[:3], shape[-1], kk.shape[-1]))
            piece.add_keys(gv[z, h], torch.bmm(weights.mT, dd).view(*shape[:3], shape[-1], dd.shape[-1]))
        part.put_queries(dq, gq)
        part.add_keys(dk, gk)
        part.add_keys(dv, gv)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


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
