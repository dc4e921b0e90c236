"""The kernels against dense attention in float64, interpreted where there is no GPU: outputs, lse and all gradients."""

from __future__ import annotations

import math

import pytest
import torch

import patternc as pc
from patternc.codegen.configs import Config
from patternc.codegen.launch import Call, attention_backward, attention_forward
from patternc.codegen.parameters import TileLists
from patternc.expr.index import const
from patternc.expr.pattern import FULL
from patternc.plan import Q_START, R0, R1, AxisPlan, Plan, Run

pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in ("Conversion of an array", "divide by zero")]  # of the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {name: Config(32, 16, 4, 2) for name in ("forward", "backward_rows", "backward_dq", "backward_dkdv")}
Q_LAST, K_LAST = Q_START + pc.n_q - 1, pc.n_k - 1
NEVER = (const(0), const(-1))


def formula(*runs, ascending=True) -> AxisPlan:
    return AxisPlan("formula", tuple(Run(*map(_index, run)) for run in runs), len(runs), ascending)


def _index(x):
    return const(x) if isinstance(x, int) else x


def everywhere(mask) -> Plan:
    """A plan that knows nothing: all tiles are partial."""
    return Plan(mask, formula((0, K_LAST, *NEVER)), formula((Q_START, Q_LAST, *NEVER)))


causal = Plan(pc.causal, formula((0, R1, 0, R0)), formula((R0, Q_LAST, R1, Q_LAST)))


def window(w) -> Plan:
    mask = pc.causal & (pc.q - pc.k < w)
    return Plan(mask, formula((R0 - w + 1, R1, R1 - w + 1, R0)), formula((R0, R1 + w - 1, R1, R0 + w - 1)))


def streaming(w, sinks, ascending=True) -> Plan:
    """causal & (window | sink): two runs, which overlap where rows are early."""
    mask = pc.causal & ((pc.q - pc.k < w) | (pc.k < sinks))
    sink, near = (0, pc.min(R1, sinks - 1), 0, pc.min(R0, sinks - 1)), (R0 - w + 1, R1, R1 - w + 1, R0)
    back = [(R0, R1 + w - 1, R1, R0 + w - 1), (R0, pc.where(R0 < sinks, Q_LAST, -1), R1, pc.where(R1 < sinks, Q_LAST, -1))]
    forward = [sink, near] if ascending else [near, sink]
    return Plan(mask, formula(*forward, ascending=ascending), formula(*back, ascending=False))


def by_head() -> Plan:
    """Head h sees h + 1 keys back: bounds and mask depend on the head."""
    reach = pc.h * 7
    mask = pc.causal & (pc.q - pc.k <= reach)
    return Plan(mask, formula((R0 - reach, R1, R1 - reach, R0)), formula((R0, R1 + reach, R1, R0 + reach)))


def q_and_k(n_q, n_k, start=None):
    start = n_k - n_q if start is None else start
    return torch.arange(start, start + n_q)[:, None], torch.arange(n_k)[None, :]


def reference(q, k, v, allowed, scale):
    """`(o, lse)` in float64; `allowed` broadcasts to [B, H, n_q, n_k]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    s = (q @ k.mT * scale).masked_fill(~allowed, -math.inf)
    lse = s.logsumexp(-1)
    weights = torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    return weights @ v, lse


def check(
    plan, allowed, n_q, n_k=None, *, batch=1, heads=2, kv_heads=None, d=16, dv=None, dtype=torch.float32, start=None, scale=None, layout="bhnd",
    **call,
):  # fmt: skip
    """Run forward and backward on random inputs and compare everything with the reference."""
    n_k, dv, kv_heads = n_k or n_q, dv or d, kv_heads or heads
    start = n_k - n_q if start is None else start
    scale = d**-0.5 if scale is None else scale
    g = torch.Generator().manual_seed(n_q + n_k + d)

    def draw(count, h, width):
        shape = (batch, h, count, width) if layout == "bhnd" else (batch, count, h, width)
        x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        return x if layout == "bhnd" else x.transpose(1, 2)

    q, k, v, do = draw(n_q, heads, d), draw(n_k, kv_heads, d), draw(n_k, kv_heads, dv), draw(n_q, heads, dv)
    dlse = torch.randn(batch, heads, n_q, generator=g)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    allowed = torch.as_tensor(allowed).expand(batch, heads, n_q, n_k)
    o, lse = reference(*exact, allowed, scale)
    some = allowed.any(-1)
    loss = (o * do.double()).sum() + torch.where(some, lse, 0.0).mul(dlse.double()).sum()
    wanted = [o, lse, *torch.autograd.grad(loss, exact)]
    q, k, v, do, dlse = (x.to(DEVICE) for x in (q, k, v, do, dlse))
    made = Call(plan, scale, start, **{"configs": SMALL, **call})
    o, lse = attention_forward(made, q, k, v)
    got = [o, lse, *attention_backward(made, q, k, v, o, lse, do, dlse)]
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}[dtype]
    for name, a, b in zip(("o", "lse", "dq", "dk", "dv"), got, wanted):
        torch.testing.assert_close(a.cpu().double(), b.detach(), atol=tolerance, rtol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
    empty = ~some
    assert (got[1].cpu()[empty] == -math.inf).all() and (got[0].cpu()[empty] == 0).all() and (got[2].cpu()[empty] == 0).all()


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What the launcher leaves unwritten is NaN."""
    plain = torch.empty

    def poisoned(*args, **kwargs):
        x = plain(*args, **kwargs)
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("n", [1, 16, 47, 100])
def test_causal(n):
    q, k = q_and_k(n, n)
    check(causal, k <= q, n)


