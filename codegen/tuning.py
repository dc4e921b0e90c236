"""`patternc tune`: what the kernels cost on this card, from the times of a few patterns whose tiles are known.

For every kernel, way of reaching memory, width and configuration some patterns are timed, whose programs, full tiles and partial
tiles are counted; their costs are the ones that explain the times best.
"""

from __future__ import annotations

import datetime
import itertools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from patternc.args import bind
from patternc.codegen import configs, timing
from patternc.codegen.launch import Call, run_kernel
from patternc.errors import BackendError
from patternc.orders.boxes import box_axis
from patternc.orders.choose import visits_of
from patternc.orders.count import Sizes, choose_boxes
from patternc.orders.digits import Order
from patternc.parsing import parse
from patternc.passes import lower
from patternc.plan import Plan, make_plan
from patternc.prediction import ROWS
from patternc.rates import KERNELS, Card, Config, Rate, mask_weight

N, BATCH, HEADS = 16384, 4, 16
SAMPLES = {
    "descriptors": (
        ("causal & window(64)", None), ("causal & window(512)", None), ("causal & window(2048)", None), ("block(1024)", None),
        ("causal & dilate(2) & window(1024)", None), ("causal & dilate(3) & window(1024)", None),
    ),
    "box descriptors": (
        ("causal & dilate(4) & window(256)", 4), ("causal & dilate(4) & window(2048)", 4), ("causal & dilate(4) & window(8192)", 4),
        ("dilate(4) & same(i // 256)", 4),
    ),
    "boxes": tuple((f"neighborhood([128, 128], {kernel})", 128) for kernel in (5, 13, 33, 65)),
}  # fmt: skip
WIDTHS = {"half": (64, 128, 256), "float": (64, 128)}
MERGED = "causal & window(64)"


@dataclass(frozen=True)
class Job:
    """One configuration of one kernel on one sample; `merge` for a later part of a pattern that writes a partial result."""

    kernel: str
    access: str
    width: int
    half: bool
    config: Config
    text: str
    stride: int | None
    merge: bool = False

    @property
    def key(self) -> tuple:
        return self.kernel, self.access, self.width, self.half, self.config


def jobs(widths: tuple[int, ...] = ()) -> list[Job]:
    """All that a run measures."""
    out = []
    for access, half in itertools.product(SAMPLES, (True, False)):
        if not half and access == "box descriptors":
            continue  # exact products of float32 take pointers
        for width, kernel in itertools.product(WIDTHS["half" if half else "float"], KERNELS):
            if widths and width not in widths:
                continue
            variant = access if half or access != "descriptors" else "pointers"
            for config in configs.candidates(kernel, variant, width, width, 2 if half else 4):
                out += [Job(kernel, variant, width, half, config, *sample) for sample in SAMPLES[access]]
    first = {(job.width, job.config): job for job in out if job.kernel == "forward" and job.access == "descriptors" and job.text == MERGED}
    out += [Job(*job.key, MERGED, None, True) for job in first.values() if (job.config.block_m, job.config.block_n) == (64, 64)]
    rows = [(width, configs.candidates("backward_rows", "pointers", width, width, 2)[0]) for width in WIDTHS["half"] if not widths or width in widths]
    return out + [Job("backward_rows", "pointers", width, True, config, MERGED, None) for width, config in rows]


