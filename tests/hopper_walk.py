"""The tiles that the text of a Hopper forward visits, and the pairs that its mask leaves: its own functions, run on numbers."""

from __future__ import annotations

import ast
import inspect
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

import patternc as pc
from patternc.args import bind
from patternc.codegen import configs, hopper, hopper_ring
from patternc.codegen.backend import call_of
from patternc.codegen.parameters import runtime_values
from patternc.runtime import compiled

PATTERNS = {
    "full": pc.full, "causal": pc.causal, "window": pc.causal & pc.window(512), "streaming": pc.causal & (pc.window(512) | pc.sink(4)),
    "documents": pc.causal & pc.documents(pc.arg("ids")), "lists": pc.random_blocks(3, 64, seed=0) | pc.window(30), "choices": pc.causal & (pc.k // 16 % 8 == 7),
}  # fmt: skip
WALKS = [
    *PATTERNS.values(), (pc.q >= 300) & (pc.k < 50), pc.k < pc.q, pc.causal & (pc.window(200) | pc.dilate(256)), pc.causal & pc.documents(pc.arg("ids")) & pc.valid(pc.arg("m")),
    (pc.h < 1) & pc.causal | (pc.h >= 1) & pc.window(90), pc.causal & (pc.dilate(3) | pc.cols([1, 5, 200])), pc.rows([3, 400]) | pc.window(70),
]  # fmt: skip


class Pointer:
    """Into a flat array."""

    def __init__(self, data, offset=0):
        self.data, self.offset = data, offset

    def __add__(self, more):
        return Pointer(self.data, self.offset + more)


def load(pointer, mask=None, other=0):
    offset = np.asarray(pointer.offset)
    if mask is None:
        assert (offset >= 0).all() and (offset < len(pointer.data)).all(), "a read outside its tensor"
        return pointer.data[offset]
    offset, mask = np.broadcast_arrays(offset, mask)
    assert (offset[mask] >= 0).all() and (offset[mask] < len(pointer.data)).all(), "a read outside its tensor"
    return np.where(mask, pointer.data[np.where(mask, offset, 0)], other)


TL = SimpleNamespace(
    where=np.where, maximum=np.maximum, minimum=np.minimum, cdiv=lambda a, b: -(-a // b), cast=lambda x, _: x, abs=np.abs, load=load, int32=0, int64=0,
    arange=lambda a, b, _: np.arange(a, b), SliceLayout=lambda *_: None, constexpr=None,
)  # fmt: skip


def walk(p, n_q: int, n_k: int, heads: int, args: dict, pack: int, consumers: int = 2, head_dim: int = 128):
    """`(times, seen)`, [heads, n_q, n_k]: how often each pair is in a visited tile, and whether the kernel takes it there."""
    q, k = (torch.zeros(1, heads, n, head_dim) for n in (n_q, n_k))
    own, config = compiled(p), configs.HOPPER["forward", head_dim][0]
    tile = hopper.RowTile(pack, consumers, pack > 1 and consumers == 2 and hopper.narrow(own.plan))
    config = replace(config, block_m=tile.positions)
    call = replace(call_of(own, 1.0, bind(p, args, n_q, n_k, heads=heads, q_start=max(0, n_k - n_q)), q, k, k), plan=own.plan)
    source, frame = hopper.generate(own.plan, tile.narrow, consumers), hopper.HopperFrame(own.plan, tile.narrow)
    space = hopper_ring.Machine([], (0, 1, 2), False).modules() | {"tl": TL}
    tree = hopper_ring.coroutines(ast.parse(source.text))
    exec(compile(tree, "<walk>", "exec"), space)
    found = next(ast.unparse(n.body[-1].value) for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_find_tiles").strip("()").split(", ")
    values = runtime_values(call, source.kernels["forward"], config, torch.device("cpu")) | {"n_q": n_q, "n_k": n_k, "s_layout": None, "layout": None, "PACK": pack}
    values = {name: Pointer(x.numpy().reshape(-1)) if isinstance(x, torch.Tensor) else x for name, x in values.items()}
    values |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "b": 0, "first_col": 0}
    space["_scalar"] = lambda value, offset: value

    def run(name: str, **own):
        function = space[name]
        return function(*((values | own)[parameter] for parameter in inspect.signature(function).parameters))

    times, seen = np.zeros((heads, n_q, n_k), int), np.zeros((heads, n_q, n_k), bool)

    def visit(h: int, first: int, start: int, masked: bool, s: np.ndarray) -> None:
        """Count a tile of columns for the rows from `first` on."""
        rows, columns = slice(first, min(n_q, first + len(s))), slice(max(start, 0), min(n_k, start + s.shape[1]))
        times[h, rows, columns] += 1
        seen[h, rows, columns] = (s == 0)[: max(rows.stop - rows.start, 0), columns.start - start : max(columns.stop - start, 0)]
        assert masked or columns.stop - columns.start == s.shape[1], "a full tile ends within the columns"

    def rows_of(count: int, **given) -> np.ndarray:
        values.update(given | dict(zip(found, run("_find_tiles", **given))))
        values["q_row"] = (values["r0"] + np.arange(count))[:, None]
        for line in frame.row_lines:
            exec(line, space | values, values)
        return np.zeros((count, config.block_n))

    def masked(s: np.ndarray, start: int) -> np.ndarray:
        return run("_masked", s=s, start=start, COLUMNS=config.block_n) if frame.mask else s

    for h, tile_number in itertools.product(range(heads), range(-(-n_q // config.block_m))):
        values["h"], first = h, tile_number * config.block_m
        if frame.ranged:
            rows_of(config.block_m, first=first, rows=config.block_m)
            whole = values["start_0"], values["stop_0"]
            for own in range(consumers):
                count = 64 // pack
                begin = first + own * count
                s = rows_of(count, first=begin, rows=count)
                early, mine, late = space["_share"](*whole, values["start_0"], values["stop_0"])
                assert min(early, late) >= 0 and mine >= 1 and early + mine + late == max(whole[1] - whole[0], 1)
                for at in range(whole[0] + early, whole[0] + early + mine):
                    partial = at < values["full_start_0"] or at >= values["full_stop_0"]
                    visit(h, begin, at * config.block_n, partial, masked(s, at * config.block_n) if partial else s)
            continue
        s = rows_of(config.block_m, tile=tile_number)
        if tile.narrow:
            some = [np.zeros((64, config.block_m)) for _ in range(2)]
            if frame.mask:
                some = [run("_masked_first", s=s0, start=values["r0"], COLUMNS=config.block_m, own=i) for i, s0 in enumerate(some)]
            visit(h, first, values["r0"], True, np.concatenate([x[: 64 // pack] for x in some]))
        for kind in ("partial", "full"):
            for i in range(values[f"{kind}_count"]):
                start = int(run(f"_{kind}_tile", i=i)) * config.block_n + (values["first_col"] if tile.narrow else 0)
                visit(h, first, start, kind == "partial", masked(s, start) if kind == "partial" else s)
    return times, seen
