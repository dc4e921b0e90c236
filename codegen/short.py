"""Few queries over many keys, as in decoding: the queries of all heads that share keys are the rows of one head.

Row r of key head g is query r // group of head g * group + r % group, and the pattern says `q // group` for `q`: its plan, mask and bounds
follow as for any pattern.  A tile of rows then reads each key once for all of these heads, and it is only as tall as it needs to be.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from patternc.args import Bound
from patternc.balance import LONG_ALONE, row_tiles
from patternc.expr.pattern import Q
from patternc.expr.transform import substitute
from patternc.passes import lower, variables
from patternc.plan import AxisPlan
from patternc.runtime import Compiled, compiled
from patternc.signature import signature

MOST_ROWS = 64  # queries of all heads that share keys
LEAST_KEYS = 64 * LONG_ALONE
HEIGHTS = (16, 32)  # rows of a tile
MOST_LENGTHS = 64  # lengths that are remembered


def height(n_q: int, n_k: int) -> int | None:
    """How tall tiles of rows are where there are few rows and many keys; None where they are as tall as ever."""
    return next((rows for rows in HEIGHTS if n_q <= rows), None) if n_k >= LEAST_KEYS else None


def packs(made: Compiled, bound: Bound, heads: int, kv_heads: int) -> bool:
    """Whether a forward takes the heads that share keys together.  Kept with the call, which is one for all numbers of key heads."""
    key = "packs", heads // kv_heads
    if key not in bound.kept:
        few = heads > kv_heads and 0 < bound.n_q * (heads // kv_heads) <= MOST_ROWS and bound.n_k >= LEAST_KEYS
        bound.kept[key] = few and made.plan.forward.kind != "list" and _alike(made) and _long(made, bound)
    return bound.kept[key]


def _long(made: Compiled, bound: Bound) -> bool:
    """Whether rows are long enough to be cut, since fewer heads are fewer programs."""
    bound, kept = rounded(made, made.plan.forward, bound), made.state.setdefault("long", {})
    key = (bound.n_q, bound.n_k, bound.q_start, bound.heads, *bound.values.items()) if bound.static else None
    if key is None or key not in kept:
        tiles = row_tiles(made.exact, made.plan.forward, bound, (64, 64))
        found = tiles is None or float(sum(tiles).max(initial=0)) > LONG_ALONE
        if key is None:
            return found
        if len(kept) >= MOST_LENGTHS:
            kept.clear()
        kept[key] = found
    return kept[key]


def rounded(made: Compiled, axis: AxisPlan, bound: Bound) -> Bound:
    """A call of few queries with somewhat more keys before them, for what need not be known exactly: a cache that grows asks once in a while."""
    if axis.kind != "formula" or not bound.static or bound.n_q > MOST_ROWS or bound.n_k < LEAST_KEYS:
        return bound
    more = -bound.n_k % LEAST_KEYS
    return replace(bound, n_k=bound.n_k + more, q_start=bound.q_start + more * made.state.get("group", 1))


def _alike(made: Compiled) -> bool:
    """Whether the pattern is the same for all heads, and about nothing that other rows would change."""
    used = variables(lower(made.exact)) <= {"q", "k", "b", "n_k"}
    return used and not any(use.over_heads for use in signature(made.exact).values())


def packed(made: Compiled, bound: Bound, group: int) -> tuple[Compiled, Bound]:
    """The attention and the call whose rows are the queries of `group` heads.  Kept with the call."""
    key = "packed", group
    if key not in bound.kept:
        patterns = made.state.setdefault("packed", {})
        if group not in patterns:
            patterns[group] = compiled(substitute(lower(made.exact), {Q: Q // group}))
            patterns[group].state["group"] = group
        pattern = patterns[group]
        sizes = {"n_q": bound.n_q * group, "heads": bound.heads // group, "q_start": bound.q_start * group, "default_start": False}
        bound.kept[key] = pattern, replace(bound, **sizes, uses=signature(pattern.exact))
    return bound.kept[key]


def as_rows(q: torch.Tensor, group: int) -> torch.Tensor:
    """[B, H, n, d] as [B, H / group, n * group, d]."""
    b, heads, n, d = q.shape
    if n == 1:
        return q.reshape(b, heads // group, group, d)
    return q.unflatten(1, (heads // group, group)).transpose(2, 3).reshape(b, heads // group, n * group, d)


def as_heads(x: torch.Tensor, group: int) -> torch.Tensor:
    """The inverse of `as_rows`, for [B, H / group, n * group] too."""
    if x.shape[2] == group:
        return x.flatten(1, 2).unsqueeze(2)
    return x.unflatten(2, (x.shape[2] // group, group)).transpose(2, 3).flatten(1, 2).contiguous()
