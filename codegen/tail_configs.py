"""Launch configurations of the kernels of a linear tail, and how many slots a program takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.codegen.configs import padded
from patternc.codegen.tail_text import Form

SCAN_WIDTH = 1024  # entries of a state that one program of `scan` adds up
MOST_KEYS = 1024  # of a segment: beyond, states are few enough that fewer save nothing


@dataclass(frozen=True)
class TailConfig:
    """`block` keys and rows a slot, `slice` columns of the values a program (of kernels whose programs take slices)."""

    block: int
    slice: int
    warps: int
    stages: int


def block_of(itemsize: int, precision: str) -> int:
    """Keys and rows of a slot, the same for all kernels of a call: they share their states."""
    return 64 if itemsize == 2 else 32 if precision == "tf32" else 16


def choose(itemsize: int, precision: str) -> TailConfig:
    """The configuration to try first; states fill the registers of 8 warps, whatever the kernel.

    Args:
        itemsize, precision: bytes of an operand, and how products of float32 round.
    """
    block = block_of(itemsize, precision)
    return TailConfig(block, 64, 8, 2) if itemsize == 2 else TailConfig(block, 32, 8, 1)


def smaller(config: TailConfig) -> TailConfig | None:
    """The next configuration that needs less shared memory, None if there is none."""
    if config.stages > 1:
        return replace(config, stages=config.stages - 1)
    return replace(config, slice=config.slice // 2) if config.slice > 16 else None


def span_of(pairs: int, slots: int, block: int, processors: int) -> int:
    """Slots of a segment: two programs a processor, and segments of MOST_KEYS keys at most.

    Args:
        pairs: batch rows times key heads.
    """
    wanted = pairs * slots // (2 * processors)
    return max(1, min(wanted, MOST_KEYS // block, slots))


def one_pass(programs: int, processors: int) -> bool:
    """Whether programs that take the whole sequence each keep the processors busy: then no state is ever stored."""
    waves = -(-programs // processors)
    return programs >= 0.8 * waves * processors


def constants(config: TailConfig, form: Form, head_dim: int, value_dim: int, heads: int, group: int) -> dict:
    """Constexprs by name that follow from sizes."""
    return {
        "HEADS": heads, "GROUP": group, "D": head_dim, "DV": value_dim, "BLOCK_D": padded(head_dim), "BLOCK_DV": padded(value_dim),
        "SLICE": min(config.slice, padded(value_dim)), "BLOCK": config.block, "STAGES": config.stages,
        "WIDTH": form.halves * head_dim * (value_dim + 1), "BLOCK_W": SCAN_WIDTH,
    }  # fmt: skip
