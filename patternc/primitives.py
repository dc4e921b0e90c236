"""The named patterns.  Each is a few lines of index expressions; no analysis knows any of their names.

`q` is a query position, `k` a key position (both absolute, 0-based), `h` the query head, `b` the batch row.
"""

from __future__ import annotations

import operator

import numpy as np

from patternc.errors import OperandError, ParameterError
from patternc.expr.arithmetic import absolute, floordiv, mod
from patternc.expr.calls import fitting
from patternc.expr.index import Index, as_index, member, table
from patternc.expr.node import Node
from patternc.expr.pattern import EMPTY, FULL, PLACE, H, K, Pattern, Q, all_of, as_pattern, between, per_head_of
from patternc.expr.transform import apply_index

q, k, h, b, n_q, n_k, i = Q, K, H, Index("var", "b"), Index("var", "n_q"), Index("var", "n_k"), PLACE
full, empty = FULL, EMPTY
causal = k <= q


def window(size=None, *, left=None, right=None) -> Pattern:
    """`abs(q - k) < size`, or `-right <= q - k <= left`.

    `window(n)` counts the query itself and n - 1 positions to each side (Mistral's and Gemma's convention under `causal`);
    `left` and `right` count neighbours (FlashAttention's `window_size`).  Sizes may be args.
    """
    if (size is None) == (left is None and right is None):
        raise ParameterError("window takes a size, or left= and right=", fix="write `window(512)` or `window(left=511, right=0)`")
    if size is not None:
        return absolute(q - k) < _size("window", "size", size, 1)
    if left is None or right is None:
        raise ParameterError("window(left=, right=) takes both", fix="write `window(left=511, right=0)`")
    left, right = _size("window", "left", left, 0), _size("window", "right", right, 0)
    return _inside(q - k, -right, left)


def dilate(d) -> Pattern:
    """`(q - k) % d == 0`: every d-th key, counted from the query."""
    return mod(q - k, _size("dilate", "d", d, 1)) == 0


def block(size, back=0, ahead=0) -> Pattern:
    """`-ahead <= q//size - k//size <= back`: the query's own block, `back` blocks before it and `ahead` after it."""
    size = _size("block", "size", size, 1)
    back, ahead = _size("block", "back", back, 0), _size("block", "ahead", ahead, 0)
    return _inside(floordiv(q, size) - floordiv(k, size), -ahead, back)


def rows(positions) -> Pattern:
    """`q in positions`: a count (the first ones), a range, a list, or an arg (a bool mask or a list of positions)."""
    return among(q, positions, "rows")


def cols(positions) -> Pattern:
    """`k in positions`; see `rows`."""
    return among(k, positions, "cols")


def global_(positions) -> Pattern:
    """`q in positions or k in positions`: Longformer's global tokens.  Text: `global(positions)`."""
    return among(q, positions, "global_") | among(k, positions, "global_")


def sink(count) -> Pattern:
    """`k < count`: the first keys, visible to every query (StreamingLLM)."""
    return k < _size("sink", "count", count, 0)


def prefix(count) -> Pattern:
    """`k < count`: a prefix that every query sees (prefix-LM).  The count may be an arg of shape [] or [B]."""
    return k < _size("prefix", "count", count, 0)


def same(f, g=None) -> Pattern:
    """`f(q) == g(k)` for index functions: expressions in `i`, args, tables or callables.  `g` defaults to `f`."""
    return apply_index(f, q) == apply_index(f if g is None else g, k)


def documents(ids) -> Pattern:
    """`ids[q] == ids[k]`; negative ids match nothing.  `ids` is an arg of shape [n_k] or [B, n_k], or a static list."""
    ids = ids if isinstance(ids, Index) else table(ids)
    return same(ids) & (apply_index(ids, q) >= 0)


def valid(keys) -> Pattern:
    """Key padding: an arg that is a bool mask ([n_k] or [B, n_k], true where the key counts) or int lengths ([] or [B])."""
    if not isinstance(keys, Index) or keys.op != "arg":
        raise OperandError(f"valid takes an arg, got {keys!r}", fix='write `valid(arg("mask"))`, or `sink(n)` for a fixed length')
    return between(member(keys, k, "lengths"), 1, 1)


