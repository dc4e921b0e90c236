"""On a GPU: every primitive and twenty random compositions, outputs and all gradients, in three dtypes (`pytest -m gpu`)."""

import gc
from dataclasses import replace

import pytest
import torch
from patterns import BY_HEADS, CHOICES, ORDERED, PRIMITIVES, composition, ids, zoo_case

import patternc as pc
from patternc.args import bind
from patternc.codegen import prepared
from patternc.codegen.backend import call_of
from patternc.codegen.launch import attention_forward
from patternc.orders.boxes import box_axis
from patternc.orders.search import orders
from patternc.passes import lower
from patternc.plan import Plan
from patternc.runtime import compiled
from patternc.zoo.registry import ENTRIES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("spec", PRIMITIVES, ids=str)
def test_primitive(spec, dtype):
    check(spec, dtype)


@pytest.mark.parametrize("spec", CHOICES, ids=str)
def test_choice(spec):
    options = dict(backend="triton", device="cuda", dtype=torch.bfloat16, heads=4, kv_heads=2, quiet=True, raise_error=True)
    for head_dim in (64, 128):
        pc.verify(spec, sizes=[(700, 700), (65, 1033)], head_dim=head_dim, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("p, n", ORDERED, ids=str)
def test_order(p, n, head_dim, dtype):
    pc.verify(p, backend="triton", device="cuda", dtype=dtype, sizes=[(n, n)], heads=4, kv_heads=2, head_dim=head_dim, quiet=True, raise_error=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("p, heads, n", BY_HEADS, ids=str)
def test_heads(p, heads, n, head_dim, dtype):
    """Key heads whose query heads are one group, and that groups cut through."""
    options = dict(backend="triton", device="cuda", dtype=dtype, heads=heads, head_dim=head_dim, quiet=True, raise_error=True)
    for kv_heads in (heads, heads // 2, 1):
        pc.verify(p, sizes=[(n, n)], kv_heads=kv_heads, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_composition(seed, dtype):
    check(composition(seed), dtype)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_zoo(entry):
    zoo_case(entry, "triton", "cuda", torch.bfloat16)


def check(spec, dtype):
    pc.verify(spec, backend="triton", device="cuda", dtype=dtype, sizes=[(200, 200), (65, 333), (1, 129)], heads=4, kv_heads=2, head_dim=64, quiet=True, raise_error=True)


@pytest.mark.parametrize("head_dim, value_dim", [(16, 16), (40, 40), (80, 64), (96, 96), (128, 64), (192, 128), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_head_dims(head_dim, value_dim, dtype):
    pc.verify(
        pc.causal & (pc.window(70) | pc.sink(4)), backend="triton", device="cuda", dtype=dtype, sizes=[(300, 300)], heads=4, kv_heads=1,
        head_dim=head_dim, value_dim=value_dim, quiet=True, raise_error=True,
    )  # fmt: skip


def test_traced_and_captured():
    module = pc.compile(pc.causal & pc.window(100) & pc.documents(ids), "triton")
    q, k, v = (torch.randn(2, h, 300, 64, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2))
    doc = torch.arange(300, device="cuda") // 77
    want = module(q, k, v, ids=doc)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(q, k, v, ids=doc), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(q, k, v, ids=doc)
    doc.copy_(torch.arange(300, device="cuda") // 50)
    graph.replay()
    torch.testing.assert_close(out, module(q, k, v, ids=doc))


LONG_ROWS = [
    pc.window(left=100, right=100) | pc.global_(20),
    pc.block(64, back=1, ahead=1) | pc.global_(64) | (pc.q >= 3008) | (pc.k >= 3008) | pc.random_blocks(3, 64, seed=0),
    pc.causal & (pc.window(64) | pc.sink(4)),
    pc.dilate(2) & (pc.window(100) | pc.global_(8)),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (8, 2)])
@pytest.mark.parametrize("head_dim, value_dim", [(64, 64), (128, 80)])
@pytest.mark.parametrize("p", LONG_ROWS, ids=str)
def test_long_rows(p, head_dim, value_dim, heads, kv_heads, dtype):
    """Rows that are dealt first or cut into pieces."""
    options = dict(backend="triton", device="cuda", dtype=dtype, heads=heads, kv_heads=kv_heads, quiet=True, raise_error=True)
    pc.verify(p, sizes=[(3072, 3072), (1111, 3072)], head_dim=head_dim, value_dim=value_dim, **options)
    assert any(one is not None for one in compiled(p).state["schedules"].values())


def test_many_heads_are_dealt_as_few_are_cut():
    p = LONG_ROWS[0]
    x, y, z = (torch.randn(8, 16, 3072, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def results(*rows):
        out, lse = pc.compile(p, "triton")(*rows, return_lse=True)
        return (out, lse, *torch.autograd.grad(out.float().square().sum() + lse.sum(), rows))

    compiled(p).state.pop("schedules", None)
    many = results(x, y, z)
    forms = {one.form for one in compiled(p).state["schedules"].values() if one is not None}
    few = results(*(one[3:4].detach().requires_grad_() for one in (x, y, z)))
    assert forms == {"dealt"}
    for a, b in zip(many, few):
        torch.testing.assert_close(a[3:4], b, atol=2e-2, rtol=2e-2)


def test_long_rows_are_captured_and_repeat_their_bits():
    module = pc.compile(LONG_ROWS[0], "triton")
    q, k, v = (torch.randn(1, 2, 3072, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    runs = []
    for _ in range(2):
        out = module(q, k, v)
        runs.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = module(q, k, v)
    graph.replay()
    assert torch.equal(out, runs[0][0])


@pytest.mark.parametrize("spec, n", [(LONG_ROWS[0], 3072), (pc.causal, 4096)], ids=str)
def test_a_graph_keeps_the_tables_that_it_reads(spec, n):
    """Also where every cache has forgotten them, and their memory would be given to others."""
    module = pc.compile(spec, "triton")
    q, k, v = (torch.randn(1, 16, n, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    want, graph = module(q, k, v), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(q, k, v)
    prepared._launches.clear()
    module.compiled.state.clear()
    gc.collect()
    garbage = [torch.full((1 << i,), 1 << 29, dtype=torch.int32, device="cuda") for i in range(16) for _ in range(20)]
    out.zero_()
    graph.replay()
    assert torch.equal(out, want) and len(garbage) == 320


def test_offsets_beyond_32_bits():
    q = torch.randn(1, 1, 256, 64, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.empty(1, 1, 2**31 // 64 + 4096, 64, device="cuda", dtype=torch.bfloat16).normal_() for _ in range(2))
    out = pc.compile(pc.causal & pc.window(300), "triton")(q, k, v)
    want = pc.compile(pc.causal & pc.window(300), "triton")(q, k[:, :, -1024:], v[:, :, -1024:])
    torch.testing.assert_close(out, want)


TERMS = [
    pc.causal & (pc.window(left=100, right=0) + pc.linear_tail), pc.causal & (pc.empty + pc.linear_tail(norm="none")), pc.causal & (pc.block(192) + pc.linear_tail(norm="denominator")),
    pc.documents(pc.arg("ids")) & pc.causal & (pc.window(60) | pc.sink(4) + pc.linear_tail(initial_state=True)),
    pc.window(90) | pc.global_(20) + pc.linear_tail(feature="elu+1", norm="denominator"), pc.empty + pc.linear_tail(feature="relu", norm="none"),
    pc.causal & (pc.window(60) + pc.linear_tail(feature="favor+", norm="denominator", num_features=200)),
]  # fmt: skip


HOW = [(torch.bfloat16, 128, 8), *((torch.bfloat16, 64, 2), (torch.float16, 64, 8), (torch.float32, 64, 8))]


@pytest.mark.parametrize("spec, how", [(spec, how) for i, spec in enumerate(TERMS) for how in (HOW if i == 0 else HOW[:2] if i == 3 else HOW[:1])], ids=str)
def test_term(spec, how):
    """Terms with kernels, several segments long."""
    dtype, head_dim, heads = how
    options = dict(backend="triton", device="cuda", dtype=dtype, heads=heads, kv_heads=2, head_dim=head_dim, batch=1, quiet=True, raise_error=True)
    for n_q, n_k in ((1500, 1500), (333, 1500), (1, 70)):
        args = {"ids": torch.arange(n_k, device="cuda") // 130} if "ids" in str(spec) else {}
        pc.verify(spec, sizes=[(n_q, n_k)], args=args, **options)


BLOCK_TERMS = {
    "bigbird": pc.block(64, 1, 1) | pc.random_blocks(3, 64, 0) | pc.global_(128) + pc.linear_tail,
    "dilated": pc.causal & ((pc.window(200) & pc.dilate(3)) + pc.linear_tail("elu+1", "denominator")),
    "neighborhood": pc.neighborhood((30, 50), (7, 7)) + pc.linear_tail,
    "heads": pc.causal & (pc.per_head(pc.window(100), pc.dilate(4)) + pc.linear_tail(norm="denominator")),
    "strided": pc.causal & (pc.window(60) | pc.dilate(60) + pc.linear_tail),
    "given": pc.window(20) | pc.global_(pc.arg("tokens")) | pc.dilate(2) + pc.linear_tail,
    "documents": pc.causal & (pc.documents(pc.arg("ids")) + pc.linear_tail(norm="none")),
}  # fmt: skip


CLASS_N = ("strided", "documents")  # which may also be summed by scans in orders of their own


@pytest.mark.parametrize("dtype, head_dim", [(torch.bfloat16, 128), (torch.bfloat16, 64), (torch.float32, 64), (torch.float16, 64)], ids=str)
@pytest.mark.parametrize("name, levels", [*((name, False) for name in BLOCK_TERMS), *((name, True) for name in CLASS_N)])
def test_term_of_any_class(monkeypatch, name, dtype, head_dim, levels):
    """Terms by block sums, and by scans in orders of their own."""
    from patternc.codegen import tail_backend

    monkeypatch.setattr(tail_backend, "scans_pay", lambda *_: levels)
    spec, n, heads = BLOCK_TERMS[name], 1500, 2 if name == "heads" else 4
    tokens, ids = torch.tensor([3, 70, 900], device="cuda"), torch.arange(n, device="cuda") * 7919 % 13
    args = {"given": {"tokens": tokens}, "documents": {"ids": ids}}.get(name, {})
    options = dict(backend="triton", device="cuda", dtype=dtype, heads=heads, head_dim=head_dim, batch=2, quiet=True, raise_error=True)
    for kv_heads in (2, 1):
        pc.verify(spec, sizes=[(n, n)], kv_heads=kv_heads, args=args, **options)


def test_terms_compile_and_repeat():
    """One graph, and equal bytes in every run."""
    for p in (pc.window(left=100, right=0), pc.random_blocks(2, 64, 0)):
        _compiles_and_repeats(pc.compile(pc.causal & (p + pc.linear_tail), num_heads=4, head_dim=64).cuda())


def _compiles_and_repeats(module):
    q, k, v = (torch.randn(2, h, 1000, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in (4, 2, 2))
    leaves = [q, k, v, *module.parameters()]
    first, second = ((out, *torch.autograd.grad(out.float().square().sum(), leaves)) for out in (module(q, k, v), module(q, k, v)))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(q, k, v), first[0])


STEPPED = [
    (pc.zoo.rattention(100), None), (pc.zoo.rattention(100, documents="reset"), "document"), (pc.zoo.rattention(100, documents="released"), "document"),
    (pc.causal & ((pc.window(90) & pc.dilate(3)) | pc.sink(4) + pc.linear_tail(initial_state=True)), None),
    (pc.causal & (pc.empty + pc.linear_tail(feature="favor+", norm="denominator", num_features=100)), None),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.linear_tail. on pairs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("spec, name", STEPPED, ids=str)
def test_terms_step(spec, name, dtype):
    """A prompt by kernels, then tokens one by one and several at a time, as the parallel form has them."""
    module = pc.compile(spec, num_heads=4, head_dim=64).cuda()
    q, k, v = (torch.randn(2, h, 900, 64, device="cuda", dtype=dtype) for h in (4, 2, 2))
    args = {} if name is None else {name: (torch.arange(900, device="cuda") // 250).clamp(max=2)}
    state, found = module.init_state(2, 900, **args), []
    for n in (700, *[1] * 50, 150):
        at = slice(state.position, state.position + n)
        out, state = module.step(q[:, :, at], k[:, :, at], v[:, :, at], state)
        found.append(out)
    truth = pc.compile(spec, "reference", num_heads=4, head_dim=64).cuda()
    truth.load_state_dict(module.state_dict())
    truth = truth.double()(q.double(), k.double(), v.double(), **args)
    at_once, stepped = ((x.double() - truth).abs().max() for x in (module(q, k, v, **args), torch.cat(found, 2)))
    assert stepped <= 1.5 * at_once + truth.abs().max() * (2**-8 if dtype == torch.bfloat16 else 2**-10)


@pytest.mark.parametrize("group, length", [(4, 777), (1, 2048)])
def test_terms_in_groups_of_heads_are_the_same(monkeypatch, group, length):
    """Whether heads run at once or in groups: sums may be taken in other orders, where few heads leave a device idle."""
    from patternc import joint

    module = pc.compile(pc.zoo.rattention(window=100), num_heads=8, head_dim=128).cuda()
    q, k, v = (torch.randn(2, h, length, 128, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in (8, 8 // group, 8 // group))
    leaves, found = [q, k, v, *module.parameters()], []
    for groups in (1, 2):
        monkeypatch.setattr(joint, "groups_of", lambda *_, groups=groups: groups)
        out = module(q, k, v)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
    for a, b in zip(*found):
        assert (a - b).abs().max() < 0.01 * a.abs().max()


# The Hopper forward beside its twin

HOPPER = [
    ("causal", 1, 1), ("causal", 129, 129), ("full", 300, 1), ("full", 700, 700), ("causal", 65, 333), ("causal & window(512)", 2000, 2000), ("window(left=200, right=90)", 1300, 1900),
    ("causal & (window(300) | sink(4))", 2000, 2000), ("causal & documents(ids)", 2000, 2000), ("(q >= 300) & (k < 50)", 900, 900),
    ("causal & dilate(4) & window(800)", 2000, 2000), ("dilate(3) & (window(300) | sink(6))", 900, 1800), ("causal & dilate(128)", 128, 1280),
    ("random_blocks(3, 64, seed=0) | window(30)", 1500, 1500), ("causal & (k // 16 % 8 == 7)", 2000, 2000),
]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper card")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim, kv_heads", [(64, 2), (64, 8), (128, 2), (128, 8), (256, 2)])
@pytest.mark.parametrize("text, n_q, n_k", HOPPER)
def test_hopper_forward(text, n_q, n_k, head_dim, kv_heads, dtype):
    p = pc.parse(text)
    q, k, v = (torch.randn(2, h, n, head_dim, device="cuda", dtype=dtype) for h, n in ((8, n_q), (kv_heads, n_k), (kv_heads, n_k)))
    bound = bind(p, {"ids": torch.arange(n_k, device="cuda") // 130} if "ids" in text else {}, n_q, n_k, heads=8, batch=2, q_start=max(0, n_k - n_q))
    call = replace(call_of(compiled(p), head_dim**-0.5, bound, q, k, v), plan=compiled(p).plan)
    plans = [Plan(p, *(box_axis(lower(p), order, x) for x in "kq")) for order in orders(lower(p))] if "dilate" in text else [call.plan]
    fast = [attention_forward(replace(call, plan=plans[-1], variant="hopper"), q, k, v) for _ in range(3)]
    assert all(torch.equal(a, b) for one in fast[1:] for a, b in zip(one, fast[0]))
    for a, b, tolerance in zip(fast[0], attention_forward(call, q, k, v), (2e-2, 1e-3)):
        torch.testing.assert_close(a.float(), b.float(), atol=tolerance, rtol=tolerance)
