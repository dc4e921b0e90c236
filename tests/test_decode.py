"""Steps of tokens beside the parallel form."""

import pytest
import torch

import patternc as pc
from patternc.errors import BackendError, DtypeError, OperandError, ParameterError, ShapeError

pytestmark = pytest.mark.usefixtures("one_thread")
causal = pc.causal
SPECS = {
    "rattention": causal & (pc.window(left=20, right=0) + pc.linear_tail), "sinks": causal & (pc.window(9) | pc.sink(3) + pc.linear_tail(norm="none")),
    "chunks": causal & (pc.block(30) + pc.linear_tail("elu+1", "denominator")), "performer": causal & (pc.empty + pc.linear_tail("favor+", "denominator", num_features=12)),
    "initial state": causal & (pc.window(7) + pc.linear_tail(norm="denominator", initial_state=True)), "all": causal & (causal + pc.linear_tail),
    "some keys": causal & (pc.window(5) | pc.cols([2, 40, 90]) + pc.linear_tail),
}  # fmt: skip


def tokens(n, batch=2, heads=4, kv_heads=2, d=8, dv=8, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, h, n, w, generator=g).to(dtype) + m for h, w, m in ((heads, d, 0), (kv_heads, d, 0), (kv_heads, dv, 2))]


def stepped(module, x, sizes, length=None, **own):
    state, at, out = module.init_state(x[0].shape[0], length or x[0].shape[2]), 0, []
    for t in sizes:
        y, state = module.step(*(a[:, :, at : at + t] for a in x), state, **{name: a[:, :, at : at + t] for name, a in own.items()})
        out.append(y)
        at += t
    return torch.cat(out, 2), state


@pytest.mark.parametrize("name", SPECS)
def test_steps(name):
    """One token at a time, several, and many, in any order."""
    module, x = pc.compile(SPECS[name], "cpu", num_heads=4, head_dim=8), tokens(130)
    want = module(*x)
    for sizes in ([1] * 130, [1, 50, 3, 17, 59]):
        torch.testing.assert_close(stepped(module, x, sizes)[0], want, atol=2e-5, rtol=2e-5)


def test_own_keys_and_values():
    module, x = pc.compile(SPECS["sinks"], "cpu"), tokens(60)
    own = dict(zip(("tail_q", "tail_k"), tokens(60, d=6, seed=1)))
    torch.testing.assert_close(stepped(module, x, [7] * 8 + [4], **own)[0], module(*x, **own), atol=2e-5, rtol=2e-5)


def test_the_state_does_not_grow():
    """Thousands of steps: a state of constant size, in float32, as exact as the parallel form."""
    module, n = pc.compile(SPECS["rattention"], "cpu", num_heads=1, head_dim=8), 10_000
    x = tokens(n, 1, 1, 1)
    out, state = stepped(module, x, [1] * n, length=1 << 20)
    assert [r.shape[2] for r in state.ring] == [21 + 32] * 2 and state.total.dtype == torch.float32 and state.folded > n - 40
    torch.testing.assert_close(out, module.double()(*(a.double() for a in x)).float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text, why", [
    ("window(9) + linear_tail", "keys after the query"), ("causal & (dilate(3) + linear_tail)", "class N"), ("causal & documents(d) & (window(3) + linear_tail)", "depend on args"),
    ("causal & block(50) & (window(3) + linear_tail)", "begin anew"), ("causal & (window(5) | rows([50]) + linear_tail)", "a row reads none"), ("causal & window(9)", "without a term"),
])  # fmt: skip
def test_what_has_no_state(text, why):
    with pytest.raises(BackendError, match=why):
        pc.compile(text, num_heads=1, head_dim=8).init_state(1, 200)


def test_mistakes():
    module, x = pc.compile(SPECS["sinks"], "cpu"), tokens(5)
    with pytest.raises(ParameterError, match="`length` is a positive integer"):
        module.init_state(2, 0)
    with pytest.raises(ShapeError, match="the state is for 4 tokens"):
        module.step(*x, module.init_state(2, 4))
    state = module.step(*x, module.init_state(2, 20))[1]
    with pytest.raises(ShapeError, match="other shapes than those before"):
        module.step(*tokens(5, d=6), state)
    with pytest.raises(ShapeError, match="the state is of 2 rows, and the tokens are of 1"):
        module.step(*tokens(5, batch=1), state)
    with pytest.raises(ParameterError, match="`batch` is a positive integer, got 0"):
        module.init_state(0, 5)


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
