"""The Triton backend: a compiled pattern, tensors and bound args in; outputs and gradients out (see `patternc.runtime`)."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache

import torch
import triton

from patternc.args import Bound, bind
from patternc.balance import Costs, Tiles, all_tiles, of_groups, row_tiles, schedule
from patternc.cards import card
from patternc.codegen import short, tail_backend
from patternc.codegen.device import kept_on, precision, processors
from patternc.codegen.fused_order import KEYS, QUERIES, Order, order_of
from patternc.codegen.kernels import generate
from patternc.codegen.known import Known, KnownBackward
from patternc.codegen.launch import Call, attention_backward, attention_forward, layout_of, of_rows, row_vectors
from patternc.codegen.lines import Lines
from patternc.codegen.norms import backward_norms, norms
from patternc.codegen.parameters import prepared_args
from patternc.codegen.quotients import backward_quotient, quotient
from patternc.codegen.reads import bounds_of, static_of
from patternc.codegen.schedule import Dealt
from patternc.codegen.tail_backend import tail_backward
from patternc.codegen.widths import check_width
from patternc.errors import BackendError, DeviceError, DtypeError, InternalError, PatterncError
from patternc.expr.pattern import Pattern
from patternc.kept import data_of, keep_with
from patternc.orders.count import Boxes, Sizes, choose_boxes
from patternc.orders.heads import groups_of
from patternc.plan import Plan
from patternc.prediction import fastest
from patternc.rates import Config, Rate, Shape, mask_weight
from patternc.signature import signature
from patternc.visits import formula_segments

MOST_HEAD_DIM = 256
TYPICAL, TYPICAL_HEADS = 8192, 8  # tokens and heads for which configurations are chosen
MOST_LENGTHS = 64  # lengths whose schedules are kept


def check(q: torch.Tensor, v: torch.Tensor) -> None:
    """What these kernels cannot do, in words.  Raises DtypeError, DeviceError, BackendError."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted and isinstance(triton.language.sum, triton.runtime.JITFunction):
        what = "TRITON_INTERPRET=1 was set after triton was imported, which compiles kernels since"
        raise BackendError(what, fix="set it before anything imports triton")
    if q.dtype == torch.float64:
        raise DtypeError("the triton backend does not compute in float64", fix='use backend="cpu", or float32')
    if q.device.type != "cuda" and not interpreted:
        raise DeviceError(
            f"the triton backend needs CUDA tensors, got {q.device}", fix='use backend="cpu", or set TRITON_INTERPRET=1 before importing triton'
        )
    if interpreted and q.dtype == torch.bfloat16:
        raise DtypeError("Triton's interpreter computes bfloat16 wrongly", fix="use float32 or float16 under TRITON_INTERPRET=1")
    for name, size in (("head_dim", q.shape[3]), ("the value's head_dim", v.shape[3])):
        if not 1 <= size <= MOST_HEAD_DIM:
            raise BackendError(
                f"{name} is {size}; the triton backend holds 1 to {MOST_HEAD_DIM}", fix='use backend="cpu", or project to a smaller head_dim'
            )


__all__ = [
    "again", "backward", "backward_norms", "backward_quotient", "call_of", "check", "check_width", "forward", "norms", "quotient", "row_vectors",
    "source", "tail_backward", "tail_forward",
]  # fmt: skip


def again(compiled, q, k, v, scale: float, bound: Bound):
    """`again(q, k, v)`, the same forward on tensors of the same layouts; None where nothing of it is kept."""
    known = bound.kept.get(_key(compiled, q, k, v, scale, bound))
    return known and known.run


def _key(compiled, q, k, v, scale: float, bound: Bound) -> tuple:
    return compiled, scale, *layout_of(q), *layout_of(k), *layout_of(v), precision(q.dtype), data_of(bound)


def forward(compiled, q, k, v, scale: float, bound: Bound, wide: bool):
    key = _key(compiled, q, k, v, scale, bound)
    known = bound.kept.get(key)
    if known is not None:
        return known.run(q, k, v)
    check(q, v)
    group = q.shape[1] // k.shape[1]
    if short.packs(compiled, bound, q.shape[1], k.shape[1]):
        pattern, of_rows = short.packed(compiled, bound, group)
        return tuple(short.as_heads(x, group) for x in forward(pattern, short.as_rows(q, group), k, v, scale, of_rows, wide))
    if "fits" not in bound.kept:
        runs = (*compiled.plan.forward.all_runs, *compiled.plan.transposed.all_runs)
        check_width(compiled, bound, (compiled.plan.mask, *(x for run in runs for x in (run.lo, run.hi, run.inner_lo, run.inner_hi))))
        bound.kept["fits"] = True
    if wide:
        raise InternalError("the triton backend returns outputs in the inputs' dtype")
    calls, found = [call_of(part, scale, bound, q, k, v) for part in compiled.parts_at(bound, shape_of(q, v))], None
    tape = []
    for call in calls:
        found = attention_forward(call, q, k, v, found, call is not calls[-1], tape)
    known = Known.of(calls, tape, q, k, v)
    if known is not None:
        keep_with(bound, key, known)
    return found


