"""Checks of what a call gives for its args, by shape, dtype and device, and their normal forms."""

from __future__ import annotations

import operator

import numpy as np

from patternc.errors import ArgError, DeviceError, DtypeError, LimitError, ParameterError, ShapeError, suggest
from patternc.expr.bounds import INF
from patternc.expr.index import MAX_INT
from patternc.expr.node import Node
from patternc.signature import ArgUse, names_of


def shape_key(value) -> str:
    return "int" if isinstance(value, int) else "shared" if value.shape[0] == 1 else "batched"


def is_tensor(x) -> bool:
    """Whether `x` is a torch tensor; torch is not imported for the question."""
    return hasattr(x, "data_ptr") and hasattr(x, "is_contiguous")


def on_host(x) -> bool:
    """Whether reading the values of `x` waits for no device."""
    return not is_tensor(x) or x.device.type == "cpu"


def to_numpy(value):
    if is_tensor(value) and value.device.type == "meta":
        raise DeviceError("an arg is on the meta device and holds no data", fix='move it to "cpu" or "cuda"')
    return value.detach().cpu().numpy() if is_tensor(value) else value


MOST = {"heads": 1 << 16, "batch": 1 << 22}  # far beyond use; each one costs something
MOST_POSITIONS = 1 << 27  # that are looked at one by one


