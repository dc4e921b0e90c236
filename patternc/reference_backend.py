"""`backend="reference"`: dense masked attention in float64, for checking; O(n^2) memory.

The backward is written out, since registered operators run below autograd; `patternc.verify` uses autograd through
`patternc.reference` instead, so this file is checked too.
"""

from __future__ import annotations

import torch

from patternc import reference
from patternc.args import Bound


def forward(compiled, q, k, v, scale: float, bound: Bound, wide: bool):
    out, lse = reference.attention(compiled.exact, q, k, v, dict(bound.values), scale=scale, q_start=_start(bound))
    full = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out.to(full if wide else q.dtype), lse.to(full)


def _start(bound: Bound):
    return None if bound.default_start else bound.q_start


def backward(compiled, dout, dlse, q, k, v, out, lse, scale: float, bound: Bound):
    group = q.shape[1] // k.shape[1]
    mask = reference.mask_of(compiled.exact, bound, q.device)
    q64, dout = q.double(), dout.double()
    k64, v64 = (x.double().repeat_interleave(group, 1) for x in (k, v))
    weights = (q64 @ k64.mT * scale).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)  # nan: rows without keys
    delta = (dout * (weights @ v64)).sum(-1, keepdim=True)
    if dlse is not None:
        delta = delta - dlse.double()[..., None]
    scores = weights * (dout @ v64.mT - delta) * scale
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (scores.mT @ q64, weights.mT @ dout))
    return (scores @ k64).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
