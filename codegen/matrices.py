"""Matrices [B, heads, n, width] as kernels take them: their strides, their copies where they must be, their results' memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Room:
    """How memory for a result is laid out."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(like: torch.Tensor, count: int, width: int, dtype: torch.dtype) -> Room:
        """For [B, heads, count, width], without gaps, its heads and rows as those of `like` lie."""
        b, heads, _, _ = like.shape
        strides = (width, heads * width) if side_by_side(like) else (count * width, width)
        return Room((b, heads, count, width), (heads * count * width, *strides, 1), dtype, like.device)

    def new(self) -> torch.Tensor:
        """Not initialised."""
        return torch.empty_strided(self.sizes, self.strides, dtype=self.dtype, device=self.device)


def empty(like: torch.Tensor, count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised [B, heads, count, width], as `Room.of` lays it out."""
    return Room.of(like, count, width, dtype).new()


def strides(x: torch.Tensor) -> list[int]:
    """Strides of the three outer axes; axes of one entry count as 0."""
    return [0 if x.shape[axis] == 1 else x.stride(axis) for axis in range(3)]
