"""Running the kernels of block sums: tensors and a plan's blocks in, sums and gradients out.

Shapes and dtypes are those of `tail_launch`.  States are there for some pairs of batch row and key head at a time, so that what they take
does not grow with the number of heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from triton.runtime.errors import OutOfResources

from patternc.codegen import tail_configs
from patternc.codegen.configs import padded
from patternc.codegen.device import on
from patternc.codegen.launches import Launch
from patternc.codegen.matrices import empty, in_rows
from patternc.codegen.parameters import argument_values
from patternc.codegen.tail_blocks import BlockSource, generate
from patternc.codegen.tail_blocks_text import BlockForm
from patternc.codegen.tail_call import at_once
from patternc.codegen.tail_configs import TailConfig, TailConfigs
from patternc.codegen.tail_steps import described_by, operand_of, prepare
from patternc.errors import BackendError
from patternc.expr.pattern import Pattern
from patternc.tail import result_of
from patternc.tail_blocks import CHUNK, SUPER, TARGETS, Blocks, Lists, Sums

WORKSPACE = 64 << 20  # bytes of states that are there at a time, or a quarter of the inputs and the output if that is more
SLAB = 128  # entries of states that a program of `block_sums` takes
SUMS = TailConfig(TARGETS, CHUNK, SLAB, 4, 3)
STATES = TailConfig(64, 64, 128, 8, 3)
WIDE = dict.fromkeys(("backward_q", "backward_k"), TailConfig(64, 64, 128, 8, 2))  # these spill with four warps


@dataclass(frozen=True, eq=False)
class BlockTables:
    """Blocks with their tables on a device, by the name of their parameter."""

    blocks: Blocks
    rows: dict[str, torch.Tensor]
    keys: dict[str, torch.Tensor]
    reads: dict[str, torch.Tensor]
    feeds: dict[str, torch.Tensor]

    @staticmethod
    def of(blocks: Blocks, device: torch.device) -> BlockTables:
        def move(x: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(device, non_blocking=True)

        def lists(x: Lists) -> dict:
            return {"begin_ptr": move(x.begin), "entries_ptr": move(x.entries)}

        def sums(x: Sums, which: np.ndarray) -> dict:
            return {"sum_list_ptr": move(which), "begin_ptr": move(x.begin), "column_ptr": move(x.columns), "weight_ptr": move(x.weights)}

        rows = lists(blocks.partial) | {"row_list_ptr": move(blocks.row_list)}
        keys = lists(blocks.partial_keys) | {"key_list_ptr": move(blocks.key_list)}
        if blocks.live_rows is not None:
            rows["live_rows_ptr"], keys["live_keys_ptr"] = move(blocks.live_rows), move(blocks.live_keys)
        return BlockTables(blocks, rows, keys, sums(blocks.reads, blocks.sum_list), sums(blocks.feeds, blocks.key_list))


@dataclass
class BlockCall:
    """What is the same for all kernels of one call.

    Attributes:
        feature: a name in `tail_text.FEATURES`.
        mask: R, as kernels print it.
        tables: the blocks of R.
        q_start, args: as in `call.Call`.
        configs: replaces the built-in configurations.
        workspace: bytes of states at a time; by default `WORKSPACE`, or more for large inputs.
        watch: as in `tail_call.TailCall`.
    """

    feature: str
    mask: Pattern
    tables: BlockTables
    q_start: int | torch.Tensor = 0
    args: dict = field(default_factory=dict)
    configs: TailConfigs | None = None
    workspace: int | None = None
    watch: Callable[[str, Callable], None] = at_once


def block_forward(call: BlockCall, q, k, v, sums: bool, onto: tuple | None = None) -> tuple:
    """`(o, sums of weights or None)`.

    Args:
        onto: `(o, sums)` that the results are written to.
    """
    run = _Run(call, q, k, v, sums, False)
    o, weights = onto or (
        empty(q, q.shape[2], v.shape[3], result_of(v.dtype)),
        torch.empty(q.shape[:3], dtype=torch.float32, device=q.device) if sums else None,
    )
    q, k, v = run.operands(q, k, v)
    for part in run.passes():
        run.launch("forward", part, {"q": q, "k": k, "v": v, "o": o}, {"sums_ptr": weights, **run.states_of_rows(part, k, v)})
    return o, weights


def block_backward(call: BlockCall, q, k, v, do, dsums=None, onto: tuple | None = None) -> tuple:
    """`(dq, dk, dv)` from the forward's inputs and the gradients of its results.

    Args:
        onto: gradients of q, k and v that the results are added to in place.
    """
    run = _Run(call, q, k, v, dsums is not None, onto is not None)
    dq, dk, dv = onto or (empty(x, x.shape[2], x.shape[3], x.dtype) for x in (q, k, v))
    q, k, v = run.operands(q, k, v)
    do = in_rows(do.to(v.dtype), warn=False)
    extra = {"dsums_ptr": None if dsums is None else dsums.contiguous()}
    matrices = {"q": q, "k": k, "v": v, "do": do}
    for part in run.passes():
        run.launch("backward_q", part, {**matrices, "dq": dq}, {**extra, **run.states_of_rows(part, k, v)})
        states = run.states_of_keys(part, q, do, extra)
        run.launch("backward_k", part, {**matrices, "dk": dk}, {**extra, **states})
        run.launch("backward_v", part, {"q": q, "k": k, "do": do, "dv": dv}, states)
    return dq, dk, dv


def choose(itemsize: int, precision: str, features: int, block: int) -> TailConfigs:
    """The configurations to try first, for tiles of `block` rows and keys: pointers need more registers than the descriptors of scans."""
    found = dict(tail_configs.choose(itemsize, precision, features, 1).of)
    if itemsize == 2:
        found |= {"key_states": STATES} | (WIDE if features > 128 else {})
    return TailConfigs(block, {name: replace(c, block_m=min(c.block_m, block), block_n=min(c.block_n, block)) for name, c in found.items()})


_chosen: dict[tuple, TailConfig] = {}  # configurations in use; one that does not fit is replaced by a smaller one
_launches: dict[tuple, Launch] = {}
MOST_LAUNCHES = 4096

Part = tuple[int, int]  # the first pair of batch row and key head of a pass, and how many there are


class _Run:
    """The kernels of a call on tensors of one shape."""

    def __init__(self, call: BlockCall, q, k, v, sums: bool, add: bool):
        self.call, self.add, self.device = call, add, q.device
        self.dtype, self.precision = operand_of(q.dtype)
        self.batch, self.kv_heads = k.shape[:2]
        self.heads, self.group = q.shape[1], q.shape[1] // k.shape[1]
        self.n_q, self.n_k, self.d, self.dv = q.shape[2], k.shape[2], q.shape[3], v.shape[3]
        self.blocks = call.tables.blocks
        self.each = self.group if self.blocks.apart else 1  # states of rows for each key head
        self.form = BlockForm.of(call.feature, sums, self.blocks.apart, self.blocks.live_rows is not None)
        self.configs = call.configs or choose(self.dtype.itemsize, self.precision, self.form.halves * self.d, self.blocks.block)
        self.source: BlockSource = generate(self.form, call.mask)
        self.size = self.form.halves * padded(self.d), padded(self.dv)
        self.centre = v.mean(2, dtype=torch.float32)
        self.values = {"n_q": self.n_q, "n_k": self.n_k, "centre_ptr": self.centre}
        entries = q.numel() + k.numel() + v.numel() + q.numel() // max(self.d, 1) * self.dv
        self.workspace = call.workspace or max(WORKSPACE, entries * q.element_size() // 4)

    def operands(self, *tensors):
        return [in_rows(x.to(self.dtype)) for x in tensors]

    def passes(self) -> list[Part]:
        """Some pairs at a time."""
        b = self.blocks
        cells = max(b.reads.width + self.each * b.rows, b.keys + self.each * b.feeds.width)
        pairs = self.batch * self.kv_heads
        most = max(1, self.workspace // max(cells * self.size[0] * (self.size[1] * self.dtype.itemsize + 4), 1))
        step = -(-pairs // -(-pairs // most))
        return [(first, min(step, pairs - first)) for first in range(0, pairs, step)]

    def states_of_rows(self, part: Part, k, v) -> dict:
        """What tiles of rows read."""
        reads, rows = self.blocks.reads, self.blocks.rows
        states, vectors = self._cells(part, reads.width), self._vectors(part, reads.width)
        given = {"states_ptr": states, "vectors_ptr": vectors, "states": reads.width, "blocks": self.blocks.keys}
        self.launch("key_states", part, {"k": k, "v": v}, given)
        return self._summed(part, reads, self.call.tables.reads, states, vectors, self.each, rows)

    def states_of_keys(self, part: Part, q, do, extra: dict) -> dict:
        """The gradients of the states of tiles of keys."""
        feeds, keys = self.blocks.feeds, self.blocks.keys
        states = self._cells(part, self.each * feeds.width)
        vectors = self._vectors(part, self.each * feeds.width) if self.form.sums else None
        given = {"states_ptr": states, "vectors_ptr": vectors, "states": feeds.width, "blocks": self.blocks.rows, **extra}
        self.launch("row_states", part, {"q": q, "do": do}, given)
        return self._summed(part, feeds, self.call.tables.feeds, states, vectors, 1, keys)

    def _cells(self, part: Part, count: int) -> torch.Tensor:
        return torch.empty(part[1], count, *self.size, dtype=self.dtype, device=self.device)

    def _vectors(self, part: Part, count: int) -> torch.Tensor:
        return torch.empty(part[1], count, self.size[0], dtype=torch.float32, device=self.device)

    def _summed(self, part: Part, sums: Sums, tables: dict, states, vectors, each: int, targets: int) -> dict:
        """Sums of states and of vectors, as parameters of the kernels that read them."""
        found = {"states_ptr": self._cells(part, each * targets), "vectors_ptr": None if vectors is None else self._vectors(part, each * targets)}
        for source, target, precision in ((states, found["states_ptr"], self.precision), (vectors, found["vectors_ptr"], "ieee")):
            if source is None:
                continue
            of_head = source.unflatten(1, (sums.heads, sums.width))
            of_head[:, :, sums.tiles : sums.padded].zero_()
            if sums.supers:
                count = sums.padded // SUPER
                torch.sum(of_head[:, :, : sums.padded].unflatten(2, (count, SUPER)), 3, out=of_head[:, :, sums.padded : sums.padded + count])
                of_head[:, :, sums.padded + count :].zero_()
            given = {"source_ptr": source, "target_ptr": target, "sources": sums.heads * sums.width, "targets": targets, "each": each}
            self.launch("block_sums", part, {}, {**given, **tables}, precision, source[0, 0].numel())
        return {**found, "states": targets}

    # Launching one kernel

    def launch(self, name: str, part: Part, matrices: dict[str, torch.Tensor], values: dict, precision: str | None = None, width: int = 0) -> None:
        """Run a kernel for a pass; `precision` of products and entries of a state are those of sums."""
        layout = tuple((m, x.dtype, x.shape, x.stride(), x.data_ptr() % 16) for m, x in matrices.items())
        values = {**self.values, **self._tables(name), **values, "first_pair": part[0]}
        kinds = precision or self.precision, width, self.dtype, self.device
        while True:
            config = self._config(name)
            sizes = self.batch, self.heads, self.kv_heads, self.d, self.dv
            key = name, self.add, self.source.text, self.configs.slot, config, sizes, *kinds, layout
            launch = _launches.get(key)
            if launch is None:
                launch = self._prepare(name, config, matrices, *kinds[:2])
                if len(_launches) >= MOST_LAUNCHES:
                    _launches.clear()
                _launches[key] = launch
            programs = self._programs(name, part, config, values, width)
            given = {p: values[p] for p in launch.kernel.parameters if p in values}
            try:
                with on(self.device):
                    if programs:
                        self.call.watch(name, functools.partial(launch.run, programs, given, matrices))
                return
            except OutOfResources as error:
                self._step_down(name, config, error)

    def _tables(self, name: str) -> dict:
        """Tables and args that a kernel reads."""
        tables = self.call.tables
        if name == "block_sums":
            return {}
        found = tables.keys if name in ("key_states", "backward_k", "backward_v") else tables.rows
        mask = self.source.masks.get(name)
        return found if mask is None else found | argument_values(self.call, mask.uses.scalars, mask.uses.arrays.values(), self.device)

    def _config(self, name: str) -> TailConfig:
        first = SUMS if name == "block_sums" else self.configs.of[name]
        return _chosen.get((name, first, self.form, self.dtype, self.d, self.dv), first)

    def _prepare(self, name: str, config: TailConfig, matrices: dict[str, torch.Tensor], precision: str, width: int) -> Launch:
        described = described_by(matrices, self.dtype)
        constants = tail_configs.constants(config, self.configs.slot, self.d, self.dv, self.heads, self.group)
        constants |= {"PRECISION": precision, "ADD": self.add, "TARGETS": TARGETS, "CHUNK": CHUNK, "WIDTH": width, "SLAB": min(config.slice, width)}
        return prepare(generate(replace(self.form, described=described), self.call.mask), name, config, matrices, constants, described)

    def _programs(self, name: str, part: Part, config: TailConfig, values: dict, width: int) -> int:
        slices = -(-padded(self.dv) // min(config.slice, padded(self.dv)))
        each = {
            "key_states": lambda: self.blocks.keys * self.form.halves * slices,
            "row_states": lambda: self.each * self.blocks.rows * self.form.halves * slices,
            "block_sums": lambda: values["each"] * -(-values["targets"] // TARGETS) * max(width // config.slice, 1),
            **dict.fromkeys(("forward", "backward_q"), lambda: self.group * -(-self.n_q // config.block_m)),
            **dict.fromkeys(("backward_k", "backward_v"), lambda: -(-self.n_k // config.block_n)),
        }[name]
        return part[1] * each()

    def _step_down(self, name: str, config: TailConfig, error: OutOfResources) -> None:
        """Replace a configuration that needs more than the device has.  Raises BackendError if there is no smaller one."""
        less = tail_configs.smaller(config)
        if less is None or self.call.configs:
            what = f"{name} of the linear tail needs more than this device has: {error}"
            raise BackendError(what, fix='use a smaller head dimension, or backend="cpu"') from error
        _chosen[name, SUMS if name == "block_sums" else self.configs.of[name], self.form, self.dtype, self.d, self.dv] = less
