"""A call with a term as one function, where kernels compute both parts and the sum of their norms.

The forward keeps the outputs of both parts beside the inputs, and states of keys where they are few.  The backward goes through groups of key
heads with their query heads: the gradients of both outputs, the states of the term and what else it needs are there for one group at a time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from patternc.again import given_or_zeros
from patternc.args import Bound
from patternc.derivatives import Function, Gradients, refuse_second
from patternc.expr.attention import Attention
from patternc.kept import keep_with
from patternc.operators import bound_of, laid_out, of_lists, result
from patternc.passes import lower, variables
from patternc.runtime import backend_module, check_tensors
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
    if not all(isinstance(x, Tensor) and x.dim() == 4 for x in given):
        return False
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
        given = q, k, v, tail_q, tail_k, exact_scale, tail_scale
        out, lse, o, t, *kept = _forward(scale, made, bound, any(ctx.needs_input_grad), *given)
        ctx.save_for_backward(*given, o, lse, t, *kept, *bound.given)
        ctx.set_materialize_grads(False)
        ctx.call = scale, made, bound
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        saved = ctx.saved_tensors
        saved = [x if x is None else x.resolve_neg() for x in saved[: len(saved) - len(ctx.call[2].given)]]
        dout = given_or_zeros(dout, saved[7])  # of o, as out is
        return *Gradients.apply(lambda *tensors: _backward(*ctx.call, *tensors), dout, dlse, *saved), None, None, None


def _forward(scale: float, made, bound: Bound, keep: bool, q, k, v, tail_q, tail_k, exact_scale, tail_scale) -> tuple[torch.Tensor, ...]:
    """`(out, lse)`, both parts' outputs, and where `keep` and they are few, the states of keys."""
    kernels, groups = backend_module("triton"), groups_of(made.spec, q, k)
    o, lse = kernels.forward(made, q, k, v, scale, bound, False)
    t = torch.empty_like(o, dtype=result_of(v.dtype))
    own_q, own_k, kept = (q if tail_q is None else tail_q), (k if tail_k is None else tail_k), []
    for part, (qs, ks) in _parts(bound, groups, q, k):
        given = own_q[:, qs], own_k[:, ks], v[:, ks]
        *_, states = kernels.tail_forward(made, *given, made.spec.term.feature, False, part, keep, (t[:, qs], None))
        kept += states if sum(x.nbytes for x in states) * groups <= FEW_STATES * q.nbytes else []
    return kernels.norms(o, t, exact_scale, tail_scale), lse, o, t, *kept


def _backward(scale: float, made, bound: Bound, dout, dlse, q, k, v, tail_q, tail_k, exact_scale, tail_scale, o, lse, t, *kept):
    """The gradients of what `_forward` is given."""
    kernels, feature, groups = backend_module("triton"), made.spec.term.feature, groups_of(made.spec, q, k)
    own_q, own_k = (q if tail_q is None else tail_q), (k if tail_k is None else tail_k)
    dq, dk, dv, d_own_q, d_own_k = (None if x is None else result(x, x.shape[3], x.dtype, "triton") for x in (q, k, v, tail_q, tail_k))
    scales, each = [], len(kept) // groups
    for i, (part, (qs, ks)) in enumerate(_parts(bound, groups, q, k)):
        rows = lse[:, qs].float().contiguous()
        vectors = kernels.row_vectors(rows)
        of_rows = rows, None if dlse is None else dlse[:, qs], vectors
        do, dt, *more = kernels.backward_norms(dout[:, qs], o[:, qs], t[:, qs], exact_scale[qs], tail_scale[qs], of_rows)
        scales.append(more)
        exact = dq[:, qs], dk[:, ks], dv[:, ks]
        kernels.backward(made, do, None, q[:, qs], k[:, ks], v[:, ks], o[:, qs], rows, scale, part, exact, vectors)
        own = exact[0] if tail_q is None else d_own_q[:, qs].zero_(), exact[1] if tail_k is None else d_own_k[:, ks].zero_(), exact[2]
        states = kept[i * each : (i + 1) * each]
        kernels.tail_backward(made, dt, None, own_q[:, qs], own_k[:, ks], v[:, ks], states, feature, part, own)
    return dq, dk, dv, d_own_q, d_own_k, *(torch.cat(x) if groups > 1 else x[0] for x in zip(*scales))


