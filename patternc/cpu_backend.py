"""`backend="cpu"`: torch operations over the exact layout (see `patternc.cpu`), on the tensors' own device."""

from __future__ import annotations

from patternc import cpu
from patternc.args import Bound
from patternc.layout import Layout


def _tiles(compiled, bound: Bound) -> Layout:
    return cpu.layout_of(compiled.exact, bound, cpu.tile_of(bound.n_q, bound.n_k))


def forward(compiled, q, k, v, scale: float, bound: Bound, wide: bool):
    return cpu.forward(q, k, v, _tiles(compiled, bound), scale, cpu.compute_dtype(q.dtype) if wide else None)


def backward(compiled, dout, dlse, q, k, v, out, lse, scale: float, bound: Bound):
    return cpu.backward(dout, dlse, q, k, v, out, lse, _tiles(compiled, bound), scale)
