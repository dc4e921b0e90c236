"""`make demo`: two patterns that no library has, end to end on this machine's CPU: layout, kernels, outputs, gradients, checks.

Everything lands in the folder demo-output/ (or the one that is given): pictures, reports, verification tables and source.
"""

import contextlib
import io
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

import patternc as pc
from patternc.terminal import text

N, HEADS, HEAD_DIM = 4096, 4, 64
TOKENS = [0, 1365, 2730]  # positions that attend everywhere and are seen from everywhere

PATTERNS = {
    "hybrid": ("window(512) | global(tokens) | dilate(2) + linear_tail", {"tokens": TOKENS}),
    "streaming": ("causal & (window(512) | sink(4))", {}),
}


def main(folder: str = "demo-output"):
    out, console, started = Path(folder), Console(highlight=False), time.perf_counter()
    out.mkdir(exist_ok=True)
    ok = all([show(name, *PATTERNS[name], out, console) for name in PATTERNS])
    source = pc.compile(PATTERNS["streaming"][0]).source()
    (out / "streaming-kernels.py").write_text(source, encoding="utf-8")
    kernel = source[source.index("def forward(") :].split("@triton.jit")[0]
    console.rule("the forward kernel of the second pattern")
    console.print(kernel.rstrip(), markup=False, soft_wrap=True)
    console.rule()
    console.print(f"{time.perf_counter() - started:.0f} seconds; everything is in {out}:", markup=False, soft_wrap=True)
    for path in sorted(out.iterdir()):
        console.print(f"  {path.name}", markup=False)
    return 0 if ok else 1


def show(name: str, pattern: str, args: dict, out: Path, console: Console) -> bool:
    """Compile, run forward and backward at full length, verify against dense float64, and save what can be looked at."""
    console.rule(name)
    spec = pc.parse(pattern)
    attn = pc.compile(spec, num_heads=HEADS, head_dim=HEAD_DIM)
    report = attn.explain(N, heads=HEADS, head_dim=HEAD_DIM, **args)
    console.print(str(report), markup=False, soft_wrap=True)
    console.print(text(spec, N, **args))

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, N, HEAD_DIM, requires_grad=True) for _ in range(3))
    start = time.perf_counter()
    result = attn(q, k, v, **args)
    forward = time.perf_counter() - start
    result.square().mean().backward()
    total = time.perf_counter() - start
    finite = all(bool(x.isfinite().all()) for x in (result, q.grad, k.grad, v.grad))
    console.print(
        f"n = {N}, {HEADS} heads of {HEAD_DIM}: forward {forward:.2f} s, backward {total - forward:.2f} s on the CPU; all finite: {finite}",
        markup=False,
    )

    tables = io.StringIO()
    checked = verify(spec, args)
    with contextlib.redirect_stdout(tables):
        Console(width=110).print(checked.table())
    console.print(checked.table())
    (out / f"{name}-report.txt").write_text(f"{report}\n\n{tables.getvalue()}", encoding="utf-8")
    pc.plot(spec, N, path=out / f"{name}.png", **args)
    console.print(f"wrote {name}-report.txt and {name}.png", markup=False)
    return finite and checked.ok


def verify(spec, args: dict):
    """At full length, one head: the dense float64 reference then needs a few n x n matrices, which is what it is for."""
    return pc.verify(spec, sizes=[(N, N)], heads=1, kv_heads=1, head_dim=HEAD_DIM, batch=1, args=args, device="cpu", dtype=torch.float32, quiet=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