@pytest.mark.parametrize("dtype", [torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])])
def test_half_precision(dtype):
    q, k = q_and_k(100, 100)
    check(causal, k <= q, 100, d=32, dtype=dtype)


@pytest.mark.parametrize("w", [1, 20, 64])
@pytest.mark.parametrize("n", [33, 150])
def test_window(n, w):
    q, k = q_and_k(n, n)
    check(window(w), (k <= q) & (q - k < w), n)


@pytest.mark.parametrize("ascending", [True, False])
def test_two_runs(ascending):
    q, k = q_and_k(140, 140)
    check(streaming(30, 4, ascending), (k <= q) & ((q - k < 30) | (k < 4)), 140)


def test_full_and_empty():
    q, k = q_and_k(70, 50, 0)
    full = Plan(FULL, formula((0, K_LAST, 0, K_LAST)), formula((Q_START, Q_LAST, Q_START, Q_LAST)))
    check(full, (q + k >= 0), 70, 50, start=0)
    nothing = Plan(pc.empty, formula(), formula())
    check(nothing, torch.zeros(1, dtype=torch.bool), 20)
    check(everywhere(pc.empty), torch.zeros(1, dtype=torch.bool), 20)


def test_rows_without_keys_and_masked_first_tiles():
    q, k = q_and_k(90, 90)
    check(everywhere((pc.q % 5 == 0) & (pc.k > 60)), (q % 5 == 0) & (k > 60), 90)


@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (4, 1)])
@pytest.mark.parametrize("d, dv", [(40, 40), (80, 24)])
def test_grouped_heads_and_widths(heads, kv_heads, d, dv):
    q, k = q_and_k(50, 50)
    check(causal, k <= q, 50, batch=2, heads=heads, kv_heads=kv_heads, d=d, dv=dv)


def test_by_head():
    q, k = q_and_k(60, 60)
    h = torch.arange(4)[:, None, None]
    check(by_head(), (k <= q) & (q - k <= 7 * h), 60, heads=4, kv_heads=2)
    mask = pc.per_head(pc.causal, pc.full, pc.empty, pc.k < 3)
    allowed = torch.stack(torch.broadcast_tensors(k <= q, q + k >= 0, q < 0, k < 3))
    check(everywhere(mask), allowed, 60, heads=4)


@pytest.mark.parametrize("n_q, n_k", [(1, 90), (20, 90), (37, 64)])
def test_fewer_queries_than_keys(n_q, n_k):
    q, k = q_and_k(n_q, n_k)
    check(window(25), (k <= q) & (q - k < 25), n_q, n_k)


@pytest.mark.parametrize("start", [0, 11, 200])
def test_start(start):
    q, k = q_and_k(40, 70, start)
    check(window(25), (k <= q) & (q - k < 25), 40, 70, start=start)


def test_start_by_batch_row():
    start = torch.tensor([3, 30], dtype=torch.int32, device=DEVICE)
    q = start.cpu()[:, None, None, None] + torch.arange(40)[:, None]
    k = torch.arange(70)
    check(causal, k <= q, 40, 70, batch=2, start=start)


@pytest.mark.parametrize("scale", [1.0, 0.0, -0.3])
def test_scale(scale):
    q, k = q_and_k(40, 40)
    check(causal, k <= q, 40, scale=scale)


