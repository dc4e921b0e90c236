"""Launch configurations of the kernels of a linear tail."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.codegen.configs import padded
from patternc.codegen.tail_text import KERNELS, OF_KEYS, WIDTHS

STATES, SCANS = ("key_states", "row_states"), ("key_totals", "key_scan", "row_totals", "row_scan")
LEAST_SPAN = 8  # slots that a program of a scan takes, at least


@dataclass(frozen=True)
class TailConfig:
    """A kernel's tiles and resources.

    Attributes:
        block_m, block_n: rows and keys of a tile; states of slots are summed over tiles of `block_n` keys, or rows.
        slice: columns of the values that a program takes, where programs take slices.
        warps, stages: warps of a program, and stages of its pipelined loop.
    """

    block_m: int
    block_n: int
    slice: int
    warps: int
    stages: int


@dataclass(frozen=True)
class TailConfigs:
    """The configurations of a call: `slot` is the most keys and rows of a slot, a multiple of all tiles."""

    slot: int
    of: dict[str, TailConfig]


# Measured on an H100 (`patternc bench tail`).  More keys a slot are fewer states to read and write, and more pairs in products;
# states of keys that many heads share weigh less.
STATE = {
    "key_states": TailConfig(64, 64, 128, 4, 2), "row_states": TailConfig(64, 64, 128, 8, 3),
    **dict.fromkeys(SCANS, TailConfig(64, 64, 64, 4, 3)),
}  # fmt: skip
WIDE = STATE | {
    "forward": TailConfig(64, 32, 128, 4, 2), "backward_q": TailConfig(64, 32, 128, 4, 2),
    "backward_k": TailConfig(32, 64, 128, 4, 2), "backward_v": TailConfig(64, 128, 128, 8, 2),
}  # fmt: skip
NARROW = STATE | {
    "forward": TailConfig(64, 64, 128, 4, 2), "backward_q": TailConfig(64, 64, 128, 4, 2),
    "backward_k": TailConfig(32, 64, 128, 4, 2), "backward_v": TailConfig(64, 64, 128, 4, 2),
}  # fmt: skip


def choose(itemsize: int, precision: str, features: int, group: int) -> TailConfigs:
    """The configurations to try first.

    Args:
        itemsize, precision: bytes of an operand, and how products of float32 round.
        features: F, of a query or key.
        group: query heads that share a key head.
    """
    if itemsize == 2:
        return TailConfigs(256 if group == 1 else 128, WIDE if features > 128 else NARROW)
    block = 32 if precision == "tf32" else 16
    wide = TailConfig(block, block, 32, 8, 1)
    return TailConfigs(4 * block, dict.fromkeys(KERNELS, wide))


def span_of(slots: int, programs: int, processors: int) -> int:
    """Slots that a program of a scan takes, `programs` being there for each span: all of them, unless heads leave most of the device idle.

    Spans read what slots add a second time.
    """
    spans = processors // programs if 4 * programs <= processors else 1
    return -(-slots // min(spans, -(-slots // LEAST_SPAN)))


def constants(config: TailConfig, slot: int, head_dim: int, value_dim: int, heads: int, group: int) -> dict:
    """Constexprs by name that follow from sizes."""
    return {
        "HEADS": heads, "GROUP": group, "D": head_dim, "DV": value_dim, "BLOCK_D": padded(head_dim), "BLOCK_DV": padded(value_dim),
        "SLICE": min(config.slice, padded(value_dim)), "SLOT": slot, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": config.stages,
    }  # fmt: skip


def tile_of(kernel: str, matrix: str) -> tuple[str, str]:
    """The constexprs that are the rows and columns of a tile that a kernel loads."""
    rows = "BLOCK_N" if matrix in OF_KEYS or kernel in STATES else "BLOCK_M"
    return rows, "BLOCK_D" if WIDTHS[matrix] == "D" else "SLICE" if kernel in STATES else "BLOCK_DV"


def smaller(config: TailConfig) -> TailConfig | None:
    """The next configuration that needs less shared memory, None if there is none."""
    if config.stages > 1:
        return replace(config, stages=config.stages - 1)
    if max(config.block_m, config.block_n) > 16:
        return replace(config, block_m=max(16, config.block_m // 2), block_n=max(16, config.block_n // 2))
    return replace(config, slice=config.slice // 2) if config.slice > 16 else None
