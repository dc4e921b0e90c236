"""The kernels against dense attention, interpreted where there is no GPU: runs, shapes, strides, dtypes."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_check import (
    DEVICE,
    K_LAST,
    MARKS,
    Q_LAST,
    SMALL,
    by_head,
    causal,
    check,
    everywhere,
    formula,
    q_and_k,
    streaming,
    window,
)  # fmt: skip

import patternc as pc
from patternc.codegen import matrices
from patternc.codegen.launch import Call, attention_backward, attention_forward
from patternc.expr.pattern import FULL
from patternc.plan import Q_START, Plan

pytestmark = MARKS


@pytest.mark.parametrize("n", [1, 16, 47, 100])
def test_causal(n):
    q, k = q_and_k(n, n)
    check(causal, k <= q, n)


@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])])
def test_half_precision(dtype):
    q, k = q_and_k(100, 100)
    check(causal, k <= q, 100, d=32, dtype=dtype)


@pytest.mark.parametrize("w", [1, 20, 64])
@pytest.mark.parametrize("n", [33, 150])
def test_window(n, w):
    q, k = q_and_k(n, n)
    check(window(w), (k <= q) & (q - k < w), n)


@pytest.mark.parametrize("ascending", [True, False])
def test_two_runs(ascending):
    q, k = q_and_k(140, 140)
    check(streaming(30, 4, ascending), (k <= q) & ((q - k < 30) | (k < 4)), 140)


def test_full_and_empty():
    q, k = q_and_k(70, 50, 0)
    full = Plan(FULL, formula((0, K_LAST, 0, K_LAST)), formula((Q_START, Q_LAST, Q_START, Q_LAST)))
    check(full, (q + k >= 0), 70, 50, start=0)
    nothing = Plan(pc.empty, formula(), formula())
    check(nothing, torch.zeros(1, dtype=torch.bool), 20)
    check(everywhere(pc.empty), torch.zeros(1, dtype=torch.bool), 20)


def test_rows_without_keys_and_masked_first_tiles():
    q, k = q_and_k(90, 90)
    check(everywhere((pc.q % 5 == 0) & (pc.k > 60)), (q % 5 == 0) & (k > 60), 90)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 1)])
@pytest.mark.parametrize("d, dv", [(40, 40), (80, 24)])
def test_grouped_heads_and_widths(heads, kv_heads, d, dv):
    q, k = q_and_k(50, 50)
    check(causal, k <= q, 50, batch=2, heads=heads, kv_heads=kv_heads, d=d, dv=dv)


def test_by_head():
    q, k = q_and_k(60, 60)
    h = torch.arange(4)[:, None, None]
    check(by_head(), (k <= q) & (q - k <= 7 * h), 60, heads=4, kv_heads=2)
    mask = pc.per_head(pc.causal, pc.full, pc.empty, pc.k < 3)
    allowed = torch.stack(torch.broadcast_tensors(k <= q, q + k >= 0, q < 0, k < 3))
    check(everywhere(mask), allowed, 60, heads=4)


@pytest.mark.parametrize("n_q, n_k", [(1, 90), (20, 90), (37, 64)])
def test_fewer_queries_than_keys(n_q, n_k):
    q, k = q_and_k(n_q, n_k)
    check(window(25), (k <= q) & (q - k < 25), n_q, n_k)


@pytest.mark.parametrize("start", [0, 11, 200])
def test_start(start):
    q, k = q_and_k(40, 70, start)
    check(window(25), (k <= q) & (q - k < 25), 40, 70, start=start)


def test_start_by_batch_row():
    start = torch.tensor([3, 30], dtype=torch.int32, device=DEVICE)
    q = start.cpu()[:, None, None, None] + torch.arange(40)[:, None]
    k = torch.arange(70)
    check(causal, k <= q, 40, 70, batch=2, start=start)


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.3])
def test_scale(scale):
    q, k = q_and_k(40, 40)
    check(causal, k <= q, 40, scale=scale)


def test_strides():
    q, k = q_and_k(50, 50)
    check(window(20), (k <= q) & (q - k < 20), 50, batch=2, layout="bnhd")
    x = torch.randn(1, 2, 16, 50, device=DEVICE).mT  # the last stride is not 1
    contiguous = attention_forward(Call(causal, 0.25, configs=SMALL), x.contiguous(), x.contiguous(), x.contiguous())
    matrices._warn_copy.cache_clear()  # it is said once in a process, perhaps in another test
    with pytest.warns(UserWarning, match="last stride"):
        for one, other in zip(attention_forward(Call(causal, 0.25, configs=SMALL), x, x, x), contiguous):
            assert torch.equal(one, other)


def test_padding_never_leaks():
    """Keys and values beyond n_k are NaN in memory."""
    store = torch.full((1, 2, 64, 16), math.nan, device=DEVICE)
    part = store[:, :, :50]
    part.copy_(torch.randn(1, 2, 50, 16))
    made = Call(causal, 0.25, configs=SMALL)
    o, lse = attention_forward(made, part, part, part)
    results = [o, lse, *attention_backward(made, part, part, part, o, lse, torch.ones_like(o))]
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("variant", ["descriptors", "rows"])
def test_variants(variant):
    n = 96 if variant == "rows" else 90
    q, k = q_and_k(n, n)
    check(streaming(30, 4), (k <= q) & ((q - k < 30) | (k < 4)), n, batch=2, heads=4, kv_heads=2, d=32, dv=16, variant=variant)


def test_offsets_beyond_32_bits():
    """Two heads that lie more than 2^31 elements apart, in memory that is reserved and hardly touched."""
    far = 2**31 + 4096
    store = torch.zeros(1, dtype=torch.float16, device=DEVICE).untyped_storage().resize_(2 * (far + 4096))
    x = torch.empty(0, dtype=torch.float16, device=DEVICE).set_(store, 0, (1, 2, 20, 16), (2 * far, far, 16, 1))
    x.copy_(torch.randn(1, 2, 20, 16))
    near = x.clone(memory_format=torch.contiguous_format)
    for one, other in zip(attention_forward(Call(causal, 0.25, configs=SMALL), x, x, x), attention_forward(Call(causal, 0.25, configs=SMALL), near, near, near)):
        assert torch.equal(one, other)
