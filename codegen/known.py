"""Calls that were made before: on inputs of equal layouts only results are allocated, and kernels launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patternc.codegen import fused_launch
from patternc.codegen.call import Call
from patternc.codegen.launch import LOG2E, Partial, gradient_of_lse, in_order, layout_of, row_vectors, values_of
from patternc.codegen.matrices import empty
from patternc.codegen.ready import Ready


@dataclass(frozen=True)
class Known:
    """A forward: for each part of the pattern one kernel, and what puts its pieces together."""

    parts: tuple[Ready, ...]
    score_scale: float

    @staticmethod
    def of(calls: list[Call], tape: list[Ready], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Known | None:
        """From what was launched; None where a call makes copies, scales by less than 0, or has args that may change."""
        return Known(tuple(tape), calls[0].scale * LOG2E) if _lasts(calls, tape, q, k, v) else None

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Partial:
        """`(o, lse)`."""
        b, heads, n_q, _ = q.shape
        before, lse_before = {}, {}
        for part in self.parts:
            o = empty(q, n_q, v.shape[3], q.dtype if part is self.parts[-1] else torch.float32)
            lse = torch.empty(b, heads, n_q, dtype=torch.float32, device=q.device)  # numbers are read in half the time of a shape
            part.run({"lse_ptr": lse, "score_scale": self.score_scale, **lse_before}, {"q": q, "k": k, "v": v, "o": o, **before}, q.device)
            before, lse_before = {"o0": o}, {"lse0_ptr": lse}
        return o, lse


@dataclass(frozen=True)
class KnownBackward:
    """A backward: its kernels for each part of the pattern, and what puts pieces together; no kernel of rows where their vectors are given.

    Attributes:
        queries, keys: calls of the parts that dq is of, and dk and dv.
    """

    rows: Ready | None
    dq: tuple[Ready, ...]
    dkdv: tuple[Ready, ...]
    queries: list[Call]
    keys: list[Call]
    fused: Ready | None = None  # in the place of both
    gaps: bool = False  # of its order

    @staticmethod
    def of(queries: list[Call], keys: list[Call], tape: list[Ready], q, k, v, o, do, vectors: torch.Tensor | None) -> KnownBackward | None:
        """As for a forward."""
        rows, rest = tape[: vectors is None], tape[vectors is None :]
        if [ready.name for ready in rest] == ["backward"]:
            alike = _lasts(queries[: len(rows)], rows, o, do) and _lasts(queries, rest, q, k, v, do)
            return KnownBackward(*rows or [None], (), (), queries, keys, rest[0], queries[0].order().gaps) if alike else None
        keys = [part for call in keys for part in call.by_key_heads(q.shape[1] // k.shape[1])]
        if not _lasts(queries[: len(rows)], rows, o, do) or not _lasts([*queries, *keys], rest, q, k, v, do):
            return None
        return KnownBackward(*rows or [None], tuple(rest[: len(queries)]), tuple(rest[len(queries) :]), queries, keys)

    def run(self, q, k, v, o, lse, do, dlse, onto: tuple | None = None, vectors: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """`(dq, dk, dv)`, as from `launch.attention_backward`."""
        both = row_vectors(lse) if vectors is None else vectors
        if vectors is None:
            delta, lse2 = both.unbind()
            of_rows = {"lse_ptr": lse, "dlse_ptr": gradient_of_lse(lse, dlse), "delta_ptr": delta, "lse2_ptr": lse2}
            self.rows.run(of_rows, {"o": o, "do": do}, q.device)
        dq, dk, dv = onto or (empty(x, x.shape[2], x.shape[3], x.dtype) for x in (q, k, v))
        scale = self.queries[0].scale
        values, matrices = {"scale": scale, "score_scale": scale * LOG2E}, {"q": q, "k": k, "v": v, "do": do}
        if self.fused is not None:
            fused_launch.gradients(self.gaps, lambda own, given: self.fused.run(given, own, q.device), matrices, (dq, dk, dv), values, both)
            return dq, dk, dv
        for chain, calls, results in ((self.dq, self.queries, {"dq": dq}), (self.dkdv, self.keys, {"dk": dk, "dv": dv})):
            before = {}
            for part, call in zip(chain, calls):
                mine = results if part is chain[-1] else {name: empty(x, x.shape[2], x.shape[3], torch.float32) for name, x in results.items()}
                own = values_of(part, values, in_order(call, part.name, both, q.shape[2]))
                part.run(own, {**matrices, **mine, **before}, q.device)
                before = {f"{name}0": x for name, x in mine.items()}
        return dq, dk, dv


def _lasts(calls: list[Call], tape: list[Ready], *matrices: torch.Tensor) -> bool:
    """Whether what calls launched serves again: on these matrices themselves, the first that kernels take, and with values that are kept,
    as those of calls whose args may change and those of a CUDA graph are not."""
    layouts = tuple(map(layout_of, matrices))
    kept = all(call.scale > 0 and any(x is ready for x in (call.ready or {}).values()) for call, ready in zip(calls, tape, strict=True))
    return kept and all(ready.grid and ready.layouts[: len(layouts)] == layouts for ready in tape)
