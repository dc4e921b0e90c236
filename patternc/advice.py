"""What a small change of one number of a pattern would save, or add for nothing: the pattern with another number, predicted again.

Tiles are taken whole, so that time is a staircase in the width of a window or of a neighbourhood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from patternc.args import Bound, bind
from patternc.errors import PatterncError
from patternc.expr.pattern import Pattern
from patternc.layout import layout
from patternc.parsing import parse
from patternc.prediction import predict
from patternc.rates import Shape

MOST_NUMBERS = 8  # of a pattern that are tried
LONGEST = 1 << 18  # queries, for which trying takes seconds at most
GAIN = 1 / 16  # least share of more pairs that is worth a line, if it takes less than a third of that in time
WORTH = 0.05  # least share of the time that is worth a line


@dataclass(frozen=True)
class Advice:
    """One changed number.

    Attributes:
        old, new: the part of the text around it, before and after.
        saved: share of the predicted time of forward and backward that the change saves, about 0 for more at about the same price.
    """

    old: str
    new: str
    saved: float

    def __str__(self):
        if self.saved < WORTH:
            return f"`{self.new}` takes hardly longer than `{self.old}`"
        return f"`{self.new}` in the place of `{self.old}` is predicted to save {self.saved:.0%} of the time"


def advice(p: Pattern, bound: Bound, shape: Shape) -> list[Advice]:
    """Changes that are worth knowing about, for a pattern whose text parses by itself."""
    text = str(p)
    if bound.n_q > LONGEST:
        return []
    try:
        if parse(text) is not p:
            return []
    except PatterncError:  # its tables are named, not written
        return []
    now = _time(p, bound, shape)
    out = []
    for number in list(re.finditer(r"(?<![\w.])\d+(?![\w.])", text))[:MOST_NUMBERS]:
        tried = _Number(text, number, bound, shape, now)
        out += [a for a in (tried.less(), tried.more()) if a is not None]
    return out


class _Number:
    """One number of a text, and what other values in its place would take."""

    def __init__(self, text: str, found: re.Match, bound: Bound, shape: Shape, now: float):
        self.text, self.bound, self.shape, self.now = text, bound, shape, now
        self.begin, self.end, self.value = found.start(), found.end(), int(found[0])
        self.kept: dict[int, float | None] = {}

    def with_value(self, value: int) -> str:
        return f"{self.text[: self.begin]}{value}{self.text[self.end :]}"

    def time(self, value: int) -> float | None:
        """The predicted time; None where the text with this value says nothing, or nothing different."""
        if value not in self.kept:
            try:
                self.kept[value] = _time(parse(self.with_value(value)), self.bound, self.shape)
            except PatterncError:
                self.kept[value] = None
        return self.kept[value]

    def more(self) -> Advice | None:
        """The largest value that takes hardly longer."""
        low, high = self.value, 2 * self.value
        while low + 1 < high:
            middle = (low + high) // 2
            time = self.time(middle)
            low, high = (middle, high) if time is not None and time <= self.now * (1 + GAIN / 3) else (low, middle)
        if low == self.value or low >= 2 * self.value - 1:
            return None
        gained = _pairs(self, low) / _pairs(self, self.value) - 1
        return self._advice(low) if gained >= GAIN and self.time(low) / self.now - 1 <= gained / 3 else None

    def less(self) -> Advice | None:
        """The value a little below that saves more than it gives up."""
        best = None
        for value in sorted({self.value - step for step in (1, 2, 4)} | {self.value // m * m for m in (8, 16, 32, 64)}):
            if not 3 * self.value <= 4 * value < 4 * self.value or (time := self.time(value)) is None:
                continue
            saved, given = 1 - time / self.now, 1 - _pairs(self, value) / _pairs(self, self.value)
            if given >= 0 and saved > max(WORTH, 1.5 * given) and (best is None or saved - given > best[0]):
                best = saved - given, value
        return self._advice(best[1]) if best else None

    def _advice(self, value: int) -> Advice:
        return Advice(*_around(self.text, self.begin, self.end, str(value)), 1 - self.time(value) / self.now)


def _bound(p: Pattern, bound: Bound) -> Bound:
    return bind(p, bound.values, bound.n_q, bound.n_k, bound.heads, bound.batch, bound.q_start)


def _time(p: Pattern, bound: Bound, shape: Shape) -> float:
    expected = predict(p, _bound(p, bound), shape)
    return expected.forward + expected.backward


def _pairs(number: _Number, value: int) -> int:
    p = parse(number.with_value(value))
    return max(1, layout(p, _bound(p, number.bound), (64, 64), count=True).allowed_pairs)


def _around(text: str, begin: int, end: int, new: str) -> tuple[str, str]:
    """The innermost call around a piece of text, before and after the piece is replaced; the whole text outside of calls."""
    depth, left = 0, begin
    while left > 0 and depth >= 0:
        left -= 1
        depth += {")": 1, "]": 1, "(": -1, "[": -1}.get(text[left], 0)
        if depth == -1 and text[left] == "[":
            depth = 0
    while left > 0 and (text[left - 1].isalnum() or text[left - 1] == "_"):
        left -= 1
    if depth == 0 or not text[left].isalpha():
        return text, f"{text[:begin]}{new}{text[end:]}"
    depth, right = 0, left
    while depth > 0 or "(" not in text[left:right]:
        depth += {"(": 1, ")": -1}.get(text[right], 0)
        right += 1
    return text[left:right], f"{text[left:begin]}{new}{text[end:right]}"
