"""Terms on the Triton backend (see `patternc.tail_runtime`): a compiled attention, tensors and bound args in."""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch

from patternc.args import Bound
from patternc.codegen.parameters import prepared_args
from patternc.codegen.tail_blocks_launch import BlockCall, BlockTables, block_backward, block_forward
from patternc.codegen.tail_call import SlotTables, TailCall, at_once
from patternc.codegen.tail_launch import tail_backward as _backward, tail_forward as _forward
from patternc.codegen.tail_levels import Orders, level_backward, level_forward, orders_of, scans_pay
from patternc.codegen.widths import check_width
from patternc.errors import BackendError
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.kept import data_of, keep_with, unchanged
from patternc.plan import mask_of
from patternc.tail import result_of
from patternc.tail_blocks import best_blocks
from patternc.tail_plan import Level, Scan, TailPlan, tail_plan
from patternc.tail_slots import slots_of

MOST_PLANS = 64
MOST_TABLES = 64  # slots and blocks on a device that are kept


def rest_of(compiled) -> Pattern:
    """R = D - E."""
    return all_of(compiled.spec.domain, negate(compiled.exact))


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
    plan = tail_plan(rest_of(compiled), bound)
    if key is not None:
        if len(kept) >= MOST_PLANS:
            kept.pop(next(iter(kept)))
        kept[key] = plan, bound  # the values stay alive, so that the memory that the key names is not given to others
    return plan


def tail_forward(compiled, q, k, v, feature: str, sums: bool, bound: Bound, keep: bool, onto: tuple | None = None, watch=None):
    """`onto`: `(y, weights)` that the results are written to.  `watch`: as in `TailCall`."""
    plan, (y, weights), kept = plan_of(compiled, bound), onto or (None, None), []
    if plan.kind in ("X", "N") and q.numel() and v.numel():
        levels = levels_of(compiled, plan, bound, feature, q, k, v)
        if levels is None:
            return *block_forward(block_call_of(compiled, bound, feature, q, k, v, watch), q, k, v, sums, onto), []
        return *level_forward(levels, in_order(compiled, bound, feature, q.device, watch), q, k, v, sums, onto), []
    scans = plan.scans if q.numel() and v.numel() else ()
    for i, scan in enumerate(scans):
        given = None if y is None else (y, weights)
        y, weights, states = _forward(call_of(compiled, scan, bound, feature, q.device, watch), q, k, v, sums, keep, given, i > 0)
        kept += states if keep else []
    if onto is not None and not scans:
        y.zero_()
    if y is None:
        y = q.new_zeros(*q.shape[:3], v.shape[3], dtype=result_of(v.dtype))
        weights = q.new_zeros(q.shape[:3], dtype=torch.float32) if sums else None
    return y, weights, kept


def tail_backward(compiled, dy, dweights, q, k, v, kept, feature: str, bound: Bound, onto: tuple | None = None, watch=None):
    """Gradients of q, k and v; in place of `onto`, gradients that they are added to, where it is given."""
    plan, total = plan_of(compiled, bound), onto
    if plan.kind in ("X", "N") and q.numel() and v.numel():
        levels = levels_of(compiled, plan, bound, feature, q, k, v)
        if levels is None:
            return block_backward(block_call_of(compiled, bound, feature, q, k, v, watch), q, k, v, dy, dweights, onto)
        return level_backward(levels, in_order(compiled, bound, feature, q.device, watch), q, k, v, dy, dweights, onto)
    for i, scan in enumerate(plan.scans if q.numel() and v.numel() else ()):
        states = tuple(kept[2 * i : 2 * i + 2]) if kept else None
        total = _backward(call_of(compiled, scan, bound, feature, q.device, watch), q, k, v, dy, dweights, states, total)
    return (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)) if total is None else total


def call_of(compiled, scan: Scan, bound: Bound, feature: str, device: torch.device, watch=None) -> TailCall:
    """A scan's call, kept with the args; not where launches are watched."""
    data = data_of(bound)
    key = None if data is None or watch is not None else ("term", compiled, scan, feature, device, data)
    found = bound.kept.get(key)
    if found is not None:
        return found
    kept = compiled.state.setdefault("slots", {})

    def tables(block: int) -> SlotTables:
        key = scan, block, device
        if key not in kept:
            if len(kept) >= MOST_TABLES:
                kept.pop(next(iter(kept)))
            start = bound.q_start if isinstance(bound.q_start, int) else bound.numpy().q_start
            kept[key] = SlotTables.of(slots_of(scan, start, bound.n_q, bound.n_k, block), device)
        return kept[key]

    call = TailCall(feature, tables, runs=None if key is None else {}, watch=watch or at_once)
    return call if key is None else keep_with(bound, key, call)


def in_order(compiled, bound: Bound, feature: str, device: torch.device, watch):
    """`call_of` by scan, for scans whose positions are places in an order."""
    key = ("places",)
    places = bound.kept.get(key) or keep_with(bound, key, replace(bound, q_start=0))
    return lambda scan: call_of(compiled, scan, places, feature, device, watch)


def block_call_of(compiled, bound: Bound, feature: str, q, k, v, watch=None) -> BlockCall:
    """The call of block sums."""
    mask, on_device = mask_of(rest_of(compiled)), prepared_args(bound, q.device)
    check_width(compiled, bound, (mask,))
    tables = _tables(compiled, bound, q.device, *sizes_of(feature, q, k, v))
    return BlockCall(feature, mask, tables, on_device.q_start, on_device.values, watch=watch or at_once)


def sizes_of(feature: str, q, k, v) -> tuple[int, int, int]:
    """Key heads, features, and columns of v."""
    return k.shape[1], (2 if feature == "softmax" else 1) * q.shape[3], v.shape[3]


def _tables(compiled, bound: Bound, device: torch.device, *sizes: int) -> BlockTables:
    """The tables of block sums, kept as long as nothing writes to the args."""
    key, kept = unchanged(bound), compiled.state.setdefault("blocks", {})
    tables = kept.get((key, device, sizes))
    if key is None or tables is None:
        tables = BlockTables.of(best_blocks(rest_of(compiled), bound, *sizes), device), bound
        if key is not None:
            if len(kept) >= MOST_TABLES:
                kept.pop(next(iter(kept)))
            kept[key, device, sizes] = tables
    return tables[0]


def levels_of(compiled, plan: TailPlan, bound: Bound, feature: str, q, k, v) -> list[tuple[Level, Orders]] | None:
    """The levels of class N with their orders on the device, where scans of them are less work than block sums; kept with the plan."""
    if not plan.levels:
        return None
    kept, device, sizes = compiled.state.setdefault("levels", weakref.WeakKeyDictionary()).setdefault(plan, {}), q.device, sizes_of(feature, q, k, v)
    if sizes not in kept:
        work = _tables(compiled, bound, device, *sizes).blocks.work(*sizes[1:]) / (bound.batch * bound.heads)
        kept[sizes] = scans_pay(plan, work, max(bound.n_q, bound.n_k), *sizes[1:])
    if not kept[sizes]:
        return None
    if device not in kept:
        kept[device] = [(level, orders_of(level, device)) for level in plan.levels]
    return kept[device]
