"""The sum of two RMSNorms as a pair of kernels: what an attention with `norm="rms"` does with its exact part o and its term t.

    y = o r_o g_o + t r_t g_t          r_x = (mean(x^2) + eps)^-1/2 over the columns of a row

Nothing is kept for the backward but o and t themselves: r is found again where they are read.
"""

from __future__ import annotations

import math

import torch

from patternc.codegen import cache
from patternc.codegen.configs import padded
from patternc.codegen.device import on
from patternc.codegen.frame import header, indent
from patternc.codegen.helpers import used_by
from patternc.codegen.launch import _empty, _rows
from patternc.codegen.prepared import _strides
from patternc.codegen.tail_helpers import SOURCES
from patternc.tail import RMS_EPS

ROWS = 16  # rows at a time
STEPS = 16  # times that a program of the backward takes as many, for one sum of the gradients of scales

HELPERS = '''
@triton.jit
def _unit(x, DV: tl.constexpr, EPS: tl.constexpr):
    """Rows over the roots of their mean squares, and one over these roots."""
    r = tl.math.rsqrt(tl.sum(x * x, 1) / DV + EPS)
    return x * r[:, None], r


@triton.jit
def _unit_gradient(u, r, dy, scale, DV: tl.constexpr):
    """The gradients of the rows and of the scale."""
    d = dy * scale[None, :]
    return r[:, None] * (d - u * (tl.sum(u * d, 1) / DV)[:, None]), tl.sum(dy * u, 0)
'''
CONSTANTS = ["HEADS", "DV", "BLOCK_DV", "BLOCK", "ALIGN", "EPS"]
SCALES = [f"{x}_scale = tl.load({x}_scale_ptr + h * DV + e, mask=e < DV, other=0.0).to(tl.float32)" for x in "ot"]


def _parameters(*names: str) -> list[str]:
    return [p for name in names for p in (f"{name}_ptr", f"{name}_stride_b", f"{name}_stride_h", f"{name}_stride_n")]


def _bases(*names: str) -> list[str]:
    return [f"{n}_base = {n}_ptr + b * {n}_stride_b * ALIGN + tl.cast(h, tl.int64) * {n}_stride_h * ALIGN" for n in names]


def _load(name: str) -> str:
    return f"{name} = _load_slot({name}_base, first, ok, {name}_stride_n * ALIGN, e, DV, BLOCK).to(tl.float32)"


def _store(name: str) -> str:
    return f"_store_slot({name}_base, first, ok, {name}_stride_n * ALIGN, e, {name}, DV, BLOCK)"


def _program(rows: str) -> list[str]:
    return [
        f"parts = tl.cdiv(n_q, {rows})",
        "program = tl.program_id(0)",
        "h = program // parts % HEADS",
        "b = tl.cast(program // parts // HEADS, tl.int64)",
        "e = tl.arange(0, BLOCK_DV)",
    ]


UNITS = ["ok = first + tl.arange(0, BLOCK) < n_q", _load("o"), _load("t"), *(f"{x}_unit, {x}_r = _unit({x}, DV, EPS)" for x in "ot")]


def _forward() -> str:
    body = [
        *_program("BLOCK"), *_bases("o", "t", "y"), *SCALES,
        "first = program % parts * BLOCK", *UNITS,
        "y = o_unit * o_scale[None, :] + t_unit * t_scale[None, :]",
        _store("y"),
    ]  # fmt: skip
    doc = "y = the norm of o plus the norm of t, one program a tile of rows."
    return header("norms", [*_parameters("o", "t", "y"), "o_scale_ptr", "t_scale_ptr", "n_q"], CONSTANTS, doc) + indent(body)


