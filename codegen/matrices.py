"""Matrices [B, heads, n, width] as kernels take them: their strides, their copies where they must be, their results' memory."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch

WIDEST_ROW_STRIDE = 2**22  # in elements: offsets within a tile are 32 bits wide


@lru_cache(maxsize=1)
def _warn_copy() -> None:
    warnings.warn("an input whose last stride is not 1 is copied at each call; make it contiguous once", stacklevel=4)


def in_rows(x: torch.Tensor, warn: bool = True) -> torch.Tensor:
    """`x` with unit last stride and a row stride that tiles can hold, copied if need be."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        if warn:
            _warn_copy()
        return x.contiguous()
    return x.contiguous() if x.stride(2) > WIDEST_ROW_STRIDE else x


def side_by_side(x: torch.Tensor) -> bool:
    """Whether the heads of a row lie beside each other, and not the rows of a head, with or without gaps: graphs close gaps."""
    return min(x.shape[1:3]) > 1 and 0 < x.stride(1) < x.stride(2)


def empty(like: torch.Tensor, count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised [B, heads, count, width], without gaps, its heads and rows as those of `like` lie."""
    b, heads, _, _ = like.shape
    if side_by_side(like):
        return torch.empty(b, count, heads, width, dtype=dtype, device=like.device).transpose(1, 2)
    return torch.empty(b, heads, count, width, dtype=dtype, device=like.device)


def strides(x: torch.Tensor) -> list[int]:
    """Strides of the three outer axes; axes of one entry count as 0."""
    return [0 if x.shape[axis] == 1 else x.stride(axis) for axis in range(3)]
