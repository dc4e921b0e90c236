"""Balance: the rule by simulation, schedules and shares as laws, kernels whose rows are dealt and cut against dense attention."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from kernel_check import DEVICE, MARKS, by_head, causal, check, everywhere, formula, q_and_k, streaming, window
from order_check import CASES, check_kernels

import patternc as pc
from patternc.args import bind
from patternc.balance import RESIDENT, Costs, Schedule, balance, in_pieces, makespan, of_groups, programs, row_tiles, schedule
from patternc.codegen import backend, helpers
from patternc.codegen.backend import call_of
from patternc.codegen.kernels import generate
from patternc.codegen.schedule import Deal, Dealt
from patternc.orders.boxes import box_axis
from patternc.orders.choose import visits_of
from patternc.orders.count import Sizes, choose_boxes
from patternc.orders.digits import Order
from patternc.orders.parts import splits
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.runtime import compiled

GLOBAL = pc.window(257) | pc.global_(64)
COSTS = Costs(full=1.0, partial=1.15, program=2.0, piece=1.05, launch=10.0)  # of the study of orders, in full tiles
pytestmark = MARKS

# ---- the rule


# Times over ideal ones of the study of orders: in the usual order, longest first, cut.
STUDY = {
    "one long row": ([256] + [10] * 255, {1: (10.3, 10.3, 1.5), 4: (3.2, 2.6, 1.1), 16: (1.55, 1.02, 1.03), 64: (1.14, 1.0, 1.02)}),
    "two long rows": ([256] + [8] * 254 + [256], {1: (11.2, 11.2, 1.4), 4: (3.4, 2.8, 1.1), 16: (1.6, 1.02, 1.04), 64: (1.14, 1.0, 1.02)}),
}


@pytest.mark.parametrize("name", list(STUDY))
def test_rule(name):
    """The times of the study, and no worse ones by the rule."""
    rows, times = STUDY[name]
    work = np.array([rows], float)
    for copies, (usual, first, cut) in times.items():
        ideal = float((work + COSTS.program).sum()) * copies / 132
        dealt = in_pieces(work[0], np.ones(len(rows), int), work[0] > 20)
        assert makespan(programs(work, copies, COSTS, None)) / ideal == pytest.approx(usual, rel=0.08)
        assert makespan(programs(work, copies, COSTS, dealt)) / ideal == pytest.approx(first, rel=0.08)
        assert balance(work, copies, COSTS).time <= min(cut, first + 0.01)


@pytest.mark.parametrize("name", list(STUDY))
def test_rows_are_cut_where_they_would_outlast_the_others(name):
    """Where two programs share a processor, at 16 heads longest first is not enough, and at 64 it is."""
    work = np.array([STUDY[name][0]], float)
    for copies, form in ((1, "cut"), (16, "cut"), (64, "dealt")):
        found = schedule(work, copies, COSTS)
        ideal = float((work + COSTS.program).sum()) * copies / 132
        dealt = in_pieces(work[0], np.ones(256, int), work[0] > 20)
        best, plain = (makespan(programs(work, copies, COSTS, one), resident=RESIDENT) / ideal for one in (found, dealt))
        assert found.form == form and best <= plain and (best < 1.05 or copies == 1) and (plain > 1.2 or form == "dealt")


@pytest.mark.parametrize("text", ["full", "causal", "causal & window(512)", "window(512)", "causal & (window(1024) | sink(4))", "block(128)", "causal & dilate(8) & window(4096)"])
def test_even_rows_have_no_schedule(text):
    p = pc.parse(text)
    plan, bound = make_plan(p), bind(p, {}, 16384)
    for copies in (1, 4, 16, 64):
        work = of_groups(COSTS.work(row_tiles(p, plan.forward, bound, (64, 64))), 1)
        assert schedule(work, copies, COSTS) is None
    source = generate(plan)
    assert "schedule" not in source.text and "piece" not in source.text and generate(plan, form="even").text == source.text


def test_what_cannot_be_scheduled():
    for rows in ([], [5.0], [3.0] * 9, [0.0] * 9):
        assert schedule(np.array([rows], float), 1, COSTS) is None
    assert schedule(np.array([[300.0] + [3.0] * 500]), 10**4, COSTS) is None  # lost in the mass
    p = pc.causal & pc.window(pc.arg("w"))
    axis = make_plan(p).forward
    assert row_tiles(p, axis, bind(p, {"w": 9}, 640), (64, 64)) is not None
    assert row_tiles(p, axis, bind(p, {"w": torch.tensor([9, 30])}, 640, batch=2), (64, 64)) is None
    assert row_tiles(p, axis, bind(p, {"w": 9}, 640, batch=2, q_start=torch.tensor([0, 3])), (64, 64)) is None


# ---- schedules and shares


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 5), st.booleans()), max_size=12), st.booleans())
def test_every_piece_is_dealt_once(rows, last_first):
    work, pieces, long = (np.array([row[i] for row in rows], dtype) for i, dtype in enumerate((float, int, bool)))
    found = in_pieces(work, pieces, long, last_first)
    tile, piece, of = found.entries.T
    assert sorted(zip(tile, piece)) == [(t, j) for t in range(len(rows)) for j in range(pieces[t])] and (of == pieces[tile]).all()
    assert (of[: found.cuts] > 1).all() and (of[found.cuts :] == 1).all()
    for entry in np.flatnonzero(piece[: found.cuts] == 0):  # the pieces of a row lie side by side
        assert (tile[entry : entry + of[entry]] == tile[entry]).all() and list(piece[entry : entry + of[entry]]) == list(range(of[entry]))
    assert long[tile[found.cuts : found.long]].all() and not long[tile[found.long :]].any()
    assert (np.diff(work[tile[found.cuts : found.long]]) <= 0).all()
    others = np.diff(tile[found.long :])
    assert (others < 0).all() if last_first else (others > 0).all()


class Numbers:
    """Python's numbers for the text of kernels."""

    minimum, maximum = min, max

    @staticmethod
    def where(condition, a, b):
        return a if condition else b


