"""The passes from a pattern as the user wrote it to comparisons under `and` and `or`.

`PASSES` is the pipeline: an ordered table of (name, function, specification).  Every pass takes a valid pattern and gives
an equal one; `lower` checks the specification after each and calls `watch(name, before, after)`.
"""

from __future__ import annotations

from patternc.errors import InternalError
from patternc.expr.node import Node, fact, postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.passes.expand import expand, mixes_sides, variables
from patternc.passes.guard import guard
from patternc.passes.merge import merge
from patternc.passes.normal import Conjunct, TooManyConjuncts, absorb, decide, decided, disjuncts, literals, negation_normal, unwrap, unwrapped


def _without(*ops: str):
    return lambda p: next((n for n in postorder(p) if n.op in ops), None)


PASSES = (
    ("guard", guard, _without()),
    ("expand", expand, _without("per_head", "length", "xor", "where")),
    ("negate", negation_normal, _without("per_head", "xor", "where", "not")),
    ("decide", decide, _without("per_head", "xor", "where", "not")),
    ("merge", merge, _without("per_head", "xor", "where", "not")),
)


def lower(p: Pattern, watch=None) -> Pattern:
    """Run the pipeline; without `watch`, once for each pattern.  Raises InternalError if a pass leaves what its specification forbids."""
    return _lowered(p) if watch is None else _run(p, watch)


@fact
def _lowered(p: Pattern) -> Pattern:
    return _run(p, None)


@roomy
def _run(p: Pattern, watch) -> Pattern:
    for name, apply, forbidden in PASSES:
        new = apply(p)
        if watch is not None:
            watch(name, p, new)
        bad: Node | None = forbidden(new)
        if bad is not None:
            raise InternalError(f"pass `{name}` left a `{bad.op}`", typed=str(new))
        p = new
    return p


__all__ = [
    "PASSES",
    "Conjunct",
    "TooManyConjuncts",
    "absorb",
    "decide",
    "decided",
    "disjuncts",
    "expand",
    "guard",
    "literals",
    "lower",
    "merge",
    "mixes_sides",
    "negation_normal",
    "unwrap",
    "unwrapped",
    "variables",
]
