"""Compiling, where a kernel was launched first, all that the same call launches at other lengths, so that none of these waits for a compiler.

Which kernel runs depends on lengths: row tiles may be dealt by a schedule, or cut into pieces (`schedule.py`), and the forward may be the
portable one or that for Hopper.  All are compiled beside what the process goes on with, and side by side: by a thread that asks for them, and
as many others as there are kernels.  A call that needs one of them sooner waits for it.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache

import torch
import triton

from patternc.codegen import cache
from patternc.codegen.call import Call
from patternc.codegen.device import on, processors
from patternc.codegen.parameters import runtime_values
from patternc.codegen.pieces import RESULTS, merge_of, workspace
from patternc.codegen.prepared import Launch, prepare
from patternc.codegen.ready import Ready, dealt_of

KINDS = ("formula", "table")  # directions whose kernels are the same at all lengths, and soon found
_done: set[tuple] = set()
_pending: dict[tuple, Future] = {}  # by `_code`, what is being compiled


def compile_others(call: Call, ready: Ready, matrices: dict[str, torch.Tensor], values: dict, later: bool, device: torch.device) -> None:
    """Have those kernels compiled that calls of other lengths launch in the place of one; once for Triton's folder of compiled kernels.

    Args:
        values: parameters that the call decides, beside those of `ready`.
    """
    launch, axis = ready.launch, call.axis(ready.name)
    fixed = tuple(launch.values.get(name) for name in ("HEADS", "GROUP", "D", "DV", "ALIGN"))
    key = launch.function, device, launch.config, launch.copies, fixed, *(x.dtype for x in matrices.values())
    if key in _done or axis is None or axis.kind not in KINDS or call.others is None or call.configs or call.variant is not None:
        return
    if not isinstance(launch.function, triton.runtime.JITFunction) or device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    _done.add(key)
    about = [cache.name_of(launch.kernel.text), later, *key[2:], processors(device), triton.runtime.driver.active.get_current_target()]
    note = f"# {triton.knobs.cache.dir} has what calls of other lengths launch in the place of\n# {about}\n"
    if cache.holds(note):
        return
    own, found = {_code(launch), *([_code(launch.merge)] if launch.merge else [])}, {}
    for other in call.others():
        usual = prepare(other, ready.name, matrices, later)
        dealt = dealt_of(other, ready.name, usual)
        made = usual if dealt is None else prepare(other, ready.name, matrices, later, dealt.form)
        if _code(made) in found:
            continue
        given = {**values, **runtime_values(call, made.kernel, made.config, device), **(dealt.values() if dealt else {})}
        given |= workspace(ready.name, made.values, dealt, made.copies, device) if dealt is not None and dealt.cuts else {}
        found[_code(made)] = made, given
        if dealt is not None and dealt.cuts:
            merge = merge_of(call.plan, ready.name, made, {x: matrices[x] for x in RESULTS[ready.name]})
            found[_code(merge)] = merge, {name: given[name] for name in merge.decided}
    alike = {name: _like(x) for name, x in matrices.items()}
    wanted = {code: each for code, each in found.items() if code not in own}
    kernels = [(made, made.parameters({x: _like(y) for x, y in given.items()}, alike)) for made, given in wanted.values()]
    _pending.update(dict.fromkeys(wanted, _thread().submit(_compile, device, kernels, note)))


def settle(launch: Launch) -> None:
    """Wait where a kernel that is about to be launched first is being compiled."""
    for own in (launch, launch.merge):
        future = _pending.pop(_code(own), None) if own is not None else None
        if future is not None:
            wait([future])


def settle_all() -> None:
    """Wait for all that is being compiled."""
    wait(_pending.values())
    _pending.clear()


@lru_cache(maxsize=1)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="patternc compiles")


def _like(x):
    """An empty tensor of the dtype and alignment of one, so that nothing keeps a call's tensors; other values as they are."""
    return torch.empty(16, dtype=x.dtype, device=x.device)[x.data_ptr() % 16 // x.itemsize :] if isinstance(x, torch.Tensor) else x


def _code(launch: Launch) -> tuple:
    """What makes two launches run one compiled kernel."""
    return launch.function, *(launch.values.get(name) for name in launch.kernel.constants)


def _compile(device: torch.device, kernels: list[tuple[Launch, dict]], note: str) -> None:
    """What cannot be compiled is left to the launch that needs it, which will say so."""
    count = max(1, min(len(kernels), os.cpu_count() or 1))
    with on(device), ThreadPoolExecutor(count) as threads, triton.AsyncCompileMode(threads, ignore_errors=True):
        for launch, parameters in kernels:
            launch.function.warmup(**parameters, grid=(1,), num_warps=launch.config.warps, num_stages=launch.config.stages)
    cache.store(note)
