"""The operators registered with torch.library: what torch.compile and torch.export see of an attention.

They take what a graph can hold: tensors, numbers, and strings that say which is which and name the compiled pattern in the
registry of `patternc.runtime`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patternc.codegen.matrices import empty, side_by_side
from patternc.derivatives import refuse_second
from patternc.errors import BackendError
from patternc.expr.pattern import PLACE
from patternc.runtime import _registry, backend_module, bind_call, check_tensors, rest_of
from patternc.tail import linear_backward, linear_forward, result_of
from patternc.tail_runtime import traced_backward, traced_forward

Packed = tuple[list[Tensor], list[int], str]


def pack(names: tuple[str, ...], args: dict, q_start) -> Packed:
    """Args as the operators take them: tensors, numbers, and their kinds by name; `names` are the pattern's.

    Tracing cannot raise patternc's errors, so what fits no operator goes by the name of its type, for `bind` to refuse.
    """
    tensors, numbers, kinds = [], [], []
    for name in (*names, "q_start"):
        value = q_start if name == "q_start" else args.get(name)
        if value is None:
            continue
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            numbers.append(value)
            kinds.append(f"{name}:number")
        elif isinstance(value, (Tensor, np.ndarray)) or not isinstance(_shape(value), str):
            tensors.append(torch.as_tensor(value))
            kinds.append(f"{name}:tensor")
        else:
            kinds.append(f"{name}:{_shape(value)}")
    kinds += [f"{name}:unknown" for name in args if name not in names]  # `bind` will say so
    return tensors, numbers, ",".join(kinds)


def _shape(value) -> tuple | str:
    """The shape of a number or of nested lists of numbers, or the name of the type for which there is none."""
    if isinstance(value, (int, float, torch.SymInt, np.generic)):
        return ()
    if not isinstance(value, (list, tuple, range)):
        return "list of tensors" if isinstance(value, Tensor) else type(value).__name__
    shapes = [_shape(x) for x in value]
    for shape in shapes:
        if isinstance(shape, str):
            return shape
    return "list" if any(x != shapes[0] for x in shapes) else (len(value), *(shapes[0] if shapes else ()))


def unpack(tensors: list[Tensor], numbers: list[int], kinds: str) -> tuple[dict, object]:
    """`(args, q_start)` again."""
    tensors, numbers, args = list(tensors), list(numbers), {}
    for item in kinds.split(",") if kinds else ():
        name, kind = item.split(":")
        args[name] = tensors.pop(0) if kind == "tensor" else numbers.pop(0) if kind == "number" else _unfit(kind)
    return args, args.pop("q_start", None)


def _unfit(kind: str):
    """Something that `bind` refuses in the words that it has for that type; a list that comes to this is ragged."""
    if kind == "list":
        return [[], [0]]
    return PLACE if kind in ("Index", "Pattern") else type(kind, (), {})()


def bound_of(q, k, tensors, numbers, kinds: str, key: str, check: bool = False):
    """The compiled pattern of a key, and the call's sizes and args in normal form."""
    if key not in _registry:
        raise BackendError("this traced attention belongs to another process", fix="compile the pattern in this process before running the trace")
    made = _registry[key]
    return made, bind_call(made.spec, q, k, *unpack(tensors, numbers, kinds), check)


def of_lists(tensors: list[Tensor], numbers: list[int]) -> tuple:
    """The gradients of an operator's lists: torch takes a list of numbers for one input, but an empty one for a list of tensors."""
    return [None] * len(tensors), None if numbers else []


def result(like: Tensor, width: int, dtype: torch.dtype, backend: str) -> Tensor:
    """An uninitialised result [B, H, n, width] as operators lay it out: as kernels do, or contiguous."""
    by_kernels = backend == "triton" and like.dim() == 4  # of fewer axes is what a call refuses once it runs
    return empty(like, like.shape[2], width, dtype) if by_kernels else like.new_empty(*like.shape[:3], width, dtype=dtype)


def laid_out(x: Tensor, like: Tensor, backend: str) -> Tensor:
    """A result in the layout that graphs expect of it, copied where it has another."""
    as_expected = (x.transpose(1, 2) if backend == "triton" and side_by_side(like) else x).is_contiguous()
    return x if as_expected else result(like, x.shape[3], x.dtype, backend).copy_(x)


