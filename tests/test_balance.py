"""Balance: the rule by simulation, schedules as permutations, kernels whose rows are dealt and cut against dense attention."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from kernel_check import DEVICE, MARKS, SMALL, by_head, causal, check, everywhere, formula, q_and_k, streaming
from patterns import near
from test_orders import CASES, check_kernels

import patternc as pc
from patternc.args import bind
from patternc.balance import PROGRAM, Schedule, in_pieces, makespan, of_groups, programs, row_work, schedule
from patternc.codegen.schedule import Dealt
from patternc.plan import make_plan


def random_schedule(seed: int, tiles: int, last_first: bool) -> Schedule:
    rng = np.random.default_rng(seed)
    return in_pieces(rng.random(tiles), rng.choice([1, 1, 2, 3, 9], tiles), rng.random(tiles) < 0.3, last_first)


def forced(plan, n_q: int, n_k: int, seed: int = 0):
    """Random schedules for every direction of a plan in tiles of positions."""

    def dealt(direction, rows, cols, copies, group):
        found = random_schedule(seed, -(-(n_k if direction == "transposed" else n_q) // rows), direction == "forward")
        return Dealt(torch.from_numpy(found.entries).to(DEVICE), found.form, found.slots, found.long)

    return dealt

def test_x():
    q, k = q_and_k(200, 200)
    check(streaming(30, 4), (k <= q) & ((q - k < 30) | (k < 4)), 200, heads=4, kv_heads=2, batch=2, schedule=forced(None, 200, 200))
