"""What a kernel of a call is launched with, on matrices of one layout: its configuration, how its row tiles are dealt, and runtime values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from patternc.codegen import fused_launch, hopper_launch
from patternc.codegen.call import Call
from patternc.codegen.device import on
from patternc.codegen.launches import Again, Launch
from patternc.codegen.parameters import runtime_values
from patternc.codegen.pieces import RESULTS, merge_of, workspace
from patternc.codegen.prepared import kept, prepare
from patternc.codegen.schedule import Dealt

MOST_LAYOUTS = 64  # layouts of matrices for which a call keeps what it launches


@dataclass(frozen=True)
class Ready:
    """What a call's kernel is launched with, on matrices of one layout.

    Attributes:
        name: of the kernel.
        key: of the launch in the usual order (`prepared.kept`).
        values: parameters that the call decides, whatever the matrices.
        dealt: how row tiles are dealt, None for the usual order.
        layouts: of the matrices.
    """

    name: str
    launch: Launch
    key: tuple
    grid: int
    values: dict
    dealt: Dealt | None
    layouts: tuple

    @property
    def cuts(self) -> int:
        """Pieces of row tiles that are cut."""
        return self.dealt.cuts if self.dealt else 0

    def run(self, values: dict, matrices: dict[str, torch.Tensor], device: torch.device) -> None:
        """Launch on matrices of that layout; `values` are parameters that differ from call to call."""
        values, merge = {**values, **self.values}, self.launch.merge
        if self.cuts:
            values |= workspace(self.name, self.launch.values, self.dealt, self.launch.copies, device)
        with on(device):
            self.launch.run(self.grid, values, matrices)
            if self.cuts:
                merge.run(self.cuts * merge.copies, {name: values[name] for name in merge.decided}, matrices)

    def again(self, values: dict, matrices: dict[str, torch.Tensor], device: torch.device) -> None:
        """The same on a device that is the current one, for calls whose `values` are all of the same kinds (`launches.Again`)."""
        if self.cuts:
            values = values | workspace(self.name, self.launch.values, self.dealt, self.launch.copies, device)
        for launch in self._launches:
            launch.run(values, matrices)

    @cached_property
    def _launches(self) -> tuple[Again, ...]:
        merge = self.launch.merge
        merged = (Again(merge, self.cuts * merge.copies, self.values),) if self.cuts else ()
        return Again(self.launch, self.grid, self.values), *merged


def ready_of(call: Call, name: str, matrices: dict[str, torch.Tensor], later: bool, device: torch.device, layouts: tuple) -> Ready:
    # The number of boxes depends on where they begin, the number of tiles does not; what the forward for Hopper is chosen by does.
    start = call.q_start if {"boxes", "heads"} & {call.plan.forward.kind, call.plan.transposed.kind} else None
    key = (call.plan, call.variant, call.height, (start, *hopper_launch.chosen_by(call, name, later, matrices)), *layouts)
    launch = usual = kept(call, key, lambda: prepare(call, name, matrices, later))
    if launch.grid == 0:
        return Ready(name, launch, key, 0, {}, None, layouts[-len(matrices) :])
    grid, dealt = launch.grid, dealt_of(call, name, launch)
    values = runtime_values(call, launch.kernel, launch.config, device)
    if name == "backward":
        values |= fused_launch.tables(call, matrices)
    if dealt is not None:
        # The configuration is that of the usual order, for which the schedule was made.
        launch = kept(call, (*key, usual.config, dealt.form), lambda: usual.dealt(dealt.form))
        grid = launch.copies * len(dealt.table)
        values |= dealt.values()
        if dealt.cuts and launch.merge is None:
            launch.merge = merge_of(call.plan, name, launch, {x: matrices[x] for x in RESULTS[name]})
    found = Ready(name, launch, key, grid, values, dealt, layouts[-len(matrices) :])
    if call.ready is not None and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        if len(call.ready) >= MOST_LAYOUTS:
            call.ready.clear()
        call.ready[layouts] = found
    return found


def dealt_of(call: Call, name: str, launch: Launch) -> Dealt | None:
    """The schedule by which a kernel's row tiles are dealt, where the usual order is not good enough."""
    if call.schedule is None or launch.kernel.axis is None or launch.kernel.groups or launch.kernel.variant == "hopper":
        return None
    group = launch.values["GROUP"] if name == "backward_dkdv" else 1
    return call.schedule(name, launch.kernel.variant, launch.config, launch.copies, group)
