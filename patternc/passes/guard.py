"""Make comparisons total: one whose subscripts may leave their tensor says so itself."""

from __future__ import annotations

from patternc.expr.bounds import interval
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import Pattern, all_of, any_of, between, negate
from patternc.expr.transform import rewrite


def inside(read: Index) -> Index:
    """1 where every subscript of the read is within its tensor, else 0."""
    return Index("inside", *read.args)


def is_safe(read: Node) -> bool:
    """Its subscripts are provably not negative, and bounded by lengths, so that the host's shape check covers them."""
    return all(interval(s)[0] >= 0 and not depends_on_data(s) for s in read.args[1:])


def depends_on_data(x: Node) -> bool:
    return any(n.op in ("read", "member", "arg") for n in postorder(x) if n.op != "table")


def guards(x: Index) -> Pattern:
    """Where every read that the value of `x` depends on is inside its tensor: of a `where`, only the side that it takes."""
    if x.op == "where":
        condition, a, b = x.args
        a, b = guards(a), guards(b)
        return a if a is b else any_of(all_of(condition, a), all_of(negate(condition), b))
    own = [between(inside(x), 1, 1)] if x.op == "read" and not is_safe(x) else []
    return all_of(*own, *(guards(c) for c in x.children if isinstance(c, Index) and c.op not in ("const", "var", "arg", "table")))


def guard(p: Pattern) -> Pattern:
    """Before: `f(T[x]) in I` is false where x is outside T.  After: `(f(T[x]) in I) & inside(T[x])`, and every comparison is total.

    This comes before every pass that takes comparisons apart: `min(T[x], 5) < 9` holds by the 5 alone, but only inside T.
    """

    def change(node: Node) -> Node | None:
        return all_of(node, guards(node.args[0])) if node.op == "in" else None

    return rewrite(p, change)
