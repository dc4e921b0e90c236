"""What kernels cost on a card, as `patternc tune` measured it: what orders, parts and sizes of tiles are chosen by.

A kernel's time is its launch, and the work of its programs over the processors.  The work of a program is a fixed part, so much
for each full tile, and for each partial one more, which grows with the operations of the mask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from patternc.expr.node import Node, fact, postorder

KERNELS = ("forward", "backward_dq", "backward_dkdv")
# Ways of reaching memory whose rates stand for those of another one: cards without TMA have no descriptors.
NEXT = {"descriptors": "pointers", "box descriptors": "boxes"}
# How dear operations of a mask are, for each pair of a tile; others count 1.  Divisors that are powers of two are shifts.
DIVISION, READ = 8, 4
MOST = 1e9  # microseconds: no cost of one tile or launch is that much


@dataclass(frozen=True)
class Config:
    """How a kernel is launched: `block_m` queries and `block_n` keys a tile, warps of a program, stages of its pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    def __str__(self):
        """`64 x 64, 4 warps, 2 stages`."""
        return f"{self.block_m} x {self.block_n}, {self.warps} warps, {self.stages} stage{'s' * (self.stages != 1)}"

    @property
    def possible(self) -> bool:
        """Whether there is such a launch: powers of two in the bounds of what kernels can do."""
        bounds = ((self.block_m, 16, 256), (self.block_n, 16, 256), (self.warps, 1, 16))
        powers = all(isinstance(x, int) and low <= x <= high and x & (x - 1) == 0 for x, low, high in bounds)
        return powers and isinstance(self.stages, int) and 1 <= self.stages <= 8

    def tile(self, kernel: str) -> tuple[int, int]:
        """Rows and columns of a kernel's tiles: queries and keys, of dk/dv keys and queries."""
        return (self.block_n, self.block_m) if kernel == "backward_dkdv" else (self.block_m, self.block_n)


@dataclass(frozen=True)
class Shape:
    """What the cost of a tile depends on beside its size.

    Attributes:
        width: the power of two that holds the rows of q, k and v, 64 to 256.
        half: entries of 16 bits, else of 32.
    """

    width: int = 128
    half: bool = True

    @staticmethod
    @lru_cache(maxsize=64)
    def of(head_dim: int, value_dim: int | None = None, itemsize: int = 2) -> Shape:
        most = max(head_dim, head_dim if value_dim is None else value_dim, 64)
        return Shape(min(1 << (most - 1).bit_length(), 256), itemsize == 2)


HALF = Shape()  # of most models: head_dim 128 in 16 bits


@dataclass(frozen=True)
class Rate:
    """Microseconds of one processor.

    Attributes:
        config: the tile, and how the kernel was launched.
        program: for the start and the end of a program.
        full, partial: for a tile without and with a mask.
        mask: more for a partial tile and each operation of its mask, weighted by `mask_weight`.
    """

    config: Config
    program: float
    full: float
    partial: float
    mask: float

    def work(self, programs: float, full: float, partial: float, weight: int) -> float:
        return self.program * programs + self.full * full + (self.partial + self.mask * weight) * partial


