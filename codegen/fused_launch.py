"""Host side of the fused backward: which calls it can run and where it pays, its launch, and what it needs beside its results."""

from __future__ import annotations

from collections.abc import Callable

import torch

from patternc.codegen import cache, fused
from patternc.codegen.call import Call
from patternc.codegen.configs import Config
from patternc.codegen.descriptors import reachable
from patternc.codegen.device import is_hopper, processors, shared_memory
from patternc.codegen.fused_order import KEYS, QUERIES, Order
from patternc.codegen.hopper_launch import DTYPES, describe_tiles, language
from patternc.codegen.launches import Launch
from patternc.codegen.matrices import empty

# Measured on an H200 (docs/performance.md): queries that a tile of keys visits, in one head and in all that share it, from which on this is
# faster; how long the longest row of them may be, in shares of the whole time, since rows are not cut; and bytes of q, do and dq of all heads whose
# programs run at once.
LONG, LONG_IN_ALL = 1024, 2048
EVEN = 0.5
NEAR = 36 << 20
MOST_SECTION = 4


def refusal(call: Call, matrices: dict[str, torch.Tensor]) -> str | None:
    """Why a backward is left to the portable kernels; None where this one can run it.

    Args:
        matrices: q, k, v and do, dk and dv.
    """
    q, v = matrices["q"], matrices["v"]
    if language is None:
        return "this Triton has no Gluon"
    if not is_hopper(q.device):
        return "it needs a Hopper card"
    if len({x.dtype for x in matrices.values()}) > 1 or q.dtype not in DTYPES:
        return f"tensors of {q.dtype}"
    if q.shape[3] != v.shape[3] or q.shape[3] not in QUERIES:
        return f"heads of width {q.shape[3]}, {v.shape[3]}"
    if not all(map(reachable, matrices.values())):
        return "strides or an address that TMA does not take"
    if fused.shared(q.shape[3]) > shared_memory(q.device):
        return "too little shared memory"
    if why := fused.covers(call.plan):
        return why
    order = call.order(q.shape[3]) if call.order is not None else None
    if order is None:
        return "no numbers say which tiles are visited, or these are many"
    return None if order.there(q.device) else "tables that a CUDA graph cannot copy"


def can(calls: list[Call], by_keys: list[Call], matrices: dict[str, torch.Tensor]) -> bool:
    """Whether this kernel can find the gradients of a pattern, whose parts have these calls for dq, and for dk and dv."""
    call, alone = calls[0], len(calls) == len(by_keys) == 1 and by_keys[0] is calls[0]
    return alone and call.variant in (None, "hopper") and not call.configs and refusal(call, matrices) is None


def pays(call: Call, matrices: dict[str, torch.Tensor]) -> bool:
    """Whether it is faster, as far as was measured, for a call that it can run."""
    q, k = matrices["q"], matrices["k"]
    order, heads, rounds = call.order(q.shape[3]), q.shape[1] // k.shape[1], grid(k) / processors(q.device)
    queries = order.visits * order.queries
    long = queries >= LONG and queries * heads >= LONG_IN_ALL
    return call.variant == "hopper" or (long and order.most <= EVEN * order.visits * rounds)


def grid(k: torch.Tensor) -> int:
    return k.shape[0] * k.shape[1] * -(-k.shape[2] // KEYS)


def section_of(order: Order, q: torch.Tensor, k: torch.Tensor) -> int:
    """Key heads whose programs are taken in turn.  Where all begin with the same queries, a program waits for the one before it, which then
    is one of another time; where each begins with its own, it hardly waits, and memory is better used by one head after the other."""
    if not order.alike:
        return 1
    pairs, bytes_each = k.shape[0] * k.shape[1], q.shape[2] * q.shape[1] // k.shape[1] * q.shape[3] * 8
    most = min(MOST_SECTION, max(NEAR // bytes_each, 1))
    return max(s for s in range(1, most + 1) if pairs % s == 0)


def prepare(call: Call, matrices: dict[str, torch.Tensor]) -> Launch:
    """What is decided once for inputs of one layout."""
    q, k = matrices["q"], matrices["k"]
    width = q.shape[3]
    source = fused.generate(call.plan, width)
    sizes = {"HEADS": q.shape[1], "GROUP": q.shape[1] // k.shape[1], "D": width, "STAGES": fused.STAGES}
    values = {**sizes, "n_q": q.shape[2], "n_k": k.shape[2], "key_tiles": -(-k.shape[2] // KEYS)}
    descriptors = {f"{name}_desc": (name, _described(x)) for name, x in matrices.items()}
    kernel = source.kernels["backward"]
    config = Config(QUERIES[width], KEYS, 4, fused.STAGES)
    return Launch(kernel, cache.load(source.text).backward, config, grid(k), q.shape[0] * k.shape[1], values, [], descriptors)


def tables(call: Call, matrices: dict[str, torch.Tensor]) -> dict:
    """Parameters that depend on which tiles are visited."""
    q = matrices["q"]
    order = call.order(q.shape[3])
    first, entries = order.on(q.device)
    return {"first_ptr": first, "entries_ptr": entries, "section": section_of(order, q, matrices["k"])}


def _described(x: torch.Tensor):
    """A descriptor for tiles of 64 rows; of sums in float32 for 64 of their columns."""
    made = describe_tiles(x, 64, 64 if x.dtype == torch.float32 else x.shape[3])
    made.base = None
    return made


def gradients(
    order: Order, launch: Callable[[dict, dict], None], matrices: dict[str, torch.Tensor], results: tuple, values: dict, vectors: tuple
) -> None:
    """Find dq, dk and dv, which `results` are memory for.

    Args:
        order: in which programs add to dq.
        launch: `launch(matrices, values)` launches the kernel.
        values: `scale` and `score_scale`.
        vectors: the two of `launch.row_vectors`, delta and lse.
    """
    q, (dq, dk, dv), (delta, lse2) = matrices["q"], results, vectors
    b, heads, n, width = q.shape
    sums = empty(q, n, width, torch.float32)
    if order.gaps:
        sums.zero_()  # nobody stores what nobody visits
    counts = torch.zeros(1 + b * heads * -(-n // order.queries), dtype=torch.int32, device=q.device)
    launch({**matrices, "dq": sums, "dk": dk, "dv": dv}, {**values, "counts_ptr": counts, "delta_ptr": delta, "lse2_ptr": lse2})
    torch.mul(sums, values["scale"], out=dq)


def examples(q: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """A little of what the sums are, and parameters, for compiling."""
    some = torch.empty(1, 1, 64, q.shape[3], dtype=torch.float32, device=q.device)
    return some, {"counts_ptr": torch.empty(1, dtype=torch.int32, device=q.device), "delta_ptr": some, "lse2_ptr": some}
