"""Running the kernels: tensors and runtime values in, outputs and gradients out.

Shapes: q [B, H, n_q, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv], o [B, H, n_q, Dv], lse [B, H, n_q] (float32, natural log).
Everything here is checked by the caller: dtypes (float16, bfloat16, float32), devices, shapes and args.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial

import torch
import triton
from triton.runtime.errors import OutOfResources

from patternc.codegen import fused_launch
from patternc.codegen.call import Call
from patternc.codegen.device import kept_on, precision
from patternc.codegen.dispatch import renamed
from patternc.codegen.launches import captured
from patternc.codegen.lengths import compile_beside, compile_others, first_launch, settle
from patternc.codegen.matrices import empty, in_rows
from patternc.codegen.prepared import step_down
from patternc.codegen.ready import Ready, ready_of
from patternc.kept import layout_of
from patternc.orders.boxes import BoxAxis
from patternc.orders.vectors import gathered, whole

LOG2E = 1.4426950408889634

Partial = tuple[torch.Tensor, torch.Tensor]  # o in float32 and lse of earlier parts of a pattern


def attention_forward(
    call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: Partial | None = None, partial: bool = False,
    tape: list[Ready] | None = None,
) -> Partial:
    """`(o, lse)`; of a pattern in parts, one call each: `before` is what the parts before it found, `partial` that more follow.

    Args:
        tape: a list that what is launched is added to.
    """
    o = empty(q, q.shape[2], v.shape[3], torch.float32 if partial else q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    q, scale, _ = _positive(q, call.scale)
    matrices = {"q": in_rows(q), "k": in_rows(k), "v": in_rows(v), "o": o}
    extra = {"lse_ptr": lse, "score_scale": scale * LOG2E}
    if before is not None:
        matrices["o0"], extra["lse0_ptr"] = before
    _launch(call, "forward", matrices, extra, before is not None, tape=tape)
    return o, lse


def attention_backward(
    calls: Call | list[Call], q, k, v, o, lse, do, dlse=None, by_keys: list[Call] | None = None, onto: tuple | None = None, vectors=None,
    tape: list[Ready] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(dq, dk, dv)` from the forward's inputs and results and the gradients of `o` and, where it has one, of `lse`.

    Args:
        calls: of the parts of a pattern, for dq.
        by_keys: of its parts for dk and dv, by default the same.
        onto: tensors, of the dtypes of q, k and v, that the results are written to.
        vectors: `row_vectors` that are known already.
        tape: as for a forward; what finds `vectors` first, then what finds dq, dk and dv.
    """
    calls = calls if isinstance(calls, list) else [calls]
    do = in_rows(do.to(o.dtype), warn=False)
    known, vectors = vectors is not None, row_vectors(lse) if vectors is None else vectors
    flipped, scale, sign = _positive(q, calls[0].scale)
    matrices = {"q": in_rows(flipped), "k": in_rows(k), "v": in_rows(v), "do": do}
    shared = {"scale": scale, "score_scale": scale * LOG2E}
    by_keys = [part for call in by_keys or calls for part in call.by_key_heads(q.shape[1] // k.shape[1])]
    dq, dk, dv = onto or (empty(x, x.shape[2], x.shape[3], x.dtype) for x in (q, k, v))
    call, chains = calls[0], (("backward_dq", calls, {"dq": dq}), ("backward_dkdv", by_keys, {"dk": dk, "dv": dv}))
    can_fuse = fused_launch.can(calls, by_keys, {**matrices, "dk": dk, "dv": dv})
    together = can_fuse and fused_launch.pays(call, matrices)
    if len(calls) == len(by_keys) == 1 and not together:
        for kernel, (one,), own in reversed(chains):
            _compile_ahead(one, kernel, matrices | own, shared, vectors)
    if not known:
        delta, lse2 = vectors
        extra = {"lse_ptr": lse, "dlse_ptr": of_rows(dlse), "delta_ptr": delta, "lse2_ptr": lse2}
        _launch(call, "backward_rows", {"o": in_rows(o), "do": do}, extra, tape=tape)
    if together:
        launch = partial(_launch, call, "backward", tape=tape)
        fused_launch.gradients(call.order(q.shape[3]), launch, matrices, (dq, dk, dv), shared, vectors.unbind())
    for kernel, chain, own in chains if not together else ():
        before: dict[str, torch.Tensor] = {}
        for part in chain:
            mine = own if part is chain[-1] else {name: empty(x, x.shape[2], x.shape[3], torch.float32) for name, x in own.items()}
            _launch(part, kernel, {**matrices, **mine, **before}, shared, bool(before), in_order(part, kernel, vectors, q.shape[2]), tape)
            before = {f"{name}0": x for name, x in mine.items()}
    if can_fuse:
        _compile_instead(call, together, matrices, [(kernel, own) for kernel, _, own in chains], shared, vectors)
    return (dq if sign == 1 else dq.neg_() if sign else dq.zero_()), dk, dv


def row_vectors(lse: torch.Tensor) -> torch.Tensor:
    """Memory for delta and lse in base 2 of each query, as the kernels of the backward read them: [2, B, H, n_q and more]."""
    b, heads, n = lse.shape
    return torch.empty(2, b, heads, whole(n), dtype=torch.float32, device=lse.device)


def of_rows(x: torch.Tensor | None) -> torch.Tensor | None:
    """lse or its gradient, where there is one, as the kernels read it: float32, without gaps."""
    return None if x is None else x.resolve_neg().float().contiguous()


def run_kernel(call: Call, kernel: str, q, k, v, do, merge: bool = False) -> Callable[[], None]:
    """One launch of one kernel alone, for timing: lse and delta are zeros.

    Args:
        merge: the launch is that of a part between others, which reads and writes float32.
    """
    dtype = torch.float32 if merge else q.dtype
    o, lse = torch.empty_like(do, dtype=dtype), torch.zeros(q.shape[:3], device=q.device)
    vectors = torch.zeros(2, *q.shape[:2], whole(q.shape[2]), device=q.device)
    matrices, extra, each = {"q": q, "k": k, "v": v}, {"score_scale": call.scale * LOG2E}, []
    if kernel == "forward":
        matrices["o"], extra["lse_ptr"] = o, lse
        if merge:
            matrices["o0"], extra["lse0_ptr"] = torch.zeros_like(o), torch.zeros_like(lse)
    elif kernel == "backward_rows":
        matrices, extra = {"o": do, "do": do}, {"lse_ptr": lse, "dlse_ptr": None, "delta_ptr": vectors[0], "lse2_ptr": vectors[1]}
    else:
        each = in_order(call, kernel, vectors, q.shape[2])
        extra |= {"scale": call.scale}
        own = {"backward_dq": {"dq": q}, "backward_dkdv": {"dk": k, "dv": v}}[kernel]
        matrices |= {"do": do, **{name: torch.empty_like(x, dtype=dtype) for name, x in own.items()}}
    return lambda: _launch(call, kernel, matrices, extra, merge, each)


def in_order(call: Call, kernel: str, vectors: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
    """Vectors of the queries [.., n], delta and lse, as a kernel's members read them: dk/dv may want those of a box to lie together."""
    out = []
    for member in call.members(kernel):
        scattered = is_scattered(member, kernel) and vectors.numel()
        places = _gathered(member.axis(kernel), member.q_start, count, vectors.device) if scattered else None
        if scattered and vectors.is_cuda and torch.cuda.is_current_stream_capturing():
            captured.append(places)
        delta, lse2 = (vectors.index_select(-1, places) if scattered else vectors).unbind()
        out.append({"delta_ptr": delta, "lse2_ptr": lse2})
    return out


def is_scattered(member: Call, kernel: str) -> bool:
    """Whether a kernel reads vectors of rows in an order of its own."""
    axis = member.axis(kernel)
    return kernel == "backward_dkdv" and axis.kind == "boxes" and axis.scattered


@lru_cache(maxsize=64)
def _gathered(axis: BoxAxis, first: int, count: int, device: torch.device) -> torch.Tensor:
    return kept_on(torch.from_numpy(gathered(axis, first, count)), device)


def _positive(q: torch.Tensor, scale: float) -> tuple[torch.Tensor, float, int]:
    """Inputs with an equal result and a positive scale: the kernels order scores before they scale them."""
    scale = float(scale)
    if scale > 0 or math.isnan(scale):
        return q, scale, 1
    return (-q, -scale, -1) if scale else (torch.zeros_like(q), 1.0, 0)


# Launching one kernel


def _launch(
    call: Call, name: str, matrices: dict[str, torch.Tensor], extra: dict, later: bool = False, each: list[dict] = (), tape: list[Ready] | None = None
) -> None:
    """Run a kernel; `extra` are parameters that the call decides, `each` those that every member of the call has for itself."""
    device, key = _key(name, matrices, later)
    while True:
        ready = call.ready.get(key) if call.ready is not None else None
        new = ready is None
        if new:
            ready = ready_of(call, name, matrices, later, device, key)
            settle(ready.launch)
        values = values_of(ready, extra, each)
        try:
            if ready.grid:
                with first_launch() if new else nullcontext():
                    ready.run(values, matrices, device)
                if new:
                    compile_others(call, ready, matrices, values, later, device)
            if tape is not None:
                tape.append(ready)
            return
        except OutOfResources as error:
            if call.ready is not None:
                call.ready.pop(key, None)
            step_down(call, name, ready.launch, ready.key, error)


_launched: set[tuple] = set()  # for what backwards were launched, fused or not
MOST_LAUNCHED = 4096


def _compile_instead(call: Call, together: bool, matrices: dict[str, torch.Tensor], apart: list[tuple[str, dict]], extra: dict, vectors) -> None:
    """Have that compiled which calls of other lengths launch in the place of a backward, fused or not; once for its plan.

    Args:
        together: it is the fused one.
        apart: the other kernels, with their results.
    """
    q, k = matrices["q"], matrices["k"]
    key = call.plan, q.device, q.dtype, q.shape[1], k.shape[1], together
    if key in _launched:
        return
    if len(_launched) >= MOST_LAUNCHED:
        _launched.clear()
    _launched.add(key)
    if together:
        for kernel, own in apart:
            _compile_ahead(call, kernel, matrices | own, extra, vectors, instead=True)
    else:
        sums, values = fused_launch.examples(q)
        _compile_ahead(call, "backward", matrices | apart[1][1] | {"dq": sums}, extra | values, instead=True)


def _compile_ahead(call: Call, name: str, matrices: dict[str, torch.Tensor], extra: dict, vectors=None, instead: bool = False) -> None:
    """Have a kernel of a backward compiled beside the one before it, where it was not launched yet.

    Args:
        instead: calls of other lengths launch it in the place of what is launched; once, and later.
    """
    if call.ready is None or triton.knobs.runtime.interpret:
        return
    device, key = _key(name, matrices, False)
    if key not in call.ready:
        ready = ready_of(call, name, matrices, False, device, key)
        call.ready.pop(key, None)  # its launch is the first one
        values = values_of(ready, extra, in_order(call, name, vectors, matrices["q"].shape[2]) if vectors is not None else ())
        if instead:
            compile_others(call, ready, matrices, values, False, device, instead=True)
        elif ready.grid:
            compile_beside(ready, matrices, values, device)


def _key(name: str, matrices: dict[str, torch.Tensor], later: bool) -> tuple[torch.device, tuple]:
    """The device of a launch, and what it depends on beside its call."""
    any_v = matrices.get("v", matrices.get("do"))
    return any_v.device, (name, any_v.device, any_v.dtype, precision(any_v.dtype), later, *[layout_of(x) for x in matrices.values()])


def values_of(ready: Ready, extra: dict, each: list[dict]) -> dict:
    """Parameters of a launch: those of the call, and those that every member of it has for itself."""
    values = dict(extra)
    for number, (part, own) in enumerate(zip(ready.launch.kernel.groups or (ready.launch.kernel,), each)):
        values |= renamed(number, part, own)
    return values
