"""Running the kernels: tensors and runtime values in, outputs and gradients out.

Shapes: q [B, H, n_q, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv], o [B, H, n_q, Dv], lse [B, H, n_q] (float32, natural log).
Everything here is checked by the caller: dtypes (float16, bfloat16, float32), devices, shapes and args.
"""

from __future__ import annotations

import math
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from triton.runtime.errors import OutOfResources

from patternc.codegen import cache, configs
from patternc.codegen.bounds import LIST_PARAMETERS
from patternc.codegen.configs import Config
from patternc.codegen.descriptors import describe, reachable
from patternc.codegen.kernels import VECTOR, Kernel, Source, generate
from patternc.codegen.uses import Array
from patternc.errors import BackendError
from patternc.plan import Plan

LOG2E = 1.4426950408889634
WIDEST_ROW_STRIDE = 2**22  # in elements: offsets within a tile are 32 bits wide


@dataclass(frozen=True)
class TileLists:
    """The tiles that a "list" plan visits: int32 tensors on the kernels' device.

    Attributes:
        group: [H], which row of the pointers a query head uses.
        partial_ptr, full_ptr: [groups, row tiles + 1], where a row tile's entries begin in `partial` and `full`.
        partial, full: column tiles, at least one entry long each (it may be unused).
    """

    group: torch.Tensor
    partial_ptr: torch.Tensor
    partial: torch.Tensor
    full_ptr: torch.Tensor
    full: torch.Tensor


@dataclass
class Call:
    """What is the same for all kernels of one call.

    Attributes:
        plan: of the pattern.
        scale: the factor of the scores.
        q_start: position of query 0, an int or an int tensor [1] or [B].
        args: runtime args in normal form: ints, or tensors with a leading batch axis of 1 or B on the inputs' device.
        bounds: `bounds(direction, rows, cols)` for plans of kind "table" (an int32 tensor [B', H', row tiles, count, 4]) and
            "list" (`TileLists`); direction is "forward" or "transposed", rows and cols the size of its tiles.
        variant: how the kernels reach memory (`access.VARIANTS`); None takes descriptors where the device has them.
        configs: configurations by kernel that replace the built-in ones.
    """

    plan: Plan
    scale: float
    q_start: int | torch.Tensor = 0
    args: dict = field(default_factory=dict)
    bounds: object = None
    variant: str | None = None
    configs: dict[str, Config] = field(default_factory=dict)


