"""Numbers for names: an expression at given lengths, for one head and one batch row, with its tables as data."""

from __future__ import annotations

import weakref

import numpy as np

from patternc.analysis.data import Data
from patternc.expr.index import Index, const
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import Pattern, any_of, between
from patternc.expr.table import Table
from patternc.expr.transform import rewrite, substitute

_data_of_table: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def data_of(payload: Table) -> Data:
    """The facts of a static table, kept as long as the table lives."""
    if payload not in _data_of_table:
        _data_of_table[payload] = Data(payload.data)
    return _data_of_table[payload]


def specialise(p: Pattern, numbers: dict[str, int], arrays: dict[str, Data] | None = None) -> Pattern:
    """Put numbers for variables and scalar args, and data for tables and array args.

    Args:
        p: a lowered pattern.
        numbers: values by name, for variables (`n_q`, `n_k`, `h`, `b`) and scalar args alike.
        arrays: data by arg name; for args used as sets the data are sorted distinct positions.
    """
    mapping: dict[Node, Node] = {}
    for name, value in numbers.items():
        for op in ("var", "arg"):
            mapping[Index(op, name)] = const(int(value))
    arrays = arrays or {}

    def change(x: Node) -> Node | None:
        if x.op not in ("read", "member", "inside"):
            return None
        source = x.args[0]
        if source.op == "table":
            source = Index("data", data_of(source.args[0]))
        elif source.op == "arg" and source.args[0] in arrays:
            source = Index("data", arrays[source.args[0]])
        elif source.op != "data":
            return None
        if x.op == "member":
            return Index("member", source, x.args[1], x.args[2])
        return _slice_constants(Index(x.op, source, *x.args[1:]))

    p = substitute(p, mapping)
    return rewrite(p, change) if any(x.op in ("read", "member", "inside") for x in postorder(p)) else p


def _slice_constants(x: Index) -> Index:
    """`T[2, q]` reads the row `T[2]`: constant subscripts leave the array, so that what remains may be sorted."""
    data, subscripts = x.args[0].args[0], x.args[1:]
    constant = [s.args[0] if s.op == "const" else None for s in subscripts]
    outside = any(c is not None and not 0 <= c < size for c, size in zip(constant, data.values.shape))
    if x.op == "inside" and outside:
        return const(0)
    if all(c is not None for c in constant):
        return const(1) if x.op == "inside" else const(int(data.at(*constant)))
    if all(c is None for c in constant):
        return x
    index = tuple(slice(None) if c is None else int(np.clip(c, 0, size - 1)) for c, size in zip(constant, data.values.shape))
    cache = data.__dict__.setdefault("slices", {})
    key = tuple(constant)
    if key not in cache:
        cache[key] = Data(data.values[index])
    return Index(x.op, Index("data", cache[key]), *(s for s, c in zip(subscripts, constant) if c is None))


def relabel(p: Pattern) -> Pattern:
    """`ids[x] == ids[y]` on unsorted ids compares ranks of first occurrence instead: contiguous documents become sorted.

    So does `ids[x] != ids[y]`, a union of two sides, which must contradict it.
    """

    def change(x: Node) -> Node | None:
        if x.op == "or":
            sides: dict[Index, list[Pattern]] = {}
            for side in x.args:
                if side.op == "in" and side.args[1:] in ((None, -1), (1, None)) and _ranks(side.args[0]) is not None:
                    sides.setdefault(side.args[0], []).append(side)
            new = {side: between(_ranks(core), *side.args[1:]) for core, both in sides.items() if len(both) == 2 for side in both}
            return any_of(*(new.get(part, part) for part in x.args)) if new else None
        core = _ranks(x.args[0]) if x.op == "in" and x.args[1:] == (0, 0) else None
        return None if core is None else between(core, 0, 0)

    return rewrite(p, change)


def _ranks(core: Index) -> Index | None:
    """`ids[x] - ids[y]` on unsorted ids as a difference of ranks of first occurrence; None for anything else."""
    if core.op != "sum":
        return None
    constant, *parts = core.args
    if constant != 0 or len(parts) != 4 or {parts[1], parts[3]} != {1, -1}:
        return None
    a, b = parts[0], parts[2]
    if not (a.op == b.op == "read" and a.args[0] is b.args[0] and len(a.args) == 2):
        return None
    data = a.args[0].args[0]
    if data.rising or data.falling:
        return None
    source = Index("data", data.first_seen)
    sign = parts[1]
    return sign * (Index("read", source, a.args[1]) - Index("read", source, b.args[1]))
