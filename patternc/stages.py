"""The stages of the pipeline as text, for `patternc source --stage NAME`."""

from __future__ import annotations

from patternc.describing import describe_plan
from patternc.errors import OperandError
from patternc.expr.attention import Attention
from patternc.expr.bounds import INF
from patternc.expr.pattern import Pattern
from patternc.passes import PASSES, Conjunct, TooManyConjuncts, disjuncts, lower
from patternc.plan import make_plan

STAGES = ("text", *(name for name, _, _ in PASSES), "conjuncts", "plan", "kernels")


def stage_text(spec: Pattern | Attention, stage: str, n: int | None = None, heads: int | None = None) -> str:
    """One stage of STAGES as text; of an attention, the exact part from the first pass on.  `n`, `heads`: kernels for these sizes."""
    if stage == "text":
        return str(spec)
    if not isinstance(spec, (Pattern, Attention)):
        raise OperandError(f"`{spec}` is not a pattern", fix="write a comparison of it, such as `q - k < 512`")
    p = spec.exact if isinstance(spec, Attention) else spec
    if stage == "plan":
        plan = make_plan(p)
        return "\n".join([f"mask {plan.mask}", *describe_plan(plan)])
    if stage == "kernels":
        from patternc.compile import compile

        return compile(p).source(n, heads=heads)
    after: dict[str, Pattern] = {}
    lowered = lower(p, watch=lambda name, _, new: after.setdefault(name, new))
    if stage == "conjuncts":
        return describe_conjuncts(lowered)
    return str(after[stage])


def describe_conjuncts(lowered: Pattern) -> str:
    """One line for each conjunct: the intervals that its cores must all lie in."""
    try:
        found = disjuncts(lowered)
    except TooManyConjuncts:
        return "too many conjuncts: the analyses combine runs instead"
    return "\n".join(_conjunct(c) for c in found) or "none: no pair is allowed"


def _conjunct(conjunct: Conjunct) -> str:
    return " and ".join(f"{core} in {_interval(*bounds)}" for core, bounds in conjunct.items()) or "every pair"


def _interval(low, high) -> str:
    left = "(-oo" if low == -INF else f"[{int(low)}"
    return f"{left}, oo)" if high == INF else f"{left}, {int(high)}]"
