"""Orders: expressions in digits mean the same, boxes cover what is allowed, counts are those of the study, kernels agree with dense."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE
from order_check import CASES, check_boxes, cube, expressions, values_in_digits
from patterns import ORDERED, grid

import patternc as pc
from patternc.analysis.evaluate import evaluate
from patternc.analysis.runs import members
from patternc.args import bind
from patternc.layout import layout
from patternc.orders.boxes import box_axis
from patternc.orders.choose import axes_in_digits, options, visits_of
from patternc.orders.count import Sizes, choose_boxes, counts_by_program
from patternc.orders.digits import Order
from patternc.orders.disjoint import conjuncts_in, disjoint, pattern_of, ties
from patternc.orders.parts import parts_at, splits
from patternc.orders.search import orders
from patternc.orders.simplify import in_digits
from patternc.passes import lower
from patternc.plan import make_plan
from patternc.runtime import compiled
from patternc.sampling import sampled

q, k = pc.q, pc.k


# ---- digits


@given(st.lists(st.integers(2, 60), min_size=1, max_size=4, unique=True), st.integers(2, 7))
def test_digits_are_positions(strides, cut):
    """Every position has one set of digits, within their extents; those that exist are a prefix where the digit before is ragged."""
    order = Order((*sorted(strides, reverse=True), 1))
    x = np.arange(300)
    found = order.values(x)
    assert (sum(d * s for d, s in zip(found, order.strides)) == x).all() and len(set(zip(*map(np.ndarray.tolist, found)))) == len(x)
    for i, extent in enumerate(order.extents):
        assert extent is None or (found[i] < extent).all()
        whole = i in order.ragged
        assert whole == (i > 0 and order.strides[i - 1] % order.strides[i] != 0)
        finer = order.split(i, cut)
        if finer is not None:
            assert set(finer.strides) == {*order.strides, order.strides[i] * cut}
            high, low = (finer.values(x)[finer.strides.index(s)] for s in (order.strides[i] * cut, order.strides[i]))
            assert order.strides[i] * cut in order.strides or (high * cut + low == found[i]).all()


def test_orders_of_expressions():
    def strides(p):
        return [order.strides for order in orders(lower(p))]

    assert strides(pc.neighborhood((100, 100), 13, dilation=3)) == [(300, 100, 3, 1)]  # all cuts together, the last one ragged
    assert strides(pc.neighborhood((24, 24, 24), 5, stride=(2, 3, 3))) == [(576, 24, 1)]  # groups of queries cut no keys
    assert strides(pc.causal & (k % 128 >= 120)) == [(128, 1)] and strides(pc.causal & (k // 16 % 8 == 7)) == [(16, 1), (128, 16, 1)]
    assert set(strides(pc.dilate(4) & pc.dilate(6))) >= {(4, 1), (6, 1)}
    assert strides(pc.causal & pc.window(7)) == []


def test_parts_are_disjoint():
    """One comparison at a time: what is left of a conjunct is conjuncts that share no pair."""
    order = Order((4, 1))
    p = in_digits(lower(pc.causal & (pc.window(9) | pc.dilate(4) & pc.window(40) | pc.sink(6))), order, "k")
    groups = disjoint(conjuncts_in(p, order, "k", 8), order, "k")
    masks = [values_in_digits(pattern_of(c), order, 70, 70).astype(int) for group in groups for c in group]
    assert len(masks) == 3 and (sum(masks) == values_in_digits(p, order, 70, 70)).all() and ties(groups[-1][0], order) == (1,)


# ---- the meaning in digits


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions(), st.sampled_from([(60, 60), (41, 41), (30, 55)]))
def test_digits_mean_what_positions_mean(p, sizes):
    lowered = lower(p)
    want = evaluate(lowered, {"q": np.arange(sizes[0])[:, None], "k": np.arange(sizes[1])[None]})
    for order in orders(lowered)[:4]:
        for column in ("k", "q"):
            found = in_digits(lowered, order, column)
            assert (values_in_digits(found, order, *sizes) == want).all(), (str(p), order, str(found))
            axis = box_axis(lowered, order, column)
            if axis is not None:
                n_q, n_k = sizes
                check_boxes(axis, Sizes(n_q, n_k, n_k - n_q), p)


# ---- boxes


def test_digits_of_few_values_hold_no_large_boxes():
    axis = box_axis(lower(pc.same(pc.i % 4 // 3) & pc.sink(32) | pc.block(4)), Order((4, 3, 1)), "q")
    assert axis.parts[0].tied == (0,) and choose_boxes(axis, Sizes(60, 60, 0), 8, 16) is None


@pytest.mark.parametrize("name", list(CASES))
def test_boxes_cover(name):
    p, strides, (n_q, n_k) = CASES[name]
    for column in ("k", "q"):
        axis = box_axis(lower(p), Order(strides), column)
        assert axis is not None and check_boxes(axis, Sizes(n_q, n_k, n_k - n_q), p) is not None


# Visited over allowed pairs at 64 x 64, as the study of orders measured them.
COUNTS = {
    "dilated 2": (pc.causal & pc.dilate(2) & pc.window(1024), (2, 1), 16384, 1.13),
    "dilated 8": (pc.causal & pc.dilate(8) & pc.window(4096), (8, 1), 16384, 1.13),
    "13 x 13": (grid(128, 128, 13), (128, 1), 16384, 2.57),
    "33 x 33": (grid(128, 128, 33), (128, 1), 16384, 1.48),
    "33 x 33 dilated": (pc.neighborhood((128, 128), 33, dilation=2), (256, 128, 2, 1), 16384, 1.48),
    "5 x 5 x 5": (cube(24, 5), (576, 24, 1), 13824, 3.76),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_counts(name):
    p, strides, n, most = COUNTS[name]
    lowered = lower(p)
    assert Order(strides) in orders(lowered)
    boxes = choose_boxes(box_axis(lowered, Order(strides), "k"), Sizes(n, n, 0), 64, 64)
    price = pc.compile(p).cost(n)
    assert boxes.tiles * 64 * 64 / price.allowed_pairs < most and price.visited_pairs == boxes.tiles * 64 * 64


@pytest.mark.parametrize(
    "p, most", [(pc.causal & (pc.window(128) | pc.dilate(128)), 1.51), (pc.zoo.fixed(128, 8), 1.11), (pc.window(257) | pc.global_(64), 1.1)], ids=str
)
def test_counts_of_parts(p, most):
    n, made = 16384, compiled(p)
    bound = bind(p, {}, n)
    visited = sum(visits_of(part.exact, part.plan_at(bound).forward, bound, (64, 64)).pairs for part in made.parts_at(bound))
    assert visited / pc.compile(p).cost(n).allowed_pairs < most


# The same where one q tile visits disjoint parts, each in its own boxes.
PARTS = {
    "sinks beside a dilated window": (pc.causal & (pc.dilate(4) & pc.window(2048) | pc.sink(4)), (4, 1), 1.25, 2),
    "window, dilated window, sinks": (pc.causal & (pc.window(512) | pc.dilate(4) & pc.window(4096) | pc.sink(4)), (4, 1), 1.29, 3),
    "fixed": (pc.zoo.fixed(128, 8), (128, 1), 1.11, 2),
    "fixed, wide": (pc.zoo.fixed(128, 32), (128, 1), 1.03, 2),
    "13 x 13 and columns": (pc.neighborhood((128, 128), 13) | pc.cols(range(128)), (128, 1), 1.9, 2),
}


@pytest.mark.parametrize("name", list(PARTS))
def test_counts_of_disjoint_parts(name):
    p, strides, most, count = PARTS[name]
    axis = box_axis(lower(p), Order(strides), "k")
    boxes = choose_boxes(axis, Sizes(16384, 16384, 0), 64, 64)
    assert len(axis.parts) == count and boxes.tiles * 64 * 64 / layout(p, bind(p, {}, 16384), count=True).allowed_pairs < most


@pytest.mark.parametrize("name", ["queries at the end", "grid of no whole pieces", "sinks", "summaries"])
def test_counts_by_program(name):
    p, strides, (n_q, n_k) = CASES[name]
    axis, sizes = box_axis(lower(p), Order(strides), "k"), Sizes(n_q, n_k, n_k - n_q)
    boxes = choose_boxes(axis, sizes, 16, 8)
    visited, full = counts_by_program(axis, sizes, boxes)
    assert len(visited) == boxes.programs and (visited.sum(), full.sum()) == (boxes.tiles, boxes.full) and (full <= visited).all()


def test_samples_are_like_lists():
    p = pc.random_blocks(3, 64, seed=0) | pc.global_(64)
    found, exact = sampled(p, bind(p, {}, 4096), (64, 64), np.arange(64)), layout(p, bind(p, {}, 4096), (64, 64))
    assert np.allclose(found.sum(0), [exact.full_tiles, exact.partial_tiles])
    p = pc.neighborhood((64, 64), 9)
    found, exact = sampled(p, bind(p, {}, 4096), (64, 64), np.array([3, 30, 60])), layout(p, bind(p, {}, 4096), (64, 64))
    assert np.allclose(found.sum(1), np.diff(np.searchsorted(members(exact.groups[0].tiles.partial), np.array([3, 4, 30, 31, 60, 61]) * 65))[::2])


def test_keys_that_are_read_alike_have_tiles_of_their_own():
    """dk/dv of summary columns: boxes of 8 x 8 keys, of which those that nobody reads visit nothing."""
    p = pc.causal & (k % 128 >= 120) & ~pc.block(128)
    boxes = choose_boxes(box_axis(lower(p), Order((128, 1)), "q"), Sizes(16384, 16384, 0), 64, 64)
    assert boxes.rows == (8, 8) and boxes.tiles * 64 * 64 / pc.compile(p).cost(16384).allowed_pairs < 1.1


def test_a_users_own_predicate_gets_the_plan_of_the_primitives():
    own = (q >= k) & ((q - k) % 6 == 0) & (q - k < 3072)
    one, two = (box_axis(lower(p), Order((6, 1)), "k") for p in (own, pc.causal & pc.dilate(6) & pc.window(3072)))
    assert one.parts[0].mask is two.parts[0].mask and [r.lo for r in one.runs][0] is [r.lo for r in two.runs][0]
    assert Order((6, 1)) in orders(lower(own))


@pytest.mark.parametrize("p", [pc.random_blocks(2, 32, seed=3, near=0), pc.documents(pc.arg("ids")), (q * k) % 7 == 1, pc.dilate(6) & (k // 6 // (q % 6 + 1) < 4)], ids=str)
def test_what_has_no_order_keeps_the_natural_one(p):
    assert axes_in_digits(p) == {"k": [], "q": []}


# ---- choices


@pytest.mark.parametrize("p, n", ORDERED, ids=str)
def test_plans_choose_orders(p, n):
    made, bound = compiled(p), bind(p, {}, n, heads=16)
    for part in made.parts_at(bound)[-1:]:
        plan = part.plan_at(bound)
        assert "boxes" in (plan.forward.kind, plan.transposed.kind)


def test_choices_do_not_depend_on_the_batch_that_came_first():
    p, n = ORDERED[3]
    one, four = (options(p, make_plan(p).forward, bind(p, {}, n, batch=batch), "k") for batch in (1, 4))
    assert [o.order for o in one] == [o.order for o in four] and [4 * o.pairs for o in one] == [o.pairs for o in four] and len(four) > 1


# ---- parts


def test_parts_of_a_union_are_disjoint_and_found():
    p = pc.parse("causal & (window(128) | dilate(128))")
    for parts in splits(p):
        masks = [part.dense(300)[0, 0].numpy() for part in parts]
        assert (sum(m.astype(int) for m in masks) == p.dense(300)[0, 0].numpy()).all()
    assert parts_at(p, bind(p, {}, 16384)) == (pc.causal & pc.window(128), pc.causal & pc.dilate(128) & ~pc.window(128))
    for text in ("causal & (window(1024) | sink(4))", "window(left=256, right=256) | global(64)", "causal & (documents(ids) | dilate(64))"):
        assert splits(pc.parse(text)) == [] or parts_at(pc.parse(text), bind(pc.parse(text), {}, 16384)) == (pc.parse(text),)


def test_cost_and_report_are_of_the_parts():
    module = pc.compile("causal & (window(128) | dilate(128))")
    price = module.cost(16384)
    assert price.allowed_pairs == 3_129_408 and price.visited_pairs < 3 * price.allowed_pairs
    text = str(module.explain(16384))
    assert "part 1    " in text and "part 2    " in text and "128 * x0 + x1, x1 shared" in text
    assert "part 1" not in str(module.explain(64)) and f"{price.visited_pairs:,} visited" in text


def test_report_of_disjoint_parts():
    text = str(pc.compile("neighborhood([64, 64], 9) | cols(64)").explain(4096))
    assert "disjoint part 1\n" in text and "disjoint part 2\n" in text and "64 * x0 + x1" in text


@pytest.mark.parametrize("n_q, n_k", [(0, 1200), (1200, 0), (0, 0)])
def test_nothing_is_visited_of_nothing(n_q, n_k):
    p, _ = ORDERED[0]
    assert pc.compile(p).cost(n_q, n_k, q_start=0).visited_pairs == 0
    x, y = torch.randn(1, 1, n_q, 16, device=DEVICE), torch.randn(1, 1, n_k, 16, device=DEVICE)
    assert not pc.compile(p, "triton")(x, y, y, q_start=0).any()


def test_source_of_a_length():
    module = pc.compile("causal & (window(128) | dilate(128))")
    text = module.source(16384)
    assert "# A position is 128 * x0 + x1" in text and "lse0_ptr" in text
    assert "A position" not in module.source() and module.source(64) == module.source()
    with pytest.raises(pc.errors.OperandError, match="one source for all lengths"):
        pc.compile("causal & window(w)").source(64)
