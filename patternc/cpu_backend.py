"""`backend="cpu"`: torch operations over the exact layout (see `patternc.cpu`), on the tensors' own device."""

from __future__ import annotations

from patternc import cpu
from patternc.args import Bound
from patternc.layout import Layout, layout

TILE = (64, 64)
MOST_LENGTHS = 16  # lengths whose layouts are kept


def layout_of(compiled, bound: Bound) -> Layout:
    """The exact layout of a call; kept where nothing but the sizes decides it."""
    numbers = (bound.q_start, *bound.values.values())
    if not all(isinstance(x, int) for x in numbers):
        return layout(compiled.exact, bound, TILE)
    kept = compiled.state.setdefault("layouts", {})
    key = (bound.n_q, bound.n_k, bound.heads, bound.batch, *numbers)
    if key not in kept:
        if len(kept) >= MOST_LENGTHS:
            kept.pop(next(iter(kept)))
        kept[key] = layout(compiled.exact, bound, TILE)
    return kept[key]


def forward(compiled, q, k, v, scale: float, bound: Bound):
    return cpu.forward(q, k, v, layout_of(compiled, bound), scale)


def backward(compiled, dout, dlse, q, k, v, out, lse, scale: float, bound: Bound):
    return cpu.backward(dout, dlse, q, k, v, out, lse, layout_of(compiled, bound), scale)
