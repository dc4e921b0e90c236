"""A call with a term as one function, where kernels compute both parts and the sum of their norms.

The forward keeps the outputs of both parts beside the inputs, and states of keys where they are few.  The backward goes through groups of key
heads with their query heads: the gradients of both outputs, the states of the term and what else it needs are there for one group at a time.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from patternc.args import Bound
from patternc.derivatives import Function, Gradients
from patternc.expr.attention import Attention
from patternc.passes import lower, variables
from patternc.runtime import backend_module
from patternc.tail import result_of
from patternc.tail_runtime import KERNEL_FEATURES, WIDEST

SMALL = 1 << 27  # entries of q: calls below it are not divided, since more launches would take longer than they run
LEAST_ENTRIES = 1 << 24  # of the queries of a group
MOST_WORKSPACE = 0.75  # of q, k, v and the output together
FEW_STATES = 1 / 8  # of the queries' bytes: the backward finds states of keys again where they are more
PASSING = 4.25  # tensors like q that a backward needs for a while: gradients of both outputs, states of keys or rows


def takes(spec: Attention, q, k, v, tail_q, tail_k) -> bool:
    """Whether a call is one function: the others, whose features torch makes or whose term has a state to begin with, are several."""
    term, given = spec.term, [x for x in (q, k, v, tail_q, tail_k) if x is not None]
    plain = term.norm == "rms" and term.feature in KERNEL_FEATURES and not term.initial_state
    return plain and len({x.dtype for x in given}) == 1 and max(x.shape[3] for x in given) <= WIDEST


def groups_of(spec: Attention, q, k) -> int:
    """Groups of heads that a call goes through one after the other: as few as leave the workspace at `MOST_WORKSPACE`.

    Where few key heads serve many query heads, the outputs that are kept are more than that: then nothing is divided.
    """
    if q.numel() < SMALL or "h" in variables(lower(spec.exact)) | variables(lower(spec.domain)):
        return 1
    spare = MOST_WORKSPACE * 2 * (q.numel() + k.numel()) - 2 * q.numel()
    fits = [g for g in range(1, k.shape[1] + 1) if k.shape[1] % g == 0 and q.numel() // g >= LEAST_ENTRIES]
    enough = [g for g in fits if PASSING * q.numel() / g <= spare]
    return min(enough, default=max(fits)) if spare > 0 else 1


class Joint(Function):
    """`(out, lse)` of an attention whose parts are normed and added; `tail_q` and `tail_k` are None where the term shares the exact part's."""

    @staticmethod
    def forward(ctx, q, k, v, tail_q, tail_k, exact_scale, tail_scale, scale: float, made, bound: Bound):
        kernels, groups = backend_module("triton"), groups_of(made.spec, q, k)
        o, lse = kernels.forward(made, q, k, v, scale, bound, False)
        t = torch.empty_like(o, dtype=result_of(v.dtype))
        own_q, own_k, kept = (q if tail_q is None else tail_q), (k if tail_k is None else tail_k), []
        for part, (qs, ks) in _parts(bound, groups, q, k):
            given = own_q[:, qs], own_k[:, ks], v[:, ks]
            *_, states = kernels.tail_forward(made, *given, made.spec.term.feature, False, part, any(ctx.needs_input_grad), (t[:, qs], None))
            kept += states if sum(x.nbytes for x in states) * groups <= FEW_STATES * q.nbytes else []
        ctx.save_for_backward(q, k, v, tail_q, tail_k, exact_scale, tail_scale, o, lse, t, *kept, *bound.given)
        ctx.call = scale, made, bound, groups
        return kernels.norms(o, t, exact_scale, tail_scale), lse

    @staticmethod
    def backward(ctx, dout, dlse):
        saved = ctx.saved_tensors
        saved = saved[: len(saved) - len(ctx.call[2].given)]
        return *Gradients.apply(lambda *tensors: _backward(*ctx.call, *tensors), dout.resolve_neg(), dlse, *saved), None, None, None


def _backward(scale: float, made, bound: Bound, groups: int, dout, dlse, q, k, v, tail_q, tail_k, exact_scale, tail_scale, o, lse, t, *kept):
    kernels, feature = backend_module("triton"), made.spec.term.feature
    own_q, own_k = (q if tail_q is None else tail_q), (k if tail_k is None else tail_k)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    d_own_q, d_own_k = (None if x is None else torch.empty_like(x) for x in (tail_q, tail_k))
    scales, each = [], len(kept) // groups
    for i, (part, (qs, ks)) in enumerate(_parts(bound, groups, q, k)):
        rows = lse[:, qs].contiguous()
        vectors = kernels.row_vectors(rows)
        of_rows = rows, dlse[:, qs], vectors
        do, dt, *more = kernels.backward_norms(dout[:, qs], o[:, qs], t[:, qs], exact_scale[qs], tail_scale[qs], of_rows)
        scales.append(more)
        exact = dq[:, qs], dk[:, ks], dv[:, ks]
        kernels.backward(made, do, None, q[:, qs], k[:, ks], v[:, ks], o[:, qs], rows, scale, part, exact, vectors)
        own = exact[0] if tail_q is None else d_own_q[:, qs].zero_(), exact[1] if tail_k is None else d_own_k[:, ks].zero_(), exact[2]
        states = kept[i * each : (i + 1) * each]
        kernels.tail_backward(made, dt, None, own_q[:, qs], own_k[:, ks], v[:, ks], states, feature, part, own)
    return dq, dk, dv, d_own_q, d_own_k, *(torch.cat(x) for x in zip(*scales))


def _parts(bound: Bound, groups: int, q, k):
    """Yield the call of each group, and the slices of its query and key heads."""
    queries, keys = q.shape[1] // groups, k.shape[1] // groups
    part = bound if groups == 1 else replace(bound, heads=queries)
    for g in range(groups):
        yield part, (slice(g * queries, (g + 1) * queries), slice(g * keys, (g + 1) * keys))
