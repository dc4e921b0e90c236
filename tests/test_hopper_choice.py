"""When the forward for Hopper is taken, and how its row tiles are dealt; without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hopper_walk import WALKS
from hypothesis import given, settings, strategies as st

import patternc as pc
from patternc.args import bind
from patternc.codegen import hopper, hopper_choice, hopper_launch, hopper_ring, hopper_text
from patternc.codegen.backend import call_of
from patternc.codegen.launch import _key
from patternc.codegen.ready import ready_of
from patternc.runtime import compiled
from patternc.signature import signature

PAYS = [
    ("causal", 1, 16, 4, 4096, 128, True), ("causal", 4, 16, 4, 1024, 128, True), ("causal & window(512)", 4, 16, 4, 16384, 128, True),
    ("causal & window(512)", 1, 4, 1, 2048, 128, False), ("causal & window(512)", 4, 16, 16, 16384, 128, True), ("causal & window(128)", 4, 16, 16, 16384, 128, False),
    ("causal", 4, 16, 16, 8192, 64, True), ("causal & window(512)", 4, 16, 16, 16384, 64, False), ("causal & window(512)", 4, 16, 4, 16384, 64, True), ("full", 2, 16, 16, 8192, 256, True), ("full", 2, 16, 16, 512, 256, False), ("window(200)", 4, 16, 4, 16384, 128, True), ("window(20)", 4, 16, 4, 16384, 128, False), ("window(200)", 4, 16, 16, 16384, 64, False),
    ("causal & documents(ids)", 4, 16, 4, 16384, 128, True), ("causal & documents(ids)", 1, 16, 16, 16384, 128, False),
    ("causal & dilate(4) & window(2048)", 4, 16, 4, 16384, 128, True), ("causal & dilate(8) & window(512)", 4, 16, 16, 16384, 128, False),
    ("random_blocks(3, 64, seed=0)", 4, 16, 4, 16384, 128, False), ("causal & (k // 16 % 8 == 7)", 4, 16, 4, 16384, 128, False),
]  # fmt: skip


def choice(text: str, batch: int, heads: int, kv_heads: int, n: int, d: int) -> hopper_choice.Choice:
    p = pc.parse(text)
    q, k = (torch.empty(1).expand(batch, h, n, d) for h in (heads, kv_heads))
    bound = bind(p, {"ids": torch.zeros(n, dtype=torch.int32)} if "ids" in text else {}, n, heads=heads, batch=batch)
    call = call_of(compiled(p), 1.0, bound, q, k, k)
    assert call.plan.forward.kind == ("boxes" if "dilate" in text else compiled(p).plan.forward.kind)
    return hopper_choice.choose(call, {"q": q, "k": k, "v": k})


@pytest.mark.parametrize("text, batch, heads, kv_heads, n, d, pays", PAYS)
def test_when_it_pays(text, batch, heads, kv_heads, n, d, pays):
    assert hopper_choice.pays(choice(text, batch, heads, kv_heads, n, d), d, torch.device("cpu")) is pays


@pytest.mark.parametrize("text, calls", [("causal & window(w)", [({"w": 64}, 0), ({"w": 8192}, 0)]), ("causal", [({}, 0), ({}, 28672)])])
def test_a_choice_is_of_its_call(monkeypatch, text, calls):
    """What numbers decide is decided anew for others, in any order of calls."""
    for name, value in (("is_hopper", True), ("shared_memory", 232448), ("reachable", True)):
        monkeypatch.setattr(hopper_launch, name, lambda _, value=value: value)
    p, q, k = pc.parse(text), *(torch.empty(1, dtype=torch.bfloat16).expand(2, 16, n, 128) for n in (4096, 32768))
    found = []
    for args, start in (*calls, *reversed(calls)):
        call = call_of(compiled(p), 1.0, bind(p, args, 4096, 32768, heads=16, batch=2, q_start=start), q, k, k)
        matrices = {"q": q, "k": k, "v": k, "o": q}
        launch = ready_of(call, "forward", matrices, False, *_key("forward", matrices, False)).launch
        found.append((launch.kernel.variant, launch.grid, launch.values.get("ORDERED")))
    assert found[0] == found[3] != found[1] == found[2]


STAYS = [
    ("causal & window(512)", 4, 16, 4, 16384, 128, True, False), ("causal & window(4096)", 4, 16, 4, 16384, 128, True, True),
    ("causal & window(512)", 4, 16, 16, 16384, 128, True, False), ("causal", 4, 16, 4, 8192, 128, True, True), ("causal", 4, 16, 16, 8192, 128, True, True),
    ("causal", 4, 16, 16, 8192, 64, True, True), ("causal", 4, 16, 16, 8192, 256, True, True), ("causal", 1, 16, 4, 4096, 128, True, True),
    ("causal", 1, 16, 4, 1024, 128, False, False), ("full", 4, 16, 16, 8192, 128, True, False), ("full", 4, 16, 16, 8192, 256, False, False), ("full", 1, 16, 16, 4096, 128, False, False),
]  # fmt: skip


@pytest.mark.parametrize("text, batch, heads, kv_heads, n, d, stays, orders", STAYS)
def test_whether_programs_stay(text, batch, heads, kv_heads, n, d, stays, orders):
    made = choice(text, batch, heads, kv_heads, n, d)
    q = torch.empty(1).expand(batch, heads, n, d)
    programs, found = hopper_choice.dealt(made, q, hopper.constants(d, heads, made.tile)["SECTION"])
    assert programs == (132 if stays else made.items)
    assert found["ORDERED"] is orders and (not orders or sorted(found["order_ptr"].tolist()) == list(range(made.items)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), max_size=200), st.integers(1, 20))
def test_rounds(work, programs):
    """An order keeps every item in its round, and the programs' shares differ by no more than the longest item."""
    order, work = hopper_choice.rounds(np.array(work, float), programs), np.array(work, float)
    assert (np.arange(len(work)) // programs == np.sort(order) // programs).all() and (order // programs == np.arange(len(work)) // programs).all()
    whole = len(work) - len(work) % programs
    if whole:
        shares = work[order[:whole]].reshape(-1, programs).sum(0)
        assert np.ptp(shares) <= work.max()


def test_an_order_knows_where_a_row_tile_is():
    """What the host takes for the batch row, head and row tile of a number is what the kernel does."""
    made = choice("(h < 8) & causal | (h >= 8) & window(90)", 2, 16, 16, 1000, 128)
    section = hopper.constants(128, 16, made.tile)["SECTION"]
    batch, head, tile = hopper_choice._places(replace(made, find=lambda: np.zeros((2, 16, made.tiles.shape[2]))), torch.empty(2, 16, 1000, 128), section)
    space = hopper_ring.Machine([], (0, 1, 2), False).modules()
    exec(hopper_text.HELPERS[1], space)
    for item in range(made.items):
        assert space["_place"](item, 1000, 16, 1, 1, section, 1, 128)[:3] == (tile[item], batch[item], head[item])


@pytest.mark.parametrize("dtype, d", [(torch.bfloat16, 128), (torch.float16, 64), (torch.float32, 128), (torch.bfloat16, 256)], ids=str)
def test_every_plan_is_taken_or_refused_in_words(monkeypatch, dtype, d):
    """The decision looks at plans of all kinds: formulas, tables, lists, boxes of digits, groups of heads."""
    monkeypatch.setattr(hopper_launch, "is_hopper", lambda device: True)
    monkeypatch.setattr(hopper_launch, "shared_memory", lambda device: 232448)
    kinds = set()
    dilated = [pc.causal & pc.dilate(4) & pc.window(2048), pc.window(600) & pc.dilate(3), pc.neighborhood((40, 50), 7), pc.per_head(*[pc.window(100), pc.causal & pc.dilate(4)] * 2)]
    for p in (*WALKS, *dilated, pc.empty, pc.causal & pc.random_blocks(1, 64, 0)):
        args = {"ids": torch.arange(2000) // 70, "m": torch.arange(2000) % 11 > 2}
        args = {name: x for name, x in args.items() if name in signature(p)}
        for kv_heads in (2, 4):
            q, k = (torch.empty(2, h, 2000, d, dtype=dtype) for h in (4, kv_heads))
            call = call_of(compiled(p), 1.0, bind(p, args, 2000, heads=4, batch=2), q, k, k)
            matrices = {"q": q, "k": k, "v": k, "o": q}
            kinds.add(call.plan.forward.kind)
            why = hopper_launch.refusal(call, False, matrices)
            assert why is None or isinstance(why, str)
            assert hopper_launch.refusal(call, False, matrices | {"o": q.float()}), "a part of a pattern, to which others add theirs"
            assert hopper_launch.takes(call, "forward", False, matrices) is None or why is None
            if why is None and dtype == torch.bfloat16 and kv_heads == 2:
                made = hopper_choice.choose(call, matrices)
                hopper.generate(made.lines.plan, made.tile.narrow, made.tile.consumers)
    assert kinds == {"formula", "table", "list", "boxes", "heads"}