def attention_forward(call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`(o, lse)`."""
    o = _empty(q, q.shape[2], v.shape[3])
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    q, scale, _ = _positive(q, call.scale)
    matrices = {"q": _rows(q), "k": _rows(k), "v": _rows(v), "o": o}
    _launch(call, "forward", matrices, {"lse_ptr": lse, "score_scale": scale * LOG2E})
    return o, lse


def attention_backward(call: Call, q, k, v, o, lse, do, dlse=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(dq, dk, dv)` from the forward's inputs and results and the gradients of `o` and, where it has one, of `lse`."""
    do = _rows(do.to(o.dtype), warn=False)
    dlse = torch.zeros_like(lse) if dlse is None else dlse.float().contiguous()
    delta, lse2 = (torch.empty(*lse.shape[:2], _whole(lse.shape[2]), dtype=torch.float32, device=lse.device) for _ in range(2))
    o = _rows(o)
    _launch(call, "backward_rows", {"o": o, "do": do}, {"lse_ptr": lse, "dlse_ptr": dlse, "delta_ptr": delta, "lse2_ptr": lse2})
    flipped, scale, sign = _positive(q, call.scale)
    dq, dk, dv = _empty(q, q.shape[2], q.shape[3]), _empty(k, k.shape[2], k.shape[3]), _empty(v, v.shape[2], v.shape[3])
    matrices = {"q": _rows(flipped), "k": _rows(k), "v": _rows(v), "do": do}
    shared = {"lse2_ptr": lse2, "delta_ptr": delta, "scale": scale, "score_scale": scale * LOG2E}
    _launch(call, "backward_dq", {**matrices, "dq": dq}, shared)
    _launch(call, "backward_dkdv", {**matrices, "dk": dk, "dv": dv}, shared)
    return (dq if sign == 1 else dq.neg() if sign else torch.zeros_like(dq)), dk, dv


def _whole(n: int) -> int:
    """`n` as whole blocks of the row vectors: so they are aligned, and the tiles that read them never leave them."""
    return -(-n // VECTOR) * VECTOR


def _positive(q: torch.Tensor, scale: float) -> tuple[torch.Tensor, float, int]:
    """Inputs with an equal result and a positive scale: the kernels order scores before they scale them."""
    scale = float(scale)
    if scale > 0 or math.isnan(scale):
        return q, scale, 1
    return (-q, -scale, -1) if scale else (torch.zeros_like(q), 1.0, 0)


@lru_cache(maxsize=1)
def _warn_copy() -> None:
    warnings.warn("an input whose last stride is not 1 is copied at each call; make it contiguous once", stacklevel=4)


def _rows(x: torch.Tensor, warn: bool = True) -> torch.Tensor:
    """`x` with unit last stride and a row stride that tiles can hold, copied if need be."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        if warn:
            _warn_copy()
        return x.contiguous()
    return x.contiguous() if x.stride(2) > WIDEST_ROW_STRIDE else x


def _empty(like: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """Uninitialised [B, heads, count, width] in the order of axes that `like` has in memory."""
    b, heads = like.shape[:2]
    if not like.is_contiguous() and like.transpose(1, 2).is_contiguous():
        return torch.empty(b, count, heads, width, dtype=like.dtype, device=like.device).transpose(1, 2)
    return torch.empty(b, heads, count, width, dtype=like.dtype, device=like.device)


# Launching one kernel


_chosen: dict[tuple, Config] = {}  # configurations in use; one that does not fit is replaced by a smaller one


def _launch(call: Call, name: str, matrices: dict[str, torch.Tensor], extra: dict) -> None:
    variant = call.variant or _variant(matrices.values())
    source = generate(call.plan, variant)
    kernel = source.kernels[name]
    any_q, any_v = matrices.get("q"), matrices.get("v", matrices.get("do"))
    device, dtype = any_v.device, any_v.dtype
    d, dv = (any_q if any_q is not None else any_v).shape[3], any_v.shape[3]
    heads = matrices["q" if "q" in matrices else "o"].shape[1]
    kv_heads = matrices["k"].shape[1] if "k" in matrices else heads
    rows = matrices["k" if name == "backward_dkdv" else "q" if "q" in matrices else "o"]
    programs_per_tile = rows.shape[0] * rows.shape[1]
    key = (source.text, name, d, dv, dtype, _precision(dtype), device)
    if key not in _chosen:
        _chosen[key] = _first(source, name, d, dv, dtype.itemsize, device)
    config = call.configs.get(name) or _chosen[key]
    align = math.gcd(16, d, dv, *(s for m in matrices.values() for s in _strides(m)))
    while True:
        block = config.block_n if name == "backward_dkdv" else config.block_m
        count = _whole(rows.shape[2]) if name == "backward_rows" else rows.shape[2]
        grid = -(-count // block) * programs_per_tile
        if grid == 0:
            return
        values = _arguments(call, source, kernel, matrices, extra, config, align)
        constants = {
            "HEADS": heads, "GROUP": heads // kv_heads, "D": d, "DV": dv, "BLOCK_D": configs.padded(d), "BLOCK_DV": configs.padded(dv),
            "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": config.stages, "PRECISION": _precision(dtype),
            "ALIGN": align,
        }  # fmt: skip
        values |= {c: constants[c] for c in kernel.constants}
        try:
            with _on(device):
                getattr(cache.load(source.text), name)[(grid,)](**values, num_warps=config.warps, num_stages=config.stages)
            return
        except OutOfResources as error:
            config = configs.smaller(config)
            if config is None:
                raise BackendError(f"no tile of `{name}` fits this device at head_dim {d}, {dv}: {error}", fix="use a smaller head_dim") from error
            _chosen[key] = config


def _first(source: Source, name: str, d: int, dv: int, itemsize: int, device: torch.device) -> Config:
    tf32 = _precision(torch.float32) == "tf32"
    config = configs.choose(name, source.variant, d, dv, itemsize, configs.is_short(source.plan.forward), tf32)
    return configs.fit(name, config, d, dv, itemsize, _shared_memory(device)) if device.type == "cuda" else config


def _variant(matrices) -> str:
    """Descriptors where they serve; exact float32 products take their operands through registers anyway."""
    matrices = list(matrices)
    exact = matrices[0].dtype == torch.float32 and _precision(torch.float32) == "ieee"
    return "descriptors" if not exact and _has_tma(matrices[0].device) and all(map(reachable, matrices)) else "pointers"


@lru_cache(maxsize=64)
def _has_tma(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=64)
def _shared_memory(device: torch.device) -> int:
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    return driver.active.utils.get_device_properties(index)["max_shared_mem"]


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _precision(dtype: torch.dtype) -> str:
    """Products of float32 follow torch's own setting."""
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    tf32 = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if tf32 else "ieee"


def _strides(x: torch.Tensor) -> list[int]:
    """Strides of the three outer axes; axes of one entry count as 0."""
    return [0 if x.shape[axis] == 1 else x.stride(axis) for axis in range(3)]


def _arguments(call: Call, source: Source, kernel: Kernel, matrices: dict[str, torch.Tensor], extra: dict, config: Config, align: int) -> dict:
    """The runtime parameters of a kernel by name."""
    first = matrices["q" if "q" in matrices else "o"]
    values = {"n_q": first.shape[2], **extra}
    pointers = source.variant == "pointers" or kernel.axis is None
    for name, x in matrices.items():
        if pointers:
            values[f"{name}_ptr"] = x
            units = (s // align for s in _strides(x))
            values |= dict(zip((f"{name}_stride_b", f"{name}_stride_h", f"{name}_stride_n"), units))
        else:
            rows = config.block_n if name in ("k", "v", "dk", "dv") else config.block_m
            values[f"{name}_desc"] = describe(x, rows, configs.padded(x.shape[3]), source.variant)
    if kernel.axis is not None:
        values["n_k"] = matrices["k"].shape[2]
        values |= _value("q_start_value", "q_start_stride", call.q_start)
        values |= _bounds(call, kernel, config)
        for name in kernel.scalars:
            values |= _value(f"value_of_{name}", f"stride_of_{name}", call.args[name])
        for array in kernel.arrays:
            values |= _array(array, call, first.device)
    return values


def _value(parameter: str, stride: str, value) -> dict:
    """A scalar parameter: a number, or a tensor and its batch stride."""
    if isinstance(value, torch.Tensor):
        return {parameter: value.contiguous(), stride: 0 if value.shape[0] == 1 else 1}
    return {parameter: max(-(2**30), min(2**30, int(value))), stride: 0}


def _array(array: Array, call: Call, device: torch.device) -> dict:
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
            made[kind, device] = mask.to(device)
        else:
            made[kind, device] = data.to(torch.int32).to(device)
    return made[kind, device]


def _bounds(call: Call, kernel: Kernel, config: Config) -> dict:
    axis = kernel.axis
    if axis.kind == "formula":
        return {}
    direction = "transposed" if kernel.name == "backward_dkdv" else "forward"
    rows, cols = (config.block_n, config.block_m) if direction == "transposed" else (config.block_m, config.block_n)
    made = call.bounds(direction, rows, cols)
    if axis.kind == "list":
        fields = ("group", "partial_ptr", "partial", "full_ptr", "full")
        return {parameter: getattr(made, field) for parameter, field in zip(LIST_PARAMETERS, fields)}
    made = made.contiguous()
    strides = [0 if made.shape[i] == 1 else made.stride(i) for i in (0, 1)]
    return {"bounds_ptr": made, "bounds_stride_b": strides[0], "bounds_stride_h": strides[1]}