def _parts(bound: Bound, groups: int, q, k):
    """Yield the call of each group, and the slices of its query and key heads."""
    queries, keys = q.shape[1] // groups, k.shape[1] // groups
    key = "heads", queries
    part = bound if groups == 1 else bound.kept.get(key) or keep_with(bound, key, replace(bound, heads=queries))
    for g in range(groups):
        yield part, (slice(g * queries, (g + 1) * queries), slice(g * keys, (g + 1) * keys))


# Traced calls


@torch.library.custom_op("patternc::joint", mutates_args=())
def joint(
    q: Tensor, k: Tensor, v: Tensor, tail_q: Tensor | None, tail_k: Tensor | None, exact_scale: Tensor, tail_scale: Tensor,
    tensors: list[Tensor], numbers: list[int], kinds: str, key: str, scale: float, check: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`(out, lse)`, and both parts' outputs for the backward, which finds the states of keys again."""
    check_tensors(q, k, v)
    made, bound = bound_of(q, k, tensors, numbers, kinds, key, check)
    out, lse, o, t = _forward(scale, made, bound, False, q, k, v, tail_q, tail_k, exact_scale, tail_scale)
    return laid_out(out, q, "triton"), lse, laid_out(o, q, "triton"), laid_out(t, q, "triton")


@joint.register_fake
def _(q, k, v, tail_q, tail_k, exact_scale, tail_scale, tensors, numbers, kinds, key, scale, check):
    out, o, t = (result(q, v.shape[3], dtype, "triton") for dtype in (q.dtype, q.dtype, result_of(v.dtype)))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32), o, t


@torch.library.custom_op("patternc::joint_backward", mutates_args=())
def joint_backward(
    dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, tail_q: Tensor | None, tail_k: Tensor | None, exact_scale: Tensor,
    tail_scale: Tensor, o: Tensor, lse: Tensor, t: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str, scale: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of the inputs that are there."""
    made, bound = bound_of(q, k, tensors, numbers, kinds, key)
    given = q, k, v, tail_q, tail_k, exact_scale, tail_scale
    found = _backward(scale, made, bound, dout, dlse, *given, o, lse, t)
    return [laid_out(x, like, "triton") if x.dim() == 4 else x for x, like in zip(found, given) if x is not None]


@joint_backward.register_fake
def _(dout, dlse, q, k, v, tail_q, tail_k, exact_scale, tail_scale, o, lse, t, tensors, numbers, kinds, key, scale):
    return [
        *(result(x, x.shape[3], x.dtype, "triton") for x in (q, k, v, tail_q, tail_k) if x is not None),
        *(x.new_empty(x.shape) for x in (exact_scale, tail_scale)),
    ]


def _setup(ctx, inputs, output):
    *given, tensors, numbers, kinds, key, scale, _ = inputs
    out, lse, o, t = output
    ctx.save_for_backward(*given, o, lse, t, *tensors)
    ctx.mark_non_differentiable(o, t)
    ctx.call = numbers, kinds, key, scale


def _traced_backward(ctx, dout, dlse, *_):
    *given, o, lse, t = ctx.saved_tensors[:10]
    tensors = list(ctx.saved_tensors[10:])
    found = iter(joint_backward(dout, dlse, *given, o, lse, t, tensors, *ctx.call))
    gradients = [None if x is None else next(found) for x in given]
    return *gradients, *of_lists(tensors, ctx.call[0]), *(None,) * 4


joint.register_autograd(_traced_backward, setup_context=_setup)
joint_backward.register_autograd(refuse_second)
