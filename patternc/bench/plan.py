"""`patternc bench plan`: the time that the first call at a length takes before kernels are generated, for every entry of the zoo, and the second's.

That is parts, orders and boxes of both directions, and for directions that are lists the lists themselves; imports are not counted.
Each first time is that of a process of its own, since plans are kept; the least of several counts.  Processor time, one core.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from patternc.args import bind
from patternc.bench.tables import markdown
from patternc.bench.zoo import DRAWN
from patternc.layout import layout
from patternc.orders.count import Sizes, choose_boxes
from patternc.runtime import compiled
from patternc.zoo.registry import ENTRIES, NAMES, Entry

TILE = 64
HEADINGS = ("entry", "parts", "ms first", "us again", "forward, dq", "dk, dv")


@dataclass
class Row:
    """One entry: milliseconds of the first call's planning and microseconds of the second's, and how each part finds its tiles."""

    entry: str
    parts: int
    ms: float
    again_us: float
    forward: str
    transposed: str


def measure(n: int = 1 << 14, repeat: int = 3, progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """A row for each entry at `n` tokens, or at the cube number below for those on a grid of three axes."""
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    out = []
    for e in ENTRIES:
        progress(e.name)
        with multiprocessing.get_context(kind).Pool(1, maxtasksperchild=1) as pool:
            rows = pool.starmap(_measure, [(e.name, n)] * repeat, chunksize=1)
        out.append(min(rows, key=lambda row: row.ms))
    return out


def _measure(name: str, n: int) -> Row:
    e = NAMES[name]
    n = _length(e, n)
    p = e.at(n)
    bound = bind(p, e.args(p, n), n, n, 1 if name in DRAWN else e.published_heads)
    made, sizes = compiled(p), Sizes(n, n, 0)

    def plan() -> list[tuple]:
        """`(part, direction, axis)` of both directions."""
        found = []
        for column, direction in (("k", "forward"), ("q", "transposed")):
            for part in made.parts_at(bound, column=column):
                axis = getattr(part.plan_at(bound), direction)
                found.append((part, direction, axis))
                if axis.kind == "boxes":
                    choose_boxes(axis, sizes, TILE, TILE)
        return found

    def lists(found) -> None:
        for part, direction, axis in found:
            if axis.kind == "list":
                layout(part.exact, bound, (TILE, TILE), transposed=direction == "transposed")

    started = time.process_time()
    found = plan()
    lists(found)
    planned = time.process_time()
    plan()
    again = time.process_time()
    names = [[f"{axis.order}" if axis.kind == "boxes" else axis.kind for _, of, axis in found if of == one] for one in ("forward", "transposed")]
    parts = max(map(len, names))
    return Row(name, parts, 1e3 * (planned - started), 1e6 * (again - planned), *(", ".join(dict.fromkeys(x)) for x in names))


def _length(e: Entry, n: int) -> int:
    return round(n ** (1 / 3) - 0.5) ** 3 if e.name == "neighborhood_3d" else n


def cells(row: Row) -> list[str]:
    """A row as text."""
    return [row.entry, str(row.parts), f"{row.ms:.1f}", f"{row.again_us:.0f}", row.forward, row.transposed]


def as_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


def as_markdown(rows: list[Row]) -> str:
    return markdown(HEADINGS, map(cells, rows))
