"""Calls that were made before: on inputs of equal layouts only results are allocated, and kernels launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patternc.codegen import fused_launch
from patternc.codegen.call import Call
from patternc.codegen.device import on
from patternc.codegen.fused_order import Order
from patternc.codegen.launch import LOG2E, Partial, in_order, is_scattered, layout_of, of_rows, row_vectors, values_of
from patternc.codegen.matrices import Room
from patternc.codegen.ready import Ready

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Known:
    """A forward.

    Attributes:
        parts: for each part of the pattern its kernel, and memory for its `o` and `lse`; later ones put what was found together.
    """

    parts: tuple[tuple[Ready, Room, Room], ...]
    score_scale: float

    @staticmethod
    def of(calls: list[Call], tape: list[Ready], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Known | None:
        """From what was launched; None where a call makes copies, scales by less than 0, or has args that may change."""
        if not _lasts(calls, tape, q, k, v):
            return None
        b, heads, n, _ = q.shape
        lse = Room((b, heads, n), (heads * n, n, 1), torch.float32, q.device)
        rooms = (Room.of(q, n, v.shape[3], q.dtype if ready is tape[-1] else torch.float32) for ready in tape)
        return Known(tuple((ready, o, lse) for ready, o in zip(tape, rooms)), calls[0].scale * LOG2E)

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Partial:
        """`(o, lse)`."""
        values, matrices = {"score_scale": self.score_scale}, {"q": q, "k": k, "v": v}
        with on(q.device):
            for ready, for_o, for_lse in self.parts:
                o, lse = for_o.new(), for_lse.new()
                ready.again({**values, "lse_ptr": lse}, {**matrices, "o": o}, q.device)
                values["lse0_ptr"], matrices["o0"] = lse, o
        return o, lse


@dataclass(frozen=True)
class Chain:
    """The kernels that find dq, or dk and dv, one for each part of the pattern.

    Attributes:
        results: names of what they find.
        parts: a kernel each, the call that it is of, memory for its results, and by parameter which vector of rows it is, delta or lse; None
            where these are put in another order first.
    """

    results: tuple[str, ...]
    parts: tuple[tuple[Ready, Call, tuple[Room, ...], dict[str, int] | None], ...]

    @staticmethod
    def of(calls: list[Call], tape: list[Ready], likes: Tensors) -> Chain:
        """From what was launched; results are laid out as `likes`, by their names."""
        parts = []
        for call, ready in zip(calls, tape, strict=True):
            rooms = tuple(Room.of(x, x.shape[2], x.shape[3], x.dtype if ready is tape[-1] else torch.float32) for x in likes.values())
            members = call.members(ready.name)
            moved = any(is_scattered(member, ready.name) for member in members)
            parts.append((ready, call, rooms, None if moved else values_of(ready, {}, [{"delta_ptr": 0, "lse2_ptr": 1}] * len(members))))
        return Chain(tuple(likes), tuple(parts))

    def run(self, values: dict, matrices: Tensors, both: torch.Tensor, vectors: tuple, onto: tuple | None) -> tuple[torch.Tensor, ...]:
        """The results; `vectors` are those of `both`."""
        matrices, count = dict(matrices), matrices["q"].shape[2]
        for ready, call, rooms, places in self.parts:
            found = onto if onto is not None and ready is self.parts[-1][0] else [room.new() for room in rooms]
            matrices |= zip(self.results, found)
            own = {x: vectors[i] for x, i in places.items()} if places is not None else values_of(ready, {}, in_order(call, ready.name, both, count))
            ready.again({**values, **own}, matrices, both.device)
            if len(self.parts) > 1:
                matrices |= {f"{name}0": x for name, x in zip(self.results, found)}
        return found


@dataclass(frozen=True)
class KnownBackward:
    """A backward.

    Attributes:
        rows: what finds the vectors of rows, where they are not given.
        dq, dkdv: kernels that find these apart.
        fused: the kernel that finds all in their place, in which order it adds to dq, and memory for dq, dk and dv.
    """

    scale: float
    rows: Ready | None
    dq: Chain | None
    dkdv: Chain | None
    fused: tuple[Ready, Order, tuple[Room, ...]] | None = None

    @staticmethod
    def of(queries: list[Call], keys: list[Call], tape: list[Ready], q, k, v, o, do, vectors: torch.Tensor | None) -> KnownBackward | None:
        """As for a forward; `queries` and `keys` are calls of the parts that dq is of, and dk and dv."""
        rows, rest = tape[: vectors is None], tape[vectors is None :]
        scale, first = queries[0].scale, rows[0] if rows else None
        if not _lasts(queries[: len(rows)], rows, o, do):
            return None
        if [ready.name for ready in rest] == ["backward"]:
            rooms = tuple(Room.of(x, x.shape[2], x.shape[3], x.dtype) for x in (q, k, v))
            fused = rest[0], queries[0].order(q.shape[3]), rooms
            return KnownBackward(scale, first, None, None, fused) if _lasts(queries, rest, q, k, v, do) else None
        keys = [part for call in keys for part in call.by_key_heads(q.shape[1] // k.shape[1])]
        if not _lasts([*queries, *keys], rest, q, k, v, do):
            return None
        count = len(queries)
        return KnownBackward(scale, first, Chain.of(queries, rest[:count], {"dq": q}), Chain.of(keys, rest[count:], {"dk": k, "dv": v}))

    def run(self, q, k, v, o, lse, do, dlse, onto: tuple | None = None, both: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """`(dq, dk, dv)`, as from `launch.attention_backward`; `both` are the vectors of rows where they are known."""
        given, both = both is not None, row_vectors(lse) if both is None else both
        vectors = both.unbind()
        values, matrices = {"scale": self.scale, "score_scale": self.scale * LOG2E}, {"q": q, "k": k, "v": v, "do": do}
        with on(q.device):
            if not given:
                own = {"lse_ptr": lse, "dlse_ptr": of_rows(dlse), "delta_ptr": vectors[0], "lse2_ptr": vectors[1]}
                usual = dlse is None and lse.data_ptr() % 16 == 0
                (self.rows.again if usual else self.rows.run)(own, {"o": o, "do": do}, q.device)
            if self.fused is None:
                (dq,) = self.dq.run(values, matrices, both, vectors, onto and onto[:1])
                return dq, *self.dkdv.run(values, matrices, both, vectors, onto and onto[1:])
            fused, order, rooms = self.fused
            results = onto or tuple(room.new() for room in rooms)
            fused_launch.gradients(order, lambda own, more: fused.again(more, own, q.device), matrices, results, values, vectors)
            return results


def _lasts(calls: list[Call], tape: list[Ready], *matrices: torch.Tensor) -> bool:
    """Whether what calls launched serves again: on these matrices themselves, the first that kernels take, and with values that are kept,
    as those of calls whose args may change and those of a CUDA graph are not."""
    layouts = tuple(map(layout_of, matrices))
    kept = all(call.scale > 0 and any(x is ready for x in (call.ready or {}).values()) for call, ready in zip(calls, tape, strict=True))
    return kept and all(ready.grid and ready.layouts[: len(layouts)] == layouts for ready in tape)
