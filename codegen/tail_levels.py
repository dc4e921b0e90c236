"""Running a term of class N: the scans of each level in its own order of rows and keys (see `patternc.tail_levels`).

Inputs are copied in the level's order for some heads at a time, results are added up in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from patternc.codegen.tail_call import TailCall
from patternc.codegen.tail_launch import tail_backward, tail_forward
from patternc.tail import result_of
from patternc.tail_plan import Level, Scan

ENTRIES = 1 << 24  # of the queries of a pass
SCANS = 128  # pairs of a row, on average, that a scan's slots compute with a mask

Orders = dict[str, torch.Tensor]


def orders_of(level: Level, device: torch.device) -> Orders:
    """`rows` and `keys`, which row and which key is at each place, and the place of each row and key."""
    tables = {"rows": level.rows, "keys": level.keys, "row_places": level.rows.argsort(), "key_places": level.keys.argsort()}
    return {name: torch.from_numpy(x).to(device) for name, x in tables.items()}


def scans_pay(plan, work: float, n: int, features: int, value_dim: int) -> bool:
    """Whether the scans of all levels are less work than block sums, whose work is given in products of two numbers for a head."""
    copies = 6 * 100 * (features + value_dim)  # entries read and written, each as long as a hundred products
    return n * len(plan.levels) * (4 * features * value_dim + SCANS * (features + value_dim) + copies) < work + 2 * n * features * value_dim


def level_forward(levels, call: Callable[[Scan], TailCall], q, k, v, sums: bool, onto: tuple | None) -> tuple:
    """`(o, sums of weights or None)`, or written to `onto`.

    Args:
        levels: each with its `Orders`.
        call: the kernels' call for a scan.
    """
    o, weights = onto or (
        q.new_empty(*q.shape[:3], v.shape[3], dtype=result_of(v.dtype)),
        q.new_empty(q.shape[:3], dtype=torch.float32) if sums else None,
    )
    for rows, keys in _passes(q, k):
        total = torch.zeros(*q[:, rows].shape[:3], v.shape[3], dtype=torch.float32, device=q.device)
        counts = torch.zeros(total.shape[:3], dtype=torch.float32, device=q.device) if sums else None
        for level, orders in levels:
            own = [_take(q[:, rows], orders["rows"]), *(_take(x[:, keys], orders["keys"]) for x in (k, v))]
            found = torch.empty_like(total), None if counts is None else torch.empty_like(counts)
            for i, scan in enumerate(level.scans):
                tail_forward(call(scan), *own, sums, False, found, i > 0)
            total += _take(found[0], orders["row_places"])
            if sums:
                counts += _take(found[1], orders["row_places"])
        o[:, rows] = total
        if sums:
            weights[:, rows] = counts
    return o, weights


def level_backward(levels, call: Callable[[Scan], TailCall], q, k, v, do, dsums, onto: tuple | None) -> tuple:
    """`(dq, dk, dv)`, or added to `onto`."""
    gradients = onto or tuple(torch.zeros_like(x) for x in (q, k, v))
    for rows, keys in _passes(q, k):
        totals = [torch.zeros(x[:, own].shape, dtype=torch.float32, device=x.device) for x, own in zip((q, k, v), (rows, keys, keys))]
        for level, orders in levels:
            own = [_take(q[:, rows], orders["rows"]), *(_take(x[:, keys], orders["keys"]) for x in (k, v)), _take(do[:, rows], orders["rows"])]
            own.append(None if dsums is None else _take(dsums[:, rows], orders["rows"]))
            found = tuple(torch.zeros_like(x) for x in totals)
            for scan in level.scans:
                tail_backward(call(scan), *own, None, found)
            for total, x, places in zip(totals, found, ("row_places", "key_places", "key_places")):
                total += _take(x, orders[places])
        for gradient, total, own in zip(gradients, totals, (rows, keys, keys)):
            gradient[:, own] += total.to(gradient.dtype)
    return gradients


def _take(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.index_select(2, order)


def _passes(q: torch.Tensor, k: torch.Tensor):
    """Slices of query heads and of the key heads that they share, of at most `ENTRIES` queries' entries."""
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    step = max(1, min(kv_heads, ENTRIES * kv_heads // max(q.numel(), 1)))
    for first in range(0, kv_heads, step):
        stop = min(first + step, kv_heads)
        yield slice(first * group, stop * group), slice(first, stop)
