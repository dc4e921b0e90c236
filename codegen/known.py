"""Calls that were made before: on inputs of equal layouts only results are allocated, and kernels launched."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patternc.codegen.call import Call
from patternc.codegen.launch import LOG2E, Partial, gradient_of_lse, in_order, layout_of, row_vectors
from patternc.codegen.matrices import empty
from patternc.codegen.ready import Ready


@dataclass(frozen=True)
class Known:
    """A forward: one kernel, and what puts its pieces together."""

    ready: Ready
    score_scale: float

    @staticmethod
    def of(call: Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Known | None:
        """None where a call makes copies, scales by less than 0, or has args that may change."""
        ready = _ready(call, "forward", q, k, v)
        return ready and Known(ready, call.scale * LOG2E)

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Partial:
        """`(o, lse)`."""
        b, heads, n_q, _ = q.shape
        o = empty(q, n_q, v.shape[3], q.dtype)
        lse = torch.empty(b, heads, n_q, dtype=torch.float32, device=q.device)  # numbers are read in half the time of a shape
        self.ready.run({"lse_ptr": lse, "score_scale": self.score_scale}, {"q": q, "k": k, "v": v, "o": o}, q.device)
        return o, lse


@dataclass(frozen=True)
class KnownBackward:
    """A backward: its three kernels, and what puts pieces together; no kernel of rows where their vectors are given."""

    rows: Ready | None
    dq: Ready
    dkdv: Ready
    call: Call

    @staticmethod
    def of(call: Call, q, k, v, o, do, found: tuple, vectors: torch.Tensor | None) -> KnownBackward | None:
        """From a backward that `found` gradients; None as for a forward, and where groups of heads have kernels of their own."""
        if "heads" in (call.plan.forward.kind, call.plan.transposed.kind):
            return None
        dq, dk, dv = found
        inputs = q, k, v, do
        kernels = _ready(call, "backward_dq", *inputs, dq), _ready(call, "backward_dkdv", *inputs, dk, dv)
        rows = _ready(call, "backward_rows", o, do) if vectors is None else None
        return KnownBackward(rows, *kernels, call) if all(kernels) and (rows or vectors is not None) else None

    def run(self, q, k, v, o, lse, do, dlse, onto: tuple | None = None, vectors: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """`(dq, dk, dv)`, as from `launch.attention_backward`."""
        both = row_vectors(lse) if vectors is None else vectors
        of_rows = dict(zip(("delta_ptr", "lse2_ptr"), both))
        if vectors is None:
            self.rows.run({"lse_ptr": lse, "dlse_ptr": gradient_of_lse(lse, dlse), **of_rows}, {"o": o, "do": do}, q.device)
        dq, dk, dv = onto or (empty(x, x.shape[2], x.shape[3], x.dtype) for x in (q, k, v))
        scale = self.call.scale
        values = {"scale": scale, "score_scale": scale * LOG2E, **of_rows}
        matrices = {"q": q, "k": k, "v": v, "do": do}
        self.dq.run(values, {**matrices, "dq": dq}, q.device)
        (own,) = in_order(self.call, "backward_dkdv", both, q.shape[2])
        self.dkdv.run(values | own, {**matrices, "dk": dk, "dv": dv}, q.device)
        return dq, dk, dv


def _ready(call: Call, name: str, *matrices: torch.Tensor) -> Ready | None:
    """What a kernel is launched with on matrices of these layouts, the first that it takes; None where that is not kept, or not all of it."""
    layouts = tuple(map(layout_of, matrices))
    found = [x for key, x in (call.ready or {}).items() if key[0] == name and not key[4] and key[5 : 5 + len(layouts)] == layouts]
    return found[0] if len(found) == 1 and call.scale > 0 and found[0].grid else None
