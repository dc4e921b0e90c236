"""The kernels of a linear tail beside dense sums in float64: values and all gradients, in the interpreter or on a GPU."""

import pytest
import torch
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc.args import bind
from patternc.codegen import tail_configs, tail_kernels, tail_launch, tail_states
from patternc.codegen.tail_call import SlotTables, TailCall
from patternc.codegen.tail_configs import TailConfig, TailConfigs
from patternc.codegen.tail_launch import tail_backward, tail_forward
from patternc.codegen.tail_text import KERNELS, Form
from patternc.expr.pattern import all_of, negate
from patternc.tail import feature_map
from patternc.tail_plan import tail_plan
from patternc.tail_slots import slots_of

pytestmark = MARKS
causal, arg = pc.causal, pc.arg


def small(slot, block_m=16, block_n=16):
    return TailConfigs(slot, dict.fromkeys(KERNELS, TailConfig(block_m, block_n, 16, 4, 1)))


IDS = [3] * 9 + [1] * 1 + [4] * 17 + [-1] * 2 + [7] * 15 + [-1] * 2  # one document of one token


def rest(exact, domain=causal):
    return all_of(domain, negate(exact))


def inputs(n_q, n_k, heads, kv_heads, d, dv, batch=1, dtype=torch.float32):
    """q and k peaked, and alike near the diagonal; v with a mean."""
    g = torch.Generator().manual_seed(n_q + n_k + d)
    near = torch.randn(batch, kv_heads, max(n_q, n_k) // 5 + 1, d, generator=g).repeat_interleave(5, 2)
    q, k = (2 * near[:, :, -n:] + 0.5 * torch.randn(batch, kv_heads, n, d, generator=g) for n in (n_q, n_k))
    q = q.repeat_interleave(heads // kv_heads, 1) + torch.randn(batch, heads, n_q, d, generator=g)
    v = torch.randn(batch, kv_heads, n_k, dv, generator=g) + 3
    dy, dweights = torch.randn(batch, heads, n_q, dv, generator=g), torch.randn(batch, heads, n_q, generator=g)
    return [x.to(dtype) for x in (q, k, v)], (dy, dweights)


def dense(q, k, v, allowed, feature):
    phi, group = feature_map(feature), q.shape[1] // k.shape[1]
    weights = (phi(q) @ phi(k.repeat_interleave(group, 1)).mT).masked_fill(~allowed, 0.0)
    return weights @ v.repeat_interleave(group, 1), weights.sum(-1)


def call_of(scan, call, feature, configs=None):
    """The kernels' call for one scan of a plan."""
    tables = lambda block: SlotTables.of(slots_of(scan, call.q_start, call.n_q, call.n_k, block), torch.device(DEVICE))
    return TailCall(feature, tables, configs or small(32))


def check(p, n_q, n_k=None, *, feature="softmax", sums=True, heads=2, kv_heads=1, d=16, dv=16, keep=True, args=None, dtype=torch.float32, configs=None, layout="bhnd", batch=1):
    """Run forward and backward, with and without the kept states; return relative errors by name."""
    n_k, args = n_k or n_q, args or {}
    (q, k, v), (dy, dweights) = inputs(n_q, n_k, heads, kv_heads, d, dv, batch, dtype)
    call = bind(p, args, n_q, n_k, heads=heads, batch=batch)
    plan = tail_plan(p, call)
    scans = [call_of(scan, call, feature, configs) for scan in plan.scans]
    exact, allowed = [x.double().requires_grad_() for x in (q, k, v)], p.dense(n_q, n_k, heads=heads, batch=batch, **args)
    y, weights = dense(*exact, allowed, feature)
    loss = (y * dy).sum() + ((weights * dweights).sum() if sums else 0.0)
    wanted = [y, weights, *torch.autograd.grad(loss, exact)]
    if layout == "bnhd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    q, k, v, dy, dweights = (x.to(DEVICE) for x in (q, k, v, dy, dweights))
    y, weights, gradients, states = None, None, None, []
    for made in scans:
        y, weights, more = tail_forward(made, q, k, v, sums, keep, None if y is None else (y, weights), y is not None)
        assert (more is not None) == keep
        states.append(more)
    for made, more in zip(scans, states):
        gradients = tail_backward(made, q, k, v, dy, dweights if sums else None, more, gradients)
    got = [y, weights, *gradients]
    empty, unread = ~allowed.any(-1), ~allowed.unflatten(1, (kv_heads, -1)).any(2).any(-2)
    errors = {}
    for name, a, b, nothing in zip(("y", "weights", "dq", "dk", "dv"), got, wanted, (empty, empty, empty, unread, unread)):
        if a is not None:
            a = a.cpu().double()
            assert not a.isnan().any() and (a[nothing] == 0).all(), name
            errors[name] = float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-30))
    return errors


