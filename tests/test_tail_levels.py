"""Class N: the levels of `f(q) != g(k)` pass every pair once, and their scans agree with the reference."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE, MARKS
from test_tail_kernels import rest, small
from test_tail_plan import check_slots, dense_of

import patternc as pc
from patternc import functional, runtime
from patternc.args import bind
from patternc.codegen import tail_backend, tail_configs, tail_levels
from patternc.tail_plan import tail_plan
from patternc.tail_slots import slots_of

pytestmark = MARKS
causal, arg = pc.causal, pc.arg


def pairs_of(plan, n_q, n_k):
    """How often the levels pass each pair."""
    total = np.zeros((n_q, n_k), int)
    for level in plan.levels:
        assert sorted(level.rows) == list(range(n_q)) and sorted(level.keys) == list(range(n_k))
        for scan in level.scans:
            mask = dense_of(scan.prefixes[0], n_k)
            check_slots(slots_of(scan, 0, n_q, n_k, 4), 0, mask)
            total[np.ix_(level.rows, level.keys)] += mask[::-1, ::-1] if scan.mirrored else mask
    return total


IDS = [5, 2, 2, 9, 5, 5, 0, 2] * 5
DIFFERENT = {
    "strided": rest(pc.window(4) | pc.dilate(8)), "both ways": rest(pc.window(3) | pc.dilate(7), pc.full), "residues": rest(pc.same(pc.i % 5), pc.full),
    "two moduli": pc.q % 7 != pc.k % 5, "table": causal & (pc.table(IDS)[pc.q] != pc.table(IDS)[pc.k]), "another remainder": causal & ((pc.q + 2 * pc.k) % 6 != 4),
    "some keys": rest(pc.dilate(3), causal & (pc.k % 4 != 1)), "documents": causal & ~pc.documents(arg("d")), "two values": rest(pc.dilate(2)),
}  # fmt: skip


@pytest.mark.parametrize("n_q, n_k", [(40, 40), (13, 40)])
@pytest.mark.parametrize("name", DIFFERENT)
def test_every_pair_once(name, n_q, n_k):
    p = DIFFERENT[name]
    args = {"d": torch.tensor(IDS)} if name == "documents" else {}
    plan = tail_plan(p, bind(p, args, n_q, n_k, batch=2))
    assert plan.kind == "N" or (name, n_q) in (("two values", n_q), ("both ways", 13))  # those are X
    if plan.kind == "N":
        np.testing.assert_array_equal(pairs_of(plan, n_q, n_k), p.dense(n_q, n_k, **args).numpy()[0, 0])


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_values(data):
    n = data.draw(st.integers(1, 24))
    f, g = (pc.table(data.draw(st.lists(st.integers(0, data.draw(st.integers(1, 30))), min_size=n, max_size=n))) for _ in range(2))
    p = (f[pc.q] != g[pc.k]) & data.draw(st.sampled_from([pc.full, causal, pc.k <= pc.q - 3, pc.causal & pc.documents([i // 7 for i in range(n)])]))
    plan, dense = tail_plan(p, bind(p, {}, n)), p.dense(n).numpy()[0, 0]
    if plan.kind == "N":
        np.testing.assert_array_equal(pairs_of(plan, n, n), dense)


TERMS = {
    "strided": causal & (pc.window(4) | pc.dilate(5) + pc.linear_tail),
    "both ways": pc.window(3) | pc.dilate(3) + pc.linear_tail("elu+1", "denominator"),
    "documents": causal & (pc.documents(arg("d")) + pc.linear_tail(feature="relu", norm="none")),
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_terms(monkeypatch, name):
    """Outputs and gradients of q, k, v, the term's own q and k and scales, against the reference."""
    monkeypatch.setattr(tail_backend, "scans_pay", lambda *_: True)
    monkeypatch.setattr(tail_configs, "choose", lambda *_: small(32))
    monkeypatch.setattr(tail_levels, "ENTRIES", 1)
    spec, n, ran = TERMS[name], 40, []
    monkeypatch.setitem(runtime.compiled(spec).state, "bound", {})  # configurations are kept there
    plain = tail_backend.level_forward
    monkeypatch.setattr(tail_backend, "level_forward", lambda *x: ran.append(1) or plain(*x))
    args = {"d": torch.tensor(IDS, device=DEVICE)} if name == "documents" else None
    options = dict(heads=4, kv_heads=2, head_dim=16, batch=1, args=args, quiet=True, raise_error=True)
    pc.verify(spec, backend="triton", device=DEVICE, dtype=torch.float32, sizes=[n], **options)
    assert ran


def test_the_choice():
    """Scans where they are less work: many values among many tokens."""
    assert not tail_levels.scans_pay(type("Plan", (), {"levels": (1,) * 7}), 1e8, 2048, 256, 128)
    for n, taken in ((1024, False), (65536, True)):
        p = rest(pc.window(128) | pc.dilate(128))
        plan, (q, k, v) = tail_plan(p, bind(p, {}, n)), (torch.empty(1, 1, n, 128, device="meta"),) * 3
        made = functional.runtime.compiled(causal & (pc.window(128) | pc.dilate(128) + pc.linear_tail))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tail_backend.BlockTables, "of", lambda blocks, device: type("Tables", (), {"blocks": blocks}))
            patch.setattr(tail_backend, "orders_of", lambda *_: {})
            found = tail_backend.levels_of(made, plan, bind(p, {}, n), "softmax", q, k, v)
        assert (found is not None) == taken and len(plan.levels) == 7