def test_strides():
    q, k = q_and_k(50, 50)
    check(window(20), (k <= q) & (q - k < 20), 50, batch=2, layout="bnhd")
    x = torch.randn(1, 2, 16, 50, device=DEVICE).mT  # the last stride is not 1
    contiguous = attention_forward(Call(causal, 0.25, configs=SMALL), x.contiguous(), x.contiguous(), x.contiguous())
    with pytest.warns(UserWarning, match="last stride"):
        for one, other in zip(attention_forward(Call(causal, 0.25, configs=SMALL), x, x, x), contiguous):
            assert torch.equal(one, other)


def test_padding_never_leaks():
    """Keys and values beyond n_k are NaN in memory."""
    store = torch.full((1, 2, 64, 16), math.nan, device=DEVICE)
    part = store[:, :, :50]
    part.copy_(torch.randn(1, 2, 50, 16))
    made = Call(causal, 0.25, configs=SMALL)
    o, lse = attention_forward(made, part, part, part)
    results = [o, lse, *attention_backward(made, part, part, part, o, lse, torch.ones_like(o))]
    assert all(x.isfinite().all() for x in results)


ARITHMETIC = {
    "residue": ((pc.q - pc.k) % 3 == 1, lambda q, k: (q - k) % 3 == 1),
    "residue of a power of two": ((pc.q - pc.k) % 4 == 3, lambda q, k: (q - k) % 4 == 3),
    "dilated": ((pc.q - pc.k) % 3 == 0, lambda q, k: (q - k) % 3 == 0),
    "remainders compared": ((pc.q - 2 * pc.k) % 7 >= 3, lambda q, k: (q - 2 * k) % 7 >= 3),
    "quotient": ((pc.q - pc.k) // 5 == -1, lambda q, k: (q - k) // 5 == -1),
    "negative quotient": ((pc.k - pc.q - 3) // 4 < -2, lambda q, k: (k - q - 3) // 4 < -2),
    "variable divisor": ((pc.k - pc.q) % (pc.h + 2) == 1, lambda q, k: torch.stack([(k - q) % 2 == 1, (k - q) % 3 == 1])),
    "blocks": (pc.block(10, 1), lambda q, k: (q // 10 - k // 10 >= 0) & (q // 10 - k // 10 <= 1)),
    "abs, min, max": (abs(pc.min(pc.q, 20) - pc.max(pc.k, 7)) < 6, lambda q, k: (q.clamp(max=20) - k.clamp(min=7)).abs() < 6),
    "product": (pc.q * pc.k % 5 < 2, lambda q, k: q * k % 5 < 2),
    "where": (pc.where(pc.q < 20, pc.k, pc.q) >= 15, lambda q, k: torch.where(q < 20, k, q) >= 15),
    "not, xor": (~(pc.k <= pc.q) ^ (pc.q % 2 == 0), lambda q, k: ~(k <= q) ^ (q % 2 == 0)),
    "far bounds": (pc.q - pc.k < 2**31 - 1, lambda q, k: q - k < 2**31 - 1),
    "positions": (pc.cols([3, 17, 18, 40]), lambda q, k: (k == 3) | (k == 17) | (k == 18) | (k == 40) | (q < 0)),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_arithmetic(case):
    pattern, meaning = ARITHMETIC[case]
    q, k = q_and_k(45, 45)
    check(everywhere(pattern), meaning(q, k), 45)


def test_reads():
    """An index outside its tensor makes the comparison false, and its negation true."""
    n = 45
    q, k = q_and_k(n, n)
    t = torch.tensor([5, 1, 4, 1, 5, 9, 2, 6])
    table = pc.table(t.tolist())
    inside = (k - 10 >= 0) & (k - 10 < 8)
    value = t[(k - 10).clamp(0, 7)]
    check(everywhere(table[pc.k - 10] <= 4), inside & (value <= 4) & (q >= 0), n)
    check(everywhere(~(table[pc.k - 10] <= 4)), ~(inside & (value <= 4)) & (q >= 0), n)
    grid = pc.table([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    blocks = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
    check(everywhere(grid[pc.q // 15, pc.k // 15] == 1), blocks[q // 15, k // 15], n)


def test_args():
    n, batch = 40, 2
    q, k = q_and_k(n, n)
    ids = torch.randint(-1, 3, (batch, n), generator=torch.Generator().manual_seed(0)).sort(-1).values
    same = (ids[:, None, :, None] == ids[:, None, None, :]) & (ids >= 0)[:, None, :, None]
    documents = {"doc": ids.int().to(DEVICE)}
    check(everywhere(pc.documents(pc.arg("doc"))), same, n, batch=batch, args=documents)
    check(everywhere(pc.documents(pc.arg("doc"))), same[:1], n, batch=batch, args={"doc": documents["doc"][:1]})
    width = torch.tensor([3, 12], dtype=torch.int32)
    per_row = (q - k).abs() < width[:, None, None, None]
    wide = pc.window(pc.arg("w"))
    check(everywhere(wide), per_row, n, batch=batch, args={"w": width.to(DEVICE)})
    check(everywhere(wide), (q - k).abs() < 5, n, batch=batch, args={"w": 5})
    check(everywhere(wide), (q - k).abs() >= 0, n, args={"w": 2**31 - 1})
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(1)) < 0.5
    check(everywhere(pc.valid(pc.arg("keep"))), mask[:, None, None, :], n, batch=batch, args={"keep": mask.to(DEVICE)})
    check(everywhere(pc.arg("bias")[pc.q, pc.k] > 0), (q * k) % 3 > 0, n, args={"bias": ((q * k) % 3).int()[None].to(DEVICE)})


def tables(run):
    """Bounds for a "table" plan from a Python function of (direction, r0, r1)."""

    def bounds(direction, rows, cols, n=100):
        entries = [[run(direction, r, min(r + rows, n) - 1)] for r in range(0, n, rows)]
        return torch.tensor(entries, dtype=torch.int32, device=DEVICE)[None, None]

    return bounds


def test_table_kind():
    axis = AxisPlan("table", (), 1, True)
    q, k = q_and_k(100, 100)

    def run(direction, r0, r1):
        return (r0 - 19, r1, r1 - 19, r0) if direction == "forward" else (r0, r1 + 19, r1, r0 + 19)

    check(Plan(window(20).mask, axis, axis), (k <= q) & (q - k < 20), 100, bounds=tables(run))


def test_list_kind():
    axis = AxisPlan("list", (), 0, True)
    q, k = q_and_k(100, 100)
    allowed = torch.stack([(k <= q) & (q - k < 20), k <= q])  # two groups of heads

    def bounds(direction, rows, cols):
        pointers, entries = ([], []), ([], [])
        for mask in allowed if direction == "forward" else allowed.mT:
            for kind in (0, 1):
                pointers[kind].append([])
            for r in range(0, 100, rows):
                for kind in (0, 1):
                    pointers[kind][-1].append(len(entries[kind]))
                for c in range(0, 100, cols):
                    part = mask[r : r + rows, c : c + cols]
                    if part.any():
                        entries[1 if part.all() and c + cols <= 100 else 0].append(c // cols)
            for kind in (0, 1):
                pointers[kind][-1].append(len(entries[kind]))
        tensor = lambda x: torch.tensor(x or [0], dtype=torch.int32, device=DEVICE)
        return TileLists(tensor([0, 1, 0, 1]), tensor(pointers[0]), tensor(entries[0]), tensor(pointers[1]), tensor(entries[1]))

    mask = pc.per_head(*[window(20).mask, pc.causal] * 2)
    check(Plan(mask, axis, axis), allowed.repeat(2, 1, 1), 100, heads=4, kv_heads=2, bounds=bounds)


@pytest.mark.parametrize("variant", ["descriptors", "rows"])
def test_variants(variant):
    n = 96 if variant == "rows" else 90
    q, k = q_and_k(n, n)
    check(streaming(30, 4), (k <= q) & ((q - k < 30) | (k < 4)), n, batch=2, heads=4, kv_heads=2, d=32, dv=16, variant=variant)


def test_offsets_beyond_32_bits():
    """Two heads that lie more than 2^31 elements apart, in memory that is reserved and hardly touched."""
    far = 2**31 + 4096
    store = torch.zeros(1, dtype=torch.float16, device=DEVICE).untyped_storage().resize_(2 * (far + 4096))
    x = torch.empty(0, dtype=torch.float16, device=DEVICE).set_(store, 0, (1, 2, 20, 16), (2 * far, far, 16, 1))
    x.copy_(torch.randn(1, 2, 20, 16))
    near = x.clone(memory_format=torch.contiguous_format)
    for one, other in zip(attention_forward(Call(causal, 0.25, configs=SMALL), x, x, x), attention_forward(Call(causal, 0.25, configs=SMALL), near, near, near)):
        assert torch.equal(one, other)
