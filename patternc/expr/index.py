"""Integer index expressions: `q`, `k`, `h`, `b`, lengths, runtime args and tables; their arithmetic is in `arithmetic`."""

from __future__ import annotations

import operator

from patternc.errors import LimitError, OperandError, ParameterError, TruthValueError
from patternc.expr.calls import fitting
from patternc.expr.node import Node
from patternc.expr.refuse import refuse
from patternc.expr.table import Table

MAX_INT = 2**31 - 1
VARIABLES = ("q", "k", "h", "b", "n_q", "n_k")
PLACEHOLDER = "i"  # the argument of an index function, as in `same(i // 64)`


@refuse("an index expression", "index expressions have `+ - * // %`, `abs`, `min`, `max`, `where` and comparisons")
class Index(Node):
    """An integer expression over positions.  Comparisons of two of them are patterns."""

    __slots__ = ()

    def __add__(self, other):
        return _arithmetic.add(self, as_index(other, "+", self))

    def __sub__(self, other):
        return _arithmetic.add(self, _arithmetic.scale(as_index(other, "-", self), -1))

    def __mul__(self, other):
        return _arithmetic.multiply(self, as_index(other, "*", self))

    def __floordiv__(self, other):
        return _arithmetic.floordiv(self, as_index(other, "//", self))

    def __mod__(self, other):
        return _arithmetic.mod(self, as_index(other, "%", self))

    def __radd__(self, other):
        return as_index(other, "+", self) + self

    def __rsub__(self, other):
        return as_index(other, "-", self) - self

    def __rmul__(self, other):
        return as_index(other, "*", self) * self

    def __rfloordiv__(self, other):
        return as_index(other, "//", self) // self

    def __rmod__(self, other):
        return as_index(other, "%", self) % self

    def __neg__(self):
        return _arithmetic.scale(self, -1)

    def __pos__(self):
        return self

    def __abs__(self):
        return _arithmetic.absolute(self)

    def __le__(self, other):
        return _pattern.compare(self, "<=", other)

    def __lt__(self, other):
        return _pattern.compare(self, "<", other)

    def __ge__(self, other):
        return _pattern.compare(self, ">=", other)

    def __gt__(self, other):
        return _pattern.compare(self, ">", other)

    def __eq__(self, other):
        return _pattern.compare(self, "==", other)

    def __ne__(self, other):
        return _pattern.compare(self, "!=", other)

    __hash__ = object.__hash__

    def __getitem__(self, subscripts) -> Index:
        return read(self, subscripts if isinstance(subscripts, tuple) else (subscripts,))

    def __truediv__(self, other):
        raise OperandError("`/` does not give an integer", fix="use `//`, the floor division")

    __rtruediv__ = __truediv__

    def __and__(self, other):
        raise OperandError(
            "`&`, `|`, `^` and `~` combine patterns, and this operand is an index expression",
            typed=str(self),
            fix="`&` binds tighter than a comparison: put parentheses around it, `(k <= q) & causal`",
        )

    __or__ = __xor__ = __rand__ = __ror__ = __rxor__ = __and__

    def __invert__(self):
        return self.__and__(None)

    def __bool__(self):
        raise TruthValueError("an index expression has no truth value", typed=str(self), fix="compare it, `q - k < 4`, or use `where`")

    def sympy(self):
        """The expression in sympy, see `Pattern.sympy`."""
        from patternc.mathematics import to_sympy

        return to_sympy(self)

    def __str__(self):
        from patternc.printing import to_text

        return to_text(self)

    __repr__ = __str__


def as_index(value, symbol: str = "", left=None) -> Index:
    """`value` as an index expression; raises OperandError for what is not an integer."""
    if isinstance(value, Index):
        return unread(value) if value.op == "table" else value
    if isinstance(value, Node):
        kind = type(value).__name__.lower()
        raise OperandError(
            f"`{symbol or 'an index'}` takes integers and index expressions, not the {kind} `{value}`",
            fix="a comparison needs parentheses beside `&` and `|`, as in `(k <= q) & causal`",
        )
    try:
        return const(operator.index(value))
    except TypeError:
        hint = f'`arg("{value}")` names a runtime value' if isinstance(value, str) else "positions are integers; use `//` to divide"
        raise OperandError(f"expected an integer or an index expression, got {value!r}", fix=hint) from None


