"""Runtime args: which names an expression uses and how, checks of what a call gives for them, and one normal form.

A call's args are checked on the host by their shapes, dtypes and devices alone, so that nothing waits for a device.  What
values hold is guarded where they are read: an index outside its tensor makes the comparison false.  `check=True` looks at
the values too.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import numpy as np

from patternc.bounds import bounds
from patternc.errors import ArgError, DeviceError, DtypeError, LimitError, ParameterError, ShapeError, suggest
from patternc.expr.index import INF, MAX_INT, Index
from patternc.expr.node import Node, fact, postorder

KINDS = {
    "scalar": "as a number",
    "array": "with subscripts",
    "positions": "as a set of positions",
    "lengths": "by `valid`",
}


@dataclass(frozen=True, eq=False)
class ArgUse:
    """How an expression uses one arg.

    Attributes:
        kind: "scalar" (a bare number), "array" (subscripted), "positions" (a mask or a list of positions) or "lengths" (a
            mask or lengths).
        rank: number of subscripts; 0 for a scalar, 1 for the memberships.
        subscripts: the distinct tuples of subscripts of an array.
        over_heads: a membership of query heads, not of positions: its mask has one entry for each head.
    """

    name: str
    kind: str
    rank: int = 0
    subscripts: tuple[tuple[Index, ...], ...] = ()
    over_heads: bool = False


@fact
def signature(expr: Node) -> dict[str, ArgUse]:
    """The args of an index expression, a pattern or an attention, by name, sorted.

    Raises:
        ArgError: when one name is used in two ways that no value can serve.
    """
    found: dict[str, ArgUse] = {}

    def note(use: ArgUse) -> None:
        old = found.setdefault(use.name, use)
        if (old.kind, old.rank, old.over_heads) != (use.kind, use.rank, use.over_heads):
            one, two = (f"{KINDS[u.kind]}{f' ({u.rank})' if u.kind == 'array' else ' (heads)' if u.over_heads else ''}" for u in (old, use))
            raise ArgError(f"arg `{use.name}` is used {one} and {two}", fix="give the two uses two names")
        if old is not use and not any(all(a is b for a, b in zip(s, use.subscripts[0])) for s in old.subscripts if use.subscripts):
            found[use.name] = replace(old, subscripts=old.subscripts + use.subscripts)

    for node in postorder(expr):
        sourced = node.op in ("read", "member")
        if sourced and node.args[0].op == "arg":
            name = node.args[0].args[0]
            if node.op == "read":
                note(ArgUse(name, "array", len(node.args) - 1, (node.args[1:],)))
            else:
                note(ArgUse(name, node.args[2], 1, over_heads=_names_of(node.args[1]) == {"h"}))
        for child in node.children[1:] if sourced else node.children:
            if child.op == "arg":
                note(ArgUse(child.args[0], "scalar"))
    if expr.op == "arg":
        note(ArgUse(expr.args[0], "scalar"))
    return dict(sorted(found.items()))


def _names_of(x: Index) -> set[str]:
    return {node.args[0] for node in postorder(x) if node.op == "var"}


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
    """

    n_q: int
    n_k: int
    heads: int
    batch: int
    q_start: object
    default_start: bool
    uses: dict[str, ArgUse]
    values: dict[str, object]

    @property
    def key(self) -> tuple:
        """What is static about the call apart from its sizes: hashable; two calls with equal keys share kernels."""
        start = "default" if self.default_start else _shape_key(self.q_start)
        return start, *((name, use.kind, use.rank, _shape_key(self.values[name])) for name, use in self.uses.items())

    def numpy(self) -> Bound:
        """The same with numpy arrays: CPU tensors without a copy; tensors of another device are copied (this waits for it)."""
        host = {name: _to_numpy(value) for name, value in self.values.items()}
        return replace(self, q_start=_to_numpy(self.q_start), values=host)

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


def _shape_key(value) -> str:
    return "int" if isinstance(value, int) else "shared" if value.shape[0] == 1 else "batched"


def is_tensor(x) -> bool:
    """Whether `x` is a torch tensor; torch is not imported for the question."""
    return hasattr(x, "data_ptr") and hasattr(x, "is_contiguous")


