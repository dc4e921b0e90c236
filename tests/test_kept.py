"""Calls with tensors among their args: bound once for the same data, and never for data that someone has written to."""

import numpy as np
import pytest
import torch
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc import again, kept, reference, runtime
from patternc.codegen import launches
from patternc.codegen.configs import Config
from patternc.codegen.known import Known, KnownBackward
from patternc.orders.parts import splits

pytestmark = MARKS
SPEC = pc.causal & pc.documents(pc.arg("ids"))


def inputs(n=40, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(1, 2, n, 16, device=DEVICE).to(dtype) for _ in range(3)]


def documents(*lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(DEVICE, torch.int32)


def right(q, k, v, ids):
    out = pc.compile(SPEC, "triton")(q, k, v, ids=ids)
    wanted = pc.compile(SPEC, "reference")(q.double(), k.double(), v.double(), ids=ids)
    torch.testing.assert_close(out.double(), wanted, atol=2e-3, rtol=2e-3)


HALF_TOO = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # of which whole calls are made again


@pytest.fixture
def everything_seen(monkeypatch):
    """As on a card, where numpy writes to no tensor."""
    for module in (runtime, again):
        monkeypatch.setattr(module, "seen", lambda x: True)


def bound(q, ids, **more):
    return runtime.bind_call(SPEC, q, q, {"ids": ids}, more.pop("q_start", None), more.pop("check", False))


def test_bound_once(everything_seen):
    q, ids = inputs()[0], documents(15, 25)
    first = bound(q, ids)
    assert bound(q, ids) is first
    assert bound(q, ids, check=True) is not bound(q, ids, check=True)
    assert bound(q, ids, q_start=torch.tensor(0, device=DEVICE)) is not first
    for x in (ids.long(), ids.repeat_interleave(2)[::2]):  # kernels read a copy
        assert bound(q, x) is not bound(q, x)
    assert bound(q, ids.clone()) is not first
    assert bound(torch.cat([q, q]), ids) is not first
    ids += 1
    assert bound(q, ids) is not first
    with torch.inference_mode():
        assert bound(q, ids.clone()) is not bound(q, ids.clone())


@HALF_TOO
def test_writes_are_seen(everything_seen, dtype):
    q, k, v = inputs(dtype=dtype)
    ids = documents(15, 25)
    for _ in range(2):
        right(q, k, v, ids)
    ids[10:] = 7
    right(q, k, v, ids)
    ids.data.copy_(documents(30, 10))  # as a collective does: torch does not count it
    ids.add_(0)
    right(q, k, v, ids)
    ids.copy_(documents(1, 39))
    for _ in range(2):
        right(q, k, v, ids)


@HALF_TOO
def test_gradients_of_calls_made_before(everything_seen, dtype):
    rows = [x.requires_grad_() for x in inputs(dtype=dtype)]
    ids, found = documents(15, 25), []
    for backend in ("triton", "triton", "reference"):
        found.append(torch.autograd.grad(pc.compile(SPEC, backend)(*rows, ids=ids).square().sum(), rows))
    assert all(map(torch.equal, found[0], found[1]))
    for a, b in zip(found[1], found[2]):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)


@HALF_TOO
def test_memory_of_others_is_not_mistaken(everything_seen, dtype):
    """What is kept keeps its tensors, so that no new one lies where one of them was."""
    q, k, v = inputs(20, dtype)
    for i in range(2 * runtime.MOST_DATA):
        right(q, k, v, documents(1 + i % 19, 19 - i % 19))
    made = runtime.compiled(SPEC)
    assert len(made.state["bound data"]) <= runtime.MOST_DATA and len(made.again) <= runtime.MOST_DATA
    assert bool(made.again) or dtype == torch.float32


@HALF_TOO
def test_what_torch_does_not_count(everything_seen, dtype):
    """Collectives and other kernels write as `.data` does: kernels see it, and the tables of a pattern of formulas do not matter."""
    q, k, v = inputs(dtype=dtype)
    spec, p = pc.causal & pc.prefix(pc.arg("p")) | pc.window(3), torch.tensor([9], dtype=torch.int32, device=DEVICE)
    for size in (9, 17, 17, 30):
        p.data.fill_(size)
        out = pc.compile(spec, "triton")(q, k, v, p=p)
        wanted = pc.compile(spec, "reference")(q.double(), k.double(), v.double(), p=p)
        torch.testing.assert_close(out.double(), wanted, atol=2e-3, rtol=2e-3)
    assert runtime.compiled(spec).state["bound data"]


