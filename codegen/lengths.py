"""Compiling, where a kernel is launched first, all that the same call launches at other lengths, so that none of these waits for a compiler.

Which kernel runs depends on lengths: row tiles may be dealt by a schedule, or cut into pieces (`schedule.py`), and the forward may be the
portable one or that for Hopper.  All are compiled side by side, by as many threads as there are kernels.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

from patternc.codegen import cache
from patternc.codegen.call import Call
from patternc.codegen.device import processors
from patternc.codegen.parameters import runtime_values
from patternc.codegen.pieces import RESULTS, merge_of, workspace
from patternc.codegen.prepared import Launch, prepare
from patternc.codegen.ready import Ready, dealt_of

KINDS = ("formula", "table")  # directions whose kernels are the same at all lengths, and soon found
_done: set[tuple] = set()


def compile_others(call: Call, ready: Ready, matrices: dict[str, torch.Tensor], values: dict, later: bool, device: torch.device) -> None:
    """Compile a kernel that is about to be launched, and those in its place at other lengths; once for Triton's folder of compiled kernels.

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
    found = {_code(launch): (launch, {**values, **ready.values, **_pieces(ready.name, launch, ready.dealt, device)})}
    for other in call.others():
        usual = prepare(other, ready.name, matrices, later)
        dealt = dealt_of(other, ready.name, usual)
        made = usual if dealt is None else prepare(other, ready.name, matrices, later, dealt.form)
        if _code(made) in found:
            continue
        own = {**values, **runtime_values(call, made.kernel, made.config, device), **(dealt.values() if dealt else {})}
        found[_code(made)] = made, {**own, **_pieces(ready.name, made, dealt, device)}
        if dealt is not None and dealt.cuts:
            merge = merge_of(call.plan, ready.name, made, {x: matrices[x] for x in RESULTS[ready.name]})
            found[_code(merge)] = merge, {name: found[_code(made)][1][name] for name in merge.decided}
    if len(found) > 1:
        _compile([(made, made.parameters(own, matrices)) for made, own in found.values()])
    cache.store(note)


def _code(launch: Launch) -> tuple:
    """What makes two launches run one compiled kernel."""
    return launch.function, *(launch.values.get(name) for name in launch.kernel.constants)


def _pieces(name: str, launch: Launch, dealt, device: torch.device) -> dict:
    return workspace(name, launch.values, dealt, launch.copies, device) if dealt is not None and dealt.cuts else {}


def _compile(kernels: list[tuple[Launch, dict]]) -> None:
    """What cannot be compiled is left to the launch that needs it, which will say so."""
    with ThreadPoolExecutor(min(len(kernels), os.cpu_count() or 1)) as threads, triton.AsyncCompileMode(threads, ignore_errors=True):
        for launch, parameters in kernels:
            launch.function.warmup(**parameters, grid=(1,), num_warps=launch.config.warps, num_stages=launch.config.stages)
