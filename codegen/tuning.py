"""`patternc tune`: what the kernels cost on this card, from the times of a few patterns whose tiles are known.

For every kernel, way of reaching memory, width and configuration some patterns are timed, whose programs, full tiles and partial
tiles are counted; their costs are the ones that explain the times best.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from patternc.args import bind
from patternc.codegen import timing
from patternc.codegen.fitting import Choice, Sample, fitted_card
from patternc.codegen.launch import Call, run_kernel
from patternc.codegen.machine import Machine, versions
from patternc.codegen.measured import Times
from patternc.codegen.trials import BATCH, HEADS, Job, N, jobs, plan_of
from patternc.orders.choose import visits_of
from patternc.orders.count import Sizes, choose_boxes
from patternc.parsing import parse
from patternc.plan import make_plan
from patternc.rates import Card, mask_weight

TOGETHER = 64  # jobs that are compiled before they are timed: an interruption loses no more
MEMORY = 4 << 30  # bytes of the card's memory that a process which compiles may take

Progress = Callable[[int, int, str], None]  # jobs done, jobs in all, a line about the last


def prepared(job: Job, batch: int = BATCH) -> tuple[Callable[[], None], list[float]]:
    """`(run, counts)`: the launch, and its programs, full tiles, partial tiles and operations of masks on partial tiles."""
    p, plan = parse(job.text), plan_of(job.text, job.stride)
    axis = plan.transposed if job.kernel == "backward_dkdv" else plan.forward
    tile = job.config.tile(job.kernel)
    sizes = Sizes(N, N, 0)

    def boxes(direction, rows, columns):
        return choose_boxes(axis, sizes, *((columns, rows) if direction == "transposed" else (rows, columns)))

    call = Call(plan, job.width**-0.5, boxes=boxes, variant=job.variant, configs={job.kernel: job.config})
    heads = batch * HEADS
    seen = visits_of(p, axis, bind(p, {}, N, heads=HEADS, batch=batch), tile, job.kernel == "backward_dkdv")
    programs = (-(-N // tile[0]) if job.stride is None else boxes("", *tile).programs) * heads
    weight = mask_weight(plan.mask if job.stride is None else axis.mask)
    dtype = torch.bfloat16 if job.half else torch.float32
    tensors = [torch.randn(batch, HEADS, N, job.width, device="cuda", dtype=dtype) for _ in range(4)]
    return run_kernel(call, job.kernel, *tensors, merge=job.merge), [programs, seen.full_tiles, seen.partial_tiles, weight * seen.partial_tiles]


def _compile(job: Job) -> str:
    """Compile and run a kernel once, in a process of its own; why it does not run, or ""."""
    try:
        prepared(job, 1)[0]()
        torch.cuda.synchronize()
    except Exception as error:  # a configuration that this card cannot run is left out
        return _reason(error)
    finally:
        torch.cuda.empty_cache()
    return ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


@contextmanager
def _uninterrupted():
    """Ctrl-C reaches all processes of a terminal; those that are started in here do not hear it, and this one afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Bench:
    """Compiles kernels in `workers` processes, and times them in this one while those are idle."""

    def __init__(self, workers: int):
        self.workers, self._pool = workers, None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def compile(self, some: list[Job]) -> list[str]:
        """For each job why it does not run, "" if it does."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn"))
        found = []
        with _uninterrupted():
            waiting = [self._pool.submit(_compile, job) for job in some]
        for one in waiting:
            try:
                found.append(one.result())
            except BrokenProcessPool as error:  # out of memory, or a compiler that crashes
                found.append(_reason(error))
                self._pool = None
        return found

    def time(self, job: Job) -> Sample:
        run, counts = prepared(job)
        return 1e3 * timing.median_ms(run, 10, 60), counts

    def launch(self) -> float:
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


def tune(
    machine: Machine, widths: tuple[int, ...] = (), workers: int = 8, restart: bool = False, progress: Progress = lambda *_: None
) -> tuple[Card, list[Choice]]:
    """Measure what was not measured before, and make the card's table.  Raises BackendError where a kernel has no times.

    Args:
        widths: head dimensions to measure, all by default; the table has those that were measured before too.
        workers: at most so many processes compile.
        restart: forget what was measured before.
    """
    times = Times(machine.name, versions(), restart)
    todo = jobs(machine, widths)
    with Bench(max(1, min(workers, machine.memory // MEMORY))) as bench:
        measure(todo, bench, times, progress)
        found = {job: sample for job in jobs(machine) if (sample := times.find(job)) is not None}
        return fitted_card(found, bench.launch(), machine, times.versions)


def measure(todo: list[Job], bench: Bench, times: Times, progress: Progress) -> None:
    """Time the jobs that have no time yet.  Those that do not run are left out, and tried again by the next run."""
    missing = [job for job in todo if times.find(job) is None]
    done = len(todo) - len(missing)
    progress(done, len(todo), f"{done} of {len(todo)} were measured before")
    for first in range(0, len(missing), TOGETHER):
        some = missing[first : first + TOGETHER]
        progress(done, len(todo), f"compiling {len(some)} kernels")
        for job, why in zip(some, bench.compile(some)):
            if not why:
                try:
                    sample = bench.time(job)
                except Exception as error:  # such as too little memory
                    why = _reason(error)
                else:
                    times.put(job, sample)
            done += 1
            progress(done, len(todo), f"{job}: " + (f"left out: {why}" if why else f"{sample[0]:.1f} us"))
