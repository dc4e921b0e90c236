"""Launch configurations: tile sizes, warps and pipeline stages by kernel, head dimension and dtype."""

from __future__ import annotations

from dataclasses import replace

from patternc.rates import Config

# Candidates by kernel and padded head dimension, for 16-bit inputs; the first is taken where nothing tells them apart, else
# the one whose time is predicted least (`patternc.rates`).  Pointers need more registers than descriptors, so that their tiles are
# smaller: none of these spills inside a loop (tests/test_offline.py).
DESCRIPTORS = {
    ("forward", 64): (Config(64, 128, 4, 2), Config(64, 64, 4, 2), Config(128, 64, 8, 2)),
    ("forward", 128): (Config(64, 64, 4, 3), Config(128, 64, 8, 3), Config(128, 128, 8, 2)),
    ("forward", 256): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
    ("backward_dq", 64): (Config(64, 64, 4, 2), Config(128, 64, 8, 2)),
    ("backward_dq", 128): (Config(64, 64, 4, 2), Config(128, 64, 8, 2)),
    ("backward_dq", 256): (Config(64, 64, 8, 2),),
    ("backward_dkdv", 64): (Config(32, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 128, 8, 2)),
    ("backward_dkdv", 128): (Config(64, 64, 4, 2), Config(64, 128, 8, 2)),
    ("backward_dkdv", 256): (Config(32, 64, 8, 2),),
}
POINTERS = DESCRIPTORS | {
    ("forward", 64): (Config(64, 64, 4, 3),),
    ("forward", 256): (Config(64, 32, 4, 2),),
    ("backward_dq", 256): (Config(64, 32, 8, 2),),
    ("backward_dkdv", 64): (Config(64, 128, 8, 2),),
    ("backward_dkdv", 128): (Config(32, 128, 8, 2),),
    ("backward_dkdv", 256): (Config(32, 32, 4, 1),),
}
# Tiles that are boxes of digits; boxes of one digit are described.
BOXES = POINTERS | {
    ("forward", 64): (Config(64, 64, 4, 3), Config(128, 64, 8, 2)),
    ("forward", 128): (Config(64, 64, 4, 3), Config(128, 64, 8, 2)),
    ("backward_dq", 64): (Config(64, 64, 4, 3),),
    ("backward_dkdv", 64): (Config(64, 64, 4, 1), Config(32, 64, 4, 2), Config(64, 128, 8, 2)),
    ("backward_dkdv", 128): (Config(64, 64, 4, 1), Config(32, 128, 8, 2), Config(64, 64, 8, 2)),
}
BOX_DESCRIPTORS = DESCRIPTORS | {("backward_dkdv", 128): (Config(64, 64, 4, 2), Config(32, 64, 4, 2))}
# A function for each group of heads needs the registers of the neediest; dk/dv would spill in larger tiles.
POINTER_GROUPS = BOXES | {("backward_dkdv", 128): (Config(32, 128, 8, 2),), ("backward_dkdv", 256): (Config(16, 64, 8, 2),)}
DESCRIPTOR_GROUPS = BOX_DESCRIPTORS | {("backward_dkdv", 128): (Config(32, 64, 4, 2),), ("backward_dkdv", 256): (Config(16, 64, 8, 2),)}
# Rows are those of consumers (`hopper.RowTile`), whatever is said of them here; warps are those of one consumer, stages those of the rings.
HOPPER = {("forward", 64): (Config(192, 128, 4, 3),), ("forward", 128): (Config(128, 128, 4, 2),), ("forward", 256): (Config(128, 64, 4, 2),)}
TABLES = {
    "pointers": POINTERS, "boxes": BOXES, "box descriptors": BOX_DESCRIPTORS, "hopper": HOPPER,
    "groups of boxes": POINTER_GROUPS, "groups of box descriptors": DESCRIPTOR_GROUPS,
}  # fmt: skip
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
MOST_STAGES = 4


def padded(head_dim: int) -> int:
    """The power of two that holds a row, at least 16: the products need that many."""
    return max(16, 1 << (head_dim - 1).bit_length())


def candidates(kernel: str, variant: str, head_dim: int, value_dim: int, itemsize: int, tf32: bool = False) -> tuple[Config, ...]:
    """The configurations to choose among.

    Args:
        variant: how the kernel reaches memory.
        itemsize: bytes of an entry of the inputs.
        tf32: products of float32 may round their operands.
    """
    width = max(64, padded(max(head_dim, value_dim)))
    if kernel == "backward_rows":
        return (Config(64 if width < 256 else 32, 64, 4, 1),)
    if itemsize == 4 and not tf32:
        return (FLOAT32[kernel, width],)
    found = TABLES.get(variant, DESCRIPTORS)[kernel, width]
    if itemsize == 4:
        found = tuple(dict.fromkeys(replace(c, block_n=min(c.block_n, 32), stages=min(c.stages, 2)) for c in found))
    return found


def trials(kernel: str, variant: str, width: int, itemsize: int, available: int) -> tuple[Config, ...]:
    """What `patternc tune` measures on a card with so many bytes of shared memory: the candidates, the first one first, and for inputs of
    16 bits those beside them, with a stage more or less and twice or half the warps."""
    own = [fit(kernel, config, width, width, itemsize, available) for config in candidates(kernel, variant, width, width, itemsize)]
    found = list(own)
    if itemsize == 2:
        found += [replace(c, stages=stages) for c in own for stages in (c.stages - 1, c.stages + 1) if 1 <= stages <= MOST_STAGES]
        found += [replace(c, warps=12 - c.warps) for c in own]  # 4 or 8
    return tuple(c for c in dict.fromkeys(found) if shared_bytes(kernel, c, width, width, itemsize) <= available or smaller(c) is None)


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
