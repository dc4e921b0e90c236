"""Kernels beside dense attention in float64: plans to run, and the comparison of outputs, lse and all gradients."""

from __future__ import annotations

import math

import pytest
import torch

import patternc as pc
from patternc.codegen.configs import Config
from patternc.codegen.launch import Call, attention_backward, attention_forward
from patternc.expr.index import const
from patternc.plan import Q_START, R0, R1, AxisPlan, Plan, Run

MARKS = [pytest.mark.filterwarnings(f"ignore:{text}") for text in ("Conversion of an array", "divide by zero")]  # of the interpreter
MARKS.append(pytest.mark.usefixtures("poison"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {name: Config(32, 16, 4, 2) for name in ("forward", "backward_rows", "backward_dq", "backward_dkdv")}
Q_LAST, K_LAST = Q_START + pc.n_q - 1, pc.n_k - 1
NEVER = (const(0), const(-1))


def formula(*runs, ascending=True) -> AxisPlan:
    return AxisPlan("formula", tuple(Run(*map(_index, run)) for run in runs), len(runs), ascending)


def _index(x):
    return const(x) if isinstance(x, int) else x


def everywhere(mask) -> Plan:
    """A plan that knows nothing: all tiles are partial."""
    return Plan(mask, formula((0, K_LAST, *NEVER)), formula((Q_START, Q_LAST, *NEVER)))


causal = Plan(pc.causal, formula((0, R1, 0, R0)), formula((R0, Q_LAST, R1, Q_LAST)))


def window(w) -> Plan:
    mask = pc.causal & (pc.q - pc.k < w)
    return Plan(mask, formula((R0 - w + 1, R1, R1 - w + 1, R0)), formula((R0, R1 + w - 1, R1, R0 + w - 1)))


def streaming(w, sinks, ascending=True) -> Plan:
    """causal & (window | sink): two runs, which overlap where rows are early."""
    mask = pc.causal & ((pc.q - pc.k < w) | (pc.k < sinks))
    sink, near = (0, pc.min(R1, sinks - 1), 0, pc.min(R0, sinks - 1)), (R0 - w + 1, R1, R1 - w + 1, R0)
    back = [(R0, R1 + w - 1, R1, R0 + w - 1), (R0, pc.where(R0 < sinks, Q_LAST, -1), R1, pc.where(R1 < sinks, Q_LAST, -1))]
    forward = [sink, near] if ascending else [near, sink]
    return Plan(mask, formula(*forward, ascending=ascending), formula(*back, ascending=False))


def by_head() -> Plan:
    """Head h sees h + 1 keys back: bounds and mask depend on the head."""
    reach = pc.h * 7
    mask = pc.causal & (pc.q - pc.k <= reach)
    return Plan(mask, formula((R0 - reach, R1, R1 - reach, R0)), formula((R0, R1 + reach, R1, R0 + reach)))


def q_and_k(n_q, n_k, start=None):
    start = n_k - n_q if start is None else start
    return torch.arange(start, start + n_q)[:, None], torch.arange(n_k)[None, :]


def reference(q, k, v, allowed, scale):
    """`(o, lse)` in float64; `allowed` broadcasts to [B, H, n_q, n_k]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    s = (q @ k.mT * scale).masked_fill(~allowed, -math.inf)
    lse = s.logsumexp(-1)
    weights = torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    return weights @ v, lse


def check(
    plan, allowed, n_q, n_k=None, *, batch=1, heads=2, kv_heads=None, d=16, dv=None, dtype=torch.float32, start=None, scale=None, layout="bhnd",
    **call,
):  # fmt: skip
    """Run forward and backward on random inputs and compare everything with the reference."""
    n_k, dv, kv_heads = n_k or n_q, dv or d, kv_heads or heads
    start = n_k - n_q if start is None else start
    scale = d**-0.5 if scale is None else scale
    g = torch.Generator().manual_seed(n_q + n_k + d)

    def draw(count, h, width):
        shape = (batch, h, count, width) if layout == "bhnd" else (batch, count, h, width)
        x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        return x if layout == "bhnd" else x.transpose(1, 2)

    q, k, v, do = draw(n_q, heads, d), draw(n_k, kv_heads, d), draw(n_k, kv_heads, dv), draw(n_q, heads, dv)
    dlse = torch.randn(batch, heads, n_q, generator=g)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    allowed = torch.as_tensor(allowed).expand(batch, heads, n_q, n_k)
    o, lse = reference(*exact, allowed, scale)
    some = allowed.any(-1)
    loss = (o * do.double()).sum() + torch.where(some, lse, 0.0).mul(dlse.double()).sum()
    wanted = [o, lse, *torch.autograd.grad(loss, exact)]
    q, k, v, do, dlse = (x.to(DEVICE) for x in (q, k, v, do, dlse))
    made = Call(plan, scale, start, **{"configs": SMALL, **call})
    o, lse = attention_forward(made, q, k, v)
    got = [o, lse, *attention_backward(made, q, k, v, o, lse, do, dlse)]
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}[dtype]
    for name, a, b in zip(("o", "lse", "dq", "dk", "dv"), got, wanted):
        torch.testing.assert_close(a.cpu().double(), b.detach(), atol=tolerance, rtol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
    empty = ~some
    assert (got[1].cpu()[empty] == -math.inf).all() and (got[0].cpu()[empty] == 0).all() and (got[2].cpu()[empty] == 0).all()
