"""Block sums of states beside dense sums in float64: values and all gradients, in the interpreter or on a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE, MARKS
from strategies import HEADS, draw_args, patterns
from test_tail_kernels import dense, inputs, rest

import patternc as pc
from patternc import functional, reference
from patternc.args import bind
from patternc.codegen import tail_blocks, tail_blocks_launch
from patternc.codegen.tail_blocks_launch import BlockCall, BlockTables, block_backward, block_forward
from patternc.codegen.tail_blocks_text import BlockForm
from patternc.codegen.tail_configs import TailConfig, TailConfigs
from patternc.codegen.tail_text import KERNELS
from patternc.layout import layout
from patternc.plan import mask_of
from patternc.tail_blocks import CHUNK, SUPER, TARGETS, blocks_of

pytestmark = MARKS
causal, arg = pc.causal, pc.arg


def small(block, rows=16, keys=16):
    return TailConfigs(block, dict.fromkeys(KERNELS, TailConfig(rows, keys, 16, 4, 1)))


def call_of(p, bound, kv_heads, feature, configs=None, workspace=None):
    configs, on_device = configs or small(16), bound.torch(DEVICE)
    blocks = blocks_of(layout(p, bound, (configs.slot,) * 2), kv_heads)
    tables = BlockTables.of(blocks, torch.device(DEVICE))
    return BlockCall(feature, mask_of(p), tables, on_device.q_start, on_device.values, configs, workspace)


def check(p, n_q, n_k=None, *, feature="softmax", sums=True, heads=2, kv_heads=1, d=16, dv=16, args=None, batch=1, dtype=torch.float32, layout="bhnd", onto=False, **given):
    """Run forward and backward; return relative errors by name."""
    n_k, args = n_k or n_q, args or {}
    (q, k, v), (dy, dweights) = inputs(n_q, n_k, heads, kv_heads, d, dv, batch, dtype)
    call = call_of(p, bind(p, args, n_q, n_k, heads=heads, batch=batch), kv_heads, feature, **given)
    exact, allowed = [x.double().requires_grad_() for x in (q, k, v)], p.dense(n_q, n_k, heads=heads, batch=batch, **args)
    y, weights = dense(*exact, allowed, feature)
    loss = (y * dy).sum() + ((weights * dweights).sum() if sums else 0.0)
    wanted = [y, weights, *torch.autograd.grad(loss, exact, allow_unused=True, materialize_grads=True)]
    if layout == "bnhd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    q, k, v, dy, dweights = (x.to(DEVICE) for x in (q, k, v, dy, dweights))
    before = [x.clone() for x in (q, k, v)] if onto else None
    got = [*block_forward(call, q, k, v, sums), *block_backward(call, q, k, v, dy, dweights if sums else None, before)]
    if onto:
        got = [*got[:2], *(x - y for x, y in zip(got[2:], (q, k, v)))]
    empty, unread = ~allowed.any(-1), ~allowed.unflatten(1, (kv_heads, -1)).any(2).any(-2)
    errors = {}
    for name, a, b, nothing in zip(("y", "weights", "dq", "dk", "dv"), got, wanted, (empty, empty, empty, unread, unread)):
        if a is not None:
            a = a.cpu().double()
            assert not a.isnan().any() and (a[nothing] == 0).all(), name
            errors[name] = float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-30))
    return errors


IDS = [3, 1] * 8 + [7] * 20 + [3] * 8 + [-1] * 4
TABLE = [[0, 2], [1, 0], [2, 3], [0, 1], [4, 0]]
PATTERNS = {
    "bigbird": (rest(pc.window(16) | pc.random_blocks(1, 16, 0) | pc.global_(16), pc.full), "softmax", {}),
    "random blocks of heads": (rest(pc.random_blocks(1, 8, 3) | pc.window(3)), "elu+1", {}),
    "dilated": (rest(pc.window(12) & pc.dilate(2)), "softmax", {}),
    "dilated both ways": (rest(pc.window(9) & pc.dilate(3), pc.full), "relu", {}),
    "neighbourhood": (rest(pc.neighborhood((8, 9), (3, 3)), pc.full), "softmax", {}),
    "heads": (rest(pc.per_head(pc.window(5), pc.dilate(4))), "softmax", {}),
    "some heads": (pc.per_head(rest(pc.window(5)), pc.empty), "elu+1", {}),
    "table": (rest(pc.block_table(pc.table(TABLE), 16) | pc.window(2), pc.full), "identity", {}),
    "block table": (rest(pc.block_table(arg("t"), 16, width=2) | pc.window(2), pc.full), "softmax", {"t": TABLE}),
    "interleaved documents": (rest(pc.window(4), causal & pc.documents(arg("d"))), "softmax", {"d": IDS}),
    "documents of rows": (rest(pc.window(4), pc.full & ~pc.documents(arg("d"))), "elu+1", {"d": [IDS, [0] * 24 + [1] * 24]}),
    "strided": (rest(pc.window(4) | pc.dilate(5)), "softmax", {}),
    "a width that is given": (rest(pc.window(arg("w")) & pc.dilate(2)), "softmax", {"w": 9}),
    "most keys dead": (rest(pc.window(9) & pc.dilate(2), causal & (pc.k % 16 < 3)), "softmax", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name):
    p, feature, args = PATTERNS[name]
    args = {key: torch.tensor(x) if isinstance(x, list) else x for key, x in args.items()}
    n = 48 if "d" in args else 72
    errors = check(p, n, feature=feature, args=args, batch=2 if name in ("documents of rows", "dilated") else 1)
    assert max(errors.values()) < 3e-6, errors


DILATED = rest(pc.window(12) & pc.dilate(2))


@pytest.mark.parametrize("n_q, n_k", [(1, 1), (1, 40), (33, 60)])
def test_lengths(n_q, n_k):
    errors = check(DILATED if n_k > 1 else causal, n_q, n_k, heads=2, kv_heads=2)
    assert max(errors.values()) < 3e-6, errors


CASES = [
    dict(d=12, dv=40), dict(d=33, dv=8, layout="bnhd"), dict(heads=4, kv_heads=2, feature="elu+1", workspace=1), dict(sums=False, onto=True),
    dict(configs=small(32)), dict(configs=small(32, rows=32)), dict(configs=small(32, keys=32)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_and_tiles(case):
    errors = check(DILATED, 70, **case)
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("workspace", [None, 1])
def test_heads_that_differ_share_keys(workspace):
    p = rest(pc.per_head(pc.window(5), pc.dilate(2), pc.window(9), pc.random_blocks(1, 8, 1)), pc.full)
    errors = check(p, 50, heads=4, kv_heads=2, workspace=workspace)
    assert max(errors.values()) < 3e-6, errors


def dense_of(sums, which, targets):
    """The matrix of a list, [targets, heads, tiles]."""
    out = np.zeros((-(-targets // TARGETS) * TARGETS, sums.heads, sums.width), int)
    for group, (a, b) in enumerate(zip(sums.begin[which], sums.begin[which, 1:])):
        for i in range(a, b):
            head, first = divmod(sums.columns[i], sums.width)
            out[group * TARGETS : (group + 1) * TARGETS, head, first : first + CHUNK] += sums.weights[i]
    whole = np.repeat(out[:, :, sums.padded :], SUPER, 2)[:, :, : sums.padded] if sums.supers else 0
    return (out[:, :, : sums.padded] + whole)[:targets, :, : sums.tiles]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(patterns(), st.data())
def test_every_pair_is_summed_once(p, data):
    """Full tiles up to dead rows and keys, and the masks of partial ones, are the pattern."""
    n_q, n_k = data.draw(st.integers(1, 20)), data.draw(st.integers(20, 30))
    args = draw_args(data.draw, p, n_q, n_k, heads=HEADS, batch=2)
    bound = bind(p, args, n_q, n_k, heads=HEADS, batch=2)
    tile, kv_heads = data.draw(st.sampled_from([2, 4])), data.draw(st.sampled_from([1, HEADS]))
    blocks, wanted = blocks_of(layout(p, bound, (tile, tile)), kv_heads), p.dense(n_q, n_k, heads=HEADS, batch=2, **args).numpy()
    share = HEADS // kv_heads
    for b, h in np.ndindex(2, HEADS):
        own, key = blocks.row_list[b, h], blocks.key_list[b, h // share]
        reads = dense_of(blocks.reads, blocks.sum_list[b, h if blocks.apart else h // share], blocks.rows)[:, 0]
        feeds = dense_of(blocks.feeds, key, blocks.keys)[:, h % share if blocks.apart else 0]
        np.testing.assert_array_equal(reads, feeds.T)
        partial = np.zeros_like(reads)
        for row, (a, z) in enumerate(zip(blocks.partial.begin[own], blocks.partial.begin[own, 1:])):
            partial[row, blocks.partial.entries[a:z]] += 1
        for column, (a, z) in enumerate(zip(blocks.partial_keys.begin[key], blocks.partial_keys.begin[key, 1:])):
            entries = blocks.partial_keys.entries[a:z]
            mine = entries[entries // blocks.rows == h % share] % blocks.rows
            partial[mine, column] += 2
        assert np.isin(partial, (0, 3)).all()
        full, some = (np.repeat(np.repeat(x, tile, 0), tile, 1)[:n_q, :n_k] for x in (reads, partial // 3))
        if blocks.live_rows is not None:
            full = full * blocks.live_rows[own][:, None] * blocks.live_keys[key][None]
        np.testing.assert_array_equal(full + some * wanted[b, h], wanted[b, h])


def test_sums_of_many_tiles():
    """Sums of states stand for their tiles where that leaves fewer blocks; the workspace does not grow with the heads."""
    n = 1 << 17
    p = rest(pc.window(512) & pc.dilate(2))
    blocks = blocks_of(layout(p, bind(p, {}, n, heads=2), (64, 64)), 1)
    assert blocks.reads.supers and blocks.feeds.supers and not blocks.apart
    assert len(blocks.reads.columns) < 40 * n // 64 // TARGETS
    np.testing.assert_array_equal(dense_of(blocks.reads, 0, blocks.rows).sum(), sum(t.full_tiles for t in [layout(p, bind(p, {}, n), (64, 64)).groups[0].tiles]))


@pytest.mark.parametrize("supers", [False, True])
def test_sums_of_sums(monkeypatch, supers):
    from patternc import tail_blocks as plan

    for name, size in (("CHUNK", 16), ("SUPER", 4), ("TARGETS", 16)):
        monkeypatch.setattr(plan, name, size)
        monkeypatch.setattr(tail_blocks_launch, name, size)
    plain = plan._blocks
    if not supers:
        monkeypatch.setattr(plan, "_blocks", lambda *given: [(np.zeros(10**6, int), *x[1:]) for x in plain(*given)] if given[-1] else plain(*given))
    p = rest(pc.window(12) & pc.dilate(2))
    errors = check(p, 560, heads=1, sums=True, feature="elu+1")
    assert max(errors.values()) < 1e-5, errors


def test_float16_does_not_overflow():
    errors = check(DILATED, 40, dtype=torch.float16, feature="identity", sums=False)
    assert max(errors[name] for name in ("y", "dq", "dk", "dv")) < 2e-3, errors


def test_a_mean_of_v_does_not_spoil_dq(monkeypatch):
    """States are rounded without the mean of v: with a gradient that is orthogonal to it, they would lose dq."""
    monkeypatch.setattr(tail_blocks_launch, "operand_of", lambda dtype: (torch.float16, "ieee"))
    n, d = 64, 16
    (q, k, v), (dy, _) = inputs(n, n, 1, 1, d, d)
    q, k, v = (x.half().float() for x in (q, k, v + 40))
    mean = torch.nn.functional.normalize(v.mean(2), dim=-1)[:, :, None]
    dy = (dy - (dy * mean).sum(-1, keepdim=True) * mean).half().float()
    p = causal - pc.block(16)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    want = torch.autograd.grad((dense(*exact, p.dense(n), "softmax")[0] * dy).sum(), exact[0])[0]
    call = call_of(p, bind(p, {}, n), 1, "softmax")

    def error():
        dq = block_backward(call, *(x.to(DEVICE) for x in (q, k, v)), dy.to(DEVICE))[0]
        return float((dq.cpu().double() - want).norm() / want.norm())

    centred = error()
    monkeypatch.setattr(torch.Tensor, "mean", lambda x, dim, dtype: torch.zeros(x.shape[:2] + x.shape[3:], dtype=dtype, device=x.device))
    assert centred < 1e-3 and error() > 10 * centred


MUTATIONS = [
    ("allowed = allowed & key_ok[None, :]", "allowed = key_ok[None, :]"), ("allowed = allowed & row_ok[None, :]", "allowed = row_ok[None, :]"),
    ("row_live[:, None], ", "row_ok[:, None], "), ("key_live[:, None], ", "key_ok[:, None], "), ("first_key = ahead * SLOT", "first_key = ahead * SLOT + 1"),
    ("h = kv_h * GROUP + ahead // row_blocks", "h = kv_h * GROUP"), ("o += total[:, None] * c[None, :]", "o += 0.0"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", MUTATIONS, ids=lambda x: x)
def test_mutations_are_found(monkeypatch, old, new):
    plain = tail_blocks.generate

    def mutated(form, mask):
        source = plain(form, mask)
        assert old in source.text
        return tail_blocks.BlockSource(source.text.replace(old, new), source.kernels, source.masks)

    monkeypatch.setattr(tail_blocks_launch, "generate", mutated)
    p = rest(pc.window(5) | pc.dilate(2) | pc.global_(3), pc.full)
    p = p | (rest(pc.window(20), pc.full) & (pc.q > 2) & (pc.k > 2))
    try:
        errors = check(p, 64, sums=False, feature="elu+1")
    except AssertionError as error:
        assert str(error).split()[0] in ("y", "dq", "dk", "dv")
        return
    assert max(errors.values()) > 1e-3


TERMS = {
    "strided": causal & (pc.window(4) | pc.dilate(4) + pc.linear_tail),
    "bigbird": pc.window(8) | pc.random_blocks(1, 8, 0) | pc.global_(2) + pc.linear_tail("elu+1", "denominator"),
    "performer outside blocks": causal & (pc.random_blocks(1, 8, 0) + pc.linear_tail(feature="favor+", norm="denominator", num_features=20)),
    "heads": causal & (pc.per_head(pc.window(4), pc.dilate(3)) + pc.linear_tail(norm="none", initial_state=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_terms(name):
    """Outputs and gradients of q, k, v, the term's own q and k, scales and initial state, against the reference."""
    pc.verify(TERMS[name], backend="triton", device=DEVICE, dtype=torch.float32, sizes=[40], heads=2, kv_heads=1, head_dim=16, batch=1, quiet=True, raise_error=True)


