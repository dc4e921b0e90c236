"""The fused backward for Hopper: in which order programs add, and its text run with numbers."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
from gluon_memory import Pointer
from gluon_numbers import Card

import patternc as pc
from patternc import reference
from patternc.args import bind
from patternc.codegen import fused, fused_launch, offline
from patternc.codegen.configs import Config
from patternc.codegen.fused_order import KEYS, QUERIES, order_of
from patternc.orders.vectors import whole
from patternc.visits import formula_segments

D = 8  # columns in place of head_dim, which the text does not say
PATTERNS = [
    ("causal", {}), ("full", {}), ("causal & window(100)", {}), ("window(left=70, right=30)", {}), ("causal & (window(90) | sink(4))", {}),
    ("causal & (q - k != 3)", {}), ("(q >= 60) & (k < 20) & causal", {}), ("empty", {}), ('causal & (q - k < arg("w"))', {"w": 77}),
]  # fmt: skip


def mask_of(text, args, n_q, n_k):
    exact = pc.compile(text).compiled.exact
    return reference.mask_of(exact, bind(exact, args, n_q, n_k, q_start=max(n_k - n_q, 0))).numpy().reshape(n_q, n_k)


def order_for(text, args, n_q, n_k, queries):
    compiled = pc.compile(text).compiled
    bound = bind(compiled.exact, args, n_q, n_k, q_start=max(n_k - n_q, 0))
    return compiled.plan, order_of(formula_segments(compiled.plan.transposed, bound, (KEYS, queries), True), n_q, n_k, queries), bound.q_start


@pytest.mark.parametrize("text, args", PATTERNS)
@pytest.mark.parametrize("n_q, n_k", [(300, 300), (256, 256), (1, 1), (70, 400), (129, 65)])
@pytest.mark.parametrize("queries", QUERIES.values())
def test_each_allowed_pair_is_in_one_tile_and_each_tile_in_turn(text, args, n_q, n_k, queries):
    plan, order, _ = order_for(text, args, n_q, n_k, queries)
    allowed = mask_of(text, args, n_q, n_k)
    first, entries = (x.tolist() if x.ndim == 1 else x for x in order.tables)
    assert len(first) == -(-n_k // KEYS) + 1 and first[-1] == len(entries) - 1
    assert order.visits == first[-1] / (len(first) - 1) and order.most == max(b - a for a, b in zip(first, first[1:]))
    seen, turns = np.zeros_like(allowed), {}
    for key_tile in reversed(range(len(first) - 1)):
        tiles = entries[first[key_tile] : first[key_tile + 1], 0] // 2
        assert (np.diff(tiles) > 0).all()
        for (packed, before), tile in zip(entries[first[key_tile] : first[key_tile + 1]], tiles):
            rows, columns = slice(tile * queries, (tile + 1) * queries), slice(key_tile * KEYS, (key_tile + 1) * KEYS)
            seen[rows, columns] = True
            assert packed % 2 or (allowed[rows, columns].all() and (key_tile + 1) * KEYS <= n_k)
            assert before == turns.get(tile, 0)
            turns[tile] = before + 1
    assert (seen | ~allowed).all()
    begins = {int(entries[i, 0]) // 2 for i, stop in zip(first, first[1:]) if i < stop}
    assert order.gaps == (len(turns) < -(-n_q // queries)) and order.alike == (len(begins) < 2)


def gradients(q, k, v, do, allowed, scale):
    """Those of attention, the natural log-sum-exp and delta, in float64."""
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(x, group, 1) for x in (k, v))
    s = np.where(allowed, q @ keys.swapaxes(2, 3) * scale, -np.inf)
    peak = np.maximum(s.max(3, keepdims=True), -1e30)
    total = np.exp(s - peak).sum(3, keepdims=True)
    p = np.exp(s - peak) / np.where(total > 0, total, 1)
    delta = (p @ values * do).sum(3, keepdims=True)
    ds = p * (do @ values.swapaxes(2, 3) - delta)
    of_keys = [x.reshape(*k.shape[:2], group, *k.shape[2:]).sum(2) for x in (ds.swapaxes(2, 3) @ q * scale, p.swapaxes(2, 3) @ do)]
    with np.errstate(divide="ignore"):
        return ds @ keys * scale, *of_keys, (peak + np.log(total))[..., 0], delta[..., 0]


class InTurn(Card):
    """Programs add to a tile one after the other, and count so: numbers alone would not say in which order, which decides their bits."""

    def _announce(self, pointer, count):
        assert pointer.array.ravel()[pointer.offset] == count - 1, "a program adds before its turn"
        super()._announce(pointer, count)


def run(width, text, args, n_q, n_k, heads, kv_heads, batch, seed, section=1, edit=lambda x: x, together=3):
    """What the kernel finds, and what it should."""
    plan, order, q_start = order_for(text, args, n_q, n_k, QUERIES[width])
    assert fused.covers(plan) is None
    random = np.random.default_rng(seed)
    q, k, v, do = (random.normal(size=(batch, h, n, D)) for h, n in ((heads, n_q), (kv_heads, n_k), (kv_heads, n_k), (heads, n_q)))
    allowed, scale = mask_of(text, args, n_q, n_k), 0.3
    dq, dk, dv, lse, delta = gradients(q, k, v, do, allowed, scale)
    vectors = np.zeros((2, batch, heads, whole(n_q)))
    vectors[0] = np.inf
    vectors[0, ..., :n_q], vectors[1, ..., :n_q] = np.where(np.isinf(lse), np.inf, lse / np.log(2)), delta
    found = {"dq": np.full_like(q, 0 if order.gaps else np.nan), "dk": np.full_like(k, np.nan), "dv": np.full_like(v, np.nan)}
    source = fused.generate(plan, width)
    kernel = source.kernels["backward"]
    counts = np.zeros(1 + batch * heads * -(-n_q // QUERIES[width]), np.int64)
    tiles = {"q": q, "k": k, "v": v, "do": do, **found}
    given = {f"{m}_desc": Card.describe(x, 64, D // 2 if m == "dq" and width == 128 else D) for m, x in tiles.items()}
    given |= {"lse2_ptr": Pointer(vectors[0]), "delta_ptr": Pointer(vectors[1]), "scale": scale, "score_scale": scale / np.log(2)}
    given |= {"counts_ptr": Pointer(counts), **{f"{name}_ptr": Pointer(x) for name, x in zip(("first", "entries"), order.tables)}}
    given |= {"key_tiles": -(-n_k // KEYS), "section": section, "n_q": n_q, "n_k": n_k, "q_start_value": q_start, "q_start_stride": 0}
    given |= {x: y for name, value in args.items() for x, y in ((f"value_of_{name}", value), (f"stride_of_{name}", 0))}
    given |= {"HEADS": heads, "GROUP": heads // kv_heads, "D": D, "STAGES": fused.STAGES}
    programs = batch * kv_heads * -(-n_k // KEYS)
    InTurn(edit(source.text), "backward", seed).run(programs, *(given[p] for p in (*kernel.parameters, *kernel.constants)), together=together)
    return (found["dq"] * scale, found["dk"], found["dv"]), (dq, dk, dv)


@pytest.mark.parametrize("text, args", PATTERNS)
@pytest.mark.parametrize("n_q, n_k, heads, kv_heads, batch, section", [(300, 300, 2, 1, 1, 1), (65, 257, 2, 2, 2, 4), (1, 1, 1, 1, 1, 1), (200, 100, 4, 2, 1, 2)])
@pytest.mark.parametrize("width", QUERIES)
def test_gradients(width, text, args, n_q, n_k, heads, kv_heads, batch, section):
    for found, wanted in zip(*run(width, text, args, n_q, n_k, heads, kv_heads, batch, n_q, section)):
        assert np.abs(found - wanted).max() < 1e-9


def moved(line, before):
    """An edit that puts a line before others that begin so."""

    def edit(text):
        assert text.count(line) == len(re.findall(before, text)) > 0
        return re.sub(before, lambda m: line + m[0], text.replace(line, ""))

    return edit


def without(line):
    return lambda text: text.replace(line, "", 1) if line in text else None


def too_soon(name):
    """An edit by which a product may still be running where its result is used."""
    return lambda text: re.sub(rf"{name} = warpgroup_mma_wait\((\d)", lambda m: f"{m[0][:-1]}{int(m[1]) + 1}", text)


MISTAKES = {
    "ds without a fence": lambda text: text.replace("        fence_async_shared()\n        mbarrier.arrive(ds_full", "        mbarrier.arrive(ds_full"),
    "ds written while it is read": without("        mbarrier.wait(ds_empty.index(place), (g // 2 & 1) ^ 1)\n"),
    "ds read before the other warpgroup wrote it": without("        mbarrier.wait(ds_full.index(before), (g - 1) // 2 & 1, pred=g > 0)\n"),
    "dq written while it leaves": without("        mbarrier.wait(dq_empty.index(0), (g & 1), pred=g > 0)\n"),
    "a count that is too high": lambda text: text.replace("_announce(count_ptr, before + 1)", "_announce(count_ptr, before + 2)"),
    "programs that are numbered before they begin": lambda text: text.replace("program = tl.atomic_add(counts_ptr, 1)", "program = tl.program_id(0)"),
    "lse read before it is there": without("        mbarrier.wait(row_full.index(slot), g // STAGES & 1)\n"),
    "barriers without a fence": lambda text: text.replace("    fence_async_shared()\n    tl.warp", "    tl.warp"),
    "no turns": without("        _await(count_ptr, before)\n"),
    "q given back while dk reads it": moved("        mbarrier.arrive(empty.index(slot), count=1)\n", r"        dk = warpgroup_mma_wait\(\d, deps"),
    "dv used too soon": too_soon("dv"),
    "dq used too soon": too_soon("dq"),
    "the next scores read before their queries are there": lambda text: re.sub(r" +mbarrier.wait\(q_full.index\(\(g \+ 1\).*\n", "", text),
    "the last dq forgotten": lambda text: text.replace("mbarrier.arrive(dq_full.index(0), count=1, pred=total > 0)", "pass"),
    "a mask of another tile": lambda text: text.replace("first + own * 64, start, s_layout", "first, start, s_layout"),
    "a tile left before its store is read": without("    tma.store_wait(0)\n"),
}


def found_wrong(width, edit):
    with pytest.raises(AssertionError):
        for seed in range(40):
            for found, wanted in zip(*run(width, "causal", {}, 800, 400, 2, 1, 1, seed, edit=edit)):
                assert np.abs(found - wanted).max() < 1e-9


@pytest.mark.parametrize("width", QUERIES)
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found(name, width):
    edit, text = MISTAKES[name], fused.generate(pc.compile("causal").compiled.plan, width).text
    assert edit(text) not in (None, text)
    found_wrong(width, edit)


def test_ds_of_128_queries_is_announced_when_all_of_it_is_there():
    line = "        mbarrier.arrive(ds_full.index(place), count=1)\n"
    found_wrong(64, lambda text: text.replace(line, "").replace("        more_dk = ", line + "        more_dk = ", 1))


@pytest.mark.parametrize(
    "text, why",
    [
        ("causal & documents(ids)", "tiles that no formulas find"),
        ("random_blocks(3, 64, seed=0)", "tiles that no formulas find"),
        ("causal & (window(40) | (h % 2 == 0))", "heads or batch rows that differ"),
        ("per_head(causal, full)", "heads or batch rows that differ"),
    ],
)
def test_what_is_left_to_the_portable_kernels(text, why):
    assert fused.covers(pc.compile(text).compiled.plan) == why


@pytest.mark.parametrize("text, why", [
    ("causal & dilate(4) & window(2048)", "tiles that are boxes of digits"),
    ("(h == 0) & causal & window(99) | (h == 1) & causal & dilate(8)", "groups of heads with plans of their own"),
])  # fmt: skip
def test_orders_are_left_to_the_portable_kernels(text, why):
    compiled = pc.compile(text).compiled
    assert fused.covers(compiled.plan_at(bind(compiled.exact, {}, 16384, heads=2))) == why


def test_which_calls_it_takes():
    """Long rows of equal lengths: not a window of 512, nor sinks, whose keys many queries read, nor few programs."""

    def pays(text, n, heads=16, kv_heads=16, batch=4, width=128):
        q, k = (torch.empty(batch, h, n, width, device="meta") for h in (heads, kv_heads))
        call = SimpleNamespace(order=lambda width: order_for(text, {}, n, n, QUERIES[width])[1], variant=None)
        return fused_launch.pays(call, {"q": q, "k": k})

    assert pays("causal", 8192) and pays("full", 4096) and pays("causal & window(4096)", 16384, kv_heads=4) and pays("causal & window(1024)", 8192, kv_heads=4)
    assert not pays("causal & window(512)", 8192) and not pays("causal & (window(1024) | sink(4))", 8192, kv_heads=4) and not pays("causal", 8192, 4, 1, 1)


COMPILED = [("causal", 128, 1), ("full", 128, 4), ("causal & (window(1024) | sink(4))", 128, 4), ("causal", 64, 1), ("causal & (window(1024) | sink(4))", 64, 4)]


@pytest.fixture(scope="module")
def reports():
    def job(text, width, group):
        source = fused.generate(pc.compile(text).compiled.plan, width)
        return offline.Job(source, "backward", "bf16", width, width, Config(QUERIES[width], KEYS, 4, fused.STAGES), group=group)

    return dict(zip(COMPILED, offline.compile_all([job(*case) for case in COMPILED])))


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled(reports, case):
    """It fits; products wait for each other where the text says so, and no more than that; the loop writes next to nothing to the stack."""
    report, (_, width, _) = reports[case], case
    products = 8 + (8 + 8 + 4 + 8 + 8) + 4 if width == 128 else 4 + 2 * (4 + 4 + 4 + 4 + 4) + 8  # of the first scores, of the loop, of the last dq
    assert report.shared <= fused.shared(width) <= offline.SHARED_LIMIT
    assert report.sass.count("WARPGROUP.DEPBAR") == 2 * (7 if width == 128 else 11) and report.instructions["HGMMA"] == 2 * products
    later = not triton.__version__.startswith("3.6.")  # compilers take more registers
    assert report.stack <= (230 if later else 100) and report.loop_stores <= (40 if later and width == 64 else 4)
