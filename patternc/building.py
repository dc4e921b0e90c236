"""Parse trees to expressions, by the operators and functions that Python code calls.

The tree is walked without recursion, and works for any parser whose trees have `data`, `children` and `meta` with positions.
"""

from __future__ import annotations

import inspect
import operator

from patternc.errors import LimitError, OperandError, ParameterError, PatterncError, PatternSyntaxError, UnknownNameError, suggest
from patternc.expr import arithmetic as ar, index as ix
from patternc.expr.attention import Term
from patternc.expr.node import Node
from patternc.expr.pattern import Pattern, all_of, any_of
from patternc.vocabulary import FUNCTIONS, METHODS, NAMES, PRIMITIVES, VALUES, keyword

MAX_WORK = 60_000  # nodes that `.at`, `.shift` and `.roll` may rebuild in one text
OPERATORS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class Keyword:
    """`name=value` among the arguments of a call."""

    def __init__(self, name: str, value):
        self.name, self.value = name, value


class Builder:
    """Evaluates a parse tree bottom-up, without recursion."""

    def __init__(self, text: str, tables: dict):
        self.text, self.tables, self.work = text, tables, 0

    def build(self, root):
        """The value of the tree.  `parameter` says that the place is a primitive's parameter, where unknown names are args."""
        order, stack = [], [(root, False)]
        while stack:
            tree, parameter = stack.pop()
            order.append((tree, parameter))
            stack.extend(self.children(tree, parameter))
        values: dict[int, object] = {}
        for tree, parameter in reversed(order):
            inputs = [values[id(c)] if id(c) in values else c for c in tree.children]
            try:
                values[id(tree)] = getattr(self, tree.data)(inputs, tree, parameter)
            except PatterncError as error:
                if error.typed is self.text:
                    raise
                raise type(error)(error.message, typed=self.text, span=_span(tree), fix=error.fix) from None
        return values[id(root)]

    @staticmethod
    def children(tree, parameter: bool):
        """The parts to evaluate before `tree`, and what place each is in."""
        parts = [c for c in tree.children if hasattr(c, "data")]
        if tree.data == "call" and parts[0].data == "name":
            name = str(parts[0].children[0])
            inside = name in PRIMITIVES and name != "per_head" or (parameter and name in FUNCTIONS and name != "per_head")
            return [(part, inside) for part in parts[1:]]
        if tree.data == "method":
            return [(part, parameter if n == 0 else True) for n, part in enumerate(parts)]
        return [(part, parameter) for part in parts]

    # leaves

    def integer(self, inputs, tree, parameter):
        return int(inputs[0])

    def string(self, inputs, tree, parameter):
        return str(inputs[0])[1:-1]

    def name(self, inputs, tree, parameter):
        name = str(inputs[0])
        if name in VALUES:
            return VALUES[name]
        if name in self.tables:
            return self.table(name)
        if name in FUNCTIONS:
            raise PatternSyntaxError(
                f"`{name}` is a function", typed=self.text, span=_span(tree), fix=f"give it parameters in parentheses: `{name}(...)`"
            )
        if parameter and not keyword.iskeyword(name):
            return ix.arg(name)
        raise self.unknown(name, _span(tree))

    def unknown(self, name: str, span) -> UnknownNameError:
        close = suggest(name, NAMES - set(METHODS) - {"None", "True", "False"})
        hint = f"; did you mean `{close}`?" if close else ""
        fix = f'a runtime value is written `arg("{name}")`'
        return UnknownNameError(f"unknown pattern `{name}`{hint}", typed=self.text, span=span, fix=f"write `{close}`; {fix}" if close else fix)

    def table(self, name: str):
        if name not in self.tables:
            close = suggest(name, self.tables)
            raise UnknownNameError(f"table `{name}` is not given" + (f"; did you mean `{close}`?" if close else ""), fix=f"parse(text, {name}=array)")
        data = self.tables[name]
        if isinstance(data, Node) or callable(data):
            return data
        return ix.table(data, name)

    # operators

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
                span = (_span(tree)[0], _end(tree, n + 1, flat=symbol is not None))
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
            raise PatternSyntaxError("comparisons cannot be chained", typed=self.text, span=_span(tree), fix=fix)
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
        return self.text[slice(*_span(tree))]

    # calls

    def keyword(self, inputs, tree, parameter):
        return Keyword(str(inputs[0]), inputs[1])

    def arguments(self, inputs, tree, parameter):
        return inputs

    items = arguments

    def list(self, inputs, tree, parameter):
        return inputs[0] if inputs else []

    def call(self, inputs, tree, parameter):
        callee = tree.children[0]
        positional, named = self.split(inputs[1] if len(inputs) > 1 else [], tree)
        if callee.data != "name":
            return self.call_value(inputs[0], self.source(callee), positional, named)
        name = str(callee.children[0])
        if name in VALUES:
            return self.call_value(VALUES[name], name, positional, named)
        if name not in FUNCTIONS:
            raise self.unknown(name, _span(callee))
        if name == "table" and positional and isinstance(positional[0], str):
            return self.table(positional[0])
        if name == "range":
            return _range(positional, named)
        _fits(name, FUNCTIONS[name], positional, named)
        if name == "abs" and not isinstance(positional[0], (int, ix.Index)):
            raise OperandError(f"`abs` takes an integer or an index expression, got {positional[0]!r}", fix="write `abs(q - k)`")
        return FUNCTIONS[name](*positional, **named)

    def call_value(self, value, name: str, positional, named):
        if not isinstance(value, Term):
            raise OperandError(f"`{name}` takes no parameters", fix=f"write `{name}` without parentheses")
        _fits(name, value.__call__, positional, named)
        return value(*positional, **named)

    def split(self, arguments, tree):
        positional, named = [], {}
        for a in arguments:
            if isinstance(a, Keyword):
                if a.name in named:
                    raise PatternSyntaxError(f"the parameter `{a.name}` is given twice", typed=self.text, span=_span(tree), fix="remove one")
                named[a.name] = a.value
            elif named:
                raise PatternSyntaxError(
                    "a parameter without a name follows one with a name",
                    typed=self.text,
                    span=_span(tree),
                    fix="name it too, or move it to the front",
                )
            else:
                positional.append(a)
        return positional, named

    def method(self, inputs, tree, parameter):
        value, name = inputs[0], str(inputs[1])
        positional, named = self.split(inputs[2] if len(inputs) > 2 else [], tree)
        if name not in METHODS:
            close = suggest(name, METHODS)
            raise UnknownNameError(
                f"unknown method `.{name}`" + (f"; did you mean `.{close}`?" if close else ""),
                fix="patterns have `.at(f)`, `.shift(s)` and `.roll(s)`",
            )
        if not isinstance(value, Node) or not hasattr(value, name):
            raise OperandError(
                f"`.{name}` applies to patterns, not to `{value}`", fix=f"put the pattern in parentheses: `(causal & window(5)).{name}(...)`"
            )
        _fits(f".{name}", getattr(value, name), positional, named)
        self.work += value.size + 10
        if self.work > MAX_WORK:
            raise LimitError(
                "too many `.at`, `.shift` and `.roll` of large patterns", fix="compose the index functions first: `.at(i - 3)` for three `.shift(1)`"
            )
        return getattr(value, name)(*positional, **named)

    def subscript(self, inputs, tree, parameter):
        if not isinstance(inputs[0], ix.Index):
            raise OperandError(f"only args and tables take subscripts, not `{inputs[0]}`", fix='write `arg("doc")[q]` or `table([0, 1])[q % 2]`')
        return ix.read(inputs[0], tuple(inputs[1]))


