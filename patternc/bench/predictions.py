"""`patternc bench predictions`: the times that orders and tiles are chosen by, beside measured ones, for every entry of the zoo.

Measured are medians of CUDA events around the forward, and around the backward, of a batch with a cold L2.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from patternc.args import bind
from patternc.bench.tables import markdown
from patternc.cards import card
from patternc.errors import BackendError
from patternc.prediction import predict
from patternc.rates import Shape
from patternc.zoo.registry import ENTRIES, Entry, entry

HEADINGS = ("entry", "shape", "forward ms", "predicted", "error", "backward ms", "predicted", "error")
HEADS = 16  # of entries whose heads are all alike


@dataclass
class Row:
    """One entry: milliseconds, measured and predicted."""

    entry: str
    shape: str
    forward: float
    forward_predicted: float
    backward: float
    backward_predicted: float

    @property
    def errors(self) -> tuple[float, float]:
        """Relative errors of the predictions."""
        return self.forward_predicted / self.forward - 1, self.backward_predicted / self.backward - 1


@dataclass
class Report:
    """All rows, and the card that was predicted and the one that was measured."""

    predicted: str
    measured: str
    versions: dict[str, str]
    rows: list[Row]

    @property
    def median_error(self) -> float:
        return statistics.median(abs(e) for row in self.rows for e in row.errors)

    def json(self) -> str:
        head = {"predicted": self.predicted, "measured": self.measured, "versions": self.versions, "median_error": self.median_error}
        return json.dumps(head | {"rows": [asdict(row) for row in self.rows]}, indent=1)

    def markdown(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        measured = f"{self.measured} ({versions}); rates of {self.predicted}; median error {self.median_error:.1%}."
        return "\n".join([markdown(HEADINGS, map(cells, self.rows)), "", measured])


def cells(row: Row) -> list[str]:
    """A row as text."""
    numbers = [f"{row.forward:.3f}", f"{row.forward_predicted:.3f}", f"{row.errors[0]:+.0%}"]
    return [row.entry, row.shape, *numbers, f"{row.backward:.3f}", f"{row.backward_predicted:.3f}", f"{row.errors[1]:+.0%}"]


def measure(n: int = 16384, head_dim: int = 64, batch: int = 4, workers: int = 8, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure and predict every entry.  Raises BackendError without a CUDA device."""
    import torch

    from patternc.codegen import timing

    if not torch.cuda.is_available():
        raise BackendError("`bench predictions` measures kernels and needs a CUDA device", fix="run it on a machine with a GPU")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:  # kernels are compiled many at a time
        pool.starmap(_compile, [(e.name, n, head_dim) for e in ENTRIES], chunksize=1)
    rows = []
    for e in ENTRIES:
        rows.append(_measure(e, n, head_dim, batch))
        progress(" ".join(cells(rows[-1])))
        torch.cuda.empty_cache()
    versions = {"torch": torch.__version__, "triton": timing.version()}
    return Report(card().name, torch.cuda.get_device_name(), versions, rows)


def _prepared(e: Entry, n: int, head_dim: int, batch: int):
    """`(pattern, heads, args, forward, inputs)` of an entry."""
    import torch

    from patternc.compile import compile

    p, heads = e.at(n), e.published_heads if e.published_heads > 1 else HEADS
    args = e.args(p, n)
    inputs = [torch.randn(batch, heads, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    tensors = {name: torch.as_tensor(x, device="cuda") if hasattr(x, "shape") else x for name, x in args.items()}
    module = compile(p, "triton")
    return p, heads, args, lambda: module(*inputs, **tensors), inputs


def _compile(name: str, n: int, head_dim: int) -> None:
    *_, forward, _ = _prepared(entry(name), n, head_dim, 1)
    forward().sum().backward()


def _measure(e: Entry, n: int, head_dim: int, batch: int) -> Row:
    import torch

    from patternc.codegen import timing

    p, heads, args, attend, (q, k, v) = _prepared(e, n, head_dim, batch)
    expected = predict(p, bind(p, args, n, n, heads, batch), Shape.of(head_dim), dealt=True)
    out = attend()
    grad = torch.randn_like(out)
    with torch.no_grad():
        forward = timing.median_ms(attend, 20, 80)
    backward = timing.median_ms(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), 20, 80)
    return Row(e.name, f"B{batch} H{heads} n{n} D{head_dim}", forward, expected.forward / 1e3, backward, expected.backward / 1e3)
