"""One call of an attention, without a module: exact part, term, and their combination, on any backend."""

from __future__ import annotations

import torch

from patternc import joint, operators, reference, runtime
from patternc.again import Exact, keep, name_of
from patternc.derivatives import refuse_transforms
from patternc.errors import DeviceError, DtypeError, OperandError, ShapeError
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern
from patternc.signature import signature
from patternc.tail import LinearAttention, by_features, quotient, rms_norm, tail
from patternc.tail_runtime import Norms, Quotient, TailAttention, by_kernels


def attention(
    spec: Pattern | Attention, q, k, v, args: dict | None = None, *, backend: str = "cpu", scale: float | None = None, q_start=None,
    check: bool = False, tail_q=None, tail_k=None, exact_scale=None, tail_scale=None, initial_state=None, projection=None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What `patternc.reference.attention` computes, by a backend; the arguments are described there.

    Returns:
        out [B, H, Nq, Dv] in q's dtype, and lse [B, H, Nq] of the exact part in float32 (float64 for float64).
    """
    term = spec.term if isinstance(spec, Attention) else None
    made, args, tracing = runtime.compiled(spec), args or {}, torch.compiler.is_compiling()
    refuse_transforms()
    plain = not tracing and check is False and term is exact_scale is tail_scale is None and (scale is None or type(scale) is float)
    given = q_start, *args.values()
    key = name_of((q, k, v), tuple(args), given, backend, scale) if plain else None
    if key is not None and (again := made.again.get(key)) is not None:  # all was looked at before
        return again.attend(q, k, v, given)
    if not tracing:  # the operator checks when it runs: tracing cannot raise these errors
        runtime.check_tensors(q, k, v)
        q, k, v = q.resolve_neg(), k.resolve_neg(), v.resolve_neg()  # kernels read memory as it is
    name = choose(backend, term, q)
    wide = term is not None and name != "triton"
    alone = term is not None and spec.exact.op == "false" and term.norm != "rms" and name == "triton"  # no exact part to speak of
    scale = runtime.scale_of(scale, q.shape[-1])
    check_scales(q, v, exact_scale, tail_scale)
    joined = term is not None and name == "triton" and joint.takes(spec, q, k, v, tail_q, tail_k)
    if joined and (tail_q is not None or tail_k is not None):
        check_tail(q, k, q if tail_q is None else tail_q, k if tail_k is None else tail_k)
        tail_q, tail_k = (x if x is None else x.resolve_neg() for x in (tail_q, tail_k))
    if joined:
        exact_scale, tail_scale = given_or_ones(q, v, exact_scale, tail_scale)
    if tracing:
        call = *operators.pack(spec.facts["arg_names"], args, q_start), made.key
        if joined:
            return joint.joint(q, k, v, tail_q, tail_k, exact_scale, tail_scale, *call, scale, check)[:2]
        out, lse = nothing(q) if alone else operators.attention(q, k, v, *call, name, scale, check, wide)

        def apply(*tensors):
            return operators.linear_attention(*tensors, *call)

        def kernels(*tensors_and_feature):
            *tensors, feature, sums = tensors_and_feature
            y, weights = operators.tail_attention(*tensors, *call, name, feature, sums)
            return y, weights if sums else None

        linear = by_kernels(kernels) if name == "triton" else by_features(apply)
    else:
        bound = runtime.bind_call(spec, q, k, args, q_start, check)
        if term is not None and name == "reference":
            learned = dict(exact_scale=exact_scale, tail_scale=tail_scale, initial_state=initial_state, projection=projection)
            out, lse = reference.attention(spec, q, k, v, args, scale=scale, q_start=q_start, tail_q=tail_q, tail_k=tail_k, **learned)
            return out.to(q.dtype), lse if q.dtype == torch.float64 else lse.float()
        if joined:
            return joint.Joint.apply(q, k, v, tail_q, tail_k, exact_scale, tail_scale, scale, made, bound)
        call = Exact(made, runtime.backend_module(name), scale, bound, wide)
        out, lse = nothing(q) if alone else call.attend(q, k, v, given)
        if key is not None:
            keep(key, call, q, k, v, given)
        if term is None:
            return out, lse

        def apply(*tensors):
            return LinearAttention.apply(*tensors, runtime.rest_of(made, bound), bound.given)

        linear = by_kernels(lambda *call: TailAttention.apply(*call, made, bound)) if name == "triton" else by_features(apply)
    if term is None:
        return out, lse
    tail_q, tail_k = (q if tail_q is None else tail_q), (k if tail_k is None else tail_k)
    check_tail(q, k, tail_q, tail_k)
    y, total = tail(term, tail_q.resolve_neg(), tail_k.resolve_neg(), v, linear, initial_state, projection)
    if total is not None and name == "triton":
        return (operators.quotient if tracing else Quotient.apply)(None if alone else out, y, total, q.dtype), lse
    y = y if total is None else quotient(y, total)
    if term.norm == "rms" and name == "triton":
        return (operators.norms if tracing else Norms.apply)(out, y, *given_or_ones(q, v, exact_scale, tail_scale)), lse
    if term.norm == "rms":
        out, y = rms_norm(out, exact_scale), rms_norm(y, tail_scale)
    return (y if alone else out + y).to(q.dtype), lse


def nothing(q) -> tuple[None, torch.Tensor]:
    """The exact part of an empty pattern: no output, and the lse of rows without keys."""
    return None, torch.full(q.shape[:3], -torch.inf, device=q.device)


def prepare(spec: Pattern | Attention) -> None:
    """Compute what tracing must find ready, since it cannot run the compiler."""
    runtime.compiled(spec)
    spec.facts["arg_names"] = tuple(signature(spec))


def choose(backend: str, term, q: torch.Tensor) -> str:
    """The backend of a call's exact part."""
    if backend == "auto" and term is not None and q.dtype == torch.float64:
        return "cpu"  # torch operations compute terms in float64, on any device
    return runtime.choose_backend(backend, q.device)


def given_or_ones(q, v, *scales: torch.Tensor | None) -> list[torch.Tensor]:
    """Scales of norms, 1 where there are none."""
    return [torch.ones(q.shape[1], v.shape[3], device=q.device) if x is None else x for x in scales]


def check_scales(q, v, exact_scale, tail_scale) -> None:
    """The scales of norms are one number for each query head and column of the value.

    Raises:
        OperandError, DtypeError, DeviceError, ShapeError: they are not, or elsewhere.
    """
    for name, x in (("exact_scale", exact_scale), ("tail_scale", tail_scale)):
        if x is None or q.dim() != 4 or v.dim() != 4:  # that is refused elsewhere
            continue
        if not isinstance(x, torch.Tensor):
            raise OperandError(f"`{name}` must be a torch tensor, got {type(x).__name__}", fix="leave it out for a scale of 1")
        if not x.is_floating_point():
            raise DtypeError(f"`{name}` has dtype {x.dtype}, which is not supported", fix="use float32")
        if x.device != q.device:
            raise DeviceError(f"`{name}` is on {x.device}, and query on {q.device}", fix=f'move it: `.to("{q.device}")`')
        if x.shape != (q.shape[1], v.shape[-1]):
            wanted = q.shape[1], v.shape[-1]
            raise ShapeError(f"`{name}` must have shape {tuple(wanted)}, got {tuple(x.shape)}", fix="one for each query head and column of the value")


def check_tail(q, k, tail_q, tail_k) -> None:
    """The term's own query and key have the shapes of the exact part's, up to head_dim.

    Raises:
        OperandError, DtypeError, DeviceError, ShapeError: they do not fit.
    """
    for name, x, like in (("tail_q", tail_q, q), ("tail_k", tail_k, k)):
        if not isinstance(x, torch.Tensor):
            raise OperandError(f"`{name}` must be a torch tensor, got {type(x).__name__}", fix=f"it stands for `{name[-1]}` in the term")
        runtime.check_dense(name, x)
        if x.dtype not in runtime.DTYPES:
            raise DtypeError(f"`{name}` has dtype {x.dtype}, which is not supported", fix="use float16, bfloat16, float32 or float64")
        if x.device != like.device:
            raise DeviceError(f"`{name}` is on {x.device}, and `{name[-1]}` is on {like.device}", fix=f'move it: `.to("{like.device}")`')
        if x.dim() != 4 or x.shape[:3] != like.shape[:3]:
            wanted = (*like.shape[:3], "any")
            raise ShapeError(f"`{name}` must have shape {wanted}, got {tuple(x.shape)}", fix=f"it stands for `{name[-1]}` in the term")
    if tail_q.shape[3] != tail_k.shape[3]:
        raise ShapeError(f"tail_q has head_dim {tail_q.shape[3]}, tail_k has {tail_k.shape[3]}", fix="project both to one head_dim")
