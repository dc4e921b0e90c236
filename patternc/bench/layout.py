"""`patternc bench layout`: the time and memory of exact layouts at a million tokens, beside torch's `create_block_mask`.

Times are the best of several runs on one core.  Memory is the peak above what the process held before, counted by
`tracemalloc` for numpy (in a run of its own, since counting slows it) and by the allocated tensors' size for torch.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from patternc.bench.tables import markdown

TILE = 128
DOCUMENTS = 700
PEER_SIZES = (4096, 16384)  # create_block_mask builds an n x n mask: beyond this it needs gigabytes

CASES = {
    "causal window 512": "causal & window(512)",
    "window 256+256, 64 global": "window(left=256, right=256) | global(64)",
    "sinks 4 + window 1024": "causal & (sink(4) | window(1024))",
    "700 documents": "documents(ids)",
}


@dataclass
class Row:
    """One measurement: milliseconds, and MB above the baseline; `tiles` are full and partial ones."""

    case: str
    implementation: str
    n: int
    ms: float
    peak_mb: float
    full_tiles: int
    partial_tiles: int
    exact: bool = True


def measure(n: int = 1 << 20, repeat: int = 7, peers: bool = True, progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Rows of all cases at `n` tokens, and of both implementations at the sizes that torch can hold."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for case, text in CASES.items():
            progress(case)
            rows.append(_ours(case, text, n, repeat))
            for size in PEER_SIZES if peers else ():
                rows += [_ours(case, text, size, repeat), _torch(case, size)]
        return rows
    finally:
        torch.set_num_threads(threads)


def ids_of(n: int) -> np.ndarray:
    """Contiguous documents of random lengths: int64 [n]."""
    cuts = np.sort(np.random.default_rng(0).choice(np.arange(1, n), min(DOCUMENTS, n) - 1, replace=False))
    return np.searchsorted(cuts, np.arange(n), "right")


def _ours(case: str, text: str, n: int, repeat: int) -> Row:
    from patternc.args import bind
    from patternc.layout import layout
    from patternc.parsing import parse

    p = parse(text)
    args = {"ids": ids_of(n)} if "ids" in text else {}

    def run():
        return layout(p, bind(p, args, n), (TILE, TILE))

    run()
    best = min(_timed(run)[0] for _ in range(repeat))
    tracemalloc.start()
    found = run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Row(case, "patternc", n, best * 1e3, peak / 1e6, found.full_tiles, found.partial_tiles, found.exact)


def _torch(case: str, n: int) -> Row:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    ids = torch.from_numpy(ids_of(n))
    predicate = {
        "causal window 512": lambda b, h, q, k: (k <= q) & (q - k < 512),
        "window 256+256, 64 global": lambda b, h, q, k: ((q - k).abs() <= 256) | (q < 64) | (k < 64),
        "sinks 4 + window 1024": lambda b, h, q, k: (k <= q) & ((k < 4) | (q - k < 1024)),
        "700 documents": lambda b, h, q, k: ids[q] == ids[k],
    }[case]
    seconds, mask = min(
        (_timed(lambda: create_block_mask(predicate, None, None, n, n, device="cpu", BLOCK_SIZE=TILE)) for _ in range(2)), key=lambda x: x[0]
    )
    return Row(case, "create_block_mask", n, seconds * 1e3, n * n / 1e6, int(mask.full_kv_num_blocks.sum()), int(mask.kv_num_blocks.sum()))


def _timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def as_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


HEADINGS = ("case", "n", "implementation", "ms", "peak MB", "full", "partial")


def cells(row: Row) -> tuple[str, ...]:
    peak = f"{row.peak_mb:,.1f}" if row.implementation == "patternc" else f">= {row.peak_mb:,.0f}"
    return row.case, f"{row.n:,}", row.implementation, f"{row.ms:,.1f}", peak, f"{row.full_tiles:,}", f"{row.partial_tiles:,}"


def as_markdown(rows: list[Row]) -> str:
    return markdown(HEADINGS, map(cells, rows))
