"""Parse trees to expressions, by the operators and functions that Python code calls.

The tree is walked without recursion, and works for any parser whose trees have `data`, `children` and `meta` with positions.
"""

from __future__ import annotations

from patternc.errors import LimitError, OperandError, ParameterError, PatterncError, PatternSyntaxError, UnknownNameError, suggest
from patternc.expr import index as ix
from patternc.expr.attention import Term
from patternc.expr.calls import check_fit
from patternc.expr.node import Node
from patternc.joining import Operators, span_of
from patternc.vocabulary import FUNCTIONS, METHODS, NAMES, PRIMITIVES, VALUES, keyword

MAX_WORK = 60_000  # nodes that `.at`, `.shift` and `.roll` may rebuild in one text


class Keyword:
    """`name=value` among the arguments of a call."""

    def __init__(self, name: str, value):
        self.name, self.value = name, value


class Builder(Operators):
    """Evaluates a parse tree bottom-up, without recursion."""

    def __init__(self, text: str, tables: dict):
        self.text, self.tables, self.work = text, tables, 0
        self.read, self.args = set(), set()  # names of tables, and of args that stand in a parameter's place

    def check_tables(self) -> None:
        """Raise UnknownNameError for a table that the text does not name."""
        for name in self.tables:
            if name not in self.read:
                close = suggest(name, self.args)
                fix = f"did you mean `{close}`, which is a runtime arg as it stands?" if close else f'read it by `table("{name}")`, or leave it out'
                raise UnknownNameError(f"the text names no table `{name}`", typed=self.text, fix=fix)

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
                raise type(error)(error.message, typed=self.text, span=span_of(tree), fix=error.fix) from None
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
                f"`{name}` is a function", typed=self.text, span=span_of(tree), fix=f"give it parameters in parentheses: `{name}(...)`"
            )
        if parameter and not keyword.iskeyword(name):
            self.args.add(name)
            return ix.arg(name)
        raise self.unknown(name, span_of(tree))

    def unknown(self, name: str, span) -> UnknownNameError:
        close = suggest(name, NAMES - set(METHODS) - {"None", "True", "False"})
        hint = f"; did you mean `{close}`?" if close else ""
        fix = f'a runtime value is written `arg("{name}")`'
        return UnknownNameError(f"unknown pattern `{name}`{hint}", typed=self.text, span=span, fix=f"write `{close}`; {fix}" if close else fix)

    def table(self, name: str):
        if name not in self.tables:
            close = suggest(name, self.tables)
            raise UnknownNameError(f"table `{name}` is not given" + (f"; did you mean `{close}`?" if close else ""), fix=f"parse(text, {name}=array)")
        self.read.add(name)
        data = self.tables[name]
        if isinstance(data, Node) or callable(data):
            return data
        return ix.table(data, name)

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
            raise self.unknown(name, span_of(callee))
        if name == "table" and positional and isinstance(positional[0], str):
            return self.table(positional[0])
        if name == "range":
            return _range(positional, named)
        check_fit(name, FUNCTIONS[name], positional, named)
        if name == "abs" and not isinstance(positional[0], (int, ix.Index)):
            raise OperandError(f"`abs` takes an integer or an index expression, got {positional[0]!r}", fix="write `abs(q - k)`")
        return FUNCTIONS[name](*positional, **named)

    def call_value(self, value, name: str, positional, named):
        if not isinstance(value, Term):
            raise OperandError(f"`{name}` takes no parameters", fix=f"write `{name}` without parentheses")
        check_fit(name, value.__call__, positional, named)
        return value(*positional, **named)

    def split(self, arguments, tree):
        positional, named = [], {}
        for a in arguments:
            if isinstance(a, Keyword):
                if a.name in named:
                    raise PatternSyntaxError(f"the parameter `{a.name}` is given twice", typed=self.text, span=span_of(tree), fix="remove one")
                named[a.name] = a.value
            elif named:
                raise PatternSyntaxError(
                    "a parameter without a name follows one with a name",
                    typed=self.text,
                    span=span_of(tree),
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
        check_fit(f".{name}", getattr(value, name), positional, named)
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


def _range(positional, named) -> range:
    if named or not 1 <= len(positional) <= 3 or not all(isinstance(x, int) for x in positional):
        raise OperandError("range takes one to three integers", fix="write `range(64)`, `range(8, 64)` or `range(0, 64, 2)`")
    if len(positional) == 3 and positional[2] == 0:
        raise ParameterError("the step of a range must not be 0", fix="write `range(0, 64, 2)`")
    return range(*positional)