def count(name: str, value, least: int = 0) -> int:
    """An integer parameter.  Raises ParameterError, LimitError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ParameterError(f"`{name}` must be an integer, got {value!r}", fix=f"write `{name}=128`") from None
    if number < least:
        raise ParameterError(f"`{name}` must be at least {least}, got {number}", fix=f"use {name} >= {least}")
    most = MOST.get(name, MAX_INT)
    if number > most:
        raise LimitError(f"`{name}` is too large: {number}", fix=f"use {name} <= {most}")
    return number


def widths(heads: int, head_dim, value_dim, kv_heads) -> tuple[int, int, int]:
    """`(head_dim, value_dim, kv_heads)`, of which the last two default to the width and the number of query heads.

    Raises ParameterError, LimitError.
    """
    head_dim = count("head_dim", head_dim)
    value_dim = head_dim if value_dim is None else count("value_dim", value_dim)
    kv_heads = heads if kv_heads is None else count("kv_heads", kv_heads, least=1 if heads else 0)
    if heads and heads % kv_heads:
        raise ParameterError(f"{heads} heads are no multiple of {kv_heads} kv_heads", fix="give `kv_heads=` a divisor of `heads=`")
    return head_dim, value_dim, kv_heads


def afford(number: int, most: int, what: str, fix: str = "use larger tiles, or a shorter length") -> None:
    """Raise LimitError where there are more things than memory and time suffice for."""
    if number > most:
        raise LimitError(f"{number:,} {what} are too many; the limit is {most:,}", fix=fix)


def tile_shape(tile) -> tuple[int, int]:
    """Rows and columns of a tile.  Raises ParameterError."""
    if not isinstance(tile, (tuple, list)) or len(tile) != 2:
        raise ParameterError(f"`tile` is rows and columns, got {tile!r}", fix="write `tile=(128, 128)`")
    return count("tile", tile[0], 1), count("tile", tile[1], 1)


def check_names(uses: dict[str, ArgUse], args: dict) -> None:
    for name in args:
        if name not in uses:
            close = suggest(name, uses)
            known = f"the pattern's args are {', '.join(uses)}" if uses else "the pattern has no args"
            raise ArgError(f"unknown arg `{name}`", fix=f"did you mean `{close}`?" if close else known)
    missing = [name for name in uses if args.get(name) is None]
    if missing:
        listed = ", ".join(f"`{name}`" for name in missing)
        noun, pronoun = ("arg", "it") if len(missing) == 1 else ("args", "them")
        raise ArgError(f"missing {noun} {listed}", fix=f"give {pronoun} by name: `{missing[0]}=...`")


def as_array(what: str, value):
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
            kind = next((type(x).__name__ for x in value.ravel().tolist() if not isinstance(x, (int, float))), "an array of objects")
            raise ArgError(f"{what} must be a number or a tensor, got {kind}", fix="give integers or bools")
        value = value.astype(np.int64) if value.size == 0 and value.dtype.kind == "f" else value  # an empty list
    elif value.is_sparse or value.is_sparse_csr or value.is_nested:
        raise ArgError(f"{what} must be a dense tensor", fix="call `.to_dense()`, or pad it")
    name = str(value.dtype).removeprefix("torch.")
    if not name.startswith(("int", "uint", "bool")):
        raise DtypeError(f"{what} must hold integers or bools, got {name}", fix="convert it, as in `x.long()`")
    if value.ndim == 0 and name != "bool" and on_host(value):
        return int(value)
    return _signed(value) if name.startswith("uint") else value


def _signed(value):
    """Unsigned integers as int64, since the analysis computes with -1; what int64 does not hold becomes its largest, not negative."""
    signed = value.long() if is_tensor(value) else value.astype(np.int64)
    signed[signed < 0] = 2**63 - 1
    return signed


def check_devices(given: dict[str, object], device) -> None:
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
        message = f"{what} has a batch axis of {value.shape[0]}, and the batch is {batch}"
        raise ShapeError(message, typed=str(tuple(value.shape)), fix=f"use {batch} or 1 rows")
    message = f"{what} must have {_axes(rank)}, or {rank + 1} with the batch in front, got shape {tuple(value.shape)}"
    raise ShapeError(message, fix="compare it with the pattern")


def scalar(what: str, value, batch: int):
    """An int, or an int array [1] or [batch]; what the host can read is within MAX_INT, the rest only `check` looks at."""
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise LimitError(f"{what} is too large: {value}", fix=f"keep integers within {MAX_INT} in magnitude")
        return value
    if str(value.dtype).endswith("bool"):
        raise DtypeError(f"{what} must be an integer, got bool", fix="give an int, or an int tensor of shape [] or [batch]")
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, batch)):
        message = f"{what} must be a number or have shape [] or [{batch}], got {tuple(value.shape)}"
        raise ShapeError(message, fix="give one integer, or one for each batch row")
    value = value[None] if value.ndim == 0 else value
    largest = max(map(abs, extent(value)))
    if MAX_INT < largest < INF:
        raise LimitError(f"{what} is too large: {largest}", fix=f"keep integers within {MAX_INT} in magnitude")
    return value


def start_of(value, n_q: int, n_k: int, batch: int):
    if value is None:
        if n_q > n_k:
            message = f"{n_q} queries are more than {n_k} keys, so where do they start?"
            raise ShapeError(message, fix="give the position of the first query: `q_start=0`")
        return n_k - n_q
    value = scalar("q_start", value, batch)
    if isinstance(value, int) and value < 0:
        raise ParameterError(f"q_start must be at least 0, got {value}", fix="positions start at 0")
    return value


def extent(value) -> tuple[float, float]:
    """Smallest and largest value where that waits for no device, else unknown."""
    if isinstance(value, int):
        return value, value
    if not on_host(value) or value.shape[0] == 0:
        return -INF, INF
    return int(value.min()), int(value.max())


def array(use: ArgUse, value, batch: int):
    what = f"arg `{use.name}`"
    if isinstance(value, int):
        message = f"{what} takes {use.rank} subscript{'s' * (use.rank > 1)} in the pattern, got the number {value}"
        raise ShapeError(message, fix=f"give a tensor of {_axes(use.rank)}")
    own_batch = any("b" in names_of(s) for subscripts in use.subscripts for s in subscripts)
    normal = value.ndim == use.rank + 1 and value.shape[0] == 1  # the normal form itself may be given again
    if own_batch and value.ndim != use.rank and not normal:
        message = f"{what} has {use.rank} subscripts, the batch `b` among them, got shape {tuple(value.shape)}"
        raise ShapeError(message, fix=f"give a tensor of {_axes(use.rank)}")
    return _batched(what, value, batch, use.rank)


def membership(use: ArgUse, value, size: int, batch: int, check: bool):
    """The bool mask [B', size] of a mask, a list of positions or lengths; computed on the value's device, without waiting."""
    what, axis = f"arg `{use.name}`", "heads" if use.over_heads else "n_k"
    if not isinstance(value, int) and str(value.dtype).endswith("bool"):
        mask = _batched(what, value, batch, 1)
        if mask.shape[1] != size:
            raise ShapeError(f"{what} is a mask over {axis} = {size}, got shape {tuple(value.shape)}", fix=f"give [{size}] or [{batch}, {size}]")
        return mask
    afford(size, MOST_POSITIONS, f"positions of {what}", "use a shorter length")
    if use.kind == "lengths":
        lengths = scalar(what, value, batch)
        lengths = np.array([lengths]) if isinstance(lengths, int) else lengths
        if check and lengths.shape[0] and not 0 <= int(lengths.min()) <= int(lengths.max()) <= size:
            raise ArgError(f"{what} holds a length outside 0..{size}", fix="lengths count keys")
        return _arange(size, lengths)[None] < lengths[:, None]
    if isinstance(value, int):
        message = f"{what} is a mask or a list of positions, got the number {value}"
        raise ShapeError(message, fix=f"a list of one position is `[{value}]`; a count belongs into the pattern")
    listed = _batched(what, value, batch, 1)
    if check and listed.shape[0] * listed.shape[1] and int(listed.max()) >= size:
        message = f"{what} holds the position {int(listed.max())}, and {axis} is {size}"
        raise ArgError(message, fix="positions are below it; negative ones are ignored")
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


def check_values(name: str, value) -> tuple[float, float]:
    """The range of an arg's values; raises where one does not fit in 32 bits."""
    if isinstance(value, int):
        return value, value
    value = to_numpy(value)
    if value.size == 0:
        return -1, -1
    low, high = int(value.min()), int(value.max())
    if max(-low, high) > MAX_INT:
        message = f"arg `{name}` holds {low if -low > high else high}, which does not fit in 32 bits"
        raise ArgError(message, fix=f"keep values within {MAX_INT} in magnitude")
    return low, high
