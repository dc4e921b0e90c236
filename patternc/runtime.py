"""Running an attention on tensors: checks, the choice of a backend, autograd, and registration with torch.library.

A backend is a module with two functions:

    forward(compiled, q, k, v, scale, bound, wide) -> (out, lse)
    backward(compiled, dout, dlse, q, k, v, out, lse, scale, bound) -> (dq, dk, dv), dlse perhaps None

with q [B, H, N_q, D], k [B, H_kv, N_k, D], v [B, H_kv, N_k, D_v], out [B, H, N_q, D_v] in the inputs' dtype and lse
[B, H, N_q] in float32 (float64 for float64 inputs).  `wide` asks for out in the dtype of lse: a term is added to it.
"""

from __future__ import annotations

import importlib
import math
import threading
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import torch

from patternc.args import Bound, bind
from patternc.cpu import layout_of, tail_tile_of
from patternc.errors import DeviceError, DtypeError, OperandError, ParameterError, ShapeError, UnknownNameError, suggest
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.kept import live, named, seen
from patternc.layout import Layout
from patternc.orders.heads import may_change, plan_at
from patternc.orders.parts import parts_at, splits
from patternc.passes import Conjunct, lower
from patternc.plan import Plan, make_plan
from patternc.rates import HALF, Shape
from patternc.tables import runtime_conjuncts

BACKENDS = {"triton": "patternc.codegen.backend", "cpu": "patternc.cpu_backend", "reference": "patternc.reference_backend"}
MOST_SIZES = 256  # sizes of calls whose checks are remembered
MOST_DATA = 4  # tensors of args, with their sizes, that stay with what was made of them: those of a step are the same in all layers
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Compiled:
    """What one attention needs at run time, made once per expression and process.

    Attributes:
        spec: the pattern or attention.
        key: names it in the registry that the registered operators look it up in.
        state: what backends keep: kernels, layouts by length.
        again: calls that were made, by what names them (`patternc.again`).
    """

    spec: Pattern | Attention
    key: str
    state: dict = field(default_factory=dict)
    again: dict[tuple, object] = field(default_factory=dict)

    @property
    def exact(self) -> Pattern:
        return self.spec.exact if isinstance(self.spec, Attention) else self.spec

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.exact)

    def parts_at(self, bound: Bound, shape: Shape = HALF, column: str = "k") -> list[Compiled]:
        """The disjoint parts that the kernels of a direction run one after the other at the lengths of a call: mostly the pattern alone; kept."""
        if not splits(self.exact):
            return [self]
        kept = self.state.setdefault("parts", {})
        key = bound.n_q, bound.n_k, bound.heads, bound.q_start, shape, column
        if key not in kept:
            if len(kept) >= MOST_SIZES:
                kept.pop(next(iter(kept)))
            found = parts_at(self.exact, bound, shape, column)
            kept[key] = [self] if len(found) == 1 else [compiled(part) for part in found]
        return kept[key]

    def plan_at(self, bound: Bound, shape: Shape = HALF) -> Plan:
        """The plan for the lengths of a call; kept."""
        if not may_change(self.exact, bound):
            return self.plan
        kept = self.state.setdefault("plans", {})
        key = bound.n_q, bound.n_k, bound.heads, bound.q_start, shape
        if key not in kept:
            if len(kept) >= MOST_SIZES:
                kept.pop(next(iter(kept)))
            kept[key] = plan_at(self.exact, self.plan, bound, shape)
        return kept[key]

    def of(self, pattern: Pattern) -> Compiled:
        """The run-time side of what some heads see (`orders.heads`)."""
        return compiled(pattern)

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


@cache
def backend_module(name: str):
    return importlib.import_module(BACKENDS[name])


def check_backend(name: str) -> None:
    if name not in ("auto", *BACKENDS):
        close = suggest(str(name), ("auto", *BACKENDS))
        known = ", ".join(f'"{b}"' for b in ("auto", *BACKENDS))
        raise UnknownNameError(f"unknown backend `{name}`", fix=f'did you mean "{close}"?' if close else f"one of {known}")


_fitting: set[tuple] = set()  # kinds of inputs that were looked at before, which took a tenth of a short call
MOST_FITTING = 4096


