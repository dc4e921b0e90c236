"""Timing kernels on a card."""

from __future__ import annotations

from collections.abc import Callable

import triton


def median_ms(work: Callable[[], object], warmup: int = 50, rep: int = 200) -> float:
    """The median time of a call in ms by device events, with a cold L2; warmed up for about `warmup` ms, repeated for about `rep` ms."""
    return triton.testing.do_bench(work, warmup=warmup, rep=rep, return_mode="median")


def captured_ms(work: Callable[[], object], rep: int = 100) -> float:
    """The median time of a call in ms as part of a CUDA graph, where the host has no part in it; repeated for about `rep` ms."""
    return triton.testing.do_bench_cudagraph(work, rep=rep, return_mode="median")


def version() -> str:
    """Triton's."""
    return triton.__version__
