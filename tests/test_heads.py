"""Heads that see different patterns: groups mean what the pattern means, kernels agree with dense, one launch serves all groups."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE, MARKS, reference
from patterns import BY_HEADS, grid

import patternc as pc
from patternc.args import bind
from patternc.codegen import configs, launch, offline, prepared
from patternc.codegen.kernels import generate
from patternc.orders.boxes import box_axis
from patternc.orders.choose import axes_in_digits
from patternc.orders.count import Sizes, choose_boxes
from patternc.orders.heads import HeadGroup, HeadsAxis, groups_of, heads_alike, plan_at
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.rates import Shape
from patternc.runtime import compiled

pytestmark = MARKS
DILATED = pc.zoo.longformer(512, [1, 1, 2, 2, 4, 4, 8, 8], 0)


def dilated(d, reach=40):
    return pc.causal & pc.dilate(d) & pc.window(reach)


# ---- groups


def law(p, heads: int, n: int) -> dict:
    """The groups, after a check that they are all heads, once, and see what the pattern says."""
    alike = heads_alike(p, heads)
    want = p.dense(n, heads=heads)[0].numpy()
    for one, own in alike.items():
        assert list(own) == sorted(own) and all((one.dense(n)[0, 0].numpy() == want[h]).all() for h in own), (str(p), str(one))
    assert not alike or sorted(h for own in alike.values() for h in own) == list(range(heads))
    return alike


@pytest.mark.parametrize(
    "p, heads, groups",
    [
        (DILATED, 8, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (pc.zoo.longformer(12, [1, 3, 1, 1, 3], 5), 5, [(0, 2, 3), (1, 4)]),
        (pc.zoo.s2_attn(8, 6, "flash"), 6, [(0, 1, 2), (3, 4, 5)]),
        (pc.zoo.strided(8, version="code", use="heads"), 5, [(0, 2, 4), (1, 3)]),
        (pc.zoo.fixed(8, 2, 2, use="heads"), 8, [(0, 2, 4, 6), (1, 5), (3, 7)]),
        (pc.zoo.fixed(8, 2, 4, use="heads"), 8, []),  # five kinds
        (pc.heads([1, 3]) & dilated(4), 5, [(0, 2, 4), (1, 3)]),
        (pc.dilate(2) & (pc.table([3, 5, 3])[pc.h] >= abs(pc.q - pc.k)), 3, [(0, 2), (1,)]),
        ((pc.q - pc.k) % (pc.h % 2 + 2) == 0, 4, [(0, 2), (1, 3)]),
        (pc.causal & (pc.h < 9), 4, [(0, 1, 2, 3)]),
        (pc.random_blocks(1, 8, seed=3), 6, []),
        (pc.per_head(pc.causal, pc.documents(pc.arg("ids"))), 2, []),
        (pc.causal, 4, []),
    ],
    ids=str,
)
def test_groups_are_found(p, heads, groups):
    found = heads_alike(p, heads) if "ids" in str(p) else law(p, heads, 40)
    assert list(found.values()) == groups


POOL = [dilated(2), dilated(3), dilated(2) & pc.sink(9), pc.window(9), pc.empty, grid(6, 7, 3), pc.dilate(5), pc.causal & pc.block(8), (pc.k + pc.h) % 3 == 0]


@st.composite
def by_head(draw):
    """`(pattern, heads)`: lists of a few patterns, alone or met with something else, and arithmetic with `h`."""
    few = draw(st.lists(st.sampled_from(POOL), min_size=1, max_size=3))
    heads = draw(st.integers(1, 6))
    p = pc.per_head(*(draw(st.sampled_from(few)) for _ in range(heads)))
    others = [pc.full, pc.causal, pc.sink(3) | (pc.q < 4), pc.heads([0, 2, 3]), pc.heads(2), pc.dilate(pc.h % 2 + 1), pc.h % 2 * 7 <= pc.q]
    other = draw(st.sampled_from(others))
    return draw(st.sampled_from([p & other, p | other, p - other])), heads


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(by_head())
def test_groups_mean_what_the_pattern_means(drawn):
    law(*drawn, 42)


def test_many_heads_share_few_groups():
    p = pc.zoo.s2_attn(4096, 64, "flash")
    assert [len(own) for own in heads_alike(p, 64).values()] == [32, 32]
    assert heads_alike(p, 64) is heads_alike(p, 64)


# ---- plans


def test_dilated_heads_visit_what_undilated_ones_do():
    alone = pc.compile(pc.window(257)).cost(16384)
    price = pc.compile(DILATED).cost(16384, heads=8)
    assert price.visited_pairs / price.allowed_pairs < 1.01 * alone.visited_pairs / alone.allowed_pairs
    price = pc.compile(pc.zoo.strided(128, version="code", use="heads")).cost(16384, heads=2)
    assert price.visited_pairs / price.allowed_pairs < 1.5


@pytest.mark.parametrize("p, heads, n", BY_HEADS, ids=str)
def test_plans_choose_groups(p, heads, n):
    plan = plan_at(p, make_plan(p), bind(p, {}, n, heads=heads))
    assert "heads" in (plan.forward.kind, plan.transposed.kind)


def test_what_gains_nothing_keeps_one_plan():
    for p in (pc.zoo.s2_attn(4096, 4, "flash"), pc.per_head(pc.causal, pc.window(512)), pc.per_head(pc.causal & pc.dilate(2), pc.causal)):
        natural = make_plan(p)
        assert plan_at(p, natural, bind(p, {}, 40, heads=pc.subscripts.heads_listed(p))) is natural
    p = pc.zoo.s2_attn(4096, 4, "flash")
    assert plan_at(p, make_plan(p), bind(p, {}, 16384, heads=4)) is make_plan(p)
    start = torch.tensor([5])
    assert plan_at(DILATED, make_plan(DILATED), bind(DILATED, {}, 4096, 8192, heads=8, q_start=start)) is make_plan(DILATED)


def test_plans_are_kept():
    made, bound = compiled(DILATED), bind(DILATED, {}, 16384, heads=8)
    plan = made.plan_at(bound)
    assert plan is made.plan_at(bind(DILATED, {}, 16384, heads=8)) and (plan.forward.kind, plan.transposed.kind) == ("heads", "heads")
    assert groups_of(plan) is plan.forward.groups and groups_of(make_plan(DILATED)) == ()


def test_longest_programs_come_first():
    p = pc.per_head(pc.causal & pc.dilate(16) & pc.window(64), pc.full, pc.causal & pc.dilate(4) & pc.window(4096))
    plan = plan_at(p, make_plan(p), bind(p, {}, 16384, heads=3))
    assert plan.forward.longest[0] == 1


def test_report_and_source_are_of_the_groups():
    module = pc.compile(DILATED)
    text = str(module.explain(16384, heads=8))
    assert "heads 2, 3: window(513) & dilate(2)" in text and "position = 8 * x0 + x1, x1 shared" in text and "forward, heads 6, 7" in text
    source = module.source(16384)
    assert all(f"_{kernel}_{i}(" in source for kernel in ("forward", "backward_dq", "backward_dkdv") for i in range(4))
    assert '"""Heads 6, 7."""' in source and "# A position is 8 * x0 + x1" in source and source == module.source(12288)
    assert "_forward_0" not in module.source() and "_forward_0" in pc.compile(pc.zoo.strided(128, version="code", use="heads")).source(16384, heads=2)


def test_as_many_heads_as_listed():
    x = torch.zeros(1, 3, 64, 16, device=DEVICE)
    with pytest.raises(pc.errors.ShapeError, match="per_head gives 8 patterns, and there are 3 query heads"):
        pc.compile(DILATED, "triton")(x, x, x)


# ---- kernels


def grouped(p, heads: int, sizes: Sizes) -> Plan:
    """A plan by groups of heads, in digits wherever there are some."""
    groups = []
    for one, own in heads_alike(p, heads).items():
        natural = make_plan(one)
        for order in [axis.order for axis in axes_in_digits(one)["k"]]:
            axes = [box_axis(lower(one), order, column) for column in ("k", "q")]
            if all(axis is not None and choose_boxes(axis, sizes, 64, 64) is not None for axis in axes):
                natural = Plan(natural.mask, *axes)
        groups.append(HeadGroup(own, one, natural))
    order = tuple(reversed(range(len(groups))))
    return Plan(make_plan(p).mask, *(HeadsAxis(direction, tuple(groups), order) for direction in ("forward", "transposed")))


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched."""
    names, run = [], launch._launch
    monkeypatch.setattr(launch, "_launch", lambda call, name, *rest, **more: (names.append(name), run(call, name, *rest, **more))[1])
    return names