def check_tensors(q, k, v) -> None:
    """Shapes, dtypes and devices of query, key and value.  Raises ShapeError, DtypeError, DeviceError, OperandError."""
    try:
        kinds = tuple([(x.is_nested, x.layout, x.dtype, x.device, x.shape) for x in (q, k, v)])
        if kinds in _fitting:
            return
    except (AttributeError, RuntimeError):  # not a tensor, or one without a shape
        kinds = None
    _check_tensors(q, k, v)
    if kinds is not None:
        if len(_fitting) >= MOST_FITTING:
            _fitting.clear()
        _fitting.add(kinds)


def check_dense(name: str, x: torch.Tensor) -> None:
    """Raises OperandError for a nested or sparse tensor."""
    if x.is_nested or x.layout != torch.strided:
        kind = "nested" if x.is_nested else "sparse"
        raise OperandError(f"`{name}` must be a dense tensor, got a {kind} one", fix="pad it, or call `.to_dense()`")


def _check_tensors(q, k, v) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            raise OperandError(f"`{name}` must be a torch tensor, got {type(x).__name__}", fix="pass query, key and value as tensors")
        check_dense(name, x)
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
    if q.device.type == "meta":
        raise DeviceError("query, key and value are on the meta device and hold no data", fix='move them to "cpu" or "cuda"')
    (batch, heads, _, d), (key_batch, kv_heads, n_k, key_d), of_values = q.shape, k.shape, v.shape
    if of_values[:3] != (key_batch, kv_heads, n_k):
        what, fix = "key and value differ in batch, heads or length", "give one value for each key"
    elif batch != key_batch:
        what, fix = f"query has batch {batch}, key has batch {key_batch}", "expand one of them"
    elif d != key_d:
        what, fix = f"query has head_dim {d}, key has head_dim {key_d}", "project both to one head_dim"
    elif not heads or not kv_heads or heads % kv_heads:
        what, fix = f"{heads} query heads cannot share {kv_heads} key heads", "query heads must be a multiple of key heads"
    else:
        return
    raise ShapeError(what, typed=f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}", fix=fix)


def choose_backend(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "triton" if device.type == "cuda" else "cpu"


def bind_call(spec, q, k, args: dict, q_start, check: bool) -> Bound:
    """Bind a call's args, once for each size and the same data."""
    if not isinstance(check, bool):
        raise OperandError(f"`check` must be True or False, got {type(check).__name__}", fix="write `check=True`")
    sizes = q.shape[2], k.shape[2], q.shape[1], q.shape[0]
    device = q.device if q.device.type != "cpu" else None
    given = q_start, *args.values()
    names = given if given == (None,) else named(given) if all(map(seen, given)) else None
    numbers = names is not None and not any(isinstance(x, tuple) for x in names)
    bound_once = compiled(spec).state.setdefault("bound" if numbers else "bound data", {})
    key = *sizes, check, device, names, *args
    if names is not None and key in bound_once:
        return bound_once[key][0]
    for name, x in (("q_start", q_start), *((f"arg `{name}`", x) for name, x in args.items())):
        if isinstance(x, torch.Tensor) and x.device.type == "meta":
            raise DeviceError(f"{name} is on the meta device and holds no data", fix='move it to "cpu" or "cuda"')
    tensors = tuple(x for x in given if isinstance(x, torch.Tensor) and not x.is_inference())  # torch counts no writes to the others
    bound = replace(bind(spec, args, *sizes, q_start, device, check), given=tensors)
    if numbers or names is not None and not check and live(bound, given):
        if len(bound_once) >= (MOST_SIZES if numbers else MOST_DATA):
            bound_once.pop(next(iter(bound_once)))
        bound_once[key] = bound, given
    return bound


def scale_of(scale: float | None, head_dim: int) -> float:
    """The factor of the scores, 1/sqrt(head_dim) by default."""
    if scale is None:
        return 1 / math.sqrt(max(head_dim, 1))
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise OperandError(f"`scale` must be a number, got {type(scale).__name__}", fix="pass a float; a learned scale multiplies the query")
    if not -math.inf < scale < math.inf:
        raise ParameterError(f"`scale` must be finite, got {scale}", fix="leave it out for 1/sqrt(head_dim)")
    return float(scale)


def rest_of(made: Compiled, bound: Bound) -> Layout:
    """The tiles of what a term acts on: the domain without the exact part."""
    return layout_of(all_of(made.spec.domain, negate(made.exact)), bound, tail_tile_of(bound.n_q, bound.n_k))
