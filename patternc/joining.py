"""The operators of the text form: chains of them, comparisons, and arithmetic of plain integers."""

from __future__ import annotations

import operator

from patternc.errors import LimitError, OperandError, ParameterError, PatterncError, PatternSyntaxError
from patternc.expr import arithmetic as ar, index as ix
from patternc.expr.node import Node
from patternc.expr.pattern import Pattern, all_of, any_of

OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class Operators:
    """The rules of the grammar that join operands; each takes the values of a tree's parts, the tree and the kind of its place."""

    text: str

    def prefix(self, inputs, tree, parameter):
        symbol, x = str(inputs[0]), inputs[1]
        if not isinstance(x, (Node, int)) or (symbol == "~" and isinstance(x, int)):
            raise OperandError(f"`{symbol}` does not apply to {x!r}", fix="`~` takes a pattern, `-` an integer or an index expression")
        return {"+": operator.pos, "-": operator.neg, "~": operator.invert}[symbol](x)

    def group(self, inputs, tree, parameter):
        return inputs[0]

    def union(self, inputs, tree, parameter):
        return any_of(*inputs) if all(isinstance(x, Pattern) for x in inputs) else self.chain(inputs, "|", tree)

    def both(self, inputs, tree, parameter):
        return all_of(*inputs) if all(isinstance(x, Pattern) for x in inputs) else self.chain(inputs, "&", tree)

    def exclusive(self, inputs, tree, parameter):
        return self.chain(inputs, "^", tree)

    def product(self, inputs, tree, parameter):
        return self.chain(inputs, None, tree)

    def sum(self, inputs, tree, parameter):
        operands = inputs[::2]
        if not all(isinstance(x, (ix.Index, int)) for x in operands) or not any(isinstance(x, ix.Index) for x in operands):
            return self.chain(inputs, None, tree)
        constant, parts = 0, {}  # one pass, because a sum of n terms built pair by pair costs n*n
        for n, x in enumerate(operands):
            sign = -1 if n and inputs[2 * n - 1] == "-" else 1
            c, atoms = ar.terms(ix.as_index(x))
            constant += sign * c
            for atom, weight in atoms.items():
                parts[atom] = parts.get(atom, 0) + sign * weight
        return ar.linear(constant, parts)

    def chain(self, inputs, symbol, tree):
        """Operators from left to right; `symbol` is that of chains whose operators were dropped by the grammar."""
        operands, symbols = (inputs, [symbol] * (len(inputs) - 1)) if symbol else (inputs[::2], [str(s) for s in inputs[1::2]])
        value = operands[0]
        for n, (s, x) in enumerate(zip(symbols, operands[1:])):
            try:
                value = self.binary(s, value, x)
            except PatterncError as error:
                span = (span_of(tree)[0], _end(tree, n + 1, flat=symbol is not None))
                raise type(error)(error.message, typed=self.text, span=span, fix=error.fix) from None
        return value

    def binary(self, symbol: str, x, y):
        if isinstance(x, Node) or isinstance(y, Node):
            if not isinstance(x, (Node, int)) or not isinstance(y, (Node, int)):
                bad = y if isinstance(x, (Node, int)) else x
                raise OperandError(
                    f"`{symbol}` takes patterns or index expressions, got {bad!r}", fix="`rows`, `cols` and `global` take lists and ranges"
                )
            return OPERATORS[symbol](x, y)
        if not (isinstance(x, int) and isinstance(y, int)) or symbol in "&|^":
            raise OperandError(
                f"`{symbol}` does not join {x!r} and {y!r}", fix="`&`, `|`, `^` join patterns, arithmetic takes integers and index expressions"
            )
        if symbol in ("//", "%") and y == 0:
            raise ParameterError(f"the divisor of `{symbol}` must be provably at least 1, and `0` is not", fix="use a positive integer")
        return _bounded(OPERATORS[symbol](x, y))

    def comparison(self, inputs, tree, parameter):
        if len(inputs) > 3:
            (x, y, z), (r, s) = (self.source(c) for c in tree.children[0:5:2]), tree.children[1:5:2]
            fix = f"write two comparisons: `({x} {r} {y}) & ({y} {s} {z})`"
            raise PatternSyntaxError("comparisons cannot be chained", typed=self.text, span=span_of(tree), fix=fix)
        x, relation, y = inputs
        if not isinstance(x, Node) and not isinstance(y, Node):
            raise OperandError(
                f"`{relation}` compares index expressions, and this compares {x!r} with {y!r}", fix="`full` and `empty` are the constant patterns"
            )
        result = OPERATORS[str(relation)](x, y)
        if not isinstance(result, Pattern):
            raise OperandError(f"`{relation}` compares index expressions, not patterns", fix="`~(A ^ B)` holds the pairs on which two patterns agree")
        return result

    def source(self, tree) -> str:
        return self.text[slice(*span_of(tree))]


def _bounded(value: int) -> int:
    if abs(value) > 10**12:
        raise LimitError("an integer is too large", fix=f"keep integers within {ix.MAX_INT} in magnitude")
    return value


def span_of(tree) -> tuple[int, int]:
    """Character offsets of a tree or of a token."""
    if not hasattr(tree, "data"):
        return tree.start_pos, tree.end_pos
    return getattr(tree.meta, "start_pos", 0), getattr(tree.meta, "end_pos", 0)


def _end(tree, operand: int, flat: bool) -> int:
    return span_of(tree.children[operand if flat else 2 * operand])[1]
