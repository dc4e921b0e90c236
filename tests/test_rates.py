"""What kernels cost: the committed table, the fit that makes it, and what is chosen by it."""

import itertools

import numpy as np
import pytest

import patternc as pc
from patternc.args import bind
from patternc.cards import COMMITTED, card, committed
from patternc.codegen import configs
from patternc.codegen.backend import _fit
from patternc.codegen.fitting import fitted
from patternc.codegen.trials import WIDTHS
from patternc.orders.choose import options, predicted
from patternc.passes import lower
from patternc.plan import make_plan
from patternc.rates import KERNELS, Card, Config, Shape, mask_weight
from patternc.runtime import compiled

BLOCKS = pc.parse("block(64, back=1, ahead=1) | global(64) | random_blocks(3, 64, seed=0)")


def test_the_committed_table_has_every_candidate():
    assert card() is committed() and Card.read(card().json()) == card() and card().json() == COMMITTED.read_text()
    assert set(card().merge) == set(card().rows) == set(WIDTHS[True])
    for half, ways in {True: ("descriptors", "box descriptors", "boxes"), False: ("pointers", "boxes")}.items():
        for kernel, access, width in itertools.product(KERNELS, ways, WIDTHS[half]):
            found = {r.config for r in card().rates[kernel, access, width, half]}
            assert found == set(configs.candidates(kernel, access, width, width, 2 if half else 4))


def test_costs_are_found_again():
    costs, processors = np.array([2.0, 0.5, 0.625, 0.0125]), 132
    counts = [[100, 0, 200, 400], [100, 700, 200, 400], [100, 3000, 200, 600], [20, 900, 0, 0], [100, 0, 1200, 9000], [100, 0, 1200, 4000]]
    found, error = fitted([(float(np.dot(c, costs)) / processors + 4, c) for c in counts], 4, processors)
    assert np.allclose(found, costs) and error < 1e-9
    found, _ = fitted([(float(np.dot(c, costs)) / processors + 4, c) for c in counts[:4]], 4, processors, mask=0.0125)
    assert np.allclose(found, costs)


def test_costs_are_never_negative():
    found, error = fitted([(10.0, [100, 0, 100, 0]), (9.0, [100, 100, 100, 0]), (8.0, [100, 200, 100, 0])], 0, 1)
    assert (found >= 0).all() and error < 0.2


@pytest.mark.parametrize("text, weight", [("full", 0), ("k < 4", 0), ("causal", 2), ("causal & window(9)", 3), ("causal & dilate(4)", 5), ("causal & dilate(3)", 12), ("(q < 3) & causal", 3)])
def test_weights_of_masks(text, weight):
    assert mask_weight(lower(pc.parse(text))) == weight


def choice(text, width, kernel="forward", n=4096):
    p = text if isinstance(text, pc.Pattern) else pc.parse(text)
    shape, bound = Shape(width), bind(p, {}, n, heads=2)
    plan = compiled(p).plan_at(bound, shape)
    return _fit(p, plan, bound, shape, kernel, "descriptors", configs.candidates(kernel, "descriptors", width, width, 2))


def test_short_rows_take_small_tiles():
    assert choice("causal & window(512)", 64) == Config(64, 64, 4, 2) and choice("causal", 64) == Config(64, 128, 4, 2)


def test_blocks_set_the_tile():
    """Tiles of whole blocks are all full; in others each would have a mask that draws random numbers."""
    assert choice(BLOCKS, 64).block_n == 64
    axis, bound = make_plan(BLOCKS).forward, bind(BLOCKS, {}, 4096)
    small, wide = (predicted(BLOCKS, axis, bound, "forward", r) for r in card().find("forward", "descriptors", Shape(64))[1::-1])
    assert small.time < wide.time


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_length_does_not_change_the_configuration(kernel):
    assert len({choice("causal & (window(700) | sink(4))", 64, kernel, n) for n in (1, 100, 2000, 40000)}) == 1


def test_what_depends_on_args_takes_the_first_candidate():
    p = pc.parse("causal & window(w)")
    found = configs.candidates("forward", "descriptors", 64, 64, 2)
    assert _fit(p, make_plan(p), bind(p, {"w": 3}, 64), Shape(64), "forward", "descriptors", found) == found[0]


def test_estimates_of_lists_are_near_the_layout():
    p = pc.neighborhood((24, 24, 24), 5)
    bound = bind(p, {}, 24**3)
    natural = next(o for o in options(p, make_plan(p).forward, bound, "k") if o.order.natural)
    assert 0.8 < natural.pairs / pc.compile(p).layout(24**3, tile=(64, 64)).visited_pairs < 1.25
