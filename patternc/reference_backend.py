"""`backend="reference"`: dense masked attention, for checking; O(n^2) memory, computed in float64."""

from __future__ import annotations

import torch

from patternc import reference
from patternc.args import Bound


def _given(bound: Bound) -> tuple[dict, object]:
    return dict(bound.values), None if bound.default_start else bound.q_start


def forward(compiled, q, k, v, scale: float, bound: Bound):
    args, start = _given(bound)
    out, lse = reference.attention(compiled.exact, q, k, v, args, scale=scale, q_start=start)
    return out.to(q.dtype), lse if q.dtype == torch.float64 else lse.float()


def backward(compiled, dout, dlse, q, k, v, out, lse, scale: float, bound: Bound):
    args, start = _given(bound)
    with torch.enable_grad():
        leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
        o, L = reference.attention(compiled.exact, *leaves, args, scale=scale, q_start=start)
        some = torch.isfinite(L)
        grads = torch.autograd.grad((o * dout.double()).sum() + (torch.where(some, L, 0.0) * dlse.double()).sum(), leaves)
    return tuple(g.to(x.dtype) for g, x in zip(grads, (q, k, v)))
