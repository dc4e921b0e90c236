"""`pc.compile`: from a pattern or attention to a torch module."""

from __future__ import annotations

from patternc.errors import LeakError, OperandError, ParameterError
from patternc.expr.attention import Attention, Term
from patternc.expr.calls import fitting
from patternc.expr.pattern import K, Pattern, Q
from patternc.module import AttentionModule
from patternc.passes import TooManyConjuncts, disjuncts, lower
from patternc.runtime import check_backend


@fitting("compile")
def compile(spec: Pattern | Attention | str, backend: str = "auto", *, num_heads: int | None = None, head_dim: int | None = None) -> AttentionModule:
    """A torch module that computes the attention.

    Args:
        spec: a pattern, an attention (`pattern + linear_tail`), or the text of one.
        backend: "triton", "cpu", "reference", or "auto": triton for CUDA tensors, cpu for others.
        num_heads, head_dim: where the term owns parameters (norm scales, initial state).
    Raises:
        UnknownNameError: the backend is not known.
        LeakError: the exact part is causal and the term would read the future.
        ParameterError: the term needs `num_heads` and `head_dim`.
        PatternSyntaxError: the text is not a pattern.
    """
    if isinstance(spec, str):
        from patternc.parsing import parse

        spec = parse(spec)
    if isinstance(spec, Term):
        raise OperandError("a term alone is not an attention", typed=str(spec), fix="add it to a pattern: `empty + linear_tail`")
    if not isinstance(spec, (Pattern, Attention)):
        raise OperandError(f"compile takes a pattern, an attention or its text, got {spec!r}", fix="write `pc.compile(pc.causal & pc.window(512))`")
    check_backend(backend)
    for name, value in (("num_heads", num_heads), ("head_dim", head_dim)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ParameterError(f"`{name}` is a positive integer, got {value!r}", fix=f"write `{name}=16`")
    if isinstance(spec, Attention):
        check_leak(spec)
    return AttentionModule(spec, backend, num_heads, head_dim)


def provably_causal(p: Pattern) -> bool:
    """Whether no pair with `k > q` is allowed at any length, as far as its comparisons alone say."""
    try:
        return not disjuncts(lower(p & (K > Q)))
    except TooManyConjuncts:
        return False


def check_leak(spec: Attention) -> None:
    """Raise LeakError where a causal exact part has a term that reaches the future unasked."""
    if spec.domain_is_explicit or spec.exact.op == "false" or not provably_causal(spec.exact) or provably_causal(spec.domain):
        return
    raise LeakError(
        "the exact part is causal, and the term reads the future: its domain is not causal",
        typed=str(spec),
        fix=f"write `({spec.exact}) + {spec.term}(over=causal)` or `causal & (... + {spec.term})`; `over=full` says that it is meant",
    )
