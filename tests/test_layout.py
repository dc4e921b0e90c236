"""Layouts and plans against the dense meaning: random expressions, exactness where it counts, and a million tokens."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from strategies import DRAWN, HEADS, PATTERN_OPERATIONS, PRIMITIVES, RELATIONS, draw_args, patterns

import patternc as pc
from patternc.args import bind
from patternc.layout import layout
from patternc.soundness import Example, block_counts, check, check_layout

EXAMPLES = 500
M = 1 << 20


@st.composite
def examples(draw):
    p = draw(patterns())
    n_k = draw(st.integers(1, 40))  # static document ids have 40 entries
    n_q = draw(st.one_of(st.just(n_k), st.integers(1, n_k)))
    batch = draw(st.integers(1, 2))
    start = draw(st.one_of(st.none(), st.integers(0, n_k - n_q)))
    tile = draw(st.sampled_from((16, 32, 8, 7))), draw(st.sampled_from((16, 32, 8, 9)))
    DRAWN.update({"n_q != n_k": n_q != n_k, "q_start": start is not None, "batch of 2": batch > 1, "ragged tiles": n_q % tile[0] + n_k % tile[1] > 0})
    return Example(p, n_q, n_k, HEADS, batch, tile, start, draw_args(draw, p, n_q, n_k, HEADS, batch))


def test_random_expressions():
    """Both directions of layout, counting layout and plan, and the printed text."""
    DRAWN.clear()
    checked = 0

    # The same examples every time: new ones are what `patternc fuzz` is for.
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(examples())
    def run(example):
        nonlocal checked
        checked += 1
        check(example)

    run()
    print(f"\n{checked} examples; drawn: " + ", ".join(f"{name} {count}" for name, count in sorted(DRAWN.items())))
    assert checked >= EXAMPLES
    wanted = {*PRIMITIVES, *RELATIONS, *PATTERN_OPERATIONS, "n_q != n_k", "q_start", "batch of 2", "arg scalar"}
    missing = {name for name in wanted if not DRAWN[name]}
    assert not missing


# ---- exactness

CONTIGUOUS = "documents with contiguous ids"
BASE = {
    "causal": pc.causal,
    "window": pc.window(40),
    "window two-sided": pc.window(left=33, right=21),
    "sink": pc.sink(5),
    "global": pc.global_([0, 3, 77]),
    "global count": pc.global_(9),
    "block": pc.block(24),
    "block back": pc.block(16, back=2),
    "prefix": pc.prefix(50),
    CONTIGUOUS: pc.documents(pc.arg("ids")),
    "dilate & window": pc.dilate(3) & pc.window(40),
}
COMPOSED = {
    "causal & window": pc.causal & BASE["window"],
    "causal & (window | sink)": pc.causal & (BASE["window"] | BASE["sink"]),
    "causal & (window | global)": pc.causal & (BASE["window"] | BASE["global"]),
    "window | global": BASE["window"] | BASE["global"],
    "causal | prefix": pc.causal | BASE["prefix"],
    "causal & documents": pc.causal & BASE[CONTIGUOUS],
    "documents & window": BASE[CONTIGUOUS] & BASE["window"],
    "documents & causal & (window | sink)": BASE[CONTIGUOUS] & pc.causal & (BASE["window"] | BASE["sink"]),
    "documents | global": BASE[CONTIGUOUS] | BASE["global"],
    "causal & block back": pc.causal & BASE["block back"],
    "block | window": BASE["block"] | BASE["window"],
    "causal & (dilate & window | sink)": pc.causal & (BASE["dilate & window"] | BASE["sink"]),
    "dilate & window | window": BASE["dilate & window"] | pc.window(12),
    "causal & (block | global | sink)": pc.causal & (BASE["block"] | BASE["global count"] | BASE["sink"]),
    "prefix & window | sink": BASE["prefix"] & BASE["window"] | BASE["sink"],
}
LENGTHS = ((16, 16), (1, 1), (100, 100), (129, 129), (160, 160), (1, 200), (37, 200), (64, 131))


@pytest.mark.parametrize("name", [*BASE, *COMPOSED])
def test_exact(name):
    """Every visited tile holds an allowed pair, and every all-allowed tile is marked full."""
    p = {**BASE, **COMPOSED}[name]
    for n_q, n_k in LENGTHS:
        for seed, tile in enumerate(((16, 16), (32, 16), (16, 32), (24, 17), (64, 64))):
            args = {"ids": contiguous(n_k, seed)} if "ids" in str(p) else {}
            dense = p.dense(n_q, n_k, **args).numpy()
            for transposed in (False, True):
                for count in (False, True):
                    found = layout(p, bind(p, args, n_q, n_k), tile, transposed, count)
                    assert found.exact
                    check_layout(found, dense, f"{name} {n_q} {n_k} {tile}", transposed)


@pytest.mark.parametrize("a, b", [(a, b) for i, a in enumerate(BASE) for b in list(BASE)[i + 1 :]])
def test_exact_pairs(a, b):
    for p in (BASE[a] & BASE[b], BASE[a] | BASE[b]):
        for n_q, n_k in ((150, 150), (37, 131)):
            args = {"ids": contiguous(n_k, 3)} if CONTIGUOUS in (a, b) else {}
            found = layout(p, bind(p, args, n_q, n_k), (16, 16))
            assert found.exact
            check_layout(found, p.dense(n_q, n_k, **args).numpy(), str(p))


def contiguous(n: int, seed: int) -> np.ndarray:
    """Ids that are contiguous and in no order: int64 [n]."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.random(n) < 0.06)
    return rng.permutation(n + 1)[steps]


