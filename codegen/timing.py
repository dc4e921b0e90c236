"""Timing kernels on a card."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import triton
from triton.runtime.cache import triton_key


def median_ms(work: Callable[[], object], warmup: int = 50, rep: int = 200) -> float:
    """The median time of a call in ms by device events, with a cold L2; warmed up for about `warmup` ms, repeated for about `rep` ms."""
    return triton.testing.do_bench(work, warmup=warmup, rep=rep, return_mode="median")


def captured_ms(work: Callable[[], object], rep: int = 100) -> float:
    """The median time of a call in ms as part of a CUDA graph, where the host has no part in it; repeated for about `rep` ms."""
    return triton.testing.do_bench_cudagraph(work, rep=rep, return_mode="median")


@contextmanager
def compilations():
    """A list that grows with every kernel that Triton is asked for: whether it was found on disk."""
    found, before = [], triton.knobs.compilation.listener
    triton.knobs.compilation.listener = lambda *, cache_hit, **about: found.append(cache_hit)
    try:
        yield found
    finally:
        triton.knobs.compilation.listener = before


def start() -> None:
    """What Triton does once a process, for all kernels: its driver, and hashes of itself and of its assembler for the names in its cache."""
    triton.compiler.make_backend(triton.runtime.driver.active.get_current_target()).hash()
    triton_key()


def version() -> str:
    """Triton's."""
    return triton.__version__