def test_traced_and_eager_agree():
    (q, k, v), _ = inputs(40, 40, 2, 1, 16, 16)
    x, spec = [t.to(DEVICE).requires_grad_() for t in (q, k, v)], TERMS["bigbird"]
    functional.prepare(spec)
    got = functional.attention(spec, *x, backend="triton")[0]
    torch.testing.assert_close(got, reference.attention(spec, *x)[0].to(q.dtype), atol=1e-4, rtol=1e-4)
    traced = torch.compile(lambda *x: functional.attention(spec, *x, backend="triton")[0], fullgraph=True, backend="aot_eager")(*x)
    torch.testing.assert_close(traced, got)
    torch.testing.assert_close(*(torch.autograd.grad((y * y.detach().cos()).sum(), x) for y in (traced, got)), atol=1e-5, rtol=1e-5)


def test_text():
    """Equal bytes for equal forms and patterns; what they do not need is not in the text."""
    form, mask = BlockForm.of("softmax", False, False, False), mask_of(DILATED)
    source = tail_blocks.generate(form, mask)
    tail_blocks.generate.cache_clear()
    assert tail_blocks.generate(form, mask).text == source.text
    for name in ("live_", "order_ptr", "dsums_ptr", "sums_ptr + tl.cast"):
        assert name not in source.text
    assert "live_rows_ptr" in tail_blocks.generate(BlockForm.of("softmax", False, False, True), mask).text