def backward(compiled, dout, dlse, q, k, v, out, lse, scale: float, bound: Bound, onto: tuple | None = None, vectors: torch.Tensor | None = None):
    lse = of_rows(lse)
    key = compiled, scale, *map(layout_of, (q, k, v, out, dout, *(onto or ()))), precision(q.dtype), data_of(bound), vectors is None
    known = bound.kept.get(key)
    if known is not None:
        return known.run(q, k, v, out, lse, dout, dlse, onto, vectors)
    by_queries, by_keys = (compiled.parts_at(bound, shape_of(q, v), column) for column in "kq")
    calls = {part: call_of(part, scale, bound, q, k, v, out, dout) for part in dict.fromkeys((*by_queries, *by_keys))}
    queries, keys, tape = [calls[part] for part in by_queries], [calls[part] for part in by_keys], []
    found = attention_backward(queries, q, k, v, out, lse, dout, dlse, keys, onto, vectors, tape)
    known = KnownBackward.of(queries, keys, tape, q, k, v, out, dout, vectors)
    if known is not None:
        keep_with(bound, key, known)
    return found


def tail_forward(compiled, q, k, v, feature: str, sums: bool, bound: Bound, keep: bool, onto: tuple | None = None):
    check(q, v)
    return tail_backend.tail_forward(compiled, q, k, v, feature, sums, bound, keep, onto)


def shape_of(q: torch.Tensor, v: torch.Tensor) -> Shape:
    return Shape.of(q.shape[3], v.shape[3], q.element_size())


def source(compiled, bound: Bound | None = None) -> str:
    """The generated module of a compiled pattern; with lengths, the modules of its parts in the orders that these ask for."""
    if bound is None:
        return generate(compiled.plan).text
    parts = compiled.parts_at(bound)
    return "\n\n".join(generate(part.plan_at(bound), later=part is not parts[0]).text for part in parts)


def call_of(compiled, scale: float, bound: Bound, *matrices: torch.Tensor) -> Call:
    """The call of a bound pattern on matrices [B, heads, n, width]; kept with it."""
    device, shape = matrices[0].device, shape_of(matrices[0], matrices[2])
    # Within a box, offsets are 32 bits wide, and a box may span the sequence.
    near = max([x.stride(2) for x in matrices]) * max(bound.n_q, bound.n_k) < 2**31
    data = data_of(bound)
    key = compiled, scale, device, shape, near, data
    found = bound.kept.get(key)
    if found is not None:
        return found
    made = keep_with(bound, key, _make_call(compiled, scale, bound, device, shape, near))
    made.ready = None if data is None else {}
    return made


def _make_call(compiled, scale: float, bound: Bound, device: torch.device, shape: Shape, near: bool) -> Call:
    on_device = prepared_args(bound, device)
    plan = compiled.plan_at(bound, shape) if near else compiled.plan

    def call(own, plan: Plan, groups: tuple[Call, ...] = ()) -> Call:
        return Call(
            plan=plan,
            scale=scale,
            q_start=on_device.q_start,
            args=on_device.values,
            bounds=lambda direction, rows, cols: bounds_of(own, bound, on_device, device, direction, rows, cols),
            boxes=lambda direction, rows, cols: _boxes(plan, bound, direction, rows, cols),
            fit=lambda kernel, access, candidates: _fit(own.exact, plan, bound, shape, kernel, access, candidates),
            height=short.height(bound.n_q, bound.n_k),
            tiles=lambda lines, rows, cols: _tiles(own, lines, bound, rows, cols),
            schedule=lambda *given: _schedule(own, plan, on_device, device, shape, *given),
            order=lambda width: _order(own, plan, on_device, QUERIES[width]),
            groups=groups,
            lengths=(bound.n_q, bound.n_k),
            others=lru_cache(lambda lengths: _others(own, plan, scale, bound, device, shape, near, lengths)),
        )

    return call(compiled, plan, tuple(call(compiled.of(group.pattern), group.plan) for group in groups_of(plan)))


def _others(compiled, plan: Plan, scale: float, bound: Bound, device: torch.device, shape: Shape, near: bool, lengths: tuple[int, ...]) -> list[Call]:
    """Calls that visit tiles in the same way, on as many queries as keys, where this one has as many."""
    found = []
    for n in lengths if bound.n_q == bound.n_k else ():
        try:
            sizes = {"n_q": n, "n_k": n, "heads": bound.heads, "batch": bound.batch}
            other = replace(bound, **sizes) if bound.uses else bind(compiled.exact, {}, **sizes)
            call = _make_call(compiled, scale, other, device, shape, near)
        except PatterncError:  # a pattern of some lengths only
            continue
        found += [call] if (call.plan.forward, call.plan.transposed) == (plan.forward, plan.transposed) else []
    return found


