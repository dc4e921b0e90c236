"""Compiling, where a kernel was launched first, all that the same call launches at other lengths, so that none of these waits for a compiler.

Which kernel runs depends on lengths: row tiles may be dealt by a schedule, or cut into pieces (`schedule.py`), and the forward may be the
portable one or that for Hopper.  All are compiled beside what the process goes on with, and side by side: by a thread that asks for them, and
as many others as there are kernels.  Threads share Python's lock, so they begin when no first launch has been compiling for a while, as a
backward does soon after its forward.  A call that needs one of them sooner waits for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache

import torch
import triton

from patternc.codegen import cache
from patternc.codegen.call import Call
from patternc.codegen.device import on, processors
from patternc.codegen.launches import Launch
from patternc.codegen.parameters import runtime_values
from patternc.codegen.pieces import RESULTS, merge_of, workspace
from patternc.codegen.prepared import prepare
from patternc.codegen.ready import Ready, dealt_of

KINDS = ("formula", "table", "boxes")  # directions whose kernels are the same at all lengths, or few and soon found
LENGTHS = tuple(1 << i for i in range(9, 17))  # at which kernels are launched, for all that a pattern's calls may need
QUIET = 0.5  # s without a first launch
_done: set[tuple] = set()
_first: dict[tuple, Future] = {}  # by `Launch.code`, what is being compiled for a launch that comes next
_pending: dict[tuple, Future] = {}  # the same for other lengths
_needed = threading.Event()  # somebody waits for these
_lock = threading.Lock()


class _Foreground:
    """The first launches that are compiling now, and when the last one ended."""

    running, ended = 0, 0.0


@contextmanager
def first_launch():
    """Around a first launch, which compiles."""
    with _lock:
        _Foreground.running += 1
    try:
        yield
    finally:
        with _lock:
            _Foreground.running, _Foreground.ended = _Foreground.running - 1, time.monotonic()


def compile_beside(ready: Ready, matrices: dict[str, torch.Tensor], values: dict, device: torch.device) -> None:
    """Have a kernel that is launched soon compiled beside what is launched before.

    Args:
        values: parameters that the call decides, beside those of `ready`.
    """
    launch = ready.launch
    if not launch.compiled and _compiles(launch, device):
        kernels = [(launch, _parameters(launch, {**values, **ready.values}, matrices))]
        _first[launch.code] = _threads("first").submit(_compile, device, kernels)


def compile_others(
    call: Call, ready: Ready, matrices: dict[str, torch.Tensor], values: dict, later: bool, device: torch.device, instead: bool = False
) -> None:
    """Have those kernels compiled that calls of other lengths launch in the place of one; once for Triton's folder of compiled kernels.

    Args:
        values: parameters that the call decides, beside those of `ready`.
        instead: that one is such a kernel itself, and has not been launched.
    """
    launch, axis = ready.launch, call.axis(ready.name)
    fixed = tuple(launch.values.get(name) for name in ("HEADS", "GROUP", "D", "DV", "ALIGN"))
    key = launch.function, device, launch.config, launch.copies, fixed, *(x.dtype for x in matrices.values())
    alone = instead and ready.name == "backward"  # it is the same at all lengths
    if key in _done or not (alone or axis is not None and axis.kind in KINDS) or call.others is None or call.configs or call.variant is not None:
        return
    if not _compiles(launch, device):
        return
    _done.add(key)
    about = [cache.name_of(launch.kernel.text), later, *key[2:], processors(device), triton.runtime.driver.active.get_current_target()]
    note = f"# {triton.knobs.cache.dir} has what calls of other lengths launch in the place of\n# {about}\n"
    if cache.holds(note):
        return
    own = {launch.code, *([launch.merge.code] if launch.merge else [])} if not instead else set()
    found = {launch.code: (launch, {**values, **ready.values})} if alone else {}
    for other, shorter in _others(call, axis, matrices) if not alone else ():
        usual = prepare(other, ready.name, shorter, later)
        dealt = dealt_of(other, ready.name, usual)
        made = usual if dealt is None else usual.dealt(dealt.form)
        if made.code in found:
            continue
        given = {**values, **runtime_values(call, made.kernel, made.config, device), **(dealt.values() if dealt else {})}
        given |= workspace(ready.name, made.values, dealt, made.copies, device) if dealt is not None and dealt.cuts else {}
        found[made.code] = made, given
        if dealt is not None and dealt.cuts:
            merge = merge_of(call.plan, ready.name, made, {x: matrices[x] for x in RESULTS[ready.name]})
            found[merge.code] = merge, {name: given[name] for name in merge.decided}
    wanted = {code: each for code, each in found.items() if code not in own}
    kernels = [(made, _parameters(made, given, matrices)) for made, given in wanted.values()]
    _pending.update(dict.fromkeys(wanted, _threads("others").submit(_compile_later, device, kernels, note)))


def _others(call: Call, axis, matrices: dict[str, torch.Tensor]) -> Iterator[tuple[Call, dict[str, torch.Tensor]]]:
    """Calls at other lengths, and matrices: their lengths matter in digits alone, where whole periods may be described and others not."""
    if axis.kind != "boxes":
        yield from ((other, matrices) for other in call.others(LENGTHS))
        return
    period = axis.order.strides[0]
    n = min(x.shape[2] for x in matrices.values()) // period * period
    for other in call.others((n, n - 1)) if n > 1 else ():
        yield other, {name: x[:, :, : other.lengths[0]] for name, x in matrices.items()}


def _compiles(launch: Launch, device: torch.device) -> bool:
    """Whether a kernel is compiled, not interpreted, and nothing forbids it now."""
    return isinstance(launch.function, triton.runtime.JITFunction) and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def settle(launch: Launch) -> None:
    """Wait where a kernel that is about to be launched first is being compiled."""
    for own in (launch, launch.merge) if _first or _pending else ():
        for futures in (_first, _pending):
            future = futures.pop(own.code, None) if own is not None else None
            if future is not None:
                _wait([future], futures is _pending)


def settle_all() -> None:
    """Wait for all that is being compiled."""
    for futures in (_first, _pending):
        _wait(futures.values(), futures is _pending)
        futures.clear()


def _wait(futures, now: bool) -> None:
    """Wait for what is compiled; `now`: even where it would have waited itself."""
    if now:
        _needed.set()
    wait(futures)
    if now:
        _needed.clear()


@lru_cache
def _threads(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix=f"patternc compiles {name}")


def _parameters(launch: Launch, values: dict, matrices: dict[str, torch.Tensor]) -> dict:
    """All parameters of a launch that is not made, by name."""
    return launch.parameters({name: _like(x) for name, x in values.items()}, {name: _like(x) for name, x in matrices.items()})


def _like(x):
    """An empty tensor of the dtype and alignment of one: nothing keeps tensors on the device, a call's least of all.  Other values as they are."""
    return torch.empty(16, dtype=x.dtype)[x.data_ptr() % 16 // x.itemsize :] if isinstance(x, torch.Tensor) else x


def _compile_later(device: torch.device, kernels: list[tuple[Launch, dict]], note: str) -> None:
    """Where the process has ended meanwhile, no threads begin: this fails then, which nobody looks at."""
    while _Foreground.running or time.monotonic() - _Foreground.ended < QUIET:
        if _needed.wait(0.05):
            break
    _compile(device, kernels)
    cache.store(note)


def _compile(device: torch.device, kernels: list[tuple[Launch, dict]]) -> None:
    """What cannot be compiled is left to the launch that needs it, which will say so."""
    count = max(1, min(len(kernels), os.cpu_count() or 1))
    with on(device), ThreadPoolExecutor(count) as threads, triton.AsyncCompileMode(threads, ignore_errors=True):
        for launch, parameters in kernels:
            launch.function.warmup(**parameters, grid=(1,), num_warps=launch.config.warps, num_stages=launch.config.stages)
