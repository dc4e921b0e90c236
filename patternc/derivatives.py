"""What autograd may ask of an attention: first derivatives, backwards; everything else is refused in words."""

from __future__ import annotations

import torch

from patternc.errors import BackendError


def refuse_transforms(*tensors) -> None:
    """Raise BackendError inside `torch.func.grad`, `vmap` and their like: kernels and layouts read plain tensors."""
    if torch._C._are_functorch_transforms_active() or any(torch._C._functorch.is_legacy_batchedtensor(x) for x in tensors if x is not None):
        torch.compiler.disable(_refuse)()  # tracing of torch 2.11 fails at a `raise` after a graph break


def _refuse() -> None:
    raise BackendError(
        "the transforms of torch.func (grad, vmap, jvp, ..) are not supported",
        fix="use `.backward()` or torch.autograd.grad, and put an axis to map over into the batch",
    )


def refuse_second(*_) -> None:
    raise BackendError("second derivatives are not supported", fix="differentiate without `create_graph=True`")


class Function(torch.autograd.Function):
    """The base of our autograd functions."""

    @staticmethod
    def jvp(ctx, *_):
        raise BackendError("forward-mode derivatives are not supported", fix="use `.backward()` or torch.autograd.grad")


class Gradients(Function):
    """`compute(*tensors)`, what a backward returns: differentiating it once more is refused, and only that.

    A backward cannot refuse by itself: `create_graph=True` enables gradients in it whether or not they are ever used.
    """

    @classmethod
    def apply(cls, compute, *tensors):
        refuse_transforms(*tensors)  # `is_grads_batched=True` maps over backwards, in a way that is older than torch.func
        return super().apply(compute, *tensors) if torch.is_grad_enabled() else compute(*tensors)

    @staticmethod
    def forward(ctx, compute, *tensors):
        return compute(*tensors)

    backward = staticmethod(refuse_second)
