"""The sum of two RMSNorms as a pair of kernels: what an attention with `norm="rms"` does with its exact part o and its term t.

    y = o r_o g_o + t r_t g_t          r_x = (mean(x^2) + eps)^-1/2 over the columns of a row

Nothing is kept for the backward but o and t themselves: r is found again where they are read.  Where the gradient of o goes to an attention's
backward, what that needs of each row (`kernels._backward_rows`) is found here too, since both its factors are there.
"""

from __future__ import annotations

import torch

from patternc.codegen import launch, row_kernels as rows
from patternc.codegen.frame import header, indent
from patternc.codegen.kernels import WHOLE
from patternc.codegen.matrices import empty, in_rows
from patternc.orders.vectors import VECTOR
from patternc.tail import RMS_EPS

STEPS = 32  # times, at most, that a program of the backward takes as many rows, for one sum of the gradients of scales

HELPERS = '''
@triton.jit
def _unit(x, DV: tl.constexpr, EPS: tl.constexpr):
    """Rows over the roots of their mean squares."""
    return x * tl.math.rsqrt(tl.sum(x * x, 1) / DV + EPS)[:, None]


@triton.jit
def _added(a, b, c, d, e, f, g, h):
    """Four sums at once: one exchange between threads in the place of two that wait for each other."""
    return a + e, b + f, c + g, d + h


@triton.jit
def _unit_gradient(x, square, d, product, dy, DV: tl.constexpr, EPS: tl.constexpr):
    """The gradients of the rows x, and what each adds to that of the scale: d = dy * scale, sums x * x and x * d by rows."""
    r = tl.math.rsqrt(square / DV + EPS)
    u = x * r[:, None]
    return r[:, None] * (d - u * (r * product / DV)[:, None]), dy * u
'''
CONSTANTS = [*rows.CONSTANTS, "EPS"]
SCALES = [f"{x}_scale = tl.load({x}_scale_ptr + h * DV + e, mask=e < DV, other=0.0).to(tl.float32)" for x in "ot"]
LOADED = ["ok = first + tl.arange(0, BLOCK) < n_q", rows.load("o"), rows.load("t")]

OF_ROWS = ["lse_ptr", "dlse_ptr", "delta_ptr", "lse2_ptr"]
VECTORS = [  # of do as it is stored
    "row = first + tl.arange(0, BLOCK)", "at, place = (b * HEADS + h) * n_q + row, (b * HEADS + h) * whole + row",
    'lse = tl.load(lse_ptr + at, mask=ok, other=float("-inf"))', 'empty = lse == float("-inf")',
    "delta = tl.sum(o * do.to(do_ptr.dtype.element_ty).to(tl.float32), 1)",
    "if dlse_ptr is not None:", "    delta -= tl.load(dlse_ptr + at, mask=ok, other=0.0)",
    "tl.store(delta_ptr + place, tl.where(empty, 0.0, delta), mask=ok)",
    'tl.store(lse2_ptr + place, tl.where(empty, float("inf"), lse * 1.4426950408889634), mask=ok)',
]  # fmt: skip


def _forward() -> str:
    body = [
        *rows.program("BLOCK"), *rows.bases("o", "t", "y"), *SCALES,
        "first = program % parts * BLOCK", *LOADED,
        "y = _unit(o, DV, EPS) * o_scale[None, :] + _unit(t, DV, EPS) * t_scale[None, :]",
        rows.store("y"),
    ]  # fmt: skip
    doc = "y = the norm of o plus the norm of t, one program a tile of rows."
    return header("norms", [*rows.parameters("o", "t", "y"), "o_scale_ptr", "t_scale_ptr", "n_q"], CONSTANTS, doc) + indent(body)


