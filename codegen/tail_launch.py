"""Running the kernels of a linear tail: tensors and the slots of a plan in, sums and gradients out.

Shapes: q [B, H, n_q, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv], of one dtype; o [B, H, n_q, Dv] and the sums of weights
[B, H, n_q] in float32 (o in bfloat16 for bfloat16 inputs).  D and Dv are at most `WIDEST`.  Everything is checked by the caller.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from triton.runtime.errors import OutOfResources

from patternc.codegen import tail_configs, tail_pass, tail_pass_launch
from patternc.codegen.configs import padded
from patternc.codegen.device import on, precision, processors
from patternc.codegen.launch import layout_of
from patternc.codegen.launches import Launch
from patternc.codegen.matrices import empty, in_rows
from patternc.codegen.tail_call import TailCall
from patternc.codegen.tail_configs import SCANS, STATES, TailConfig
from patternc.codegen.tail_kernels import TailSource, generate, scans
from patternc.codegen.tail_pass_form import SUMS, PassForm, SumsForm, kernels_of
from patternc.codegen.tail_steps import Step, described_by, operand_of, prepare
from patternc.codegen.tail_text import Form
from patternc.errors import BackendError
from patternc.tail import result_of

WIDEST = 128  # head dimension of keys and of values that accumulators of features in registers allow
BY_KEYS = {"backward_k": ("q", "k", "v", "do", "dk"), "backward_v": ("q", "k", "do", "dv")}  # matrices of the portable kernels of keys


States = tuple[torch.Tensor, torch.Tensor]  # matrices, and vectors


def tail_forward(call: TailCall, q, k, v, sums: bool, keep: bool = True, onto: tuple | None = None, add: bool = False) -> tuple:
    """`(o, sums of weights or None, states that enter the slots)`; states are returned where `keep`, for the backward.

    Args:
        onto: `(o, sums)` that the results are written to, or where `add` added to.
    """
    run = _run_of(call, "forward", sums, add, q, k, v, *(onto or ()))
    o, weights = onto or (
        empty(q, q.shape[2], v.shape[3], result_of(v.dtype)),
        torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if sums else None,
    )
    q, k, v = run.operands(q, k, v)
    states = run.states("key_states", {"k": k, "v": v}, {})
    if not add:
        run.clear(o, weights)
    run.launch("forward", {"q": q, "k": k, "v": v, "o": o}, {"sums_ptr": weights, "states_ptr": states[0], "vectors_ptr": states[1]})
    return o, weights, states if keep else None


def tail_backward(call: TailCall, q, k, v, do, dsums=None, states: States | None = None, onto: tuple | None = None) -> tuple:
    """`(dq, dk, dv)` from the forward's inputs, the gradients of its results, and its states where they were kept.

    Args:
        onto: gradients of q, k and v that the results are added to in place.
    """
    run = _run_of(call, "backward", dsums is not None, onto is not None, q, k, v, do, *(onto or ()))
    dq, dk, dv = onto or (empty(x, x.shape[2], x.shape[3], x.dtype) for x in (q, k, v))
    if onto is None:
        run.clear(dq)
    q, k, v = run.operands(q, k, v)
    do = in_rows(do.to(v.dtype), warn=False)
    dsums = None if dsums is None else dsums.contiguous()
    matrices = {"q": q, "k": k, "v": v, "do": do}
    states = run.states("key_states", {"k": k, "v": v}, {}) if states is None else states
    run.launch("backward_q", {**matrices, "dq": dq}, {"dsums_ptr": dsums, "states_ptr": states[0], "vectors_ptr": states[1]})
    del states  # of the keys: those of the rows take as much memory
    states = run.states("row_states", {"q": q, "do": do}, {"dsums_ptr": dsums})
    matrices |= {"dk": dk, "dv": dv}
    for name in BY_KEYS if not run.each else kernels_of(call.feature)[2:]:
        given = {m: matrices[m] for m in BY_KEYS.get(name, matrices)}
        run.launch(name, given, {"dsums_ptr": dsums, "states_ptr": states[0], "vectors_ptr": states[1]})
    return dq, dk, dv


def _run_of(call: TailCall, what: str, sums: bool, add: bool, q, k, v, *more: torch.Tensor | None) -> _Run:
    """The kernels of a forward or a backward; `more` is what else the call is given, or writes to."""
    if call.runs is None:
        return _Run(call, q, k, v, sums, add)
    key = what, sums, add, precision(q.dtype), *[layout_of(x) for x in (q, k, v, *more) if x is not None]
    run = call.runs.get(key)
    if run is None:
        if len(call.runs) >= MOST_RUNS:
            call.runs.clear()
        run = call.runs[key] = _Run(call, q, k, v, sums, add)
    return run


_chosen: dict[tuple, TailConfig] = {}  # configurations in use; one that does not fit is replaced by a smaller one
_launches: dict[tuple, Launch] = {}
MOST_LAUNCHES = 4096
MOST_RUNS = 64  # layouts of matrices for which a call keeps what it launches


class _Run:
    """The kernels of a call on tensors of one layout.

    Attributes:
        each: slots that a program of the one-pass kernels goes through, 0 where the portable ones are taken.
        steps: what was launched before, by name.
    """

    def __init__(self, call: TailCall, q, k, v, sums: bool, add: bool):
        self.add = add
        self.dtype, self.precision = operand_of(q.dtype)
        self.call, self.device = call, q.device
        self.batch, self.kv_heads = k.shape[:2]
        self.n_q, self.n_k, self.d, self.dv = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
        self.heads = q.shape[1]
        halves = 2 if call.feature == "softmax" else 1
        self.configs = call.configs or tail_configs.choose(self.dtype.itemsize, self.precision, halves * self.d, self.heads // self.kv_heads)
        self.tables = call.tables(self.configs.slot)
        slots = self.slots = self.tables.slots
        self.form = Form.of(call.feature, sums, slots)
        self.each = 0 if call.configs else tail_pass_launch.slots_of_program(self.form, slots.offset, q, k, v)
        if self.each:
            self.configs = replace(self.configs, slot=tail_pass.SLOT)
            self.tables = call.tables(tail_pass.SLOT)
            slots = self.slots = self.tables.slots
        values = {"slots": slots.count, "n_q": self.n_q, "n_k": self.n_k, "per_row": self.tables.per_row}
        self.values = {**values, "offset": slots.offset, **self.tables.tensors}
        self.shape = self.batch * self.kv_heads * halves, padded(self.d), padded(self.dv)
        self.steps: dict[str, Step] = {}

    def operands(self, *tensors):
        return [in_rows(x.to(self.dtype)) for x in tensors]

    def clear(self, *results) -> None:
        """Rows before the first slot read nothing."""
        offset = self.slots.offset
        for x in results if offset is not None and offset > 0 else ():
            if x is not None:
                (x[:, :, max(x.shape[2] - offset, 0) :] if self.slots.mirrored else x[:, :, :offset]).zero_()

    def states(self, name: str, matrices: dict, vectors: dict) -> States:
        """Those that enter the slots, of keys, or the gradients of those that leave them, of rows."""
        heads, d, dv = self.shape
        dtype = torch.float32 if self.each else self.dtype
        if 0 < self.slots.count <= self.each:  # programs begin where nothing has been added
            return torch.empty(0, dtype=dtype, device=self.device), torch.empty(0, device=self.device)
        slots = self.pieces(name).cuts["cells"] if self.each else self.slots.count
        states = torch.empty(heads * slots, d, dv, dtype=dtype, device=self.device)
        own, summed = torch.empty(2, 0 if self.each else heads * slots, d + dv, device=self.device)
        self.launch(name, matrices, {**vectors, "states_ptr": states, "vectors_ptr": own})
        side = name.removesuffix("_states")
        span = self.span(f"{side}_scan", slots)
        spans = -(-slots // span)
        totals = torch.empty(heads * spans * d * (dv + 1) if spans > 1 else 0, dtype=torch.float32, device=self.device)
        given = {"states_ptr": states, "totals_ptr": totals, "gains_ptr": own, "slots": slots, "span": span}
        if spans > 1:
            self.launch(f"{side}_totals", {}, given)
        self.launch(f"{side}_scan", {}, {**given, "vectors_ptr": summed})
        return states, summed

    def pieces(self, name: str) -> tail_pass_launch.Pieces:
        """What the states of one-pass kernels are summed of."""
        return tail_pass_launch.pieces(name, self.slots.count, self.each, self.batch * self.kv_heads, processors(self.device))

    def span(self, name: str, slots: int) -> int:
        """Slots that a program of a scan takes."""
        programs = self.batch * self.kv_heads * self.form.halves * self._slices(self.configs.of[name])
        return tail_configs.span_of(slots, programs, processors(self.device))

    def _slices(self, config: TailConfig) -> int:
        return -(-padded(self.dv) // min(config.slice, padded(self.dv)))

    def launch(self, name: str, matrices: dict[str, torch.Tensor], values: dict) -> None:
        """Run a kernel; `values` are parameters that differ from call to call."""
        step = self.steps.get(name)
        if step is not None:
            return self._run(name, step, values, matrices)
        if self.each and name in (*SUMS, *STATES):
            step = self._pass(name, matrices, values)
            self._run(name, step, values, matrices)
        else:
            while True:
                step = self._step(name, matrices, values)
                try:
                    self._run(name, step, values, matrices)
                    break
                except OutOfResources as error:
                    self._step_down(name, step.launch.config, error)
        self.steps[name] = step

    def _run(self, name: str, step: Step, values: dict, matrices: dict[str, torch.Tensor]) -> None:
        if step.programs:
            with on(self.device):
                self.call.watch(name, lambda: step.run(values, matrices, self.device))

    def _step(self, name: str, matrices: dict[str, torch.Tensor], values: dict) -> Step:
        """A portable kernel."""
        config = _chosen.get(self._kind(name), self.configs.of[name])
        sizes = self.batch, self.heads, self.kv_heads, self.n_k, self.d, self.dv
        layout = tuple((m, *layout_of(x)) for m, x in matrices.items())
        key = name, self.add, self.form, self.configs.slot, bool(self.each), config, sizes, self.dtype, self.precision, self.device, layout
        launch = _launches.get(key)
        if launch is None:
            launch = self._prepare(name, config, matrices)
            if len(_launches) >= MOST_LAUNCHES:
                _launches.clear()
            _launches[key] = launch
        fixed = {**self.values, **self._tiles(name, config)}
        return Step.of(launch, self._programs(name, config, {**fixed, **values}), fixed, values)

    def _pass(self, name: str, matrices: dict[str, torch.Tensor], values: dict) -> Step:
        """A kernel that goes through its slots in one pass, or sums the slots of which these begin with what has been added."""
        slots, rows = self.slots, self.n_q - self.slots.offset
        if name in STATES:
            form = SumsForm(name, self.form.feature, slots.mirrored, self.form.dead)
            pieces, results = self.pieces(name), []
            own, programs = {**pieces.cuts, "first": pieces.first, "total": pieces.total}, pieces.programs
        else:
            sizes = self.heads > self.kv_heads, self.d > 64
            form = PassForm(name, self.form.feature, slots.mirrored, self.add, self.form.dead, *sizes)
            spans, results = -(-slots.count // self.each), form.results
            pieces, programs = self.pieces("key_states" if form.of_rows else "row_states"), spans * tail_pass.parts(form, self.d)
            own = {**pieces.cuts, "extent": rows if form.of_rows else max(self.n_k, rows), "spans": spans}
        matrices, copied = tail_pass_launch.reached({m: matrices[m] for m in form.described}, results)
        launch = tail_pass_launch.launch_of(form, matrices, self.heads, self.kv_heads)
        programs *= self.batch * self.kv_heads
        counts = 1 + programs // 2 if "counts_ptr" in launch.decided else 0
        return Step.of(launch, programs, {**self.values, **own, "each": pieces.each}, values, copied, counts)

    def _prepare(self, name: str, config: TailConfig, matrices: dict[str, torch.Tensor]) -> Launch:
        described = described_by(matrices, self.dtype)
        source: TailSource = (scans if self.each else generate)(replace(self.form, described=described))
        constants = tail_configs.constants(config, self.configs.slot, self.d, self.dv, self.heads, self.heads // self.kv_heads)
        return prepare(source, name, config, matrices, constants | {"PRECISION": self.precision, "ADD": self.add}, described)

    def _tiles(self, name: str, config: TailConfig) -> dict[str, int]:
        """Tiles of rows, or keys, that programs take, and the first one of rows; the slots that are summed, all but the last, or the first."""
        if name in SCANS:
            return {}
        if name in STATES:
            return {"first_slot": int(name == "row_states"), "needed": self.slots.count - 1}
        slot, slots = self.configs.slot, self.slots
        if name in ("backward_k", "backward_v"):
            return {"tiles": slots.count * slot // config.block_n if slots.first is not None else -(-self.n_k // config.block_n)}
        if slots.first is not None:
            return {"tiles": slots.count * slot // config.block_m, "first_tile": 0}
        first = max(-slots.offset, 0) // config.block_m
        return {"tiles": max(-(-(self.n_q - slots.offset) // config.block_m) - first, 0), "first_tile": first}

    def _programs(self, name: str, config: TailConfig, values: dict) -> int:
        if name not in STATES + SCANS:
            return self.batch * (self.kv_heads if name in ("backward_k", "backward_v") else self.heads) * values["tiles"]
        each = values["needed"] if name in STATES else -(-values["slots"] // values["span"])
        return self.batch * self.kv_heads * self.form.halves * self._slices(config) * each

    def _step_down(self, name: str, config: TailConfig, error: OutOfResources) -> None:
        """Replace a configuration that needs more than the device has.  Raises BackendError if there is no smaller one."""
        less = tail_configs.smaller(config)
        if less is None or self.call.configs:
            what = f"{name} of the linear tail needs more than this device has: {error}"
            raise BackendError(what, fix='use a smaller head dimension, or backend="cpu"') from error
        _chosen[self._kind(name)] = less

    def _kind(self, name: str) -> tuple:
        """What memory a kernel needs depends on these."""
        return name, self.configs.of[name], self.form, bool(self.each), self.dtype, self.d, self.dv
