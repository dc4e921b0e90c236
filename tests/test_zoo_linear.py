"""Published attentions with a linear term beside their formulas, token by token in float64; layers that hold them train."""

import math

import pytest
import torch

import patternc as pc
from patternc.errors import ParameterError, UnknownNameError
from patternc.zoo.registry import LINEAR

N, HEADS, KV_HEADS, D, WINDOW = 50, 4, 2, 8, 9
DOCUMENT = torch.tensor([0] * 14 + [1] * 1 + [2] * 35)


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, h, N, D, generator=g, dtype=torch.float64) + m for h, m in ((HEADS, 0), (KV_HEADS, 0), (KV_HEADS, 1), (HEADS, 0), (KV_HEADS, 0))]


def features(x):
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)


def norm(x):
    return x * (x.square().mean(-1, keepdim=True) + 1e-8).rsqrt()


def rattention(q, k, v, tail_q, tail_k, scales, state, softmax_over, linear_over):
    """Wang et al. 2025, section 3: one query head, one token after the other; both sets of keys by predicates of (t, i)."""
    out = []
    for t in range(N):
        near = [i for i in range(t + 1) if softmax_over(t, i)]
        scores = torch.stack([q[t] @ k[i] for i in near]) / math.sqrt(D)
        exact = scores.softmax(0) @ v[near]
        memory = state.clone()
        for i in range(t + 1):
            if linear_over(t, i):
                memory = memory + features(tail_k[i])[:, None] * v[i][None, :]
        out.append(norm(exact) * scales[0] + norm(features(tail_q[t]) @ memory) * scales[1])
    return torch.stack(out)


def inside(t, i):
    return t - i <= WINDOW


def same(t, i):
    return DOCUMENT[t] == DOCUMENT[i]


SETS = {  # keys of the softmax, keys of the linear part
    None: (inside, lambda t, i: not inside(t, i)),
    "reset": (lambda t, i: inside(t, i) and same(t, i), lambda t, i: not inside(t, i) and same(t, i)),
    "released": (lambda t, i: inside(t, i) and same(t, i), lambda t, i: not inside(t, i)),
}


