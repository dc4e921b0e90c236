"""The runtime parameters of a kernel that a call decides: where queries start, bounds, args and tables."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from patternc.args import Bound
from patternc.balance import Tiles
from patternc.choices import Listed
from patternc.codegen.bounds import FLAG_PARAMETERS, LIST_PARAMETERS, SHARED_PARAMETERS, TABLE_PARAMETERS
from patternc.codegen.configs import Config
from patternc.codegen.device import kept_on
from patternc.codegen.dispatch import renamed
from patternc.codegen.generated import Kernel
from patternc.codegen.uses import Array


@dataclass(frozen=True)
class TileLists:
    """The tiles that a "list" plan visits: int32 tensors on the kernels' device.

    Attributes:
        group: [H], which row of the pointers a query head uses.
        partial_ptr, full_ptr: [groups, row tiles + 1], where a row tile's entries begin in `partial` and `full`.
        partial, full: column tiles, with one more entry at the end.
        counts: on the host, how many they are for each row tile (`balance.Tiles`), where a schedule may be asked for.
    """

    group: torch.Tensor
    partial_ptr: torch.Tensor
    partial: torch.Tensor
    full_ptr: torch.Tensor
    full: torch.Tensor
    counts: Tiles | None = None


@dataclass(frozen=True)
class ChoiceTables:
    """What the runs of a "formula" plan choose by: int32 tensors on the kernels' device, None where nothing needs them.

    Attributes:
        flags: [heads or 1, flagged runs, row tiles], `choices.kinds` of their conditions on the row.
        shared: [heads or 1, 6, column tiles + 1], `choices.tile_lists` of the filler's columns.
    """

    flags: torch.Tensor | None
    shared: torch.Tensor | None


def runtime_values(call, kernel: Kernel, config: Config, device: torch.device) -> dict:
    """Parameters by name, for a `launch.Call` and the configuration in use."""
    if kernel.axis is None:
        return {}
    if kernel.groups:
        parts = zip(kernel.groups, call.groups)
        return {name: x for i, (part, own) in enumerate(parts) for name, x in renamed(i, part, runtime_values(own, part, config, device)).items()}
    return argument_values(call, kernel.scalars, kernel.arrays, device) | _bounds(call, kernel, config)


def argument_values(call, scalars, arrays, device: torch.device) -> dict:
    """Parameters by name for what a mask reads; `call` has `q_start` and `args` as `launch.Call` has them."""
    values = _value("q_start_value", "q_start_stride", call.q_start)
    for name in scalars:
        values |= _value(f"value_of_{name}", f"stride_of_{name}", call.args[name])
    for array in arrays:
        values |= _array(array, call, device)
    return values


def prepared_args(bound: Bound, device: torch.device) -> Bound:
    """The normal form of a call's args on its device: a forward and its backward get the same `Bound`."""
    if device not in bound.kept:
        bound.kept[device] = bound.torch(device)
    return bound.kept[device]


def _value(parameter: str, stride: str, value) -> dict:
    """A scalar parameter: a number, or a tensor and its batch stride."""
    if isinstance(value, torch.Tensor):
        return {parameter: value.contiguous(), stride: 0 if value.shape[0] == 1 else 1}
    return {parameter: max(-(2**30), min(2**30, int(value))), stride: 0}


def _array(array: Array, call, device: torch.device) -> dict:
    if array.static:
        return {array.parameter: _table(array.source, array.kind, device)}
    x = call.args[array.source]
    x = x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.contiguous()
    stride = 0 if x.shape[0] == 1 else x.stride(0)
    return {array.parameter: x, f"stride_of_{array.source}": stride, **dict(zip(array.sizes, x.shape[1:]))}


_tables: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _table(table, kind: str, device: torch.device) -> torch.Tensor:
    """A static table, or the mask of its positions, on a device; made once."""
    made = _tables.setdefault(table, {})
    if (kind, device) not in made:
        data = torch.from_numpy(table.data.copy())
        if kind == "member":
            mask = torch.zeros(max(0, int(data.max())) + 1, dtype=torch.uint8)
            mask[data[data >= 0]] = 1
            made[kind, device] = kept_on(mask, device)
        else:
            made[kind, device] = kept_on(data.to(torch.int32), device)
    return made[kind, device]


def box_constants(boxes, transposed: bool) -> dict:
    """The extents of boxes of rows, which are keys when transposed, and of the boxes of columns of every part."""
    row, column = "NM" if transposed else "MN"
    out = {f"{row}_{i}": extent for i, extent in enumerate(boxes.rows)}
    for number, (box, offset) in enumerate(zip(boxes.columns, boxes.offset), 1):
        suffix = "" if number == 1 else str(number)
        out |= {f"{column}{suffix}_{i}": extent for i, extent in enumerate(box)} | {f"OFFSET{suffix}": offset}
    return out


def _bounds(call, kernel: Kernel, config: Config) -> dict:
    axis = kernel.axis
    if axis.kind == "boxes":
        return {}
    listed = axis.filler is not None and isinstance(axis.filler.columns, Listed)
    if axis.kind == "formula" and not axis.flagged and not listed:
        return {}
    direction = "transposed" if kernel.name == "backward_dkdv" else "forward"
    rows, cols = (config.block_n, config.block_m) if direction == "transposed" else (config.block_m, config.block_n)
    made = call.bounds(direction, rows, cols)
    if axis.kind == "list":
        fields = ("group", "partial_ptr", "partial", "full_ptr", "full")
        return {parameter: getattr(made, field) for parameter, field in zip(LIST_PARAMETERS, fields)}
    if axis.kind == "table":
        made = made.contiguous()
        return dict(zip(TABLE_PARAMETERS, (made, *(0 if made.shape[i] == 1 else made.stride(i) for i in (0, 1)))))
    values = _per_head(FLAG_PARAMETERS, made.flags) if axis.flagged else {}
    return values | (_per_head(SHARED_PARAMETERS, made.shared) if listed else {})


def _per_head(parameters: tuple[str, str], x: torch.Tensor) -> dict:
    return dict(zip(parameters, (x, 0 if x.shape[0] == 1 else x.stride(0))))