def on_host(x) -> bool:
    """Whether reading the values of `x` waits for no device."""
    return not is_tensor(x) or x.device.type == "cpu"


def _to_numpy(value):
    return value.detach().cpu().numpy() if is_tensor(value) else value


def bind(expr: Node, args: dict, n_q: int, n_k: int | None = None, heads: int = 1, batch: int = 1, q_start=None, device=None, check: bool = False) -> Bound:
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
    n_q, n_k, heads, batch = (_count(n, v) for n, v in (("n_q", n_q), ("n_k", n_q if n_k is None else n_k), ("heads", heads), ("batch", batch)))
    uses = signature(expr)
    _check_names(uses, args)
    raw = {name: _as_array(f"arg `{name}`", args[name]) for name in uses}
    start = None if q_start is None else _as_array("q_start", q_start)
    _check_devices({**{f"arg `{n}`": v for n, v in raw.items()}, "q_start": start}, device)
    first = _start(start, n_q, n_k, batch)
    env = {"k": (0, n_k - 1), "h": (0, heads - 1), "b": (0, batch - 1), "n_q": (n_q, n_q), "n_k": (n_k, n_k)}
    low, high = _extent(first)
    env["q"] = (low, high + n_q - 1)
    values = {}
    for name, use in uses.items():
        if use.kind == "scalar":
            values[name] = _scalar(f"arg `{name}`", raw[name], batch)
            env[name] = _extent(values[name])
        elif use.kind == "array":
            values[name] = _array(use, raw[name], batch)
        else:
            values[name] = _membership(use, raw[name], heads if use.over_heads else n_k, batch, check)
    if check:
        for name, value in values.items():
            env[f"{name}[]"] = _check_values(name, value)
    for use in uses.values():
        if use.kind == "array":
            _check_subscripts(use, values[use.name], env, n_k)
    _check_static(expr, env, heads)
    if check and not isinstance(first, int) and first.shape[0] and int(first.min()) < 0:
        raise ArgError(f"q_start holds the negative position {int(first.min())}", fix="positions start at 0")
    return Bound(n_q, n_k, heads, batch, first, q_start is None, uses, values)


def _count(name: str, value) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ParameterError(f"`{name}` must be an integer, got {value!r}", fix=f"write `{name}=128`") from None
    if number < 0:
        raise ParameterError(f"`{name}` must be at least 0, got {number}", fix=f"use {name} >= 0")
    return number


def _check_names(uses: dict[str, ArgUse], args: dict) -> None:
    for name in args:
        if name not in uses:
            close = suggest(name, uses)
            known = f"the pattern's args are {', '.join(uses)}" if uses else "the pattern has no args"
            raise ArgError(f"unknown arg `{name}`", fix=f"did you mean `{close}`?" if close else known)
    missing = [name for name in uses if args.get(name) is None]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise ArgError(f"missing {'arg' if len(missing) == 1 else 'args'} {listed}", fix=f"give {'it' if len(missing) == 1 else 'them'} by name: `{missing[0]}=...`")


def _as_array(what: str, value):
    """An int, a numpy array or a torch tensor, of integers or bools; everything else raises."""
    if isinstance(value, Node):
        raise ArgError(f"{what} must be a number or a tensor, got an expression", fix="expressions belong into the pattern; a call takes values")
    if not isinstance(value, (bool, np.ndarray)) and not is_tensor(value):
        try:
            return operator.index(value)
        except TypeError:
            pass
    if not is_tensor(value):
        try:
            value = np.asarray(list(value) if isinstance(value, range) else value)
        except ValueError:
            raise ArgError(f"{what} must be a number or a tensor, got a ragged list", fix="give a tensor of integers or bools") from None
        if value.dtype.kind not in "iubf":
            raise ArgError(f"{what} must be a number or a tensor, got {type(value.item() if value.ndim == 0 else value).__name__}", fix="give integers or bools")
        value = value.astype(np.int64) if value.size == 0 and value.dtype.kind == "f" else value  # an empty list
    name = str(value.dtype).removeprefix("torch.")
    if not name.startswith(("int", "uint", "bool")):
        raise DtypeError(f"{what} must hold integers or bools, got {name}", fix="convert it, as in `x.long()`")
    return int(value) if value.ndim == 0 and name != "bool" and on_host(value) else value