@pytest.mark.skipif(DEVICE != "cpu", reason="numpy shares no memory of a card")
def test_numpy_writes_to_tensors():
    q, k, v = inputs()
    data = documents(15, 25).numpy()
    ids = torch.from_numpy(data)
    right(q, k, v, ids)
    data[:] = np.arange(40) // 7
    right(q, k, v, ids)


def test_names():
    x = torch.arange(4)
    assert kept.named((1, None, x)) == kept.named((1, None, x))
    assert kept.named((True,)) is None and kept.named(([1],)) is None and kept.named((np.arange(3),)) is None


def test_tables_that_a_graph_reads_stay(monkeypatch):
    """Whatever is called later, a CUDA graph replays its launches with the same addresses."""

    class Launched:
        arg_names = ["table_ptr", "x_ptr", "n"]

        def __getitem__(self, grid):
            return lambda *args, **options: self

    class OnACard(torch.Tensor):
        is_cuda = True

    held, table, x = [], torch.zeros(3, dtype=torch.int32).as_subclass(OnACard), torch.zeros(3).as_subclass(OnACard)
    monkeypatch.setattr(launches, "captured", held)
    launch = launches.Launch(None, Launched(), Config(64, 64, 4, 2), 1, 1, {"table_ptr": table}, [], {})
    for capturing in (False, True, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        launch.run(1, {"x_ptr": x, "n": 5}, {})
    assert [y is table for y in held] == [True, True]


@pytest.mark.parametrize("text, n, kind, parts", [
    ("causal & window(9)", 256, "formula", 1), ("causal & dilate(8) & window(200)", 192, "boxes", 1), ("dilate(16) & window(99)", 160, "boxes", 1),
    ("causal & (window(9) | dilate(8))", 100, "formula", 2), ("(h == 0) & causal & window(9) | (h == 1) & causal & dilate(8)", 160, "heads", 1),
])  # fmt: skip
def test_calls_that_were_made_before(monkeypatch, text, n, kind, parts):
    """The second call and its backward go by what the first one left, and are right for other data."""
    p = pc.parse(text)
    if parts > 1:
        monkeypatch.setattr(runtime, "parts_at", lambda p, *_: splits(p)[0])  # whatever is predicted at so few tokens
    ours, reference = pc.compile(p, "triton"), pc.compile(p, "reference")
    for seed in range(3):
        torch.manual_seed(seed)
        q, k, v = (torch.randn(1, h, n, 16, device=DEVICE, requires_grad=True) for h in (2, 1, 1))
        grad = torch.randn_like(q)
        found = torch.autograd.grad(ours(q, k, v), (q, k, v), grad)
        wanted = torch.autograd.grad(reference(q.double(), k.double(), v.double()), (q, k, v), grad.double())
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    kept_with = [x for bound, _ in runtime.compiled(p).state["bound"].values() for x in bound.kept.values()]
    forwards, backwards = ([x for x in kept_with if isinstance(x, of)] for of in (Known, KnownBackward))
    assert kind in {call.plan.transposed.kind for x in backwards for _, call, *_ in x.dkdv.parts}
    assert {len(x.parts) for x in forwards} == {len(x.dq.parts) for x in backwards} == {parts}


def test_a_call_like_one_before_is_made_again(monkeypatch):
    """Without args, on tensors of the same layouts, with gradients or without; and nothing else is mistaken for it."""
    module, spec = pc.compile("causal & window(19)", "triton"), pc.parse("causal & window(19)")
    bound, bind_call = [], runtime.bind_call
    monkeypatch.setattr(runtime, "bind_call", lambda *given: (bound.append(given), bind_call(*given))[1])

    def call(binds, n=70, dtype=torch.float16, like=lambda x: x, **options):
        q, k, v = (like(torch.randn(1, h, n, 16, device=DEVICE).to(dtype)) for h in (2, 1, 1))
        before = len(bound)
        out, lse = module(q, k, v, return_lse=True, **options)
        assert len(bound) - before == binds
        wanted = reference.attention(spec, q, k, v, {}, scale=options.get("scale"), q_start=options.get("q_start"))
        for found, exact in zip((out, lse), wanted):
            torch.testing.assert_close(found.double(), exact.double(), atol=5e-3, rtol=5e-3)
        return out

    call(1)
    call(0)
    call(1, like=torch._neg_view), call(1, like=torch._neg_view)
    call(1, n=71)
    call(1, like=lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    call(1, scale=0.7), call(0, scale=0.7), call(1, scale=0.8), call(1, q_start=0), call(0, q_start=0), call(1, check=True), call(1, check=True)
    call(1, dtype=torch.float32), call(1, dtype=torch.float32)
    assert call(0, like=lambda x: x.requires_grad_()).requires_grad
    with torch.no_grad():
        assert not call(0, like=lambda x: x.requires_grad_()).requires_grad
    call(0)
    with pytest.raises(pc.errors.PatterncError):
        module(*(torch.randn(1, h, 70, 16, dtype=torch.float16) for h in (2, 1, 3)))
    with pytest.raises(pc.errors.PatterncError):
        module(torch.randn(1, 2, 70, 16, dtype=torch.float16), None, None)


@pytest.mark.parametrize("text", ["causal & window(19)", "causal & (window(9) + linear_tail)"])
@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
def test_gradients_where_only_one_output_is_used(text, backend):
    """Nothing depends on the other, whose gradient is None then, not 0."""
    module, wanted = (pc.compile(text, name, num_heads=2, head_dim=16).to(DEVICE) for name in (backend, "reference"))
    for _ in range(2):
        for used in (lambda out, lse: out.square().sum(), lambda out, lse: lse.square().sum(), lambda out, lse: out.sum() + lse.sum()):
            q, k, v = (x.requires_grad_() for x in inputs())
            found = torch.autograd.grad(used(*module(q, k, v, return_lse=True)), (q, k, v), allow_unused=True)
            exact = torch.autograd.grad(used(*wanted(q.double(), k.double(), v.double(), return_lse=True)), (q, k, v), allow_unused=True)
            for a, b in zip(found, exact):
                b = torch.zeros_like(q) if b is None else b
                torch.testing.assert_close(torch.zeros_like(q) if a is None else a, b, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("neg_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_views_that_negate_are_calls_of_their_own(neg_first, grad):
    """Kernels read a copy of them, which lies otherwise."""
    text = f"causal & window({18 + 2 * neg_first + grad})"  # of which nothing is kept
    module, wanted = pc.compile(text, "triton"), pc.compile(text, "reference")
    k, v = (torch.randn(1, 2, 40, 16, device=DEVICE).half() for _ in range(2))
    packed = torch.randn(1, 2, 40, 32, device=DEVICE).half()
    for neg in (neg_first, not neg_first) * 2:
        q = torch._neg_view(packed)[..., 16:] if neg else packed[..., 16:]
        torch.testing.assert_close(module(q.requires_grad_(grad), k, v).double(), wanted(q.double(), k.double(), v.double()), atol=5e-3, rtol=5e-3)
        q.requires_grad_(False) if q.is_leaf else None


OTHERWISE = {
    "other strides": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2), "a slice": lambda x: torch.stack([x, -x], -1)[..., 0],
    "float64": lambda x: x.double() if x.dim() == 3 else x, "negated": lambda x: torch._neg_view(-x),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_hooks_make_of_saved_tensors(name):
    module, wanted = pc.compile("causal & window(23)", "triton"), pc.compile("causal & window(23)", "reference")
    for turn in range(3):
        q, k, v = (x.requires_grad_() for x in inputs(dtype=torch.float16))
        with torch.autograd.graph.saved_tensors_hooks(OTHERWISE[name] if turn else lambda x: x, lambda x: x):
            out = module(q, k, v)
        found = torch.autograd.grad(out.float().square().sum(), (q, k, v))
        exact = torch.autograd.grad(wanted(q.double(), k.double(), v.double()).square().sum(), (q, k, v))
        for a, b in zip(found, exact):
            torch.testing.assert_close(a.double(), b.double(), atol=2e-2, rtol=2e-2)


@HALF_TOO
def test_writes_to_an_alias_that_counts_its_own(everything_seen, dtype):
    """A backward refuses what was written to, through whichever tensor a call was given it."""
    rows, ids = [x.requires_grad_() for x in inputs(dtype=dtype)], documents(15, 25)
    module = pc.compile(SPEC, "triton")
    for _ in range(2):
        module(*rows, ids=ids)
    alias = ids.data
    out = module(*rows, ids=alias)
    alias.fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.skipif(DEVICE != "cpu", reason="sparse tensors of the CPU")
def test_args_without_memory_are_refused_in_words(everything_seen):
    q, k, v = inputs(dtype=torch.float16)
    with pytest.raises(pc.errors.PatterncError, match="dense"):
        pc.compile(SPEC, "triton")(q, k, v, ids=documents(15, 25).to_sparse())
