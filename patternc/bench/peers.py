"""Other implementations of attention, as `patternc bench attention` calls them.

A peer is made for a case: `make(case, spec, args)` returns an `Implementation`, or None for what it cannot compute.  Packages that
are not installed raise ImportError.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from patternc.bench.cases import Case
from patternc.errors import InternalError


@dataclass(frozen=True)
class Implementation:
    """How q [B, H, n_q, D], k and v [B, H_kv, n, D] are attended.

    Attributes:
        attend: from its inputs to [B, H, n_q, D].
        inputs: what `attend` takes, made of q, k and v; not timed.
    """

    attend: Callable
    inputs: Callable = lambda q, k, v: (q, k, v)


def mask_mod(pattern, args: dict, n: int = 0, first: int = 0) -> Callable:
    """A FlexAttention `mask_mod` of a pattern at a length: the closure that a user would write, from the expression.

    Args:
        n: positions in all.
        first: position of the first query, counted from 0 by FlexAttention.
    """
    import torch

    from patternc.passes import lower

    text = f"lambda b, h, q, k: {_python(lower(pattern))}"
    allowed = eval(text, {"torch": torch, "args": args, "n_q": n, "n_k": n})  # the text is made of the nodes of a case of this folder
    return (lambda b, h, q, k: allowed(b, h, q + first, k)) if first else allowed


def _python(x) -> str:
    """An expression as Python text on tensors; only what the cases need."""
    op, a = x.op, x.args
    if op in ("var", "const"):
        return str(a[0])
    if op == "sum":
        return "(" + " + ".join([str(a[0]), *(f"{w} * {_python(t)}" for t, w in zip(a[1::2], a[2::2]))]) + ")"
    if op == "read":
        return f"args[{a[0].args[0]!r}][{_python(a[1])}]"
    if op == "in":
        core, low, high = a
        checks = ([f"({_python(core)} >= {low})"] if low is not None else []) + ([f"({_python(core)} <= {high})"] if high is not None else [])
        return "(" + " & ".join(checks) + ")"
    if op in ("min", "max"):
        numbers, others = [c for c in a if c.op == "const"], [c for c in a if c.op != "const"]
        if len(numbers) != 1 or len(others) != 1:
            raise InternalError(f"no Python text for `{x}`")
        x, c = _python(others[0]), _python(numbers[0])
        return f"(torch.clamp({x}, {'max' if op == 'min' else 'min'}={c}) if torch.is_tensor({x}) else {op}({x}, {c}))"
    symbol = {"mul": " * ", "and": " & ", "or": " | ", "div": " // ", "mod": " % "}[op]
    return "(" + symbol.join(_python(c) for c in a) + ")"


def band(spec) -> tuple[int | None, int | None] | None:
    """`(left, right)` where a query sees the keys from `left` before it to `right` after it, None for all; None for other patterns."""
    from patternc.expr.pattern import K, Pattern, Q
    from patternc.passes import lower

    if not isinstance(spec, Pattern):
        return None
    p = lower(spec)
    if p.op == "true":
        return None, None
    if p.op != "in" or p.args[0] is not Q - K:
        return None
    _, low, high = p.args
    return high, None if low is None else -low


def patternc(case: Case, spec, args: dict) -> Implementation:
    from patternc.compile import compile

    module = compile(spec, "triton", num_heads=case.heads, head_dim=case.head_dim)
    return Implementation(lambda q, k, v: module(q, k, v, **args))


def _flex(case: Case, spec, args: dict) -> Implementation | None:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.kind == "linear":
        return None
    torch._dynamo.reset()
    block_mask = None
    if case.text != "full":
        allowed = mask_mod(spec, args, case.n, case.n - case.queries)
        block_mask = create_block_mask(allowed, None, case.heads if case.by_head else None, case.queries, case.n, device="cuda")
    run = torch.compile(flex_attention, dynamic=False)
    return Implementation(lambda q, k, v: run(q, k, v, block_mask=block_mask, enable_gqa=case.heads != case.kv_heads))


def _sdpa(kind: str):
    def make(case: Case, spec, args: dict) -> Implementation | None:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        # torch's `is_causal` counts queries from position 0.
        causal = band(spec) == (None, 0) and case.queries == case.n
        if not causal and band(spec) != (None, None):
            return None
        backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "fa2": SDPBackend.FLASH_ATTENTION}[kind]

        def attend(q, k, v):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=case.heads != case.kv_heads)

        return Implementation(attend)

    return make


def _flash_attn(case: Case, spec, args: dict) -> Implementation | None:
    """The package flash-attn, else flash-attn-4; both count queries from the end, and take [B, n, H, D]."""
    try:
        attention, every = importlib.import_module("flash_attn").flash_attn_func, -1
    except (ImportError, AttributeError):
        attention, every = importlib.import_module("flash_attn.cute").flash_attn_func, None
    found = band(spec)
    if found is None:
        return None
    left, right = found
    causal, window = right == 0, (every if left is None else left, every if right is None else right)
    chosen = {"causal": causal} | ({} if left is None and (causal or right is None) else {"window_size": window})

    def attend(q, k, v):
        out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **chosen)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return Implementation(attend)


def _fla(case: Case, spec, args: dict) -> Implementation | None:
    """Linear attention of flash-linear-attention, which takes features in [B, n, H, F]: those are made before, and not timed."""
    import torch

    from patternc.tail import feature_map

    attention = importlib.import_module("fla.ops.linear_attn").chunk_linear_attn
    if case.kind != "linear" or case.heads != case.kv_heads:
        return None
    phi = feature_map(spec.term.feature)

    def own(x):
        return x.detach().to(torch.bfloat16).transpose(1, 2).contiguous().requires_grad_(True)

    def attend(q, k, v):
        out = attention(q, k, v, scale=1.0, normalize=False)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return Implementation(attend, lambda q, k, v: (own(phi(q)), own(phi(k)), own(v)))


PEERS = {"flex": _flex, "cudnn": _sdpa("cudnn"), "fa2": _sdpa("fa2"), "flash-attn": _flash_attn, "fla": _fla}
