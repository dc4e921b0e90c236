"""Remove what is only notation: per-head lists, promised lengths, `^`, `where`, and `abs`, `min`, `max` that mix queries and keys."""

from __future__ import annotations

from patternc.expr.arithmetic import add, scale, terms
from patternc.expr.index import Index
from patternc.expr.node import Node, fact, postorder
from patternc.expr.pattern import H, Pattern, all_of, any_of, between, negate
from patternc.expr.transform import substitute
from patternc.passes.rules import Rule, apply_rules


@fact
def variables(x: Node) -> frozenset[str]:
    """The names of the variables in an expression."""
    return frozenset(n.args[0] for n in postorder(x) if n.op == "var")


def mixes_sides(x: Node) -> bool:
    return {"q", "k"} <= variables(x)


def _per_head(p: Node) -> Node | None:
    if p.op == "per_head":
        heads = {part: [j for j, other in enumerate(p.args) if other is part] for part in p.args}
        return any_of(*(all_of(_listed(js), part) for part, js in heads.items()))


def _listed(heads: list[int]) -> Pattern:
    """`h` in an ascending list, run by run."""
    first, last = [j for j in heads if j - 1 not in heads], [j for j in heads if j + 1 not in heads]
    return any_of(*(between(H, a, b) for a, b in zip(first, last)))


def _length(x: Node) -> Node | None:
    if x.op == "length":
        return Index("const", x.args[0])


def _xor(p: Node) -> Node | None:
    if p.op == "xor":
        a, b = p.args
        return any_of(all_of(a, negate(b)), all_of(negate(a), b))


def _where(p: Node) -> Node | None:
    """Any `where` below the comparison, the deepest first: deeper ones end up in the condition's own comparisons."""
    if p.op != "in":
        return None
    found = next((n for n in postorder(p.args[0]) if n.op == "where"), None)
    if found is None:
        return None
    condition, x, y = found.args
    return any_of(all_of(condition, substitute(p, {found: x})), all_of(negate(condition), substitute(p, {found: y})))


def _extremum(p: Node) -> Node | None:
    """`min(a, b) + r >= c` is both, `min(a, b) + r <= c` is either; `max` and `abs(x) = max(x, -x)` the other way round."""
    if p.op != "in":
        return None
    core, low, high = p.args
    _, parts = terms(core)
    for atom, weight in parts.items():
        if atom.op not in ("min", "max", "abs") or not mixes_sides(atom):
            continue
        if low is not None and high is not None:
            return all_of(between(core, low, None), between(core, None, high))
        options = (atom.args[0], scale(atom.args[0], -1)) if atom.op == "abs" else atom.args
        rest = add(core, scale(atom, -weight))
        alternatives = [between(add(rest, scale(option, weight)), low, high) for option in options]
        takes_least = (atom.op == "min") == (weight > 0)  # the sum is the least of the options, else the greatest
        return all_of(*alternatives) if takes_least == (low is not None) else any_of(*alternatives)
    return None


RULES = (
    Rule("per_head(A, B, A, ..) -> ((h == 0) | (h == 2)) & A | (h == 1) & B | ..", _per_head),
    Rule("fixed_length(n) -> n: a call with another number of keys was refused", _length),
    Rule("A ^ B -> (A & ~B) | (~A & B)", _xor),
    Rule("f(where(c, x, y)) in I -> c & (f(x) in I) | ~c & (f(y) in I)", _where),
    Rule("min(a, b) + r >= c -> (a + r >= c) & (b + r >= c), and its three mirror images", _extremum),
)


def expand(p: Pattern) -> Pattern:
    """Before: any pattern.  After: no per_head, length, xor or where; abs, min and max read one side only or sit inside `//`, `%`, `[]`."""
    return apply_rules(p, RULES)
