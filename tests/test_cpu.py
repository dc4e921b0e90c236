"""The torch operations over tiles against the dense reference: exact part and tail, values and all gradients."""

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from strategies import HEADS, attentions, draw_args, patterns

import patternc as pc
from patternc import functional, reference, tail_tiles
from patternc.args import bind
from patternc.batches import batches_of
from patternc.errors import BackendError
from patternc.layout import layout
from patternc.samples import random_parameters
from patternc.tail import favor_projection, feature_gradient, feature_map

arg, q, k = pc.arg, pc.q, pc.k
SIZES = dict(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def inputs(n_q, n_k, heads=4, kv_heads=2, batch=2, d=8, dv=6, dtype=torch.float64, seed=0):
    """q, k, v: v with a mean, q and k peaked."""
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, n_q, d), (batch, kv_heads, n_k, d), (batch, kv_heads, n_k, dv)
    x = [torch.randn(s, generator=g, dtype=torch.float64) * f + m for s, f, m in zip(shapes, (2, 2, 1), (0, 0, 2))]
    return [t.to(dtype).requires_grad_() for t in x]


def agree(spec, n_q=70, n_k=None, args=None, tolerance=1e-10, options=None, leaves=(), **sizes):
    """Outputs, lse and gradients of both implementations; gradients that are exactly 0 in the reference are so here."""
    n_k, options = n_k or n_q, options or {}
    x = inputs(n_q, n_k, **sizes)
    leaves = [*x, *leaves]
    weight = torch.randn(x[0].shape[:3] + (1,), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for run in (functional.attention, reference.attention):
        out, lse = run(spec, *x, args, **options)
        some = torch.where(lse > -torch.inf, lse, 0.0)
        gradients = torch.autograd.grad((out * weight * out.detach().cos()).sum() + (some * weight[..., 0]).sum(), leaves, allow_unused=True)
        found.append((out, lse, *(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients))))
    for got, want in zip(*found):
        largest = torch.where(want.isfinite(), want, 0.0).detach().abs().max()
        torch.testing.assert_close(got, want, atol=tolerance * max(1.0, float(largest)), rtol=tolerance)
    return found[0]


window = pc.causal & pc.window(20)
EXACT = {
    "window": window, "causal": pc.causal, "full": pc.full, "empty": pc.empty, "two sides": pc.window(20),
    "sink": pc.causal & (pc.window(9) | pc.sink(3)), "longformer": pc.window(20) | pc.global_([5, 40]), "dilated": pc.causal & pc.dilate(3),
    "few rows": (k < 3) & (q > 40), "per head": pc.per_head(window, pc.causal, pc.full, pc.window(3)), "some heads": pc.heads([0, 2]) & window,
    "blocks": pc.block(8, back=1), "rolled": pc.block(16).roll(5), "outside": pc.table([1, 0, 1])[pc.min(q - k, 2)] == 1,
}


@pytest.mark.parametrize("sizes", [(70, 70), (30, 70), (1, 70), (300, 300)], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_exact(name, sizes):
    agree(EXACT[name], *sizes)


ids = torch.tensor([[0] * 20 + [1] * 30 + [2] * 20, [0] * 5 + [-1] * 5 + [1] * 60])
RUNTIME = {
    "documents": (pc.causal & pc.documents(arg("d")), dict(d=ids)),
    "shuffled": (pc.documents(arg("d")), dict(d=ids[0][torch.randperm(70, generator=torch.Generator().manual_seed(0))])),
    "valid": (pc.valid(arg("m")), dict(m=[30, 0])),
    "width": (pc.window(arg("w")), dict(w=[3, 50])),
    "tokens": (window | pc.global_(arg("t")), dict(t=[[3, 60], [-1, 7]])),
}


@pytest.mark.parametrize("case", RUNTIME)
def test_runtime_args(case):
    spec, args = RUNTIME[case]
    agree(spec, 70, args=args)
    agree(spec + pc.linear_tail(norm="none"), 40, 70, args=args)


def test_q_start():
    for start in (0, 40, torch.tensor([3, 40])):
        agree(window, 30, 70, options=dict(q_start=start))
        agree(pc.causal & (pc.window(20) + pc.linear_tail), 30, 70, options=dict(q_start=start))
    agree(window, 90, 70, options=dict(q_start=10))


@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (4, 4), (4, 1)])
def test_shared_heads(heads, kv_heads):
    agree(window, heads=heads, kv_heads=kv_heads)
    agree(pc.causal & (pc.window(20) + pc.linear_tail), heads=heads, kv_heads=kv_heads)


