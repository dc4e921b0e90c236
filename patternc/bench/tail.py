"""`patternc bench tail`: what a linear tail adds to an attention, and how long each of its kernels takes.

Times are medians of CUDA events with a cold L2, in ms; memory is what a forward and backward need at their peak beyond
inputs, outputs and gradients.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from patternc.bench.names import select as names_of
from patternc.errors import BackendError

NONE, RMS = 'linear_tail(norm="none")', "linear_tail"


@dataclass(frozen=True)
class Case:
    """A pattern with and without its term, and a shape (batch, query heads, key heads, length, head_dim)."""

    name: str
    exact: str
    term: str
    batch: int
    heads: int
    kv_heads: int
    n: int
    head_dim: int
    domain: str = "causal"

    @property
    def text(self) -> str:
        return f"{self.domain} & ({self.exact} + {self.term})"


CASES = (
    Case("linear-d", "empty", 'linear_tail(feature="elu+1", norm="none")', 4, 16, 16, 16384, 128),
    Case("linear-2d", "empty", NONE, 4, 16, 16, 16384, 128),
    Case("linear-2d-64", "empty", NONE, 4, 16, 16, 16384, 64),
    Case("performer-like", "empty", 'linear_tail(feature="elu+1", norm="denominator")', 4, 16, 16, 16384, 128),
    Case("rattention-512", "window(left=512, right=0)", RMS, 4, 16, 4, 16384, 128),
    Case("rattention-512-mha", "window(left=512, right=0)", RMS, 4, 16, 16, 16384, 64),
    Case("rattention-64k", "window(left=512, right=0)", RMS, 1, 16, 16, 65536, 128),
    Case("one-row", "window(left=512, right=0)", RMS, 1, 4, 1, 65536, 128),
    Case("sinks", "window(1024) | sink(4)", RMS, 4, 16, 4, 16384, 128),
    Case("chunks", "block(4096)", RMS, 4, 16, 4, 16384, 128),
    Case("longformer", "window(left=256, right=256) | global(64)", RMS, 4, 16, 16, 16384, 64, "full"),
    Case("bigbird", "block(64, 1, 1) | random_blocks(3, 64, 0) | global(128)", RMS, 4, 16, 16, 16384, 128, "full"),
    Case("bigbird-64k", "block(64, 1, 1) | random_blocks(3, 64, 0) | global(128)", RMS, 1, 16, 16, 65536, 128, "full"),
    Case("dilated", "window(1024) & dilate(2)", RMS, 4, 16, 4, 16384, 128),
    Case("neighborhood", "neighborhood([128, 128], 13)", RMS, 4, 16, 16, 16384, 64, "full"),
    Case("strided", "window(128) | dilate(128)", RMS, 4, 16, 16, 16384, 64),
    Case("strided-64k", "window(128) | dilate(128)", RMS, 1, 16, 16, 65536, 64),
    Case("all", "empty", 'linear_tail(feature="elu+1", norm="denominator")', 4, 16, 16, 16384, 128, "full"),
)


@dataclass
class Row:
    """Figures of one case: ms of the whole and of the exact part alone, ms of each kernel of the term, MiB of workspace."""

    case: str
    forward: float
    backward: float
    exact_forward: float | None
    exact_backward: float | None
    workspace: float
    kernels: dict[str, float] = field(default_factory=dict)

    def __str__(self):
        exact = "" if self.exact_forward is None else f" (exact part alone {self.exact_forward:.3f} / {self.exact_backward:.3f})"
        kernels = ", ".join(f"{name} {ms:.3f}" for name, ms in self.kernels.items())
        return f"{self.case:18s} forward {self.forward:.3f} backward {self.backward:.3f} ms{exact}, workspace {self.workspace:.0f} MiB\n    {kernels}"


def select(names: str | None) -> list[Case]:
    """The cases named in a comma-separated list; all without one.  Raises UnknownNameError."""
    return list(CASES) if names is None else names_of("case", names, {c.name: c for c in CASES})


def run(names: str | None = None, progress: Callable = print) -> list[Row]:
    """Measure the cases on the current CUDA device.  Raises BackendError without one, UnknownNameError for other cases."""
    import torch

    cases, rows = select(names), []
    if not torch.cuda.is_available():
        raise BackendError("`bench tail` measures kernels and needs a CUDA device", fix="run it on a machine with a GPU")
    for case in cases:
        rows.append(measure(case))
        progress(rows[-1])
        torch.cuda.empty_cache()
    return rows


def measure(case: Case) -> Row:
    import torch

    from patternc.compile import compile
    from patternc.parsing import parse

    spec = parse(case.text)
    module = compile(spec, "triton", num_heads=case.heads, head_dim=case.head_dim).cuda()
    q, k, v = _inputs(case)
    forward, backward = _times(module, q, k, v)
    exact = _times(compile(spec.exact, "triton"), q, k, v) if case.exact != "empty" else (None, None)
    torch.cuda.empty_cache()
    return Row(case.name, forward, backward, *exact, _workspace(module, q, k, v), _kernels(spec, q, k, v))


def _inputs(case: Case):
    import torch

    torch.manual_seed(0)
    heads = (case.heads, case.kv_heads, case.kv_heads)
    return [torch.randn(case.batch, h, case.n, case.head_dim, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in heads]


def _times(module, q, k, v) -> tuple[float, float]:
    import torch

    from patternc.codegen import timing

    out = module(q, k, v)
    leaves, grad = [q, k, v, *module.parameters()], torch.randn_like(out)
    with torch.no_grad():
        forward = timing.median_ms(lambda: module(q, k, v))
    return forward, timing.median_ms(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))


def _workspace(module, q, k, v) -> float:
    import torch

    grad = torch.randn_like(q)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = module(q, k, v)
    torch.autograd.grad(out, [q, k, v, *module.parameters()], grad)
    results = sum(x.numel() * x.element_size() for x in (out, q, k, v))
    return (torch.cuda.max_memory_allocated() - before - results) / 2**20


def _kernels(spec, q, k, v) -> dict[str, float]:
    """Each kernel of the term by itself, its inputs where they are."""
    import torch

    from patternc import runtime
    from patternc.codegen import tail_backend, timing

    found: dict[str, float] = {}

    def watch(name: str, launch: Callable) -> None:
        launch()
        key = name if name not in found else f"{name} again"
        found[key] = found.get(key, 0.0) + timing.median_ms(launch, warmup=20, rep=60)

    made = runtime.compiled(spec)
    bound, sums = runtime.bind_call(spec, q, k, {}, None, False), spec.term.norm == "denominator"
    with torch.no_grad():
        y, weights, kept = tail_backend.tail_forward(made, q, k, v, spec.term.feature, sums, bound, True, watch=watch)
        more = None if weights is None else torch.randn_like(weights)
        tail_backend.tail_backward(made, torch.randn_like(y), more, q, k, v, kept, spec.term.feature, bound, watch=watch)
    return found


def as_json(rows: list[Row]) -> str:
    return json.dumps([asdict(r) for r in rows], indent=1)
