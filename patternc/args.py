"""Runtime args: which names an expression uses and how, checks of what a call gives for them, and one normal form.

A call's args are checked on the host by their shapes, dtypes and devices alone, so that nothing waits for a device.  What
values hold is guarded where they are read: an index outside its tensor makes the comparison false.  `check=True` looks at
the values too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from patternc.errors import ArgError
from patternc.expr.node import Node
from patternc.forms import (
    array,
    as_array,
    check_devices,
    check_names,
    check_values,
    count,
    extent,
    is_tensor,
    membership,
    scalar,
    shape_key,
    start_of,
    to_numpy,
)
from patternc.signature import ArgUse, signature
from patternc.subscripts import check_static, check_subscripts

__all__ = ["ArgUse", "Bound", "bind", "is_tensor", "signature"]


@dataclass(frozen=True, eq=False)
class Bound:
    """A call's sizes and args in normal form.

    Attributes:
        n_q, n_k, heads, batch: the sizes.
        q_start: position of the first query: an int, or an int array [1] or [batch].
        default_start: no `q_start` was given, so that it is `n_k - n_q`.
        uses: how each arg is used.
        values: scalar: an int, or an int array [B']; array: int or bool [B', ...]; memberships: bool mask [B', n_k]
            (`[B', heads]` over heads).  B' is 1 or `batch`.  Arrays are numpy arrays or torch tensors.
        given: tensors of the call as they were given: a backward refuses to run when one was written to since its forward.
        kept: what backends keep with this call, or, where `static`, with all of its sizes.
    """

    n_q: int
    n_k: int
    heads: int
    batch: int
    q_start: object
    default_start: bool
    uses: dict[str, ArgUse]
    values: dict[str, object]
    given: tuple = field(default=(), repr=False)
    kept: dict = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def static(self) -> bool:
        """Whether all args are numbers."""
        return isinstance(self.q_start, int) and all(isinstance(x, int) for x in self.values.values())

    @property
    def key(self) -> tuple:
        """What is static about the call apart from its sizes: hashable; two calls with equal keys share kernels."""
        start = "default" if self.default_start else shape_key(self.q_start)
        return start, *((name, use.kind, use.rank, shape_key(self.values[name])) for name, use in self.uses.items())

    def numpy(self) -> Bound:
        """The same with numpy arrays: CPU tensors without a copy; tensors of another device are copied (this waits for it)."""
        host = {name: to_numpy(value) for name, value in self.values.items()}
        return replace(self, q_start=to_numpy(self.q_start), values=host)

    def torch(self, device="cpu", dtype=None) -> Bound:
        """The same with contiguous torch tensors on `device`: integers as `dtype` (int32 by default), masks as bool."""
        import torch

        def convert(value):
            if isinstance(value, int):
                return value
            value = value if is_tensor(value) else torch.from_numpy(np.array(value))
            kept = value if value.dtype == torch.bool else value.to(dtype or torch.int32)
            return kept.to(device, non_blocking=True).contiguous()

        return replace(self, q_start=convert(self.q_start), values={name: convert(value) for name, value in self.values.items()})


def bind(
    expr: Node, args: dict, n_q: int, n_k: int | None = None, heads: int = 1, batch: int = 1, q_start=None, device=None, check: bool = False,
) -> Bound:
    """Check a call's args against an expression and bring them into normal form.

    Args:
        expr: a pattern or an attention.
        args: the runtime args by name: ints, lists, numpy arrays or torch tensors of ints or bools.
        n_q, n_k, heads, batch: the sizes; `n_k` defaults to `n_q`.
        q_start: position of the first query, an int or int tensor of shape [] or [batch]; default `n_k - n_q`.
        device: where torch tensors must be; by default all on the same one.
        check: also check values; this may wait for the device.
    Raises:
        ArgError: args are missing or unknown, one is not a number or a tensor, or (`check`) a value does not fit.
        ShapeError, DtypeError, DeviceError, ParameterError, LimitError: as they say.
    """
    n_q, n_k, heads, batch = (count(n, v) for n, v in (("n_q", n_q), ("n_k", n_q if n_k is None else n_k), ("heads", heads), ("batch", batch)))
    uses = signature(expr)
    check_names(uses, args)
    raw = {name: as_array(f"arg `{name}`", args[name]) for name in uses}
    start = None if q_start is None else as_array("q_start", q_start)
    check_devices({**{f"arg `{n}`": v for n, v in raw.items()}, "q_start": start}, device)
    first = start_of(start, n_q, n_k, batch)
    env = {"k": (0, n_k - 1), "h": (0, heads - 1), "b": (0, batch - 1), "n_q": (n_q, n_q), "n_k": (n_k, n_k)}
    low, high = extent(first)
    env["q"] = (low, high + n_q - 1)
    values = {}
    for name, use in uses.items():
        if use.kind == "scalar":
            values[name] = scalar(f"arg `{name}`", raw[name], batch)
            env[name] = extent(values[name])
        elif use.kind == "array":
            values[name] = array(use, raw[name], batch)
        else:
            values[name] = membership(use, raw[name], heads if use.over_heads else n_k, batch, check)
    if check:
        for name, value in values.items():
            env[f"{name}[]"] = check_values(name, value)
    for use in uses.values():
        if use.kind == "array":
            check_subscripts(use, values[use.name], env, n_k)
    check_static(expr, env, heads)
    if check and not isinstance(first, int) and first.shape[0] and int(first.min()) < 0:
        raise ArgError(f"q_start holds the negative position {int(first.min())}", fix="positions start at 0")
    return Bound(n_q, n_k, heads, batch, first, q_start is None, uses, values)
