"""What `patternc bench attention` found, as a table in the terminal, Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from patternc.bench.cases import Case
from patternc.bench.roofline import CARDS, Work
from patternc.bench.tables import markdown, table

OURS, BASE = "patternc", "flex"  # the ratio is the first's rate over the second's
LESS = 0.9  # of the row that a target refers to
NONE = "-"
WRONG = 0.05  # relative error from which an implementation computes something else


@dataclass
class Row:
    """One pass of one case.

    Attributes:
        direction: "forward" or "backward".
        work: what the pass has to do at least.
        ms: medians by implementation, of those that run it.
    """

    case: Case
    direction: str
    work: Work
    ms: dict[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float | None:
        """Useful TFLOP/s or TB/s of an implementation; None where it did not run."""
        return self.work.rate(self.ms[name]) if name in self.ms else None

    @property
    def ratio(self) -> float | None:
        return self.ms[BASE] / self.ms[OURS] if {BASE, OURS} <= set(self.ms) else None

    def figure(self, rate: float | None) -> str:
        """A rate as text, with its unit where that is not TFLOP/s."""
        if rate is None:
            return NONE
        return f"{rate:.2f} TB/s" if self.work.by_bytes else f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"

    def timed(self, rate: float | None) -> str:
        """A rate and its time in ms."""
        return NONE if rate is None else f"{self.figure(rate)} ({self.work.rate(rate):.3f})"


@dataclass
class Report:
    """Every row of a run, and what it ran on.

    Attributes:
        errors: by case, each implementation's relative error of the forward against float64.
        notes: what did not run, and why.
    """

    device: str
    versions: dict[str, str]
    peers: list[str]
    rows: list[Row] = field(default_factory=list)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"useful TFLOP/s (ms): {self.device}, {', '.join(f'{n} {v}' for n, v in self.versions.items())}, bfloat16"

    @property
    def headings(self) -> list[str]:
        return ["case", "pattern", "shape", "pass", OURS, f"vs {BASE}", "target", "roofline", *self.peers, "error"]

    def target(self, row: Row) -> float | None:
        """The rate aimed at; of a row that refers to another, from that one's rate in this run."""
        case, which = row.case, row.case.passes.index(row.direction)
        if case.target_ms[which] is not None:
            return row.work.rate(case.target_ms[which])
        if case.like:
            rates = [r.rate(OURS) for r in self.rows if (r.case.name, r.direction) == (case.like, row.direction)]
            return LESS * rates[0] if rates and rates[0] is not None else None
        return case.target[which]

    def roofline(self, row: Row) -> float | None:
        """The rate at which the card's products or its memory would be the limit; None for a card that is not known."""
        card = CARDS.get(self.device)
        return row.work.rate(row.work.least_ms(card)) if card else None

    def cells(self, row: Row) -> list[str]:
        """A row as text."""
        error = self.errors.get(row.case.name, {}).get(OURS)
        figures = [row.timed(row.rate(OURS)), NONE if row.ratio is None else f"{row.ratio:.2f}x", row.figure(self.target(row))]
        figures += [row.timed(self.roofline(row)), *(row.timed(row.rate(name)) for name in self.peers)]
        return [row.case.name, row.case.text, row.case.shape, row.direction, *figures, NONE if error is None else f"{error:.1e}"]

    def table(self):
        """A rich table."""
        return table(self.title, self.headings, map(self.cells, self.rows))

    def markdown(self) -> str:
        lines = [self.title, "", markdown(self.headings, map(self.cells, self.rows))]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {note}" for note in self.notes)])

    def json(self) -> str:
        head = {"device": self.device, "versions": self.versions, "peers": self.peers, "notes": self.notes}
        return json.dumps(head | {"rows": [self._plain(row) for row in self.rows]}, indent=1)

    def _plain(self, row: Row) -> dict:
        case, card = row.case, CARDS.get(self.device)
        return {
            "case": case.name, "pattern": case.text, "shape": case.shape, "pass": row.direction, "unit": case.unit, **asdict(row.work),
            "ms": row.ms, "rate": {name: row.rate(name) for name in row.ms}, "ratio": row.ratio, "target": self.target(row),
            "roofline": self.roofline(row), "bound": row.work.bound(card) if card else None, "errors": self.errors.get(case.name, {}),
        }  # fmt: skip
