"""Host side of the Hopper forward: when it is taken, and its descriptors."""

from __future__ import annotations

import torch

from patternc.codegen import configs, hopper
from patternc.codegen.call import Call
from patternc.codegen.configs import Config
from patternc.codegen.descriptors import describe, reachable
from patternc.codegen.device import is_hopper, processors, shared_memory
from patternc.codegen.generated import Kernel
from patternc.codegen.lines import lines_of
from patternc.errors import BackendError
from patternc.plan import Plan

try:
    from triton.experimental.gluon import language
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
except ImportError:  # an older Triton
    language = None

# Measured on an H100 and an H200 (docs/performance.md).  From so many row tiles a processor on, programs may stay, each for many of them.  Then
# rows may be short: any with a narrow tile, others of a causal pattern from SHORT tiles on.  Else rows must be LONG to be faster than by the
# portable kernel.  Rows without a narrow tile and LASTING are balanced better by the device, which starts a program for each.
MANY, SHORT, LONG, LASTING = 16, 4, 12, 24
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def refusal(call: Call, later: bool, matrices: dict[str, torch.Tensor]) -> str | None:
    """Why a forward is left to the portable kernel; None where this one can run it."""
    q, v, lines = matrices["q"], matrices["v"], lines_of(call.plan)
    if language is None:
        return "this Triton has no Gluon"
    if not is_hopper(q.device):
        return "it needs a Hopper card"
    if q.dtype not in DTYPES:
        return f"inputs of {q.dtype}"
    if q.shape[3] not in hopper.WIDTHS or v.shape[3] != q.shape[3]:
        return f"heads of width {q.shape[3]}, {v.shape[3]}"
    if not all(map(reachable, matrices.values())):
        return "strides or an address that TMA does not take"
    if why := hopper.covers(lines.plan, later):
        return why
    if lines.count > 1 and not all(isinstance(n, int) and n % lines.count == 0 for n in (call.q_start, q.shape[2], v.shape[2])):
        return "lines of different lengths"
    pack = pack_of(lines.plan, matrices)
    if hopper.shared_bytes(_config(q), q.shape[3], pack, pack > 1 and hopper.narrow(lines.plan)) > shared_memory(q.device):
        return "too little shared memory"
    return None


def _config(q: torch.Tensor) -> Config:
    return configs.candidates("forward", "hopper", q.shape[3], q.shape[3], 2)[0]


def pays(call: Call, matrices: dict[str, torch.Tensor]) -> bool:
    """Whether a forward that this kernel can run is faster by it than by the portable kernel, as far as was measured."""
    q, config, lines = matrices["q"], _config(matrices["q"]), lines_of(call.plan)
    plan, pack = lines.plan, pack_of(lines.plan, matrices)
    if plan.forward.kind == "list" or plan.forward.filler is not None:
        return False
    n_q = call.lengths[0] if call.lengths else q.shape[2]
    items = lines.count * q.shape[0] * q.shape[1] // pack * -(-n_q // (lines.count * config.block_m // pack))
    if items < processors(q.device):  # the portable kernel's rows can be cut
        return False
    many = hopper.narrow(plan) and items >= MANY * processors(q.device)
    if many and pack > 1:
        return True
    if q.shape[3] < 128:
        return False
    length = call.length(config.block_m // pack, config.block_n) if call.length is not None else None
    return length is not None and length >= (SHORT if many else LONG)


def takes(call, name: str, later: bool, matrices: dict[str, torch.Tensor]) -> bool:
    """Whether a call's kernel is this one.  Raises BackendError where the call insists and it cannot be."""
    if name != "forward" or call.variant not in (None, "hopper"):
        return False
    why = refusal(call, later, matrices)
    if call.variant is None:
        return why is None and pays(call, matrices)
    if why:
        raise BackendError(f"the Hopper forward does not run this: {why}", fix="leave `variant` out")
    return True


def pack_of(plan: Plan, matrices: dict[str, torch.Tensor]) -> int:
    """`hopper.pack_of` of a call."""
    q, k = matrices["q"], matrices["k"]
    return hopper.pack_of(plan, q.shape[3], q.shape[1], k.shape[1])


def programs(call: Call, pack: int, config: Config, items: int, device: torch.device) -> int:
    """Programs for so many row tiles: one for each, or one for each processor, which stays."""
    if items < MANY * processors(device):
        return items
    if pack == 1 or not hopper.narrow(lines_of(call.plan).plan):
        length = call.length(config.block_m, config.block_n) if call.length is not None else None
        if length is not None and length >= LASTING:
            return items
    return processors(device)


def descriptors(kernel: Kernel, matrix: str, x: torch.Tensor, config: Config, pack: int, lines: int) -> dict[str, tuple[str, TensorDescriptor]]:
    """The descriptors of q, k, v or o by parameter, without their tensor."""
    queries = matrix in ("q", "o")
    found = {f"{matrix}_desc": _describe_lines(x, lines, hopper.ROWS // pack if queries else config.block_n, pack if queries else 1)}
    if f"{matrix}0_desc" in kernel.parameters:
        found[f"{matrix}0_desc"] = _describe_lines(x, lines, config.block_m)
    for made in found.values():
        made.base = None
    return {name: (matrix, made) for name, made in found.items()}


def tile_layout(block: list[int], dtype: str):
    """The layout in shared memory of a descriptor's tiles of "bf16" or "fp16"."""
    return language.NVMMASharedLayout.get_default_for(block, {"bf16": language.bfloat16, "fp16": language.float16}[dtype])


def describe_tiles(x: torch.Tensor, rows: int, width: int):
    """Gluon's descriptor of [B, heads, n, d] for tiles of [rows, width]."""
    plain = describe(x, rows, width, "descriptors")
    return TensorDescriptor(x, plain.shape, plain.strides, plain.block_shape, tile_layout(plain.block_shape, DTYPES[x.dtype]))


def _describe_lines(x: torch.Tensor, lines: int, rows: int, heads: int = 1):
    """Gluon's descriptor of [B, heads, lines, n / lines, d] for tiles of [heads, rows, d]."""
    b, h, n, d = x.shape
    *steps, step = describe(x, rows, d, "descriptors").strides[:3]
    block = tile_block(heads, rows, d)
    return TensorDescriptor(x, [b, h, lines, n // lines, d], [*steps, step, lines * step, 1], block, tile_layout(block, DTYPES[x.dtype]))


def tile_block(heads: int, rows: int, d: int) -> list[int]:
    """The shape of a tile in the axes of the tensors that the forward describes: batch rows, heads, lines, positions of a line, columns."""
    return [1, heads, 1, rows, d]
