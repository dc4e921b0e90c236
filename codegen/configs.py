"""Launch configurations: tile sizes, warps and pipeline stages by kernel, head dimension and dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.expr.arithmetic import add, scale, terms
from patternc.orders.boxes import BoxAxis
from patternc.plan import AxisPlan


@dataclass(frozen=True)
class Config:
    """`block_m` queries and `block_n` keys a tile."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# (kernel, padded head dimension) for 16-bit inputs; rows of few tiles have their own forward.  Pointers need more registers
# than descriptors, so that their tiles are smaller: none of these spills inside a loop (tests/test_offline.py).
DESCRIPTORS = {
    ("forward", 64): Config(64, 128, 4, 2),
    ("forward", 128): Config(64, 64, 4, 3),
    ("forward", 256): Config(128, 64, 8, 2),
    ("forward short", 64): Config(64, 64, 4, 2),
    ("forward short", 128): Config(64, 64, 4, 3),
    ("forward short", 256): Config(64, 64, 4, 2),
    ("backward_dq", 64): Config(64, 64, 4, 2),
    ("backward_dq", 128): Config(64, 64, 4, 2),
    ("backward_dq", 256): Config(64, 64, 8, 2),
    ("backward_dkdv", 64): Config(32, 64, 4, 3),
    ("backward_dkdv", 128): Config(64, 64, 4, 2),
    ("backward_dkdv", 256): Config(32, 64, 8, 2),
}
POINTERS = DESCRIPTORS | {
    ("forward", 64): Config(64, 64, 4, 3),
    ("forward", 256): Config(64, 32, 4, 2),
    ("forward short", 256): Config(64, 32, 4, 2),
    ("backward_dq", 256): Config(64, 32, 8, 2),
    ("backward_dkdv", 64): Config(64, 128, 8, 2),
    ("backward_dkdv", 128): Config(32, 128, 8, 2),
    ("backward_dkdv", 256): Config(32, 32, 4, 1),
}
# Tiles that are boxes of digits.  Boxes of one digit are described, but what dk/dv read of each query lies apart.
BOXES = POINTERS | {
    ("forward", 128): Config(64, 64, 4, 3),
    ("backward_dq", 64): Config(64, 64, 4, 3),
    ("backward_dkdv", 64): Config(64, 64, 4, 1),
    ("backward_dkdv", 128): Config(64, 64, 4, 1),
}
BOX_DESCRIPTORS = DESCRIPTORS | {("backward_dkdv", 128): Config(32, 64, 4, 2)}
TABLES = {"pointers": POINTERS, "boxes": BOXES, "box descriptors": BOX_DESCRIPTORS}
# IEEE products of float32 run on the ordinary units, which hold operands in registers: small tiles and many warps.
FLOAT32 = {
    ("forward", 64): Config(64, 32, 8, 1),
    ("forward", 128): Config(32, 32, 8, 1),
    ("forward", 256): Config(16, 32, 8, 1),
    ("backward_dq", 64): Config(64, 32, 8, 1),
    ("backward_dq", 128): Config(32, 32, 8, 1),
    ("backward_dq", 256): Config(16, 32, 8, 1),
    ("backward_dkdv", 64): Config(32, 32, 8, 1),
    ("backward_dkdv", 128): Config(32, 16, 4, 1),
    ("backward_dkdv", 256): Config(16, 16, 4, 1),
}

SHORT = 1024  # columns beside a row tile's own that count as few


def padded(head_dim: int) -> int:
    """The power of two that holds a row, at least 16: the products need that many."""
    return max(16, 1 << (head_dim - 1).bit_length())


def is_short(axis: AxisPlan | BoxAxis) -> bool:
    """Whether every run is provably a few columns wider than its row tile, as in a window: then start-up counts."""
    if axis.kind == "boxes":
        return len(axis.digits) == 1 and all(map(is_short, axis.digits.values()))
    if axis.kind != "formula":
        return False
    for run in axis.all_runs:
        width, parts = terms(add(run.hi, scale(run.lo, -1)))
        ends = {x.args[0][:2]: w for x, w in parts.items() if x.op == "var"}
        if width > SHORT or len(ends) < len(parts) or ends not in ({}, {"r1": 1, "r0": -1}):
            return False
    return True


def choose(kernel: str, variant: str, head_dim: int, value_dim: int, itemsize: int, short: bool = False, tf32: bool = False) -> Config:
    """The first configuration to try.

    Args:
        variant: how the kernel reaches memory.
        itemsize: bytes of an entry of the inputs.
        short: row tiles visit few column tiles.
        tf32: products of float32 may round their operands.
    """
    width = max(64, padded(max(head_dim, value_dim)))
    if kernel == "backward_rows":
        return Config(64 if width < 256 else 32, 64, 4, 1)
    if itemsize == 4 and not tf32:
        return FLOAT32[kernel, width]
    table = TABLES.get(variant, DESCRIPTORS)
    config = table[(f"{kernel} short" if short and kernel == "forward" else kernel, width)]
    if itemsize == 4:
        config = replace(config, block_n=min(config.block_n, 32), stages=min(config.stages, 2))
    return config


def smaller(config: Config) -> Config | None:
    """The next configuration that needs less shared memory and registers, None if there is none."""
    if config.stages > 1:
        return replace(config, stages=config.stages - 1)
    if max(config.block_m, config.block_n) <= 16:
        return None
    if config.block_n >= config.block_m:
        return replace(config, block_n=config.block_n // 2)
    return replace(config, block_m=config.block_m // 2)


def shared_bytes(kernel: str, config: Config, head_dim: int, value_dim: int, itemsize: int) -> int:
    """About how much shared memory a kernel needs."""
    d, dv = padded(head_dim), padded(value_dim)
    m, n, pair = config.block_m, config.block_n, config.block_m * config.block_n * itemsize
    if kernel == "forward":
        return (m * d + config.stages * n * (d + dv)) * itemsize
    if kernel == "backward_dq":
        return (m * (d + dv) + config.stages * n * (d + dv)) * itemsize
    if kernel == "backward_dkdv":
        return (n * (d + dv) + config.stages * m * (d + dv)) * itemsize + pair
    return 0


def fit(kernel: str, config: Config, head_dim: int, value_dim: int, itemsize: int, available: int) -> Config:
    """Step down until the estimate fits into `available` bytes of shared memory."""
    while shared_bytes(kernel, config, head_dim, value_dim, itemsize) > available and (less := smaller(config)):
        config = less
    return config