PATTERNS = {
    "window": (rest(pc.window(5)), "softmax", {}), "nothing exact": (causal, "softmax", {}), "wide window": (rest(pc.window(31)), "elu+1", {}),
    "sinks": (rest(pc.window(20) | pc.sink(3)), "softmax", {}), "ahead": (pc.k <= pc.q + 3, "relu", {}), "all": (pc.full, "elu+1", {}),
    "chunks": (rest(pc.block(23)), "softmax", {}), "documents": (rest(pc.window(3), causal & pc.documents(arg("d"))), "softmax", {"d": IDS}),
    "documents of rows": (rest(pc.window(3), causal & pc.documents(arg("d"))), "elu+1", {"d": [IDS, [0] * 46]}),
    "documents and chunks": (rest(pc.block(9), causal & pc.documents(arg("d"))), "identity", {"d": IDS}),
    "padding": (rest(pc.window(3), causal & pc.valid(arg("m"))), "softmax", {"m": [35, 46]}), "rows": (rest(pc.window(3) | pc.rows(range(9, 30))), "softmax", {}),
    "two sides": (rest(pc.window(6), pc.full), "softmax", {}), "longformer": (rest(pc.window(6) | pc.global_(2), pc.full), "elu+1", {}),
    "blocks apart": (rest(pc.block(11), pc.documents(arg("d"))), "relu", {"d": IDS}), "every third key": (rest(pc.window(3) | (pc.k % 3 == 1), causal & pc.documents(arg("d"))), "softmax", {"d": IDS}),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name):
    p, feature, args = PATTERNS[name]
    args = {key: torch.tensor(x) for key, x in args.items()}
    errors = check(p, 46, feature=feature, args=args, batch=2 if name in ("documents of rows", "padding", "window") else 1)
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("n_q, n_k", [(1, 1), (1, 40), (33, 60), (60, 33)])
def test_lengths(n_q, n_k):
    p = rest(pc.window(5))
    if n_q > n_k:
        call = bind(p, {}, n_q, n_k, q_start=7)
        plan = tail_plan(p, call)
        made = call_of(plan.scans[0], call, "softmax")
        (q, k, v), _ = inputs(n_q, n_k, 1, 1, 16, 16)
        y = tail_forward(made, *(x.to(DEVICE) for x in (q, k, v)), False)[0].cpu()
        torch.testing.assert_close(y, dense(q, k, v, p.dense(n_q, n_k, q_start=7), "softmax")[0], atol=1e-5, rtol=1e-5)
        return
    errors = check(p if n_k > 5 else causal, n_q, n_k, heads=2, kv_heads=2)
    assert max(errors.values()) < 3e-6, errors


SHAPES = [
    dict(d=12, dv=40), dict(d=33, dv=8, layout="bnhd"), dict(heads=4, kv_heads=2), dict(keep=False), dict(sums=False, configs=small(16)),
    dict(configs=small(64, 16, 32)), dict(configs=small(64, 32, 16), sums=False), dict(configs=small(128, 64, 64)),
]  # fmt: skip


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_shapes_slots_and_tiles(case):
    errors = check(rest(pc.window(7)), 50, **case)
    assert max(errors.values()) < 3e-6, errors


def test_scans_in_spans(monkeypatch):
    """Where heads are few, programs share a scan; states that begin anew within a span pass nothing on."""
    assert [tail_configs.span_of(*x, 132) for x in ((64, 64), (512, 4), (4, 1), (20, 8))] == [64, 16, 4, 7]
    monkeypatch.setattr(tail_configs, "LEAST_SPAN", 2)
    monkeypatch.setattr(tail_launch, "processors", lambda _: 12)
    launch, names = tail_launch._Run.launch, []
    monkeypatch.setattr(tail_launch._Run, "launch", lambda self, name, *rest: (names.append(name), launch(self, name, *rest))[1])
    ids = {"d": torch.tensor([0] * 40 + [1] * 5 + [2] * 75 + [3] * 40)}
    for p, args in ((rest(pc.window(7)), {}), (rest(pc.window(3), causal & pc.documents(arg("d"))), ids), (rest(pc.window(6), pc.full), {})):
        names.clear()
        errors = check(p, 160, args=args, heads=1, configs=small(16))
        assert max(errors.values()) < 3e-6 and "key_totals" in names and "row_totals" in names, errors


@pytest.mark.parametrize("scale", [30.0, 200.0, 3000.0])
def test_features_of_large_entries(scale):
    """softmax leaves out the largest entry where sums are moderate without it; elsewhere nothing may overflow or vanish."""
    p = rest(pc.window(3))
    (q, k, v), (dy, _) = inputs(40, 40, 1, 1, 16, 16)
    q, k = q * scale, k * scale - scale  # all entries far below 0 in many rows
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    want = dense(*exact, p.dense(40), "softmax")[0]
    made = call_of(tail_plan(p, bind(p, {}, 40)).scans[0], bind(p, {}, 40), "softmax")
    q, k, v, dy = (x.to(DEVICE) for x in (q, k, v, dy))
    y, _, states = tail_forward(made, q, k, v, False)
    found = [y, *tail_backward(made, q, k, v, dy, None, states)]
    wanted = [want, *torch.autograd.grad((want * dy.cpu()).sum(), exact)]
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a.cpu().double(), b, atol=3e-3 * float(b.detach().abs().max()) + 1e-5, rtol=0)


