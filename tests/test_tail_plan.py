"""Classes of R = D - E against dense masks: ranges of keys, resets, dead keys and rows, and the slots that kernels scan."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from strategies import HEADS, draw_args, patterns

import patternc as pc
from patternc.args import bind
from patternc.expr.pattern import all_of, negate
from patternc.tail_plan import NOTHING, tail_plan
from patternc.tail_slots import slots_of

causal, arg = pc.causal, pc.arg
SORTED = [0] * 3 + [1] * 12 + [4] * 1 + [9] * 24
PACKED = [3] * 9 + [1] * 7 + [-1] * 2 + [7] * 20 + [-1] * 2
MIXED = [0, 1] * 20


def rest(exact, domain=causal):
    return all_of(domain, negate(exact))


PREFIXES = {
    "window": (rest(pc.window(5)), 5), "window of one": (rest(pc.window(1)), 1), "nothing exact": (rest(pc.empty), 0), "ahead": (rest(pc.empty, pc.k <= pc.q + 3), -3),
    "sinks": (rest(pc.window(6) | pc.sink(3)), 6), "more sinks than keys": (rest(pc.window(6) | pc.sink(50)), "0"), "all": (rest(pc.empty, pc.full), None),
    "chunks": (rest(pc.block(6)), None), "chunks back": (rest(pc.block(7, back=1)), None), "chunks and window": (rest(pc.window(5) | pc.block(8)), None),
    "both": (rest(pc.window(9) & pc.block(8)), None), "rows": (rest(pc.window(3) | pc.rows(8)), 3), "some keys": (rest(pc.window(3) | pc.cols([4, 9, 30])), 3),
    "every third key": (rest(pc.window(3) | (pc.k % 3 == 1)), 3), "keys of documents": (rest(pc.window(3) | (pc.k % 3 == 1), causal & pc.documents(arg("ids"))), 3), "documents": (rest(pc.window(3), causal & pc.documents(arg("ids"))), 3),
    "documents and chunks": (rest(pc.block(4), causal & pc.documents(arg("ids"))), None), "blocks": (rest(pc.window(3), causal & pc.block(10)), 3),
    "padding": (rest(pc.window(3), causal & pc.valid(arg("m"))), 3), "width": (rest(pc.window(arg("w"))), 4), "steps of a table": (rest(pc.empty, pc.table([0, 0, 5, 9] * 10)[pc.q // 10] >= pc.k), None),
    "late rows": (rest(pc.window(3) | pc.rows(range(20, 40))), 3), "all causal": (rest(causal), "0"), "crossing": (rest(pc.documents(arg("ids")) & pc.window(4)), "any"),
    "crossing beyond the window": (rest(pc.window(4), causal & (pc.documents(arg("ids")) | ~pc.window(4))), 4),
}  # fmt: skip
OTHERS = {
    "strided": (rest(pc.window(8) | pc.dilate(8)), "N"), "residues": (rest(pc.same(pc.i % 8), pc.full), "N"),
    "dilated": (rest(pc.window(9) & pc.dilate(3)), "X"), "bigbird": (rest(pc.random_blocks(1, 4, 1)), "X"), "heads": (rest(pc.per_head(pc.window(3), pc.window(2))), "X"),
    "band": (rest(pc.window(4), causal & pc.window(12)), "X"), "mixed documents": (rest(pc.window(3), causal & pc.documents(MIXED)), "X"), "table": (pc.table(MIXED)[pc.q] != pc.table(MIXED)[pc.k], "N"),
}  # fmt: skip


def args_of(p, ids=PACKED, w=4):
    given = {"ids": torch.tensor(ids), "m": torch.tensor([30, 40]), "w": w}
    return {name: given[name] for name in pc.args.signature(p)}


def dense_of(prefix, n_k):
    k = np.arange(n_k)
    allowed = (k >= prefix.low[:, None]) & (k <= prefix.last[:, None])
    return allowed if prefix.live is None else allowed & prefix.live


@pytest.mark.parametrize("n_q, n_k", [(40, 40), (13, 40), (1, 1), (1, 40)])
@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes(name, n_q, n_k):
    p, shift = PREFIXES[name]
    for ids in (SORTED, PACKED):
        args = {name: x[:n_k] if x.ndim and name == "ids" else x for name, x in args_of(p, ids).items() if not isinstance(x, int)} | {n: 4 for n in args_of(p) if n == "w"}
        if n_k < 40 and ("m" in args or name in ("steps of a table",)):
            continue
        call = bind(p, args, n_q, n_k, heads=2, batch=2)
        found, dense = tail_plan(p, call), p.dense(n_q, n_k, heads=2, batch=2, **args).numpy()
        if name == "crossing" and found.kind == "X":  # documents in no order
            continue
        assert found.kind == ("P" if dense.any() else "0"), found
        for b in range(2) if found.kind == "P" else ():
            (scan,) = found.scans
            prefix = scan.prefixes[scan.rows[b]]
            np.testing.assert_array_equal(dense_of(prefix, n_k), dense[b, 0])
            assert shift == "any" or (n_q, n_k) != (40, 40) or prefix.shift == shift
            check_slots(slots_of(scan, call.q_start, n_q, n_k, 4), b, dense[b, 0])


def check_slots(slots, b, dense):
    """A scan over slots, of positions instead of features: what a row reads through the state and in its own slot is its row of the mask."""
    n_q, n_k = dense.shape
    of = lambda table: table[b if len(table) > 1 else 0]
    state, got = np.zeros(n_k, int), np.zeros((n_q, n_k), int)
    live = np.ones(n_k, bool) if slots.live is None else of(slots.live).astype(bool)
    visited = np.zeros(n_q, int), np.zeros(n_k, int)
    for t in range(slots.count):
        if slots.first is None:
            first, stop = (t * slots.block, t * slots.block + slots.offset), ((t + 1) * slots.block, (t + 1) * slots.block + slots.offset)
        else:
            first, stop = of(slots.first)[t], of(slots.first)[t + 1]
        assert all(b - a <= slots.block for a, b in zip(first, stop))
        keys, rows = np.arange(max(first[0], 0), min(stop[0], n_k)), np.arange(max(first[1], 0), min(stop[1], n_q))
        visited[0][rows] += 1
        visited[1][keys] += 1
        for row in rows:
            low = 0 if slots.low is None else of(slots.low)[row]
            last = row - slots.offset if slots.first is None else of(slots.last)[row]
            got[row] += state * (low < first[0])
            got[row, keys] += live[keys] & (keys >= low) & (keys <= last)
        base, after = (0, 0) if slots.base is None else of(slots.base)[t : t + 2]
        if after >= first[0]:
            state[:] = 0
        state[keys] += live[keys] & (keys >= after)
    np.testing.assert_array_equal(got, dense)
    assert (visited[1] == 1).all() and (visited[0][dense.any(1)] == 1).all()


@pytest.mark.parametrize("name", OTHERS)
def test_other_classes(name):
    p, kind = OTHERS[name]
    found = tail_plan(p, bind(p, args_of(p), 40, heads=2, batch=2))
    assert found.kind == kind and found.why and not found.scans


SIDES = {
    "window": (rest(pc.window(4), pc.full), [4, 4]), "longformer": (rest(pc.window(4) | pc.global_(2), pc.full), [4, 4]), "suffix": (rest(pc.empty, pc.k >= pc.q), [0]),
    "lopsided": (rest(pc.window(left=9, right=2), pc.full), [10, 3]), "blocks apart": (rest(pc.block(5), pc.full), [None, None]), "reading ahead": (rest(pc.empty, pc.k > pc.q - 4), [-3]),
    "documents": (rest(pc.window(3), pc.documents(arg("ids"))), [3, 3]), "padding": (rest(pc.window(3), pc.valid(arg("m"))), [3, 3]), "one of two rows": (pc.where(pc.b == 0, pc.k, pc.n_k) <= pc.q - 3, [3]),
}  # fmt: skip


@pytest.mark.parametrize("n_q, n_k", [(40, 40), (13, 40)])
@pytest.mark.parametrize("name", SIDES)
def test_two_sides(name, n_q, n_k):
    """Each pair is in one scan."""
    p, shifts = SIDES[name]
    args = args_of(p)
    call = bind(p, args, n_q, n_k, heads=2, batch=2)
    found, dense = tail_plan(p, call), p.dense(n_q, n_k, heads=2, batch=2, **args).numpy()
    assert found.kind == "PS" or name == "one of two rows"
    if n_q == 40:
        assert [{p.shift for p in scan.prefixes if (p.low < NOTHING).any()} for scan in found.scans] == [{shift} for shift in shifts]
    for b in range(2):
        total = np.zeros((n_q, n_k), int)
        for scan in found.scans:
            mask = dense_of(scan.prefixes[scan.rows[b]], n_k)
            check_slots(slots_of(scan, call.q_start, n_q, n_k, 4), b, mask)
            total += mask[::-1, ::-1] if scan.mirrored else mask
        np.testing.assert_array_equal(total, dense[b, 0])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_steps(data):
    """Any step function and any documents, in slots of any size; queries may be more or fewer than keys."""
    n_q, n_k, block = (data.draw(st.integers(1, most)) for most in (30, 30, 9))
    steps = data.draw(st.lists(st.integers(-1, n_k + 3), min_size=n_q, max_size=n_q).map(sorted))
    ids = data.draw(st.lists(st.integers(0, 3), min_size=max(n_q, n_k), max_size=max(n_q, n_k)).map(sorted))
    dead, rows = (pc.table(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))) for n in (n_k, n_q))
    p = (pc.k <= pc.table(steps)[pc.q]) & (dead[pc.k] == 0) & (rows[pc.q] == 0) & (pc.table(ids)[pc.q] == pc.table(ids)[pc.k])
    call = bind(p, {}, n_q, n_k, q_start=0)
    found, dense = tail_plan(p, call), p.dense(n_q, n_k, q_start=0).numpy()[0, 0]
    assert found.kind == ("P" if dense.any() else "0"), found
    if found.kind == "P":
        np.testing.assert_array_equal(dense_of(found.scans[0].prefixes[0], n_k), dense)
        check_slots(slots_of(found.scans[0], 0, n_q, n_k, block), 0, dense)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(patterns(), st.data())
def test_any_pattern(p, data):
    """Whatever the class: its scans, where it has any, pass every pair once and no other, and 0 means that there is none."""
    n_q, n_k = data.draw(st.integers(1, 12)), data.draw(st.integers(12, 14))
    args = draw_args(data.draw, p, n_q, n_k, heads=HEADS, batch=2)
    found = tail_plan(p, bind(p, args, n_q, n_k, heads=HEADS, batch=2))
    dense = p.dense(n_q, n_k, heads=HEADS, batch=2, **args).numpy()
    assert (found.kind != "0") or not dense.any()
    if found.scans:
        total = np.zeros(dense.shape, int)
        for scan in found.scans:
            for b in range(2):
                mask = dense_of(scan.prefixes[scan.rows[b]], n_k)
                check_slots(slots_of(scan, n_k - n_q, n_q, n_k, 3), b, mask)
                total[b] += mask[::-1, ::-1] if scan.mirrored else mask
        np.testing.assert_array_equal(total, dense)


def test_words():
    words = {"window": "row q reads the keys up to q - 5", "sinks": "row q reads the keys up to q - 6, but for 3 that no row reads", "all": "a step function of q"}
    for name, text in words.items():
        p = PREFIXES[name][0]
        assert text in str(tail_plan(p, bind(p, {}, 40)))
    p = PREFIXES["documents"][0]
    assert "beginning anew 2 times" in str(tail_plan(p, bind(p, {"ids": PACKED}, 40)))
    assert NOTHING > pc.expr.index.MAX_INT // 4


def test_many_tokens():
    p = rest(pc.window(512) | pc.sink(4))
    found = tail_plan(p, bind(p, {}, 1 << 18))
    assert found.scans[0].prefixes[0].shift == 512
    assert slots_of(found.scans[0], 0, 1 << 18, 1 << 18, 64).count == 1 << 12
