"""What `patternc tune` measures on a card: configurations of kernels, each on a few patterns whose tiles are known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

from patternc.codegen import configs
from patternc.codegen.cache import name_of
from patternc.codegen.kernels import generate
from patternc.codegen.machine import Machine
from patternc.orders.boxes import box_axis
from patternc.orders.digits import Order
from patternc.parsing import parse
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.rates import KERNELS, Config

N, BATCH, HEADS = 16384, 4, 16
NATURAL = (
    ("causal & window(64)", None), ("causal & window(512)", None), ("causal & window(2048)", None), ("block(1024)", None),
    ("causal & dilate(2) & window(1024)", None), ("causal & dilate(3) & window(1024)", None),
)  # fmt: skip
# Patterns by the way of reaching memory, and the stride of the order of positions for those in digits.
SAMPLES = {
    "descriptors": NATURAL,
    "pointers": NATURAL,
    "box descriptors": (
        ("causal & dilate(4) & window(256)", 4), ("causal & dilate(4) & window(2048)", 4), ("causal & dilate(4) & window(8192)", 4),
        ("dilate(4) & same(i // 256)", 4),
    ),
    "boxes": tuple((f"neighborhood([128, 128], {kernel})", 128) for kernel in (5, 13, 33, 65)),
}  # fmt: skip
WIDTHS = {True: (64, 128, 256), False: (64, 128)}  # of 16-bit and of float32 inputs
MERGED = "causal & window(64)"


@dataclass(frozen=True)
class Job:
    """One configuration of one kernel on one sample; `merge` for a later part of a pattern that writes a partial result."""

    kernel: str
    access: str
    width: int
    half: bool
    config: Config
    text: str
    stride: int | None
    merge: bool = False

    @property
    def key(self) -> tuple:
        return self.kernel, self.access, self.width, self.half, self.config

    @property
    def variant(self) -> str:
        """Of the kernel's text (`access.VARIANTS`)."""
        return {"pointers": "pointers", "boxes": "pointers"}.get(self.access, "descriptors")

    @property
    def source(self) -> str:
        """The hash of the kernels that are measured: times of other ones say nothing."""
        return name_of(generate(plan_of(self.text, self.stride), self.variant, self.merge).text)[:16]

    def __str__(self):
        shape = f"{self.width:3d} {'16 bits' if self.half else 'float32'}"
        return f"{self.kernel:13s} {self.access:15s} {shape}: {self.config}, {self.text}{', merged' if self.merge else ''}"


@lru_cache(maxsize=64)
def plan_of(text: str, stride: int | None) -> Plan:
    """The plan of a sample, in digits where it has a stride."""
    p = parse(text)
    plan = make_plan(p)
    if stride is None:
        return plan
    order = Order((stride, 1))
    return Plan(plan.mask, box_axis(lower(p), order, "k"), box_axis(lower(p), order, "q"))


def default(kernel: str, access: str, width: int, half: bool, shared: int) -> Config:
    """What is taken on a card of so much shared memory that was never measured, as far as its pattern does not say otherwise."""
    return configs.trials(kernel, access, width, 2 if half else 4, shared)[0]


def jobs(machine: Machine, widths: tuple[int, ...] = ()) -> list[Job]:
    """All that a run measures, of some widths or all.

    Cards without TMA reach all by pointers; so do exact products of float32, on all cards.
    """
    out, merged = [], []
    for half, (natural, digits) in {True: ("descriptors", "box descriptors"), False: ("pointers", None)}.items():
        ways = (natural, digits, "boxes") if half and machine.tma else ("pointers", "boxes")
        for access, width, kernel in itertools.product(ways, WIDTHS[half], KERNELS):
            if widths and width not in widths:
                continue
            found = configs.trials(kernel, access, width, 2 if half else 4, machine.shared)
            out += [Job(kernel, access, width, half, config, *sample) for config in found for sample in SAMPLES[access]]
            if half and kernel == "forward" and access == ways[0]:
                square = next((c for c in found if (c.block_m, c.block_n) == (64, 64)), found[0])
                same = [c for c in found if (c.block_m, c.block_n) == (square.block_m, square.block_n)]
                merged += [Job(kernel, access, width, half, config, MERGED, None, True) for config in same]
    rows = [(width, configs.candidates("backward_rows", "pointers", width, width, 2)[0]) for width in WIDTHS[True] if not widths or width in widths]
    return [*out, *merged, *(Job("backward_rows", "pointers", width, True, config, MERGED, None) for width, config in rows)]
