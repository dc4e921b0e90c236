"""Running the kernels of a linear tail: tensors and the slots of a plan in, sums and gradients out.

Shapes: q [B, H, n_q, D], k [B, Hkv, n_k, D], v [B, Hkv, n_k, Dv], of one dtype; o [B, H, n_q, Dv] and the sums of weights
[B, H, n_q] in float32 (o in bfloat16 for bfloat16 inputs).  D and Dv are at most `WIDEST`.  Everything is checked by the caller.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from triton.runtime.errors import OutOfResources

from patternc.codegen import cache, tail_configs
from patternc.codegen.device import on, precision, processors
from patternc.codegen.launch import _empty, _rows
from patternc.codegen.prepared import _strides
from patternc.codegen.tail_configs import SCAN_WIDTH, TailConfig
from patternc.codegen.tail_kernels import SLICED, TailSource, generate
from patternc.codegen.tail_text import Form
from patternc.errors import BackendError
from patternc.tail import result_of
from patternc.tail_slots import Slots

WIDEST = 128  # head dimension of keys and of values that a state in registers allows


@dataclass(frozen=True, eq=False)
class SlotTables:
    """Slots with their tables on a device.

    Attributes:
        tensors: int32 tensors (uint8 for `live`) by the name of their parameter.
        per_row: 1 where every batch row has tables of its own, else 0.
    """

    slots: Slots
    tensors: dict[str, torch.Tensor]
    per_row: int

    @staticmethod
    def of(slots: Slots, device: torch.device) -> SlotTables:
        tables = {name: getattr(slots, name) for name in ("first", "last", "low", "base", "live")}
        tensors = {f"{name}_ptr": torch.from_numpy(x) for name, x in tables.items() if x is not None}
        tensors = {name: (x.to(torch.uint8) if name == "live_ptr" else x).to(device, non_blocking=True) for name, x in tensors.items()}
        return SlotTables(slots, tensors, int(any(len(x) > 1 for x in tensors.values())))


@dataclass
class TailCall:
    """What is the same for all kernels of one call.

    Attributes:
        feature: a name in `tail_text.FEATURES`.
        tables: `tables(block)`, the slots for at most `block` keys and rows.
        span: slots of a segment; None chooses.
        configs: configurations by kernel that replace the built-in ones; all have one `block`.
        watch: called as `watch(name, launch)` in the place of every launch, for those who time them.
    """

    feature: str
    tables: Callable[[int], SlotTables]
    span: int | None = None
    configs: dict[str, TailConfig] = field(default_factory=dict)
    watch: Callable[[str, Callable], None] = lambda name, launch: launch()


def tail_forward(call: TailCall, q, k, v, sums: bool, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`(o, sums of weights or None, states that enter the segments)`.

    Args:
        keep: return the states, which save the backward a pass over keys and values.  Else they may not even be made: where heads
            fill the device, each goes through its whole sequence.
    """
    run = _Run(call, q, k, v, sums, keep)
    q, k, v = run.operands(q, k, v)
    states = run.key_states(k, v)
    o = _empty(q, q.shape[2], v.shape[3], result_of(v.dtype))
    weights = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if sums else None
    run.launch("forward", {"q": q, "k": k, "v": v, "o": o}, {"sums_ptr": weights, "states_ptr": states})
    run.clear(o, weights)
    return o, weights, states if keep else None


def tail_backward(call: TailCall, q, k, v, do, dsums=None, states: torch.Tensor | None = None):
    """`(dq, dk, dv)` from the forward's inputs, the gradients of its results, and its states where they were kept."""
    run = _Run(call, q, k, v, dsums is not None, True)
    out = q.dtype, k.dtype, v.dtype
    q, k, v = run.operands(q, k, v)
    states = run.key_states(k, v) if states is None else states
    centre = v.mean(2, dtype=torch.float32)
    dsums = None if dsums is None else dsums.contiguous()
    extra = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    run.launch("extras", {"do": _rows(do, warn=False)}, {"centre_ptr": centre, "dsums_ptr": dsums, "extra_ptr": extra})
    do = _rows(do.to(v.dtype), warn=False)
    matrices = {"q": q, "k": k, "v": v, "do": do}
    parts = [_empty(q, q.shape[2], q.shape[3], out[0]) for _ in range(run.source.form.halves)]
    vectors = {"extra_ptr": extra, "centre_ptr": centre, "states_ptr": states, "dq2_ptr": parts[-1]}
    run.launch("backward_q", {**matrices, "dq": parts[0]}, vectors)
    dq = _added(parts)
    run.clear(dq)
    states = run.row_states(q, do, dsums)
    parts = [_empty(k, k.shape[2], k.shape[3], out[1]) for _ in range(run.source.form.halves)]
    run.launch("backward_k", {**matrices, "dk": parts[0]}, {"extra_ptr": dsums, "states_ptr": states, "dk2_ptr": parts[-1]})
    dk = _added(parts)
    dv = _empty(v, v.shape[2], v.shape[3], out[2])
    run.launch("backward_v", {"q": q, "k": k, "do": do, "dv": dv}, {"states_ptr": states})
    return dq, dk, dv


def _added(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])


