"""Checks that the subscripts of args and tables stay inside what a call gives for them."""

from __future__ import annotations

from patternc.errors import ShapeError
from patternc.expr.bounds import INF, bounds
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.forms import count
from patternc.signature import ArgUse


def check_subscripts(use: ArgUse, value, env: dict, n_k: int) -> None:
    what = f"arg `{use.name}`"
    for subscripts in use.subscripts:
        for axis, s in enumerate(subscripts):
            size = value.shape[axis + 1]
            if s.op == "var" and s.args[0] in ("q", "k"):
                # By a `q_start` queries may lie beyond the last key; then the tensor covers them too.
                names = {t[axis].args[0] for t in use.subscripts if t[axis].op == "var"}
                reach = env["q"][1] + 1 if "q" in names and env["q"][1] < INF else 0
                wanted = max(n_k, reach)
                if size != wanted:
                    of = f"n_k = {n_k}" if wanted == n_k else f"the {wanted} positions up to the last query"
                    message = f"{what} is indexed by a position, so its length there is {of}, got shape {tuple(value.shape)[1:]}"
                    raise ShapeError(message, fix="queries index it absolutely too, whatever n_q is")
            else:
                _check_reach(what, s, size, axis, env)


def heads_listed(expr: Node) -> int | None:
    """How many query heads `per_head` lists; None where it is not used."""
    return next((len(node.args) for node in postorder(expr) if node.op == "per_head"), None)


def heads_of(expr: Node, heads: int | None) -> int:
    """Query heads: the number that is given, else as many as `per_head` lists, else 1.  Raises ParameterError for no positive integer."""
    return heads_listed(expr) or 1 if heads is None else count("heads", heads, least=1)


def check_static(expr: Node, env: dict, heads: int) -> None:
    for node in postorder(expr):
        if node.op == "length" and node.args[0] != env["n_k"][0]:
            message = f"the pattern is made for {node.args[0]} keys, and there are {env['n_k'][0]}"
            raise ShapeError(message, fix="a grid's sides multiply to the number of keys; more tokens beside a grid go into a pattern of their own")
        if node.op == "per_head" and len(node.args) != heads:
            message = f"per_head gives {len(node.args)} patterns, and there are {heads} query heads"
            raise ShapeError(message, fix="give one pattern for each query head")
        if node.op == "read" and node.args[0].op == "table":
            table = node.args[0].args[0]
            what = f"the table `{table.name}`" if table.name else "a table"
            for axis, (s, size) in enumerate(zip(node.args[1:], table.data.shape)):
                _check_reach(what, s, size, axis, env)


def _check_reach(what: str, subscript: Index, size: int, axis: int, env: dict) -> None:
    high = bounds(subscript, env)[1]
    if size <= high < INF:
        message = f"{what} has length {size} along axis {axis}, and its subscript there reaches {int(high)}"
        raise ShapeError(message, fix=f"make it longer, or bound the subscript: `min(..., {size - 1})`")