@pytest.mark.parametrize("documents, initial_state", [(None, False), (None, True), ("reset", False), ("released", False)])
def test_is_the_formula(documents, initial_state):
    module = pc.compile(pc.zoo.rattention(WINDOW, initial_state, documents), "cpu", num_heads=HEADS, head_dim=D).double()
    torch.nn.init.normal_(module.exact_scale, 1.0, 0.3)
    torch.nn.init.normal_(module.tail_scale, 1.0, 0.3)
    q, k, v, tail_q, tail_k = inputs()
    args = {} if documents is None else {"document": DOCUMENT}
    found = module(q, k, v, tail_q=tail_q, tail_k=tail_k, **args)[0]
    for h in range(HEADS):
        g = h // (HEADS // KV_HEADS)
        state = module.initial_state[h] if initial_state else torch.zeros(2 * D, D, dtype=torch.float64)
        wanted = rattention(q[0, h], k[0, g], v[0, g], tail_q[0, h], tail_k[0, g], (module.exact_scale[h], module.tail_scale[h]), state, *SETS[documents])
        torch.testing.assert_close(found[h], wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("causal_only", [True, False])
def test_performer(causal_only):
    """FAVOR+ of section 2.3 of the paper; with many features it comes near softmax attention."""
    module = pc.compile(pc.zoo.performer(4096, causal_only), "cpu", num_heads=HEADS, head_dim=D).double()
    q, k, v, *_ = (0.3 * x for x in inputs())
    w = module.projection.double()
    phi = lambda x: (torch.exp(x * D**-0.25 @ w.T - (x * D**-0.25).square().sum(-1, keepdim=True) / 2) + 1e-4) / math.sqrt(len(w))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    mask = torch.ones(N, N, dtype=torch.bool).tril() if causal_only else torch.ones(N, N, dtype=torch.bool)
    weights = (phi(q) @ phi(k).mT) * mask
    found = module(q, k, v)
    torch.testing.assert_close(found, weights @ v / weights.sum(-1, keepdim=True), atol=1e-9, rtol=1e-9)
    near = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    assert (found - near).abs().max() < 0.05 * near.abs().max()


@pytest.mark.parametrize("e", LINEAR.values(), ids=lambda e: e.name)
def test_entries(e):
    """They print, parse and say what they are."""
    spec = e.function(**e.options)
    assert pc.parse(str(spec)) is spec
    assert eval(e.call(), {"pc": pc}) is spec
    assert "Source:" in e.function.__doc__ and "The trap:" in e.function.__doc__


def test_mistakes():
    with pytest.raises(ParameterError, match="`window` must be at least 0, got -1"):
        pc.zoo.rattention(-1)
    with pytest.raises(ParameterError, match="`initial_state` is True or False, got 3"):
        pc.zoo.rattention(4, 3)
    with pytest.raises(UnknownNameError, match="did you mean \"reset\""):
        pc.zoo.rattention(4, documents="rest")
    with pytest.raises(ParameterError, match="`num_features` must be at least 1"):
        pc.zoo.performer(0)


def layer(pattern=None):
    torch.manual_seed(0)
    return pc.nn.PatternAttention(32, 4, pc.zoo.rattention(window=8) if pattern is None else pattern, num_kv_heads=2, backend="cpu")


@pytest.mark.parametrize("pattern", [pc.zoo.rattention(8), pc.zoo.rattention(8, initial_state=True), pc.zoo.performer(16)], ids=str)
def test_a_layer_trains(pattern):
    """Every parameter learns, those of the term among them."""
    attention = layer(pattern)
    before = {name: p.detach().clone() for name, p in attention.named_parameters()}
    optimiser = torch.optim.Adam(attention.parameters(), 3e-3)
    x = torch.randn(2, 40, 32)
    wanted = x.cumsum(1) / torch.arange(1, 41)[:, None]
    losses = []
    for _ in range(30):
        loss = (attention(x) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all((p != before[name]).any() for name, p in attention.named_parameters())


@pytest.mark.parametrize("pattern", [pc.zoo.rattention(8, initial_state=True), pc.zoo.performer(16)], ids=str)
def test_a_layer_round_trips(pattern):
    x, source = torch.randn(2, 30, 32), layer(pattern)
    for p in source.parameters():
        torch.nn.init.normal_(p, 0.5, 0.2)
    if "attention.projection" in source.state_dict():
        source.attention.redraw(7)
    else:
        assert {"attention.exact_scale", "attention.tail_scale", "attention.initial_state"} <= set(source.state_dict())
    other = layer(pattern)
    assert (other(x) - source(x)).abs().max() > 1e-3
    other.load_state_dict(source.state_dict())
    torch.testing.assert_close(other(x), source(x))


def test_a_layer_compiles():
    attention, x = layer(), torch.randn(2, 30, 32)
    traced = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x), attention(x))
    leaves = list(attention.parameters())
    for a, b in zip(*(torch.autograd.grad(f(x).square().sum(), leaves) for f in (traced, attention))):
        torch.testing.assert_close(a, b)


def test_autocast():
    """Projections run in bfloat16, features and states in float32: the error is that of the inputs' rounding."""
    attention, x = layer(), torch.randn(2, 60, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x)
        found.float().square().sum().backward()
    assert found.dtype == torch.bfloat16 and all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
    wanted = attention(x)
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_steps(dtype):
    """A prompt, then token by token; under autocast with the rounding of its dtype."""
    attention, x = layer(pc.zoo.rattention(8, initial_state=True)), torch.randn(2, 90, 32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        state, outs = attention.init_state(2, 100), []
        for at in (slice(0, 70), *(slice(t, t + 1) for t in range(70, 90))):
            out, state = attention.step(x[:, at], state)
            outs.append(out)
        wanted = attention(x)
    found, error = torch.cat(outs, 1), 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, wanted, atol=error, rtol=error)
