"""Rebuilding expressions: substitution, and applying an index function."""

from __future__ import annotations

import inspect

from patternc.errors import OperandError
from patternc.expr import arithmetic as ar, index as ix, pattern as pt
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import PLACE, Pattern


def rebuild(node: Node, children: tuple[Node, ...], checked: bool = False) -> Node:
    """The node with other children, through the constructors, so that it is canonical again; itself if none changed.

    Args:
        checked: divisors must be seen to be at least 1, as those that users write; else they are known to be.
    """
    if all(a is b for a, b in zip(children, node.children)):
        return node
    op, c = node.op, children
    if op in ("div", "mod") and not checked:
        c = c[0], ar.divisor(c[1])
    if op == "sum":
        return ar.combine(node.args[0], zip(c, node.args[2::2]))
    if op == "in":
        return pt.between(c[0], *node.args[1:])
    if op == "member":
        return ix.member(c[0], c[1], node.args[2])
    if op == "read":
        return ix.read(c[0], c[1:])
    return _BUILD[op](*c)


_BUILD = {
    "inside": lambda *c: Index("inside", *c),
    "mul": ar.multiply,
    "div": ar.floordiv,
    "mod": ar.mod,
    "min": ar.minimum,
    "max": ar.maximum,
    "abs": ar.absolute,
    "where": ix.where,
    "and": pt.all_of,
    "or": pt.any_of,
    "not": pt.negate,
    "xor": pt.symmetric_difference,
    "per_head": pt.per_head_of,
}


def rewrite(root: Node, change) -> Node:
    """Rebuild bottom-up; `change(node)` gives a replacement or None."""
    done: dict[int, Node] = {}
    for node in postorder(root):
        new = rebuild(node, tuple(done[id(c)] for c in node.children))
        replaced = change(new)
        done[id(node)] = new if replaced is None else replaced
    return done[id(root)]


def substitute(root: Node, mapping: dict[Node, Node], checked: bool = False) -> Node:
    """Replace nodes, simultaneously; `checked` as in `rebuild`."""
    by_id = {id(old): new for old, new in mapping.items()}
    done: dict[int, Node] = {}
    for node in postorder(root):
        new = by_id.get(id(node))
        done[id(node)] = rebuild(node, tuple(done[id(c)] for c in node.children), checked) if new is None else new
    return done[id(root)]


def apply_index(f, position: Index) -> Index:
    """`f(position)` for an index function: an expression in `i`, an arg or table, or a callable (applied to `i` once)."""
    if isinstance(f, Pattern):
        raise OperandError(f"expected an index function, got the pattern `{f}`", fix="write an expression in `i`, such as `pc.i // 64`")
    if not isinstance(f, Node) and callable(f):
        _takes_one(f)
        f = f(PLACE)
    if isinstance(f, Index) and f.op in ("arg", "table"):
        return f[position]
    f = ix.as_index(f, "an index function")
    for node in postorder(f):
        if node.op == "var" and node.args[0] in ("q", "k"):
            raise OperandError(
                f"an index function is written in the placeholder `i`, and `{f}` names `{node}`", fix="write `pc.i` (text: `i`) for the position"
            )
    return substitute(f, {PLACE: position}, checked=True)


def _takes_one(f) -> None:
    try:
        inspect.signature(f).bind(PLACE)
    except TypeError:
        raise OperandError(
            f"an index function takes one position, and {getattr(f, '__name__', 'this callable')} does not", fix="write `lambda i: i // 64`"
        ) from None
    except ValueError:  # a builtin without a signature
        return
