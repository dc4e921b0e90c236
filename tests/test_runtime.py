"""The module under autograd, torch.compile, export, autocast, pickling and spawn."""

import copy
import multiprocessing
import pickle

import pytest
import torch

import patternc as pc
from patternc.operators import attention, linear_attention, pack, tail_attention
from patternc.runtime import compiled

SLIDING = pc.causal & (pc.window(20) | pc.sink(3))


def qkv(n=70, heads=2, kv_heads=1, d=16, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, h, n, d, generator=generator, dtype=dtype).requires_grad_(grad) for h in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_torch_compile_sees_one_graph(backend):
    module = pc.compile(SLIDING, backend)
    q, k, v = qkv(grad=True)
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")
    out = traced(q, k, v)
    want = module(q, k, v)
    torch.testing.assert_close(out, want)
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, want)]
    torch.testing.assert_close(*grads)


def test_torch_compile_with_args_and_lse():
    module = pc.compile(pc.causal & pc.window(pc.arg("w")) & pc.documents(pc.arg("doc")), "cpu")
    traced = torch.compile(lambda q, k, v, doc, w: module(q, k, v, doc=doc, w=w, return_lse=True), fullgraph=True, backend="aot_eager")
    q, k, v = qkv()
    doc = torch.arange(70) // 13
    torch.testing.assert_close(traced(q, k, v, doc, 9), module(q, k, v, doc=doc, w=9, return_lse=True))


def test_export():
    module = pc.compile(SLIDING, "cpu")
    q, k, v = qkv()
    program = torch.export.export(module, (q, k, v))
    torch.testing.assert_close(program.module()(q, k, v), module(q, k, v))


def test_opcheck():
    q, k, v = qkv(grad=True)
    spec = SLIDING & pc.valid(pc.arg("m"))
    tensors, numbers, kinds = pack(("m",), {"m": torch.tensor([50, 70])}, None)
    torch.library.opcheck(attention, (q, k, v, tensors, numbers, kinds, compiled(spec).key, "cpu", 0.25, False, False))
    spec = SLIDING + pc.linear_tail(norm="none", over=pc.causal)
    torch.library.opcheck(linear_attention, (q, k, v, [], [], "", compiled(spec).key))
    torch.library.opcheck(tail_attention, (q, k, v, [], [], "", compiled(spec).key, "cpu", "softmax", True))


TAILS = [
    pc.causal & (pc.window(left=9, right=0) + pc.linear_tail),
    pc.window(9) | pc.global_(pc.arg("tokens")) | pc.dilate(2) + pc.linear_tail,
    pc.causal & (pc.empty + pc.linear_tail(feature="favor+", norm="denominator")),
    pc.causal & (pc.window(5) + pc.linear_tail(feature="elu+1", norm="none", initial_state=True)),
]


@pytest.mark.parametrize("spec", TAILS, ids=str)
def test_terms_traced_and_eager_agree(spec):
    module = pc.compile(spec, num_heads=2, head_dim=16)
    q, k, v = qkv(grad=True)
    args = {"tokens": torch.tensor([3, 40])} if "tokens" in str(spec) else {}
    leaves = [q, k, v, *module.parameters()]
    out, lse = module(q, k, v, return_lse=True, **args)
    want, want_lse = pc.compile(spec, "reference", num_heads=2, head_dim=16)(q, k, v, return_lse=True, **args)
    torch.testing.assert_close((out, lse), (want, want_lse), atol=2e-4, rtol=2e-4)
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")(q, k, v, **args)
    torch.testing.assert_close(traced, out)
    grads = [torch.autograd.grad(o.square().sum(), leaves) for o in (out, traced)]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def test_terms_own_parameters():
    with pytest.raises(pc.errors.ParameterError, match="owns parameters for each head"):
        pc.compile(TAILS[0])
    module = pc.compile(TAILS[2], num_heads=2, head_dim=16)
    before = module.projection.clone()
    module.redraw(7)
    assert set(module.state_dict()) == {"projection"} and not torch.equal(before, module.projection)
    with pytest.raises(pc.errors.ShapeError, match="for 4 query heads, got 2"):
        pc.compile(TAILS[0], num_heads=4, head_dim=16)(*qkv())


def test_gradcheck():
    module = pc.compile(pc.causal & pc.window(4) & (pc.q != 3), "cpu")
    q, k, v = qkv(n=9, d=3, dtype=torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda *x: module(*x), (q, k, v))
    rows = torch.tensor([i for i in range(9) if i != 3])  # the lse of an empty row is -inf, which no difference quotient survives
    assert torch.autograd.gradcheck(lambda *x: module(*x, return_lse=True)[1][:, :, rows], (q, k, v))


TERM = SLIDING + pc.linear_tail(norm="none", over=pc.causal)


@pytest.mark.parametrize("spec", [SLIDING, TERM], ids=["pattern", "attention"])
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_only_second_derivatives_are_refused(spec, traced):
    module = pc.compile(spec, "cpu")
    q, k, v = qkv(n=8, grad=True)
    run = torch.compile(module, fullgraph=True, backend="eager") if traced else module
    plain, graph = (torch.autograd.grad(run(q, k, v).square().sum(), (q, k, v), create_graph=create) for create in (False, True))
    torch.testing.assert_close(plain, graph)
    with pytest.raises(pc.errors.BackendError, match="second derivatives are not supported"):
        graph[1].sum().backward()


