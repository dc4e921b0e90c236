"""One call of an attention, for all its kernels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from patternc.codegen.configs import Config
from patternc.plan import Plan


@dataclass
class Call:
    """What is the same for all kernels of one call.

    Attributes:
        plan: of the pattern.
        scale: the factor of the scores.
        q_start: position of query 0, an int or an int tensor [1] or [B].
        args: runtime args in normal form: ints, or tensors with a leading batch axis of 1 or B on the inputs' device.
        bounds: `bounds(direction, rows, cols)` for plans of kind "table" (an int32 tensor [B', H', row tiles, count, 4]) and
            "list" (`TileLists`), and for formulas whose runs choose (`ChoiceTables`); direction is "forward" or "transposed",
            rows and cols the size of its tiles.
        boxes: `boxes(direction, rows, cols)` for plans in digits, an `orders.count.Boxes`.
        fit: `fit(kernel, access, candidates)`, the configuration to try first; without it the first candidate.
        schedule: `schedule(kernel, access, config, copies, group)`, a `schedule.Dealt` or None, for `copies` programs each row tile
            that work on `group` heads each; without it the usual order.
        tiles: `tiles(lines, rows, cols)`, how many tiles the row tiles of a line (`lines.Lines`) visit forward (`balance.Tiles`); None where
            only tensors say it.
        order: `order(head_dim)`, how programs of the fused backward add to dq (`fused_order.Order`); None where no numbers say which tiles
            they visit.
        height: rows of a tile of the forward where there are few (`short.height`); None for those of the configuration.
        variant: how the kernels reach memory (`access.VARIANTS`); None takes descriptors where the device has them.
        configs: configurations by kernel that replace the built-in ones.
        groups: for plans by groups of heads, a call for the plan of each.
        lengths: of the queries and keys; without them those of the matrices.
        others: `others(lengths)`, calls at other lengths that visit tiles in the same way, for what these launch (`lengths.py`).
        ready: what kernels are launched with, for a call that is kept: by kernel and layout.  None where args may change.
        alone: calls of groups of heads alone, once `by_key_heads` has made them.
    """

    plan: Plan
    scale: float
    q_start: int | torch.Tensor = 0
    args: dict = field(default_factory=dict)
    bounds: object = None
    boxes: object = None
    fit: object = None
    schedule: object = None
    tiles: object = None
    order: object = None
    height: int | None = None
    variant: str | None = None
    configs: dict[str, Config] = field(default_factory=dict)
    groups: tuple[Call, ...] = ()
    lengths: tuple[int, int] | None = None
    others: object = None
    ready: dict | None = field(default=None, init=False)
    alone: list[Call] | None = field(default=None, init=False)

    def axis(self, name: str):
        """How a kernel finds its tiles; None where no formulas do."""
        return None if name in ("backward", "backward_rows") else self.plan.transposed if name == "backward_dkdv" else self.plan.forward

    def members(self, name: str) -> tuple[Call, ...]:
        """The groups' calls, for a kernel that treats groups of heads apart, else the call itself."""
        axis = self.axis(name)
        return self.groups if axis is not None and axis.kind == "heads" else (self,)

    def by_key_heads(self, sharing: int) -> list[Call]:
        """Calls one after the other for dk and dv, which sum over the `sharing` query heads of a key head: one for each group of heads
        where these are not all in one group."""
        axis = self.plan.transposed
        if axis.kind != "heads" or all(group.whole(sharing) for group in axis.groups):
            return [self]
        if self.alone is None:
            self.alone = [replace(self, plan=plan, groups=(own,)) for plan, own in zip(_plans_alone(self.plan), self.groups)]
            for call in self.alone:
                call.ready = None if self.ready is None else {}
        return self.alone


@lru_cache(maxsize=1024)
def _plans_alone(plan: Plan) -> list[Plan]:
    """For each group of heads a plan of dk and dv that leaves the query heads of other groups out."""
    return [replace(plan, transposed=alone) for alone in plan.transposed.alone]
