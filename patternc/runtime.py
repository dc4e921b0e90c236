"""Running an attention on tensors: checks, the choice of a backend, autograd, and registration with torch.library.

A backend is a module with two functions:

    forward(compiled, q, k, v, scale, bound) -> (out, lse)
    backward(compiled, dout, dlse, q, k, v, out, lse, scale, bound) -> (dq, dk, dv)

with q [B, H, N_q, D], k [B, H_kv, N_k, D], v [B, H_kv, N_k, D_v], out [B, H, N_q, D_v] in the inputs' dtype and lse
[B, H, N_q] in float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import importlib
import math
import threading
from dataclasses import dataclass, field
from functools import cached_property

import torch

from patternc.args import Bound, bind
from patternc.errors import BackendError, DeviceError, DtypeError, OperandError, ShapeError, UnknownNameError, suggest
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern
from patternc.masks import refuse_second_derivatives
from patternc.passes import Conjunct, lower
from patternc.plan import Plan, make_plan
from patternc.tables import runtime_conjuncts

BACKENDS = {"triton": "patternc.codegen.backend", "cpu": "patternc.cpu_backend", "reference": "patternc.reference_backend"}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Compiled:
    """What one attention needs at run time, made once per expression and process.

    Attributes:
        spec: the pattern or attention.
        key: names it in the registry that the registered operators look it up in.
    """

    spec: Pattern | Attention
    key: str
    state: dict = field(default_factory=dict)  # what backends keep: kernels, layouts by length

    @property
    def exact(self) -> Pattern:
        return self.spec.exact if isinstance(self.spec, Attention) else self.spec

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.exact)

    @cached_property
    def conjuncts(self) -> list[Conjunct] | None:
        """What tables of runtime data are made from."""
        return runtime_conjuncts(lower(self.exact))


_registry: dict[str, Compiled] = {}
_lock = threading.Lock()


def compiled(spec: Pattern | Attention) -> Compiled:
    """The run-time side of an expression; the same object for the same expression."""
    key = spec.facts.get("registry_key")
    if key is None:
        with _lock:
            key = f"{len(_registry)}:{spec.order}"
            _registry[key] = Compiled(spec, key)
            spec.facts["registry_key"] = key
    return _registry[key]


def backend_module(name: str):
    return importlib.import_module(BACKENDS[name])


def check_backend(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        close = suggest(str(name), ("auto", *BACKENDS))
        known = ", ".join(f'"{b}"' for b in ("auto", *BACKENDS))
        raise UnknownNameError(f"unknown backend `{name}`", fix=f'did you mean "{close}"?' if close else f"one of {known}")


def check_tensors(q, k, v) -> None:
    """Shapes, dtypes and devices of query, key and value.  Raises ShapeError, DtypeError, DeviceError, OperandError."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            raise OperandError(f"`{name}` must be a torch tensor, got {type(x).__name__}", fix="pass query, key and value as tensors")
        if x.dim() != 4:
            raise ShapeError(
                f"`{name}` must have shape [batch, heads, length, head_dim], got {tuple(x.shape)}", fix="add the missing axes, as in `x[None]`"
            )
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise DtypeError(f"query, key and value have different dtypes: {q.dtype}, {k.dtype}, {v.dtype}", fix="convert them to one dtype")
    if q.dtype not in DTYPES:
        raise DtypeError(f"dtype {q.dtype} is not supported", fix="use float16, bfloat16, float32 or float64")
    if q.device != k.device or q.device != v.device:
        raise DeviceError(f"query, key and value are on different devices: {q.device}, {k.device}, {v.device}", fix="move them to one device")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if k.shape[:3] != v.shape[:3]:
        raise ShapeError("key and value differ in batch, heads or length", typed=shapes, fix="give one value for each key")
    if q.shape[0] != k.shape[0]:
        raise ShapeError(f"query has batch {q.shape[0]}, key has batch {k.shape[0]}", typed=shapes, fix="expand one of them")
    if q.shape[3] != k.shape[3]:
        raise ShapeError(f"query has head_dim {q.shape[3]}, key has head_dim {k.shape[3]}", typed=shapes, fix="project both to one head_dim")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ShapeError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads", typed=shapes, fix="query heads must be a multiple of key heads"
        )


