"""`patternc bench attention`: patternc beside other attention kernels, on the same card, in the same run, on the same inputs.

Useful TFLOP/s count the allowed pairs only: `4 * D * pairs * B * H / time` forward and 2.5 times that backward; decoding and linear
attention are rated by the bytes that they have to move.  Times are medians of CUDA events with a cold L2; those of decoding, whose calls
are shorter than what the host takes for them, are of calls in a CUDA graph, as decoding loops run them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from patternc.bench.attention_report import OURS, WRONG, Report, Row
from patternc.bench.cases import CASES, DOCUMENT, Case
from patternc.bench.names import select as names_of
from patternc.bench.peers import PEERS, mask_mod, patternc
from patternc.bench.roofline import work
from patternc.errors import BackendError

DEVICE = "cuda"


def select(names: str | None) -> list[Case]:
    """The cases named in a comma-separated list; all without one.  Raises UnknownNameError."""
    return list(CASES) if names is None else names_of("case", names, {c.name: c for c in CASES})


def select_peers(names: str) -> list[str]:
    """The peers named in a comma-separated list; none for an empty one.  Raises UnknownNameError."""
    return names_of("peer", names, {name: name for name in PEERS}) if names else []


def run(
    names: str | None = None, against: str = ",".join(PEERS), backward: bool = True, progress: Callable = print, keep: Callable = lambda report: None
) -> Report:
    """Measure the cases on the current CUDA device.

    Args:
        names: comma-separated case names, all by default.
        against: comma-separated peers, of `PEERS`; those that are not installed are left out.
        backward: also measure backward passes.
        progress: called with a line for every figure.
        keep: called with the report after every case.
    Raises:
        BackendError: there is no CUDA device.
        UnknownNameError: a case or peer is not known.
    """
    import torch

    from patternc.codegen import timing

    cases, peers = select(names), select_peers(against)
    if not torch.cuda.is_available():
        raise BackendError(
            "`bench attention` measures kernels and needs a CUDA device", fix="run it on a machine with a GPU; `bench layout` needs none"
        )
    report = Report(torch.cuda.get_device_name(), {"torch": torch.__version__, "triton": timing.version()}, peers)
    for case in cases:
        measure(report, case, backward, progress)
        torch.cuda.empty_cache()
        keep(report)
    return report


def measure(report: Report, case: Case, backward: bool, progress: Callable) -> None:
    """Add a case's rows to a report."""
    import torch

    from patternc.parsing import parse

    spec = parse(case.text)
    args = {"ids": torch.arange(case.n, device=DEVICE, dtype=torch.int32) // DOCUMENT} if "ids" in case.text else {}
    passes = case.passes if backward else case.passes[:1]
    rows = [Row(case, direction, work(case, direction, *_counts(case, spec, args))) for direction in passes]
    report.rows += rows
    makers = {OURS: patternc, **{name: PEERS[name] for name in report.peers}}
    for name, make in makers.items():
        try:
            made = make(case, spec, args)
            if made is not None:
                _time(report, name, made, case, spec, args, rows)
        except ImportError as error:
            if name == OURS:
                raise
            report.peers.remove(name)
            report.notes.append(f"{name} is left out: {_first_line(error)}")
        except Exception as error:  # a failure is a result of the benchmark, whatever its kind
            report.notes.append(f"{case.name}: {name} failed: {_first_line(error)}")
        figures = [f"{row.direction} {row.timed(row.rate(name)):18s}" for row in rows]
        progress(f"{case.name:16s} {name:10s} {' '.join(figures)}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"


def _time(report: Report, name: str, made, case: Case, spec, args: dict, rows: list[Row]) -> None:
    import torch

    from patternc.codegen import timing

    q, k, v = _inputs(case)
    inputs = made.inputs(q, k, v)
    with torch.set_grad_enabled(len(rows) > 1):
        out = made.attend(*inputs)
    error = report.errors.setdefault(case.name, {})[name] = relative_error(case, spec, args, out, q, k, v)
    if not error < WRONG:
        report.notes.append(f"{case.name}: {name} is wrong by {error:.1e}, so its times say nothing")
    with torch.no_grad():
        time = timing.captured_ms if case.kind == "decode" else timing.median_ms
        rows[0].ms[name] = time(lambda: made.attend(*inputs))
    if len(rows) > 1:
        grad = torch.randn_like(out)
        rows[1].ms[name] = timing.median_ms(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True))


def _inputs(case: Case):
    import torch

    torch.manual_seed(0)
    shapes = ((case.heads, case.queries), (case.kv_heads, case.n), (case.kv_heads, case.n))
    return [torch.randn(case.batch, h, n, case.head_dim, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for h, n in shapes]


def _counts(case: Case, spec, args: dict) -> tuple[int, int, int]:
    """Allowed pairs of a batch row, all heads together; keys that some query sees; features of a term."""
    import torch

    from patternc.args import bind
    from patternc.layout import layout
    from patternc.tail import feature_map

    if case.kind == "linear":
        return 0, case.n, feature_map(spec.term.feature)(torch.zeros(case.head_dim)).shape[-1]
    heads = case.heads if case.by_head else 1
    bound = bind(spec, {n: a.cpu() for n, a in args.items()}, case.queries, case.n, heads=heads)
    pairs = layout(spec, bound, count=True).allowed_pairs * case.heads // heads
    # Where queries are as many as keys, each key is seen by the query at its own position.
    keys = case.n if case.queries == case.n else int(spec.dense(case.queries, case.n).any(-2).sum())
    return pairs, keys, 0


def relative_error(case: Case, spec, args: dict, out, q, k, v, rows: int = 128) -> float:
    """Relative error of the last rows of one head against float64."""
    import torch

    from patternc.tail import feature_map

    h = case.heads - 1
    g = h // (case.heads // case.kv_heads)
    rows = min(rows, case.queries)
    with torch.no_grad():
        q, k, v = q[0, h, -rows:].double(), k[0, g].double(), v[0, g].double()
        positions, head = torch.arange(case.n, device=q.device), torch.tensor(h, device=q.device)
        if case.kind == "linear":  # over all keys up to a query's own
            phi = feature_map(spec.term.feature)
            want = (phi(q) @ phi(k).T).masked_fill(positions[None] > positions[-rows:, None], 0.0) @ v
        else:
            scores = q @ k.T / math.sqrt(case.head_dim)
            allowed = True if case.text == "full" else mask_mod(spec, args, case.n)(0, head, positions[-rows:, None], positions[None])
            allowed = torch.broadcast_to(torch.as_tensor(allowed, device=q.device), scores.shape)
            want = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v
        return ((out[0, h, -rows:].double() - want).norm() / want.norm()).item()
