"""What is the same for all kernels of a linear tail in one call, and its slots on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from patternc.codegen.tail_configs import TailConfigs
from patternc.tail_slots import Slots


@dataclass(frozen=True, eq=False)
class SlotTables:
    """Slots with their tables on a device.

    Attributes:
        tensors: int32 tensors (uint8 for `live`) by the name of their parameter.
        per_row: 1 where every batch row has tables of its own, else 0.
    """

    slots: Slots
    tensors: dict[str, torch.Tensor]
    per_row: int

    @staticmethod
    def of(slots: Slots, device: torch.device) -> SlotTables:
        tables = {name: getattr(slots, name) for name in ("first", "last", "low", "base", "live")}
        tensors = {f"{name}_ptr": torch.from_numpy(x) for name, x in tables.items() if x is not None}
        tensors = {name: (x.to(torch.uint8) if name == "live_ptr" else x).to(device, non_blocking=True) for name, x in tensors.items()}
        return SlotTables(slots, tensors, int(any(len(x) > 1 for x in tensors.values())))


def at_once(name: str, launch: Callable) -> None:
    launch()


@dataclass
class TailCall:
    """What is the same for all kernels of one call.

    Attributes:
        feature: a name in `tail_text.FEATURES`.
        tables: `tables(block)`, the slots for at most `block` keys and rows.
        configs: replaces the built-in configurations.
        runs: the kernels for inputs of some layouts; None where nothing is kept.
        watch: called as `watch(name, launch)` in the place of every launch, for those who time them.
    """

    feature: str
    tables: Callable[[int], SlotTables]
    configs: TailConfigs | None = None
    runs: dict | None = None
    watch: Callable[[str, Callable], None] = at_once