def test_float16_does_not_overflow():
    """What a term adds is not normalised: its sums and their gradients exceed what float16 holds."""
    errors = check(rest(pc.window(3)), 40, dtype=torch.float16, feature="identity", sums=False)
    assert max(errors[name] for name in ("y", "dq", "dk", "dv")) < 2e-3, errors
    (q, k, v), _ = inputs(40, 40, 1, 1, 16, 16, dtype=torch.float16)
    call = bind(causal, {}, 40)
    plan = tail_plan(causal, call)
    made = call_of(plan.scans[0], call, "identity")
    big = [(30 * x).to(DEVICE) for x in (q, k, v)]
    found = tail_forward(made, *big, False)[0], *tail_backward(made, *big, torch.full((1, 1, 40, 16), 1e4, device=DEVICE))
    assert found[0].isfinite().all() and found[0].abs().max() > 65504
    assert not any(x.isnan().any() for x in found)


def test_a_mean_of_v_does_not_spoil_dq(monkeypatch):
    """With a gradient that is orthogonal to the mean, states that are rounded as they are lose dq; centred ones do not."""
    monkeypatch.setattr(tail_launch, "operand_of", lambda dtype: (torch.float16, "ieee"))
    n, d = 64, 16
    (q, k, v), (dy, _) = inputs(n, n, 1, 1, d, d)
    q, k, v = (x.half().float() for x in (q, k, v + 40))
    mean = torch.nn.functional.normalize(v.mean(2), dim=-1)[:, :, None]
    dy = (dy - (dy * mean).sum(-1, keepdim=True) * mean).half().float()
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    want = torch.autograd.grad((dense(*exact, causal.dense(n), "softmax")[0] * dy).sum(), exact[0])[0]
    call = bind(causal, {}, n)
    plan = tail_plan(causal, call)
    made = call_of(plan.scans[0], call, "softmax", small(16))

    def error():
        dq = tail_backward(made, *(x.to(DEVICE) for x in (q, k, v)), dy.to(DEVICE))[0]
        return float((dq.cpu().double() - want).norm() / want.norm())

    centred = error()
    monkeypatch.setattr(tail_states, "CENTRE", ["c = tl.zeros([SLICE], tl.float32)"])
    tail_kernels.generate.cache_clear()
    tail_launch._launches.clear()
    plain = error()
    monkeypatch.undo()
    tail_kernels.generate.cache_clear()
    tail_launch._launches.clear()
    assert centred < 1e-3 and plain > 10 * centred


MUTATIONS = [
    ("(keys[None, :] <= last[:, None])", "(keys[None, :] < last[:, None])"), ("(keys[:, None] <= last[None, :])", "(keys[:, None] < last[None, :])"),
    ("reads = low < slot_key", "reads = low <= slot_key + SLOT"), ("feeds = key_ok & (keys >= tl.load", "feeds = key_ok & (keys >= 0 * tl.load"),
    ("survives = begin < (slot) * SLOT", "survives = begin <= (slot) * SLOT + SLOT"), ("slot = start + stop - 1 - i", "slot = i"),
    (" & (keys[None, :] >= low[:, None])", ""), (" & (keys[:, None] >= low[None, :])", ""), ("+ slot + 1))  # the state", "+ slot))  # the state"), ("+ slot + 1)  # the state", "+ slot)  # the state"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", MUTATIONS, ids=lambda x: x)
def test_mutations_are_found(monkeypatch, old, new):
    """Masks and reset factors that are wrong, or swapped, show."""
    plain = tail_kernels.generate

    def mutated(form):
        source = plain(form)
        assert old in source.text
        return tail_kernels.TailSource(source.text.replace(old, new), source.kernels, form)

    monkeypatch.setattr(tail_launch, "generate", mutated)
    monkeypatch.setattr(tail_launch, "_launches", {})
    ids = torch.tensor([0] * 20 + [1] * 25)
    try:
        errors = check(rest(pc.window(3), causal & pc.documents(arg("d"))), 45, args={"d": ids}, heads=1, sums=False, feature="elu+1", configs=small(16))
    except AssertionError:
        return
    assert max(errors.values()) > 1e-3


def test_text():
    """Equal bytes for equal forms; what a form does not need is not in its text."""
    source = tail_kernels.generate(Form("softmax", False, False, False, False))
    tail_kernels.generate.cache_clear()
    assert tail_kernels.generate(Form("softmax", False, False, False, False)).text == source.text
    for name in ("low_ptr", "first_ptr", "live_ptr", "sums_ptr", "per_row"):
        assert name not in source.text
    assert set(source.kernels) == set(KERNELS)
    assert "low_ptr" in tail_kernels.generate(Form("softmax", False, False, True, False)).text
