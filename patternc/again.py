"""Eager calls of an exact part, and those that were made before: their inputs were looked at then, which is half of a short call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch

from patternc.args import Bound
from patternc.derivatives import Function, Gradients
from patternc.kept import layouts, live, named, seen
from patternc.runtime import MOST_DATA, MOST_SIZES, Compiled


@dataclass(frozen=True, eq=False)
class Exact:
    """The exact part of an eager call; the registered operators do the same for traced ones.

    Attributes:
        backend: a module.
        known: what a backend has instead of `forward` for a call that was made before, a function of q, k and v.
    """

    made: Compiled
    backend: ModuleType
    scale: float
    bound: Bound
    wide: bool
    known: Callable | None = None

    def attend(self, q, k, v, given: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """`(out, lse)`, differentiable in q, k and v; `given` are `q_start` and the args as this call has them."""
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            return _Attention.apply(q, k, v, self, [x for x in given if isinstance(x, torch.Tensor) and not x.is_inference()])
        return self.forward(q, k, v)

    def forward(self, q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        return self.known(q, k, v) if self.known is not None else self.backend.forward(self.made, q, k, v, self.scale, self.bound, self.wide)

    def backward(self, *tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.backend.backward(self.made, *tensors, self.scale, self.bound)


class _Attention(Function):
    @staticmethod
    def forward(ctx, q, k, v, call: Exact, given: list[torch.Tensor]):
        out, lse = call.forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse, *given)
        ctx.set_materialize_grads(False)  # lse seldom has one
        ctx.call = call
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        saved = [x.resolve_neg() for x in ctx.saved_tensors[:5]]  # hooks may have made others of them
        return *Gradients.apply(ctx.call.backward, given_or_zeros(dout, saved[3]), dlse, *saved), None, None


def given_or_zeros(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The gradient of an output, as kernels read it; 0 where it is None, since nothing depends on that output."""
    return torch.zeros_like(like) if gradient is None else gradient.resolve_neg()


def name_of(tensors: tuple, args: tuple[str, ...], given: tuple, *more) -> tuple | None:
    """What names a call on tensors of some layouts in 16 bits, with the same `q_start` and args, whose names are `args`, and `more`; None where
    that cannot be told."""
    names = layouts(*tensors)
    if names is not None and names[0][0].itemsize != 2:  # products of others follow a setting of torch's
        return None
    if names is not None and (args or given[0] is not None):
        of_args = named(given) if all(map(seen, given)) else None
        names = None if of_args is None else (*names, *args, *of_args)
    return None if names is None else (*names, *more)


def keep(key: tuple, call: Exact, q, k, v, given: tuple) -> None:
    """Keep a call that was made with `given`, its args, where its backend knows how to make it again."""
    made, data = call.made, bool(call.bound.given)
    if not hasattr(call.backend, "again") or data and not live(call.bound, given):
        return
    known = call.backend.again(made, q, k, v, call.scale, call.bound)
    if known is not None:
        alike = [name for name, other in list(made.again.items()) if bool(other.bound.given) == data]
        if len(alike) >= (MOST_DATA if data else MOST_SIZES):
            made.again.pop(alike[0], None)
        made.again[key] = replace(call, known=known)
