"""The Hopper forward without a GPU: its ring, what it compiles to, and what is left to the portable kernel."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hopper_walk import PATTERNS, WALKS, walk
from hypothesis import example, given, settings, strategies as st
from strategies import HEADS, patterns

import patternc as pc
from patternc.codegen import configs, hopper, hopper_launch, hopper_ring, offline
from patternc.codegen.lines import lines_of
from patternc.errors import InternalError
from patternc.orders.boxes import box_axis
from patternc.orders.search import orders
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.reference import dense
from patternc.signature import signature


@pytest.mark.parametrize("name", PATTERNS)
def test_every_kind_of_plan_has_a_text(name):
    plan = make_plan(PATTERNS[name])
    assert hopper.covers(plan) is None
    source = hopper.generate(plan)
    compile(source.text, name, "exec")
    assert source.text == hopper.generate.__wrapped__(plan).text


def test_what_is_left_to_the_portable_kernel():
    p = pc.neighborhood((40, 50), 7)
    order = orders(lower(p))[-1]
    assert "boxes" in hopper.covers(lines_of(in_order(p, order)).plan)
    assert "later" in hopper.covers(make_plan(pc.causal), later=True)
    assert "nothing" in hopper.covers(make_plan(pc.empty))


# Lines: equally spaced positions are sequences of their own


def in_order(p: pc.Pattern, order) -> Plan:
    return Plan(p, box_axis(lower(p), order, "k"), box_axis(lower(p), order, "q"))


LINED = [("causal & dilate(4) & window(2048)", 4, True), ("window(600) & dilate(3)", 3, False), ("dilate(2) & causal & (window(512) | sink(4))", 2, True)]


@pytest.mark.parametrize("text, count, narrow", LINED)
def test_a_line_has_a_plan_of_its_own(text, count, narrow):
    p = pc.parse(text)
    found = [lines_of(in_order(p, order)) for order in orders(lower(p))]
    lines = max(found, key=lambda lines: lines.count)
    assert lines.count == count and hopper.covers(lines.plan) is None and hopper.narrow(lines.plan) is narrow
    assert lines_of(make_plan(p)).count == 1


def test_a_window_and_its_dilations_have_one_text():
    texts = {hopper.generate(make_plan(lower(pc.parse("causal & window(512)"))), True).text}
    for d in (2, 4, 8):
        p = pc.causal & pc.dilate(d) & pc.window(512 * d)
        texts.add(hopper.generate(lines_of(in_order(p, orders(lower(p))[-1])).plan, True).text)
    assert len(texts) == 1


@settings(deadline=None)
@given(patterns(args=False), st.integers(2, 5), st.integers(1, 6), st.integers(0, 5))
# In digits these divisors are at least 1 without a `max`.
@example((pc.q + 4) % 5 < 1 // pc.max((pc.q + 4) % 5 - 2, 1) + (pc.k + 4) % 5, 2, 1, 0)
@example((pc.q + 5) % 6 < (pc.q + 5) % 6 // pc.max((pc.q + 5) % 6 - 2, 1) + (pc.k + 5) % 6, 2, 1, 0)
@example((pc.table([0, 0, -1])[-1] < 0) | (pc.q - pc.k != 1), 2, 1, 0)
@example((pc.k < 9) & pc.causal & (pc.k % 3 < 4 % pc.max((pc.q + pc.k + 1) % 7 - 3, 1)), 4, 2, 3)
def test_a_pattern_is_that_of_its_lines(p, count, rows, before):
    n_q, n_k = rows * count, (rows + before) * count
    sizes = {"heads": HEADS}
    written = p & pc.dilate(count)
    p = lower(written)
    for order in orders(p):
        axis = box_axis(p, order, "k")
        lines = None if axis is None else lines_of(Plan(p, axis, None))
        if lines is None or lines.count == 1 or n_q % lines.count or n_k % lines.count:
            continue
        want = dense(written, n_q, n_k, q_start=n_k - n_q, **sizes)  # `lower` guards reads in a way that `dense` does not know
        along = dense(lines.plan.mask, n_q // lines.count, n_k // lines.count, q_start=(n_k - n_q) // lines.count, **sizes)
        for r, s in itertools.product(range(lines.count), repeat=2):
            own = want[..., r :: lines.count, s :: lines.count]
            assert (own == along).all() if r == s else not own.any()


def test_descriptors_of_lines():
    """Coordinates [batch row, head, line, place] of a described tensor are those of its positions."""
    x = torch.randn(2, 12, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    made = hopper_launch._describe_lines(x, 4, 2)
    assert (torch.as_strided(x, made.shape, made.strides) == torch.stack([x[:, :, r::4] for r in range(4)], 2)).all()


# The ring: every wait, arrival and parity of the text is needed

FORMS = {"plain": (pc.causal & pc.documents(pc.arg("ids")), False, 2), "narrow": (pc.causal, True, 2), "own": (pc.causal, False, 2), "three": (pc.causal, False, 3)}
TEXTS = {name: hopper.generate(make_plan(p), *form).text.splitlines() for name, (p, *form) in FORMS.items()}


def begin(text: list[str]) -> int:
    return next(i for i, line in enumerate(text) if line.startswith("def _producer"))


def mutations(text: list[str]):
    for i, line in enumerate(text):
        space = line[: len(line) - len(line.lstrip())]
        if "mbarrier.wait(" in line:
            yield i, space + "pass" if i > begin(text) else line.rstrip()[:-1] + ", pred=False)"
            if "& 1" in line:
                yield i, line.replace("& 1", "& 1 ^ 1", 1)
            if "index(before)" in line and "(g - 1)" in line:
                yield i, line.replace("index(before)", "index(g % STAGES)")
        if "mbarrier.arrive(" in line:
            yield i, space + "pass"
            yield i, line.replace("count=1", "count=2")
        if "warpgroup_mma_wait(" in line and "import" not in line:
            yield i, line.replace("_wait(1", "_wait(2").replace("_wait(0", "_wait(1")
        if "mbarrier.expect(" in line:
            yield i, line.replace("nbytes", "nbytes * 2")


@pytest.mark.parametrize("form, at, line", [(form, *x) for form, text in TEXTS.items() for x in mutations(text)], ids=lambda x: str(x).strip())
def test_a_mutation_is_noticed(form, at, line):
    text = TEXTS[form]
    with pytest.raises(InternalError):
        hopper_ring.check("\n".join([*text[:at], line, *text[at + 1 :]]), FORMS[form][2])


PLACES = {
    "values from keys": ("_fetch(v_desc,", "_fetch(k_desc,"), "keys of the query head": ("g, b, kv_h, line", "g, b, h, line"),
    "keys of the first line": ("g, b, kv_h, line", "g, b, kv_h, 0"), "queries of the first consumer": ("_load(q_desc, [b, h, line, first + own * (64 // PACK), 0]", "_load(q_desc, [b, h, line, first, 0]"),
    "results in the place of others": ("_store(o_desc, [b, h, line, first + own * (64 // PACK), 0]", "_store(o_desc, [b, h, line, first, 0]"),
    "results of the first head": ("_store(o_desc, [b, h,", "_store(o_desc, [b, 0,"), "results without a fence": ("    fence_async_shared()\n    _store", "    _store"),
    "barriers without a fence": ("    fence_async_shared()\n    tl.warp_specialize", "    tl.warp_specialize"),
    "the end before rows have left": ("    tma.store_wait(0)\n\n\n@gluon.jit", "\n\n@gluon.jit"), "another order of row tiles": ("following = _item(order_ptr, number + tl.num_programs(0), items, ORDERED)", "following = number + tl.num_programs(0)"),
    "masks of another tile": ("start = at * BLOCK_N", "start = (at + 1) * BLOCK_N"), "no tile is masked": ("s = _masked(s,", "s = (lambda s, *_: s)(s,"),
    "slots that are not there": ("tiles.index(slot))", "tiles.index(0))"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLACES)
def test_another_place_is_noticed(mistake):
    """In every form whose text has it."""
    right, wrong = PLACES[mistake]
    forms = [(text, consumers) for text, (_, _, consumers) in (("\n".join(TEXTS[form]), FORMS[form]) for form in FORMS) if right in text]
    assert forms
    for text, consumers in forms:
        with pytest.raises(InternalError):
            hopper_ring.check(text.replace(right, wrong), consumers)


def swapped(text: list[str], first: str, second: str) -> str:
    """The text with the two first lines that begin so, one after the other, exchanged."""
    i = next(i for i in range(begin(text), len(text)) if text[i].strip().startswith(first) and text[i + 1].strip().startswith(second))
    return "\n".join([*text[:i], text[i + 1], text[i], *text[i + 2 :]])


GIVEN_BACK = [("s = warpgroup_mma_wait(0", "mbarrier.arrive"), ("acc = warpgroup_mma_wait(0", "mbarrier.arrive"), ("tma.store_wait(0)", "mbarrier.arrive")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first, second", GIVEN_BACK)
def test_a_tile_is_not_given_back_while_it_is_read(first, second, form):
    first = first.replace("s =", "s0 =") if form == "narrow" else first
    with pytest.raises(InternalError, match="overwrites"):
        hopper_ring.check(swapped(TEXTS[form], first, second), FORMS[form][2])


def test_tiles_are_not_passed_by_before_the_last_one_is_given_back():
    """A ring of two would hang: the second of them wants the place of the last tile that was read."""
    text = TEXTS["three"]
    at = next(i for i, line in enumerate(text) if "for i in range(late)" in line)
    assert "mbarrier.arrive(v_empty" in text[at - 1]
    with pytest.raises(InternalError, match="would hang"):
        hopper_ring.check("\n".join([*text[: at - 1], *text[at : at + 3], text[at - 1], *text[at + 3 :]]), 3)


# What the compiler makes of it

CASES = [("causal", 64), ("causal", 128), ("causal", 256), ("window", 128), ("streaming", 128), ("documents", 128), ("lists", 128), ("full", 128)]
COLUMNS = {64: 128, 128: 128, 256: 64}


def row_tile(name: str, head_dim: int) -> hopper.RowTile:
    return hopper.row_tile(make_plan(PATTERNS[name]), head_dim, 16, 4)


@pytest.fixture(scope="module")
def reports():
    tiles = [row_tile(*case) for case in CASES]
    sources = [hopper.generate(make_plan(PATTERNS[name]), tile.narrow, tile.consumers) for (name, _), tile in zip(CASES, tiles)]
    jobs = [offline.Job(source, "forward", "bf16", d, d, configs.HOPPER["forward", d][0], group=4) for source, (_, d) in zip(sources, CASES)]
    return dict(zip(CASES, offline.compile_all(jobs)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_serialised(reports, case):
    report, (_, d), tile = reports[case], case, row_tile(*case)
    narrow, consumers = tile.narrow, tile.consumers
    assert report.stack <= 160 and report.shared < offline.SHARED_LIMIT  # on the stack lies what a row tile needs once
    # A wait after the first scores, two in the loop, one at the end, for each consumer: more would be the compiler's own.
    assert len(re.findall(r"WARPGROUP\.DEPBAR", report.sass)) == 4 * consumers + 6 * narrow
    assert report.instructions["UTMASTG"] == consumers + 2 * narrow and not {"LDGSTS", "HMMA"} & report.instructions.keys()
    products = 2 * (d // 16 + COLUMNS[d] // 16) + narrow * (2 * d // 16 + 32 // 16)  # two places of both products, two and one of narrow ones
    assert report.instructions["HGMMA"] == consumers * products


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exponentials_run_beside_the_product(reports, case):
    """In the loop all exponentials lie between the wait for scores and the wait for the product before, and next to nothing of the stack."""
    found = re.findall(r"WARPGROUP\.DEPBAR\.LE\s*gsb0, 0x([01])|(MUFU\.EX2)|(STL|LDL)", reports[case].sass)
    marks = "".join("s" if stack else "x" if ex2 else number for number, ex2, stack in found)
    beside = [x for x in re.findall(r"1([xs]*)0", marks) if x.count("x") == COLUMNS[case[1]] // 2 + 2]
    assert len(beside) >= 2 and sorted(x.count("s") for x in beside)[1] <= 4, marks


# Masks


@settings(deadline=None)
@given(patterns(args=False), st.integers(1, 12), st.integers(0, 28))
def test_masks_at_distances(p, n_q, before):
    """What a mask loses holds anyway, for keys before the row tile and for those at its own positions."""
    q, k = torch.arange(before, before + n_q)[:, None], torch.arange(before + n_q)[None]
    mask = lower(p) if not signature(p) and "[" not in str(p) else p  # the reference knows no guards of reads
    want = dense(p, n_q, before + n_q, heads=HEADS, q_start=before)
    for lost, where in ((hopper._earlier(mask), k < q), (hopper._near(mask), (q - k).abs() < hopper.ROWS)):
        assert (dense(lost, n_q, before + n_q, heads=HEADS, q_start=before) == want)[..., where].all()


def test_comparisons_of_the_distance_are_lost():
    window = lower(pc.parse("causal & window(512)"))
    assert str(hopper._earlier(window)) == "q - k < 512" and str(hopper._near(window)) == "causal"
    assert hopper._earlier(lower(pc.causal)) is pc.full and hopper._near(lower(pc.causal & pc.window(40))) is lower(pc.causal & pc.window(40))


# The tiles that are visited

@pytest.mark.parametrize("pack, consumers", [(1, 2), (1, 3), (2, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize("n_q, n_k", [(1, 1), (128, 128), (300, 300), (65, 450), (513, 200), (1, 300)])
@pytest.mark.parametrize("p", WALKS, ids=str)
def test_every_pair_is_visited_once(p, n_q, n_k, pack, consumers):
    if hopper.pack_of(make_plan(p), 128, 4, 4 // pack) != pack:
        pytest.skip("heads of their own")
    if n_q > n_k and any(x in str(p) for x in ("documents", "valid")):
        n_k = n_q
    args = {"ids": torch.arange(n_k) // 70, "m": torch.arange(n_k) % 11 > 2}
    args = {name: x for name, x in args.items() if f'"{name}"' in str(p) or f"({name})" in str(p)}
    times, seen = walk(p, n_q, n_k, 2, args, pack, consumers)
    want = dense(p, n_q, n_k, heads=2, q_start=max(0, n_k - n_q), **args)[0].numpy()
    assert times.max(initial=0) <= 1 and (seen == want).all()