def test_strides_and_dtypes():
    x = [t.detach() for t in inputs(70, 70)]
    want = functional.attention(window, *x)[0]
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in x]
    torch.testing.assert_close(functional.attention(window, *strided)[0], want)
    apart = [torch.stack([t, t], -1)[..., 0] for t in x]
    torch.testing.assert_close(functional.attention(window, *apart)[0], want)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out, lse = functional.attention(window, *(t.to(dtype) for t in x))
        assert out.dtype == dtype and lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), want, atol=64 * torch.finfo(dtype).eps, rtol=0)


def test_windows_are_few_batches_of_views():
    found = layout(window, bind(window, {}, 1000), (16, 16))
    batches = batches_of(found.groups[0])
    assert len(batches) <= 5 and max(b.count for b in batches) >= 59
    assert all(b.keys is None for b in batches)
    assert all(len(classes) == 1 for b in batches for _, _, classes in b.partial)


def test_small_budget(monkeypatch):
    """Pieces of heads and rows give what whole batches give."""
    for budget in (40, 2000):
        monkeypatch.setattr("patternc.batches.BUDGET", budget)
        for name in ("window", "longformer", "per head"):
            agree(EXACT[name], 24)


TERMS = [
    dict(), dict(feature="elu+1", norm="denominator"), dict(feature="relu", norm="none"), dict(feature="favor+", norm="denominator"),
    dict(feature="identity", norm="rms"), dict(initial_state=True), dict(feature="elu+1", norm="denominator", initial_state=True),
    dict(feature=lambda x: x.square(), norm="none"),
]
TAILS = {
    "rattention": pc.causal & pc.window(left=20, right=0), "sink": pc.causal & (pc.window(20) | pc.sink(3)), "two sides": pc.window(20),
    "longformer": pc.window(20) | pc.global_([5, 40]), "chunks": pc.causal & pc.block(16), "bands": pc.causal & (q // 16 % 2 != k // 16 % 2),
    "dilated": pc.causal & pc.window(20) & pc.dilate(4), "nothing": pc.empty, "everything": pc.full,
    "per head": pc.per_head(window, pc.causal, pc.full, pc.window(3)),
}


def with_parameters(term, heads=4, d=8, dv=6):
    """Options and leaves for random parameters of a term."""
    drawn = random_parameters(term, heads, d, dv, torch.Generator().manual_seed(3))
    drawn = {name: x.double().requires_grad_(name != "projection") for name, x in drawn.items()}
    return dict(options=drawn, leaves=[x for x in drawn.values() if x.requires_grad])


@pytest.mark.parametrize("term", TERMS, ids=lambda t: " ".join(str(getattr(x, "__name__", x)) for x in t.values()) or "default")
def test_tail_terms(term):
    term = pc.linear_tail(**term)
    agree(pc.causal & (pc.window(20) + term), 70, **with_parameters(term))
    agree(pc.causal & (pc.window(20) + term), 40, 70, **with_parameters(term))


@pytest.mark.parametrize("domain", ["causal", "full"])
@pytest.mark.parametrize("name", TAILS)
def test_tail_patterns(name, domain):
    over = getattr(pc, domain)
    for norm in ("none", "rms"):
        term = pc.linear_tail(norm=norm)
        agree(over & (TAILS[name] + term), 150, **with_parameters(term))


def test_tail_in_small_pieces(monkeypatch):
    monkeypatch.setattr(tail_tiles, "CHUNK", 5000)
    monkeypatch.setattr("patternc.tail.STATES", 3000)
    for name in ("longformer", "bands"):
        agree(TAILS[name] + pc.linear_tail(norm="none"), 300)


def test_separate_queries_and_keys_of_the_tail():
    g = torch.Generator().manual_seed(2)
    tail_q, tail_k = (torch.randn(2, h, 70, 5, dtype=torch.float64, generator=g, requires_grad=True) for h in (4, 2))
    agree(pc.causal & (pc.window(20) + pc.linear_tail), options=dict(tail_q=tail_q, tail_k=tail_k), leaves=(tail_q, tail_k))


def test_sinks_cost_the_tail_no_partial_tiles():
    """Keys that R never uses are zeroed, so their tiles are full but for them, and the row reads one running sum."""
    rest = pc.causal & ~(pc.window(32) | pc.sink(3))
    plan = tail_tiles.TailPlan.of_group(layout(rest, bind(rest, {}, 512), (32, 32)).groups[0])
    assert len(plan.partial) <= 2 * 16 and len(plan.middle[0]) == 0 and plan.live_keys.reshape(-1)[:3].tolist() == [False] * 3


def test_rows_without_keys_are_exactly_zero():
    spec = (pc.causal & (q >= 30) & (k >= 7)) & (pc.window(5) + pc.linear_tail)
    out, lse, dq, dk, dv = agree(spec, 70)
    assert (out[:, :, :30] == 0).all() and (lse[:, :, :30] == -torch.inf).all()
    assert (dq[:, :, :30] == 0).all() and (dk[:, :, :7] == 0).all() and (dv[:, :, :7] == 0).all()


def test_short_runs_late_in_a_long_sequence():
    """Float32 error stays at rounding where a difference of running sums would lose digits."""
    ids = torch.arange(4096) // 100
    x = [t[..., :16] for t in inputs(4096, 4096, 1, 1, 1, 16, 16, torch.float32)]
    x[2] = x[2] + 100
    spec = pc.documents(arg("d")) & pc.causal & (pc.window(10) + pc.linear_tail(norm="none"))
    got, want = (run(spec, *x, dict(d=ids))[0].double() for run in (functional.attention, reference.attention))
    assert ((got - want).abs() / want.abs().clamp_min(1)).max() < 1e-5


@settings(**SIZES)
@given(patterns(), st.data())
def test_random_patterns(p, data):
    n_k = data.draw(st.integers(1, 40))
    n_q = data.draw(st.integers(1, n_k))
    agree(p, n_q, n_k, draw_args(data.draw, p, n_q, n_k, HEADS, 2), heads=HEADS, kv_heads=1, d=4)


@settings(**SIZES)
@given(attentions(), st.data())
def test_random_attentions(p, data):
    n_k = data.draw(st.integers(1, 40))
    n_q = data.draw(st.integers(1, n_k))
    if p.term.feature == "identity" and p.term.norm == "denominator":
        return  # its denominator passes through 0
    parameters = with_parameters(p.term, HEADS, 4, 6)
    agree(p, n_q, n_k, draw_args(data.draw, p, n_q, n_k, HEADS, 2), 1e-7, heads=HEADS, kv_heads=1, d=4, **parameters)


@pytest.mark.parametrize(
    "spec", [window, pc.causal & (pc.window(3) + pc.linear_tail), pc.window(2) + pc.linear_tail("elu+1", "denominator")], ids=str,
)
def test_gradcheck(spec):
    x = [t.detach()[..., :3].clone().requires_grad_() for t in inputs(9, 9, 2, 1, 1)]
    assert torch.autograd.gradcheck(lambda q, k, v: functional.attention(spec, q, k, v), x)


def test_no_double_backward():
    x = inputs(9, 9)
    for spec in (window, pc.empty + pc.linear_tail(norm="none")):
        (gradient,) = torch.autograd.grad(functional.attention(spec, *x)[0].sum(), x[2:], create_graph=True)
        with pytest.raises(BackendError, match="second derivatives are not supported\nfix: "):
            gradient.sum().backward()


def test_favor_projection():
    w = favor_projection(16, 40, seed=3)
    assert w.shape == (40, 16) and (favor_projection(16, 40, seed=3) == w).all() and favor_projection(16).shape == (44, 16)
    block = w[:16] / w[:16].norm(dim=1, keepdim=True)
    torch.testing.assert_close(block @ block.T, torch.eye(16), atol=1e-5, rtol=0)


MEMORY = """
import resource, torch, patternc as pc
from patternc import functional
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def run(n):
    x = [torch.randn(1, 1, n, 16, requires_grad=True) for _ in range(3)]
    for spec in (pc.causal & pc.window(512), pc.causal & (pc.window(left=511, right=0) + pc.linear_tail)):
        functional.attention(spec, *x)[0].sum().backward()
run(1024)
before = peak()
run(32768)
print(peak() - before)
"""


def test_memory_is_linear():
    """Forward and backward at 32k tokens: a dense mask alone would be 1 GiB, scores 4 GiB."""
    added = float(subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout)
    assert added < 250, f"{added:.0f} MiB"


@pytest.mark.parametrize("feature", ["softmax", "elu+1", "relu", "identity"])
def test_feature_gradients(feature):
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    y = feature_map(feature)(x)
    d = torch.randn_like(y)
    torch.testing.assert_close(feature_gradient(feature, x.detach(), d), torch.autograd.grad((y * d).sum(), x)[0])