@dataclass(frozen=True)
class Card:
    """What was measured on one card.

    Attributes:
        name, versions, date: of the card, of torch and triton, of the day.
        processors: programs of which so many run at a time are worth one each.
        launch: microseconds from one launch to the next on an idle card.
        merge: for each width, microseconds of a processor that 64 rows of a partial result cost, written once and read once.
        rows: for each width, those that preparing the backward of 64 rows costs.
        rates: for (kernel, access, width, half) the measured configurations.
    """

    name: str
    versions: dict[str, str]
    date: str
    processors: int
    launch: float
    merge: dict[int, float]
    rows: dict[int, float]
    rates: dict[tuple[str, str, int, bool], tuple[Rate, ...]]

    def find(self, kernel: str, access: str, shape: Shape) -> tuple[Rate, ...]:
        """The configurations of a kernel; those of the nearest shape where this one was not measured."""
        for name in (access, NEXT.get(access)):
            if same := [key for key in self.rates if key[:2] == (kernel, name)]:
                break
        same = same or [key for key in self.rates if key[0] == kernel]
        key = min(same, key=lambda key: (key[3] != shape.half, abs(key[2] - shape.width), key[2]))
        return self.rates[key]

    def rate(self, kernel: str, access: str, shape: Shape, tile: tuple[int, int] = (64, 64)) -> Rate:
        """The configuration with a tile, the first one if there is none."""
        found = self.find(kernel, access, shape)
        return next((r for r in found if (r.config.block_m, r.config.block_n) == tile), found[0])

    def merge_of(self, shape: Shape) -> float:
        return self.merge[_nearest(self.merge, shape.width)]

    def rows_of(self, shape: Shape) -> float:
        return self.rows[_nearest(self.rows, shape.width)]

    def microseconds(self, work: float, programs: float) -> float:
        """The time of so much work: fewer programs than processors leave some idle."""
        return work / max(1, min(self.processors, programs))

    def problem(self) -> str:
        """What is wrong with a table that was read, "" if nothing is."""
        if missing := [kernel for kernel in KERNELS if all(key[0] != kernel for key in self.rates)]:
            return f"no rates of {', '.join(missing)}"
        if not all(isinstance(width, int) and isinstance(half, bool) for _, _, width, half in self.rates):
            return "widths that are no numbers"
        rates = [rate for found in self.rates.values() for rate in found]
        if wrong := next((rate.config for rate in rates if not rate.config.possible), None):
            return f"{wrong} cannot be launched"
        costs = [cost for r in rates for cost in (r.program, r.full, r.partial, r.mask)]
        if not self.merge or not self.rows or not all(0 <= x < MOST for x in (*costs, self.launch, *self.merge.values(), *self.rows.values())):
            return "costs that are no positive numbers"
        head = isinstance(self.name, str) and isinstance(self.date, str) and isinstance(self.versions, dict)
        return "" if head and isinstance(self.processors, int) and self.processors > 0 else "no card's name, date, versions or processors"

    def json(self) -> str:
        rows = []
        for (kernel, access, width, half), found in self.rates.items():
            for r in found:
                c = r.config
                costs = {name: round(getattr(r, name), 4) for name in ("program", "full", "partial", "mask")}
                rows.append(
                    {"kernel": kernel, "access": access, "width": width, "half": half, "config": [c.block_m, c.block_n, c.warps, c.stages], **costs}
                )
        head = {name: getattr(self, name) for name in ("name", "versions", "date", "processors", "launch", "merge", "rows")}
        body = ",\n".join("  " + json.dumps(row) for row in rows)
        return "{\n" + "".join(f' "{k}": {json.dumps(v)},\n' for k, v in head.items()) + f' "rates": [\n{body}\n ]\n}}\n'

    @staticmethod
    def read(text: str) -> Card:
        """The inverse of `json`.  Raises ValueError where the text is none, or holds what no kernel could be launched with."""
        try:
            made = Card._read(json.loads(text))
            problem = made.problem()
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if problem:
            raise ValueError(problem)
        return made

    @staticmethod
    def _read(found: dict) -> Card:
        rates: dict = {}
        for row in found.pop("rates"):
            key = row["kernel"], row["access"], row["width"], row["half"]
            costs = [row[name] for name in ("program", "full", "partial", "mask")]
            rates[key] = (*rates.get(key, ()), Rate(Config(*row["config"]), *costs))
        per_width = {name: {int(width): cost for width, cost in found.pop(name).items()} for name in ("merge", "rows")}
        return Card(**found, **per_width, rates=rates)


def _nearest(widths, width: int) -> int:
    return min(widths, key=lambda w: (abs(w - width), w))


@fact
def mask_weight(mask: Node) -> int:
    """Operations that a mask costs for each pair of a tile: those that read both sides; what reads one is computed beside the products."""
    sides: dict[Node, frozenset[str]] = {}
    total = 0
    for x in postorder(mask):
        name = x.args[0] if x.op == "var" else ""
        own = frozenset(name[0]) if name in ("q", "k") or name[1:].isdigit() else frozenset()
        sides[x] = own.union(*(sides[c] for c in x.children))
        if len(sides[x]) < 2:
            continue
        if x.op in ("div", "mod"):
            divisor = x.args[1]
            total += 1 if divisor.op == "const" and divisor.args[0] & (divisor.args[0] - 1) == 0 else DIVISION
        elif x.op in ("read", "member"):
            total += READ
        elif x.op in ("and", "or"):
            both = sum(len(sides[c]) == 2 for c in x.children)
            total += both - 1 + (both < len(x.children))
        else:
            total += 1 + (x.op == "in" and None not in x.args[1:])
    return total
