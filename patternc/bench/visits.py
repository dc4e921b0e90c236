"""`patternc bench visits`: how many pairs kernels visit for each that a pattern allows, in the orders and parts that are chosen.

Once in tiles of 64 x 64, once in the tiles that the plan of the forward takes at head dimensions of 64 and of 128.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from patternc.args import bind
from patternc.bench.tables import markdown
from patternc.cards import card
from patternc.expr.pattern import Pattern
from patternc.layout import layout
from patternc.orders.choose import access_of, visits_of
from patternc.orders.parts import parts_at
from patternc.parsing import parse
from patternc.plan import make_plan
from patternc.prediction import fastest, plan_at
from patternc.rates import Shape

TILE = (64, 64)
WIDTHS = (64, 128)
CASES = (
    ("causal & dilate(2) & window(1024)", 16384), ("causal & dilate(4) & window(2048)", 16384), ("causal & dilate(8) & window(4096)", 16384),
    ("causal & (window(128) | dilate(128))", 16384), ("causal & (block(128) | (k % 128 >= 120))", 16384),
    ("causal & (dilate(4) & window(2048) | sink(4))", 16384), ("neighborhood([128, 128], 13)", 16384), ("neighborhood([128, 128], 33)", 16384),
    ("neighborhood([128, 128], 33, dilation=2)", 16384), ("neighborhood([100, 100], 13, dilation=3)", 10000),
    ("neighborhood([24, 24, 24], 5)", 13824),
    ("block(64, back=1, ahead=1) | global(64) | (q >= 16320) | (k >= 16320) | random_blocks(3, 64, seed=0)", 16384),
    ("window(left=256, right=256) | global(64)", 16384),
)  # fmt: skip
HEADINGS = ("pattern", "allowed pairs", "64 x 64", *(f"tiles at D {width}" for width in WIDTHS))


@dataclass
class Row:
    """One pattern: pairs that it allows, and pairs visited for each of them, in tiles of 64 x 64 and in `chosen` tiles (queries, keys)."""

    pattern: str
    allowed: int
    ratio: float
    chosen: dict[int, tuple[list[tuple[int, int]], float]]


def measure(text: str, n: int) -> Row:
    """The row of a pattern at a length, for one head."""
    p = parse(text)
    bound = bind(p, {}, n)
    allowed = layout(p, bound, TILE, count=True).allowed_pairs
    chosen = {}
    for width in WIDTHS:
        found = [_in_its_tiles(part, bound, Shape(width)) for part in parts_at(p, bound, Shape(width))]
        chosen[width] = [tile for tile, _ in found], sum(pairs for _, pairs in found) / allowed
    whole = sum(visits_of(part, plan_at(part, make_plan(part), bound).forward, bound, TILE).pairs for part in parts_at(p, bound))
    return Row(text, allowed, whole / allowed, chosen)


def _in_its_tiles(p: Pattern, bound, shape: Shape) -> tuple[tuple[int, int], int]:
    axis = plan_at(p, make_plan(p), bound, shape).forward
    rate, _ = fastest(p, axis, bound, "forward", card().find("forward", access_of(axis, bound), shape))
    tile = rate.config.tile("forward")
    return tile, visits_of(p, axis, bound, tile).pairs


def run() -> list[Row]:
    """All rows."""
    return [measure(*case) for case in CASES]


def as_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def cells(row: Row) -> list[str]:
    """A row as text."""
    tiles = [f"{ratio:.2f} ({', '.join(f'{m} x {n}' for m, n in dict.fromkeys(own))})" for own, ratio in row.chosen.values()]
    return [row.pattern, f"{row.allowed:,}", f"{row.ratio:.2f}", *tiles]


def as_markdown(rows: list[Row]) -> str:
    return markdown(HEADINGS, map(cells, rows))
