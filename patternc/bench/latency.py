"""`patternc bench latency`: what a call costs the host on inputs so small that nothing else matters, and what the first call costs.

Calls are timed without waiting for the device.  Their launches are recorded and then made again by themselves, with the same
arguments; the rest is what Python adds.  First calls are those of new processes (`patternc.bench.first_call`), once with empty
caches and once with what the first process left there.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from patternc.bench.cases import Case
from patternc.bench.tables import markdown, table
from patternc.errors import BackendError

PATTERNS = (
    "causal",
    "causal & window(64)",
    "window(left=32, right=32) | global(4)",
    "causal & documents(ids)",
    "causal & dilate(2) & window(64)",
    "causal & (window(16) | dilate(16))",
    "causal & (window(64) + linear_tail)",
)
HEADS, HEAD_DIM, DOCUMENT = 8, 64, 48
ROUNDS = 9
QUEUE = 800  # launches that a device takes before the host has to wait for it
LENGTHS = (129, 1000, 4096, 16384)  # of calls after the first one
DECODE_HEADS, DECODE_DIM, CACHE = (32, 8), 128, 4096  # of calls of one query: heads, head_dim, keys
MOST_ADDED_US, MOST_FIRST_S, MOST_CACHED_S = 40, 3.0, 0.2  # what is aimed at

CALL_HEADINGS = ("pattern", "pass", "us", "launches", "launches alone us", "Python adds us")
FIRST_HEADINGS = ("pattern", "cache", "Triton s", "forward s", "backward s", "rest s", "kernels compiled", "by new lengths")


@dataclass
class CallRow:
    """Host time of a call in us; `launches` of kernels by patternc, and us of these alone, are None for torch's own functions."""

    pattern: str
    direction: str
    us: float
    launches: int | None = None
    launches_us: float | None = None

    @property
    def added_us(self) -> float | None:
        return None if self.launches_us is None else self.us - self.launches_us

    def cells(self) -> list[str]:
        more = ["-"] * 3 if self.launches_us is None else [str(self.launches), f"{self.launches_us:.1f}", f"{self.added_us:.1f}"]
        return [self.pattern, self.direction, f"{self.us:.1f}", *more]


@dataclass
class FirstRow:
    """First calls of a process in seconds, imports not counted.

    Attributes:
        cached: whether an earlier process left its kernels.
        driver_s: of starting Triton: its driver, and the hash of itself that names what it keeps. Once for all patterns.
        rest_s: from then on, until what calls of other lengths launch was compiled as well, beside whatever the process does.
        compiled: kernels that were compiled, not loaded.
        lengths: kernels that calls at other lengths compiled, by length.
    """

    pattern: str
    cached: bool
    driver_s: float
    forward_s: float
    backward_s: float
    rest_s: float
    compiled: int
    lengths: dict[str, int]

    def cells(self) -> list[str]:
        new = ", ".join(f"{count} (n {n})" for n, count in self.lengths.items() if count) or "0"
        seconds = [f"{s:.2f}" for s in (self.driver_s, self.forward_s, self.backward_s, self.rest_s)]
        return [self.pattern, "kept" if self.cached else "empty", *seconds, str(self.compiled), new]


@dataclass
class Report:
    """Every row of a run, and what it ran on."""

    device: str
    versions: dict[str, str]
    n: int
    calls: list[CallRow] = field(default_factory=list)
    first: list[FirstRow] = field(default_factory=list)

    def parts(self) -> Iterator[tuple[str, tuple[str, ...], list[list[str]]]]:
        """Title, headings and cells of each table."""
        where = f"{self.device}, {', '.join(f'{n} {v}' for n, v in self.versions.items())}"
        title = f"host time of a call at B1 H{HEADS} n{self.n} D{HEAD_DIM}, at most {MOST_ADDED_US} us aimed at beyond launches: {where}"
        yield title, CALL_HEADINGS, [row.cells() for row in self.calls]
        if self.first:
            title = f"first calls in new processes, at most {MOST_FIRST_S:g} s aimed at, {MOST_CACHED_S:g} s with a cache: {where}"
            yield title, FIRST_HEADINGS, [row.cells() for row in self.first]

    def tables(self) -> list:
        """Rich tables."""
        return [table(*part) for part in self.parts()]

    def markdown(self) -> str:
        return "\n\n".join(f"{title}\n\n{markdown(headings, rows)}" for title, headings, rows in self.parts())

    def json(self) -> str:
        head = {"device": self.device, "versions": self.versions, "n": self.n}
        calls = [asdict(row) | {"added_us": row.added_us} for row in self.calls]
        return json.dumps(head | {"calls": calls, "first": [asdict(row) for row in self.first]}, indent=1)


def run(patterns: list[str] | None = None, n: int = 128, calls: int = 100, first: bool = True, progress: Callable = print) -> Report:
    """Measure on the current CUDA device.

    Args:
        patterns: their texts, by default `PATTERNS`; of runtime args only `ids` is known here.
        n: tokens.
        calls: calls that are timed together.
        first: also measure first calls; this takes two new processes for each pattern.
        progress: called with a line for every figure.
    Raises:
        BackendError: there is no CUDA device.
        PatternSyntaxError, ArgError, ParameterError: a pattern is none, or does not fit.
    """
    import torch

    from patternc.codegen import timing
    from patternc.parsing import parse

    specs = [parse(text) for text in patterns or PATTERNS]
    if not torch.cuda.is_available():
        raise BackendError("`bench latency` times launches and needs a CUDA device", fix="run it on a machine with a GPU; `bench plan` needs none")
    report = Report(torch.cuda.get_device_name(), {"torch": torch.__version__, "triton": timing.version()}, n)
    for rows in (_yardsticks(n, calls), *(of_pattern(spec, n, calls) for spec in specs), decoding(calls)):
        for row in rows:
            report.calls.append(row)
            progress("  ".join(row.cells()))
    for spec in specs if first else ():
        for row in first_calls(str(spec), n):
            report.first.append(row)
            progress("  ".join(row.cells()))
    return report


