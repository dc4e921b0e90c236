"""What is visited for each allowed pair, at 64 x 64 as the study of orders found possible, and in the tiles that are chosen."""

import pytest

from patternc.bench.visits import CASES, measure

# Window of 512 taps 1.16, strided 1.55, fixed 1.2, sinks beside a dilated window 1.3, neighbourhoods, BigBird, Longformer.
MOST = (1.16, 1.16, 1.16, 1.55, 1.2, 1.3, 2.7, 1.5, 1.5, 3.3, 4.0, 1.02, 1.12)


@pytest.mark.parametrize("case, most", list(zip(CASES, MOST)), ids=[text for text, _ in CASES])
def test_visited_pairs(case, most):
    row = measure(*case)
    assert row.ratio <= most and all(ratio <= 1.45 * most for _, ratio in row.chosen.values())
