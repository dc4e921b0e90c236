"""Functions of a block number as data: what interval arithmetic cannot follow is evaluated once for every block.

`x * x % 97` of `x = q // 64` has no useful bounds over several blocks, but only as many values as there are blocks.
"""

from __future__ import annotations

import numpy as np

from patternc.analysis.data import Data
from patternc.analysis.evaluate import evaluate
from patternc.expr.bounds import Interval
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import Pattern
from patternc.expr.transform import substitute
from patternc.passes import literals, variables

MOST_VALUES = 1 << 17
POSITIONS = frozenset({"q", "k"})


def tabulate(p: Pattern, env: dict[str, Interval]) -> Pattern:
    """Before: comparisons at given lengths.  After: products and nested remainders of one `q // B` or `k // B` are reads of data."""
    mapping: dict[Node, Node] = {}
    for literal in literals(p):
        _collect(literal.args[0], env, mapping)
    return substitute(p, mapping) if mapping else p


def _collect(x: Index, env: dict[str, Interval], mapping: dict[Node, Node]) -> None:
    """Add the outermost parts that are worth tabulating."""
    if x in mapping or x.op in ("const", "var", "data"):
        return
    atom = _block_number(x) if x.op != "sum" and is_hard(x) else None
    if atom is not None:
        low, high = (int(bound) // atom.args[1].args[0] for bound in env[atom.args[0].args[0]])
        if high - low < MOST_VALUES:
            mapping[x] = Index("read", Index("data", _values(x, atom, low, high)), atom - low)
            return
    for child in x.children:
        if isinstance(child, Index):
            _collect(child, env, mapping)


def is_hard(x: Index) -> bool:
    """A product of two functions of positions, or a remainder of such products or remainders: intervals say nothing useful about it."""
    for n in postorder(x):
        if n.op == "mul" and all(variables(c) & POSITIONS for c in n.args):
            return True
        if n.op == "mod" and any(m.op in ("mod", "mul", "read") and variables(m) & POSITIONS for m in postorder(n.args[0])):
            return True
    return False


def _block_number(x: Index) -> Index | None:
    """The one quotient by a constant through which `x` depends on its one variable."""
    found: set[Index] = set()

    def visit(n: Index) -> bool:
        if n.op == "div" and n.args[0].op == "var" and n.args[1].op == "const":
            found.add(n)
            return True
        return n.op != "var" and all(visit(c) for c in n.children if isinstance(c, Index) and c.op != "data")

    return next(iter(found)) if visit(x) and len(found) == 1 else None


def _values(x: Index, atom: Index, low: int, high: int) -> Data:
    """The values for `atom` in `low .. high`; kept with the node, so that equal patterns share them."""
    key = f"tabulated {low} {high}"
    if key not in x.facts:
        place = Index("var", "i")
        x.facts[key] = Data(np.broadcast_to(evaluate(substitute(x, {atom: place}), {"i": np.arange(low, high + 1)}), high - low + 1))
    return x.facts[key]
