"""The Hopper forward without a GPU: its ring, what it compiles to, and what is left to the portable kernel."""

from __future__ import annotations

import re

import pytest
import torch
from hopper_walk import walk

import patternc as pc
from patternc.codegen import configs, hopper, hopper_ring, offline
from patternc.errors import InternalError
from patternc.orders.boxes import box_axis
from patternc.orders.search import orders
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.reference import dense

PATTERNS = {
    "full": pc.full, "causal": pc.causal, "window": pc.causal & pc.window(512), "streaming": pc.causal & (pc.window(512) | pc.sink(4)),
    "documents": pc.causal & pc.documents(pc.arg("ids")), "lists": pc.random_blocks(3, 64, seed=0) | pc.window(30), "choices": pc.causal & (pc.k // 16 % 8 == 7),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_every_kind_of_plan_has_a_text(name):
    plan = make_plan(PATTERNS[name])
    assert hopper.covers(plan) is None
    source = hopper.generate(plan)
    compile(source.text, name, "exec")
    assert source.text == hopper.generate.__wrapped__(plan).text


def test_what_is_left_to_the_portable_kernel():
    p = pc.causal & pc.dilate(4) & pc.window(2048)
    order = orders(lower(p))[-1]
    assert "boxes" in hopper.covers(Plan(p, box_axis(lower(p), order, "k"), box_axis(lower(p), order, "q")))
    assert "later" in hopper.covers(make_plan(pc.causal), later=True)
    assert "nothing" in hopper.covers(make_plan(pc.empty))


# The ring: every wait, arrival and parity of the text is needed

TEXT = hopper.generate(make_plan(pc.causal)).text.splitlines()
BEGIN = next(i for i, line in enumerate(TEXT) if line.startswith("def _producer"))


def mutations():
    for i, line in enumerate(TEXT):
        space = line[: len(line) - len(line.lstrip())]
        if "mbarrier.wait(" in line:
            yield i, space + "pass" if i > BEGIN else space + "mbarrier.wait(empty.index(slot), 0, pred=False)"
            if "& 1" in line:
                yield i, line.replace("& 1", "& 1 ^ 1", 1)
            if "index(before)" in line and "(g - 1)" in line:
                yield i, line.replace("index(before)", "index(slot)")
        if "mbarrier.arrive(" in line:
            yield i, space + "pass"
            yield i, line.replace("count=1", "count=2")
        if "warpgroup_mma_wait(" in line and "import" not in line:
            yield i, line.replace("_wait(1", "_wait(2").replace("_wait(0", "_wait(1")
        if "mbarrier.expect(" in line:
            yield i, line.replace("nbytes", "nbytes * 2")


@pytest.mark.parametrize("at, line", list(mutations()), ids=lambda x: str(x).strip())
def test_a_mutation_is_noticed(at, line):
    with pytest.raises(InternalError):
        hopper_ring.check("\n".join([*TEXT[:at], line, *TEXT[at + 1 :]]))


def swapped(first: str, second: str) -> str:
    """The text with the two first lines that begin so, one after the other, exchanged."""
    i = next(i for i in range(BEGIN, len(TEXT)) if TEXT[i].strip().startswith(first) and TEXT[i + 1].strip().startswith(second))
    return "\n".join([*TEXT[:i], TEXT[i + 1], TEXT[i], *TEXT[i + 2 :]])


@pytest.mark.parametrize("first, second", [("s = warpgroup_mma_wait(0", "mbarrier.arrive"), ("acc = warpgroup_mma_wait(0", "mbarrier.arrive")])
def test_a_tile_is_not_given_back_while_it_is_read(first, second):
    with pytest.raises(InternalError, match="overwrites"):
        hopper_ring.check(swapped(first, second))


# What the compiler makes of it

CASES = [("causal", 64), ("causal", 128), ("causal", 256), ("streaming", 128), ("documents", 128), ("lists", 128)]


@pytest.fixture(scope="module")
def reports():
    jobs = [offline.Job(hopper.generate(make_plan(PATTERNS[name])), "forward", "bf16", d, d, configs.HOPPER["forward", d][0], group=4) for name, d in CASES]
    return dict(zip(CASES, offline.compile_all(jobs)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_spilled_or_serialised(reports, case):
    report = reports[case]
    assert report.stack == 0 and report.shared < offline.SHARED_LIMIT
    # A wait after the first scores, two in each loop, one at the end, for each of two consumers: more would be the compiler's own.
    assert len(re.findall(r"WARPGROUP\.DEPBAR", report.sass)) == 12
    assert report.instructions["UTMASTG"] == 2 and not {"LDGSTS", "HMMA", "STL", "LDL"} & report.instructions.keys()
    products = {64: 64 // 16 + 128 // 16, 128: 128 // 16 + 128 // 16, 256: 256 // 16 + 64 // 16}[case[1]]
    assert report.instructions["HGMMA"] == 2 * 3 * products  # three places of both products


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exponentials_run_beside_the_product(reports, case):
    """In the loops all exponentials lie between the wait for scores and the wait for the product before."""
    found = re.findall(r"WARPGROUP\.DEPBAR\.LE\s*gsb0, 0x([01])|(MUFU\.EX2)", reports[case].sass)
    marks = "".join("x" if ex2 else number for number, ex2 in found)
    columns = {64: 128, 128: 128, 256: 64}[case[1]]
    loops = re.findall(r"1(x*)0", marks)
    assert len(loops) == 4 and all(len(x) == columns // 2 + 2 for x in loops), marks


# The tiles that are visited

WALKS = [
    *PATTERNS.values(), (pc.q >= 300) & (pc.k < 50), pc.k < pc.q, pc.causal & (pc.window(200) | pc.dilate(256)), pc.causal & pc.documents(pc.arg("ids")) & pc.valid(pc.arg("m")),
    (pc.h < 1) & pc.causal | (pc.h >= 1) & pc.window(90), pc.causal & (pc.dilate(3) | pc.cols([1, 5, 200])), pc.rows([3, 400]) | pc.window(70),
]  # fmt: skip


@pytest.mark.parametrize("n_q, n_k", [(1, 1), (128, 128), (300, 300), (65, 450), (513, 200), (1, 300)])
@pytest.mark.parametrize("p", WALKS, ids=str)
def test_every_pair_is_visited_once(p, n_q, n_k):
    if n_q > n_k and any(x in str(p) for x in ("documents", "valid")):
        n_k = n_q
    args = {"ids": torch.arange(n_k) // 70, "m": torch.arange(n_k) % 11 > 2}
    args = {name: x for name, x in args.items() if f'"{name}"' in str(p) or f"({name})" in str(p)}
    times, seen = walk(p, n_q, n_k, 2, args)
    want = dense(p, n_q, n_k, heads=2, q_start=max(0, n_k - n_q), **args)[0].numpy()
    assert times.max(initial=0) <= 1 and (seen == want).all()