def _backward() -> str:
    step = [
        "first = (program % parts * STEPS + step) * BLOCK", *UNITS, _load("dy"),
        *(f"d{x}, {x}_more = _unit_gradient({x}_unit, {x}_r, dy, {x}_scale, DV)" for x in "ot"),
        "do = tl.minimum(tl.maximum(do, -LARGEST), LARGEST)  # a row of zeros has a slope of 1 / sqrt(eps)",
        *(f"{x}_sum += {x}_more" for x in "ot"),
        _store("do"), _store("dt"),
    ]  # fmt: skip
    body = [
        *_program("BLOCK * STEPS"), *_bases("o", "t", "dy", "do", "dt"), *SCALES,
        *(f"{x}_sum = tl.zeros([BLOCK_DV], tl.float32)" for x in "ot"),
        "for step in range(0, STEPS):", *("    " + line for line in step),
        "sums = sums_ptr + tl.cast(program, tl.int64) * 2 * DV + e",
        "tl.store(sums, o_sum, mask=e < DV)", "tl.store(sums + DV, t_sum, mask=e < DV)",
    ]  # fmt: skip
    parameters = [*_parameters("o", "t", "dy", "do", "dt"), "o_scale_ptr", "t_scale_ptr", "sums_ptr", "n_q"]
    doc = "do, dt, and each program's sums of the scales' gradients [B, HEADS, parts, 2, DV]."
    return header("backward_norms", parameters, [*CONSTANTS, "STEPS", "LARGEST"], doc) + indent(body)


def source() -> str:
    """The module's text."""
    body = f"{HELPERS.strip()}\n\n\n{_forward()}\n\n\n{_backward()}\n"
    return f'"""The sum of two RMSNorms, by patternc."""\n\nimport triton\nimport triton.language as tl\n\n{used_by(body, SOURCES)}\n\n{body}'


TEXT = source()


def norms(o: torch.Tensor, t: torch.Tensor, o_scale: torch.Tensor, t_scale: torch.Tensor) -> torch.Tensor:
    """The sum of both norms in the dtype of o: o, t [B, H, n, dv], scales [H, dv]."""
    o, t = _rows(o), _rows(t)
    y = _empty(o, o.shape[2], o.shape[3], o.dtype)
    _launch("norms", {"o": o, "t": t, "y": y}, {"o_scale_ptr": o_scale.contiguous(), "t_scale_ptr": t_scale.contiguous()}, 1)
    return y


def backward_norms(dy, o, t, o_scale, t_scale) -> tuple[torch.Tensor, ...]:
    """Gradients of `norms`: those of o and t, in their dtypes, and of both scales."""
    o, t, dy = _rows(o), _rows(t), _rows(dy, warn=False)
    do, dt = (_empty(x, x.shape[2], x.shape[3], x.dtype) for x in (o, t))
    b, heads, n, dv = o.shape
    sums = torch.empty(b, heads, -(-n // (ROWS * STEPS)), 2, dv, dtype=torch.float32, device=o.device)
    vectors = {"o_scale_ptr": o_scale.contiguous(), "t_scale_ptr": t_scale.contiguous(), "sums_ptr": sums, "LARGEST": torch.finfo(o.dtype).max}
    _launch("backward_norms", {"o": o, "t": t, "dy": dy, "do": do, "dt": dt}, vectors, STEPS)
    return do, dt, sums[..., 0, :].sum((0, 2)).to(o_scale.dtype), sums[..., 1, :].sum((0, 2)).to(t_scale.dtype)


def _launch(name: str, matrices: dict[str, torch.Tensor], values: dict, steps: int) -> None:
    o = matrices["o"]
    b, heads, n, dv = o.shape
    if not o.numel():
        return
    align = math.gcd(16, *(s for x in matrices.values() for s in _strides(x)))
    values = {**values, "n_q": n, "HEADS": heads, "DV": dv, "BLOCK_DV": padded(dv), "BLOCK": ROWS, "ALIGN": align, "EPS": RMS_EPS}
    values |= {"STEPS": steps} if steps > 1 else {}
    for matrix, x in matrices.items():
        strides = (s // align for s in _strides(x))
        values |= {f"{matrix}_ptr": x, **dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), strides))}
    with on(o.device):
        getattr(cache.load(TEXT), name)[(b * heads * -(-n // (ROWS * steps)),)](**values, num_warps=4)
