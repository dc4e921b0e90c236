"""Layouts digit by digit: the same tiles as by looking at pairs, wherever tiles are products."""

import pytest
from patterns import grid

import patternc as pc
from patternc import layout as layouts
from patternc.soundness import Example, check_layout

q, k = pc.q, pc.k
CASES = [
    (pc.neighborhood((16, 16), 5), 256), (grid(32, 8, 5), 256), (pc.neighborhood((8, 8, 8), 3), 512),
    (pc.neighborhood((4, 8, 16), (3, 5, 4), causal=(True, False, True)), 512), ((q // 16 == k // 16) & (q % 16 >= k % 16), 256),
    ((q % 32 == k % 32) & (q // 32 - k // 32 < 3), 256), ((q % 32 - k % 32 < 5) & (q // 32 >= 2), 256),
]  # fmt: skip


@pytest.mark.parametrize("p, n", CASES, ids=str)
@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (8, 64)], ids=str)
def test_products_are_the_tiles(p, n, tile, monkeypatch):
    monkeypatch.setattr(layouts, "MANY_ROWS", 1)
    asked = []
    monkeypatch.setattr(layouts, "factors", lambda *given: asked.append(found := factors(*given)) or found)
    example = Example(p, n, n, 1, 1, tile)
    for transposed in (False, True):
        found = layouts.layout(p, example.bind(), tile, transposed, count=True)
        assert found.exact and found.allowed_pairs == int(p.dense(n).sum())
        check_layout(found, example.dense(), "factored", transposed)
    assert any(part is not None for part in asked)


factors = layouts.factors


@pytest.mark.parametrize("p, n, start", [(pc.neighborhood((16, 16), 5), 256, 250), (pc.neighborhood((15, 16), 5), 240, None), (grid(24, 10, 5), 240, None)])
def test_other_tiles_are_found_as_ever(p, n, start, monkeypatch):
    """Rows that begin within a period, lengths that end within one, widths that hold no whole number of tiles."""
    monkeypatch.setattr(layouts, "MANY_ROWS", 1)
    example = Example(p, n if start is None else 6, n, 1, 1, (16, 16), start)
    check_layout(layouts.layout(p, example.bind(), (16, 16), count=True), example.dense(), "layout")
