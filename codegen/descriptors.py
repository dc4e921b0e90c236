"""Host side of the descriptor variants: which tensors Hopper's TMA can reach, and their descriptors."""

from __future__ import annotations

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from patternc.orders.boxes import BoxAxis


def reachable(x: torch.Tensor) -> bool:
    """Whether a descriptor can be made of a [B, heads, n, d] tensor: its address, rows and strides are multiples of 16 bytes."""
    steps = [x.shape[3], *(x.stride(axis) for axis in range(3) if x.shape[axis] > 1)]
    return x.numel() > 0 and x.data_ptr() % 16 == 0 and x.stride(3) == 1 and all(s > 0 and s * x.element_size() % 16 == 0 for s in steps)


def describe(x: torch.Tensor, rows: int, width: int, variant: str) -> TensorDescriptor:
    """A descriptor for tiles of [rows, width].

    Args:
        variant: "descriptors" (any strides that are `reachable`) or "rows" (a contiguous tensor as one list of rows).
    """
    b, heads, count, d = x.shape
    if variant == "rows":
        return TensorDescriptor(x, [b * heads * count, d], [d, 1], [rows, width])
    unit = d  # strides of axes of one entry are never used, but must be valid
    strides = [x.stride(axis) if x.shape[axis] > 1 else unit for axis in range(3)]
    return TensorDescriptor(x, [b, heads, count, d], [*strides, 1], [1, 1, rows, width])


def describe_box(x: torch.Tensor, axis: BoxAxis, rows: int, width: int) -> TensorDescriptor:
    """A descriptor of [B, heads, tied digit, free digit, d] for tiles of [rows, width] along the free digit (`BoxAxis.one_digit`)."""
    order, digits = axis.order, (*axis.tied, *axis.parts[0].digits)
    sizes = [order.extents[i] or x.shape[2] // order.strides[0] for i in digits]
    plain = describe(x, rows, width, "descriptors")
    steps = [order.strides[i] * plain.strides[2] for i in digits]
    return TensorDescriptor(x, [*plain.shape[:2], *sizes, plain.shape[3]], [*plain.strides[:2], *steps, 1], [1, 1, 1, rows, width])


def moved(pattern, x: torch.Tensor):
    """The descriptor, Triton's or Gluon's, of another tensor of the same layout, without checking it again."""
    out = object.__new__(type(pattern))
    out.__dict__.update(pattern.__dict__)
    out.base = x
    return out
