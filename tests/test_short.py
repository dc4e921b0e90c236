"""Few queries over many keys: heads that share keys are rows of one tile, and rows are cut into pieces; beside dense float64."""

import numpy as np
import pytest
import torch
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc import balance, runtime
from patternc.args import bind
from patternc.balance import Costs, schedule
from patternc.codegen import backend, ready, short
from patternc.codegen.backend import call_of
from patternc.codegen.pieces import workspace

pytestmark = MARKS

PATTERNS = [
    "causal", "full", "causal & window(600)", "causal & (window(200) | sink(4))", "causal & documents(ids)", "causal & valid(m)", "causal & (q % 3 == k % 3)",
    "(h % 2 == 0) & causal | (h % 2 == 1) & window(90)", "causal & (k < n_q + 400)", "empty", "random_blocks(1, 64, seed=0) & causal",
]  # fmt: skip
N_K = 800


@pytest.fixture
def sooner(monkeypatch):
    """What is long begins at a quarter of the usual length, so that less is interpreted."""
    for where, name, value in ((short, "LEAST_KEYS", 512), (short, "LONG_ALONE", 8), (balance, "LONG_ALONE", 8), (balance, "LEAST_PIECE", 2)):
        monkeypatch.setattr(where, name, value)


SHAPES = [(1, 4, 1), (3, 4, 2), (16, 2, 1), (5, 2, 2), (9, 4, 1)]  # queries, heads, key heads
WITH_GRADIENTS = ("causal & window(600)", "causal & documents(ids)")
CASES = [  # those with gradients in all shapes, the others with one query and with one of the other shapes, in turn
    (text, *shape) for i, text in enumerate(PATTERNS) for shape in (SHAPES if text in WITH_GRADIENTS else (SHAPES[0], SHAPES[1 + i % 4]))
]  # fmt: skip


@pytest.mark.parametrize("text, n_q, heads, kv_heads", CASES)
def test_few_queries(sooner, text, n_q, heads, kv_heads):
    p, n_k = pc.parse(text), N_K
    g = torch.Generator().manual_seed(0)
    batch = 2 if n_q == 1 else 1
    q, k, v = (torch.randn(batch, h, n, 16, generator=g).to(DEVICE).requires_grad_() for h, n in ((heads, n_q), (kv_heads, n_k), (kv_heads, n_k)))
    args = {"ids": torch.arange(n_k, device=DEVICE) // 150, "m": torch.arange(n_k, device=DEVICE) % 7 > 1}
    args = {name: x for name, x in args.items() if f"({name})" in text or f'"{name}"' in str(p)}
    out, lse = pc.compile(p, "triton")(q, k, v, return_lse=True, **args)
    want, want_lse = pc.compile(p, "reference")(*(x.double() for x in (q, k, v)), return_lse=True, **args)
    tolerance = 2e-3 if DEVICE == "cuda" else 2e-5
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), want_lse, atol=tolerance, rtol=tolerance)
    assert out.is_contiguous() and lse.shape == (batch, heads, n_q)
    if text in WITH_GRADIENTS:
        weights = torch.randn(want.shape, generator=g, dtype=torch.float64).to(DEVICE)
        for a, b in zip(*(torch.autograd.grad((x.double() * weights).sum(), [q, k, v]) for x in (out, want))):
            torch.testing.assert_close(a, b, atol=10 * tolerance, rtol=10 * tolerance)