def check_kernels(p, heads, kv_heads, n_q, n_k=None, batch=1, start=None, **directions):
    """Outputs, lse and all gradients of a plan by groups, beside dense attention in float64; `directions` replace those of the plan."""
    n_k = n_k or n_q
    bound = bind(p, {}, n_q, n_k, heads, batch, start)
    made, plan = compiled(p), replace(grouped(p, heads, Sizes(n_q, n_k, bound.q_start)), **directions)
    g = torch.Generator().manual_seed(n_q)
    shapes = [(batch, heads, n_q, 16), (batch, kv_heads, n_k, 16), (batch, kv_heads, n_k, 8), (batch, heads, n_q, 8), (batch, heads, n_q)]
    q, k, v, do, dlse = (torch.randn(shape, generator=g).to(DEVICE) for shape in shapes)
    kept = made.state.setdefault("plans", {})
    before = kept.pop(key := (n_q, n_k, heads, bound.q_start, Shape.of(16, 8, 4)), None)
    kept[key] = plan
    try:
        x = [t.clone().requires_grad_() for t in (q, k, v)]
        out, lse = pc.compile(p, "triton")(*x, return_lse=True, q_start=start)
        some = lse > -math.inf
        loss = (out * do).sum() + torch.where(some, lse, 0.0).mul(dlse).sum()
        got = [out, lse, *torch.autograd.grad(loss, x)]
    finally:
        del kept[key]
        if before is not None:
            kept[key] = before
    y = [t.double().cpu().requires_grad_() for t in (q, k, v)]
    allowed = p.dense(n_q, n_k, heads=heads, batch=batch, q_start=start)
    out, lse = reference(*y, allowed, 0.25)
    assert (allowed.any(-1) == some.cpu()).all()
    loss = (out * do.cpu().double()).sum() + torch.where(allowed.any(-1), lse, 0.0).mul(dlse.cpu().double()).sum()
    for name, a, b in zip(("o", "lse", "dq", "dk", "dv"), got, [out, lse, *torch.autograd.grad(loss, y)]):
        torch.testing.assert_close(a.cpu().double(), b.detach(), atol=2e-5, rtol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
    empty = ~allowed.any(-1)
    assert (got[0].cpu()[empty] == 0).all() and (got[2].cpu()[empty] == 0).all()


ONE = ["forward", "backward_rows", "backward_dq", "backward_dkdv"]
A, B, C = dilated(1), dilated(3), dilated(4)


@pytest.mark.parametrize(
    "p, heads, kv_heads, sizes, dkdv",
    [
        (pc.per_head(A, B, B), 3, 3, (70,), 1),
        (pc.per_head(A, A, A, A, B, B), 6, 3, (50,), 1),  # key heads whose query heads are alike
        (pc.per_head(A, B, A, B), 4, 2, (72,), 2),  # and not
        (pc.per_head(B, A, A, A, B, B), 6, 2, (50, 90), 2),
        (pc.per_head(B, A, A, C), 4, 1, (40,), 3),
        (pc.heads([0, 1, 4]) & C, 6, 3, (61,), 2),
        (pc.per_head(pc.empty, C), 2, 1, (64,), 2),
        (pc.zoo.strided(16, version="code", use="heads"), 2, 2, (80,), 1),
        (pc.zoo.s2_attn(22, 2, "wrap"), 2, 1, (66,), 2),  # lists beside formulas
        (pc.per_head(grid(8, 8, 3), pc.causal & (pc.k // 16 % 4 == 3)), 2, 2, (64,), 1),  # boxes of two digits beside a shared list
        (pc.per_head(pc.causal & (pc.q // 16 % 2 == 1), B), 2, 1, (70,), 2),  # flags
    ],
    ids=str,
)
def test_kernels_agree_with_dense(p, heads, kv_heads, sizes, dkdv, launches):
    check_kernels(p, heads, kv_heads, *sizes)
    assert launches == [*ONE[:3], *["backward_dkdv"] * dkdv]


@pytest.mark.parametrize("direction", ["forward", "transposed"])
def test_one_direction_by_groups(direction):
    p = pc.per_head(C, pc.block_table([[1], [0], [2]], 16))
    check_kernels(p, 2, 1, 48, **{direction: getattr(make_plan(p), direction)})


def test_kernels_of_batches_and_cached_keys(launches):
    check_kernels(pc.per_head(C, A, C), 3, 3, 33, 80, batch=2, start=30)


def test_descriptors(monkeypatch, launches):
    """Natural descriptors are shared, those of boxes are each group's; where boxes have none, tiles keep theirs."""
    monkeypatch.setattr(prepared, "_variant", lambda matrices: "descriptors")
    monkeypatch.setattr(prepared, "_launches", {})
    p = pc.per_head(A, C, A)
    check_kernels(p, 3, 3, 64)
    check_kernels(p, 3, 1, 50)
    source = generate(grouped(p, 3, Sizes(64, 64, 0)), "descriptors").kernels["forward"]
    assert {"q_desc", "g1_q_desc"} <= set(source.parameters) and "q_ptr" not in source.parameters
    source = generate(grouped(p, 3, Sizes(50, 50, 0)), "tile descriptors").kernels["forward"]
    assert {"q_desc", "q_ptr"} <= set(source.parameters) and "g1_q_desc" not in source.parameters


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(by_head(), st.sampled_from([(42, 42), (42, 30), (20, 42)]), st.booleans())
def test_random_heads_agree_with_dense(drawn, sizes, shared):
    p, heads = drawn
    n_q, n_k = min(sizes), 42
    if heads_alike(p, heads):
        check_kernels(p, heads, 1 if shared else heads, n_q, n_k)


def test_the_plan_that_is_chosen_runs():
    """At a length where groups are predicted to be faster, through the public call."""
    p, n = pc.per_head(pc.causal & pc.window(64), pc.causal & pc.dilate(16) & pc.window(1024)), 1024
    assert compiled(p).plan_at(bind(p, {}, n, heads=2)).forward.kind == "heads"
    x = torch.randn(1, 2, n, 16, device=DEVICE)
    out, lse = pc.compile(p, "triton")(x, x, x, return_lse=True)
    want, want_lse = pc.compile(p, "cpu")(x.cpu(), x.cpu(), x.cpu(), return_lse=True)
    np.testing.assert_allclose(out.cpu(), want, atol=2e-5)
    np.testing.assert_allclose(lse.cpu(), want_lse, atol=2e-5)


# ---- compiled for Hopper


def test_dispatched_kernels_keep_loops_in_registers():
    """Functions that are called one by one are pipelined like kernels, and share their memory."""
    n, plan = 16384, plan_at(p := pc.zoo.longformer(512, [1, 2, 4], 0), make_plan(p), bind(p, {}, 16384, heads=3))
    source, jobs = generate(plan, "descriptors"), []
    for kernel, axis in (("forward", plan.forward), ("backward_dkdv", plan.transposed)):
        for d in (64, 128):
            for config in configs.candidates(kernel, source.kernels[kernel].variant, d, d, 2):
                boxes = tuple(choose_boxes(own, Sizes(n, n, 0), *config.tile(kernel)) if own.kind == "boxes" else None for own in axis.axes)
                jobs.append(offline.Job(source, kernel, "bf16", d, d, config, boxes=boxes))
    for report, job in zip(offline.compile_all(jobs), jobs):
        assert report.stack <= 16 and report.loop_spills == 0, (job.kernel, report.registers, report.stack)
        assert report.instructions["HGMMA"] >= 48 and "UTMALDG" in report.instructions and "HMMA" not in report.instructions
        c = job.config
        tiles = (c.block_m + c.stages * 2 * c.block_n if job.kernel == "forward" else 2 * c.block_n + c.stages * 2 * c.block_m) * job.head_dim * 2
        assert report.shared < 1.1 * tiles + 2 * c.block_m * c.block_n + 2048, (job.kernel, report.shared, tiles)
