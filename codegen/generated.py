"""What is generated: kernels, and the module that they make."""

from __future__ import annotations

from dataclasses import dataclass

from patternc.codegen.uses import Array
from patternc.orders.boxes import BoxAxis
from patternc.orders.heads import HeadsAxis
from patternc.plan import AxisPlan, Plan


@dataclass(frozen=True)
class Kernel:
    """One generated kernel, or the function in a kernel that treats one group of heads.

    Attributes:
        name: the function in the module; of a group's, the kernel's.
        parameters, constants: its runtime parameters and its constexprs, in order.
        axis: the plan of its loops, None for kernels without.
        scalars, arrays: the args and tables that it reads.
        variant: how it reaches memory; of several functions "groups of boxes" where one reads by pointers, else "groups of box descriptors".
        own: parameters and constants that are another one for every group.
        groups: functions among which programs are dealt, by the groups of the axis; none where all heads are treated alike.
    """

    name: str
    text: str
    parameters: tuple[str, ...]
    constants: tuple[str, ...]
    axis: AxisPlan | BoxAxis | HeadsAxis | None
    scalars: tuple[str, ...]
    arrays: tuple[Array, ...]
    variant: str
    own: frozenset[str] = frozenset()
    groups: tuple[Kernel, ...] = ()


@dataclass(frozen=True)
class Source:
    """A module's text and its kernels by name: forward, backward_rows, backward_dq, backward_dkdv."""

    text: str
    kernels: dict[str, Kernel]
    variant: str
    plan: Plan
