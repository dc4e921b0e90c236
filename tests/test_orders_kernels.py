"""Kernels in digits: outputs and gradients of every order are those of dense attention, in parts and where digits do not divide."""

import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from order_check import CASES, check_boxes, check_kernels, expressions

import patternc as pc
from patternc.codegen.kernels import generate
from patternc.orders.boxes import box_axis
from patternc.orders.choose import axes_in_digits
from patternc.orders.count import Sizes, choose_boxes
from patternc.orders.digits import Order
from patternc.orders.parts import splits
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.zoo.registry import ENTRIES


def plans_of(p) -> list[Plan]:
    """A plan for every order in which both directions have bounds."""
    axes = axes_in_digits(p)
    pairs = [(one, other) for one in axes["k"] for other in axes["q"] if one.order == other.order]
    return [Plan(p, *pair) for pair in pairs if all(choose_boxes(axis, Sizes(64, 64, 0), 16, 16) for axis in pair)]


@pytest.mark.parametrize(
    "name, variant",
    [
        ("dilated", "descriptors"), ("queries at the end", None), ("two runs", None), ("grid of no power of two", None), ("dilated grid", None),
        ("cube", None), ("small grid of no whole pieces", None), ("lines of no whole pieces", None), ("pieces of lines", None), ("sinks", "descriptors"), ("summaries", None),
        ("rows that do not exist", None),
    ],
)  # fmt: skip
def test_kernels_in_digits(name, variant):
    p, strides, (n_q, n_k) = CASES[name]
    plan = Plan(p, *(box_axis(lower(p), Order(strides), column) for column in ("k", "q")))
    check_kernels(p, [(plan, variant)], n_q, n_k)


SMALL = [e for e in ENTRIES if plans_of(e.example())]


@pytest.mark.parametrize("entry", SMALL, ids=lambda e: e.name)
def test_every_order_of_the_zoo(entry):
    p = entry.example()
    n = entry.length if any(x in entry.name for x in ("neighborhood",)) else 53
    for plan in plans_of(p):
        for axis in (plan.forward, plan.transposed):
            assert check_boxes(axis, Sizes(n, n, 0), p) is not None
        check_kernels(p, [(plan, None)], n, n, tile=(32, 32), heads=1)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.reuse, Phase.generate])
@given(expressions())
def test_random_expressions(p):
    plans = plans_of(p)
    assume(plans)
    note(str(p))
    check_kernels(p, [(plans[-1], None)], 33, 47, tile=(16, 16), heads=1)


@pytest.mark.parametrize("variant", [None, "descriptors"])
def test_kernels_of_split_patterns(variant):
    """The natural order, then another, then rows that some part leaves without a key."""
    p = pc.parse("causal & (window(9) | dilate(16))")
    near_part, far_part = splits(p)[0]
    far = Plan(far_part, *(box_axis(lower(far_part), Order((16, 1)), column) for column in ("k", "q")))
    check_kernels(p, [(make_plan(near_part), variant), (far, variant)], 144, 144)
    check_kernels(p, [(far, None), (make_plan(near_part), None)], 70, 100)


def test_parts_of_one_tile_are_one_kernel():
    p, strides, _ = CASES["sinks"]
    plan = Plan(p, *(box_axis(lower(p), Order(strides), column) for column in ("k", "q")))
    text = generate(plan).kernels["forward"].text
    assert text.count("for i in tl.range") == 4 and text.count("tl.store(lse_ptr") == 1
    assert text.index("# Part 1: pairs of no other part.") < text.index("# Part 2: pairs of no other part; a query and its keys share x1.")
