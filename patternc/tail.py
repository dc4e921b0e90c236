"""The linear tail with torch operations: features, norms, and masked linear attention over the tiles of R = D - E.

Nothing is subtracted.  Every k tile has a state `S_b = phi(K_b)^T V_b`; full tiles act through sums of states, runs from the
first tile or to the last one through running sums, other runs through a 0/1 matrix; partial tiles act through masked
products.  Rows and keys that R never uses are zeroed, and a tile that is full but for them counts as full.  Memory is
O(n F dv / tile), never O(n^2).
"""

from __future__ import annotations

import math

import torch

from patternc.derivatives import Function, Gradients
from patternc.errors import ShapeError
from patternc.layout import Layout
from patternc.masks import Selection, without_autocast
from patternc.tail_tiles import TailPlan, TailTiles

RMS_EPS = 1e-8  # axlearn's RATTENTION
FAVOR_EPS = 1e-4
STATES = 1 << 24  # elements of states of all tiles that are made at a time


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def result_of(dtype: torch.dtype) -> torch.dtype:
    """What kernels return a term's sums in, for inputs of a dtype: they may exceed what float16 holds."""
    return dtype if dtype in (torch.bfloat16, torch.float64) else torch.float32


def feature_map(feature, projection: torch.Tensor | None = None):
    """The map phi from [..., d] in any dtype to [..., F] in float32 (float64 from float64).

    Args:
        feature: a name of `patternc.expr.attention.FEATURES`, or a callable.
        projection: [m, d], the random features of favor+.
    """

    def softmax(x):
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)

    def favor(x):  # without a stabiliser: w.x - |x|^2/2 <= |w|^2/2, so exp does not overflow, and streaming stays exact
        x = x * x.shape[-1] ** -0.25
        w = projection.to(x)
        return (torch.exp(x @ w.mT - 0.5 * (x * x).sum(-1, keepdim=True)) + FAVOR_EPS) / math.sqrt(w.shape[0])

    def own(x):
        y = feature(x)
        if not isinstance(y, torch.Tensor) or y.shape[:-1] != x.shape[:-1]:
            got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ShapeError(f"the feature of a term maps {tuple(x.shape)} to {got}", fix="it may change the last axis only")
        return y

    maps = {"softmax": softmax, "elu+1": lambda x: torch.nn.functional.elu(x) + 1, "relu": torch.relu, "identity": lambda x: x, "favor+": favor}
    phi = own if callable(feature) else maps[feature]
    return lambda x: at_least_float32(phi(at_least_float32(x)))


