"""What kernels share that pass over the rows of several matrices once: parameters, loads and stores as text, and the launch.

A program has one head of one batch row and `BLOCK` rows, or as many `STEPS` times.  Matrices are [B, H, n, DV], vectors [B, H, n].
"""

from __future__ import annotations

import math

import torch

from patternc.codegen import cache
from patternc.codegen.configs import padded
from patternc.codegen.device import on
from patternc.codegen.helpers import used_by
from patternc.codegen.matrices import strides
from patternc.codegen.tail_helpers import SOURCES

ROWS = 16  # rows at a time
CONSTANTS = ["HEADS", "DV", "BLOCK_DV", "BLOCK", "ALIGN"]
VECTOR = "at = (b * HEADS + h) * n_q + first + tl.arange(0, BLOCK)"


def parameters(*names: str) -> list[str]:
    return [p for name in names for p in (f"{name}_ptr", f"{name}_stride_b", f"{name}_stride_h", f"{name}_stride_n")]


def bases(*names: str) -> list[str]:
    return [f"{n}_base = {n}_ptr + b * {n}_stride_b * ALIGN + tl.cast(h, tl.int64) * {n}_stride_h * ALIGN" for n in names]


def load(name: str) -> str:
    return f"{name} = _load_slot({name}_base, first, ok, {name}_stride_n * ALIGN, e, DV, BLOCK).to(tl.float32)"


def store(name: str) -> str:
    return f"_store_slot({name}_base, first, ok, {name}_stride_n * ALIGN, e, {name}, DV, BLOCK)"


def program(rows: str) -> list[str]:
    """Which rows a program has."""
    return [
        f"parts = tl.cdiv(n_q, {rows})",
        "program = tl.program_id(0)",
        "h = program // parts % HEADS",
        "b = tl.cast(program // parts // HEADS, tl.int64)",
        "e = tl.arange(0, BLOCK_DV)",
    ]


def module(about: str, *parts: str) -> str:
    """The module's text: parts are functions and kernels."""
    body = "\n\n\n".join(part.strip() for part in parts) + "\n"
    return f'"""{about}, by patternc."""\n\nimport triton\nimport triton.language as tl\n\n{used_by(body, SOURCES)}\n\n{body}'


def launch(text: str, name: str, matrices: dict[str, torch.Tensor], values: dict, steps: int = 1) -> None:
    """Run a kernel of a module; `values` are its other parameters."""
    like = next(iter(matrices.values()))
    b, heads, n, dv = like.shape
    if not like.numel():
        return
    align = math.gcd(16, *(s for x in matrices.values() for s in strides(x)))
    values = {**values, "n_q": n, "HEADS": heads, "DV": dv, "BLOCK_DV": padded(dv), "BLOCK": ROWS, "ALIGN": align}
    for matrix, x in matrices.items():
        own = (s // align for s in strides(x))
        values |= {f"{matrix}_ptr": x, **dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), own))}
    with on(like.device):
        getattr(cache.load(text), name)[(b * heads * -(-n // (ROWS * steps)),)](**values, num_warps=4)
