"""The first call of a pattern in this process: `python -m patternc.bench.first_call PATTERN N LENGTH..` prints its times as JSON.

Counted is everything from the text to the results on the device, but no imports, and not the start of CUDA and of Triton.
"""

from __future__ import annotations

import json
import sys
import time


def inputs(n: int):
    """`(q, k, v, args)` on the device: tensors that need gradients, and runtime args that patterns may have.

    Without a device they are in float32, for Triton's interpreter.
    """
    import torch

    from patternc.bench.latency import DOCUMENT, HEAD_DIM, HEADS

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    q, k, v = (torch.randn(1, HEADS, n, HEAD_DIM, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v, {"ids": torch.arange(n, device=device, dtype=torch.int32) // DOCUMENT}


def of_spec(spec, args: dict) -> dict:
    """Those args that a pattern has."""
    from patternc.signature import signature

    return {name: x for name, x in args.items() if name in signature(spec)}


def measure(text: str, n: int, lengths: list[int]) -> dict:
    """Times and counts of `patternc.bench.latency.FirstRow`; calls at `lengths` should find their kernels."""
    import torch

    from patternc.bench.latency import HEAD_DIM, HEADS
    from patternc.codegen import timing
    from patternc.codegen.lengths import settle_all
    from patternc.compile import compile
    from patternc.parsing import parse
    from patternc.runtime import backend_module

    parse("full")
    backend_module("triton")
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def since(started: float) -> float:
        wait()
        return time.perf_counter() - started

    q, k, v, args = inputs(n)
    grad = torch.randn_like(v)
    other = torch.ones(1, device=grad.device, requires_grad=True)
    torch.autograd.grad(other * 2, other, torch.ones_like(other))  # torch imports what it needs for gradients only now
    (grad @ grad.mT).sum().item()
    started = time.perf_counter()
    if torch.cuda.is_available():
        timing.start()
    driver = since(started)
    with timing.compilations() as found:
        started = time.perf_counter()
        module = compile(text, "triton", num_heads=HEADS, head_dim=HEAD_DIM).to(q.device)
        out = module(q, k, v, **of_spec(module.spec, args))
        forward, started = since(started), time.perf_counter()
        torch.autograd.grad(out, (q, k, v), grad)
        backward, started = since(started), time.perf_counter()
        settle_all()
        rest, compiled = since(started), found.count(False)
        by_length = {}
        for length in lengths:
            found.clear()
            q, k, v, args = inputs(length)
            module(q, k, v, **of_spec(module.spec, args)).sum().backward()
            by_length[str(length)] = found.count(False)
    return {"driver_s": driver, "forward_s": forward, "backward_s": backward, "rest_s": rest, "compiled": compiled, "lengths": by_length}


if __name__ == "__main__":
    pattern, first, *later = sys.argv[1:]
    print(json.dumps(measure(pattern, int(first), [int(x) for x in later])))
