"""On a card: the one-pass kernels of a linear tail against dense float64, beside the portable ones."""

from dataclasses import replace

import pytest
import torch

import patternc as pc
from patternc import runtime
from patternc.codegen import tail_launch, tail_pass_launch
from patternc.codegen.tail_pass_form import OF_SUMS, kernels_of

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs a Hopper card")]

CASES = [  # pattern, batch, query and key heads, rows, keys
    ("causal & (empty + linear_tail({}))", 1, 8, 8, 1100, 1100),
    ("causal & (window(300) + linear_tail({}))", 2, 4, 2, 2500, 2500),
    ("causal & (window(300) + linear_tail({}))", 2, 6, 2, 1100, 2700),
    ("window(100) + linear_tail({})", 1, 8, 2, 2333, 2333),
    ("causal & ((window(100) | sink(4)) + linear_tail({}))", 2, 4, 4, 2000, 2100),
]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("feature", ["softmax", "elu+1"])
@pytest.mark.parametrize("text, batch, heads, kv_heads, n_q, n_k", CASES)
def test_one_pass(monkeypatch, text, batch, heads, kv_heads, n_q, n_k, feature, head_dim):
    """Outputs and gradients, v with a mean; errors are those of the portable kernels."""
    taken = check(monkeypatch, text, batch, heads, kv_heads, n_q, n_k, feature, head_dim)
    assert set(taken) - set(OF_SUMS) == set(kernels_of(feature))


@pytest.mark.parametrize("unit", [7, 24])
@pytest.mark.parametrize("feature", ["softmax", "elu+1"])
def test_sums_of_several_pieces(monkeypatch, feature, unit):
    """Programs of sums that go through more than one piece: pieces end after one or two slots, these programs after `unit` chunks."""
    pieces = tail_pass_launch.pieces
    monkeypatch.setattr(tail_pass_launch, "pieces", lambda *given: replace(pieces(*given), unit=unit))
    text = "causal & (window(100) + linear_tail({}))"
    assert set(OF_SUMS) <= set(check(monkeypatch, text, 1, 4, 1, 5500, 5500, feature, 128))


def recorded(monkeypatch) -> list[str]:
    """The one-pass kernels that are taken from now on."""
    taken, launch_of = [], tail_pass_launch.launch_of
    monkeypatch.setattr(tail_pass_launch, "launch_of", lambda form, *more: taken.append(form.kernel) or launch_of(form, *more))
    return taken


def check(monkeypatch, text, batch, heads, kv_heads, n_q, n_k, feature, head_dim) -> list[str]:
    """Compare a call with dense float64; the one-pass kernels that it took."""
    spec = pc.parse(text.format(f'feature="{feature}", norm="none"'))
    torch.manual_seed(0)
    shapes = (heads, n_q), (kv_heads, n_k), (kv_heads, n_k), (heads, n_q)
    q, k, v, do = (torch.randn(batch, h, n, head_dim, device="cuda", dtype=torch.bfloat16) for h, n in shapes)
    v += 1
    taken = recorded(monkeypatch)

    def errors(processors):
        monkeypatch.setattr(tail_pass_launch, "processors", lambda device: processors)
        monkeypatch.setitem(runtime.compiled(spec).state, "bound", {})  # what is kept there was chosen for other processors
        rows = [x.clone().requires_grad_() for x in (q, k, v)]
        out = pc.compile(spec, "triton")(*rows)
        found = out, *torch.autograd.grad(out, rows, do)
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, want)]

    wide = [x.double().requires_grad_() for x in (q, k, v)]
    out = pc.compile(spec, "reference")(*wide)
    want = out, *torch.autograd.grad(out, wide, do.double())
    portable = errors(1 << 30)  # so many that there is too little to do
    assert not taken
    ours = errors(8)
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, portable):
        assert a <= 1.5 * b + 1e-3, f"{name}: {a:.2e} beside {b:.2e}"
    return taken


@pytest.mark.parametrize("batch, heads, kv_heads, n, head_dim", [(4, 16, 4, 16384, 128), (2, 8, 4, 30000, 64), (1, 4, 1, 65536, 128)])
def test_as_they_are_dealt(monkeypatch, batch, heads, kv_heads, n, head_dim):
    """Long calls, dealt for this card's processors (on 132 of them some go through several pieces): as the portable kernels find them."""
    spec, found, taken = pc.parse('causal & (window(512) + linear_tail(norm="none"))'), [], recorded(monkeypatch)
    torch.manual_seed(0)
    q, k, v = (torch.randn(batch, h, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (heads, kv_heads, kv_heads))
    grad = torch.randn_like(q)
    for processors in (tail_pass_launch.processors, lambda device: 1 << 30):
        monkeypatch.setattr(tail_pass_launch, "processors", processors)
        monkeypatch.setitem(runtime.compiled(spec).state, "bound", {})  # what is kept there was chosen for other processors
        out = pc.compile(spec, "triton")(q, k, v)
        found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), grad)])
    assert set(OF_SUMS) <= set(taken)
    for name, a, b in zip(("out", "dq", "dk", "dv"), *found):
        assert (a.float() - b.float()).norm() < 2e-2 * b.float().norm(), name


def test_captured():
    """A graph counts from 0 in every replay, and reads what is there then."""
    module = pc.compile("causal & (window(512) + linear_tail)", "triton", num_heads=16, head_dim=128).to("cuda", torch.bfloat16)
    rows = [torch.randn(1, h, 16384, 128, device="cuda", dtype=torch.bfloat16) for h in (16, 4, 4)]
    with torch.no_grad():
        module(*rows)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = module(*rows)
        for _ in range(2):
            for x in rows:
                x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(out, module(*rows))


def test_one_pass_repeats(monkeypatch):
    """Equal bits, 100 times."""
    monkeypatch.setattr(tail_pass_launch, "processors", lambda device: 8)
    module = pc.compile('causal & (window(100) + linear_tail(norm="none"))', "triton")
    monkeypatch.setitem(runtime.compiled(module.spec).state, "bound", {})  # what is kept there was chosen for other processors
    q, k, v = (torch.randn(1, h, 4000, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (8, 4, 4))
    grad, first, wrong = torch.randn_like(q), None, torch.zeros((), device="cuda", dtype=torch.int64)
    for _ in range(100):
        out = module(q, k, v)
        found = [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]
        first = first or found
        for a, b in zip(found, first):
            wrong += (a != b).sum()
    assert int(wrong) == 0


def test_slots_are_dealt():
    """A call that fills a card takes one pass; a short one does not."""
    run = [tail_launch._Run(_call(), *_rows(batch), False, False).each for batch in (16, 1)]
    assert run[0] > 0 and run[1] == 0


def _rows(batch):
    return [torch.empty(batch, 8, 2048, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]


def _call():
    from patternc.args import bind
    from patternc.codegen.tail_backend import call_of, plan_of
    from patternc.runtime import compiled

    made = compiled(pc.parse("causal & (window(100) + linear_tail)"))
    bound = bind(made.spec, {}, 2048, 2048, heads=8, batch=16)
    return call_of(made, plan_of(made, bound).scans[0], bound, "softmax", torch.device("cuda"))
