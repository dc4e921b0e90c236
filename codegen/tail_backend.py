"""Terms on the Triton backend (see `patternc.tail_runtime`): a compiled attention, tensors and bound args in."""

from __future__ import annotations

import torch

from patternc.args import Bound
from patternc.codegen.tail_launch import SlotTables, TailCall, tail_backward as _backward, tail_forward as _forward
from patternc.errors import BackendError
from patternc.expr.pattern import all_of, negate
from patternc.kept import unchanged
from patternc.tail import result_of
from patternc.tail_plan import Scan, TailPlan, tail_plan
from patternc.tail_slots import slots_of

MOST_PLANS = 64
MOST_TABLES = 16  # slots on a device that are kept


def plan_of(compiled, bound: Bound) -> TailPlan:
    """The class of a call's R = D - E; kept as long as nothing writes to the args.  Looks at the values of args, so it waits for their device."""
    key = unchanged(bound)
    kept = compiled.state.setdefault("tail plans", {})
    if key is not None and key in kept:
        return kept[key][0]
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        if not all(isinstance(x, int) for x in (bound.q_start, *bound.values.values())):
            what = "the values of args decide how this term is summed, and a capture cannot look at them"
            raise BackendError(what, typed=str(compiled.spec), fix="capture the pattern without its term")
    plan = tail_plan(all_of(compiled.spec.domain, negate(compiled.exact)), bound)
    if key is not None:
        if len(kept) >= MOST_PLANS:
            kept.pop(next(iter(kept)))
        kept[key] = plan, bound  # the values stay alive, so that the memory that the key names is not given to others
    return plan


def tail_refusal(compiled, bound: Bound) -> str | None:
    """Why a term has no kernels; None where it has."""
    plan = plan_of(compiled, bound)
    return None if plan.kind == "0" or plan.scans else f"pairs of class {plan.kind}: {plan.why}"


def tail_forward(compiled, q, k, v, feature: str, sums: bool, bound: Bound, keep: bool, onto: tuple | None = None):
    """`onto`: `(y, weights)` that the results are written to."""
    plan, (y, weights), kept = plan_of(compiled, bound), onto or (None, None), []
    scans = plan.scans if q.numel() and v.numel() else ()
    for i, scan in enumerate(scans):
        given = None if y is None else (y, weights)
        y, weights, states = _forward(call_of(compiled, scan, bound, feature, q.device), q, k, v, sums, keep, given, i > 0)
        kept += states if keep else []
    if onto is not None and not scans:
        y.zero_()
    if y is None:
        y = q.new_zeros(*q.shape[:3], v.shape[3], dtype=result_of(v.dtype))
        weights = q.new_zeros(q.shape[:3], dtype=torch.float32) if sums else None
    return y, weights, kept


def tail_backward(compiled, dy, dweights, q, k, v, kept, feature: str, bound: Bound, onto: tuple | None = None):
    """Gradients of q, k and v; in place of `onto`, gradients that they are added to, where it is given."""
    plan, total = plan_of(compiled, bound), onto
    for i, scan in enumerate(plan.scans if q.numel() and v.numel() else ()):
        states = tuple(kept[2 * i : 2 * i + 2]) if kept else None
        total = _backward(call_of(compiled, scan, bound, feature, q.device), q, k, v, dy, dweights, states, total)
    return (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)) if total is None else total


def call_of(compiled, scan: Scan, bound: Bound, feature: str, device: torch.device) -> TailCall:
    kept = compiled.state.setdefault("slots", {})

    def tables(block: int) -> SlotTables:
        key = scan, block, device
        if key not in kept:
            if len(kept) >= MOST_TABLES:
                kept.pop(next(iter(kept)))
            start = bound.q_start if isinstance(bound.q_start, int) else bound.numpy().q_start
            kept[key] = SlotTables.of(slots_of(scan, start, bound.n_q, bound.n_k, block), device)
        return kept[key]

    return TailCall(feature, tables)
