"""Which runtime args an expression uses, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.errors import ArgError, OperandError
from patternc.expr.index import Index
from patternc.expr.node import Node, fact, postorder
from patternc.expr.pattern import PLACE

KINDS = {
    "scalar": "as a number",
    "array": "with subscripts",
    "positions": "as a set of positions",
    "lengths": "by `valid`",
}


@dataclass(frozen=True, eq=False)
class ArgUse:
    """How an expression uses one arg.

    Attributes:
        kind: "scalar" (a bare number), "array" (subscripted), "positions" (a mask or a list of positions) or "lengths" (a
            mask or lengths).
        rank: number of subscripts; 0 for a scalar, 1 for the memberships.
        subscripts: the distinct tuples of subscripts of an array.
        over_heads: a membership of query heads, not of positions: its mask has one entry for each head.
    """

    name: str
    kind: str
    rank: int = 0
    subscripts: tuple[tuple[Index, ...], ...] = ()
    over_heads: bool = False


@fact
def signature(expr: Node) -> dict[str, ArgUse]:
    """The args of an index expression, a pattern or an attention, by name, sorted.

    Raises:
        ArgError: when one name is used in two ways that no value can serve.
        OperandError: a pattern or an attention is about `i`, which stands for a position only inside of index functions.
    """
    found: dict[str, ArgUse] = {}

    def note(use: ArgUse) -> None:
        old = found.setdefault(use.name, use)
        if (old.kind, old.rank, old.over_heads) != (use.kind, use.rank, use.over_heads):
            one, two = (f"{KINDS[u.kind]}{f' ({u.rank})' if u.kind == 'array' else ' (heads)' if u.over_heads else ''}" for u in (old, use))
            raise ArgError(f"arg `{use.name}` is used {one} and {two}", fix="give the two uses two names")
        if old is not use and not any(all(a is b for a, b in zip(s, use.subscripts[0])) for s in old.subscripts if use.subscripts):
            found[use.name] = replace(old, subscripts=old.subscripts + use.subscripts)

    for node in postorder(expr):
        if node is PLACE and not isinstance(expr, Index):
            what = "`i` stands for a position inside of functions like `.at(i // 2)` and `same(i // 64)`, and has no value elsewhere"
            raise OperandError(what, typed=str(expr), fix="write `q` or `k`")
        sourced = node.op in ("read", "member")
        if sourced and node.args[0].op == "arg":
            name = node.args[0].args[0]
            if node.op == "read":
                note(ArgUse(name, "array", len(node.args) - 1, (node.args[1:],)))
            else:
                note(ArgUse(name, node.args[2], 1, over_heads=names_of(node.args[1]) == {"h"}))
        for child in node.children[1:] if sourced else node.children:
            if child.op == "arg":
                note(ArgUse(child.args[0], "scalar"))
    if expr.op == "arg":
        note(ArgUse(expr.args[0], "scalar"))
    return dict(sorted(found.items()))


def names_of(x: Index) -> set[str]:
    return {node.args[0] for node in postorder(x) if node.op == "var"}
