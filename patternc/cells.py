"""The distinct patterns of a call: a pattern with the numbers and data of each head and batch row put in."""

from __future__ import annotations

import numpy as np

from patternc.analysis.data import Data
from patternc.analysis.specialise import relabel, specialise
from patternc.analysis.tabulate import tabulate
from patternc.args import Bound
from patternc.expr.bounds import bounds
from patternc.expr.node import Node
from patternc.expr.pattern import Pattern
from patternc.passes import decide, unwrap, variables

MOST_SIZES = 16  # whose specialised patterns are kept


def specialised(p: Pattern, bound: Bound) -> list[tuple]:
    """`specialisations`; kept where they depend on sizes only, since both directions ask for them."""
    if bound.values or not isinstance(bound.q_start, int):
        return list(specialisations(p, bound))
    kept, key = p.facts.setdefault("specialised", {}), (bound.n_q, bound.n_k, bound.q_start, bound.heads, bound.batch)
    if key not in kept:
        if len(kept) >= MOST_SIZES:
            kept.clear()
        kept[key] = list(specialisations(p, bound))
    return kept[key]


def specialisations(p: Pattern, bound: Bound):
    """Yield `(q_start, heads, batch rows, pattern)` for every distinct specialised pattern, batch rows apart only where data differ."""
    names = variables(p)
    per_batch = "b" in names or not isinstance(bound.q_start, int) or any(not isinstance(v, int) and v.shape[0] > 1 for v in bound.values.values())
    numbers = {"n_q": bound.n_q, "n_k": bound.n_k}
    per_head = "h" in names
    shared: dict[str, Data] = {}
    for b in range(bound.batch) if per_batch else (None,):
        rows = tuple(range(bound.batch)) if b is None else (b,)
        row = 0 if b is None else b
        known, arrays = dict(numbers, b=row), {}
        for name, use in bound.uses.items():
            value = bound.values[name]
            if use.kind == "scalar":
                known[name] = value if isinstance(value, int) else int(_row(value, row))
            elif use.kind == "array" and any("b" in variables(s) for subs in use.subscripts for s in subs):
                arrays[name] = shared.setdefault(name, Data(np.asarray(value[0])))
            else:
                one = value.shape[0] == 1
                if one and name in shared:
                    arrays[name] = shared[name]
                    continue
                entries = np.asarray(_row(value, row))
                arrays[name] = Data(np.flatnonzero(entries) if use.kind in ("positions", "lengths") else entries)
                if one:
                    shared[name] = arrays[name]
        start = bound.q_start if isinstance(bound.q_start, int) else int(_row(bound.q_start, row))
        env = {"q": (start, start + bound.n_q - 1), "k": (0, bound.n_k - 1)}
        by_pattern: dict[Node, list[int]] = {}
        for h in range(bound.heads) if per_head else (None,):
            heads = range(bound.heads) if h is None else (h,)
            special = simplify(specialise(p, dict(known, h=h or 0), arrays), env)
            by_pattern.setdefault(special, []).extend(heads)
        for special, heads in by_pattern.items():
            yield start, tuple(heads), rows, special


def _row(value, row: int):
    return value[0 if value.shape[0] == 1 else row]


def simplify(p: Pattern, env: dict) -> Pattern:
    """What holds by the ranges of positions: unwrapped `%` and `//`, decided comparisons, sorted ids, tabulated functions of blocks."""

    def known(x):
        return bounds(x, env)

    return relabel(unwrap(tabulate(decide(p, known), env), known))