def _check_devices(given: dict[str, object], device) -> None:
    tensors = {what: value for what, value in given.items() if is_tensor(value)}
    if not tensors:
        return
    first = next(iter(tensors))
    wanted, whose = (tensors[first].device, first) if device is None else (device, "the call")
    for what, value in tensors.items():
        if not _same_device(value.device, wanted):
            raise DeviceError(f"{what} is on {value.device}, and {whose} is on {wanted}", fix=f'move it: `.to("{wanted}")`')


def _same_device(one, two) -> bool:
    """`cuda` and `cuda:0` count as the same: an index that is left out means the current one."""
    (a, _, i), (b, _, j) = str(one).partition(":"), str(two).partition(":")
    return a == b and (not i or not j or i == j)


def _axes(rank: int) -> str:
    return "1 axis" if rank == 1 else f"{rank} axes"


def _batched(what: str, value, batch: int, rank: int):
    """With a leading axis of size 1 or `batch`."""
    if value.ndim == rank:
        return value[None]
    if value.ndim == rank + 1 and value.shape[0] in (1, batch):
        return value
    if value.ndim == rank + 1:
        raise ShapeError(f"{what} has a batch axis of {value.shape[0]}, and the batch is {batch}", typed=str(tuple(value.shape)), fix=f"use {batch} or 1 rows")
    raise ShapeError(f"{what} must have {_axes(rank)}, or {rank + 1} with the batch in front, got shape {tuple(value.shape)}", fix="compare it with the pattern")


def _scalar(what: str, value, batch: int):
    """An int, or an int array [1] or [batch]."""
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise LimitError(f"{what} is too large: {value}", fix=f"keep integers within {MAX_INT} in magnitude")
        return value
    if str(value.dtype).endswith("bool"):
        raise DtypeError(f"{what} must be an integer, got bool", fix="give an int, or an int tensor of shape [] or [batch]")
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, batch)):
        raise ShapeError(f"{what} must be a number or have shape [] or [{batch}], got {tuple(value.shape)}", fix="give one integer, or one for each batch row")
    return value[None] if value.ndim == 0 else value


def _start(value, n_q: int, n_k: int, batch: int):
    if value is None:
        if n_q > n_k:
            raise ShapeError(f"{n_q} queries are more than {n_k} keys, so where do they start?", fix="give the position of the first query: `q_start=0`")
        return n_k - n_q
    value = _scalar("q_start", value, batch)
    if isinstance(value, int) and value < 0:
        raise ParameterError(f"q_start must be at least 0, got {value}", fix="positions start at 0")
    return value


def _extent(value) -> tuple[float, float]:
    """Smallest and largest value where that waits for no device, else unknown."""
    if isinstance(value, int):
        return value, value
    if not on_host(value) or value.shape[0] == 0:
        return -INF, INF
    return int(value.min()), int(value.max())


def _array(use: ArgUse, value, batch: int):
    what = f"arg `{use.name}`"
    if isinstance(value, int):
        raise ShapeError(f"{what} takes {use.rank} subscript{'s' * (use.rank > 1)} in the pattern, got the number {value}", fix=f"give a tensor of {_axes(use.rank)}")
    own_batch = any("b" in _names_of(s) for subscripts in use.subscripts for s in subscripts)
    if own_batch and value.ndim != use.rank:
        raise ShapeError(f"{what} has {use.rank} subscripts, the batch `b` among them, got shape {tuple(value.shape)}", fix=f"give a tensor of {_axes(use.rank)}")
    return _batched(what, value, batch, use.rank)


