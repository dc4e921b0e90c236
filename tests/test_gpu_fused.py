"""The fused backward on a Hopper card: gradients against float64, equal bits, graphs."""

import pytest
import torch

import patternc as pc
from patternc.codegen import fused_launch

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper card"),
]  # fmt: skip

CASES = [
    ("causal", 1000, 1000, {}), ("full", 640, 640, {}), ("full", 65, 333, {}), ("causal", 1, 1, {}), ("causal & (window(200) | sink(4))", 1111, 1111, {}),
    ("window(left=100, right=50)", 700, 700, {}), ("causal", 300, 1500, {}), ("causal & (q - k != 7)", 520, 520, {}), ("(k < 200) & (q >= 400)", 900, 900, {}),
    ('causal & (q - k < arg("w"))', 777, 777, {"w": 150}),
]  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """The fused backward runs wherever it can; how often it did."""
    monkeypatch.setattr(fused_launch, "pays", lambda *given: True)
    found, gradients = [], fused_launch.gradients
    monkeypatch.setattr(fused_launch, "gradients", lambda *given: (found.append(given[0]), gradients(*given)))
    return found


def spelt(text):
    """The same pattern as a node of its own, so that nothing is kept that other tests launched."""
    return pc.parse(f"({text}) & (q != 100003)")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads, kv_heads, batch", [(2, 2, 1), (4, 1, 2), (8, 4, 3)])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("text, n_q, n_k, args", CASES)
def test_gradients(launched, text, n_q, n_k, args, head_dim, heads, kv_heads, batch, dtype):
    options = dict(backend="triton", device="cuda", dtype=dtype, heads=heads, kv_heads=kv_heads, batch=batch, quiet=True, raise_error=True)
    pc.verify(spelt(text), sizes=[(n_q, n_k)], args=args, head_dim=head_dim, **options)
    assert launched


@pytest.mark.parametrize("text", ["causal", "full", "causal & window(700)"])
@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_bits_repeat(launched, text, heads, kv_heads, head_dim):
    module, n = pc.compile(spelt(text), "triton"), 4096
    q, k, v = (torch.randn(2, h, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (heads, kv_heads, kv_heads))
    out = module(q, k, v)
    grad, first, wrong = torch.randn_like(out), None, torch.zeros((), device="cuda", dtype=torch.int64)
    for _ in range(100):
        found = torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
        first = first or found
        for a, b in zip(found, first):
            wrong += (a != b).sum()
    assert int(wrong) == 0 and len(launched) == 100


@pytest.mark.parametrize("heads_first", [True, False])
def test_layouts_and_graphs(launched, heads_first):
    """Heads beside each other in a row, inputs that are parts of one tensor, and a captured backward, whose first call is another one."""
    module, n, heads = pc.compile(spelt("causal"), "triton"), 900, 4
    packed = torch.randn(2, n, 3, heads, 128, device="cuda", dtype=torch.bfloat16)
    packed = packed.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4) if heads_first else packed
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in packed.unbind(2))
    grad = torch.randn(2, n, heads, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    def gradients():
        return torch.autograd.grad(module(q, k, v), (q, k, v), grad)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        want = gradients()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients()
    for _ in range(3):
        graph.replay()
    assert len(launched) == 2 and all(torch.equal(a, b) for a, b in zip(found, want))
    apart = torch.autograd.grad(pc.compile("causal", "reference")(*(x.double() for x in (q, k, v))), (q, k, v), grad.double())
    assert all((a.double() - b).norm() < 0.01 * b.norm() for a, b in zip(want, apart))


def test_graphs_of_torch_compile(launched):
    """Memory that is made while a graph is captured is the graph's: nobody else keeps it."""
    torch._dynamo.reset()
    module, plain = (pc.compile(spelt(text), "triton") for text in ("causal & window(900)", "causal & window(900) & (q != 100005)"))
    fast = torch.compile(lambda q, k, v: module(q, k, v).float().square().sum(), mode="reduce-overhead")
    for n in (512, 512, 512, 700, 700, 700, 512):
        rows = [torch.randn(2, h, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (4, 2, 2)]
        torch.compiler.cudagraph_mark_step_begin()
        found = torch.autograd.grad(fast(*rows), rows)
        wanted = torch.autograd.grad(plain(*rows).float().square().sum(), rows)
        assert all((a.double() - b.double()).norm() < 0.01 * b.double().norm() for a, b in zip(found, wanted))
    assert launched
