"""Steps of tokens beside the parallel form."""

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given, strategies as st
from strategies import HEADS, attentions, draw_args

import patternc as pc
from patternc.decode import PROMPT
from patternc.errors import ArgError, BackendError, DtypeError, OperandError, ParameterError, ShapeError

causal, tail, N = pc.causal, pc.linear_tail, 130
IDS = torch.tensor([0] * 40 + [1] * 3 + [2] + [-1] * 6 + [3] * 50 + [4] * 30)
OTHERS = torch.stack([IDS, torch.arange(N) // 7])
SPECS = {
    "rattention": causal & (pc.window(left=20, right=0) + tail), "sinks": causal & (pc.window(9) | pc.sink(3) + tail(norm="none")),
    "chunks": causal & (pc.block(30) + tail("elu+1", "denominator")), "performer": causal & (pc.empty + tail("favor+", "denominator", num_features=12)),
    "initial state": causal & (pc.window(7) + tail(norm="denominator", initial_state=True)), "all": causal & (causal + tail),
    "some keys": causal & (pc.window(5) | pc.cols([2, 40, 90]) + tail), "dilated": causal & ((pc.window(20) & pc.dilate(3)) + tail),
    "dilated and near": causal & ((pc.window(24) & pc.dilate(4)) | pc.window(5) | pc.sink(2) + tail("relu", "none")),
    "documents in blocks": causal & pc.block(50) & (pc.window(3) + tail), "a row that reads everything": causal & (pc.window(5) | pc.rows([50]) + tail),
    "only even keys": causal & (pc.window(11) + tail(norm="none")) & (pc.k % 2 == 0), "no even rows": causal & (pc.window(11) + tail) & (pc.q % 2 == 1),
    "own feature": causal & (pc.window(6) + tail(feature=lambda x: x.square(), norm="denominator")), "identity": causal & (pc.window(left=0, right=0) + tail("identity")),
    "a late window": causal & ((pc.q - pc.k >= 8) & (pc.q - pc.k < 20) + tail(norm="none")), "chunks of a window": causal & pc.block(60) & (pc.block(20) + tail),
}  # fmt: skip
WITH_ARGS = {
    "documents": (causal & pc.documents(pc.arg("ids")) & (pc.window(9) + tail), {"ids": IDS}),
    "documents of each row": (causal & pc.documents(pc.arg("ids")) & (pc.window(9) + tail(norm="denominator")), {"ids": OTHERS}),
    "chunks in documents": (causal & pc.documents(pc.arg("ids")) & (pc.block(16) + tail), {"ids": OTHERS}),
    "dilated in documents": (causal & pc.documents(pc.arg("ids")) & ((pc.window(9) & pc.dilate(2)) + tail(norm="none")), {"ids": OTHERS}),
    "crossing": (pc.zoo.rattention(9, documents="released"), {"document": IDS}), "crossing rows": (pc.zoo.rattention(9, documents="released"), {"document": OTHERS}),
    "earlier documents": (causal & (pc.documents(pc.arg("ids")) + tail), {"ids": torch.arange(N) // 20}),
    "initial state of documents": (pc.zoo.rattention(9, True, "reset"), {"document": OTHERS}),
    "padding": (causal & pc.valid(pc.arg("m")) & (pc.window(9) + tail), {"m": torch.stack([torch.arange(N) >= 10, torch.arange(N) % 5 > 0])}),
    "a width": (causal & (pc.window(pc.arg("w")) + tail), {"w": 13}), "sinks of each row": (causal & (pc.window(9) | pc.cols(pc.arg("s")) + tail), {"s": torch.tensor([[1, 5], [70, 3]])}),
}  # fmt: skip


def tokens(n, batch=2, heads=4, kv_heads=2, d=8, dv=8, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, h, n, w, generator=g).to(dtype) + m for h, w, m in ((heads, d, 0), (kv_heads, d, 0), (kv_heads, dv, 2))]


def stepped(module, x, sizes, length=None, args=None, **own):
    state, at, out = module.init_state(x[0].shape[0], length or x[0].shape[2], **(args or {})), 0, []
    for t in sizes:
        y, state = module.step(*(a[:, :, at : at + t] for a in x), state, **{name: a[:, :, at : at + t] for name, a in own.items()})
        out.append(y)
        at += t
    return torch.cat(out, 2), state


def agrees(spec, args):
    """One token at a time, several, many after others, and a prompt before others."""
    module, x = pc.compile(spec, "cpu", num_heads=4, head_dim=8), tokens(N)
    want = module(*x, **args)
    for sizes in ([1] * N, [1, 50, 3, 17, 59], [PROMPT + 7, 1, 1, 40, N - PROMPT - 49], [N]):
        torch.testing.assert_close(stepped(module, x, sizes, args=args)[0], want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", SPECS)
def test_steps(name):
    agrees(SPECS[name], {})


@pytest.mark.parametrize("name", WITH_ARGS)
def test_steps_with_args(name):
    agrees(*WITH_ARGS[name])


def test_own_keys_and_values():
    module, x = pc.compile(SPECS["sinks"], "cpu"), tokens(100)
    own = dict(zip(("tail_q", "tail_k"), tokens(100, d=6, seed=1)))
    for sizes in ([7] * 14 + [2], [70, 30]):
        torch.testing.assert_close(stepped(module, x, sizes, **own)[0], module(*x, **own), atol=2e-5, rtol=2e-5)


@given(attentions(), st.data())
def test_random_attentions(p, data):
    """Where an attention has a state, steps are its parallel form."""
    p, n = pc.causal & p, data.draw(st.integers(1, 40))
    args = draw_args(data.draw, p, n, batch=2, tensors=True)
    module = pc.compile(p, "cpu", num_heads=HEADS, head_dim=4).double()
    x = [a.double() for a in tokens(n, 2, HEADS, 1, 4, 4)]
    one, prompt = data.draw(st.integers(0, n)), data.draw(st.sampled_from((1, n + 1)))
    with mock.patch("patternc.decode.PROMPT", prompt):
        try:
            out, _ = stepped(module, x, [n - one] + [1] * one, args=args)
        except BackendError:
            return
    torch.testing.assert_close(out, module(*x, **args), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name, n, size, kept", [("rattention", 10_000, 21, 0), ("dilated", 2_000, 20, 0), ("sinks", 2_000, 9, 3)])
def test_the_state_does_not_grow(name, n, size, kept):
    """Thousands of steps: a state of constant size, in float32, as exact as the parallel form."""
    module = pc.compile(SPECS[name], "cpu", num_heads=1, head_dim=4)
    x = tokens(n, 1, 1, 1, 4, 4)
    out, state = stepped(module, x, [1] * n, length=1 << 16)
    assert [r.shape[2] for r in state.ring] == [size + 16] * 2 and [x.shape[2] for x in state.kept] == [kept] * 2
    assert state.total.dtype == torch.float32 and state.folded > n - 40
    parallel, exact = module(*x), copy.deepcopy(module).double()(*(a.double() for a in x))
    error, error_of_parallel = ((y - exact).abs().max() for y in (out, parallel))
    assert error < max(4 * error_of_parallel, 1e-5)


def test_a_prompt_is_one_call(monkeypatch):
    """However long: the parallel form once, and as many sums as keys make."""
    from patternc import decode

    module, n, blocks = pc.compile(SPECS["rattention"], "cpu", num_heads=1, head_dim=8), 20_000, []
    monkeypatch.setattr(decode, "_advance", lambda *_: blocks.append(1))
    x = tokens(n, 1, 1, 1)
    out, state = module.step(*x, module.init_state(1, 1 << 16))
    assert not blocks and state.position == n
    torch.testing.assert_close(out, module(*x))


def test_clones():
    """A clone goes on by itself, and its source does not notice."""
    module, x = pc.compile(SPECS["rattention"], "cpu", num_heads=4, head_dim=8), tokens(100)
    state = module.step(*(a[:, :, :80] for a in x), module.init_state(2, 200))[1]
    other = state.clone()
    module.step(*tokens(30, seed=5), other)
    out, _ = module.step(*(a[:, :, 80:] for a in x), state)
    torch.testing.assert_close(out, module(*x)[:, :, 80:], atol=2e-5, rtol=2e-5)


def test_autocast():
    """Sums stay in float32, outputs have autocast's dtype."""
    module, x = pc.compile(SPECS["chunks"], "cpu"), tokens(100)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = stepped(module, x, [70] + [1] * 30)
        wanted = module(*x)
    assert out.dtype == wanted.dtype == torch.bfloat16 and state.total.dtype == torch.float32 and state.ring[0].dtype == torch.bfloat16
    torch.testing.assert_close(out, wanted, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("text, why", [
    ("window(9) + linear_tail", "keys after the query"), ("causal & (dilate(3) + linear_tail)", "read every earlier key again"),
    ("causal & (random_blocks(2, 8, seed=1) | window(5) + linear_tail)", "differ from head to head"), ("causal & window(9)", "without a term"),
    ("causal & window(20) & (dilate(3) + linear_tail)", "do not only grow"),
    ("causal & (per_head(window(3), window(4)) + linear_tail)", "differ from head to head"), ("causal & (k > n_k - 5) & (window(3) + linear_tail)", "depend on the length"),
])  # fmt: skip
def test_what_has_no_state(text, why):
    with pytest.raises(BackendError, match=why):
        pc.compile(text, num_heads=2, head_dim=8).init_state(1, 200)


def test_mistakes():
    module, x = pc.compile(SPECS["sinks"], "cpu"), tokens(5)
    for bad, words in (((2, 0), "`length` must be at least 1"), ((2.5, 9), "`batch` must be an integer"), ((2,), "missing a required argument: 'length'")):
        with pytest.raises(ParameterError, match=words):
            module.init_state(*bad)
    with pytest.raises(ArgError, match="unknown arg `ids`"):
        module.init_state(2, 9, ids=[1] * 9)
    with pytest.raises(ShapeError, match="its length there is n_k = 20"):
        pc.compile(WITH_ARGS["documents"][0], num_heads=4, head_dim=8).init_state(2, 20, ids=IDS)
    with pytest.raises(ShapeError, match="the state is for 4 tokens"):
        module.step(*x, module.init_state(2, 4))
    with pytest.raises(ShapeError, match="the state is for batch 3, the tokens have 2"):
        module.step(*x, module.init_state(3, 9))
    state = module.step(*x, module.init_state(2, 20))[1]
    with pytest.raises(ShapeError, match="other shapes than those before"):
        module.step(*tokens(5, d=4), state)
    with pytest.raises(OperandError, match="came without `tail_k`"):
        module.step(*x, state, tail_q=x[0], tail_k=x[1].clone())


def test_steps_that_do_not_fit():
    module, other = (pc.compile(pc.causal & (pc.window(left=w, right=0) + pc.linear_tail(norm="none")), "cpu") for w in (15, 3))
    q, k = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 1, 8)
    for bad, state, error, words in (
        ((q.expand(1, 4, 2, 8), k, k), module.init_state(1, 9), ShapeError, "as many queries as keys, got 2 and 1"),
        ((q, k, k), other.init_state(1, 9), OperandError, "the state belongs to another attention"),
        ((q, k, k), None, OperandError, "`state` must be one of `init_state`, got NoneType"),
    ):
        with pytest.raises(error, match=words):
            module.step(*bad, state)
    _, state = module.step(q, k, k, module.init_state(1, 9))
    with pytest.raises(DtypeError, match="the tokens are torch.float16, those before them torch.float32"):
        module.step(q.half(), k.half(), k.half(), state)
    out, after = module.step(q[:, :, :0], k[:, :, :0], k[:, :, :0], state)
    assert out.shape == (1, 4, 0, 8) and after.position == 1
