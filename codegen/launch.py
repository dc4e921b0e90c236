"""Running the kernels: tensors and runtime values in, outputs and gradients out.

Shapes: q [B, H, n_q, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv], o [B, H, n_q, Dv], lse [B, H, n_q] (float32, natural log).
Everything here is checked by the caller: dtypes (float16, bfloat16, float32), devices, shapes and args.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from patternc.codegen import cache, configs
from patternc.codegen.call import Call
from patternc.codegen.configs import Config
from patternc.codegen.descriptors import describe, describe_box, moved, reachable
from patternc.codegen.device import has_tma, on, precision, shared_memory
from patternc.codegen.dispatch import named, ranges, renamed
from patternc.codegen.generated import Kernel, Source
from patternc.codegen.kernels import generate
from patternc.codegen.parameters import box_constants, runtime_values
from patternc.codegen.pieces import RESULTS, put_together, workspace
from patternc.codegen.schedule import Dealt
from patternc.errors import BackendError
from patternc.orders.boxes import BoxAxis
from patternc.orders.vectors import VECTOR, gathered

LOG2E = 1.4426950408889634
WIDEST_ROW_STRIDE = 2**22  # in elements: offsets within a tile are 32 bits wide


Partial = tuple[torch.Tensor, torch.Tensor]  # o in float32 and lse of earlier parts of a pattern


def attention_forward(call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: Partial | None = None, partial: bool = False) -> Partial:
    """`(o, lse)`; of a pattern in parts, one call each: `before` is what the parts before it found, `partial` that more follow."""
    o = _empty(q, q.shape[2], v.shape[3], torch.float32 if partial else q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    q, scale, _ = _positive(q, call.scale)
    matrices = {"q": _rows(q), "k": _rows(k), "v": _rows(v), "o": o}
    extra = {"lse_ptr": lse, "score_scale": scale * LOG2E}
    if before is not None:
        matrices["o0"], extra["lse0_ptr"] = before
    _launch(call, "forward", matrices, extra, before is not None)
    return o, lse


def attention_backward(calls: Call | list[Call], q, k, v, o, lse, do, dlse=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(dq, dk, dv)` from the forward's inputs and results and the gradients of `o` and, where it has one, of `lse`."""
    calls = calls if isinstance(calls, list) else [calls]
    do = _rows(do.to(o.dtype), warn=False)
    dlse = torch.zeros_like(lse) if dlse is None else dlse.float().contiguous()
    vectors = torch.empty(2, *lse.shape[:2], _whole(lse.shape[2]), dtype=torch.float32, device=lse.device)
    delta, lse2 = vectors
    o = _rows(o)
    _launch(calls[0], "backward_rows", {"o": o, "do": do}, {"lse_ptr": lse, "dlse_ptr": dlse, "delta_ptr": delta, "lse2_ptr": lse2})
    flipped, scale, sign = _positive(q, calls[0].scale)
    matrices = {"q": _rows(flipped), "k": _rows(k), "v": _rows(v), "do": do}
    shared = {"scale": scale, "score_scale": scale * LOG2E}
    by_keys = [part for call in calls for part in call.by_key_heads(q.shape[1] // k.shape[1])]
    found: dict[str, torch.Tensor] = {}
    for kernel, chain, own in (("backward_dq", calls, {"dq": q}), ("backward_dkdv", by_keys, {"dk": k, "dv": v})):
        for number, call in enumerate(chain):
            before = {f"{name}0": found[name] for name in own} if number else {}
            dtype = q.dtype if call is chain[-1] else torch.float32
            found |= {name: _empty(x, x.shape[2], x.shape[3], dtype) for name, x in own.items()}
            mine = {name: found[name] for name in own} | before
            _launch(call, kernel, {**matrices, **mine}, shared, bool(before), _in_order(call, kernel, vectors, q.shape[2]))
    dq = found["dq"]
    return (dq if sign == 1 else dq.neg() if sign else torch.zeros_like(dq)), found["dk"], found["dv"]


def run_kernel(call: Call, kernel: str, q, k, v, do, merge: bool = False) -> Callable[[], None]:
    """One launch of one kernel alone, for timing: lse and delta are zeros.

    Args:
        merge: the launch is that of a part between others, which reads and writes float32.
    """
    dtype = torch.float32 if merge else q.dtype
    o, lse = torch.empty_like(do, dtype=dtype), torch.zeros(q.shape[:3], device=q.device)
    vectors = torch.zeros(2, *q.shape[:2], _whole(q.shape[2]), device=q.device)
    matrices, extra, each = {"q": q, "k": k, "v": v}, {"score_scale": call.scale * LOG2E}, []
    if kernel == "forward":
        matrices["o"], extra["lse_ptr"] = o, lse
        if merge:
            matrices["o0"], extra["lse0_ptr"] = torch.zeros_like(o), torch.zeros_like(lse)
    elif kernel == "backward_rows":
        matrices, extra = {"o": do, "do": do}, {"lse_ptr": lse, "dlse_ptr": lse, "delta_ptr": vectors[0], "lse2_ptr": vectors[1]}
    else:
        each = _in_order(call, kernel, vectors, q.shape[2])
        extra |= {"scale": call.scale}
        own = {"backward_dq": {"dq": q}, "backward_dkdv": {"dk": k, "dv": v}}[kernel]
        matrices |= {"do": do, **{name: torch.empty_like(x, dtype=dtype) for name, x in own.items()}}
    return lambda: _launch(call, kernel, matrices, extra, merge, each)


def _whole(n: int) -> int:
    """The length of vectors of `n` queries: aligned, more than `n`, and such that the tiles that read them never leave them."""
    return (n // VECTOR + 1) * VECTOR


def _in_order(call: Call, kernel: str, vectors: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
    """Vectors of the queries [.., n], delta and lse, as a kernel's members read them: dk/dv may want those of a box to lie together."""
    out = []
    for member in call.members(kernel):
        axis = member.axis(kernel)
        scattered = kernel == "backward_dkdv" and axis.kind == "boxes" and axis.scattered and vectors.numel()
        own = vectors.index_select(-1, _gathered(axis, member.q_start, count, vectors.device)) if scattered else vectors
        out.append({"delta_ptr": own[0], "lse2_ptr": own[1]})
    return out


@lru_cache(maxsize=64)
def _gathered(axis: BoxAxis, first: int, count: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(gathered(axis, first, count)).to(device)


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


def _empty(like: torch.Tensor, count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised [B, heads, count, width] in the order of axes that `like` has in memory."""
    b, heads = like.shape[:2]
    if not like.is_contiguous() and like.transpose(1, 2).is_contiguous():
        return torch.empty(b, count, heads, width, dtype=dtype, device=like.device).transpose(1, 2)
    return torch.empty(b, heads, count, width, dtype=dtype, device=like.device)


# Launching one kernel


@dataclass
class Launch:
    """What is decided once for inputs of one layout: everything but addresses and runtime values.

    Attributes:
        function: the compiled kernel's launcher.
        kernel: as it is where its row tiles are dealt in the usual order.
        function: the launcher of it, or of the kernel that is dealt by a schedule.
        grid, copies: programs in the usual order, and how many there are for each row tile.
        values: parameters that the layout fixes, constexprs among them.
        pointers: names of matrices that are passed as they are.
        descriptors: by parameter, the matrix that it describes and its descriptor.
    """

    kernel: Kernel
    function: object
    config: Config
    grid: int
    copies: int
    values: dict
    pointers: list[str]
    descriptors: dict[str, tuple[str, TensorDescriptor]]


_chosen: dict[tuple, Config] = {}  # configurations in use; one that does not fit is replaced by a smaller one
_launches: dict[tuple, Launch] = {}
MOST_LAUNCHES = 4096


def _launch(call: Call, name: str, matrices: dict[str, torch.Tensor], extra: dict, later: bool = False, each: list[dict] = ()) -> None:
    """Run a kernel; `extra` are parameters that the call decides, `each` those that every member of the call has for itself."""
    any_v = matrices.get("v", matrices.get("do"))
    device, dtype = any_v.device, any_v.dtype
    layouts = [(x.dtype, x.shape, x.stride(), x.data_ptr() % 16) for x in matrices.values()]
    # The number of boxes depends on where they begin, the number of tiles does not.
    start = call.q_start if {"boxes", "heads"} & {call.plan.forward.kind, call.plan.transposed.kind} else None
    key = (call.plan, name, call.variant, device, dtype, precision(dtype), start, later, *layouts)
    while True:
        launch = _kept(call, key, name, matrices, later)
        if launch.grid == 0:
            return
        grid, dealt = launch.grid, _dealt(call, name, launch)
        values = {**extra, **runtime_values(call, launch.kernel, launch.config, device)}
        if dealt is not None:
            # The configuration is that of the usual order, for which the schedule was made.
            launch = _kept(call, (*key, launch.config, dealt.form), name, matrices, later, dealt.form)
            grid = launch.copies * len(dealt.table)
            values |= dealt.values()
            if dealt.cuts:
                values |= workspace(name, launch.values, dealt, launch.copies, device)
        values |= launch.values
        for number, (part, own) in enumerate(zip(launch.kernel.groups or (launch.kernel,), each)):
            values |= renamed(number, part, own)
        for matrix in launch.pointers:
            values[f"{matrix}_ptr"] = matrices[matrix]
        for parameter, (matrix, pattern) in launch.descriptors.items():
            values[parameter] = moved(pattern, matrices[matrix])
        try:
            with on(device):
                launch.function[(grid,)](**values, num_warps=launch.config.warps, num_stages=launch.config.stages)
                if dealt is not None and dealt.cuts:
                    put_together(call.plan, name, values, {x: matrices[x] for x in RESULTS[name]}, dealt.cuts * launch.copies)
            return
        except OutOfResources as error:
            _step_down(call, name, launch, key, error)


def _kept(call: Call, key: tuple, *what) -> Launch:
    """The launch of a key, else `_prepare` of `what`; configurations that a call brings with it are not kept."""
    launch = None if call.configs else _launches.get(key)
    if launch is None:
        launch = _prepare(call, *what)
        if len(_launches) >= MOST_LAUNCHES:
            _launches.clear()
        if not call.configs:
            _launches[key] = launch
    return launch


def _dealt(call: Call, name: str, launch: Launch) -> Dealt | None:
    """The schedule by which a kernel's row tiles are dealt, where the usual order is not good enough."""
    if call.schedule is None or launch.kernel.axis is None or launch.kernel.groups:
        return None
    group = launch.values["GROUP"] if name == "backward_dkdv" else 1
    return call.schedule(name, launch.kernel.variant, launch.config, launch.copies, group)


def _prepare(call: Call, name: str, matrices: dict[str, torch.Tensor], later: bool, form: str = "even") -> Launch:
    """Decide variant, configuration, grid and constants for inputs of one layout, and how row tiles are dealt (`schedule.FORMS`)."""
    variant = call.variant or _variant(matrices.values())
    if variant == "descriptors" and not _whole_periods(call, name, matrices):
        variant = "tile descriptors"
    source = generate(call.plan, variant, later)
    kernel = source.kernels[name]
    any_q, any_v = matrices.get("q"), matrices.get("v", matrices.get("do"))
    dtype = any_v.dtype
    d, dv = (any_q if any_q is not None else any_v).shape[3], any_v.shape[3]
    queries = matrices["q" if "q" in matrices else "o"]
    heads = queries.shape[1]
    kv_heads = matrices["k"].shape[1] if "k" in matrices else heads
    rows = matrices["k"] if name == "backward_dkdv" else queries
    config = call.configs.get(name) or _config(call, source, name, d, dv, dtype, any_v.device)
    count = _whole(rows.shape[2]) if name == "backward_rows" else rows.shape[2]
    block = config.block_n if name == "backward_dkdv" else config.block_m
    align = math.gcd(16, d, dv, *(s for m in matrices.values() for s in _strides(m)))
    constants = {
        "HEADS": heads, "GROUP": heads // kv_heads, "D": d, "DV": dv, "BLOCK_D": configs.padded(d), "BLOCK_DV": configs.padded(dv),
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": config.stages, "PRECISION": precision(dtype), "ALIGN": align,
    }  # fmt: skip
    values = {"n_q": queries.shape[2]}
    if kernel.axis is not None:
        values["n_k"] = matrices["k"].shape[2]
    pointers, descriptors, counts = [], {}, []
    for number, (part, own) in enumerate(zip(kernel.groups or (kernel,), call.members(name))):
        mine, programs = dict(constants), -(-count // block)
        if part.variant in ("boxes", "box descriptors"):
            boxes = own.boxes("transposed" if name == "backward_dkdv" else "forward", config.block_m, config.block_n)
            mine |= {**box_constants(boxes, name == "backward_dkdv"), "row_boxes": boxes.first_boxes}
            programs = boxes.programs
        described = part.variant not in ("pointers", "boxes")
        for matrix, x in matrices.items():
            if described:
                tall = config.block_n if matrix.rstrip("0") in ("k", "v", "dk", "dv") else config.block_m
                descriptors[named(number, part, f"{matrix}_desc")] = matrix, _description(x, part, tall)
            else:
                mine |= dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), (s // align for s in _strides(x))))
        pointers += [] if described else [matrix for matrix in matrices if matrix not in pointers]
        values |= renamed(number, part, {x: mine[x] for x in (*part.parameters, *part.constants) if x in mine})
        counts.append(programs * rows.shape[0] * _heads_of(kernel, number, rows.shape[1], heads))
    if kernel.groups:
        values |= ranges(counts, kernel.axis.longest)
    copies = rows.shape[0] * rows.shape[1]
    text = source.text if form == "even" else generate(call.plan, variant, later, form).text
    return Launch(kernel, getattr(cache.load(text), name), config, sum(counts), copies, values, pointers, descriptors)


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


def _step_down(call: Call, name: str, launch: Launch, key: tuple, error: OutOfResources) -> None:
    """Choose a smaller configuration for what did not fit.  Raises BackendError if there is none."""
    config = configs.smaller(launch.config)
    d, dv = launch.values.get("D", launch.values["DV"]), launch.values["DV"]
    if config is None:
        raise BackendError(f"no tile of `{name}` fits this device at head_dim {d}, {dv}: {error}", fix="use a smaller head_dim") from error
    if call.configs:
        call.configs[name] = config
    device, dtype = key[3:5]
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
    config = found[0] if len(found) == 1 or call.fit is None else call.fit(kernel.name, kernel.variant, found)
    if kernel.arrays:
        # What a mask reads is pipelined too, and its share of a third stage would cost a program on each processor.
        config = replace(config, stages=min(config.stages, 2))
    return configs.fit(kernel.name, config, d, dv, itemsize, shared_memory(device)) if device.type == "cuda" else config


def _variant(matrices) -> str:
    """Descriptors where they serve; exact float32 products take their operands through registers anyway."""
    matrices = list(matrices)
    exact = matrices[0].dtype == torch.float32 and precision(torch.float32) == "ieee"
    return "descriptors" if not exact and has_tma(matrices[0].device) and all(map(reachable, matrices)) else "pointers"


def _strides(x: torch.Tensor) -> list[int]:
    """Strides of the three outer axes; axes of one entry count as 0."""
    return [0 if x.shape[axis] == 1 else x.stride(axis) for axis in range(3)]