def prepared(job: Job) -> tuple[Callable[[], None], list[float]]:
    """`(run, counts)`: the launch, and its programs, full tiles, partial tiles and operations of masks on partial tiles."""
    p = parse(job.text)
    plan = make_plan(p)
    if job.stride is not None:
        order = Order((job.stride, 1))
        plan = Plan(plan.mask, box_axis(lower(p), order, "k"), box_axis(lower(p), order, "q"))
    axis = plan.transposed if job.kernel == "backward_dkdv" else plan.forward
    tile = job.config.tile(job.kernel)
    sizes = Sizes(N, N, 0)

    def boxes(direction, rows, columns):
        return choose_boxes(axis, sizes, *((columns, rows) if direction == "transposed" else (rows, columns)))

    variant = {"pointers": "pointers", "boxes": "pointers"}.get(job.access, "descriptors")
    call = Call(plan, job.width**-0.5, boxes=boxes, variant=variant, configs={job.kernel: job.config})
    heads = BATCH * HEADS
    seen = visits_of(p, axis, bind(p, {}, N, heads=HEADS, batch=BATCH), tile, job.kernel == "backward_dkdv")
    programs = (-(-N // tile[0]) if job.stride is None else boxes("", *tile).programs) * heads
    weight = mask_weight(plan.mask if job.stride is None else axis.mask)
    dtype = torch.bfloat16 if job.half else torch.float32
    tensors = [torch.randn(BATCH, HEADS, N, job.width, device="cuda", dtype=dtype) for _ in range(4)]
    return run_kernel(call, job.kernel, *tensors, merge=job.merge), [programs, seen.full_tiles, seen.partial_tiles, weight * seen.partial_tiles]


def _compile(job: Job) -> str:
    try:
        prepared(job)[0]()
        torch.cuda.synchronize()
    except Exception as error:  # a configuration that this card cannot run is left out
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        torch.cuda.empty_cache()
    return ""


def measure(widths: tuple[int, ...] = (), workers: int = 8, progress: Callable[[str], None] = lambda _: None) -> Card:
    """The card that is in use.  Raises BackendError without one.

    Args:
        widths: head dimensions, all by default.
        workers: processes that compile, before anything is timed.
    """
    if not torch.cuda.is_available():
        raise BackendError("`tune` measures kernels and needs a CUDA device", fix="run it on a machine with a GPU")
    todo = jobs(widths)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        failed = dict(zip(todo, pool.map(_compile, todo, chunksize=2)))
    times: dict[Job, tuple[float, list[float]]] = {}
    for job in todo:
        if failed[job]:
            progress(f"{job.kernel} {job.access} {job.width} {job.config}: {failed[job]}")
            continue
        run, counts = prepared(job)
        times[job] = 1e3 * timing.median_ms(run, 10, 60), counts
        progress(f"{job.kernel:14s} {job.access:15s} {job.width:3d} {job.config} {job.text:36s} {times[job][0]:8.1f} us")
    return card_of(times, _launch_time(), torch.cuda.get_device_properties(0).multi_processor_count, progress)


def card_of(times: dict[Job, tuple[float, list[float]]], launch: float, processors: int, progress=lambda _: None) -> Card:
    """The card that explains the times."""
    grouped: dict[tuple, list[tuple[float, list[float]]]] = {}
    for job, found in times.items():
        if not job.merge and job.kernel in KERNELS:
            grouped.setdefault(job.key, []).append(found)
    rates: dict[tuple, list[Rate]] = {}
    masks: dict[tuple, float] = {}
    for (kernel, access, width, half, config), found in grouped.items():
        # In digits all masks are much alike: what an operation costs is known from the natural order.
        known = masks.get((kernel, half)) if access in ("boxes", "box descriptors") else None
        area = config.block_m * config.block_n / 4096
        costs, error = fitted(found, launch, processors, None if known is None else known * area)
        progress(f"{kernel:14s} {access:15s} {width:3d} {config} {np.round(costs, 3).tolist()} worst error {error:.1%}")
        masks.setdefault((kernel, half), costs[3] / area)
        rates.setdefault((kernel, access, width, half), []).append(Rate(config, *map(float, costs)))
    merge, rows = {}, {}
    for job, (time, counts) in times.items():
        if job.kernel == "backward_rows":
            rows[job.width] = round(max(0.0, time - launch) * processors / (BATCH * HEADS * N / ROWS), 4)
        if job.merge:
            plain, _ = times[replace(job, merge=False)]
            merge[job.width] = round(max(0.0, (time - plain) * processors / counts[0]), 4)
    return Card(
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        {"torch": torch.__version__, "triton": timing.version()},
        datetime.date.today().isoformat(),
        processors,
        round(launch, 2),
        merge,
        rows,
        {key: tuple(found) for key, found in rates.items()},
    )


def fitted(found: list[tuple[float, list[float]]], launch: float, processors: int, mask: float | None = None) -> tuple[np.ndarray, float]:
    """Costs (program, full, partial, mask), none negative, that explain times in microseconds best by relative error, and the worst error.

    Args:
        found: `(time, [programs, full tiles, partial tiles, operations])` of every sample.
        mask: what an operation of a mask costs, where that is known.
    """
    time = np.array([t for t, _ in found])
    counts = np.array([c for _, c in found], float) / processors
    columns = range(3) if mask is not None else range(4)
    target = time - launch - (counts[:, 3] * mask if mask is not None else 0)
    best = None
    for size in range(1, len(columns) + 1):
        for kept in itertools.combinations(columns, size):
            part, *_ = np.linalg.lstsq(counts[:, kept] / time[:, None], target / time, rcond=None)
            if (part < 0).any():
                continue
            costs = np.zeros(4)
            costs[list(kept)] = part
            costs[3] = mask if mask is not None else costs[3]
            error = np.abs(counts @ costs + launch - time) / time
            if best is None or (error**2).sum() < best[0]:
                best = (error**2).sum(), costs, error.max()
    return best[1], float(best[2])


def _launch_time() -> float:
    """Microseconds that a kernel takes which does next to nothing."""
    p = parse("causal & window(8)")
    tensors = [torch.randn(1, 1, 64, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    run = run_kernel(Call(make_plan(p), 0.1), "forward", *tensors)
    graph = torch.cuda.CUDAGraph()
    run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(20):
            run()
    return 1e3 * timing.median_ms(graph.replay, 10, 60) / 20
