"""Absurd sizes are refused at once, and what is merely large is still analysed."""

import pytest

import patternc as pc
from patternc.errors import LimitError
from patternc.terminal import text

P, MOST = pc.causal & pc.window(512), 2**31 - 1


@pytest.mark.parametrize("report", [
    lambda n, **o: pc.compile(P).explain(n, **o), lambda n, **o: pc.compile(P).cost(n, **o), lambda n, **o: pc.compile(P).layout(n, **o),
    lambda n, **o: pc.plot(P, n, **o), lambda n, **o: text(P, n, **o), lambda n, **o: pc.equivalent(P, pc.causal, n, **o), lambda n, **o: P.dense(n, **o),
], ids=["explain", "cost", "layout", "plot", "text", "equivalent", "dense"])  # fmt: skip
@pytest.mark.parametrize("name, most", [("heads", 1 << 16), ("batch", 1 << 22)])
def test_heads_and_batch_rows(report, name, most):
    with pytest.raises(LimitError, match=f"`{name}` is too large: {MOST}\nfix: use {name} <= {most}"):
        report(64, **{name: MOST})


@pytest.mark.parametrize("build, message", [
    (lambda: pc.compile(P).layout(MOST), "16,777,216 rows of tiles are too many; the limit is 4,194,304\nfix: use larger tiles, or a shorter length"),
    (lambda: pc.compile(P).cost(MOST), "33,554,432 rows of tiles"),
    (lambda: pc.compile(P).layout(1 << 20, tile=(1 << 20, 1 << 20)), "1,099,511,627,776 pairs of one tile are too many.*\nfix: use smaller tiles"),
    (lambda: pc.compile(pc.causal & (pc.q % 7 != pc.k % 5)).layout(1 << 21), "134,225,920 partial tiles are too many"),
    (lambda: pc.compile(pc.k % 999 == 0).layout(8, MOST), "2,147,483,647 positions are too many"),
    (lambda: pc.compile(pc.valid(pc.arg("m"))).layout(8, MOST, m=5), "2,147,483,647 positions of arg `m` are too many"),
    (lambda: pc.plot(P, 1 << 20, tiles=1 << 20), "1,048,576 tiles along one axis of a picture are too many; the limit is 1,024"),
    (lambda: pc.full.dense(1 << 17), "17,179,869,184 pairs of a dense mask are too many"),
    (lambda: pc.verify(P, sizes=[1 << 17], quiet=True), "137,438,953,472 pairs of a dense mask"),
])  # fmt: skip
def test_lengths_and_tiles(build, message):
    with pytest.raises(LimitError, match=message):
        build()


def test_large_sizes():
    assert pc.compile(P).layout(1 << 26, heads=1 << 16, batch=1 << 20).exact
    assert pc.compile(pc.causal).cost(8, MOST).allowed_pairs == 8 * MOST - 28
    assert not pc.equivalent(pc.causal, pc.full, 1 << 26)
