"""A term's sums over the sums of its weights, added to an exact part: kernels of `norm="denominator"`.

    y = o + t / w          where w = 0: y = o

Gradients: that of o is dy itself, dt = dy / w, dw = -(dy . t) / w^2.
"""

from __future__ import annotations

import torch

from patternc.codegen import row_kernels as rows
from patternc.codegen.frame import header, indent
from patternc.codegen.matrices import empty, in_rows

INVERSE = [
    "ok = first + tl.arange(0, BLOCK) < n_q",
    rows.VECTOR,
    "w = tl.load(w_ptr + at, mask=ok, other=0.0)",
    "inverse = tl.where(w != 0, 1.0 / tl.where(w != 0, w, 1.0), 0.0)",
    rows.load("t"),
]


def _program() -> list[str]:
    return [*rows.program("BLOCK"), "first = program % parts * BLOCK"]


def _forward() -> str:
    body = [
        *_program(), *rows.bases("t", "y"), *INVERSE,
        "y = t * inverse[:, None]",
        "if ADD:", *("    " + line for line in (*rows.bases("o"), rows.load("o"), "y += o")),
        rows.store("y"),
    ]  # fmt: skip
    parameters = [*rows.parameters("t", "y", "o"), "w_ptr", "n_q"]
    return header("quotient", parameters, [*rows.CONSTANTS, "ADD"], "y = o + t / w, one program a tile of rows.") + indent(body)


def _backward() -> str:
    body = [
        *_program(), *rows.bases("t", "dy", "dt"), *INVERSE, rows.load("dy"),
        "tl.store(dw_ptr + at, -tl.sum(dy * t, 1) * inverse * inverse, mask=ok)",
        "dt = dy * inverse[:, None]",
        rows.store("dt"),
    ]  # fmt: skip
    return header("backward_quotient", [*rows.parameters("t", "dy", "dt"), "w_ptr", "dw_ptr", "n_q"], rows.CONSTANTS, "dt and dw.") + indent(body)


TEXT = rows.module("Sums over the sums of their weights", _forward(), _backward())


def quotient(o: torch.Tensor | None, t: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """o + t / w in a dtype: o, t [B, H, n, dv], o of that dtype or None for 0, w [B, H, n] in float32."""
    t = in_rows(t, warn=False)
    y = empty(t, t.shape[2], t.shape[3], dtype)
    rows.launch(TEXT, "quotient", {"t": t, "y": y, "o": y if o is None else in_rows(o)}, {"w": w.contiguous()}, ADD=o is not None)
    return y


def backward_quotient(dy: torch.Tensor, t: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of t, in its dtype, and of w."""
    t, dy, w = in_rows(t, warn=False), in_rows(dy, warn=False), w.contiguous()
    dt, dw = empty(t, t.shape[2], t.shape[3], t.dtype), torch.empty_like(w)
    rows.launch(TEXT, "backward_quotient", {"t": t, "dy": dy, "dt": dt}, {"w": w, "dw": dw})
    return dt, dw