def _backward() -> str:
    step = [
        "first = (program % parts * STEPS + step) * BLOCK", *LOADED, rows.load("dy"), *(f"{x}_d = dy * {x}_scale[None, :]" for x in "ot"),
        "o_square, o_product, t_square, t_product = tl.reduce((o * o, o * o_d, t * t, t * t_d), 1, _added)",
        *(f"d{x}, {x}_more = _unit_gradient({x}, {x}_square, {x}_d, {x}_product, dy, DV, EPS)" for x in "ot"),
        "do = tl.minimum(tl.maximum(do, -LARGEST), LARGEST)  # a row of zeros has a slope of 1 / sqrt(eps)",
        *(f"{x}_sum += tl.sum(tl.reshape({x}_more, [4, BLOCK // 4, BLOCK_DV]), 0)  # of rows that one thread has" for x in "ot"),
        rows.store("do"), rows.store("dt"),
        "if VECTORS:", *("    " + line for line in VECTORS),
    ]  # fmt: skip
    body = [
        *rows.program("BLOCK * STEPS"), *rows.bases("o", "t", "dy", "do", "dt"), *SCALES,
        *(f"{x}_sum = tl.zeros([BLOCK // 4, BLOCK_DV], tl.float32)" for x in "ot"), WHOLE,
        "for step in tl.range(0, STEPS, num_stages=3):", *("    " + line for line in step),
        "sums = sums_ptr + tl.cast(program, tl.int64) * 2 * DV + e",
        "tl.store(sums, tl.sum(o_sum, 0), mask=e < DV)", "tl.store(sums + DV, tl.sum(t_sum, 0), mask=e < DV)",
        "if VECTORS and program % parts == parts - 1:  # beyond the last row",
        f"    beyond = n_q + tl.arange(0, {VECTOR})",
        "    tl.store(delta_ptr + (b * HEADS + h) * whole + beyond, 0.0, mask=beyond < whole)",
        '    tl.store(lse2_ptr + (b * HEADS + h) * whole + beyond, float("inf"), mask=beyond < whole)',
    ]  # fmt: skip
    parameters = [*rows.parameters("o", "t", "dy", "do", "dt"), "o_scale_ptr", "t_scale_ptr", "sums_ptr", *OF_ROWS, "n_q"]
    doc = "do, dt, each program's sums of the scales' gradients [B, HEADS, parts, 2, DV], and where VECTORS what `backward_rows` finds."
    return header("backward_norms", parameters, [*CONSTANTS, "STEPS", "LARGEST", "VECTORS"], doc) + indent(body)


TEXT = rows.module("The sum of two RMSNorms", HELPERS, _forward(), _backward())


def norms(o: torch.Tensor, t: torch.Tensor, o_scale: torch.Tensor, t_scale: torch.Tensor) -> torch.Tensor:
    """The sum of both norms in the dtype of o: o, t [B, H, n, dv], scales [H, dv]."""
    o, t = in_rows(o), in_rows(t)
    y = empty(o, o.shape[2], o.shape[3], o.dtype)
    scales = {"o_scale": o_scale.contiguous(), "t_scale": t_scale.contiguous()}
    block = rows.rows_of(o.shape[3]) // 2  # of three matrices, not five: faster by a tenth
    rows.launch(TEXT, "norms", {"o": o, "t": t, "y": y}, scales, block=block, EPS=RMS_EPS)
    return y


def backward_norms(dy, o, t, o_scale, t_scale, of_rows: tuple[torch.Tensor, ...] | None = None) -> tuple[torch.Tensor, ...]:
    """Gradients of `norms`: those of o and t, in their dtypes, and of both scales.

    Args:
        of_rows: lse, float32 [B, H, n], and its gradient or None, of the attention that o is of, and vectors (`launch.row_vectors`) to write to.
    """
    o, t, dy = in_rows(o), in_rows(t), in_rows(dy, warn=False)
    do, dt = (empty(x, x.shape[2], x.shape[3], x.dtype) for x in (o, t))
    b, heads, n, dv = o.shape
    steps = min(STEPS, 1 << max(-(-n // rows.rows_of(dv)) - 1, 0).bit_length())
    sums = torch.empty(b, heads, -(-n // (rows.rows_of(dv) * steps)), 2, dv, dtype=torch.float32, device=o.device)
    lse, dlse, (delta, lse2) = (of_rows[0], launch.of_rows(of_rows[1]), of_rows[2]) if of_rows else (sums, None, (sums, sums))
    vectors = {"o_scale": o_scale.contiguous(), "t_scale": t_scale.contiguous(), "sums": sums, "lse": lse, "dlse": dlse, "delta": delta, "lse2": lse2}
    matrices = {"o": o, "t": t, "dy": dy, "do": do, "dt": dt}
    largest = torch.finfo(o.dtype).max
    rows.launch(TEXT, "backward_norms", matrices, vectors, steps, EPS=RMS_EPS, STEPS=steps, LARGEST=largest, VECTORS=of_rows is not None)
    return do, dt, *(sums[..., i, :].sum((0, 2)).to(scale.dtype) for i, scale in enumerate((o_scale, t_scale)))
