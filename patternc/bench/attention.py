"""`patternc bench attention`: patternc beside other attention kernels, on the same card in the same run.

Useful TFLOP/s count the allowed pairs only: `4 * D * pairs * B * H / time` forward and 2.5 times that backward.  Times are
medians of CUDA events with a cold L2 (`triton.testing.do_bench`).  A peer that cannot run a pattern has no figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from patternc.bench.cases import CASES, DOCUMENT, Case
from patternc.errors import BackendError, InternalError, UnknownNameError, suggest


@dataclass
class Row:
    """Figures of one implementation on one case; times in ms, rates in useful TFLOP/s; None where it does not run."""

    case: str
    implementation: str
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_tflops: float | None = None
    backward_tflops: float | None = None
    error: float | None = None
    note: str = ""


@dataclass
class Report:
    """Every row of a run, and what it ran on."""

    device: str
    versions: dict[str, str]
    cases: list[Case]
    rows: list[Row] = field(default_factory=list)

    def json(self) -> str:
        return json.dumps(
            {"device": self.device, "versions": self.versions, "cases": [asdict(c) for c in self.cases], "rows": [asdict(r) for r in self.rows]},
            indent=1,
        )

    def markdown(self) -> str:
        lines = [f"{self.device}; {', '.join(f'{n} {v}' for n, v in self.versions.items())}", ""]
        lines += [
            "| case | pattern | shape | implementation | forward TFLOP/s (ms) | backward TFLOP/s (ms) | relative error | note |",
            "|---|---|---|---|---|---|---|---|",
        ]
        by_name = {c.name: c for c in self.cases}
        for r in self.rows:
            c = by_name[r.case]
            cells = [
                c.name,
                f"`{c.text.replace('|', chr(92) + '|')}`",
                c.shape,
                r.implementation,
                _figure(r.forward_tflops, r.forward_ms),
                _figure(r.backward_tflops, r.backward_ms),
            ]
            lines.append("| " + " | ".join([*cells, "" if r.error is None else f"{r.error:.1e}", r.note]) + " |")
        return "\n".join(lines)


def _figure(rate: float | None, ms: float | None) -> str:
    return "" if rate is None else f"{rate:.0f} ({ms:.3f})"


def mask_mod(pattern, args: dict, n: int = 0) -> Callable:
    """A FlexAttention `mask_mod` of a pattern at a length: the closure that a user would write, from the expression."""
    import torch

    from patternc.passes import lower

    text = f"lambda b, h, q, k: {_python(lower(pattern))}"
    return eval(text, {"torch": torch, "args": args, "n_q": n, "n_k": n})  # the text is made of the nodes of a case of this file


def _python(x) -> str:
    """An expression as Python text on tensors; only what the cases need."""
    op, a = x.op, x.args
    if op in ("var", "const"):
        return str(a[0])
    if op == "sum":
        return "(" + " + ".join([str(a[0]), *(f"{w} * {_python(t)}" for t, w in zip(a[1::2], a[2::2]))]) + ")"
    if op == "read":
        return f"args[{a[0].args[0]!r}][{_python(a[1])}]"
    if op == "in":
        core, low, high = a
        checks = ([f"({_python(core)} >= {low})"] if low is not None else []) + ([f"({_python(core)} <= {high})"] if high is not None else [])
        return "(" + " & ".join(checks) + ")"
    if op in ("min", "max"):
        numbers, others = [c for c in a if c.op == "const"], [c for c in a if c.op != "const"]
        if len(numbers) != 1 or len(others) != 1:
            raise InternalError(f"no Python text for `{x}`")
        x, c = _python(others[0]), _python(numbers[0])
        return f"(torch.clamp({x}, {'max' if op == 'min' else 'min'}={c}) if torch.is_tensor({x}) else {op}({x}, {c}))"
    symbol = {"mul": " * ", "and": " & ", "or": " | ", "div": " // ", "mod": " % "}[op]
    return "(" + symbol.join(_python(c) for c in a) + ")"


def _patternc(case: Case, pattern, args: dict):
    from patternc.compile import compile

    module = compile(pattern, "triton")
    return lambda q, k, v: module(q, k, v, **args)


def _flex(case: Case, pattern, args: dict):
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    heads = case.heads if case.by_head else None
    block_mask = None if case.text == "full" else create_block_mask(mask_mod(pattern, args, case.n), None, heads, case.n, case.n, device="cuda")
    run = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: run(q, k, v, block_mask=block_mask, enable_gqa=case.heads != case.kv_heads)


def _sdpa(kind: str):
    def make(case: Case, pattern, args: dict):
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if case.text not in ("full", "causal"):
            return None
        backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}[kind]

        def run(q, k, v):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=case.text == "causal", enable_gqa=case.heads != case.kv_heads
                )

        return run

    return make


PEERS = {"flex": _flex, "cudnn": _sdpa("cudnn"), "fa2": _sdpa("fa2")}


def select(names: str | None) -> list[Case]:
    """The cases named in a comma-separated list; all without one."""
    if not names:
        return list(CASES)
    by_name = {c.name: c for c in CASES}
    for name in names.split(","):
        if name not in by_name:
            close = suggest(name, by_name)
            raise UnknownNameError(f"unknown case `{name}`", fix=f"did you mean `{close}`?" if close else f"one of {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",")]


def run(names: str | None = None, against: str = "flex,cudnn,fa2", progress=print) -> Report:
    """Measure the cases on the current CUDA device.

    Args:
        names: comma-separated case names, all by default.
        against: comma-separated peers, of "flex", "cudnn", "fa2".
        progress: called with a line for every figure.
    Raises:
        BackendError: there is no CUDA device.
        UnknownNameError: a case or peer is not known.
    """
    import torch

    from patternc.codegen import timing

    if not torch.cuda.is_available():
        raise BackendError(
            "`bench attention` measures kernels and needs a CUDA device", fix="run it on a machine with a GPU; `bench layout` needs none"
        )
    for name in filter(None, against.split(",")):
        if name not in PEERS:
            raise UnknownNameError(f"unknown peer `{name}`", fix=f"one of {', '.join(PEERS)}")
    report = Report(torch.cuda.get_device_name(), {"torch": torch.__version__, "triton": timing.version()}, select(names))
    for case in report.cases:
        for name, make in {"patternc": _patternc, **{n: PEERS[n] for n in against.split(",") if n}}.items():
            row = _measure(case, name, make)
            if row is not None:
                report.rows.append(row)
                figures = [f"{_figure(rate, ms):16s}" for rate, ms in ((row.forward_tflops, row.forward_ms), (row.backward_tflops, row.backward_ms))]
                progress(f"{case.name:14s} {name:9s} forward {figures[0]} backward {figures[1]} {row.note}")
        torch.cuda.empty_cache()
    return report


def _inputs(case: Case):
    import torch

    torch.manual_seed(0)
    shapes = ((case.heads, case.head_dim), (case.kv_heads, case.head_dim), (case.kv_heads, case.head_dim))
    return [torch.randn(case.batch, h, case.n, d, device="cuda", dtype=torch.bfloat16).requires_grad_() for h, d in shapes]


def _measure(case: Case, name: str, make) -> Row | None:
    import torch

    from patternc.codegen import timing
    from patternc.parsing import parse

    pattern = parse(case.text)
    args = {"ids": torch.arange(case.n, device="cuda", dtype=torch.int32) // DOCUMENT} if "ids" in case.text else {}
    row = Row(case.name, name)
    try:
        attend = make(case, pattern, args)
        if attend is None:
            return None
        q, k, v = _inputs(case)
        out = attend(q, k, v)
        row.error = _error(case, pattern, args, out, q, k, v)
        grad = torch.randn_like(out)
        pairs = _pairs(case, pattern, args)
        flops = 4 * case.head_dim * pairs * case.batch
        with torch.no_grad():
            row.forward_ms = timing.median_ms(lambda: attend(q, k, v))
        row.backward_ms = timing.median_ms(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
        row.forward_tflops, row.backward_tflops = flops / row.forward_ms / 1e9, 2.5 * flops / row.backward_ms / 1e9
    except Exception as error:  # a peer's failure is a result of the benchmark, whatever its kind
        if name == "patternc":
            raise
        row.note = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
    return row


def _pairs(case: Case, pattern, args: dict) -> int:
    """Allowed pairs of a batch row, all heads together."""
    from patternc.args import bind
    from patternc.layout import layout

    heads = case.heads if case.by_head else 1
    found = layout(pattern, bind(pattern, {n: a.cpu() for n, a in args.items()}, case.n, heads=heads), count=True)
    return found.allowed_pairs * case.heads // heads


def _error(case: Case, pattern, args: dict, out, q, k, v, rows: int = 128) -> float:
    """Relative error of the last rows of one head against float64."""
    import torch

    h = case.heads - 1
    g = h // (case.heads // case.kv_heads)
    with torch.no_grad():
        scores = q[0, h, -rows:].double() @ k[0, g].double().T / math.sqrt(case.head_dim)
        positions, head = torch.arange(case.n, device="cuda"), torch.tensor(h, device="cuda")
        allowed = True if case.text == "full" else mask_mod(pattern, args, case.n)(0, head, positions[-rows:, None], positions[None])
        allowed = torch.broadcast_to(torch.as_tensor(allowed, device="cuda"), scores.shape)
        want = scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v[0, g].double()
        return ((out[0, h, -rows:].double() - want).norm() / want.norm()).item()
