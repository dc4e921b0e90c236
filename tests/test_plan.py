"""Plans: which kind each direction gets, what its formulas visit, and that no length appears in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from patterns import CHOICES

import patternc as pc
from patternc.args import bind, signature
from patternc.layout import layout
from patternc.passes import lower
from patternc.plan import make_plan
from patternc.soundness import Example, check, check_visits
from patternc.tables import run_table, runtime_conjuncts
from patternc.visits import visits

KINDS = {
    "causal": ("formula", "formula"),
    "window(40)": ("formula", "formula"),
    "window(left=9, right=0) | sink(4)": ("formula", "formula"),
    "causal & (window(40) | sink(4))": ("formula", "formula"),
    "window(40) | global(9)": ("formula", "formula"),
    "causal & block(24, back=1)": ("formula", "formula"),
    "prefix(50) | causal": ("formula", "formula"),
    "causal & window(w)": ("formula", "formula"),
    "per_head(causal, window(17))": ("formula", "formula"),
    "full": ("formula", "formula"),
    "causal & documents(ids)": ("table", "table"),
    "window(20) | global(tokens)": ("table", "table"),
    "causal & valid(mask)": ("table", "table"),
    "causal & (documents(ids) | cols(tokens))": ("table", "table"),
    "causal & cols([3, 77, 90])": ("formula", "formula"),
    "causal & (block(32) | (k // 8 % 4 == 3))": ("formula", "formula"),
    "window(20) | global([3, 77])": ("formula", "formula"),
    "causal & (window(9) | dilate(128))": ("formula", "formula"),
    "causal & per_head(window(9), k // 8 % 8 == h)": ("formula", "formula"),
    "window(20) | dilate(2)": ("formula", "formula"),
    "(q % 48 == 5) | cols([1, 130])": ("formula", "formula"),
    "(causal | cols([3, 77])) & dilate(200)": ("list", "list"),
    "causal & (dilate(128) | (k % 256 == 9))": ("list", "formula"),
}
LENGTHS = ((1, 1), (96, 96), (131, 131), (40, 131), (131, 150))


def args_of(p, n_k: int, batch: int = 1) -> dict:
    rng = np.random.default_rng(n_k)
    made = {
        "w": 23, "ids": np.cumsum(rng.random((batch, n_k)) < 0.05, -1), "tokens": rng.integers(-1, n_k, (batch, 3)), "mask": rng.random((batch, n_k)) < 0.8,
    }  # fmt: skip
    return {name: value for name, value in made.items() if name in signature(p)}


@pytest.mark.parametrize("text, kinds", list(KINDS.items()), ids=list(KINDS))
def test_kind(text, kinds):
    plan = make_plan(pc.parse(text))
    assert (plan.forward.kind, plan.transposed.kind) == kinds
    for axis in (plan.forward, plan.transposed):
        assert len(axis.runs) == (axis.count if axis.kind == "formula" else 0)


@pytest.mark.parametrize("text", list(KINDS))
def test_visits_are_sound(text):
    p = pc.parse(text)
    for n_q, n_k in LENGTHS:
        for tile in ((16, 16), (32, 16), (24, 17)):
            check(Example(p, n_q, n_k, 2, 2, tile, None, args_of(p, n_k, 2)))


@pytest.mark.parametrize("text", ["causal & (window(40) | sink(4))", "causal & window(w)", "window(40) | global(9)"])
def test_explicit_start(text):
    """Preallocated caches: queries start anywhere, in each batch row."""
    p = pc.parse(text)
    for start in (0, 17, np.array([3, 60])):
        check(Example(p, 20, 100, 1, 2, (16, 16), start, args_of(p, 100)))
    check(Example(p, 120, 100, 1, 1, (16, 16), 0, args_of(p, 100)))  # more queries than keys


@pytest.mark.parametrize("p", CHOICES, ids=str)
def test_choices_are_sound(p):
    for n_q, n_k, tile in ((450, 450, (64, 64)), (70, 450, (32, 128)), (300, 500, (128, 32))):
        args = {name: 60 for name in signature(p)}
        check(Example(p, n_q, n_k, 4, 1, tile, None, args))


@pytest.mark.parametrize(
    "text", ["causal", "window(40)", "causal & window(40)", "causal & (window(40) | sink(4))", "block(32)", "causal & block(32, back=1)", "prefix(50)", "window(40) | sink(4)"]
)
def test_formulas_visit_no_more_than_the_exact_layout(text):
    """For these the runs are tight, so cost counts what the layout counts."""
    p = pc.parse(text)
    plan = make_plan(p)
    for n_q, n_k in LENGTHS:
        bound = bind(p, {}, n_q, n_k)
        for transposed, axis in ((False, plan.forward), (True, plan.transposed)):
            exact = layout(p, bound, (16, 16), transposed)
            found = visits(p, axis, bound, (16, 16), transposed)
            assert found.pairs == exact.visited_pairs, (n_q, n_k, transposed)


def test_documents_visit_no_more_than_the_exact_layout():
    """In tiles that are whole blocks of the tables' running extremes, as the kernels' are."""
    p = pc.parse("causal & documents(ids)")
    for n in (64, 200, 333):
        bound = bind(p, args_of(p, n), n)
        for transposed, axis in ((False, make_plan(p).forward), (True, make_plan(p).transposed)):
            exact = layout(p, bound, (32, 32), transposed)
            assert visits(p, axis, bound, (32, 32), transposed).pairs == exact.visited_pairs


def test_formulas_hold_at_a_million_tokens():
    """Where brute force cannot look: the visited pairs of a window, by arithmetic."""
    n, p = 1 << 20, pc.causal & pc.window(512)
    plan = make_plan(p)
    for transposed, axis in ((False, plan.forward), (True, plan.transposed)):
        found = visits(p, axis, bind(p, {}, n), (128, 128), transposed)
        tiles = sum(min(i, 4) + 1 for i in range(n // 128))
        assert found.pairs == tiles * 128 * 128
        assert (found.full_tiles, found.partial_tiles) == (24570, 16380)


@pytest.mark.parametrize("text", ["causal & (dilate(128) | (k % 256 == 9))", "causal & cols([3, 77, 90])", "causal & (window(9) | dilate(128))"])
def test_lists_and_steps_are_the_exact_layout(text):
    p = pc.parse(text)
    exact = layout(p, bind(p, {}, 131), (16, 16))
    assert exact.exact
    found = visits(p, make_plan(p).forward, bind(p, {}, 131), (16, 16))
    assert (found.pairs, found.full_tiles, found.partial_tiles) == (exact.visited_pairs, exact.full_tiles, exact.partial_tiles)


def test_an_impossible_pattern_visits_nothing():
    p = pc.causal & (pc.k > pc.q)
    plan = make_plan(p)
    for axis, transposed in ((plan.forward, False), (plan.transposed, True)):
        found = visits(p, axis, bind(p, {}, 100), (16, 16), transposed)
        assert (found.pairs, found.full_tiles, found.partial_tiles) == (0, 0, 0)


def test_the_checks_can_fail():
    """A plan of another pattern is found out."""
    wide, narrow = pc.parse("causal & window(40)"), pc.parse("causal & window(20)")
    example = Example(wide, 100, 100, 1, 1, (16, 16))
    with pytest.raises(pc.errors.InternalError, match="does not visit an allowed pair"):
        check_visits(example, example.bind(), make_plan(narrow).forward, example.dense(), False, "plan")
    example = Example(narrow, 100, 100, 1, 1, (16, 16))
    with pytest.raises(pc.errors.InternalError, match="leaves out the mask"):
        check_visits(example, example.bind(), make_plan(wide).forward, example.dense(), False, "plan")


def test_queries_beyond_the_tensors_they_read_make_no_full_tile():
    """A first position that only a device knows is not checked against tensors; a read outside makes a comparison false."""
    spec = pc.arg("t")[pc.q] == pc.arg("t")[pc.k]
    bound = bind(spec, {"t": torch.zeros(64, dtype=torch.int32)}, 40, 64, batch=2, q_start=torch.tensor([10, 24])).torch()
    bound = replace(bound, q_start=torch.tensor([10, 50]))
    conjuncts = runtime_conjuncts(lower(spec))
    inner = run_table(conjuncts, "k", bound, 20)[:, 0, :, 0, 2:]
    assert (inner[0, :, 0] <= inner[0, :, 1]).all()  # 10..49 lie within the 64 entries
    assert (inner[1, :, 0] > inner[1, :, 1]).all()  # 50..69 and 70..89 do not
    inner = run_table(conjuncts, "q", bound, 32)[:, 0, :, 0, 2:]
    assert (inner[0, :, 0] <= inner[0, :, 1]).all() and (inner[1, :, 0] > inner[1, :, 1]).all()
