"""Layouts of patterns that repeat along the diagonal: one tile of an orbit decides for all of it."""

import pytest
from test_structured import exact

import patternc as pc


@pytest.mark.parametrize("text", [
    "causal & dilate(7)", "window(left=11, right=0) | causal & dilate(11)", "causal & block(24) | causal & (k % 24 >= 20)", "(q - k) % 5 != 2", "full",
    "(q // 8 - k // 8) % 3 == 1", "dilate(48)", "(q % 12 < 6) & (k % 8 >= 3) | window(4)", "(q // 16 - k // 16) % 2 == 0",
])  # fmt: skip
def test_patterns_that_repeat_along_the_diagonal(text, monkeypatch):
    monkeypatch.setattr("patternc.layout.MANY_TILES", 1)
    p = pc.parse(text)
    for n_q, n in ((150, 150), (128, 128), (37, 131), (97, 200)):
        exact(p, n, p.dense(n_q, n).numpy(), n_q=n_q, tiles=((16, 16), (8, 8), (24, 17), (13, 13)))
