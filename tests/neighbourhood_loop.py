"""Neighbourhood attention by its definition in words, as loops over coordinates; no closed form of the package is used.

Along one axis, positions of the same residue modulo `dilation` form a group, and a query sees keys of its own group only.
The members of a group are cut, in order, into strides of `stride` members (the last may be shorter).  All queries of a
stride share the window of one leader: its middle member (the later one of two), or its last member on a causal axis.
The window is the `kernel` members nearest to the leader, and the earlier of two at the same distance; so at a border it
moves inward and keeps its size.  On a causal axis only members up to the leader count, so it shrinks at the beginning, and
keys after the query itself are hidden.  With several axes a pair is allowed if every axis allows it.
"""

from itertools import product

import torch


def axis(length: int, kernel: int, dilation: int, stride: int, causal: bool) -> set[tuple[int, int]]:
    """The allowed pairs (query, key) of positions on one axis."""
    pairs = set()
    for residue in range(min(dilation, length)):
        group = [x for x in range(length) if x % dilation == residue]
        if not 1 <= stride <= kernel <= len(group):
            raise ValueError(f"stride {stride}, kernel {kernel}, {len(group)} positions")
        for first in range(0, len(group), stride):
            together = group[first : first + stride]
            leader = together[-1] if causal or len(together) <= stride // 2 else together[stride // 2]
            candidates = [x for x in group if x <= leader] if causal else group
            window = sorted(candidates, key=lambda x: (abs(x - leader), x))[:kernel]
            pairs |= {(q, k) for q in together for k in window if k <= q or not causal}
    return pairs


def allowed(shape, kernel, dilation=1, stride=1, causal=False) -> torch.Tensor:
    """bool [n, n] over the positions of `shape` in row-major order; every parameter is one value or one for each axis."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    parameters = [p if isinstance(p, (tuple, list)) else (p,) * len(shape) for p in (kernel, dilation, stride, causal)]
    if any(len(p) != len(shape) for p in parameters):
        raise ValueError(f"{len(shape)} axes, parameters {parameters}")
    axes = [axis(*setting) for setting in zip(shape, *parameters)]
    positions = list(product(*map(range, shape)))
    return torch.tensor([[all(pair in pairs for pair, pairs in zip(zip(q, k), axes)) for k in positions] for q in positions])
