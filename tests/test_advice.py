"""Advice: numbers of a pattern that are a little beyond a step of its price, or well before the next."""

import pytest

import patternc as pc
from patternc.advice import advice
from patternc.args import bind
from patternc.rates import HALF


def texts(text: str, n: int, **args) -> list[str]:
    p = pc.parse(text) if isinstance(text, str) else text
    return [str(a) for a in advice(p, bind(p, args, n, heads=4), HALF)]


def test_a_window_a_little_beyond_whole_tiles():
    less, more = texts("causal & window(520)", 8192)
    assert less.startswith("`window(512)` in the place of `window(520)` is predicted to save ") and less.endswith("% of the time")
    assert more == "`window(577)` takes hardly longer than `window(520)`"
    assert texts("causal & window(512)", 8192) == []


def test_one_row_of_global_tokens_too_many():
    assert texts("window(257) | global(70)", 8192)[0].startswith("`global(64)` in the place of `global(70)` is predicted to save")


def test_numbers_outside_of_calls_show_the_whole_pattern():
    assert texts("causal & (q - k < 520)", 8192)[0].startswith("`causal & (q - k < 512)` in the place of `causal & (q - k < 520)`")


def test_a_neighbourhood_of_even_width():
    assert any("[128, 128], 17)` in the place of" in line for line in texts("neighborhood([128, 128], 18)", 16384))


@pytest.mark.parametrize("p, args", [(pc.table([[1, 0], [0, 1]] * 40)[pc.q // 64, pc.k % 2] == 1, {}), (pc.causal & (pc.q - pc.k < pc.arg("w")), {"w": 70}), (pc.full, {})], ids=["table", "arg", "full"])
def test_what_has_no_numbers_of_its_own(p, args):
    assert advice(p, bind(p, args, 2048), HALF) == []
