"""Timing kernels on a card."""

from __future__ import annotations

from collections.abc import Callable

import triton


def median_ms(work: Callable[[], object], warmup: int = 50, rep: int = 200) -> float:
    """The median time of a call in ms by device events, with a cold L2; warmed up for about `warmup` ms, repeated for about `rep` ms."""
    return triton.testing.do_bench(work, warmup=warmup, rep=rep, return_mode="median")


def version() -> str:
    """Triton's."""
    return triton.__version__
