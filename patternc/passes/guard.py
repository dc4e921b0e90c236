"""Make comparisons total: one whose subscripts may leave their tensor says so itself."""

from __future__ import annotations

from patternc.expr.index import Index, interval
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import Pattern, all_of, between
from patternc.expr.transform import rewrite


def inside(read: Index) -> Index:
    """1 where every subscript of the read is within its tensor, else 0."""
    return Index("inside", *read.args)


def is_safe(read: Node) -> bool:
    """Its subscripts are provably not negative, and bounded by lengths, so that the host's shape check covers them."""
    return all(interval(s)[0] >= 0 and not depends_on_data(s) for s in read.args[1:])


def depends_on_data(x: Node) -> bool:
    return any(n.op in ("read", "member", "arg") for n in postorder(x) if n.op != "table")


def unsafe_reads(x: Node) -> list[Index]:
    found = [n for n in postorder(x) if n.op == "read" and not is_safe(n)]
    return found


def guard(p: Pattern) -> Pattern:
    """Before: `f(T[x]) in I` is false where x is outside T.  After: `(f(T[x]) in I) & inside(T[x])`, and every comparison is total."""

    def change(node: Node) -> Node | None:
        if node.op != "in" or any(n.op == "inside" for n in postorder(node.args[0])):
            return None
        checks = [between(inside(r), 1, 1) for r in unsafe_reads(node.args[0])]
        return all_of(node, *checks) if checks else None

    return rewrite(p, change)