def unread(source: Index):
    raise OperandError("a table is not an integer until it is subscripted", typed=str(source), fix="subscript it: `table([0, 1])[q % 2]`")


def const(value: int) -> Index:
    if abs(value) > MAX_INT:
        digits = str(value) if abs(value) < 10**20 else f"of {len(hex(value)) * 1204 // 1000} digits"
        raise LimitError(f"integer {digits} is too large", fix=f"keep integers within {MAX_INT} in magnitude")
    return Index("const", int(value))


def var(name: str) -> Index:
    return Index("var", name)


@fitting("arg")
def arg(name: str) -> Index:
    """A value given by name when the attention is called: a scalar as it stands, a tensor when subscripted.

    `arg("w")` is an int, or an int tensor of shape [] or [B]; `arg("doc")[q]` reads a tensor of shape [n_k] or [B, n_k].
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ParameterError(f"an arg needs a name that is a Python identifier, got {name!r}", fix='write `arg("doc")`')
    if name in RESERVED or name in VARIABLES:
        raise ParameterError(f"`{name}` cannot name an arg: the call itself uses that name", fix=f'rename it, as in `arg("{name}_")`')
    return Index("arg", name)


RESERVED = frozenset(
    "query key value scale return_lse q_start check tail_q tail_k n_k heads batch head_dim backend self out state i name "
    "device tile tiles transposed value_dim kv_heads head row ax path".split()
)


@fitting("fixed_length")
def fixed_length(count) -> Index:
    """The number of keys where it is known: the integer `count`, and a promise that there are as many keys.

    Any other number of keys is a ShapeError at the call.  Grids need it: what lies above a pixel depends on the width.
    """
    try:
        number = operator.index(count)
    except TypeError:
        number = 0
    if number < 1:
        raise ParameterError(f"fixed_length takes an integer of at least 1, got {count!r}", fix="write `fixed_length(64 * 64)`")
    const(number)  # checks its magnitude
    return Index("length", number)


@fitting("where")
def where(condition, x, y) -> Index:
    """`x` where the condition (a pattern) holds, else `y`."""
    condition = _pattern.as_pattern(condition, "where")
    x, y = as_index(x, "where"), as_index(y, "where")
    if condition.op == "true" or x is y:
        return x
    return y if condition.op == "false" else Index("where", condition, x, y)


@fitting("table")
def table(data, name: str | None = None) -> Index:
    """A static integer table, read by subscripts: `table([0, 2, 1])[q // 64]`.

    Args:
        data: nested lists or an array of integers or bools, at least one-dimensional.
        name: how a table of more than 64 entries is written in text; it is given again to `parse(text, name=data)`.
    """
    return Index("table", Table.of(data, name))


def read(source: Index, subscripts: tuple) -> Index:
    """`source[subscripts]` for an arg or a table.  An index outside makes the comparison around it false."""
    if source.op not in ("arg", "table", "data"):
        raise OperandError(f"only args and tables take subscripts, not `{source}`", fix='write `arg("doc")[q]` or `table([0, 1])[q % 2]`')
    subscripts = tuple(as_index(s, "[]") for s in subscripts)
    if not subscripts:
        raise ParameterError(f"no subscripts for `{source}`", fix="give one index per axis, as in `[b, q]`")
    if source.op == "table" and len(subscripts) != source.args[0].data.ndim:
        raise ParameterError(
            f"a table of shape {source.args[0].data.shape} takes {source.args[0].data.ndim} subscripts, got {len(subscripts)}",
            fix="give one index per axis",
        )
    return Index("read", source, *subscripts)


def member(source: Index, position: Index, kind: str) -> Index:
    """1 where `position` belongs to the set `source`, else 0.

    `source` is a table of sorted positions (`kind="positions"`), or an arg: a bool mask, a list of positions
    (`kind="positions"`) or lengths (`kind="lengths"`).
    """
    return Index("member", source, position, kind)


# Operators build sums and patterns, which are built on indices.
from patternc.expr import arithmetic as _arithmetic, pattern as _pattern  # noqa: E402
