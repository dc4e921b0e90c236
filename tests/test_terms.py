"""Attentions with a term by kernels beside the reference: modules, slices of wide heads, traced calls."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc import functional, reference, runtime, tail_runtime
from patternc.codegen import backend, tail_configs
from patternc.codegen.tail_configs import TailConfig, TailConfigs
from patternc.codegen.tail_text import KERNELS

pytestmark = MARKS
causal, arg = pc.causal, pc.arg


TERMS = {
    "rattention": causal & (pc.window(left=9, right=0) + pc.linear_tail),
    "performer": causal & (pc.empty + pc.linear_tail(feature="favor+", norm="denominator", num_features=20)),
    "initial state": causal & (pc.window(5) + pc.linear_tail(feature="elu+1", norm="none", initial_state=True)),
    "initial state and sums": causal & (pc.window(5) | pc.sink(2) + pc.linear_tail(norm="denominator", initial_state=True)),
    "documents": pc.documents(arg("d")) & causal & (pc.window(9) + pc.linear_tail(initial_state=True)),
    "two sides": pc.window(4) + pc.linear_tail(norm="denominator"), "nothing": causal & (causal + pc.linear_tail),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms(name):
    """Outputs and gradients of q, k, v, the term's own q and k, scales and initial state, against the reference."""
    args = {"d": torch.tensor([0] * 1 + [1] * 20 + [2] * 9 + [7] * 10, device=DEVICE)} if name == "documents" else None
    dtype = torch.float16 if name == "rattention" else torch.float32
    pc.verify(TERMS[name], backend="triton", device=DEVICE, dtype=dtype, sizes=[40 if args else 30], heads=2, kv_heads=1, head_dim=16, batch=1, args=args, quiet=True, raise_error=True)


@st.composite
def terms(draw):
    """An attention whose pairs outside its exact part are one or two scans."""
    w, n = draw(st.integers(0, 30)), draw(st.integers(1, 30))
    exact = draw(st.sampled_from([pc.empty, pc.window(left=w, right=0), pc.window(w + 1) | pc.sink(n % 4), pc.block(n), pc.window(n) | pc.rows(range(n, n + 5))]))
    domain = draw(st.sampled_from([causal, causal & pc.documents(arg("ids"))] + [pc.k <= pc.q + n] * (exact is pc.empty)))
    if draw(st.booleans()):
        exact, domain = draw(st.sampled_from([pc.window(left=w, right=n), pc.window(left=w, right=n) | pc.global_(n % 3)])), pc.full
    norm = draw(st.sampled_from(["rms", "none", "denominator"]))
    feature = draw(st.sampled_from(["softmax", "elu+1", "relu", "favor+"] + ["identity"] * (norm != "denominator")))
    return domain & (exact + pc.linear_tail(feature=feature, norm=norm, initial_state=draw(st.booleans())))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(terms(), st.data())
def test_drawn_terms(spec, data):
    """Patterns, features, norms, groups and lengths: outputs and all gradients against float64."""
    n = data.draw(st.integers(5, 50))  # of one key alone, gradients of a quotient are rounding errors
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (2, 1), (4, 2)]))
    ids = torch.tensor(sorted(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))))
    args = {"ids": ids} if "ids" in str(spec) else None
    shapes = dict(heads=heads, kv_heads=kv_heads, head_dim=data.draw(st.sampled_from([8, 16])), value_dim=data.draw(st.sampled_from([8, 24])), batch=1)
    pc.verify(spec, backend="triton", device=DEVICE, dtype=torch.float32, sizes=[n], args=args, quiet=True, raise_error=True, **shapes)


def test_wide_heads_run_in_slices(monkeypatch):
    monkeypatch.setattr(tail_runtime, "WIDEST", 16)
    monkeypatch.setattr(tail_configs, "choose", lambda *_: TailConfigs(32, dict.fromkeys(KERNELS, TailConfig(16, 16, 16, 4, 1))))
    q, k, v = (torch.randn(1, 1, 20, 24) for _ in range(3))
    for spec in (causal & (pc.window(3) + pc.linear_tail(norm="denominator")), causal & (pc.window(3) + pc.linear_tail(lambda x: x.sigmoid(), "none"))):
        monkeypatch.setitem(runtime.compiled(spec).state, "bound", {})  # configurations are kept there
        x = [t.to(DEVICE).requires_grad_() for t in (q, k, v)]
        runs = [functional.attention(spec, *x, backend="triton")[0], reference.attention(spec, *x)[0].to(q.dtype)]
        torch.testing.assert_close(*runs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(*(torch.autograd.grad((y * y.detach().cos()).sum(), x) for y in runs), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("own", ["", "q", "qk"])
def test_traced_and_eager_agree(own):
    """Both parts and their norms are one operator, with ids, and with the term's own q and k."""
    spec = causal & pc.documents(arg("d")) & (pc.window(left=5, right=0) + pc.linear_tail)
    module = pc.compile(spec, "triton", num_heads=2, head_dim=16).to(DEVICE)
    x = [torch.randn(1, h, 24, 16, device=DEVICE, requires_grad=True) for h in (2, 1, 1)]
    more = {f"tail_{n}": torch.randn(1, h, 24, 12, device=DEVICE, requires_grad=True) for n, h in (("q", 2), ("k", 1)) if n in own}
    if own == "q":
        more["tail_q"] = torch.randn_like(x[0], requires_grad=True)
    ids, leaves, nodes = torch.arange(24, device=DEVICE) // 15, [*x, *more.values(), *module.parameters()], []

    def look(graph, inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    runs = [module(*x, d=ids, **more), torch.compile(module, fullgraph=True, backend="aot_eager")(*x, d=ids, **more)]
    torch.testing.assert_close(*runs, rtol=0, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), leaves) for y in runs), rtol=0, atol=0)
    torch.compile(module, fullgraph=True, backend=look)(*x, d=ids, **more)
    assert "patternc.joint.default" in nodes and not any("patternc" in n and "joint" not in n for n in nodes), nodes


def test_heads_that_fit_are_not_copied():
    """The backward of a split of one part would copy its gradient."""
    seen = []
    q, k, v = (torch.randn(1, 1, 4, tail_runtime.WIDEST, requires_grad=True) for _ in range(3))
    tail_runtime.by_kernels(lambda *call: seen.extend(call[:2]) or (v, None))("softmax", None, q, k, v, False)
    assert seen[0] is q and seen[1] is k


def test_a_second_backward_only_launches(monkeypatch):
    """Its exact part writes where the term adds, as in the first."""
    module = pc.compile(TERMS["rattention"], "triton", num_heads=2, head_dim=16).to(DEVICE)
    x = [torch.randn(1, h, 24, 16, device=DEVICE, requires_grad=True) for h in (2, 1, 1)]
    found = []
    for _ in range(2):
        found.append(torch.autograd.grad(module(*x).square().sum(), [*x, *module.parameters()]))
        monkeypatch.setattr(backend, "attention_backward", None)
    assert all(map(torch.equal, *found))
