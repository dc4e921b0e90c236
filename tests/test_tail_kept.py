"""Calls with a term: what the first one decides serves those of equal layouts, and no others."""

import pytest
import torch
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc import runtime
from patternc.codegen import tail_launch

pytestmark = MARKS
N, HEADS, KV_HEADS, D = 24, 2, 2, 8
TERMS = {"norms": "causal & (window(5) + linear_tail)", "alone": 'causal & (empty + linear_tail(feature="elu+1", norm="denominator"))'}
IDS = "causal & documents(ids) & (window(5) + linear_tail)"


def inputs(dtype=torch.float32, strided=False, kv_heads=KV_HEADS):
    shapes = (HEADS, N), (kv_heads, N), (kv_heads, N)
    rows = (torch.randn(1, n, h, D).transpose(1, 2) if strided else torch.randn(1, h, n, D) for h, n in shapes)
    return [x.to(DEVICE, dtype).requires_grad_() for x in rows]


def results(text, backend, rows, **args):
    rows = [x.detach().double().requires_grad_() for x in rows] if backend == "reference" else rows
    out = pc.compile(text, backend, num_heads=HEADS, head_dim=D).to(DEVICE)(*rows, **args)
    return out, *torch.autograd.grad(out, rows, torch.ones_like(out))


def right(text, rows, tolerance=2e-3, **args):
    for a, b in zip(results(text, "triton", rows, **args), results(text, "reference", rows, **args)):
        torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


@pytest.fixture
def runs(monkeypatch):
    """How often kernels are chosen for a call."""
    chosen, plain = [], tail_launch._Run
    monkeypatch.setattr(tail_launch, "_Run", lambda *given: chosen.append(1) or plain(*given))
    for text in (*TERMS.values(), IDS):
        for name in ("bound", "bound data"):
            monkeypatch.setitem(runtime.compiled(pc.parse(text)).state, name, {})
    return chosen


@pytest.mark.parametrize("name", TERMS)
def test_chosen_once_for_a_layout(runs, name):
    torch.manual_seed(0)
    for _ in range(3):
        right(TERMS[name], inputs())
        assert len(runs) == 2  # a forward and a backward
    for i, other in enumerate((dict(strided=True), dict(kv_heads=1), dict(dtype=torch.float16)), 2):
        for _ in range(2):
            right(TERMS[name], inputs(**other), 2e-2 if "dtype" in other else 2e-3)
            assert len(runs) == 2 * i
    right(TERMS[name], inputs())
    assert len(runs) == 8


def test_chosen_again_where_args_were_written_to(runs, monkeypatch):
    monkeypatch.setattr(runtime, "seen", lambda x: True)  # as on a card, where numpy writes to no tensor
    torch.manual_seed(0)
    ids = torch.arange(N, device=DEVICE, dtype=torch.int32) // 15
    for step in (1, 0, 3):
        ids += torch.arange(N, device=DEVICE, dtype=torch.int32) // 9 * step
        before = len(runs)
        for _ in range(2):
            right(IDS, inputs(), ids=ids)
        assert len(runs) == before + 2


def test_the_precision_of_products_is_part_of_a_call(runs):
    rows, plain = inputs(), torch.backends.cuda.matmul.allow_tf32
    try:
        for i, allowed in enumerate((False, True, False)):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            results(TERMS["norms"], "triton", rows)
            assert len(runs) == (2, 4, 4)[i]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = plain
