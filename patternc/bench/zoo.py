"""`patternc bench zoo`: the time and memory of the exact layout of every entry of the zoo, one head of each kind.

Heads that differ by their draws only (BigBird) cost the same each, so one is measured; heads of different kinds are all measured.
Times are the best of several runs on one core; memory is the peak of numpy's allocations, in a run of its own.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass

from patternc.args import bind
from patternc.bench.tables import markdown
from patternc.layout import layout
from patternc.zoo.registry import ENTRIES

TILE = 128
DRAWN = ("bigbird", "bigbird_released", "bigbird_etc")  # all heads of one kind
HEADINGS = ("entry", "kinds of heads", "ms", "ms transposed", "MB", "full tiles", "partial tiles", "exact")


@dataclass
class Row:
    """One entry: milliseconds for all its kinds of heads together, in both directions, and MB at the peak."""

    entry: str
    kinds: int
    ms: float
    ms_transposed: float
    peak_mb: float
    full_tiles: int
    partial_tiles: int
    exact: bool


def measure(n: int = 1 << 18, repeat: int = 3, progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """A row for each entry at `n` tokens."""
    return [_measure(e, n, repeat, progress) for e in ENTRIES]


def _measure(e, n: int, repeat: int, progress) -> Row:
    progress(e.name)
    p = e.at(n)
    heads = 1 if e.name in DRAWN else e.published_heads
    args = e.args(p, n)

    def run(transposed: bool = False):
        return layout(p, bind(p, args, n, n, heads), (TILE, TILE), transposed)

    def best(transposed: bool) -> float:
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            run(transposed)
            times.append(1e3 * (time.perf_counter() - started))
        return min(times)

    found = run()
    ms = best(False), best(True)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return Row(e.name, len(found.groups), *ms, peak, found.full_tiles, found.partial_tiles, found.exact)


def cells(row: Row) -> list[str]:
    """A row as text."""
    return [
        row.entry, str(row.kinds), f"{row.ms:.1f}", f"{row.ms_transposed:.1f}", f"{row.peak_mb:.1f}", f"{row.full_tiles:,}", f"{row.partial_tiles:,}",
        "yes" if row.exact else "no",
    ]  # fmt: skip


def as_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def as_markdown(rows: list[Row]) -> str:
    return markdown(HEADINGS, map(cells, rows))
