"""What launching a kernel needs beside addresses and runtime values, decided once for inputs of one layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from patternc.codegen import cache, configs, fused_launch, hopper, hopper_launch
from patternc.codegen.call import Call
from patternc.codegen.configs import Config
from patternc.codegen.descriptors import describe, describe_box, reachable
from patternc.codegen.device import has_tma, precision, shared_memory
from patternc.codegen.dispatch import named, ranges, renamed
from patternc.codegen.generated import Kernel, Source
from patternc.codegen.hopper_choice import dealt
from patternc.codegen.kernels import generate
from patternc.codegen.launches import Launch
from patternc.codegen.matrices import strides
from patternc.codegen.parameters import box_constants
from patternc.errors import BackendError
from patternc.orders.vectors import whole
from patternc.plan import Plan

_chosen: dict[tuple, Config] = {}  # configurations in use; one that does not fit is replaced by a smaller one
_launches: dict[tuple, Launch] = {}
MOST_LAUNCHES = 4096


def kept(call: Call, key: tuple, make: Callable[[], Launch]) -> Launch:
    """The launch of a key, else what is made; configurations that a call brings with it are not kept."""
    launch = None if call.configs else _launches.get(key)
    if launch is None:
        launch = make()
        if len(_launches) >= MOST_LAUNCHES:
            _launches.clear()
        if not call.configs:
            _launches[key] = launch
    return launch


def prepare(call: Call, name: str, matrices: dict[str, torch.Tensor], later: bool) -> Launch:
    """Decide variant, configuration, grid and constants for inputs of one layout."""
    if name == "backward":
        return fused_launch.prepare(call, matrices)
    fast = hopper_launch.takes(call, name, later, matrices)  # how the forward for Hopper is launched, None for the portable kernels
    variant = "hopper" if fast else call.variant if call.variant not in (None, "hopper") else _variant(matrices.values())
    if variant == "descriptors" and not _whole_periods(call, name, matrices):
        variant = "tile descriptors"
    source = hopper.generate(fast.lines.plan, fast.tile.narrow, fast.tile.consumers) if fast else generate(call.plan, variant, later)
    kernel = source.kernels[name]
    any_q, any_v = matrices.get("q"), matrices.get("v", matrices.get("do"))
    dtype = any_v.dtype
    d, dv = (any_q if any_q is not None else any_v).shape[3], any_v.shape[3]
    queries = matrices["q" if "q" in matrices else "o"]
    heads = queries.shape[1]
    kv_heads = matrices["k"].shape[1] if "k" in matrices else heads
    rows = matrices["k"] if name == "backward_dkdv" else queries
    config = fast.config if fast else call.configs.get(name) or _config(call, source, name, d, dv, dtype, any_v.device)
    if call.height is not None and name == "forward" and not fast and kernel.axis.kind in ("formula", "table", "list"):
        config = replace(config, block_m=min(config.block_m, call.height))
    count = whole(rows.shape[2]) if name == "backward_rows" else rows.shape[2]
    block = config.block_n if name == "backward_dkdv" else config.block_m
    align = math.gcd(16, d, dv, *(s for m in matrices.values() for s in strides(m)))
    constants = {
        "HEADS": heads, "GROUP": heads // kv_heads, "D": d, "DV": dv, "BLOCK_D": configs.padded(d), "BLOCK_DV": configs.padded(dv),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": config.stages, "PRECISION": precision(dtype), "ALIGN": align,
    }  # fmt: skip
    constants |= hopper.constants(d, heads, fast.tile, fast.lines.count) if fast else {}
    lines = fast.lines.count if fast else 1
    values = {"n_q": queries.shape[2] // lines}
    if kernel.axis is not None:
        values["n_k"] = matrices["k"].shape[2] // lines
    if lines > 1:
        values |= {"q_start_value": call.q_start // lines, "q_start_stride": 0}
    pointers, descriptors, counts = [], {}, []
    for number, (part, own) in enumerate(zip(kernel.groups or (kernel,), call.members(name))):
        mine, programs = dict(constants), lines * -(-count // (lines * block))
        if part.variant in ("boxes", "box descriptors"):
            boxes = own.boxes("transposed" if name == "backward_dkdv" else "forward", config.block_m, config.block_n)
            mine |= {**box_constants(boxes, name == "backward_dkdv"), "row_boxes": boxes.first_boxes}
            programs = boxes.programs
        described = part.variant not in ("pointers", "boxes")
        for matrix, x in matrices.items():
            if fast:
                descriptors |= hopper_launch.descriptors(kernel, matrix, x, fast)
            elif described:
                tall = config.block_n if matrix.rstrip("0") in ("k", "v", "dk", "dv") else config.block_m
                descriptors[named(number, part, f"{matrix}_desc")] = matrix, _description(x, part, tall)
            else:
                mine |= dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), (s // align for s in strides(x))))
        pointers += [] if described else [matrix for matrix in matrices if matrix not in pointers]
        values |= renamed(number, part, {x: mine[x] for x in (*part.parameters, *part.constants) if x in mine})
        counts.append(programs * rows.shape[0] * _heads_of(kernel, number, rows.shape[1], heads))
    if kernel.groups:
        values |= ranges(counts, kernel.axis.longest)
    copies = rows.shape[0] * rows.shape[1]
    grid = sum(counts)
    if fast:
        grid, order = dealt(fast, queries, constants["SECTION"])
        values |= {"items": fast.items, **order}
    function, form = getattr(cache.load(source.text), name), partial(_dealt, name, call.plan, variant, later)
    return Launch(kernel, function, config, grid, copies, values, pointers, descriptors, form=form)


def _dealt(name: str, plan: Plan, variant: str, later: bool, form: str) -> object:
    """The launcher of a kernel whose row tiles are dealt in a form."""
    return getattr(cache.load(generate(plan, variant, later, form).text), name)


def _description(x: torch.Tensor, part: Kernel, tall: int) -> TensorDescriptor:
    """A descriptor for tiles of `tall` rows."""
    wide = configs.padded(x.shape[3])
    made = describe_box(x, part.axis, tall, wide) if part.variant == "box descriptors" else describe(x, tall, wide, part.variant)
    made.base = None  # only its layout is kept, not the tensor
    return made


def _heads_of(kernel: Kernel, number: int, row_heads: int, heads: int) -> int:
    """Heads of rows that programs are dealt, for all heads or a group: of `row_heads` in all, query heads or key heads."""
    if not kernel.groups or kernel.axis.apart:
        return row_heads
    return len(kernel.axis.groups[number].heads) * row_heads // heads


def _whole_periods(call: Call, name: str, matrices: dict[str, torch.Tensor]) -> bool:
    """Whether directions in digits can be described: sequences that begin and end with a period, boxes along one digit."""
    axes = [member.axis(name) for member in call.members(name) if name != "backward_rows" and member.axis(name).kind == "boxes"]
    lengths = [call.q_start, *(x.shape[2] for x in matrices.values())] if axes else []
    return all(axis.one_digit and x % axis.order.strides[0] == 0 for axis in axes for x in lengths)


def step_down(call: Call, name: str, launch: Launch, key: tuple, error: Exception) -> None:
    """Choose a smaller configuration for what did not fit.  Raises BackendError if there is none."""
    config = None if launch.kernel.variant == "hopper" else configs.smaller(launch.config)
    d, dv = (launch.values.get(x, launch.values.get(y)) for x, y in (("D", "DV"), ("DV", "D")))
    if config is None:
        raise BackendError(f"no tile of `{name}` fits this device at head_dim {d}, {dv}: {error}", fix="use a smaller head_dim") from error
    if call.configs:
        call.configs[name] = config
    device, dtype = key[5:7]
    _chosen[launch.kernel.text, d, dv, dtype, precision(dtype), device] = config
    _launches.pop(key, None)


def _config(call: Call, source: Source, name: str, d: int, dv: int, dtype: torch.dtype, device: torch.device) -> Config:
    """The configuration of a kernel, from the table at first; equal for all lengths, so that a new one compiles nothing."""
    key = source.kernels[name].text, d, dv, dtype, precision(dtype), device
    if key not in _chosen:
        _chosen[key] = _first(call, source.kernels[name], d, dv, dtype.itemsize, device)
    return _chosen[key]


def _first(call: Call, kernel: Kernel, d: int, dv: int, itemsize: int, device: torch.device) -> Config:
    found = configs.candidates(kernel.name, kernel.variant, d, dv, itemsize, precision(torch.float32) == "tf32")
    config = found[0] if call.fit is None or kernel.axis is None else call.fit(kernel.name, kernel.variant, found)
    if kernel.arrays and kernel.variant != "hopper":
        # What a mask reads is pipelined too, and its share of a third stage would cost a program on each processor.
        config = replace(config, stages=min(config.stages, 2))
    return configs.fit(kernel.name, config, d, dv, itemsize, shared_memory(device)) if device.type == "cuda" else config


def _variant(matrices) -> str:
    """Descriptors where they serve; exact float32 products take their operands through registers anyway."""
    matrices = list(matrices)
    exact = matrices[0].dtype == torch.float32 and precision(torch.float32) == "ieee"
    return "descriptors" if not exact and has_tma(matrices[0].device) and all(map(reachable, matrices)) else "pointers"