def choose_backend(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "triton" if device.type == "cuda" else "cpu"


class _Attention(torch.autograd.Function):
    """The exact part, for eager calls; the registered operators below do the same for traced ones."""

    @staticmethod
    def forward(ctx, q, k, v, scale, bound, made, backend):
        out, lse = backend.forward(made, q, k, v, scale, bound)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = scale, bound, made, backend
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        refuse_second_derivatives()
        scale, bound, made, backend = ctx.call
        return *backend.backward(made, dout, dlse, *ctx.saved_tensors, scale, bound), None, None, None, None


def bind_call(spec, q, k, args: dict, q_start, check: bool) -> Bound:
    return bind(spec, args, q.shape[2], k.shape[2], q.shape[1], q.shape[0], q_start, q.device if q.device.type != "cpu" else None, check)


def attend(spec, q, k, v, scale, q_start, check: bool, args: dict, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact attention: `(out, lse)`, differentiable in q, k and v."""
    check_tensors(q, k, v)
    scale = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else float(scale)
    bound = bind_call(spec, q, k, args, q_start, check)
    return _Attention.apply(q, k, v, scale, bound, compiled(spec), backend_module(backend))


# ---- registered operators: what torch.compile and torch.export see


def pack(names: tuple[str, ...], args: dict, q_start) -> tuple[list[torch.Tensor], list[int], str]:
    """Args as the operators take them: tensors, numbers, and a string that says which is which; `names` are the pattern's."""
    tensors, numbers, kinds = [], [], []
    for name in (*names, "q_start"):
        value = q_start if name == "q_start" else args.get(name)
        if value is None:
            continue
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            numbers.append(value)
        else:
            value = torch.as_tensor(value)
            tensors.append(value)
        kinds.append(f"{name}:{'t' if isinstance(value, torch.Tensor) else 'n'}")
    for name in args:
        if name not in names:
            kinds.append(f"{name}:unknown")  # `bind` will say so
    return tensors, numbers, ",".join(kinds)


def unpack(tensors: list[torch.Tensor], numbers: list[int], kinds: str) -> tuple[dict, object]:
    tensors, numbers, args = list(tensors), list(numbers), {}
    for item in kinds.split(",") if kinds else ():
        name, kind = item.split(":")
        args[name] = tensors.pop(0) if kind == "t" else numbers.pop(0) if kind == "n" else 0
    start = args.pop("q_start", None)
    return args, start


def _find(key: str) -> Compiled:
    if key not in _registry:
        raise BackendError("this traced attention belongs to another process", fix="compile the pattern in this process before running the trace")
    return _registry[key]


@torch.library.custom_op("patternc::attention", mutates_args=())
def attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tensors: list[torch.Tensor],
    numbers: list[int],
    kinds: str,
    key: str,
    backend: str,
    scale: float,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    made = _find(key)
    args, start = unpack(tensors, numbers, kinds)
    check_tensors(q, k, v)
    return backend_module(backend).forward(made, q, k, v, scale, bind_call(made.spec, q, k, args, start, check))


@attention_op.register_fake
def _(q, k, v, tensors, numbers, kinds, key, backend, scale, check):
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=lse_dtype)


@torch.library.custom_op("patternc::attention_backward", mutates_args=())
def attention_backward_op(
    dout: torch.Tensor,
    dlse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    tensors: list[torch.Tensor],
    numbers: list[int],
    kinds: str,
    key: str,
    backend: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = _find(key)
    args, start = unpack(tensors, numbers, kinds)
    bound = bind_call(made.spec, q, k, args, start, False)
    return backend_module(backend).backward(made, dout, dlse, q, k, v, out, lse, scale, bound)


@attention_backward_op.register_fake
def _(dout, dlse, q, k, v, out, lse, tensors, numbers, kinds, key, backend, scale):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup(ctx, inputs, output):
    q, k, v, tensors, numbers, kinds, key, backend, scale, _ = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.call = numbers, kinds, key, backend, scale


def _backward(ctx, dout, dlse):
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    numbers, kinds, key, backend, scale = ctx.call
    dq, dk, dv = attention_backward_op(dout, dlse, q, k, v, out, lse, tensors, numbers, kinds, key, backend, scale)
    return dq, dk, dv, [None] * len(tensors), [None] * len(numbers), None, None, None, None, None


attention_op.register_autograd(_backward, setup_context=_setup)


def attend_traced(key: str, names: tuple[str, ...], q, k, v, scale, q_start, check: bool, args: dict, backend: str):
    """`attend` through the registered operator, for torch.compile and torch.export."""
    tensors, numbers, kinds = pack(names, args, q_start)
    scale = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else scale
    return attention_op(q, k, v, tensors, numbers, kinds, key, backend, scale, check)