def within(x, low, high) -> Pattern:
    """`low <= x <= high` as one comparison, for integers `low` and `high`: what a chained comparison would say."""
    try:
        low, high = operator.index(low), operator.index(high)
    except TypeError:
        raise ParameterError(
            f"within takes integer bounds, got {low!r} and {high!r}", fix="write two comparisons for other bounds: `(a <= x) & (x <= b)`"
        ) from None
    return between(as_index(x, "within"), low, high)


def per_head(*patterns) -> Pattern:
    """One pattern for each query head; the attention must then have exactly that many query heads."""
    if not patterns:
        raise ParameterError("per_head takes one pattern for each query head, got none", fix="write `per_head(causal, full)` for two heads")
    return per_head_of(*(as_pattern(p, "per_head") for p in patterns))


def heads(which) -> Pattern:
    """`h in which`: a count (the first ones), a range or a list of query heads."""
    return among(h, which, "heads")


def among(x: Index, positions, name: str) -> Pattern:
    """`x in positions` for a count, a range, a list of positions or an arg."""
    if isinstance(positions, Index) and positions.op == "const":
        positions = positions.args[0]
    if isinstance(positions, Index) and positions.op == "table":
        stored = positions.args[0]
        listed = np.unique(stored.data)
        if listed[0] < 0 or listed[-1] - listed[0] + 1 == len(listed):
            positions = listed
        else:
            return between(member(table(listed, stored.name), x, "positions"), 1, 1)
    if isinstance(positions, Index):
        if positions.op != "arg":
            raise OperandError(
                f"{name} takes a count, a range, a list or an arg, got the expression `{positions}`",
                fix=f'write `{name}(64)` or `{name}(arg("tokens"))`',
            )
        return between(member(positions, x, "positions"), 1, 1)
    if isinstance(positions, Node):
        raise OperandError(f"{name} takes a count, a range, a list or an arg, got `{positions}`", fix=f"write `{name}(64)`")
    if isinstance(positions, range):
        ordered = positions if positions.step > 0 else positions[::-1]
        if len(ordered) == 0:
            return EMPTY
        if ordered[0] < 0:
            raise ParameterError(f"{name} got the negative position {ordered[0]}", fix="positions start at 0")
        return all_of(_inside(x, ordered[0], ordered[-1]), mod(x - ordered[0], as_index(ordered.step)) == 0)
    try:
        count = operator.index(positions)
    except TypeError:
        pass
    else:
        return _inside(x, 0, _size(name, "count", count, 0).args[0] - 1)
    try:
        listed = sorted({operator.index(p) for p in (positions.tolist() if hasattr(positions, "tolist") else positions)})
    except TypeError:
        raise OperandError(
            f"{name} takes a count, a range, a list of positions or an arg, got {positions!r}", fix=f"write `{name}([0, 17, 42])`"
        ) from None
    if listed and listed[0] < 0:
        raise ParameterError(f"{name} got the negative position {listed[0]}", fix="positions start at 0")
    if not listed:
        return EMPTY
    if listed == list(range(listed[0], listed[-1] + 1)):
        return _inside(x, listed[0], listed[-1])
    return between(member(table(listed), x, "positions"), 1, 1)


def _inside(x: Index, low, high) -> Pattern:
    """`low <= x <= high`: one comparison if the bounds are integers, else two."""
    low, high = as_index(low), as_index(high)
    if low.op == high.op == "const":
        return between(x, low.args[0], high.args[0])
    return all_of(x >= low, x <= high)


def _size(primitive: str, parameter: str, value, least: int) -> Index:
    """A parameter as an index expression; integers below `least` and what is no integer raise."""
    if isinstance(value, Index) and value.op == "const":
        value = value.args[0]
    if isinstance(value, (Index, Pattern)):
        return as_index(value, primitive)
    try:
        number = operator.index(value)
    except TypeError:
        raise ParameterError(
            f"{primitive}: `{parameter}` must be an integer or an index expression, got {value!r}",
            fix=f'write `{primitive}(4)`, or `{primitive}(arg("w"))` for a runtime value',
        ) from None
    if number < least:
        raise ParameterError(
            f"{primitive}: `{parameter}` must be at least {least}, got {number}",
            typed=f"{primitive}({parameter}={number})" if parameter in ("left", "right", "back", "ahead") else f"{primitive}({number})",
            fix=f"use {parameter} >= {least}",
        )
    return as_index(number)


__all__ = [
    name
    for name, value in list(globals().items())
    if callable(value) and getattr(value, "__module__", "") == __name__ and not name.startswith("_") and name != "among"
]
globals().update({name: fitting(name)(globals()[name]) for name in __all__})