def feature_gradient(feature: str, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The gradient of x for the gradient d of `feature_map(feature)(x)`: softmax, elu+1, relu or identity; for code below autograd."""
    if feature == "softmax":
        parts = ((y, dy) for y, dy in zip((x.softmax(-1), (-x).softmax(-1)), d.chunk(2, -1)))
        a, b = (y * (dy - (y * dy).sum(-1, keepdim=True)) for y, dy in parts)
        return a - b
    slopes = {"elu+1": lambda: torch.where(x > 0, 1.0, x.clamp(max=0).exp()), "relu": lambda: (x > 0).to(d), "identity": lambda: 1.0}
    return d * slopes[feature]()


def favor_features(head_dim: int) -> int:
    """The default number of random features, d ln d (Performer, arXiv 2009.14794)."""
    return max(1, round(head_dim * math.log(head_dim)))


def favor_projection(head_dim: int, num_features: int | None = None, seed: int = 0, device=None) -> torch.Tensor:
    """Orthogonal random features: float32 [m, head_dim], rows orthogonal in blocks, with the norms of normal vectors (Performer)."""
    m = favor_features(head_dim) if num_features is None else num_features
    generator = torch.Generator().manual_seed(seed)
    blocks = [torch.linalg.qr(torch.randn(head_dim, head_dim, generator=generator, dtype=torch.float64))[0] for _ in range(-(-m // head_dim))]
    norms = torch.randn(m, head_dim, generator=generator, dtype=torch.float64).norm(dim=-1, keepdim=True)
    return (torch.cat(blocks)[:m] * norms).float().to(device)


def rms_norm(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """RMSNorm over the last axis of [B, H, n, dv], in float32 at least; scale [H, dv] or None."""
    x = at_least_float32(x)
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + RMS_EPS)
    return y if scale is None else y * scale.to(y.dtype)[:, None]


def tail(term, q, k, v, linear, initial_state=None, projection=None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A term's sums [B, H, Nq, dv] in float32 (float64 for float64, bfloat16 where kernels sum in it), and what divides them or None.

    Args:
        term: the linear tail; see `patternc.reference.attention` for what it means.
        q: [B, H, Nq, d].  k: [B, Hkv, Nk, d].  v: [B, Hkv, Nk, dv].
        linear: `linear(feature, phi, q, k, v, sums)` gives the sums of (phi(q) . phi(k)) v over the pairs of R and, where
            asked, those of the weights alone [B, H, Nq], else None: see `by_features`, `patternc.tail_runtime.by_kernels`.
        initial_state: [H, F, dv], of `norm="denominator"` [H, F, dv + 1].
        projection: [m, d] of favor+.
    """
    phi = feature_map(term.feature, projection)
    y, total = linear(term.feature, phi, q, k, v, term.norm == "denominator")
    if initial_state is not None:
        y = at_least_float32(y)
        more = phi(q).to(y.dtype) @ initial_state.to(y.dtype)
        y, total = y + more[..., : y.shape[-1]], total if total is None else total + more[..., -1]
    return y, total


def quotient(y: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Sums [.., dv] over the sums of their weights [..], 0 without weights."""
    some = (total != 0)[..., None]
    return torch.where(some, y / torch.where(some, total[..., None], 1.0), 0.0)


def by_features(apply):
    """`linear` of `tail` for an `apply(phi_q, phi_k, v)` that takes features, as `LinearAttention` does."""

    def linear(feature, phi, q, k, v, sums):
        v = at_least_float32(v)
        if sums:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column of the result is the sum of weights
        y = apply(phi(q).to(v.dtype), phi(k).to(v.dtype), v)
        return (y[..., :-1], y[..., -1]) if sums else (y, None)

    return linear


def _calls(layout: Layout, q, k, v, *more):
    """Yield the parts of every group that are treated at a time: group selection, slices, and its tiles."""
    if not (q.shape[0] and q.shape[2] and k.shape[2]):
        return
    for group in layout.groups:
        plan, part = TailPlan.of_group(group), Selection(group, q.shape[1], k.shape[1], q.shape[0])
        qs, ks, vs, rest = part.queries(q), part.keys(k), part.keys(v), [part.queries(x) for x in more]
        size = max(1, plan.columns * q.shape[-1] * v.shape[-1])
        heads = max(1, min(ks.shape[1], STATES // size))
        rows = max(1, STATES // (size * ks.shape[1])) if heads == ks.shape[1] else 1
        cells = [
            (slice(z, z + rows), slice(h, h + heads)) for z in range(0, ks.shape[0], rows) for h in range(0, ks.shape[1], heads)
        ]
        yield part, qs, ks, vs, ((cell, TailTiles(plan, qs[cell], ks[cell], vs[cell]), [x[cell] for x in rest]) for cell in cells)


@without_autocast
def linear_forward(phi_q, phi_k, v, layout: Layout) -> torch.Tensor:
    """`out(q) = sum over the layout's pairs of (phi_q . phi_k) v`, exactly 0 without keys.

    Args:
        phi_q: [B, H, Nq, F].  phi_k: [B, Hkv, Nk, F].  v: [B, Hkv, Nk, dv]; all of one float dtype.
    Returns:
        [B, H, Nq, dv].
    """
    out = phi_q.new_zeros(*phi_q.shape[:3], v.shape[-1])
    for part, qs, ks, _, calls in _calls(layout, phi_q, phi_k, v):
        result = qs.new_zeros(*qs.shape[:-1], v.shape[-1])
        for cell, call, _ in calls:
            result[cell] = call.uncut_rows(call.forward(), ks[cell].shape[1])
        part.put_queries(out, result)
    return out


@without_autocast
def linear_backward(d_out, phi_q, phi_k, v, layout: Layout):
    """Gradients of `linear_forward`: those of phi_q, phi_k and v."""
    dq, dk, dv = (torch.zeros_like(x) for x in (phi_q, phi_k, v))
    for part, qs, ks, vs, calls in _calls(layout, phi_q, phi_k, v, d_out):
        gq, gk, gv = (torch.zeros_like(x) for x in (qs, ks, vs))
        for cell, call, (d,) in calls:
            heads = ks[cell].shape[1]
            a, b, c = call.backward(call.rows(d))
            gq[cell] = call.uncut_rows(a, heads)
            gk[cell], gv[cell] = call.uncut_keys(b, heads), call.uncut_keys(c, heads)
        part.put_queries(dq, gq)
        part.add_keys(dk, gk)
        part.add_keys(dv, gv)
    return dq, dk, dv


class LinearAttention(Function):
    """`linear_forward` and `linear_backward` for autograd."""

    @staticmethod
    def forward(ctx, phi_q, phi_k, v, layout: Layout, given: tuple = ()):
        """`given`: tensors of args, as `Bound.given`."""
        ctx.save_for_backward(phi_q, phi_k, v, *given)
        ctx.layout = layout
        return linear_forward(phi_q, phi_k, v, layout)

    @staticmethod
    def backward(ctx, d_out):
        layout = ctx.layout
        return *Gradients.apply(lambda *tensors: linear_backward(*tensors, layout), d_out, *ctx.saved_tensors[:3]), None, None