def _tiles(compiled, lines: Lines, bound: Bound, rows: int, cols: int) -> Tiles | None:
    """How many tiles the row tiles of a line visit forward; None where only tensors say it."""
    if lines.count > 1:
        bound = replace(bound, n_q=bound.n_q // lines.count, n_k=bound.n_k // lines.count, q_start=bound.q_start // lines.count)
    return row_tiles(compiled.exact, lines.plan.forward, bound, (rows, cols))


def _order(compiled, plan: Plan, bound: Bound, queries: int) -> Order | None:
    """How programs of the fused backward add to dq, in tiles of so many queries; kept, since it depends on no data."""
    axis, kept = plan.transposed, compiled.state.setdefault("orders", {})
    if axis.kind != "formula" or axis.filler is not None or not all(isinstance(x, int) for x in (bound.q_start, *bound.values.values())):
        return None
    key = queries, bound.n_q, bound.n_k, bound.heads, bound.q_start, *sorted(bound.values.items())
    found = kept.pop(key, False)
    if found is False:
        found = order_of(formula_segments(axis, bound, (KEYS, queries), True), bound.n_q, bound.n_k, queries)
    if len(kept) >= MOST_LENGTHS:
        kept.pop(next(iter(kept)))
    kept[key] = found  # the last one of all
    return found


def _fit(p: Pattern, plan: Plan, bound: Bound, shape: Shape, kernel: str, access: str, candidates: tuple[Config, ...]) -> Config:
    """The configuration that is predicted to be fastest, at a length of its own where plans are the same for all lengths."""
    axis = plan.transposed if kernel == "backward_dkdv" else plan.forward
    rates = _measured(kernel, access, shape, candidates)
    if len(rates) < 2 or signature(p):
        return rates[0].config if rates else candidates[0]
    if axis.kind not in ("boxes", "heads"):
        heads = 1 if axis.kind == "list" else min(bound.heads, TYPICAL_HEADS)
        try:
            bound = bind(p, {}, TYPICAL, heads=heads)
        except PatterncError:  # a pattern of one length, or of so many heads
            bound = replace(bound, heads=heads)
    return fastest(p, axis, bound, kernel, rates)[0].config


def _measured(kernel: str, access: str, shape: Shape, candidates: tuple[Config, ...]) -> tuple[Rate, ...]:
    """The configurations to choose among: the table's own ones of this shape, else those candidates that it has.

    Kernels of several groups of heads need more registers than those that were measured, and products of float32 other tiles where they round.
    """
    own = card().rates.get((kernel, access, shape.width, shape.half), ()) if shape.half else ()
    return own or tuple(r for r in card().find(kernel, access.removeprefix("groups of "), shape) if r.config in candidates)


def _boxes(plan: Plan, bound: Bound, direction: str, block_m: int, block_n: int) -> Boxes:
    """The boxes of a direction in digits for tiles of `block_m` queries and `block_n` keys."""
    tile = (block_n, block_m) if direction == "transposed" else (block_m, block_n)
    return choose_boxes(getattr(plan, direction), Sizes(bound.n_q, bound.n_k, bound.q_start), *tile)


def _schedule(compiled, plan: Plan, bound: Bound, device, shape: Shape, kernel: str, access: str, config: Config, copies: int, group: int):
    """How row tiles of one length are dealt, a `Dealt` or None (`launch.Call.schedule`); kept, since it depends on no data."""
    transposed = kernel == "backward_dkdv"
    axis, tile = plan.transposed if transposed else plan.forward, config.tile(kernel)
    if max(bound.n_q, bound.n_k) <= max(tile):
        return None
    bound = bound if transposed else short.rounded(compiled, axis, bound)
    start, scalars = bound.q_start, tuple(sorted(bound.values.items()))
    if axis.kind == "table" or not all(isinstance(value, int) for value in (start, *bound.values.values())):
        # Only tensors say how many tiles rows visit, and nothing may wait for them.  Few rows are cut as if they visited all.
        if copies * -(-(bound.n_k if transposed else bound.n_q) // tile[0]) >= processors(device):
            return None
        start = scalars = None
    kept = compiled.state.setdefault("schedules", {})
    key = (device, kernel, axis.kind, access, shape, tile, bound.n_q, bound.n_k, bound.heads, start, copies, group, scalars)
    if key not in kept:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # copies to the device cannot be captured, and the usual order is right too
        if start is None:
            tiles = all_tiles(bound, tile, transposed)
        elif axis.kind == "list":
            tiles = static_of(compiled, axis, bound, device, "transposed" if transposed else "forward", *tile).counts
        else:
            tiles = row_tiles(compiled.exact, axis, bound, tile, transposed)
        weight = mask_weight(axis.mask if axis.kind == "boxes" else plan.mask)
        costs = Costs.of(kernel, access, shape, (config.block_m, config.block_n), weight)
        found = schedule(of_groups(costs.work(tiles), group), copies, costs, processors(device), last_first=not transposed)
        if len(kept) >= MOST_LENGTHS:
            kept.pop(next(iter(kept)))
        kept[key] = found and Dealt(kept_on(torch.from_numpy(found.entries), device), found.form, found.cuts, found.long)
    return kept[key]
