"""`pc.equivalent`: equal patterns, counterexamples that are ones, both patterns' args, and a million tokens."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from strategies import HEADS, draw_args, patterns

import patternc as pc
from patternc.args import signature
from patternc.errors import ArgError, OperandError

EQUAL = [
    ("window(512)", "window(left=511, right=511)"),
    ("block(64)", "same(i // 64)"),
    ("causal & window(20)", "window(left=19, right=0)"),
    ("~(causal | sink(3))", "~causal & ~sink(3)"),
    ("dilate(3) & window(9)", "window(9) - ((q - k) % 3 == 1) - ((q - k) % 3 == 2)"),
    ("global([3, 4])", "rows([3, 4]) | cols([3, 4])"),
    ("causal ^ window(5)", "(causal | window(5)) - (causal & window(5))"),
    ("causal & window(w)", 'causal & (q - k < arg("w"))'),
    ("per_head(causal, full)", "causal | heads([1])"),
]
DIFFERENT = [
    ("window(512)", "window(511)"),
    ("causal", "full"),
    ("causal & (window(20) | sink(4))", "causal & (window(20) | sink(5))"),
    ("dilate(3)", "dilate(6)"),
    ("per_head(causal, full)", "causal"),
    ("documents(ids)", "documents(ids) & window(40)"),
]
ARGS = {"w": 30, "ids": np.arange(700) // 50}


def given_to(p, r):
    return {name: value for name, value in ARGS.items() if name in {**signature(pc.parse(p)), **signature(pc.parse(r))}}


@pytest.mark.parametrize("p, r", EQUAL)
def test_equal(p, r):
    for sizes in ((1,), (130,), (700,), (50, 700)):
        args = {k: v for k, v in given_to(p, r).items() if k != "ids"}
        answer = pc.equivalent(pc.parse(p), pc.parse(r), *sizes, heads=2, **args)
        assert answer and answer.counterexample is None and "equal" in str(answer)


@pytest.mark.parametrize("p, r", DIFFERENT)
def test_different(p, r):
    n, args = 700, given_to(p, r)
    answer = pc.equivalent(p, r, n, heads=2, **args)
    assert not answer
    b, h, q, k = answer.counterexample
    p, r = pc.parse(p), pc.parse(r)
    inside = [bool(x.dense(n, heads=2, **{a: args[a] for a in signature(x)})[b, h, q, k]) for x in (p, r)]
    assert inside[0] != inside[1]
    assert answer.holder is (p if inside[0] else r)
    assert f"query {q}, key {k}" in str(answer)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(patterns(2), patterns(2), st.integers(1, 40), st.data())
def test_random(p, r, n, data):
    args = draw_args(data.draw, p ^ r, n, n, HEADS, 2)
    args = {**draw_args(data.draw, p, n, n, HEADS, 2), **draw_args(data.draw, r, n, n, HEADS, 2), **args}
    own = [{name: args[name] for name in signature(x)} for x in (p, r)]
    one, two = (np.broadcast_to(x.dense(n, heads=HEADS, batch=2, **a).numpy(), (2, HEADS, n, n)) for x, a in zip((p, r), own))
    answer = pc.equivalent(p, r, n, heads=HEADS, batch=2, **args)
    assert bool(answer) == bool((one == two).all())
    if not answer:
        assert one[answer.counterexample] != two[answer.counterexample]
        assert answer.holder is (p if one[answer.counterexample] else r)


def test_a_million_tokens():
    n = 1 << 20
    assert pc.equivalent(pc.causal & pc.window(512), pc.window(left=511, right=0), n)
    # They differ in the last row only.
    answer = pc.equivalent(pc.causal, pc.causal - (pc.rows([n - 1]) & pc.cols([5])), n)
    assert answer.counterexample == (0, 0, n - 1, 5)


def test_lengths_matter():
    p, r = pc.window(100), pc.full
    assert pc.equivalent(p, r, 100) and not pc.equivalent(p, r, 101)


def test_positions_are_absolute():
    """With fewer queries than keys the counterexample names the position, not the row."""
    answer = pc.equivalent(pc.causal, pc.causal | pc.rows([99]), 10, 100)
    assert answer, "the last query sees everything already"
    answer = pc.equivalent(pc.causal, pc.causal | (pc.q == 98), 10, 100)
    assert answer.counterexample == (0, 0, 98, 99)


def test_errors():
    with pytest.raises(ArgError, match="unknown arg `ww`"):
        pc.equivalent(pc.window(pc.arg("w")), pc.full, 10, ww=3)
    with pytest.raises(ArgError, match="missing arg `w`"):
        pc.equivalent(pc.window(pc.arg("w")), pc.full, 10)
    with pytest.raises(OperandError, match="compares two patterns"):
        pc.equivalent(pc.causal + pc.linear_tail(over=pc.causal), pc.causal, 10)
