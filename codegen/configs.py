"""Launch configurations: tile sizes, warps and pipeline stages by kernel, head dimension and dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Config:
    """`block_m` queries and `block_n` keys a tile."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# (kernel, padded head dimension) -> configuration for 16-bit inputs on Hopper (docs/performance.md); "short" is for rows of few tiles.
TABLE = {
    ("forward", 64): Config(64, 64, 4, 3),
    ("forward", 128): Config(128, 64, 4, 2),
    ("forward", 256): Config(128, 64, 8, 2),
    ("forward short", 64): Config(64, 64, 4, 2),
    ("forward short", 128): Config(64, 64, 4, 3),
    ("forward short", 256): Config(64, 64, 4, 2),
    ("backward_dq", 64): Config(64, 128, 4, 3),
    ("backward_dq", 128): Config(128, 64, 8, 2),
    ("backward_dq", 256): Config(64, 64, 8, 1),
    ("backward_dkdv", 64): Config(64, 64, 4, 3),
    ("backward_dkdv", 128): Config(64, 64, 4, 2),
    ("backward_dkdv", 256): Config(64, 64, 8, 1),
    ("backward_rows", 64): Config(64, 64, 4, 1),
    ("backward_rows", 128): Config(64, 64, 4, 1),
    ("backward_rows", 256): Config(32, 64, 4, 1),
}


def padded(head_dim: int) -> int:
    """The power of two that holds a row, at least 16: the products need that many."""
    return max(16, 1 << (head_dim - 1).bit_length())


def choose(kernel: str, head_dim: int, value_dim: int, itemsize: int, short: bool = False) -> Config:
    """The first configuration to try.

    Args:
        itemsize: bytes of the inputs' dtype; 32-bit tiles are half as long.
        short: the typical row tile visits few column tiles (a window), so that start-up counts.
    """
    width = max(64, padded(max(head_dim, value_dim)))
    config = TABLE[(f"{kernel} short" if short and kernel == "forward" else kernel, width)]
    if itemsize == 4:
        small = 32 if width > 64 else 64
        config = replace(config, block_m=min(config.block_m, small), block_n=min(config.block_n, 32), stages=min(config.stages, 2))
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
    """An upper estimate of the shared memory that a kernel needs."""
    d, dv = padded(head_dim), padded(value_dim)
    m, n, pair = config.block_m, config.block_n, config.block_m * config.block_n * itemsize
    if kernel == "forward":
        return (m * d + config.stages * n * (d + dv)) * itemsize
    if kernel == "backward_dq":
        return (m * (d + dv) + config.stages * n * (d + dv)) * itemsize + pair
    if kernel == "backward_dkdv":
        return (n * (d + dv) + config.stages * m * (d + dv)) * itemsize + pair
    return 0


def fit(kernel: str, config: Config, head_dim: int, value_dim: int, itemsize: int, available: int) -> Config:
    """Step down until the estimate fits into `available` bytes of shared memory."""
    while shared_bytes(kernel, config, head_dim, value_dim, itemsize) > available and (less := smaller(config)):
        config = less
    return config
