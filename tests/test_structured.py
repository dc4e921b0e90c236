"""Neighbourhoods, block tables and random blocks: meaning against independent loops, exact layouts, texts, mistakes."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import patternc as pc
from patternc.args import bind
from patternc.errors import ArgError, DtypeError, OperandError, ParameterError, PatterncError, ShapeError
from patternc.layout import layout
from patternc.printing import named_data
from patternc.soundness import Example, check, check_layout

TILES = ((16, 16), (32, 16), (24, 17), (64, 64))


def axis_mask(side: int, kernel: int, dilation: int = 1, stride: int = 1, causal: bool = False) -> np.ndarray:
    """One axis of a neighbourhood, position by position."""
    mask = np.zeros((side, side), bool)
    for q in range(side):
        group = list(range(q % dilation, side, dilation))
        at = group.index(q)
        if causal:
            leader = min(at // stride * stride + stride - 1, len(group) - 1)
            chosen = [k for place, k in enumerate(group) if leader - kernel < place <= at]
        else:
            leader = min(at // stride * stride + stride // 2, len(group) - 1)
            start = min(max(leader - kernel // 2, 0), len(group) - kernel)
            chosen = group[start : start + kernel]
        mask[q, chosen] = True
    return mask


def grid_mask(shape, kernel, dilation=1, stride=1, causal=False) -> np.ndarray:
    """All axes at once; the first is outermost."""
    per_axis = [x if isinstance(x, list) else [x] * len(shape) for x in (kernel, dilation, stride, causal)]
    out = np.ones((1, 1), bool)
    for side, *options in zip(shape, *per_axis):
        out = np.kron(out, axis_mask(side, *options))
    return out.astype(bool)


def test_one_axis_is_the_published_neighborhood():
    tried = 0
    for side in (1, 5, 12, 17):
        for kernel in range(1, 9):
            for dilation in (1, 2, 3):
                for stride in range(1, kernel + 1):
                    for causal in (False, True):
                        if kernel * dilation <= side:
                            p = pc.neighborhood(side, kernel, dilation, stride, causal)
                            assert (p.dense(side)[0, 0].numpy() == axis_mask(side, kernel, dilation, stride, causal)).all(), str(p)
                            tried += 1
    assert tried == 348


GRIDS = [
    ([13, 17], [5, 4], 1, 1, False),
    ([7, 9, 5], 3, 1, 1, False),
    ([20, 15], [3, 4], [2, 1], [1, 2], [False, True]),
    ([6, 5, 8], [2, 5, 4], [3, 1, 1], [1, 5, 2], [True, False, False]),
    ([211], 13, 1, 1, False),
    ([211], 13, 3, 4, False),
    ([100], 7, 1, 1, True),
    ([64], 6, 2, 3, True),
    ([1, 40], [1, 40], 1, 1, False),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_neighborhoods_are_exact(grid):
    p, n = pc.neighborhood(*grid), int(np.prod(grid[0]))
    wanted = grid_mask(*grid)
    if not any(grid[4] if isinstance(grid[4], list) else [grid[4]]):
        assert (wanted.sum(1) == np.prod(np.broadcast_to(grid[1], len(grid[0])))).all()  # windows move at borders, they do not shrink
    exact(p, n, wanted[None, None])
    exact(p | pc.window(5), n, wanted[None, None] | pc.window(5).dense(n).numpy())
    exact(p, n, wanted[None, None, -37:], n_q=37)


def exact(p, n, dense, heads=1, n_q=None, tiles=TILES, **args):
    """Every visited tile holds an allowed pair and every full tile is marked, in both directions."""
    for tile in tiles:
        for transposed in (False, True):
            for count in (False, True):
                found = layout(p, bind(p, args, n_q or n, n, heads), tile, transposed, count)
                assert found.exact, (str(p), tile)
                check_layout(found, dense, f"{p} {n} {tile}", transposed)


def listed_mask(table, block, n, heads=1) -> np.ndarray:
    out = np.zeros((1, heads, n, n), bool)
    for h in range(heads):
        rows = table[h] if np.ndim(table) == 3 else table
        for q in range(n):
            for j in rows[q // block]:
                if j >= 0:
                    out[0, h, q, j * block : (j + 1) * block] = True
    return out


T = np.random.default_rng(0).integers(-1, 14, (3, 13, 4))  # repetitions, padding, and blocks that are not there


@pytest.mark.parametrize("n, block", [(103, 16), (75, 12), (103, 40), (9, 16), (9, 12), (9, 40)])
def test_block_tables_are_exact(n, block):
    mask = listed_mask(T, block, n, 3)
    near = pc.block(block, back=1, ahead=1) | pc.global_(block)
    exact(pc.block_table(T, block), n, mask, 3)
    exact(~pc.block_table(T, block), n, ~mask, 3)
    exact(pc.block_table(T, block) | near, n, mask | near.dense(n).numpy(), 3)
    exact(pc.causal & (pc.block_table(T[0], block) | pc.window(20)), n, np.tril(listed_mask(T[0], block, n) | pc.window(20).dense(n).numpy()))


def test_a_row_of_a_block_table_is_a_set():
    assert pc.block_table([[1, 1, 0], [2, -1, -5]], 8) is pc.block_table([[0, 1], [2]], 8)
    assert pc.block_table(torch.tensor([[0, 1], [1, 0]]), 8) is pc.block_table(np.array([[1, 0], [0, 1]]), 8)


def test_runtime_block_tables():
    p = pc.block_table(pc.arg("plan"), 16, width=4, per_head=True)
    assert (p.dense(150, heads=3, plan=T[:, :10]).numpy() == listed_mask(T, 16, 150, 3)).all()
    both = np.stack([T[:, :10], T[::-1, :10]])
    found = p.dense(150, heads=3, batch=2, plan=torch.from_numpy(both)).numpy()
    assert (found[1:] == listed_mask(T[::-1], 16, 150, 3)).all()
    attn = pc.compile(p)
    q = torch.randn(1, 3, 150, 16)
    for error, plan in ((ShapeError, T[:, :9]), (ShapeError, T[:2, :10]), (ShapeError, T[0]), (ShapeError, T[:, :10, :3]), (DtypeError, T[:, :10] * 1.0)):
        with pytest.raises(error):
            attn(q, q, q, plan=torch.from_numpy(plan))
    with pytest.raises(ArgError, match="missing"):
        attn(q, q, q)
    wild = torch.from_numpy(T[:, :10] + 2**31 * (T[:, :10] == 3))
    with pytest.raises(ArgError, match="32 bits"):
        attn(q, q, q, plan=wild, check=True)
    attn(q, q, q, plan=torch.full((3, 10, 4), 2**31 - 1))  # far outside: matches nothing, reads nothing


# random blocks


def draws(p, block, blocks, heads=1) -> np.ndarray:
    """bool [heads, query blocks, key blocks]; checks that blocks are whole."""
    mask = p.dense(block * blocks, heads=heads)[0].numpy().reshape(heads, blocks, block, blocks, block)
    assert (mask.all((2, 4)) == mask.any((2, 4))).all()
    return mask.any((2, 4))


@pytest.mark.parametrize("near, first, last", [(None, 0, 0), (0, 0, 0), (1, 1, 1), (2, 3, 1)])
def test_random_blocks_avoid_what_they_should(near, first, last):
    drawn = draws(pc.random_blocks(3, 2, 5, near, first, last), 2, 24, 4)
    assert (drawn.sum(-1) == 3).all() and not drawn[..., :first].any() and not drawn[..., 24 - last :].any()
    if near is not None:
        for i in range(first, 24 - last):
            assert not drawn[:, i, max(i - near, 0) : i + near + 1].any()
    assert len({x.tobytes() for x in drawn}) == 4  # heads differ


def test_random_blocks_of_one_head_do_not_depend_on_the_others():
    p = pc.random_blocks(3, 2, 5, near=1)
    assert (draws(p, 2, 24, 8)[:3] == draws(p, 2, 24, 3)).all()
    alone = pc.random_blocks(3, 2, 5, near=1, per_head=False)
    assert (draws(alone, 2, 24, 3) == draws(alone, 2, 24, 1)).all() and (draws(alone, 2, 24, 1)[0] == draws(p, 2, 24, 1)[0]).all()
    assert (draws(pc.random_blocks(3, 2, 6, near=1), 2, 24) != draws(p, 2, 24)).any()


def test_random_blocks_where_few_candidates_are_left():
    assert draws(pc.random_blocks(5, 2), 2, 3).all()  # three candidates, all drawn
    assert (draws(pc.random_blocks(5, 2, near=1), 2, 5).sum(-1) == 2).all()
    assert not draws(pc.random_blocks(5, 2, near=1), 2, 3).any() and not draws(pc.random_blocks(1, 4, first=9), 4, 5).any()


def test_random_blocks_are_spread_evenly():
    counts = np.zeros(64)
    for seed in range(4):
        drawn = draws(pc.random_blocks(3, 1, seed), 1, 64, 16)
        counts += drawn.sum((0, 1))
        for lag in (1, 2, 7):  # neighbouring rows draw independently
            shifted = sum((np.roll(drawn[:, i], 1) & drawn[:, i - lag]).sum() for i in range(lag, 64))
            assert shifted < 3 * 16 * 64 * 3 * 3 / 64
    expected = counts.sum() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 25 < chi_square < 120  # 63 degrees of freedom: neither clumped nor suspiciously even


def test_random_blocks_are_the_same_in_another_process():
    code = "import patternc as pc; print(pc.random_blocks(3, 8, 11, near=1).dense(200, heads=3).flatten().nonzero().flatten().tolist())"
    here = pc.random_blocks(3, 8, 11, near=1).dense(200, heads=3).flatten().nonzero().flatten().tolist()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == str(here)
    assert [np.flatnonzero(row).tolist() for row in draws(pc.random_blocks(3, 1, 0), 1, 20)[0, :3]] == PINNED


PINNED = [[1, 7, 14], [2, 10, 14], [7, 9, 16]]  # what every machine draws


@pytest.mark.parametrize("n", [150, 77, 9])
def test_random_blocks_are_exact(n):
    for p in (
        pc.random_blocks(3, 16, near=1, first=1, last=1), pc.random_blocks(2, 10) | pc.window(8), pc.causal & pc.random_blocks(4, 5),
        pc.random_blocks(2, 8, near=0) | pc.block(8, 1, 1) | pc.global_(8),
    ):  # fmt: skip
        exact(p, n, p.dense(n, heads=2).numpy(), 2)


# texts

PATTERNS = [
    *(pc.neighborhood(*grid) for grid in GRIDS), pc.neighborhood(1, 1), pc.neighborhood([128, 128], 13), pc.neighborhood([16, 16], 4, 2, 3, True),
    pc.block_table([[0, 1], [1, 2]], 16), pc.block_table(T, 16), pc.block_table(pc.table(T, name="plan"), 16), pc.block_table([[3]], 1),
    pc.block_table(pc.arg("T"), 16, width=3), pc.block_table(pc.arg("T"), 16, width=3, per_head=True), pc.block_table([[0], [1], []], 8),
    pc.random_blocks(3, 64), pc.random_blocks(1, 64, 7), pc.random_blocks(3, 64, seed=46336, near=1, first=1, last=1), pc.random_blocks(2, 1, 5, first=2),
    pc.random_blocks(2, 16, 5, near=0, per_head=False), pc.random_blocks(5, 7, 34001, last=3), pc.random_blocks(16, 3),
]  # fmt: skip


@pytest.mark.parametrize("p", PATTERNS, ids=lambda p: str(p)[:60])
def test_texts(p):
    assert str(p).split("(")[0] in ("neighborhood", "block_table", "random_blocks") and str(p).endswith(")")
    for x in (p, pc.causal & p, p | pc.window(5), pc.window(5) | p | pc.global_(3), ~p, pc.causal & p & pc.window(9), p ^ pc.dilate(2)):
        assert pc.parse(str(x), **named_data(x)) is x and len(str(x)) <= x.width
        assert "causal" in str(p) or str(p) in str(x)


def test_random_texts():
    draw = np.random.default_rng(1)
    for _ in range(60):
        axes = draw.integers(1, 4)
        sides, dilation = draw.integers(1, 40, axes), draw.integers(1, 4, axes)
        kernel = [int(draw.integers(1, max(side // d, 1) + 1)) for side, d in zip(sides, dilation)]
        dilation = [d if d * x <= side else 1 for d, x, side in zip(dilation, kernel, sides)]
        p = pc.neighborhood(sides.tolist(), kernel, dilation, [int(draw.integers(1, x + 1)) for x in kernel], draw.integers(0, 2, axes).astype(bool).tolist())
        r = pc.random_blocks(*draw.integers(1, 9, 2), int(draw.integers(0, 46337)), (None, 0, 3)[draw.integers(3)], *draw.integers(0, 4, 2), bool(draw.integers(2)))
        for x in (p, r):
            assert pc.parse(str(x)) is x and str(x).startswith(("neighborhood", "random_blocks")), str(x)


# mistakes


@pytest.mark.parametrize("build, words", [
    (lambda: pc.neighborhood([8, 8], 9), "kernel 9 does not fit an axis of 8"), (lambda: pc.neighborhood(8, 3, 3), "kernel 3 with dilation 3 does not fit"),
    (lambda: pc.neighborhood(8, 3, stride=4), "stride 4 leaves out keys"), (lambda: pc.neighborhood([8] * 4, 3), "one to three axes, got 4"),
    (lambda: pc.neighborhood([8, 8], [3, 3, 3]), "`kernel` has 3 entries, and the grid 2 axes"), (lambda: pc.neighborhood(8, 0), "`kernel` must be at least 1, got 0"),
    (lambda: pc.neighborhood(8, 3, causal=[True, False]), "`causal` has 2 entries"), (lambda: pc.neighborhood("ab", 3), "`shape` must be an integer, got 'ab'"),
    (lambda: pc.neighborhood([], 3), "one to three axes, got 0"), (lambda: pc.fixed_length(0), "at least 1, got 0"), (lambda: pc.fixed_length("a"), "got 'a'"),
    (lambda: pc.block_table([[0]], 0), "`block` must be at least 1, got 0"), (lambda: pc.block_table([0, 1], 4), "got shape (2,)"),
    (lambda: pc.block_table(pc.arg("T"), 4), "needs its number of entries a row"), (lambda: pc.block_table([[0]], 4, width=1), "describe an arg"),
    (lambda: pc.block_table([list(range(65))], 4), "lists 65 blocks, and 64 are the most"), (lambda: pc.block_table(pc.q, 4), "got the expression `q`"),
    (lambda: pc.block_table([[0.5]], 4), "holds integers"), (lambda: pc.block_table([], 4), "at least one entry"), (lambda: pc.block_table(pc.arg("T"), 4, 0), "1 to 64"),
    (lambda: pc.random_blocks(0, 4), "`count` must be 1 to 16, got 0"), (lambda: pc.random_blocks(1, 0), "`block` must be at least 1"),
    (lambda: pc.random_blocks(1, 4, -1), "`seed` must be 0 to 46336, got -1"), (lambda: pc.random_blocks(1, 4, near=-1), "`near` must be 0"),
    (lambda: pc.random_blocks(1.5, 4), "`count` must be an integer, got 1.5"), (lambda: pc.random_blocks(1, 4, first=-1), "`first` must be 0"),
])  # fmt: skip
def test_mistakes(build, words):
    with pytest.raises(PatterncError) as error:
        build()
    assert isinstance(error.value, (ParameterError, OperandError)) and words in str(error.value) and "fix:" in str(error.value), str(error.value)


def test_lengths_that_do_not_fit():
    with pytest.raises(ShapeError, match="made for 64 keys, and there are 65"):
        pc.neighborhood([8, 8], 3).dense(65)
    with pytest.raises(ShapeError, match="made for 64 keys"):
        x = torch.randn(1, 1, 60, 16)
        pc.compile(pc.causal | ~pc.neighborhood([8, 8], 3))(x, x, x)
    with pytest.raises(ShapeError, match="its subscript there reaches 2"):
        pc.block_table([[0], [1]], 16).dense(33)
    with pytest.raises(ShapeError, match="length 3 along axis 0"):
        pc.block_table(T, 16).dense(33, heads=4)


def test_nothing_grows_with_the_square_of_the_length():
    import tracemalloc

    n, blocks = 1 << 18, 1 << 12
    table = np.random.default_rng(0).integers(0, blocks, (blocks, 3))
    for p in (pc.block_table(table, 64) | pc.block(64, 1, 1) | pc.global_(64), pc.random_blocks(3, 64, near=1) | pc.block(64, 1, 1)):
        call = bind(p, {}, n)
        layout(p, call)
        tracemalloc.start()
        found = layout(p, call)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.exact and peak < 1 << 27, peak


@pytest.mark.parametrize("batch, heads", [((), ()), ((2,), ()), ((), (3,)), ((2,), (3,))])
def test_tables_of_runtime_block_tables(batch, heads):
    """Row tiles inside one block visit exactly the listed blocks; all others are sound."""
    draw = np.random.default_rng(3)
    p = pc.block_table(pc.arg("plan"), 16, width=3, per_head=bool(heads)) | pc.block(16)
    for tile in ((16, 16), (32, 16), (24, 17), (64, 64)):
        for n_q in (150, 37):
            check(Example(p, n_q, 150, 3, 2 if batch else 1, tile, None, {"plan": draw.integers(-1, 12, (*batch, *heads, 10, 3))}))
    n = 4096
    found = pc.compile(p).cost(n, heads=3, tile=(16, 16), plan=draw.integers(0, 256, (*heads, 256, 3)))
    assert found.visited_pairs == found.allowed_pairs
