"""The loop beside drawings by hand, beside unfold (another way to say it), and beside the closed form."""

from itertools import product

import pytest
import torch
from neighbourhood_loop import allowed

import patternc as pc

q, k = pc.q, pc.k


def drawn(*rows):
    return torch.tensor([[c == "x" for c in row] for row in rows])


DRAWN = {
    "odd kernel": (dict(kernel=3), drawn("xxx..", "xxx..", ".xxx.", "..xxx", "..xxx")),
    "even kernel reaches further back": (dict(kernel=4), drawn("xxxx..", "xxxx..", "xxxx..", ".xxxx.", "..xxxx", "..xxxx")),
    "dilation": (dict(kernel=2, dilation=2), drawn("x.x..", ".x.x.", "x.x..", ".x.x.", "..x.x")),
    "causal": (dict(kernel=3, causal=True), drawn("x....", "xx...", "xxx..", ".xxx.", "..xxx")),
    "stride": (dict(kernel=3, stride=2), drawn("xxx..", "xxx..", "..xxx", "..xxx", "..xxx")),
    "blocks": (dict(kernel=3, stride=3), drawn("xxx...", "xxx...", "xxx...", "...xxx", "...xxx", "...xxx")),
    "stride, causal": (dict(kernel=3, stride=2, causal=True), drawn("x.....", "xx....", ".xx...", ".xxx..", "...xx.", "...xxx")),
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn(name):
    parameters, mask = DRAWN[name]
    assert torch.equal(allowed(len(mask), **parameters), mask)


@pytest.mark.parametrize("shape, kernel", [((6, 7), (3, 5)), ((5, 4), (5, 3)), ((4, 3, 5), (3, 3, 3))])
def test_as_in_a_convolution(shape, kernel):
    """Odd kernels: the keys of a query are the convolution window of the nearest position whose window is inside."""
    positions = list(product(*map(range, shape)))
    centres = [tuple(min(max(x, w // 2), n - 1 - w // 2) for x, w, n in zip(p, kernel, shape)) for p in positions]
    expected = [[all(abs(c - x) <= w // 2 for c, x, w in zip(centre, p, kernel)) for p in positions] for centre in centres]
    assert torch.equal(allowed(shape, kernel), torch.tensor(expected))


def closed(length, kernel, dilation, stride, causal):
    """ZOO section 22 for one axis, as a pattern."""
    members = (length - q % dilation + dilation - 1) // dilation
    query, key = q // dilation, k // dilation
    leader = pc.min(query // stride * stride + (stride - 1 if causal else stride // 2), members - 1)
    if causal:
        inside = (leader - kernel < key) & (key <= query)
    else:
        start = pc.clamp(leader - kernel // 2, 0, members - kernel)
        inside = (start <= key) & (key < start + kernel)
    return (q % dilation == k % dilation) & inside


AXES = [(n, w, d, s, c) for n in (7, 12, 17) for w in range(1, n + 1) for d in (1, 2, 3) if w * d <= n for s in range(1, w + 1) for c in (False, True)]


def test_closed_form():
    for setting in AXES:
        assert torch.equal(closed(*setting).dense(setting[0])[0, 0], allowed(*setting)), setting


GRIDS = [
    ((6, 7), (3, 4), (2, 1), (1, 3), (False, True)),
    ((5, 9), (2, 3), (1, 3), (2, 2), (True, False)),
    ((4, 5, 6), (4, 2, 3), (1, 2, 2), (3, 1, 2), (False, True, False)),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_closed_form_in_several_dimensions(grid):
    """Row-major: the last coordinate is the flat index's remainder."""
    pattern, below = pc.full, 1
    for length, *setting in reversed(list(zip(*grid))):
        pattern, below = pattern & closed(length, *setting).at(pc.i // below % length), below * length
    assert torch.equal(pattern.dense(below)[0, 0], allowed(*grid))


def test_refused():
    for parameters in (dict(kernel=6), dict(kernel=3, dilation=2), dict(kernel=2, stride=3), dict(kernel=(2, 2))):
        with pytest.raises(ValueError):
            allowed(5, **parameters)
