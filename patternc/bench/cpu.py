"""`patternc bench cpu`: the cpu backend beside dense masked attention and compiled FlexAttention, in one run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

TEXT = "causal & window(512)"
SHAPE = (1, 8, 8192, 64)  # batch, heads, length, head_dim


@dataclass
class Row:
    """One implementation: seconds, and how many times as long as patternc it takes."""

    implementation: str
    forward_s: float | None = None
    backward_s: float | None = None
    forward_ratio: float | None = None
    backward_ratio: float | None = None
    note: str = ""


def run(flex: bool = True, repeats: int = 5, progress=print) -> list[Row]:
    """Measure forward and backward in float32; the least of `repeats` times.

    Args:
        flex: also compile FlexAttention (this takes half a minute).
        progress: called with a line for every implementation.
    """
    import torch

    from patternc.compile import compile
    from patternc.parsing import parse

    pattern = parse(TEXT)
    torch.manual_seed(0)
    q, k, v = (torch.randn(SHAPE).requires_grad_() for _ in range(3))
    module, mask = compile(pattern, "cpu"), pattern.dense(SHAPE[2])
    implementations = {
        "patternc": lambda: module(q, k, v),
        "dense SDPA with a mask": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    }
    rows = [_measure(name, attend, (q, k, v), repeats) for name, attend in implementations.items()]
    if flex:
        rows.append(_flex(pattern, (q, k, v), repeats))
    for row in rows:
        row.forward_ratio = row.forward_s and row.forward_s / rows[0].forward_s
        row.backward_ratio = row.backward_s and row.backward_s / rows[0].backward_s
        figures = _show(row.forward_s, row.forward_ratio), _show(row.backward_s, row.backward_ratio)
        progress(f"{row.implementation:24s} forward {figures[0]}  backward {figures[1]} {row.note}")
    return rows


def _show(seconds: float | None, ratio: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f} s ({ratio:.2f}x)"


def _measure(name: str, attend, inputs, repeats: int, backward: bool = True) -> Row:
    import torch

    row = Row(name)
    with torch.no_grad():
        row.forward_s = _least(attend, repeats)
    if backward:
        out = attend()
        grad = torch.randn_like(out)
        row.backward_s = _least(lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True), repeats)
    return row


def _least(work, repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _flex(pattern, inputs, repeats: int) -> Row:
    """Compiled FlexAttention, whose CPU path has no backward."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from patternc.bench.peers import mask_mod

    name = "compiled FlexAttention"
    try:
        block_mask = create_block_mask(mask_mod(pattern, {}), None, None, SHAPE[2], SHAPE[2], device="cpu")
        attend = torch.compile(flex_attention, dynamic=False)
        q, k, v = (x.detach() for x in inputs)
        row = _measure(name, lambda: attend(q, k, v, block_mask=block_mask), inputs, repeats, backward=False)
        row.note = "no backward on a CPU"
        return row
    except Exception as error:  # a peer's failure is a result, whatever its kind
        return Row(name, note=f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}")


def as_json(rows: list[Row]) -> str:
    import torch

    return json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": [asdict(r) for r in rows]}, indent=1)