def test_other_numbers_of_key_heads(sooner):
    """Calls of one pattern that differ in nothing else."""
    ours, reference = pc.compile("causal", "triton"), pc.compile("causal", "reference")
    for kv_heads in (2, 4, 1):
        q, k, v = (torch.randn(1, h, n, 16, device=DEVICE) for h, n in ((4, 6), (kv_heads, N_K), (kv_heads, N_K)))
        torch.testing.assert_close(ours(q, k, v), reference(q, k, v), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("n_q, heads, kv_heads", [(1, 4, 1), (5, 2, 2)])
@pytest.mark.parametrize("text", ["causal", "causal & (window(700) | sink(4))", "causal & window(600) & documents(ids)"])
def test_positions_that_only_a_tensor_says(sooner, monkeypatch, text, n_q, heads, kv_heads):
    """As with a cache that is as long as it may become: rows are cut though nobody knows how many tiles they visit."""
    n_k = N_K
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 16, generator=g).to(DEVICE) for h, n in ((heads, n_q), (kv_heads, n_k), (kv_heads, n_k)))
    args = {"ids": torch.arange(n_k, device=DEVICE) // 150} if "ids" in text else {}
    start, cut = torch.tensor([790, 77], device=DEVICE), []
    monkeypatch.setattr(ready, "workspace", lambda *given: cut.append(given) or workspace(*given))
    out = pc.compile(text, "triton")(q, k, v, q_start=start, **args)
    want = pc.compile(text, "reference")(*(x.double() for x in (q, k, v)), q_start=start, **args)
    tolerance = 2e-3 if DEVICE == "cuda" else 2e-5
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    assert cut


@pytest.mark.parametrize("text, packs", [("causal", True), ("causal & documents(ids)", True), ("causal & (h > 0)", False), ("k < n_q", False), ("causal & window(500)", False)])
def test_which_heads_are_taken_together(text, packs):
    p = pc.parse(text)
    args = {"ids": torch.zeros(3000, dtype=torch.int32)} if "ids" in text else {}
    made = runtime.compiled(p)
    assert short.packs(made, bind(p, args, 1, 3000, heads=8), 8, 2) == packs
    assert not short.packs(made, bind(p, args, 1, 3000, heads=8), 8, 8)  # nothing is shared
    assert not short.packs(made, bind(p, args, 17, 3000, heads=8), 8, 2)  # too many rows
    assert not short.packs(made, bind(p, {**args, **({"ids": args["ids"][:1000]} if args else {})}, 1, 1000, heads=8), 8, 2)  # too few keys


def test_rows_and_heads():
    q = torch.arange(2 * 8 * 3 * 5).reshape(2, 8, 3, 5)
    rows = short.as_rows(q, 4)
    assert rows.shape == (2, 2, 12, 5) and torch.equal(rows[1, 1, 2 * 4 + 3], q[1, 4 + 3, 2])
    assert torch.equal(short.as_heads(rows, 4), q) and torch.equal(short.as_heads(rows[..., 0], 4), q[..., 0])
    assert short.as_rows(q[:, :, :1].contiguous(), 4).shape == (2, 2, 4, 5)


def test_one_row_tile_is_cut():
    """A few programs would leave most of a card idle."""
    p = pc.parse("causal")
    q, k = torch.empty(1).expand(1, 4, 1, 128), torch.empty(1).expand(1, 1, 65536, 128)
    made, bound = short.packed(runtime.compiled(p), bind(p, {}, 1, 65536, heads=4), 4)
    call = call_of(made, 1.0, bound, short.as_rows(q, 4), k, k)
    assert call.height == 16 and str(made.exact) == "k <= q // 4"
    costs = Costs(1.0, 1.5, 2.0, 1.0, 5.0)
    found = schedule(np.array([[1024.0]]), 8, costs, 132)
    assert found.cuts == len(found.entries) == 33  # two programs a processor
    assert schedule(np.array([[64.0]]), 1, costs, 132).cuts == 8  # no shorter pieces than 8 tiles
    assert schedule(np.array([[20.0]]), 1, costs, 132) is None
    assert schedule(np.array([[1024.0]]), 64, costs, 132).cuts == 4  # 256 programs run at once, 320 would take twice as long
    assert schedule(np.array([[1024.0]]), 100, costs, 132).cuts == 5  # 200 would leave processors idle: two turns


def test_a_cache_that_grows_asks_little_anew(sooner, monkeypatch):
    """How many tiles rows visit is asked at lengths rounded up."""
    p, asked = pc.parse("causal & window(601)"), []
    for where in (short, backend):
        monkeypatch.setattr(where, "row_tiles", lambda *given, plain=where.row_tiles: asked.append(given) or plain(*given))
    for n_k in range(700, 704):
        q, k = torch.randn(1, 4, 1, 16, device=DEVICE), torch.randn(1, 1, n_k, 16, device=DEVICE)
        pc.compile(p, "triton")(q, k, k)
    assert len(asked) == 2  # whether rows are long, and the schedule
