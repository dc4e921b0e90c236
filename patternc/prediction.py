"""How long an attention is predicted to take, from what its kernels visit and what that costs on the measured card."""

from __future__ import annotations

from dataclasses import dataclass

from patternc.args import Bound
from patternc.balance import Costs, balance, of_groups, row_tiles
from patternc.cards import card
from patternc.expr.pattern import Pattern
from patternc.orders.boxes import BoxAxis
from patternc.orders.choose import Option
from patternc.orders.heads import HeadsAxis, access_of, plan_at, predicted
from patternc.orders.parts import parts_at
from patternc.passes import lower
from patternc.plan import AxisPlan, make_plan
from patternc.rates import HALF, Rate, Shape, mask_weight

ROWS = 64  # of a program of the kernel that prepares the backward


@dataclass(frozen=True)
class Prediction:
    """Microseconds of the forward's and the backward's kernels, all batch rows and heads together."""

    forward: float
    backward: float


def fastest(p: Pattern, axis: AxisPlan | BoxAxis | HeadsAxis, bound: Bound, kernel: str, rates: tuple[Rate, ...]) -> tuple[Rate, Option]:
    """The configuration of a kernel that is predicted to take least."""
    return min(((rate, predicted(p, axis, bound, kernel, rate)) for rate in rates), key=lambda pair: pair[1].time)


def predict(p: Pattern, bound: Bound, shape: Shape = HALF, dealt: bool = False) -> Prediction:
    """The time of the pattern's kernels at the lengths of a call, in the orders and parts that these ask for.

    Args:
        dealt: simulate how programs are dealt to processors, where that is known; else work counts as evenly spread.
    """
    on, programs = card(), -(-bound.n_q // ROWS) * bound.heads * bound.batch
    merge = on.microseconds(on.merge_of(shape) * programs, programs)
    times = {"forward": 0.0, "backward_rows": on.microseconds(on.rows_of(shape) * programs, programs) + on.launch}
    for kernel, column, results in (("forward", "k", 1), ("backward_dq", "k", 1), ("backward_dkdv", "q", 2)):
        parts = parts_at(p, bound, shape, column)
        times[kernel] = merge * results * (len(parts) - 1)
        for part in parts:
            plan = plan_at(part, make_plan(part), bound, shape)
            axis = plan.transposed if kernel == "backward_dkdv" else plan.forward
            access = access_of(axis, bound)
            rate, option = fastest(part, axis, bound, kernel, on.find(kernel, access, shape))
            times[kernel] += option.time * (_unevenness(part, axis, bound, kernel, access, rate, shape) if dealt else 1) + on.launch
    forward = times.pop("forward")
    return Prediction(forward, sum(times.values()))


def _unevenness(p: Pattern, axis: AxisPlan | BoxAxis | HeadsAxis, bound: Bound, kernel: str, access: str, rate: Rate, shape: Shape) -> float:
    """When the last program is done, over the time of evenly spread work."""
    if axis.kind == "heads":
        return 1.0
    tile, transposed = rate.config.tile(kernel), kernel == "backward_dkdv"
    tiles = row_tiles(p, axis, bound, tile, transposed)
    if tiles is None:
        return 1.0
    weight = mask_weight(axis.mask if axis.kind == "boxes" else lower(p))
    costs = Costs.of(kernel, access, shape, (rate.config.block_m, rate.config.block_n), weight)
    return balance(of_groups(costs.work(tiles), 1), bound.heads * bound.batch, costs, not transposed).time
