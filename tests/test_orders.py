"""Orders: expressions in digits mean the same, boxes cover what is allowed, counts are those of the study, kernels agree with dense."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE
from patterns import ORDERED, grid, near

import patternc as pc
from patternc.analysis.evaluate import evaluate
from patternc.args import bind
from patternc.codegen.configs import Config
from patternc.codegen.launch import Call, attention_backward, attention_forward
from patternc.orders.boxes import box_axis
from patternc.orders.choose import axes_in_digits, options, visits_of
from patternc.orders.digits import Order
from patternc.orders.parts import parts_at, splits
from patternc.orders.search import Boxes, Sizes, _Digit, _values, box_tiles, choose_boxes, orders
from patternc.orders.simplify import in_digits
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.runtime import compiled

q, k = pc.q, pc.k


def cube(side, kernel):
    planes = near(q // side**2, k // side**2, side, kernel) & near(q // side % side, k // side % side, side, kernel)
    return planes & near(q % side, k % side, side, kernel)


CASES = {
    "dilated": (pc.causal & pc.dilate(6) & pc.window(100), (6, 1), (150, 150)),
    "queries at the end": (pc.causal & pc.dilate(6) & pc.window(100), (6, 1), (70, 151)),
    "two runs": (pc.causal & (pc.window(60) | pc.sink(4)) & pc.dilate(4), (4, 1), (133, 133)),
    "grid": (grid(16, 12, 5), (16, 1), (192, 192)),
    "grid of no power of two": (grid(11, 13, 5), (11, 1), (143, 143)),
    "dilated grid": (grid(16, 16, 5, 2), (32, 16, 2, 1), (256, 256)),
    "cube": (cube(6, 3), (36, 6, 1), (216, 216)),
    "documents": (pc.causal & pc.block(50), (50, 1), (170, 170)),
}


# ---- the meaning in digits


def values_in_digits(p, order: Order, n_q: int, n_k: int) -> np.ndarray:
    env = {}
    for side, n, shape in (("q", n_q, (-1, 1)), ("k", n_k, (1, -1))):
        x = np.arange(n).reshape(shape)
        for i, (stride, extent) in enumerate(zip(order.strides, order.extents)):
            env[f"{side}{i}"] = x // stride if extent is None else x // stride % extent
    return np.broadcast_to(evaluate(p, env), (n_q, n_k))


@st.composite
def expressions(draw):
    """Conjunctions and unions of comparisons with moduli and coordinates, as users write them."""
    m, w, c = draw(st.integers(2, 7)), draw(st.integers(2, 12)), draw(st.integers(1, 40))
    pool = [
        (q - k) % m == draw(st.integers(0, m - 1)), q // w == k // w, q % w == k % w, k <= q, q - k < c, pc.window(c), (q // w - k // w) % 2 == 0,
        k // w % 3 == 1, (q + k) % m < 2, near(q // w, k // w, 30, 3), near(q % w, k % w, w, 2), pc.dilate(m), q // w % m == k // w % m,
    ]  # fmt: skip
    out = draw(st.sampled_from(pool))
    for _ in range(draw(st.integers(0, 3))):
        other = draw(st.sampled_from(pool))
        out = draw(st.sampled_from([out & other, out & other, out | other, out - other]))
    return out


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


def check_boxes(axis, sizes: Sizes, p) -> Boxes | None:
    """Visited boxes cover the allowed pairs, once, and full ones hold allowed pairs only."""
    boxes = choose_boxes(axis, sizes, 16, 8)
    if boxes is None:
        return None
    dense = p.dense(sizes.n_q, sizes.n_k, q_start=sizes.q_start)[0, 0].numpy()
    dense = dense if axis.row == "q" else dense.T
    seen, full_seen = np.zeros(dense.shape, int), np.zeros(dense.shape, bool)
    order, programs, tiles, full = axis.order, 0, 0, 0
    digits = {i: _Digit(axis, i, sizes) for i in axis.digits}
    visited = {i: box_tiles(d.bounds_of(boxes.rows[i]), d.columns, boxes.columns[i], boxes.offset) for i, d in digits.items()}
    row_values = [range(0, len(visited[i])) if i in digits else _values(order, i, *sizes.span(axis.row)) for i in range(len(order.strides))]
    first, last = sizes.span(axis.column)
    periods = range(-(-first // order.strides[0]), (last + 1) // order.strides[0])
    for row in itertools.product(*row_values):
        programs += 1
        first = [digits[i].rows.start + at * boxes.rows[i] if i in digits else at for i, at in enumerate(row)]
        spans = [range(a, a + extent) for a, extent in zip(first, boxes.rows)]
        rows = positions(order, spans, sizes.span(axis.row))
        choices = []
        for i, at in enumerate(row):
            if i not in digits:
                choices.append([(range(at, at + 1), True)])
                continue
            d, b = digits[i], boxes.columns[i]
            origin = int(np.clip(d.bounds_of(boxes.rows[i])[at, :, 0].min(), d.columns.start, d.columns.stop - 1)) if boxes.offset else d.columns.start
            own = []
            for start, stop, full_start, full_stop in visited[i][at]:
                own += [(range(origin + t * b, origin + (t + 1) * b), full_start <= t < full_stop) for t in range(start, stop)]
            choices.append(own)
        for box in itertools.product(*choices):
            columns = positions(order, [span for span, _ in box], sizes.span(axis.column))
            whole = all(inside for _, inside in box) and (0 not in axis.tied or row[0] in periods)
            tiles, full = tiles + 1, full + whole
            seen[np.ix_(rows, columns)] += 1
            if whole:
                full_seen[np.ix_(rows, columns)] = True
                assert len(columns) == np.prod([len(span) for span, _ in box]), "a full box leaves the sequence"
    assert (seen <= 1).all() and not dense[seen == 0].any() and dense[full_seen].all(), (str(p), axis.order, axis.column)
    assert (programs, tiles) == (boxes.programs, boxes.tiles) and (full == boxes.full or 0 in axis.tied)
    return boxes


def positions(order: Order, spans, ends) -> np.ndarray:
    """Places in their sequence of the positions in a box, without those that do not exist."""
    out = []
    for values in itertools.product(*spans):
        if all(extent is None or v < extent for v, extent in zip(values, order.extents)):
            x = sum(v * s for v, s in zip(values, order.strides))
            if ends[0] <= x <= ends[1]:
                out.append(x - ends[0])
    return np.array(out, int)


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


def test_keys_that_are_read_alike_have_tiles_of_their_own():
    """dk/dv of summary columns: boxes of 8 x 8 keys, of which those that nobody reads visit nothing."""
    p = pc.causal & (k % 128 >= 120) & ~pc.block(128)
    boxes = choose_boxes(box_axis(lower(p), Order((128, 1)), "q"), Sizes(16384, 16384, 0), 64, 64)
    assert boxes.rows == (8, 8) and boxes.tiles * 64 * 64 / pc.compile(p).cost(16384).allowed_pairs < 1.1


def test_a_users_own_predicate_gets_the_plan_of_the_primitives():
    own = (q >= k) & ((q - k) % 6 == 0) & (q - k < 3072)
    one, two = (box_axis(lower(p), Order((6, 1)), "k") for p in (own, pc.causal & pc.dilate(6) & pc.window(3072)))
    assert one.mask is two.mask and [r.lo for r in one.runs][0] is [r.lo for r in two.runs][0]
    assert Order((6, 1)) in orders(lower(own))


@pytest.mark.parametrize("p", [pc.random_blocks(2, 32, seed=3, near=0), pc.documents(pc.arg("ids")), (q * k) % 7 == 1, pc.dilate(6) & (k // 6 // (q % 6 + 1) < 4)], ids=str)
def test_what_has_no_order_keeps_the_natural_one(p):
    assert axes_in_digits(p) == {"k": [], "q": []}


# ---- kernels


@pytest.mark.parametrize(
    "name, variant", [("dilated", "descriptors"), ("queries at the end", None), ("two runs", None), ("grid of no power of two", None), ("dilated grid", None), ("cube", None)]
)
def test_kernels_in_digits(name, variant):
    p, strides, (n_q, n_k) = CASES[name]
    plan = Plan(p, *(box_axis(lower(p), Order(strides), column) for column in ("k", "q")))

    check_kernels(p, [(plan, variant)], n_q, n_k)


def check_kernels(p, plans, n_q: int, n_k: int, schedule=None):
    """Outputs and gradients of a pattern whose disjoint parts have the plans `(plan, variant)`; `schedule(plan)` is that of its call."""

    def call(plan, variant):
        def boxes(direction, m, n):
            return choose_boxes(getattr(plan, direction), Sizes(n_q, n_k, n_k - n_q), *((n, m) if direction == "transposed" else (m, n)))

        configs = dict.fromkeys(("forward", "backward_dq", "backward_dkdv"), Config(32, 16, 4, 1))
        return Call(plan, 0.25, n_k - n_q, boxes=boxes, schedule=schedule and schedule(plan), variant=variant, configs=configs)

    x = torch.randn(1, 2, n_q, 16, device=DEVICE, requires_grad=True)
    y, z = (torch.randn(1, 1, n_k, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    out, lse = pc.compile(p, "reference")(x, y, z, return_lse=True)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, (x, y, z), dout)
    calls, found = [call(*plan) for plan in plans], None
    with torch.no_grad():
        for one in calls:
            found = attention_forward(one, x, y, z, found, one is not calls[-1])
        found_grads = attention_backward(calls, x, y, z, *found, dout)
    for a, b in zip((out, lse, *grads), (*found, *found_grads)):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


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


@pytest.mark.parametrize("variant", [None, "descriptors"])
def test_kernels_of_parts(variant):
    """The natural order, then another, then rows that some part leaves without a key."""
    p = pc.parse("causal & (window(9) | dilate(16))")
    near_part, far_part = splits(p)[0]
    far = Plan(far_part, *(box_axis(lower(far_part), Order((16, 1)), column) for column in ("k", "q")))
    check_kernels(p, [(make_plan(near_part), variant), (far, variant)], 144, 144)
    check_kernels(p, [(far, None), (make_plan(near_part), None)], 70, 100)


def test_cost_and_report_are_of_the_parts():
    module = pc.compile("causal & (window(128) | dilate(128))")
    price = module.cost(16384)
    assert price.allowed_pairs == 3_129_408 and price.visited_pairs < 3 * price.allowed_pairs
    text = str(module.explain(16384))
    assert "part 1    " in text and "part 2    " in text and "128 * x0 + x1, x1 shared" in text
    assert "part 1" not in str(module.explain(64)) and f"{price.visited_pairs:,} visited" in text


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
