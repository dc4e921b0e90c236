"""Small launches of every kernel, for compute-sanitizer: `python tests/sanitized.py CASE`, a key of `CASES`."""

import sys
from dataclasses import replace
from functools import partial

import torch

import patternc as pc
from patternc.args import bind
from patternc.codegen import hopper_choice, tail_pass_launch
from patternc.codegen.backend import call_of
from patternc.codegen.fused import covers
from patternc.codegen.fused_order import QUERIES
from patternc.codegen.launch import attention_backward, attention_forward
from patternc.runtime import compiled

N, WIDTH = 200, 64
PATTERNS = {
    "causal": "causal & window(50)",
    "lists": "random_blocks(2, 32, seed=0) | window(30)",
    "tables": "causal & documents(ids)",
    "boxes": "causal & dilate(4) & window(120)",
    "groups of heads": "(h % 2 == 0) & causal & window(40) | (h % 2 == 1) & causal & dilate(8)",
    "parts": "causal & (window(20) | dilate(16))",
    "global rows": "window(left=10, right=10) | global(3)",
}
TERMS = {
    "prefix": "causal & (window(32) + linear_tail)",
    "two sides": 'window(20) + linear_tail(feature="elu+1", norm="denominator")',
    "block sums": "causal & (dilate(4) & window(64) + linear_tail)",
}
ONE_PASS = {"prefix": 'causal & (window(32) + linear_tail(norm="none"))', "two sides": 'window(20) + linear_tail(feature="elu+1", norm="none")'}


def inputs(n_q=N, n_k=N, width=WIDTH):
    return [torch.randn(1, h, n, width, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h, n in ((4, n_q), (2, n_k), (2, n_k))]


def args_of(text, n):
    return {"ids": torch.arange(n, device="cuda", dtype=torch.int32) // 70} if "ids" in text else {}


def whole(text, n_q=N, n_k=N):
    rows = inputs(n_q, n_k)
    out = pc.compile(text, "triton", num_heads=4, head_dim=WIDTH).cuda()(*rows, **args_of(text, rows[1].shape[2]))
    out.float().square().sum().backward()


def by_variant(text, variant, width=WIDTH):
    """One kernel of each kind; of those for Hopper, the forward and where there is one the backward."""
    q, k, v = (x.detach() for x in inputs(width=width))
    p = pc.parse(text)
    call = replace(call_of(compiled(p), 0.1, bind(p, args_of(text, N), N, heads=4), q, k, v), plan=compiled(p).plan, variant=variant)
    o, lse = attention_forward(call, q, k, v)
    if variant != "hopper" or width in QUERIES and covers(call.plan) is None:
        attention_backward(call, q, k, v, o, lse, torch.ones_like(o))


def few_processors(text):
    """The forward for Hopper, three consumers and programs that stay, as if the card had few processors: each takes row tiles in an order."""
    hopper_choice.processors = lambda device: 4
    q, k, v = (torch.randn(2, 4, 800, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    call = replace(call_of(compiled(pc.parse(text)), 0.1, bind(pc.parse(text), {}, 800, heads=4, batch=2), q, k, v), variant="hopper")
    attention_forward(call, q, k, v)


def one_pass(text):
    """The kernels of a term that go through many slots, and those that sum slots before, as if the card had few processors."""
    tail_pass_launch.processors = lambda device: 16
    rows = [torch.randn(2, h, n, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h, n in ((4, 1100), (2, 1300), (2, 1300))]
    pc.compile(text, "triton")(*rows).float().square().sum().backward()


VARIANTS = ["pointers", "descriptors", "hopper"]
CASES = {
    **{f"{name}, {variant}": partial(by_variant, PATTERNS[name], variant) for name in ("causal", "tables", "lists") for variant in VARIANTS},
    **{f"causal of width {width}, hopper": partial(by_variant, PATTERNS["causal"], "hopper", width) for width in (128, 256)},
    **{name: partial(whole, text) for name, text in (PATTERNS | TERMS).items()},
    **{f"{name}, one pass": partial(one_pass, text) for name, text in ONE_PASS.items()},
    **{f"{name} in an order, hopper": partial(few_processors, text) for name, text in (("row tiles", "causal"), ("lines", "causal & dilate(8)"))},
    "cut into pieces": partial(whole, "causal", n_q=1, n_k=2200),
    "long rows": partial(whole, "window(left=10, right=10) | global(3)", n_q=2200, n_k=2200),
}


if __name__ == "__main__":
    CASES[sys.argv[1]]()
    torch.cuda.synchronize()
