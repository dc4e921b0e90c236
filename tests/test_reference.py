"""The reference against loops in plain Python that know nothing of the package."""

import math

import numpy as np
import pytest
import torch

import patternc as pc
from patternc.reference import attention, dense

arg, q, k, h, b, i, n_k = pc.arg, pc.q, pc.k, pc.h, pc.b, pc.i, pc.n_k
DOC = [[0, 0, 1, 1, -1, 2, 2, 2, 0], [3, 3, 3, -1, 4, 4, 4, 4, 4]]
TABLE = [2, 0, 5]


def at(data, *subscripts):
    """The entry, or None outside."""
    for s in subscripts:
        if not 0 <= s < len(data):
            return None
        data = data[s]
    return data


def docs(B, x, y):
    return DOC[B][x] == DOC[B][y] and DOC[B][x] >= 0


# (pattern, args, the same as a Python function of b, h, q, k, n_k)
CASES = {
    "causal": (pc.causal, {}, lambda B, H, x, y, n: y <= x),
    "window": (pc.window(3), {}, lambda B, H, x, y, n: abs(x - y) < 3),
    "window sides": (pc.window(left=3, right=1), {}, lambda B, H, x, y, n: -1 <= x - y <= 3),
    "dilate": (pc.dilate(3), {}, lambda B, H, x, y, n: (x - y) % 3 == 0),
    "residue one": ((q - k) % 3 == 1, {}, lambda B, H, x, y, n: (x - y) % 3 == 1),
    "block": (pc.block(4, back=1), {}, lambda B, H, x, y, n: 0 <= x // 4 - y // 4 <= 1),
    "global": (pc.global_([1, 5]), {}, lambda B, H, x, y, n: x in (1, 5) or y in (1, 5)),
    "range": (pc.cols(range(1, 8, 3)), {}, lambda B, H, x, y, n: y in (1, 4, 7)),
    "sink": (pc.causal & (pc.sink(2) | pc.window(2)), {}, lambda B, H, x, y, n: y <= x and (y < 2 or x - y < 2)),
    "not, minus, xor": ((~pc.window(2) - pc.sink(1)) ^ pc.causal, {}, lambda B, H, x, y, n: (abs(x - y) >= 2 and y >= 1) != (y <= x)),
    "documents": (pc.documents(arg("d")), dict(d=DOC), lambda B, H, x, y, n: docs(B, x, y)),
    "documents b": ((arg("d")[b, q] == arg("d")[b, k]) & (arg("d")[b, q] >= 0), dict(d=DOC), lambda B, H, x, y, n: docs(B, x, y)),
    "documents shared": (pc.documents(arg("d")), dict(d=DOC[0]), lambda B, H, x, y, n: docs(0, x, y)),
    "same": (pc.same(i // 3), {}, lambda B, H, x, y, n: x // 3 == y // 3),
    "shift": (pc.block(4).shift(1), {}, lambda B, H, x, y, n: (x - 1) // 4 == (y - 1) // 4),
    "roll": (pc.block(4).roll(2), {}, lambda B, H, x, y, n: (x - 2) % n // 4 == (y - 2) % n // 4),
    "scalar": (pc.window(arg("w")), dict(w=3), lambda B, H, x, y, n: abs(x - y) < 3),
    "scalar batch": (pc.window(arg("w")), dict(w=[1, 4]), lambda B, H, x, y, n: abs(x - y) < (1, 4)[B]),
    "mask": (pc.global_(arg("t")), dict(t=[n % 4 == 0 for n in range(9)]), lambda B, H, x, y, n: x % 4 == 0 or y % 4 == 0),
    "mask batch": (pc.cols(arg("t")), dict(t=[[n % 4 == s for n in range(9)] for s in (0, 1)]), lambda B, H, x, y, n: y % 4 == B),
    "positions": (pc.rows(arg("t")), dict(t=[3, -1, 7, 99]), lambda B, H, x, y, n: x in (3, 7)),
    "positions batch": (pc.cols(arg("t")), dict(t=[[3, -1], [0, 5]]), lambda B, H, x, y, n: y in ((3,), (0, 5))[B]),
    "not in positions": (~pc.cols(arg("t")), dict(t=[3]), lambda B, H, x, y, n: y != 3),
    "shifted member": (pc.rows(arg("t")).shift(-2), dict(t=[3, 8]), lambda B, H, x, y, n: x + 2 in (3, 8)),
    "lengths": (pc.valid(arg("m")), dict(m=[4, 7]), lambda B, H, x, y, n: y < (4, 7)[B]),
    "length": (pc.valid(arg("m")), dict(m=4), lambda B, H, x, y, n: y < 4),
    "valid mask": (pc.valid(arg("m")), dict(m=[n > 2 for n in range(9)]), lambda B, H, x, y, n: y > 2),
    "prefix": (pc.causal | pc.prefix(arg("p")), dict(p=[2, 0]), lambda B, H, x, y, n: y <= x or y < (2, 0)[B]),
    "heads": (pc.heads([0, 2]) & pc.causal, {}, lambda B, H, x, y, n: H in (0, 2) and y <= x),
    "heads arg": (pc.heads(arg("hs")), dict(hs=[2]), lambda B, H, x, y, n: H == 2),
    "per head": (pc.per_head(pc.causal, pc.window(2), h == 2), {}, lambda B, H, x, y, n: (y <= x, abs(x - y) < 2, True)[H]),
    "table": (pc.table(TABLE)[q % 3] == k % 4, {}, lambda B, H, x, y, n: TABLE[x % 3] == y % 4),
    "outside": (pc.table(TABLE)[q - k - n_k + 2] >= 0, {}, lambda B, H, x, y, n: at(TABLE, x - y - n + 2) is not None),
    "not outside": (~(pc.table(TABLE)[pc.min(q - k, 2)] == 0), {}, lambda B, H, x, y, n: at(TABLE, min(x - y, 2)) != 0),
    "unequal outside": (pc.table(TABLE)[pc.min(q - k, 2)] != 0, {}, lambda B, H, x, y, n: at(TABLE, min(x - y, 2)) not in (0, None)),
    "data subscript": (arg("a")[arg("c")[q]] == k, dict(a=[1, 4, 0], c=[0, 1, 2, -1, 7, 2, 2, 1, 0]),
                       lambda B, H, x, y, n: at([1, 4, 0], [0, 1, 2, -1, 7, 2, 2, 1, 0][x]) == y),
    "where takes one side": (pc.where(k < 3, pc.table(TABLE)[pc.min(k, q, 2)], q - 4) <= 2, {},
                             lambda B, H, x, y, n: (TABLE[min(x, y, 2)] if y < 3 else x - 4) <= 2),
    "where outside": (pc.where(q < k, pc.table(TABLE)[pc.min(q - k, 2)], 1) == 1, {}, lambda B, H, x, y, n: x >= y),
    "arithmetic": ((q * k - 7) // 4 % 3 <= pc.clamp(abs(q - 2 * k), 1, 2), {},
                   lambda B, H, x, y, n: (x * y - 7) // 4 % 3 <= min(max(abs(x - 2 * y), 1), 2)),
    "lengths in expressions": (q + k >= n_k + pc.n_q - 9, {}, lambda B, H, x, y, n: x + y >= n + SIZES[0] - 9),
}
SIZES = [9]


@pytest.mark.parametrize("n_q, start", [(9, None), (4, None), (1, None), (5, 2), (3, [0, 6])], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_pair(case, n_q, start):
    pattern, args, truth = CASES[case]
    SIZES[0] = n_q
    got = pattern.dense(n_q, 9, heads=3, batch=2, q_start=start, **args)
    assert got.shape == (2, 3, n_q, 9) and got.dtype == torch.bool
    first = [9 - n_q if start is None else start[B] if isinstance(start, list) else start for B in range(2)]
    for B, H, row, y in np.ndindex(2, 3, n_q, 9):
        assert bool(got[B, H, row, y]) == truth(B, H, first[B] + row, y, 9), (B, H, first[B] + row, y)


def test_sizes_of_zero():
    assert pc.causal.roll(1).dense(0).shape == (1, 1, 0, 0)
    assert dense(pc.full, 2, 0, q_start=0).shape == (1, 1, 2, 0)


def loop_attention(mask, rest, Q, K, V, scale, phi, norm, h0=None, scales=None):
    """softmax over `mask`, linear tail over `rest`, one row after another in numpy."""
    B, H, n, _ = Q.shape
    out, lse = np.zeros((B, H, n, V.shape[-1])), np.full((B, H, n), -np.inf)
    for B_, H_, row in np.ndindex(B, H, n):
        kv = H_ // (H // K.shape[1])
        keys = np.flatnonzero(mask[B_, H_, row])
        exact = np.zeros(V.shape[-1])
        if len(keys):
            s = np.array([scale * Q[B_, H_, row] @ K[B_, kv, j] for j in keys])
            lse[B_, H_, row] = math.log(sum(math.exp(x) for x in s))
            exact = sum(math.exp(x - lse[B_, H_, row]) * V[B_, kv, j] for x, j in zip(s, keys))
        if rest is None:
            out[B_, H_, row] = exact
            continue
        f = phi(Q[B_, H_, row])
        keys = np.flatnonzero(rest[B_, H_, row])
        weights = [f @ phi(K[B_, kv, j]) for j in keys]
        tail = sum((w * V[B_, kv, j] for w, j in zip(weights, keys)), np.zeros(V.shape[-1]))
        total = sum(weights)
        if h0 is not None:
            tail = tail + f @ h0[H_, :, : V.shape[-1]]
            total += f @ h0[H_, :, -1]
        if norm == "denominator":
            tail = tail / total if total else 0 * tail
        if norm == "rms":
            rms = [x / math.sqrt((x**2).mean() + 1e-8) for x in (exact, tail)]
            exact, tail = (x if scales is None else x * s[H_] for x, s in zip(rms, scales or (None, None)))
        out[B_, H_, row] = exact + tail
    return out, lse


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


W = np.random.default_rng(5).normal(size=(6, 4))
PHI = {
    "softmax": lambda x: np.concatenate([softmax(x), softmax(-x)]),
    "elu+1": lambda x: np.where(x > 0, x + 1, np.exp(x)),
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
    "favor+": lambda x: (np.exp(W @ (x / 4**0.25) - (x @ x) / 2 / 2) + 1e-4) / math.sqrt(6),
}


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    shapes = (2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 3)
    return [rng.normal(size=s) + (s[-1] == 3) for s in shapes]


def test_softmax_attention(inputs):
    p = (pc.window(2) & pc.causal & pc.valid(arg("m"))) - (q == 4)
    out, lse = attention(p, *map(torch.tensor, inputs), dict(m=[7, 4]))
    mask = p.dense(5, 7, 4, 2, m=[7, 4]).numpy()
    assert not mask.any(-1).all()
    want = loop_attention(mask, None, *inputs, 0.5, None, None)
    np.testing.assert_allclose(out, want[0], atol=1e-12)
    np.testing.assert_allclose(lse, want[1], atol=1e-12)
    assert (attention(p, *map(torch.tensor, inputs), dict(m=7), scale=1.0)[1] != lse).any()


@pytest.mark.parametrize("state", [False, True], ids=["", "h0"])
@pytest.mark.parametrize("norm", ["rms", "none", "denominator"])
@pytest.mark.parametrize("feature", PHI)
def test_tail(inputs, feature, norm, state):
    spec = pc.causal & (pc.window(2) - pc.sink(1) + pc.linear_tail(feature, norm))
    exact, domain = (x.dense(5, 7, 4, 2).numpy() for x in (spec.exact, spec.domain))
    rng = np.random.default_rng(1)
    size = len(PHI[feature](np.zeros(4)))
    h0 = rng.normal(size=(4, size, 3 + (norm == "denominator"))) if state else None
    scales = tuple(rng.normal(size=(2, 4, 3))) if norm == "rms" else None
    options = dict(initial_state=None if h0 is None else torch.tensor(h0), projection=torch.tensor(W))
    if scales:
        options.update(exact_scale=torch.tensor(scales[0]), tail_scale=torch.tensor(scales[1]))
    out, lse = attention(spec, *map(torch.tensor, inputs), **options)
    want = loop_attention(exact, domain & ~exact, *inputs, 0.5, PHI[feature], norm, h0, scales)
    np.testing.assert_allclose(out, want[0], atol=1e-10)
    np.testing.assert_allclose(lse, want[1], atol=1e-10)


def test_separate_tail_inputs_and_user_feature(inputs):
    Q, K, V = map(torch.tensor, inputs)
    spec = pc.empty + pc.linear_tail(feature=lambda x: x * x, norm="none")
    out, lse = attention(spec, Q, K, V, tail_q=Q[..., :2], tail_k=K[..., 1:3])
    weights = (Q[..., :2] ** 2) @ (K[..., 1:3] ** 2).repeat_interleave(2, 1).mT
    torch.testing.assert_close(out, weights @ V.repeat_interleave(2, 1))
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("norm", ["rms", "none", "denominator"])
def test_rows_without_keys(norm):
    """Output 0, lse -inf, gradients exactly 0, and no NaN."""
    torch.manual_seed(0)
    x = [torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    p = pc.causal & (q >= 3) & (k >= 1)
    for spec in (p, p & (pc.window(1) + pc.linear_tail(norm=norm))):
        out, lse = attention(spec, *x)
        assert (out[..., :3, :] == 0).all() and (lse[..., :3] == -torch.inf).all() and out.isfinite().all()
        gradients = torch.autograd.grad(out.square().sum() + lse[..., 3:].sum(), x)
        assert all(g.isfinite().all() for g in gradients)
        assert (gradients[0][..., :3, :] == 0).all() and (gradients[1][..., 0, :] == 0).all() and (gradients[2][..., 0, :] == 0).all()


@pytest.mark.parametrize("norm", ["rms", "none", "denominator"])
def test_gradcheck(norm):
    torch.manual_seed(0)
    shapes = (1, 2, 4, 3), (1, 1, 5, 3), (1, 1, 5, 2), (2, 6, 2 + (norm == "denominator"))
    x = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    spec = pc.causal & (pc.window(2) + pc.linear_tail(norm=norm))
    assert torch.autograd.gradcheck(lambda q, k, v, h0: attention(spec, q, k, v, initial_state=h0.exp()), x)