@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 4), st.sampled_from(["q", "k"]))
def test_every_iteration_runs_in_one_piece(count, pieces, group, rows):
    text = "\n".join(Deal("cut", rows).share())
    group = 1 if rows == "q" else group
    shares = np.zeros(pieces, int)
    for g in range(group):
        ran = []
        for piece in range(pieces):
            names = {"tl": Numbers, "piece": piece, "pieces": pieces, "GROUP": group, "g": g}
            exec(text, names)
            ran += range(count * names["low"] // pieces, count * names["high"] // pieces)
            shares[piece] += names["high"] - names["low"]
        assert ran == list(range(count))
    assert (shares == group).all()


@given(st.integers(1, 9), st.data(), st.integers(1, 5))
def test_every_entry_of_every_head_has_a_program(entries, data, heads):
    long = data.draw(st.integers(0, entries))
    names = {"tl": Numbers}
    exec(next(s for s in helpers.SOURCES if "def _dealt" in s).replace("@triton.jit", ""), names)
    dealt = [names["_dealt"](program, entries * heads, entries, long) for program in range(entries * heads)]
    assert sorted(dealt) == [(entry, head) for entry in range(entries) for head in range(heads)]
    assert [entry for entry, _ in dealt[: long * heads]] == [entry for entry in range(long) for _ in range(heads)]
    assert [head for _, head in dealt[long * heads :]] == [head for head in range(heads) for _ in range(entries - long)]


# ---- the work of rows


@pytest.mark.parametrize("text", ["window(left=30, right=9) | global(5)", "causal & (window(20) | rows([3, 70]))", "random_blocks(2, 16, seed=1) | sink(3)", "heads([0, 2]) & causal"])
@pytest.mark.parametrize("sizes", [(200, 200), (70, 190)])
def test_work_is_what_kernels_visit(text, sizes):
    p = pc.parse(text)
    plan, bound = make_plan(p), bind(p, {}, *sizes, heads=4)
    for axis, transposed, rows in ((plan.forward, False, sizes[0]), (plan.transposed, True, sizes[1])):
        tiles, seen = row_tiles(p, axis, bound, (16, 32), transposed), visits_of(p, axis, bound, (16, 32), transposed)
        for found, total in zip(tiles, (seen.full_tiles, seen.partial_tiles)):
            all_four, pairs = of_groups(found, 4), of_groups(found, 2)
            assert found.shape[2] == -(-rows // 16) and all_four.sum() == total
            assert (pairs.sum(0) * (2 // len(pairs)) == all_four[0]).all()


@pytest.mark.parametrize("name", list(CASES))
def test_work_of_boxes(name):
    p, strides, (n_q, n_k) = CASES[name]
    for column in ("k", "q"):
        axis, bound = box_axis(lower(p), Order(strides), column), bind(p, {}, n_q, n_k)
        boxes = choose_boxes(axis, Sizes(n_q, n_k, n_k - n_q), 16, 8)
        full, partial = row_tiles(p, axis, bound, (16, 8), column == "q")
        assert full.shape == (1, 1, boxes.programs) and (full.sum(), partial.sum()) == (boxes.full, boxes.tiles - boxes.full)


# ---- kernels


def random_schedule(seed: int, tiles: int, last_first: bool, most: int) -> Schedule:
    """Some rows in pieces, one of them in more than it may have iterations."""
    rng = np.random.default_rng(seed)
    pieces = np.minimum(rng.choice([1, 1, 2, 3], tiles), most)
    pieces[rng.integers(tiles)] = most
    return in_pieces(rng.random(tiles), pieces, rng.random(tiles) < 0.3, last_first)


def forced(n_q: int, n_k: int, plan=None, most: int = 7):
    """Random schedules for both directions; `plan`: one that may be in digits.  `most` pieces a row."""

    def dealt(kernel, access, config, copies, group):
        transposed, tile = kernel == "backward_dkdv", config.tile(kernel)
        axis = plan and (plan.transposed if transposed else plan.forward)
        tiles = -(-(n_k if transposed else n_q) // tile[0])
        if axis and axis.kind == "boxes":
            tiles = choose_boxes(axis, Sizes(n_q, n_k, n_k - n_q), *tile).programs
        found = random_schedule(len(kernel), tiles, not transposed, most)
        assert found.form == ("cut" if most > 1 else "dealt")
        return Dealt(torch.from_numpy(found.entries).to(DEVICE), found.form, found.cuts, found.long)

    return dealt


KERNELS = {
    "two runs, shared keys": (streaming(30, 4), lambda q, k: (k <= q) & ((q - k < 30) | (k < 4)), (60, 60), dict(kv_heads=1)),
    "fewer queries": (window(25), lambda q, k: (k <= q) & (q - k < 25), (37, 70), dict(heads=1)),
    "rows without keys": (everywhere((pc.q % 5 == 0) & (pc.k > 60)), lambda q, k: (q % 5 == 0) & (k > 60), (80, 80), dict(heads=1)),
    "nothing": (Plan(pc.empty, formula(), formula()), lambda q, k: q + k < 0, (70, 70), {}),
    "by head": (by_head(), lambda q, k: (k <= q) & (q - k <= 7 * torch.arange(3)[:, None, None]), (60, 60), dict(heads=3)),
    "widths": (causal, lambda q, k: k <= q, (50, 50), dict(d=40, dv=24, dtype=torch.float16)),
    "strides": (causal, lambda q, k: k <= q, (50, 50), dict(heads=1, batch=2, layout="bnhd")),
    "descriptors": (causal, lambda q, k: k <= q, (70, 70), dict(variant="descriptors")),
    "start": (window(25), lambda q, k: (k <= q) & (q - k < 25), (40, 70), dict(start=11)),
}


@pytest.mark.parametrize("name", list(KERNELS))
def test_kernels_in_pieces(name):
    plan, allowed, (n_q, n_k), options = KERNELS[name]
    q, k = q_and_k(n_q, n_k, options.get("start"))
    check(plan, allowed(q, k), n_q, n_k, schedule=forced(n_q, n_k), **options)


@pytest.mark.parametrize("text, kinds", [("random_blocks(1, 16, seed=1) | rows([3])", ("list", "list")), ("causal & (window(9) | cols([1, 40])) | rows([33])", ("formula", "formula"))])
@pytest.mark.parametrize("most", [1, 7])
def test_lists_and_choices_in_pieces(text, kinds, most):
    p, n = pc.parse(text), 60
    made = call_of(compiled(p), 0.25, bind(p, {}, n), *[torch.empty(1, 1, n, 16, device=DEVICE)] * 3)
    assert (made.plan.forward.kind, made.plan.transposed.kind) == kinds
    check(made.plan, p.dense(n), n, heads=1, bounds=made.bounds, schedule=forced(n, n, most=most))


@pytest.mark.parametrize("name, variant", [("dilated", "descriptors"), ("queries at the end", None), ("grid of no power of two", None), ("sinks", None)])
def test_boxes_in_pieces(name, variant):
    p, strides, (n_q, n_k) = CASES[name]
    plan = Plan(p, *(box_axis(lower(p), Order(strides), column) for column in ("k", "q")))
    check_kernels(p, [(plan, variant)], n_q, n_k, lambda plan: forced(n_q, n_k, plan))


def test_parts_in_pieces():
    """What earlier parts found is added once."""
    p, n = pc.parse("causal & (window(9) | dilate(4))"), 44
    near_part, far_part = splits(p)[0]
    far = Plan(far_part, *(box_axis(lower(far_part), Order((4, 1)), column) for column in ("k", "q")))
    for plans in ([(make_plan(near_part), None), (far, None)], [(far, None), (make_plan(near_part), "descriptors")]):
        check_kernels(p, plans, n, n, lambda plan: forced(n, n, plan))


@pytest.mark.parametrize("processors, form", [(132, "cut"), (1, "dealt")])
def test_calls_are_dealt(processors, form, monkeypatch):
    """A global row and column among windows: by the rule, from the module, and without planning the second time."""
    p = pc.window(20) | pc.global_(3) if processors > 1 else pc.window(21) | pc.global_(3)
    monkeypatch.setattr(backend, "processors", lambda device: processors)
    x, y, z = (torch.randn(1, 1, 610, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    results = []
    for name in ("triton", "reference", "triton"):
        out, lse = pc.compile(p, name)(x, y, z, return_lse=True)
        results.append((out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), (x, y, z))))
        if name == "reference":
            monkeypatch.setattr(backend, "schedule", None)
    assert {one.form for one in compiled(p).state["schedules"].values()} == {form}
    for got, want, again in zip(*results):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert torch.equal(got, again)


def test_report():
    few, many = (pc.compile(GLOBAL).explain(16384, heads=heads) for heads in (4, 64))
    for name, one in ((d.name, d.pieces[0].balance) for d in few.directions):
        assert (one.rows, one.long, one.cut) == (256, 1, 1) and one.time < 1.2 and one.usual > 2.5
        assert f"balance   {name}: 1 long of 256 row tiles first, 1 cut into {one.pieces} pieces: {one.time:.2f} of the ideal time (" in str(few)
    assert "balance   transposed: 1 long of 256 row tiles first, not cut: 1.00 of the ideal time (1.1" in str(many)
    assert "balance   forward: usual order, 1.0" in str(pc.compile("causal & window(512)").explain(16384, heads=16))
    assert "balance   transposed: usual order, since only data" in str(pc.compile("causal & documents(ids)").explain(64, ids=[0] * 64))
    with pytest.raises(pc.errors.ParameterError, match="4 heads are no multiple of 3 kv_heads"):
        pc.compile(GLOBAL).explain(64, heads=4, kv_heads=3)