def _bounded(value: int) -> int:
    if abs(value) > 10**12:
        raise LimitError("an integer is too large", fix=f"keep integers within {ix.MAX_INT} in magnitude")
    return value


def _range(positional, named) -> range:
    if named or not 1 <= len(positional) <= 3 or not all(isinstance(x, int) for x in positional):
        raise OperandError("range takes one to three integers", fix="write `range(64)`, `range(8, 64)` or `range(0, 64, 2)`")
    if len(positional) == 3 and positional[2] == 0:
        raise ParameterError("the step of a range must not be 0", fix="write `range(0, 64, 2)`")
    return range(*positional)


def _fits(name: str, function, positional, named) -> None:
    """Raise if the arguments do not fit the function's signature."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters if signature.parameters[p].kind is not inspect.Parameter.VAR_POSITIONAL]
    for key in named:
        if key not in parameters:
            close = suggest(key, parameters)
            known = f"its parameters are {', '.join(f'`{p}`' for p in parameters)}" if parameters else "it takes none by name"
            raise ParameterError(f"`{name}` has no parameter `{key}`" + (f"; did you mean `{close}`?" if close else ""), fix=known)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise ParameterError(f"`{name}`: {error}", fix=f"its form is `{name}({', '.join(str(p) for p in signature.parameters)})`") from None


def _span(tree) -> tuple[int, int]:
    """Character offsets of a tree or of a token."""
    if not hasattr(tree, "data"):
        return tree.start_pos, tree.end_pos
    return getattr(tree.meta, "start_pos", 0), getattr(tree.meta, "end_pos", 0)


def _end(tree, operand: int, flat: bool) -> int:
    return _span(tree.children[operand if flat else 2 * operand])[1]
