"""The stages of the pipeline as text, for `patternc source --stage NAME`."""

from __future__ import annotations

from patternc.describing import describe_plan
from patternc.errors import OperandError
from patternc.expr.attention import Attention
from patternc.expr.bounds import INF
from patternc.expr.pattern import Pattern
from patternc.passes import PASSES, Conjunct, TooManyConjuncts, disjuncts, lower
from patternc.plan import Plan
from patternc.signature import signature

STAGES = ("text", *(name for name, _, _ in PASSES), "conjuncts", "plan", "kernels", "term", "hopper")
TERM_LENGTH = 4096  # at which a term's kernels are chosen where no length is given


def stage_text(spec: Pattern | Attention, stage: str, n: int | None = None, heads: int | None = None) -> str:
    """One stage of STAGES as text; of an attention, the exact part from the first pass to "kernels".

    Args:
        n, heads: kernels for these sizes.  Those of a term ask what its pairs are at a length, by default TERM_LENGTH.

    Raises:
        OperandError: for an expression that is no pattern.
        ParameterError: if a size is not a positive integer.
        ArgError: for the kernels of a term whose pattern has runtime args.
    """
    if stage == "text":
        return str(spec)
    if not isinstance(spec, (Pattern, Attention)):
        raise OperandError(f"`{spec}` is not a pattern", fix="write a comparison of it, such as `q - k < 512`")
    p = spec.exact if isinstance(spec, Attention) else spec
    if stage == "plan":
        return "\n\n".join("\n".join([f"mask {plan.mask}", *describe_plan(plan)]) for plan in _plans(p, n, heads))
    if stage == "kernels":
        from patternc.compile import compile

        return compile(p).source(n, heads=heads)
    if stage in ("term", "hopper"):
        return _more_kernels(spec, p, stage, n, heads)
    after: dict[str, Pattern] = {}
    lowered = lower(p, watch=lambda name, _, new: after.setdefault(name, new))
    if stage == "conjuncts":
        return describe_conjuncts(lowered)
    return str(after[stage])


def _plans(exact: Pattern, n: int | None, heads: int | None) -> list[Plan]:
    """The plans of the parts that run one after the other: of the pattern in the order of positions, or those that a length asks for.

    Args that are not there yet change no plan.
    """
    from patternc.args import bind
    from patternc.forms import count
    from patternc.runtime import compiled
    from patternc.subscripts import heads_of

    own = compiled(exact)
    if n is None or signature(exact):
        return [own.plan]
    call = bind(exact, {}, count("n", n, least=1), heads=heads_of(exact, heads))
    return [part.plan_at(call) for part in own.parts_at(call)]


def _more_kernels(spec: Pattern | Attention, exact: Pattern, stage: str, n: int | None, heads: int | None) -> str:
    """The kernels of the term, or all those for Hopper."""
    from patternc.args import bind
    from patternc.codegen import tail_sources
    from patternc.forms import count
    from patternc.runtime import compiled
    from patternc.subscripts import heads_of

    n, heads = n if n is None else count("n", n, least=1), heads_of(exact, heads)
    found = _exact_for_hopper(_plans(exact, n, heads)) if stage == "hopper" else []
    if getattr(spec, "term", None) is None:
        return "\n\n".join(found) or "# there is no term"
    bound = bind(spec, {}, TERM_LENGTH if n is None else n, heads=heads, batch=1)
    return "\n\n".join([*found, (tail_sources.one_pass if stage == "hopper" else tail_sources.portable)(compiled(spec), bound)])


def _exact_for_hopper(plans: list[Plan]) -> list[str]:
    """The forward, and the backward for each width of heads."""
    if len(plans) > 1:
        return ["# the exact part is left to the portable kernels: at this length it runs in parts, one after the other"]
    return [_forward_for_hopper(plans[0]), *_backwards_for_hopper(plans[0])]


def _forward_for_hopper(plan: Plan) -> str:
    from patternc.codegen import hopper
    from patternc.codegen.lines import lines_of

    lines = lines_of(plan)
    if why := hopper.covers(lines.plan):
        return f"# the forward is left to the portable kernels: {why}"
    narrow = hopper.narrow(lines.plan)
    about = f"# Positions that are equal modulo {lines.count} are a line; those below count along it.\n" if lines.count > 1 else ""
    if narrow:
        about += "# For heads that share keys; where none do, the keys at a row tile's own positions are tiles like others.\n"
    about += "# At head_dim 64 there are three consumers where these keys are tiles like others.  When it is taken: docs/performance.md.\n"
    return about + hopper.generate(lines.plan, narrow).text


def _backwards_for_hopper(plan: Plan) -> list[str]:
    from patternc.codegen import fused

    if why := fused.covers(plan):
        return [f"# the backward is left to the portable kernels: {why}"]
    about = "# The backward of heads of width {}, where rows are long.  When it is taken: docs/performance.md.\n"
    return [about.format(width) + fused.generate(plan, width).text for width in sorted(fused.QUERIES)]


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
