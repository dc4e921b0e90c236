"""The operators registered with torch.library: what torch.compile and torch.export see of an attention.

They take what a graph can hold: tensors, numbers, and strings that say which is which and name the compiled pattern in the
registry of `patternc.runtime`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patternc.derivatives import refuse_second
from patternc.errors import BackendError
from patternc.runtime import _registry, backend_module, bind_call, check_tensors, rest_of
from patternc.tail import linear_backward, linear_forward

Packed = tuple[list[Tensor], list[int], str]


def pack(names: tuple[str, ...], args: dict, q_start) -> Packed:
    """Args as the operators take them: tensors, numbers, and their kinds by name; `names` are the pattern's."""
    tensors, numbers, kinds = [], [], []
    for name in (*names, "q_start"):
        value = q_start if name == "q_start" else args.get(name)
        if value is None:
            continue
        if not isinstance(value, Tensor) and (isinstance(value, bool) or not isinstance(value, (int, torch.SymInt))):
            value = torch.as_tensor(value)
        (tensors if isinstance(value, Tensor) else numbers).append(value)
        kinds.append(f"{name}:{'t' if isinstance(value, Tensor) else 'n'}")
    kinds += [f"{name}:unknown" for name in args if name not in names]  # `bind` will say so
    return tensors, numbers, ",".join(kinds)


def unpack(tensors: list[Tensor], numbers: list[int], kinds: str) -> tuple[dict, object]:
    """`(args, q_start)` again."""
    tensors, numbers, args = list(tensors), list(numbers), {}
    for item in kinds.split(",") if kinds else ():
        name, kind = item.split(":")
        args[name] = tensors.pop(0) if kind == "t" else numbers.pop(0) if kind == "n" else 0
    return args, args.pop("q_start", None)


def _bound(q, k, tensors, numbers, kinds: str, key: str, check: bool = False):
    """The compiled pattern of a key, and the call's sizes and args in normal form."""
    if key not in _registry:
        raise BackendError("this traced attention belongs to another process", fix="compile the pattern in this process before running the trace")
    made = _registry[key]
    return made, bind_call(made.spec, q, k, *unpack(tensors, numbers, kinds), check)


@torch.library.custom_op("patternc::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str,
    backend: str, scale: float, check: bool, wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_tensors(q, k, v)
    made, bound = _bound(q, k, tensors, numbers, kinds, key, check)
    return backend_module(backend).forward(made, q, k, v, scale, bound, wide)


@attention.register_fake
def _(q, k, v, tensors, numbers, kinds, key, backend, scale, check, wide):
    full = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(*q.shape[:3], v.shape[-1], dtype=full if wide else q.dtype), q.new_empty(q.shape[:3], dtype=full)


@torch.library.custom_op("patternc::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    tensors: list[Tensor], numbers: list[int], kinds: str, key: str, backend: str, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    made, bound = _bound(q, k, tensors, numbers, kinds, key)
    return backend_module(backend).backward(made, dout, dlse, q, k, v, out, lse, scale, bound)


@attention_backward.register_fake
def _(dout, dlse, q, k, v, out, lse, tensors, numbers, kinds, key, backend, scale):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx, inputs, output):
    q, k, v, tensors, *call, _, _ = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.call = call


def _backward(ctx, dout, dlse):
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    gradients = attention_backward(dout, dlse, q, k, v, out, lse, tensors, *ctx.call)
    return *gradients, [None] * len(tensors), [None] * len(ctx.call[0]), *(None,) * 6


attention.register_autograd(_backward, setup_context=_setup)
attention_backward.register_autograd(refuse_second)


@torch.library.custom_op("patternc::linear_attention", mutates_args=())
def linear_attention(phi_q: Tensor, phi_k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str) -> Tensor:
    """What a term adds: sum of (phi_q . phi_k) v over the domain without the exact part."""
    return linear_forward(phi_q, phi_k, v, rest_of(*_bound(phi_q, phi_k, tensors, numbers, kinds, key)))


@linear_attention.register_fake
def _(phi_q, phi_k, v, tensors, numbers, kinds, key):
    return phi_q.new_empty(*phi_q.shape[:3], v.shape[3])


@torch.library.custom_op("patternc::linear_attention_backward", mutates_args=())
def linear_attention_backward(
    dout: Tensor, phi_q: Tensor, phi_k: Tensor, v: Tensor, tensors: list[Tensor], numbers: list[int], kinds: str, key: str
) -> tuple[Tensor, Tensor, Tensor]:
    return linear_backward(dout, phi_q, phi_k, v, rest_of(*_bound(phi_q, phi_k, tensors, numbers, kinds, key)))


@linear_attention_backward.register_fake
def _(dout, phi_q, phi_k, v, tensors, numbers, kinds, key):
    return torch.empty_like(phi_q), torch.empty_like(phi_k), torch.empty_like(v)


def _linear_setup(ctx, inputs, output):
    phi_q, phi_k, v, tensors, *call = inputs
    ctx.save_for_backward(phi_q, phi_k, v, *tensors)
    ctx.call = call


def _linear_backward(ctx, dout):
    phi_q, phi_k, v, *tensors = ctx.saved_tensors
    gradients = linear_attention_backward(dout, phi_q, phi_k, v, tensors, *ctx.call)
    return *gradients, [None] * len(tensors), [None] * len(ctx.call[0]), None, None


linear_attention.register_autograd(_linear_backward, setup_context=_linear_setup)
linear_attention_backward.register_autograd(refuse_second)