@torch.library.custom_op("patternc::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str,
    backend: str, scale: float, check: bool, wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_tensors(q, k, v)
    made, bound = bound_of(q, k, tensors, numbers, kinds, key, check)
    out, lse = backend_module(backend).forward(made, q, k, v, scale, bound, wide)
    return laid_out(out, q, backend), lse


@attention.register_fake
def _(q, k, v, tensors, numbers, kinds, key, backend, scale, check, wide):
    full = torch.float64 if q.dtype == torch.float64 else torch.float32
    return result(q, v.shape[-1], full if wide else q.dtype, backend), q.new_empty(q.shape[:3], dtype=full)


@torch.library.custom_op("patternc::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    tensors: list[Tensor], numbers: list[int], kinds: str, key: str, backend: str, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    made, bound = bound_of(q, k, tensors, numbers, kinds, key)
    found = backend_module(backend).backward(made, dout, dlse, q, k, v, out, lse, scale, bound)
    return tuple(laid_out(x, like, backend) for x, like in zip(found, (q, k, v)))


@attention_backward.register_fake
def _(dout, dlse, q, k, v, out, lse, tensors, numbers, kinds, key, backend, scale):
    return tuple(result(x, x.shape[3], x.dtype, backend) for x in (q, k, v))


def _setup(ctx, inputs, output):
    q, k, v, tensors, *call, _, _ = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.call = call


def _backward(ctx, dout, dlse):
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    gradients = attention_backward(dout, dlse, q, k, v, out, lse, tensors, *ctx.call)
    return *gradients, *of_lists(tensors, ctx.call[0]), *(None,) * 6


attention.register_autograd(_backward, setup_context=_setup)
attention_backward.register_autograd(refuse_second)


@torch.library.custom_op("patternc::linear_attention", mutates_args=())
def linear_attention(phi_q: Tensor, phi_k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str) -> Tensor:
    """What a term adds: sum of (phi_q . phi_k) v over the domain without the exact part."""
    return linear_forward(phi_q, phi_k, v, rest_of(*bound_of(phi_q, phi_k, tensors, numbers, kinds, key)))


@linear_attention.register_fake
def _(phi_q, phi_k, v, tensors, numbers, kinds, key):
    return phi_q.new_empty(*phi_q.shape[:3], v.shape[3])


@torch.library.custom_op("patternc::linear_attention_backward", mutates_args=())
def linear_attention_backward(
    dout: Tensor, phi_q: Tensor, phi_k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str
) -> tuple[Tensor, Tensor, Tensor]:
    found = linear_backward(dout, phi_q, phi_k, v, rest_of(*bound_of(phi_q, phi_k, tensors, numbers, kinds, key)))
    return tuple(laid_out(x, like, "cpu") for x, like in zip(found, (phi_q, phi_k, v)))


@linear_attention_backward.register_fake
def _(dout, phi_q, phi_k, v, tensors, numbers, kinds, key):
    return tuple(result(x, x.shape[3], x.dtype, "cpu") for x in (phi_q, phi_k, v))


def _linear_setup(ctx, inputs, output):
    phi_q, phi_k, v, tensors, *call = inputs
    ctx.save_for_backward(phi_q, phi_k, v, *tensors)
    ctx.call = call


def _linear_backward(ctx, dout):
    phi_q, phi_k, v, *tensors = ctx.saved_tensors
    gradients = linear_attention_backward(dout, phi_q, phi_k, v, tensors, *ctx.call)
    return *gradients, *of_lists(tensors, ctx.call[0]), None, None


linear_attention.register_autograd(_linear_backward, setup_context=_linear_setup)
linear_attention_backward.register_autograd(refuse_second)


@torch.library.custom_op("patternc::tail_attention", mutates_args=())
def tail_attention(
    q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str, backend: str, feature: str, sums: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What a term adds, from q and k themselves: its sums and those of the weights, which are [0] unless asked for."""
    y, weights = traced_forward(*bound_of(q, k, tensors, numbers, kinds, key), backend, q, k, v, feature, sums)
    return laid_out(y, q, backend), weights


@tail_attention.register_fake
def _(q, k, v, tensors, numbers, kinds, key, backend, feature, sums):
    weights = torch.float64 if v.dtype == torch.float64 else torch.float32
    return result(q, v.shape[3], result_of(v.dtype), backend), q.new_empty(q.shape[:3] if sums else (0,), dtype=weights)


@torch.library.custom_op("patternc::tail_attention_backward", mutates_args=())
def tail_attention_backward(
    dy: Tensor, dweights: Tensor, q: Tensor, k: Tensor, v: Tensor,
    tensors: list[Tensor], numbers: list[int], kinds: str, key: str, backend: str, feature: str, sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found = traced_backward(*bound_of(q, k, tensors, numbers, kinds, key), backend, dy, dweights, q, k, v, feature, sums)
    return tuple(laid_out(x, like, backend) for x, like in zip(found, (q, k, v)))


@tail_attention_backward.register_fake
def _(dy, dweights, q, k, v, tensors, numbers, kinds, key, backend, feature, sums):
    return tuple(result(x, x.shape[3], x.dtype, backend) for x in (q, k, v))


def _tail_backward(ctx, dy, dweights):
    q, k, v, *tensors = ctx.saved_tensors
    gradients = tail_attention_backward(dy, dweights, q, k, v, tensors, *ctx.call)
    return *gradients, *of_lists(tensors, ctx.call[0]), *(None,) * 5


tail_attention.register_autograd(_tail_backward, setup_context=_linear_setup)
tail_attention_backward.register_autograd(refuse_second)


@torch.library.custom_op("patternc::norms", mutates_args=())
def norms(o: Tensor, t: Tensor, o_scale: Tensor, t_scale: Tensor) -> Tensor:
    """The sum of the RMSNorms of exact part and term, by the triton backend."""
    return laid_out(backend_module("triton").norms(o, t, o_scale, t_scale), o, "triton")


@norms.register_fake
def _(o, t, o_scale, t_scale):
    return result(o, o.shape[3], o.dtype, "triton")


@torch.library.custom_op("patternc::norms_backward", mutates_args=())
def norms_backward(dy: Tensor, o: Tensor, t: Tensor, o_scale: Tensor, t_scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    do, dt, *scales = backend_module("triton").backward_norms(dy, o, t, o_scale, t_scale)
    return laid_out(do, o, "triton"), laid_out(dt, t, "triton"), *scales


@norms_backward.register_fake
def _(dy, o, t, o_scale, t_scale):
    return *(result(x, x.shape[3], x.dtype, "triton") for x in (o, t)), o_scale.new_empty(o_scale.shape), t_scale.new_empty(t_scale.shape)


def _norms_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


norms.register_autograd(lambda ctx, dy: norms_backward(dy, *ctx.saved_tensors), setup_context=_norms_setup)
norms_backward.register_autograd(refuse_second)


@torch.library.custom_op("patternc::quotient", mutates_args=())
def quotient(o: Tensor | None, t: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """A term's sums over those of their weights, added to the exact part, by the triton backend."""
    return laid_out(backend_module("triton").quotient(o, t, w, dtype), t, "triton")


@quotient.register_fake
def _(o, t, w, dtype):
    return result(t, t.shape[3], dtype, "triton")


@torch.library.custom_op("patternc::quotient_backward", mutates_args=())
def quotient_backward(dy: Tensor, t: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    dt, dw = backend_module("triton").backward_quotient(dy, t, w)
    return laid_out(dt, t, "triton"), dw


@quotient_backward.register_fake
def _(dy, t, w):
    return result(t, t.shape[3], t.dtype, "triton"), w.new_empty(w.shape)


def _quotient_setup(ctx, inputs, output):
    o, t, w, _ = inputs
    ctx.save_for_backward(t, w)
    ctx.exact = o is not None


quotient.register_autograd(
    lambda ctx, dy: (dy if ctx.exact else None, *quotient_backward(dy, *ctx.saved_tensors), None), setup_context=_quotient_setup
)
quotient_backward.register_autograd(refuse_second)