@pytest.mark.parametrize("spec", [SLIDING, TERM & pc.documents(pc.arg("doc"))], ids=["pattern", "attention"])
def test_transforms_are_refused(spec):
    module = pc.compile(spec, "cpu")
    q, k, v = qkv(n=8, grad=True)
    args = {"doc": torch.zeros(8, dtype=torch.int64)} if "doc" in str(spec) else {}
    mapped = {name: x.expand(3, 8) for name, x in args.items()}

    def loss(q):
        return module(q, k, v, **args).sum()

    for call in (
        lambda: torch.func.grad(loss)(q),
        lambda: torch.func.vmap(lambda q, args: module(q, k, v, **args))(torch.stack([q] * 3), mapped),
        lambda: torch.autograd.grad(module(q, k, v, **args), q, torch.ones(3, *q.shape), is_grads_batched=True),
        lambda: torch.func.vmap(lambda d: torch.autograd.grad(module(q, k, v, **args), q, d))(torch.ones(3, *q.shape)),
        lambda: torch.compile(torch.func.grad(loss), backend="eager")(q),
    ):
        with pytest.raises(pc.errors.BackendError, match="transforms of torch.func"):
            call()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(pc.errors.BackendError, match="forward-mode"):
        module(torch.autograd.forward_ad.make_dual(q.detach(), v.repeat(1, 2, 1, 1)), k, v, **args)


def test_autocast_takes_half_precision():
    module = pc.compile(SLIDING, "cpu")
    q, k, v = qkv()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(q, k, v)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(q, k, v), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("spec", [SLIDING, *TAILS], ids=str)
def test_autocast_changes_inputs_only(spec):
    module = pc.compile(spec, "cpu", num_heads=2, head_dim=16)
    args = {"tokens": [1, 5]} if "tokens" in str(spec) else {}
    low = [x.bfloat16().requires_grad_() for x in qkv()]
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, lse = module(*low, return_lse=True, **args)
            total = out.float().square().sum() + lse.sum()
            torch.autograd.grad(total, low, retain_graph=True)  # torch's own backwards round more here, but ours must run
        results.append((out, lse, torch.autograd.grad(total, low)))
    torch.testing.assert_close(*results, atol=0, rtol=0)


def test_pickle_copy_and_state():
    module = pc.compile(SLIDING, "cpu")
    q, k, v = qkv()
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert other.spec is module.spec
        torch.testing.assert_close(other(q, k, v), module(q, k, v))


def _work(module, queue):
    queue.put(module(*qkv()).sum().item())


def test_spawn():
    module = pc.compile(SLIDING, "cpu")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_work, args=(module, queue))
    process.start()
    assert queue.get(timeout=120) == pytest.approx(module(*qkv()).sum().item(), rel=1e-4)
    process.join()


def test_layer_trains_and_round_trips():
    torch.manual_seed(0)
    layer = pc.nn.PatternAttention(32, 4, "causal & window(8)", num_kv_heads=2)
    x = torch.randn(2, 20, 32)
    layer(x).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in layer.parameters())
    other = pc.nn.PatternAttention(32, 4, "causal & window(8)", num_kv_heads=2)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("text", ["causal & documents(ids)", 'causal & documents(ids) & (window(5) + linear_tail(norm="none"))', "causal & documents(ids) & (window(5) + linear_tail)"])
def test_a_write_between_forward_and_backward_is_refused(text, backend):
    """By torch, as for the inputs: the mask would be another one than the forward's."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    module = pc.compile(text, backend, **({"num_heads": 2, "head_dim": 16} if text.endswith("tail)") else {})).to(device)
    q, k, v = (torch.randn(1, 2, 20, 16, device=device, requires_grad=True) for _ in range(3))
    ids = torch.arange(20, device=device) // 7
    for write in (False, True):
        out = module(q, k, v, ids=ids)
        if write:
            ids.zero_()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.sum().backward()
        else:
            out.sum().backward()


def test_negated_views():
    """Kernels read memory as it is, which is not what torch says of the imaginary part of a conjugate."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(1, 2, 9, 1, dtype=torch.cfloat, device=device).conj().imag
    q = torch.randn(1, 2, 9, 1, device=device)
    torch.testing.assert_close(*(pc.compile("causal", b)(q, x, x) for b in ("triton", "reference")), atol=1e-3, rtol=1e-3)


def test_no_columns():
    x = [torch.randn(1, 2, 5, d, requires_grad=True) for d in (0, 0, 4)]
    runs = [pc.compile("causal", b)(*x) for b in ("cpu", "reference")]
    torch.testing.assert_close(*runs)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x) for y in runs))


def test_what_holds_no_data_or_is_not_dense():
    q = torch.randn(1, 2, 5, 16)
    with pytest.raises(pc.errors.DeviceError, match="arg `ids` is on the meta device and holds no data"):
        pc.compile("causal & documents(ids)", "triton")(q, q, q, ids=torch.arange(5, device="meta"))
    module = pc.compile("causal & (window(4) + linear_tail)", "cpu", num_heads=2, head_dim=16)
    for x, kind in ((q.to_sparse(), "sparse"), (torch.nested.nested_tensor([torch.randn(2, 5, 16)]), "nested")):
        with pytest.raises(pc.errors.OperandError, match=f"`tail_q` must be a dense tensor, got a {kind} one"):
            module(q, q, q, tail_q=x, tail_k=q)
