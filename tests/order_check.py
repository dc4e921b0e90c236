"""Checks of one direction in digits against pairs, and of its kernels against dense attention; random expressions to try them on."""

import itertools

import numpy as np
import torch
from hypothesis import strategies as st
from kernel_check import DEVICE
from patterns import grid, near

import patternc as pc
from patternc.analysis.evaluate import evaluate
from patternc.codegen.configs import Config
from patternc.codegen.launch import Call, attention_backward, attention_forward
from patternc.orders.count import Boxes, PartCounts, Sizes, box_tiles, choose_boxes
from patternc.orders.digits import Order

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
    "grid of no whole pieces": (pc.neighborhood((20, 22), 5, dilation=3), (66, 22, 3, 1), (440, 440)),
    "small grid of no whole pieces": (pc.neighborhood((10, 11), 3, dilation=3), (33, 11, 3, 1), (110, 110)),
    "lines of no whole pieces": (pc.same(pc.i // 22) & (abs(q % 22 // 4 - k % 22 // 4) <= 1), (22, 4, 1), (110, 110)),
    "pieces of lines": (pc.same(pc.i % 22 // 4) & (q // 22 - k // 22 <= 2), (22, 4, 1), (120, 120)),
    "rows that do not exist": (pc.same(pc.i % 3 % 2) & (q % 3 // 2 - k % 3 // 2 < 2) & pc.same(pc.i % 3 // 2), (3, 2, 1), (33, 47)),
    "sinks": (pc.causal & (pc.dilate(4) & pc.window(60) | pc.sink(6)), (4, 1), (70, 133)),
    "window and dilation": (pc.window(9) | pc.dilate(4) & pc.window(50), (4, 1), (90, 101)),
    "summaries": (pc.zoo.fixed(16, 3), (16, 1), (100, 150)),
    "grid and lines": (grid(16, 12, 5) | pc.global_(range(16)), (16, 1), (192, 192)),
}


@st.composite
def expressions(draw):
    """Conjunctions and unions of comparisons with moduli and coordinates, as users write them."""
    m, w, c, d = draw(st.integers(2, 7)), draw(st.integers(2, 12)), draw(st.integers(1, 40)), draw(st.integers(2, 3))
    pool = [
        (q - k) % m == draw(st.integers(0, m - 1)), q // w == k // w, q % w == k % w, k <= q, q - k < c, pc.window(c), (q // w - k // w) % 2 == 0,
        k // w % 3 == 1, (q + k) % m < 2, near(q // w, k // w, 30, 3), near(q % w, k % w, w, 2), pc.dilate(m), q // w % m == k // w % m,
        k < c, k % w >= w - 1, q < c, (q % w % d == k % w % d) & (q % w // d - k % w // d <= 1), pc.same(pc.i % w // d),
    ]  # fmt: skip
    out = draw(st.sampled_from(pool))
    for _ in range(draw(st.integers(0, 3))):
        other = draw(st.sampled_from(pool))
        out = draw(st.sampled_from([out & other, out & other, out | other, out - other]))
    return out


def values_in_digits(p, order: Order, n_q: int, n_k: int) -> np.ndarray:
    """bool [n_q, n_k]: a pattern in digits at positions 0 .. n - 1."""
    env = {}
    for side, n, shape in (("q", n_q, (-1, 1)), ("k", n_k, (1, -1))):
        env |= zip(order.names(side), (x.reshape(shape) for x in order.values(np.arange(n))))
    return np.broadcast_to(evaluate(p, env), (n_q, n_k))


def check_boxes(axis, sizes: Sizes, p, tile=(16, 8)) -> Boxes | None:
    """Visited boxes of all parts cover the allowed pairs, each mask once; full boxes hold existing columns and allowed pairs only."""
    boxes = choose_boxes(axis, sizes, *tile)
    if boxes is None:
        return None
    dense = p.dense(sizes.n_q, sizes.n_k, q_start=sizes.q_start)[0, 0].numpy()
    dense = dense if axis.row == "q" else dense.T
    found, order = np.zeros(dense.shape, int), axis.order
    spans = {side: sizes.span(side) for side in "qk"}
    digits = {side: order.values(np.arange(first, last + 1)) for side, (first, last) in spans.items()}
    tiles = full = 0
    counts = [PartCounts(axis, part, sizes) for part in axis.parts]
    numbers = [-(-len(values) // a) for values, a in zip(counts[0].rows, boxes.rows)]
    assert boxes.programs == np.prod(numbers) and boxes.first_boxes == numbers[0]
    for row in itertools.product(*map(range, numbers)):
        first = [values.start + at * a for values, at, a in zip(counts[0].rows, row, boxes.rows)]
        rows = positions(order, [range(x, x + a) for x, a in zip(first, boxes.rows)], spans[axis.row])
        for part, count, extents, offset in zip(axis.parts, counts, boxes.columns, boxes.offset):
            seen = np.zeros(dense.shape[1], int)
            for box, whole in column_boxes(count, row, first, boxes.rows, extents, offset):
                columns = positions(order, box, spans[axis.column])
                tiles, full = tiles + 1, full + whole
                seen[columns] += 1
                if whole:
                    assert len(columns) == np.prod([len(span) for span in box]), (str(p), order, "a full box holds columns that do not exist")
                    found[np.ix_(rows, columns)] += 1
                else:
                    env = {f"{side}{i}": x for side in "qk" for i, x in enumerate(digits[side])}
                    at = {axis.row: rows[:, None], axis.column: columns[None]}
                    own = evaluate(part.mask, {name: x[at[name[0]]] for name, x in env.items()})
                    found[np.ix_(rows, columns)] += own
            assert (seen <= 1).all(), (str(p), order, "a part visits a column twice")
    assert (found == dense).all(), (str(p), order, axis.column)
    assert (tiles, full) == (boxes.tiles, boxes.full)
    return boxes


def column_boxes(count: PartCounts, row, first, a, extents, offset):
    """`(spans of digits, full)` of the boxes of columns that a box of rows visits for one part, as kernels find them."""
    choices = []
    for i, values in enumerate(count.columns):
        if i not in count.part.digits:
            choices.append([(range(first[i], first[i] + 1), True)])
            continue
        bounds = count.bounds_of(i, a)
        bounds = bounds[tuple(at if n > 1 else 0 for at, n in zip(row, bounds.shape))]
        origin = int(np.clip(bounds[:, 0].min(), values.start, values.stop - 1)) if offset else values.start
        own, b = [], extents[i]
        for start, stop, full_start, full_stop in box_tiles(bounds, values, b, offset):
            own += [(range(origin + t * b, origin + (t + 1) * b), full_start <= t < full_stop) for t in range(start, stop)]
        choices.append(own)
    for box in itertools.product(*choices):
        yield [span for span, _ in box], all(whole for _, whole in box)


def positions(order: Order, spans, ends) -> np.ndarray:
    """Places in their sequence of the positions in a box, without those that do not exist."""
    out = []
    for values in itertools.product(*spans):
        x = sum(v * s for v, s in zip(values, order.strides))
        if ends[0] <= x <= ends[1] and tuple(order.values(x)) == values:
            out.append(x - ends[0])
    return np.array(out, int)


def check_kernels(p, plans, n_q: int, n_k: int, schedule=None, tile=(32, 16), heads: int = 2):
    """Outputs and gradients of a pattern whose disjoint parts have the plans `(plan, variant)`, against dense attention in float64.

    `schedule(plan)` is that of its call.
    """

    def call(plan, variant):
        def boxes(direction, m, n):
            return choose_boxes(getattr(plan, direction), Sizes(n_q, n_k, n_k - n_q), *((n, m) if direction == "transposed" else (m, n)))

        configs = dict.fromkeys(("forward", "backward_dq", "backward_dkdv"), Config(*tile, 4, 1))
        return Call(plan, 0.25, n_k - n_q, boxes=boxes, schedule=schedule and schedule(plan), variant=variant, configs=configs)

    torch.manual_seed(0)
    x = torch.randn(1, heads, n_q, 16, device=DEVICE)
    y, z = (torch.randn(1, 1, n_k, 16, device=DEVICE) for _ in range(2))
    wide = [t.double().requires_grad_() for t in (x, y, z)]
    out, lse = pc.compile(p, "reference")(*wide, return_lse=True)
    dout = torch.randn_like(out)
    calls, found = [call(*plan) for plan in plans], None
    with torch.no_grad():
        for one in calls:
            found = attention_forward(one, x, y, z, found, one is not calls[-1])
        found_grads = attention_backward(calls, x, y, z, *found, dout.float())
    grads = torch.autograd.grad(out, wide, dout)
    for a, b in zip((out, lse, *grads), (*found, *found_grads)):
        torch.testing.assert_close(a, b.to(a.dtype), atol=2e-5, rtol=2e-5)