def _membership(use: ArgUse, value, size: int, batch: int, check: bool):
    """The bool mask [B', size] of a mask, a list of positions or lengths; computed on the value's device, without waiting."""
    what, axis = f"arg `{use.name}`", "heads" if use.over_heads else "n_k"
    if not isinstance(value, int) and str(value.dtype).endswith("bool"):
        mask = _batched(what, value, batch, 1)
        if mask.shape[1] != size:
            raise ShapeError(f"{what} is a mask over {axis} = {size}, got shape {tuple(value.shape)}", fix=f"give [{size}] or [{batch}, {size}]")
        return mask
    if use.kind == "lengths":
        lengths = _scalar(what, value, batch)
        lengths = np.array([lengths]) if isinstance(lengths, int) else lengths
        if check and lengths.shape[0] and not 0 <= int(lengths.min()) <= int(lengths.max()) <= size:
            raise ArgError(f"{what} holds a length outside 0..{size}", fix="lengths count keys")
        return _arange(size, lengths)[None] < lengths[:, None]
    if isinstance(value, int):
        raise ShapeError(f"{what} is a mask or a list of positions, got the number {value}", fix=f"a list of one position is `[{value}]`; a count belongs into the pattern")
    listed = _batched(what, value, batch, 1)
    if check and listed.shape[0] * listed.shape[1] and int(listed.max()) >= size:
        raise ArgError(f"{what} holds the position {int(listed.max())}, and {axis} is {size}", fix="positions are below it; negative ones are ignored")
    return _scatter(listed, size)


def _arange(size: int, like):
    if not is_tensor(like):
        return np.arange(size)
    import torch

    return torch.arange(size, device=like.device)


def _scatter(listed, size: int):
    """bool [B', size], true at the listed positions; those outside fall into a column that is cut off."""
    if not is_tensor(listed):
        mask = np.zeros((listed.shape[0], size + 1), bool)
        listed = listed.astype(np.int64)
        np.put_along_axis(mask, np.where((listed < 0) | (listed >= size), size, listed), True, 1)
        return mask[:, :size]
    import torch

    listed = listed.long()
    mask = torch.zeros(listed.shape[0], size + 1, dtype=torch.bool, device=listed.device)
    mask.scatter_(1, torch.where((listed < 0) | (listed >= size), size, listed), True)
    return mask[:, :size]


def _check_values(name: str, value) -> tuple[float, float]:
    """The range of an arg's values; raises where one does not fit in 32 bits."""
    if isinstance(value, int):
        return value, value
    value = _to_numpy(value)
    if value.size == 0:
        return -1, -1
    low, high = int(value.min()), int(value.max())
    if max(-low, high) > MAX_INT:
        raise ArgError(f"arg `{name}` holds {low if -low > high else high}, which does not fit in 32 bits", fix=f"keep values within {MAX_INT} in magnitude")
    return low, high


def _check_subscripts(use: ArgUse, value, env: dict, n_k: int) -> None:
    what = f"arg `{use.name}`"
    for subscripts in use.subscripts:
        for axis, s in enumerate(subscripts):
            size = value.shape[axis + 1]
            if s.op == "var" and s.args[0] in ("q", "k"):
                # By a `q_start` queries may lie beyond the last key; then the tensor covers them too.
                names = {t[axis].args[0] for t in use.subscripts if t[axis].op == "var"}
                reach = env["q"][1] + 1 if "q" in names and env["q"][1] < INF else 0
                wanted = max(n_k, reach)
                if size != wanted:
                    of = f"n_k = {n_k}" if wanted == n_k else f"the {wanted} positions up to the last query"
                    raise ShapeError(f"{what} is indexed by a position, so its length there is {of}, got shape {tuple(value.shape)[1:]}", fix="queries index it absolutely too, whatever n_q is")
            else:
                _check_reach(what, s, size, axis, env)


def _check_static(expr: Node, env: dict, heads: int) -> None:
    for node in postorder(expr):
        if node.op == "per_head" and len(node.args) != heads:
            raise ShapeError(f"per_head gives {len(node.args)} patterns, and there are {heads} query heads", fix="give one pattern for each query head")
        if node.op == "read" and node.args[0].op == "table":
            table = node.args[0].args[0]
            what = f"the table `{table.name}`" if table.name else "a table"
            for axis, (s, size) in enumerate(zip(node.args[1:], table.data.shape)):
                _check_reach(what, s, size, axis, env)


def _check_reach(what: str, subscript: Index, size: int, axis: int, env: dict) -> None:
    high = bounds(subscript, env)[1]
    if size <= high < INF:
        raise ShapeError(f"{what} has length {size} along axis {axis}, and its subscript there reaches {int(high)}", fix=f"make it longer, or bound the subscript: `min(..., {size - 1})`")


