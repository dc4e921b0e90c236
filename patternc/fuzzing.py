"""`patternc fuzz`: random patterns at random lengths, checked against their dense meaning until stopped.

Every example has its own seed, so a failure is replayed by that one number.  The generator draws every operator, primitive
and kind of arg; nothing is filtered but expressions that patternc refuses to build because they are too large.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from patternc import primitives as pc
from patternc.args import signature
from patternc.errors import InternalError, LimitError
from patternc.expr.arithmetic import clamp, maximum, minimum
from patternc.expr.attention import Attention
from patternc.expr.index import Index, arg, table, where
from patternc.expr.node import postorder
from patternc.expr.pattern import EMPTY, FULL, Pattern
from patternc.passes import variables
from patternc.soundness import Example, check
from patternc.structured import random_blocks

SCALARS, ARRAYS, SETS = ("w", "s"), ("doc", "ids"), ("tokens", "marks")
LOOKUP = 8  # entries of the arg `lut`, which any index may subscript
MOVED_SAFELY = "arrays of one entry a position are read at q and k only: elsewhere their subscripts could leave them, which is an error"


class Generator:
    """Random expressions from one numpy generator; `drawn` counts the constructs."""

    def __init__(self, rng: np.random.Generator, heads: int):
        self.rng, self.heads, self.drawn = rng, heads, Counter()

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def choose(self, table: dict[str, Callable], prefix: str = ""):
        name = self.pick(list(table))
        self.drawn[prefix + name] += 1
        return table[name]()

    def size(self, least: int = 1):
        return arg(self.pick(SCALARS)) if self.rng.random() < 0.15 else self.number(least, 40)

    def positions(self, most: int = 60):
        return self.choose(
            {
                "count": lambda: self.number(0, 12),
                "range": lambda: range(self.number(0, 9), self.number(9, most), self.number(1, 5)),
                "list": lambda: self.rng.integers(0, most, self.number(0, 6)).tolist(),
                "table": lambda: table(self.rng.integers(0, most, self.number(1, 6)).tolist()),
                "arg": lambda: arg(self.pick(SETS)),
            },
            "positions: ",
        )

    def index(self, depth: int = 2) -> Index:
        if depth <= 0 or self.rng.random() < 0.2:
            leaves = (pc.q, pc.k, pc.q, pc.k, pc.q - pc.k, pc.h, pc.b, pc.n_q, pc.n_k, arg(self.pick(SCALARS)))
            return self.pick(leaves)
        x, y, m = self.index(depth - 1), self.index(depth - 1), self.number(1, 20)
        return self.choose(
            {
                "+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "constant *": lambda: self.number(-5, 5) * x,
                "//": lambda: x // m, "%": lambda: x % m, "// index": lambda: x // maximum(y, 1), "% index": lambda: x % (pc.h + m),
                "neg": lambda: -x, "abs": lambda: abs(x),
                "min": lambda: minimum(x, y, m), "max": lambda: maximum(x, y),
                "clamp": lambda: clamp(x, self.number(-9, 9), y), "where": lambda: where(self.comparison(depth - 1), x, y),
                "table": lambda: table(self.rng.integers(-3, 30, m).tolist())[x % m],
                "table outside": lambda: table(self.rng.integers(-3, 30, m).tolist())[minimum(x, m - 1)],
                "arg[position]": lambda: arg(self.pick(ARRAYS))[self.pick((pc.q, pc.k))],
                "arg[b, position]": lambda: arg("grid")[pc.b, self.pick((pc.q, pc.k))],
                "arg[index]": lambda: arg("lut")[x % LOOKUP],
            }
        )  # fmt: skip

    def function(self) -> Index:
        """An index function of the placeholder `i`."""
        i, m = pc.i, self.number(1, 20)
        return self.choose(
            {
                "i //": lambda: i // m, "i %": lambda: i % m, "i -": lambda: i - m,
                "reverse": lambda: pc.n_k - 1 - i, "affine": lambda: 2 * i - m,
                "digits": lambda: (i % m) * 4 + i // m,
                "min": lambda: minimum(i, m), "where": lambda: where(i < m, i, i - m), "arg - i": lambda: arg("w") - i,
            },
            "f: ",
        )  # fmt: skip

    def comparison(self, depth: int = 2) -> Pattern:
        x, y = self.index(depth), self.pick((self.number(-9, 40), self.index(depth - 1)))
        return self.choose(
            {"<": lambda: x < y, "<=": lambda: x <= y, "==": lambda: x == y, "!=": lambda: x != y, ">=": lambda: x >= y, ">": lambda: x > y}
        )

    def primitive(self) -> Pattern:
        return self.choose(
            {
                "causal": lambda: pc.causal, "full": lambda: FULL, "empty": lambda: EMPTY,
                "window": lambda: pc.window(self.size()),
                "window(left, right)": lambda: pc.window(left=self.size(0), right=self.size(0)), "dilate": lambda: pc.dilate(maximum(self.size(), 1)),
                "block": lambda: pc.block(self.number(1, 40), back=self.size(0), ahead=self.number(0, 2)),
                "rows": lambda: pc.rows(self.positions()), "cols": lambda: pc.cols(self.positions()), "global": lambda: pc.global_(self.positions()),
                "sink": lambda: pc.sink(self.size(0)), "prefix": lambda: pc.prefix(self.size(0)),
                "same": lambda: pc.same(self.function(), self.pick((None, self.function()))),
                "documents": lambda: pc.documents(self.pick((arg("doc"), arg("grid")[pc.b, pc.i]))), "valid": lambda: pc.valid(arg("mask")),
                "heads": lambda: pc.heads(self.pick((1, [0], range(0, 2), arg("which")))),
                "random_blocks": lambda: random_blocks(
                    self.number(1, 3), self.number(2, 40), self.number(0, 99), self.pick((None, 0, 1)), self.number(0, 1), self.number(0, 1)
                ),
                "within": lambda: pc.within(self.index(1), self.number(-9, 9), self.number(0, 30)),
            }
        )  # fmt: skip

    def pattern(self, depth: int = 3) -> Pattern:
        if depth <= 0 or self.rng.random() < 0.2:
            return self.primitive() if self.rng.random() < 0.7 else self.comparison()
        p, r = self.pattern(depth - 1), self.pattern(depth - 1)
        return self.choose(
            {
                "&": lambda: p & r, "& ": lambda: p & r, "|": lambda: p | r, "| ": lambda: p | r,
                "- (patterns)": lambda: p - r, "^": lambda: p ^ r, "~": lambda: ~p,
                "per_head": lambda: pc.per_head(p, *(self.pattern(depth - 2) for _ in range(self.heads - 1))),
                "at": lambda: movable(p).at(self.function()),
                "shift": lambda: movable(p).shift(self.size(0)), "roll": lambda: movable(p).roll(self.size(0)),
            }
        )  # fmt: skip

    def value(self, use, n_k: int, batch: int):
        """A value for one arg, with and without a batch axis."""
        rng, rows = self.rng, self.pick(((), (batch,)))
        if use.kind == "scalar":
            return rng.integers(-2, 41, rows) if rows else self.number(-2, 40)
        if use.kind == "lengths":
            return rng.random((*rows, n_k)) < 0.7 if rng.random() < 0.5 else rng.integers(0, n_k + 1, batch)
        if use.kind == "positions":
            size = self.heads if use.over_heads else n_k
            return rng.random((*rows, size)) < 0.1 if rng.random() < 0.5 else rng.integers(-1, max(size, 1), (*rows, self.number(0, 5)))
        if any("b" in variables(x) for subscripts in use.subscripts for x in subscripts):
            rows = ()  # an arg whose subscripts name the batch has no further batch axis
        if use.name == "lut":
            return rng.integers(-2, 41, (*rows, LOOKUP))
        shape = (batch, n_k) if use.name == "grid" else (*rows, n_k)
        ids = rng.integers(-1, self.number(1, 6), shape)
        return np.sort(ids, -1) if rng.random() < 0.6 else ids


def movable(p: Pattern) -> Pattern:
    """The pattern, or a window if moving it is not allowed; see MOVED_SAFELY."""
    return pc.window(3) if {*signature(p)} & {*ARRAYS, "grid"} or any(n.op == "table" for n in postorder(p)) else p


def example_of(seed: int, drawn: Counter | None = None) -> Example:
    """The example of a seed."""
    rng = np.random.default_rng(seed)
    heads, batch = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    generator = Generator(rng, heads)
    p = generator.pattern(int(rng.integers(1, 5)))
    n_k = int(rng.integers(1, 130))
    given = rng.random() < 0.25
    n_q = int(rng.integers(1, 130)) if given else n_k if rng.random() < 0.6 else int(rng.integers(1, n_k + 1))
    q_start = (int(rng.integers(0, 90)) if rng.random() < 0.6 else rng.integers(0, 90, batch)) if given else None
    uses = signature(p)
    if given and any(u.kind in ("array", "positions", "lengths") for u in uses.values()):
        n_q, q_start = min(n_q, n_k), np.minimum(q_start, n_k - min(n_q, n_k))  # args have n_k entries: positions stay below
        q_start = q_start if np.ndim(q_start) else int(q_start)
    tile = (int(rng.choice([16, 32, 7, 12])), int(rng.choice([16, 32, 9, 20])))
    args = {name: generator.value(use, n_k, batch) for name, use in uses.items()}
    if drawn is not None:
        drawn.update(generator.drawn)
        drawn.update({"n_q != n_k": n_q != n_k, "q_start": q_start is not None, "args": bool(args), "heads > 1": heads > 1, "batch > 1": batch > 1})
    return Example(p, n_q, n_k, heads, batch, tile, q_start, args)


@dataclass(frozen=True)
class Failure:
    """An example that broke a promise.

    Attributes:
        seed: replays it.
        example: as drawn.  smaller: a part of its pattern that fails too.
    """

    seed: int
    example: Example
    smaller: Example
    error: Exception

    def __str__(self):
        lines = [f"FAILED: {type(self.error).__name__}: {self.error}", self.example.describe()]
        if self.smaller is not self.example:
            lines += ["smaller, and fails too:", self.smaller.describe()]
        return "\n".join([*lines, f"replay with: patternc fuzz --replay {self.seed}"])


def run_seed(seed: int, drawn: Counter | None = None) -> Failure | bool:
    """True if the example of a seed passes, False if patternc refuses to build it as too large, else the Failure."""
    try:
        example = example_of(seed, drawn)
    except LimitError:
        return False
    error = failure_of(example)
    if error is None:
        return True
    return False if isinstance(error, LimitError) else Failure(seed, example, shrink(example), error)


def failure_of(example: Example) -> Exception | None:
    try:
        check(example)
    except Exception as error:  # noqa: BLE001 - whatever escapes is what the fuzzer looks for
        return error
    return None


def shrink(example: Example) -> Example:
    """Replace the pattern by parts of itself, and the sizes by smaller ones, as long as the check still fails."""
    while True:
        smaller = next((e for e in _smaller(example) if failure_of(e) is not None), None)
        if smaller is None:
            return example
        example = smaller


def _smaller(example: Example) -> Iterator[Example]:
    for part in _parts(example.pattern):
        yield replace(example, pattern=part, args={name: example.args[name] for name in signature(part)})
    if example.args or example.q_start is not None:
        return
    for n_k in (example.n_k // 2, example.n_k - 1):
        if n_k >= 1 and n_k < example.n_k:
            yield replace(example, n_k=n_k, n_q=min(example.n_q, n_k))


def _parts(p: Pattern) -> Iterator[Pattern]:
    parts = [x for x in p.children if isinstance(x, Pattern) and not isinstance(x, Attention)]
    yield from parts
    if p.op in ("and", "or") and len(parts) > 2:
        for x in parts:
            rest = [y for y in parts if y is not x]
            joined = rest[0]
            for y in rest[1:]:
                joined = joined & y if p.op == "and" else joined | y
            yield joined


@dataclass
class Outcome:
    """What a fuzzing run did: how many examples passed, how many were too large to build, what was drawn, and the failure."""

    seed: int
    passed: int = 0
    refused: int = 0
    drawn: Counter = None
    failure: Failure | None = None


def fuzz(seed: int, seconds: float | None = None, count: int | None = None, progress: Callable[[Outcome], None] | None = None) -> Outcome:
    """Check examples until the time is up, `count` have passed, one fails, or the user interrupts; example j has the seed `seed + j`."""
    outcome = Outcome(seed, drawn=Counter())
    stop = None if seconds is None else time.monotonic() + seconds
    try:
        while (stop is None or time.monotonic() < stop) and (count is None or outcome.passed < count):
            result = run_seed(seed + outcome.passed + outcome.refused, outcome.drawn)
            if isinstance(result, Failure):
                outcome.failure = result
                return outcome
            outcome.passed += result
            outcome.refused += not result
            if progress is not None:
                progress(outcome)
    except KeyboardInterrupt:
        pass
    return outcome


__all__ = ["Example", "Failure", "Generator", "InternalError", "Outcome", "example_of", "failure_of", "fuzz", "run_seed", "shrink"]