def operand_of(dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """The dtype of operands for inputs of a dtype, and how products of float32 round.

    float16 would overflow in states and products: its operands are rounded to tf32, which has as many digits.
    """
    return (torch.float32, "tf32") if dtype == torch.float16 else (dtype, precision(dtype))


_chosen: dict[tuple, TailConfig] = {}  # configurations in use; one that does not fit is replaced by a smaller one


class _Run:
    """The kernels of a call on tensors of one shape."""

    def __init__(self, call: TailCall, q, k, v, sums: bool, segments: bool):
        self.dtype, self.precision = operand_of(q.dtype)
        self.call, self.device = call, q.device
        self.batch, self.kv_heads = k.shape[:2]
        self.block = next(iter(call.configs.values())).block if call.configs else tail_configs.block_of(self.dtype.itemsize, self.precision)
        self.tables = call.tables(self.block)
        slots = self.tables.slots
        tables = (x is not None for x in (slots.first, slots.low, slots.live))
        self.source: TailSource = generate(Form(call.feature, sums, *tables, slots.mirrored))
        self.sizes = q.shape[3], v.shape[3], q.shape[1], q.shape[1] // k.shape[1]
        pairs = self.batch * self.kv_heads
        self.span = call.span or tail_configs.span_of(pairs, slots.count, slots.block, processors(self.device))
        if not segments and tail_configs.one_pass(pairs * self._parts("forward"), processors(self.device)):
            self.span = slots.count
        self.segments = -(-slots.count // self.span)
        values = {"slots": slots.count, "span": self.span, "n_q": q.shape[2], "n_k": k.shape[2], "per_row": self.tables.per_row}
        self.values = {**values, "offset": slots.offset, "kv_heads": self.kv_heads, **self.tables.tensors}

    def operands(self, *tensors):
        return [_rows(x.to(self.dtype)) for x in tensors]

    def clear(self, *results) -> None:
        """Rows before the first slot read nothing."""
        offset = self.tables.slots.offset
        for x in results if offset is not None and offset > 0 else ():
            if x is not None:
                (x[:, :, max(x.shape[2] - offset, 0) :] if self.tables.slots.mirrored else x[:, :, :offset]).zero_()

    def key_states(self, k, v) -> torch.Tensor:
        return self._states("key_states", {"k": k, "v": v}, {}, False)

    def row_states(self, q, do, dsums) -> torch.Tensor:
        return self._states("row_states", {"q": q, "do": do}, {"extra_ptr": dsums}, True)

    def _states(self, name: str, matrices: dict, vectors: dict, reverse: bool) -> torch.Tensor:
        """The states that enter the segments: zero where there is one segment."""
        d, dv, *_ = self.sizes
        width = self.source.form.halves * d * (dv + 1)
        shape = self.batch, self.kv_heads, self.segments, width
        if self.segments == 1:
            return torch.zeros(shape, dtype=torch.float32, device=self.device)
        states = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.launch(name, matrices, {**vectors, "states_ptr": states})
        self.launch("scan", {}, {"states_ptr": states}, reverse)
        return states

    def launch(self, name: str, matrices: dict[str, torch.Tensor], vectors: dict, reverse: bool = False) -> None:
        kernel = self.source.kernels[name]
        while True:
            config = self._config(name)
            constants = tail_configs.constants(config, self.source.form, *self.sizes)
            align = math.gcd(16, *(s for x in matrices.values() for s in _strides(x)))
            constants |= {"ALIGN": align, "PRECISION": self.precision, "REVERSE": reverse}
            values = {**self.values, **vectors, **constants}
            for matrix, x in matrices.items():
                strides = (s // align for s in _strides(x))
                values |= {f"{matrix}_ptr": x, **dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), strides))}
            values = {p: values[p] for p in (*kernel.parameters, *kernel.constants)}
            grid = self._programs(name, constants)
            function = getattr(cache.load(self.source.text), name)
            launch = functools.partial(function[(grid,)], **values, num_warps=config.warps, num_stages=config.stages)
            try:
                with on(self.device):
                    self.call.watch(name, launch)
                return
            except OutOfResources as error:
                self._step_down(name, config, error)

    def _programs(self, name: str, constants: dict) -> int:
        pairs = self.batch * self.kv_heads
        if name == "extras":
            return self.batch * self.sizes[2] * -(-self.values["n_q"] // constants["BLOCK"])
        if name == "scan":
            return pairs * -(-constants["WIDTH"] // SCAN_WIDTH)
        return pairs * self.segments * self._parts(name)

    def _parts(self, name: str) -> int:
        """Programs that work on one segment and key head."""
        slices = -(-self.sizes[1] // tail_configs.constants(self._config(name), self.source.form, *self.sizes)["SLICE"])
        return slices if name in SLICED else self.source.form.halves

    def _key(self, name: str) -> tuple:
        return name, self.source.form, self.dtype, self.precision, self.device, *self.sizes

    def _config(self, name: str) -> TailConfig:
        if name in self.call.configs:
            return self.call.configs[name]
        key = self._key(name)
        if key not in _chosen:
            _chosen[key] = tail_configs.choose(self.dtype.itemsize, self.precision)
        return _chosen[key]

    def _step_down(self, name: str, config: TailConfig, error: OutOfResources) -> None:
        """A smaller configuration for what did not fit.  Raises BackendError if there is none."""
        less = tail_configs.smaller(config)
        if less is None or name in self.call.configs:
            message = f"no configuration of `{name}` fits this device at head_dim {self.sizes[0]}, {self.sizes[1]}: {error}"
            raise BackendError(message, fix='use backend="cpu", or a smaller head_dim') from error
        _chosen[self._key(name)] = less
