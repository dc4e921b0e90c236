"""Running a term: by kernels on the triton backend, by torch operations on others; for eager and for traced calls.

A backend that has kernels for terms has more functions:

    tail_forward(compiled, q, k, v, feature, sums, bound, keep) -> (y, weights, kept)
    tail_backward(compiled, dy, dweights, q, k, v, kept, feature, bound) -> (dq, dk, dv)

    norms(o, t, o_scale, t_scale) -> y;  backward_norms(dy, o, t, o_scale, t_scale) -> (do, dt, do_scale, dt_scale)
    quotient(o, t, w, dtype) -> y;  backward_quotient(dy, t, w) -> (dt, dw)

with y [B, H, N_q, Dv] as `patternc.tail.result_of` says, the sums of weights [B, H, N_q] (None unless `sums`) in float32,
`feature` a name in `KERNEL_FEATURES`, and `kept` tensors (none unless `keep`) that the backward may get again, or none of them.
`norms` are the sum of the RMSNorms of exact part and term, in the dtype of o; `quotient` is o + t / w.
"""

from __future__ import annotations

import torch

from patternc.derivatives import Function, Gradients
from patternc.runtime import backend_module, rest_of
from patternc.tail import at_least_float32, by_features, feature_gradient, feature_map, linear_backward, linear_forward, result_of

KERNEL_FEATURES = ("softmax", "elu+1", "relu", "identity")
WIDEST = 128  # head dimensions that kernels take at a time


def by_kernels(apply):
    """`linear` (see `patternc.tail.tail`) by kernels: `apply(q, k, v, feature, sums) -> (y, weights)`.

    Features that kernels do not know are made here.  Kernels take at most WIDEST features and columns of v at a time: sums
    over features add up, and columns of v are apart.
    """

    def linear(feature, phi, q, k, v, sums):
        dtype = q.dtype if q.dtype == k.dtype == v.dtype else torch.float32
        if feature not in KERNEL_FEATURES or q.shape[-1] > WIDEST:
            dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32  # features may exceed what float16 holds
            q, k, feature = phi(q), phi(k), "identity"
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        columns, total = [], None
        for at in range(0, v.shape[-1], WIDEST):
            part, y = v[..., at : at + WIDEST], None
            for a, b in zip(_pieces(q), _pieces(k)):
                found, weights = apply(a, b, part, feature, sums and at == 0)
                y = found if y is None else y + found
                if weights is not None:
                    total = weights if total is None else total + weights
            columns.append(y)
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1), total

    return linear


def _pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Columns that kernels take at a time; one piece is x itself, for which the backward copies nothing."""
    return (x,) if x.shape[-1] <= WIDEST else x.split(WIDEST, -1)


class TailAttention(Function):
    """Kernels of a term, for eager calls."""

    @staticmethod
    def forward(ctx, q, k, v, feature, sums, made, bound):
        y, weights, kept = backend_module("triton").tail_forward(made, q, k, v, feature, sums, bound, any(ctx.needs_input_grad))
        ctx.save_for_backward(q, k, v, *kept, *bound.given)
        ctx.call = feature, sums, made, bound
        return y, weights

    @staticmethod
    def backward(ctx, dy, dweights):
        feature, sums, made, bound = ctx.call

        def compute(dy, *tensors):
            dweights, (q, k, v, *kept) = (tensors[0], tensors[1:]) if sums else (None, tensors)
            return backend_module("triton").tail_backward(made, dy, dweights, q, k, v, kept, feature, bound)

        saved = ctx.saved_tensors
        saved = saved[: len(saved) - len(bound.given)]
        return *Gradients.apply(compute, dy.resolve_neg(), *([dweights] if sums else []), *saved), None, None, None, None


class Norms(Function):
    """The sum of two RMSNorms by kernels, for eager calls."""

    @staticmethod
    def forward(ctx, o, t, o_scale, t_scale):
        ctx.save_for_backward(o, t, o_scale, t_scale)
        return backend_module("triton").norms(o, t, o_scale, t_scale)

    @staticmethod
    def backward(ctx, dy):
        return Gradients.apply(backend_module("triton").backward_norms, dy, *ctx.saved_tensors)


class Quotient(Function):
    """Sums over the sums of their weights, added to the exact part or to nothing, by kernels; for eager calls."""

    @staticmethod
    def forward(ctx, o, t, w, dtype):
        ctx.save_for_backward(t, w)
        return backend_module("triton").quotient(o, t, w, dtype)

    @staticmethod
    def backward(ctx, dy):
        return dy if ctx.needs_input_grad[0] else None, *Gradients.apply(backend_module("triton").backward_quotient, dy, *ctx.saved_tensors), None


def traced_forward(made, bound, backend: str, q, k, v, feature: str, sums: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`(y, weights)` for a registered operator, which runs below autograd; weights are [0] where they are not asked for."""
    if backend == "triton":
        y, weights, _ = backend_module("triton").tail_forward(made, q, k, v, feature, sums, bound, False)
    else:
        y, weights = by_features(lambda *x: linear_forward(*x, rest_of(made, bound)))(feature, feature_map(feature), q, k, v, sums)
    y = y.to(result_of(v.dtype))
    return y, q.new_empty(0, dtype=y.dtype) if weights is None else weights.contiguous()


def traced_backward(made, bound, backend: str, dy, dweights, q, k, v, feature: str, sums: bool):
    dweights = dweights if sums else None
    if backend == "triton":
        return backend_module("triton").tail_backward(made, dy, dweights, q, k, v, [], feature, bound)
    phi, values = feature_map(feature), at_least_float32(v)
    if sums:
        values, dy = torch.cat([values, torch.ones_like(values[..., :1])], -1), torch.cat([dy, dweights[..., None]], -1)
    features = [phi(x).to(values.dtype) for x in (q, k)]
    *gradients, dv = linear_backward(dy.to(values.dtype), *features, values, rest_of(made, bound))
    dq, dk = (feature_gradient(feature, at_least_float32(x), g).to(x.dtype) for x, g in zip((q, k), gradients))
    return dq, dk, dv[..., : v.shape[-1]].to(v.dtype)
