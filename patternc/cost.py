"""What an attention costs at one length: exact integers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.args import Bound, bind
from patternc.expr.pattern import Pattern
from patternc.forms import widths
from patternc.layout import layout
from patternc.orders.heads import plan_at, visits_of
from patternc.orders.parts import parts_at
from patternc.plan import Plan, make_plan
from patternc.rates import Shape


@dataclass(frozen=True)
class Cost:
    """The cost of the forward pass of one batch row, summed over the query heads.

    Attributes:
        allowed_pairs: pairs (query, key) that the pattern allows.
        visited_pairs: pairs in the tiles that the kernels visit.
        full_tiles, partial_tiles: tiles visited without and with a mask.
        flops: floating point operations of the two products over the visited pairs.
        bytes: least traffic with memory: query, key, value and output once each, in two-byte elements.
    """

    allowed_pairs: int
    visited_pairs: int
    full_tiles: int
    partial_tiles: int
    flops: int
    bytes: int

    @property
    def waste(self) -> float:
        """Share of the visited pairs that are not allowed."""
        return 1 - self.allowed_pairs / self.visited_pairs if self.visited_pairs else 0.0


def cost(
    p: Pattern,
    plan: Plan,
    n_q: int,
    /,
    n_k: int | None = None,
    heads: int = 1,
    head_dim: int = 128,
    *,
    batch: int = 1,
    value_dim=None,
    kv_heads=None,
    q_start=None,
    tile=(64, 64),
    **args,
) -> Cost:
    """Exact cost at one length.

    Args:
        p, plan: the pattern and its natural plan; what is counted is in the orders, and the parts, that this length asks for.
        n_q, n_k, heads, batch, q_start, args: as in `Pattern.dense`; of a batch, the first row is counted.
        head_dim, value_dim, kv_heads: for `flops` and `bytes`; value_dim defaults to head_dim, kv_heads to heads.
        tile: rows and columns of the kernels' tiles.
    """
    bound = first_row(bind(p, args, n_q, n_k, heads, batch, q_start))
    head_dim, value_dim, kv_heads = widths(bound.heads, head_dim, value_dim, kv_heads)
    allowed = layout(p, bound, tile, count=True).allowed_pairs
    shape = Shape.of(head_dim, value_dim)
    parts = parts_at(p, bound, shape)
    plans = [plan_at(part, plan if part is p else make_plan(part), bound, shape) for part in parts]
    seen = [visits_of(part, own.forward, bound, tile) for part, own in zip(parts, plans)]
    pairs, full, partial = (sum(getattr(one, name) for one in seen) for name in ("pairs", "full_tiles", "partial_tiles"))
    traffic = 2 * (bound.n_q * heads + bound.n_k * kv_heads) * (head_dim + value_dim)
    return Cost(allowed, pairs, full, partial, 2 * pairs * (head_dim + value_dim), traffic)


def first_row(bound: Bound) -> Bound:
    """The call of batch row 0 alone."""

    def first(value):
        return value if isinstance(value, int) else value[:1]

    return replace(bound, batch=1, q_start=first(bound.q_start), values={name: first(value) for name, value in bound.values.items()})
