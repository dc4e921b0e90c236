"""Host side of the Hopper forward: which calls it can run, and its descriptors."""

from __future__ import annotations

import torch

from patternc.codegen import hopper
from patternc.codegen.call import Call
from patternc.codegen.descriptors import describe, reachable
from patternc.codegen.device import is_hopper, shared_memory
from patternc.codegen.generated import Kernel
from patternc.codegen.hopper_choice import Choice, choose, pays, sizes
from patternc.codegen.lines import lines_of
from patternc.errors import BackendError

try:
    from triton.experimental.gluon import language
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
except ImportError:  # an older Triton
    language = None

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
NAMES = {**DTYPES, torch.float32: "fp32"}


def refusal(call: Call, later: bool, matrices: dict[str, torch.Tensor]) -> str | None:
    """Why a forward is left to the portable kernel; None where this one can run it."""
    q, v, lines = matrices["q"], matrices["v"], lines_of(call.plan)
    if language is None:
        return "this Triton has no Gluon"
    if not is_hopper(q.device):
        return "it needs a Hopper card"
    if others := [x.dtype for x in matrices.values() if x.dtype not in DTYPES]:
        return f"tensors of {others[0]}"  # results too, where other parts of the pattern are added to them
    if q.shape[3] not in hopper.WIDTHS or v.shape[3] != q.shape[3]:
        return f"heads of width {q.shape[3]}, {v.shape[3]}"
    if not all(map(reachable, matrices.values())):
        return "strides or an address that TMA does not take"
    if why := hopper.covers(lines.plan, later):
        return why
    if lines.count > 1 and not all(isinstance(n, int) and n % lines.count == 0 for n in (call.q_start, q.shape[2], v.shape[2])):
        return "lines of different lengths"
    tile, config = sizes(lines, matrices)
    if hopper.shared_bytes(config, q.shape[3], tile) > shared_memory(q.device):
        return "too little shared memory"
    return None


def takes(call: Call, name: str, later: bool, matrices: dict[str, torch.Tensor]) -> Choice | None:
    """How a call's kernel is launched where it is this one.  Raises BackendError where the call insists and it cannot be."""
    if name != "forward" or call.variant not in (None, "hopper"):
        return None
    why = refusal(call, later, matrices)
    if call.variant is None:
        choice = choose(call, matrices) if why is None else None
        return choice if choice is not None and pays(choice, matrices["q"].shape[3], matrices["q"].device) else None
    if why:
        raise BackendError(f"the Hopper forward does not run this: {why}", fix="leave `variant` out")
    return choose(call, matrices)


def chosen_by(call: Call, name: str, later: bool, matrices: dict[str, torch.Tensor]) -> tuple:
    """What decides, beside layouts, whether a call's kernel is this one and how its row tiles are dealt: a capture copies no order to the device."""
    if name != "forward" or refusal(call, later, matrices):
        return ()
    numbers = tuple(x for x in (call.q_start, *call.args.values()) if isinstance(x, int))
    return *numbers, matrices["q"].is_cuda and torch.cuda.is_current_stream_capturing()


def descriptors(kernel: Kernel, matrix: str, x: torch.Tensor, choice: Choice) -> dict[str, tuple[str, TensorDescriptor]]:
    """The descriptors of q, k, v or o by parameter, without their tensor."""
    pack, lines = choice.tile.pack, choice.lines.count
    rows, heads = (hopper.ROWS // pack, pack) if matrix in ("q", "o") else (choice.config.block_n, 1)
    found = {f"{matrix}_desc": _describe_lines(x, lines, rows, heads)}
    if f"{matrix}0_desc" in kernel.parameters:
        found[f"{matrix}0_desc"] = _describe_lines(x, lines, choice.tile.positions)
    for made in found.values():
        made.base = None
    return {name: (matrix, made) for name, made in found.items()}


def tile_layout(block: list[int], dtype: str):
    """The layout in shared memory of a descriptor's tiles of "bf16", "fp16" or "fp32"."""
    types = {"bf16": language.bfloat16, "fp16": language.float16, "fp32": language.float32}
    return language.NVMMASharedLayout.get_default_for(block, types[dtype])


def describe_tiles(x: torch.Tensor, rows: int, width: int):
    """Gluon's descriptor of [B, heads, n, d] for tiles of [rows, width]."""
    plain = describe(x, rows, width, "descriptors")
    return TensorDescriptor(x, plain.shape, plain.strides, plain.block_shape, tile_layout(plain.block_shape, NAMES[x.dtype]))


def _describe_lines(x: torch.Tensor, lines: int, rows: int, heads: int = 1):
    """Gluon's descriptor of [B, heads, lines, n / lines, d] for tiles of [heads, rows, d]."""
    b, h, n, d = x.shape
    *steps, step = describe(x, rows, d, "descriptors").strides[:3]
    block = tile_block(heads, rows, d)
    return TensorDescriptor(x, [b, h, lines, n // lines, d], [*steps, step, lines * step, 1], block, tile_layout(block, DTYPES[x.dtype]))


def tile_block(heads: int, rows: int, d: int) -> list[int]:
    """The shape of a tile in the axes of the tensors that the forward describes: batch rows, heads, lines, positions of a line, columns."""
    return [1, heads, 1, rows, d]