def host_us(work: Callable, calls: int, rounds: int = ROUNDS) -> float:
    """Host time of a call in us, the device not waited for: the median of rounds of so many calls."""
    wait, times = _wait(), []
    for _ in range(3):
        work()
    for _ in range(rounds):
        wait()  # else a full queue would be waited for
        started = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - started) / calls)
    wait()
    return statistics.median(times) * 1e6


def _wait() -> Callable:
    import torch

    return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None


@contextmanager
def recorded():
    """A list of the launches that are made meanwhile, each as a function that makes it again."""
    from patternc.codegen.launches import Positional

    plain, found = Positional.run, []

    def record(self, grid, values, matrices):
        found.append(lambda: plain(self, grid, values, matrices))
        plain(self, grid, values, matrices)

    Positional.run = record
    try:
        yield found
    finally:
        Positional.run = plain


def split(pattern: str, direction: str, work: Callable, calls: int) -> CallRow:
    """A call's host time, and that of its launches alone."""
    from patternc.codegen.lengths import settle_all

    for _ in range(2):  # the first one may compile
        with recorded() as launches:
            work()
            _wait()()
    settle_all()  # threads that compile would share Python's lock
    calls = max(1, min(calls, QUEUE // (2 * len(launches) or 1)))  # torch's own launches are about as many

    def again():
        for launch in launches:
            launch()

    return CallRow(pattern, direction, host_us(work, calls), len(launches), host_us(again, calls) if launches else 0.0)


def of_pattern(spec, n: int, calls: int) -> list[CallRow]:
    """The rows of a pattern: forward without gradients and with, backward."""
    from patternc.bench.first_call import inputs, of_spec
    from patternc.compile import compile

    q, k, v, args = inputs(n)
    args = of_spec(spec, args)
    module = compile(spec, "triton", num_heads=HEADS, head_dim=HEAD_DIM).to(q.device)
    return passes(str(spec), lambda: module(q, k, v, **args), (q, k, v), lambda *given: split(*given, calls))


def _yardsticks(n: int, calls: int) -> list[CallRow]:
    """What torch's own functions cost on this machine."""
    import torch

    from patternc.bench.first_call import inputs
    from patternc.bench.peers import PEERS
    from patternc.parsing import parse

    q, k, v, _ = inputs(n)
    x, y = q.detach().clone(), k.detach()

    def plain(name: str, direction: str, work: Callable) -> CallRow:
        return CallRow(name, direction, host_us(work, calls))

    rows = [plain("torch add_", "in place", lambda: x.add_(y))]
    rows += passes("torch scaled_dot_product_attention", lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), (q, k, v), plain)
    flex = PEERS["flex"](Case("latency", "causal", 1, HEADS, HEADS, n, HEAD_DIM), parse("causal"), {})
    return rows + passes("flex_attention, causal", lambda: flex.attend(q, k, v), (q, k, v), plain)


def decoding(calls: int, keys: int = CACHE) -> list[CallRow]:
    """The rows of one query after so many keys, of always as many and of one more at each call."""
    import torch

    from patternc.bench.first_call import inputs
    from patternc.compile import compile

    like = inputs(1)[0]
    heads, kv_heads = DECODE_HEADS
    shapes = (heads, 1), (kv_heads, 2 * keys), (kv_heads, 2 * keys)
    q, k, v = (torch.randn(1, h, n, DECODE_DIM, device=like.device, dtype=like.dtype) for h, n in shapes)
    module, more = compile("causal", "triton"), itertools.cycle(range(keys, 2 * keys))

    def attend(n: int):
        return module(q, k[:, :, :n], v[:, :, :n])

    with torch.no_grad():
        same = split(f"causal, 1 query after {keys} keys", "forward, no gradients", lambda: attend(keys), calls)
        return [same, split("causal, 1 query after one more key each time", "forward, no gradients", lambda: attend(next(more)), calls)]


def passes(name: str, attend: Callable, leaves: tuple, timed: Callable) -> list[CallRow]:
    """A row of `timed(name, direction, work)` for each pass."""
    import torch

    with torch.no_grad():
        rows = [timed(name, "forward, no gradients", attend)]
    rows.append(timed(name, "forward", attend))
    out = attend()
    grad = torch.randn_like(out)
    return [*rows, timed(name, "backward", lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))]


def first_calls(text: str, n: int) -> list[FirstRow]:
    """Two new processes with a cache folder of their own.  Raises BackendError where one fails."""
    from patternc.folder import ENVIRONMENT

    with tempfile.TemporaryDirectory(prefix="patternc-first-") as folder:
        own = {ENVIRONMENT: str(Path(folder, "patternc")), "TRITON_CACHE_DIR": str(Path(folder, "triton"))}
        return [_first_call(text, n, cached, {**os.environ, **own}) for cached in (False, True)]


def _first_call(text: str, n: int, cached: bool, env: dict) -> FirstRow:
    command = [sys.executable, "-m", "patternc.bench.first_call", text, str(n), *map(str, LENGTHS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"the first call of `{text}` failed in a new process: {last}", fix=f'try `patternc verify "{text}"`')
    return FirstRow(text, cached, **json.loads(done.stdout.splitlines()[-1]))
