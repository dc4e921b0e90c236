"""What kernels share that pass over the rows of several matrices once: parameters, loads and stores as text, and the launch.

A program has one head of one batch row and `BLOCK` rows, or as many `STEPS` times.  Matrices are [B, H, n, DV], vectors [B, H, n].
"""

from __future__ import annotations

import math

import torch

from patternc.codegen import cache
from patternc.codegen.configs import Config, padded
from patternc.codegen.device import on
from patternc.codegen.helpers import used_by
from patternc.codegen.launches import Launch
from patternc.codegen.matrices import strides
from patternc.codegen.tail_helpers import SOURCES

ENTRIES = 4096  # of a matrix that a program takes at a time
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


_launches: dict[tuple, Launch] = {}
MOST_LAUNCHES = 1024


def rows_of(value_dim: int) -> int:
    """Rows that a program takes at a time."""
    return min(max(ENTRIES // padded(value_dim), 16), 64)


def launch(text: str, name: str, matrices: dict, vectors: dict[str, torch.Tensor], steps: int = 1, block: int | None = None, **constants) -> None:
    """Run a kernel of a module; `vectors` and `constants` are its other parameters.

    Args:
        steps: times that a program takes rows.
        block: how many it takes at a time; `rows_of` by default.
    """
    like = next(iter(matrices.values()))
    if not like.numel():
        return
    block = block or rows_of(like.shape[3])
    key = text, name, like.device, steps, block, *constants.values(), *[(x.dtype, x.shape, x.stride(), x.data_ptr() % 16) for x in matrices.values()]
    made = _launches.get(key)
    if made is None:
        if len(_launches) >= MOST_LAUNCHES:
            _launches.clear()
        made = _launches[key] = _prepare(text, name, matrices, steps, block, constants)
    with on(like.device):
        made.run(made.grid, {f"{x}_ptr": vector for x, vector in vectors.items()}, matrices)


def _prepare(text: str, name: str, matrices: dict[str, torch.Tensor], steps: int, block: int, constants: dict) -> Launch:
    b, heads, n, dv = next(iter(matrices.values())).shape
    align = math.gcd(16, *(s for x in matrices.values() for s in strides(x)))
    values = {**constants, "n_q": n, "HEADS": heads, "DV": dv, "BLOCK_DV": padded(dv), "BLOCK": block, "ALIGN": align}
    for matrix, x in matrices.items():
        own = (s // align for s in strides(x))
        values |= dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), own))
    grid = b * heads * -(-n // (block * steps))
    return Launch(None, getattr(cache.load(text), name), Config(block, block, 4, 3), grid, 1, values, list(matrices), {})
