"""Timing kernels on a card."""

from __future__ import annotations

from collections.abc import Callable

import triton


def median_ms(work: Callable[[], object]) -> float:
    """The median time of a call in ms by device events, warmed up, with a cold L2."""
    return triton.testing.do_bench(work, warmup=50, rep=200, return_mode="median")


def version() -> str:
    """Triton's."""
    return triton.__version__