def test_ids_in_any_order_are_sound():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = pc.causal & pc.documents(pc.arg("ids"))
        args = {"ids": rng.integers(-1, 5, (2, 90))}
        check(Example(p, 90, 90, 1, 2, (16, 16), None, args))


# ---- a million tokens


def test_closed_counts_at_a_million_tokens():
    n, w = M, 512

    def triangle(m):
        return m * (m + 1) // 2

    def causal_window(w, n=n):
        return w * n - w * (w - 1) // 2

    blocks, rest = divmod(n, 1000)
    two_sided = causal_window(257) + causal_window(257) - n
    outside = (n - 64) ** 2 - (causal_window(257, n - 64) * 2 - (n - 64))  # window pairs of the rows and columns past the global ones
    cases = {
        pc.causal: triangle(n),
        pc.full: n * n,
        pc.causal & pc.window(w): causal_window(w),
        pc.window(w): 2 * causal_window(w) - n,
        pc.window(left=300, right=0): causal_window(301),
        pc.causal & (pc.sink(4) | pc.window(1024)): causal_window(1024) + 4 * (n - 1024) - sum(range(4)),
        pc.block(1000): blocks * 1000**2 + rest**2,
        pc.causal & pc.block(1000): blocks * triangle(1000) + triangle(rest),
        pc.prefix(777): 777 * n,
        pc.causal | pc.prefix(777): triangle(n) + sum(range(777)),
        pc.dilate(3) & pc.causal & pc.window(300): sum(n - d for d in range(0, 300, 3)),
        pc.global_(64): n * n - (n - 64) ** 2,
        pc.window(left=256, right=256) | pc.global_(64): n * n - outside,
    }
    assert two_sided == count(pc.window(257))
    for p, pairs in cases.items():
        assert count(p) == pairs, str(p)


def count(p, n=M, **args):
    return layout(p, bind(p, args, n), (128, 128), count=True).allowed_pairs


def test_sinks_past_the_window():
    """The sink's columns add what the window does not hold: rows from 1024 on see 4 more, fewer near the start."""
    p = pc.causal & (pc.sink(4) | pc.window(1024))
    for n in (1023, 1030, 5000):
        assert layout(p, bind(p, {}, n), (128, 128), count=True).allowed_pairs == int(p.dense(n).sum())


def test_documents_at_a_million_tokens():
    cuts = np.sort(np.random.default_rng(1).choice(np.arange(1, M), 699, replace=False))
    lengths = np.diff(np.concatenate([[0], cuts, [M]])).astype(object)
    ids = np.searchsorted(cuts, np.arange(M), "right")
    assert count(pc.documents(pc.arg("ids")), ids=ids) == sum(length**2 for length in lengths)
    assert count(pc.causal & pc.documents(pc.arg("ids")), ids=ids) == sum(length * (length + 1) // 2 for length in lengths)


def test_residues():
    """Counts by classes: tiles repeat with the divisor's period.  Every tile is partial here, so the length is a shorter one."""
    n, m = 1 << 15, 5
    assert count(pc.dilate(2), n) == (n // 2) ** 2 * 2
    assert count(pc.causal & (pc.k % 7 == 2), n) == sum(n - k for k in range(2, n, 7))
    assert count((pc.q + pc.k) % m == 0, n) == sum(len(range(a, n, m)) * len(range((-a) % m, n, m)) for a in range(m))


def test_layout_touches_no_pairs():
    """Beside pairs, which are 128 GiB as bits, it needs next to no memory."""
    p = pc.causal & (pc.sink(4) | pc.window(1024))
    bound = bind(p, {}, M)
    tracemalloc.start()
    layout(p, bound, (128, 128))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 27


def test_block_counts():
    mask = np.zeros((3, 5), bool)
    mask[2, 4] = True
    allowed, area = block_counts(mask, 2, 2)
    assert allowed.tolist() == [[0, 0, 0], [0, 0, 1]] and area.tolist() == [[4, 4, 2], [2, 2, 1]]
