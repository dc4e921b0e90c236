"""Integer index expressions: `q`, `k`, `h`, `b`, lengths, runtime args, tables, and arithmetic on them.

Constructors canonicalise, so two ways of writing the same linear form give the same object: a sum is stored as
`c0 + c1*atom1 + c2*atom2 + ...` with sorted atoms, and `//` and `%` pull out what is divisible.  Every rewrite here holds
for all integers; what needs bounds is done later (`patternc.passes`).
"""

from __future__ import annotations

import math
import operator

from patternc.errors import LimitError, OperandError, ParameterError, TruthValueError
from patternc.expr.node import Node, fact
from patternc.expr.refuse import refuse
from patternc.expr.table import Table

MAX_INT = 2**31 - 1
INF = math.inf
VARIABLES = ("q", "k", "h", "b", "n_q", "n_k")
PLACEHOLDER = "i"  # the argument of an index function, as in `same(i // 64)`


@refuse("an index expression", "index expressions have `+ - * // %`, `abs`, `min`, `max`, `where` and comparisons")
class Index(Node):
    """An integer expression over positions.  Comparisons of two of them are patterns."""

    __slots__ = ()

    def __add__(self, other):
        return add(self, as_index(other, "+", self))

    def __sub__(self, other):
        return add(self, scale(as_index(other, "-", self), -1))

    def __mul__(self, other):
        return multiply(self, as_index(other, "*", self))

    def __floordiv__(self, other):
        return floordiv(self, as_index(other, "//", self))

    def __mod__(self, other):
        return mod(self, as_index(other, "%", self))

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
        return scale(self, -1)

    def __pos__(self):
        return self

    def __abs__(self):
        return absolute(self)

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
        return _unread(value) if value.op == "table" else value
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


def _unread(source: Index):
    raise OperandError("a table is not an integer until it is subscripted", typed=str(source), fix="subscript it: `table([0, 1])[q % 2]`")


def const(value: int) -> Index:
    if abs(value) > MAX_INT:
        digits = str(value) if abs(value) < 10**20 else f"of {len(hex(value)) * 1204 // 1000} digits"
        raise LimitError(f"integer {digits} is too large", fix=f"keep integers within {MAX_INT} in magnitude")
    return Index("const", int(value))


def var(name: str) -> Index:
    return Index("var", name)


def arg(name: str) -> Index:
    """A value given by name when the attention is called: a scalar as it stands, a tensor when subscripted.

    `arg("w")` is an int, or an int tensor of shape [] or [B]; `arg("doc")[q]` reads a tensor of shape [n_k] or [B, n_k].
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ParameterError(f"an arg needs a name that is a Python identifier, got {name!r}", fix='write `arg("doc")`')
    if name in RESERVED or name in VARIABLES:
        raise ParameterError(f"`{name}` cannot name an arg: the call itself uses that name", fix=f'rename it, as in `arg("{name}_")`')
    return Index("arg", name)


RESERVED = frozenset("query key value scale return_lse q_start check tail_q tail_k n_k heads batch head_dim backend self out state i name".split())


def terms(x: Index) -> tuple[int, dict[Index, int]]:
    """`(constant, {atom: coefficient})` of a linear form; any other node is an atom with coefficient 1."""
    if x.op == "const":
        return x.args[0], {}
    if x.op == "sum":
        return x.args[0], dict(zip(x.args[1::2], x.args[2::2]))
    return 0, {x: 1}


def linear(constant: int, parts: dict[Index, int]) -> Index:
    """The canonical node of `constant + sum(coefficient * atom)`."""
    items = sorted(((a, c) for a, c in parts.items() if c), key=lambda item: item[0].order)
    for atom, _ in items:
        if atom.op == "table":
            _unread(atom)
    if not items:
        return const(constant)
    if len(items) == 1 and constant == 0 and items[0][1] == 1:
        return items[0][0]
    for value in (constant, *(c for _, c in items)):
        const(value)  # checks its magnitude
    return Index("sum", constant, *(x for item in items for x in item))


def affine(x: Index) -> tuple[Index | None, int, int]:
    """`(core, g, c)` with `x == g*core + c`: coefficients of the core have gcd 1 and the first is positive; None if constant."""
    constant, parts = terms(x)
    if not parts:
        return None, 0, constant
    g = math.gcd(*parts.values())
    if parts[min(parts, key=lambda a: a.order)] < 0:
        g = -g
    return linear(0, {a: c // g for a, c in parts.items()}), g, constant


def add(x: Index, y: Index) -> Index:
    (cx, px), (cy, py) = terms(x), terms(y)
    merged = dict(px)
    for atom, c in py.items():
        merged[atom] = merged.get(atom, 0) + c
    return linear(cx + cy, merged)


def scale(x: Index, factor: int) -> Index:
    c, parts = terms(x)
    return linear(c * factor, {a: w * factor for a, w in parts.items()})


def multiply(x: Index, y: Index) -> Index:
    for a, b in ((x, y), (y, x)):
        if b.op == "const":
            return scale(a, b.args[0])
    as_index(x, "*"), as_index(y, "*")
    return Index("mul", *sorted((x, y), key=lambda n: n.order))


def _check_divisor(m: Index, symbol: str) -> None:
    low = lower_bound(m)
    if low < 1:
        shown = m.args[0] if m.op == "const" else str(m)
        fix = "use a positive integer" if m.op == "const" else f"write `max({shown}, 1)`"
        raise ParameterError(f"the divisor of `{symbol}` must be provably at least 1, and `{shown}` is not", fix=fix)


def floordiv(x: Index, m: Index) -> Index:
    """Floor division.  `(m*A + B)//m -> A + B//m` and `(A//a)//m -> A//(a*m)`."""
    _check_divisor(m, "//")
    if m.op != "const":
        return const(0) if x.op == "const" and x.args[0] == 0 else Index("div", x, m)
    n = m.args[0]
    c, parts = terms(x)
    whole = linear(c // n, {a: w // n for a, w in parts.items() if w % n == 0})
    rest = linear(c % n, {a: w for a, w in parts.items() if w % n})
    if rest.op == "const":  # 0 <= c % n < n
        return whole
    if rest.op == "div" and rest.args[1].op == "const":
        return add(whole, floordiv(rest.args[0], const(rest.args[1].args[0] * n)))
    return add(whole, Index("div", rest, m))


def mod(x: Index, m: Index) -> Index:
    """Non-negative remainder.  Coefficients are reduced modulo a constant divisor; `(A % a) % m -> A % m` if m divides a."""
    _check_divisor(m, "%")
    if m.op != "const":
        return const(0) if x.op == "const" and x.args[0] == 0 else Index("mod", x, m)
    n = m.args[0]
    c, parts = terms(x)
    reduced = {}
    for atom, w in parts.items():
        w = (w + n // 2) % n - n // 2  # the remainder of least magnitude keeps `q - k` as it is
        if w == -(n // 2) and n % 2 == 0:
            w = n // 2
        if w:
            reduced[atom] = w
    rest = linear(c % n, reduced)
    if rest.op == "const":
        return rest
    if rest.op == "mod" and rest.args[1].op == "const":
        inner = rest.args[1].args[0]
        if inner % n == 0:
            return mod(rest.args[0], m)
        if n % inner == 0:
            return rest
    return Index("mod", rest, m)


def _extremum(op: str, pick, xs: tuple) -> Index:
    flat: list[Index] = []
    seen: set[int] = set()
    constant = None
    for x in xs:
        x = as_index(x, op)
        for part in x.args if x.op == op else (x,):
            if part.op == "const":
                constant = part.args[0] if constant is None else pick(constant, part.args[0])
            elif id(part) not in seen:
                seen.add(id(part))
                flat.append(part)
    if constant is not None:
        flat.append(const(constant))
    if not flat:
        raise OperandError(f"`{op}` needs at least one operand", fix=f"write `{op}(q, k)`")
    return flat[0] if len(flat) == 1 else Index(op, *sorted(flat, key=lambda n: n.order))


def minimum(*xs) -> Index:
    """The smallest of integers and index expressions (`pc.min`)."""
    return _extremum("min", min, xs)


def maximum(*xs) -> Index:
    """The largest of integers and index expressions (`pc.max`)."""
    return _extremum("max", max, xs)


def clamp(x, low, high) -> Index:
    """`min(max(x, low), high)`."""
    return minimum(maximum(x, low), high)


def absolute(x) -> Index:
    """`abs(x)`; `abs(-x)` is the same node."""
    x = as_index(x, "abs")
    if x.op == "const":
        return const(abs(x.args[0]))
    _, g, _ = affine(x)
    x = scale(x, -1) if g < 0 else x
    return x if x.op == "abs" else Index("abs", x)


def where(condition, x, y) -> Index:
    """`x` where the condition (a pattern) holds, else `y`."""
    condition = _pattern.as_pattern(condition, "where")
    x, y = as_index(x, "where"), as_index(y, "where")
    if condition.op == "true" or x is y:
        return x
    return y if condition.op == "false" else Index("where", condition, x, y)


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


@fact
def lower_bound(x: Index) -> float:
    return interval(x)[0]


@fact
def interval(x: Index) -> tuple[float, float]:
    """Bounds that hold for every non-negative `q, k, h, b`, every length of at least 1 and every value of args."""
    if x.op == "const":
        return x.args[0], x.args[0]
    if x.op == "var":
        return {"n_q": (1, INF), "n_k": (1, INF), PLACEHOLDER: (-INF, INF)}.get(x.args[0], (0, INF))
    if x.op == "sum":
        low = high = x.args[0]
        for atom, w in terms(x)[1].items():
            a, b = interval(atom)
            low, high = (low + w * a, high + w * b) if w > 0 else (low + w * b, high + w * a)
        return low, high
    if x.op == "mul":
        (a, b), (c, d) = interval(x.args[0]), interval(x.args[1])
        corners = [0 if 0 in (u, v) else u * v for u in (a, b) for v in (c, d)]
        return min(corners), max(corners)
    if x.op == "div":
        (a, b), (c, d) = interval(x.args[0]), interval(x.args[1])
        corners = [_quotient(u, v) for u in (a, b) for v in (c, d)]
        return min(corners), max(corners)
    if x.op == "mod":
        return 0, interval(x.args[1])[1] - 1
    if x.op in ("min", "max"):
        pick = min if x.op == "min" else max
        bounds = [interval(c) for c in x.args]
        return pick(a for a, _ in bounds), pick(b for _, b in bounds)
    if x.op == "abs":
        a, b = interval(x.args[0])
        return (0 if a <= 0 <= b else min(abs(a), abs(b))), max(abs(a), abs(b))
    if x.op == "where":
        (a, b), (c, d) = interval(x.args[1]), interval(x.args[2])
        return min(a, c), max(b, d)
    if x.op in ("member", "inside"):
        return 0, 1
    if x.op == "read" and x.args[0].op in ("table", "data"):
        return x.args[0].args[0].extremes
    return -INF, INF  # args


def _quotient(a: float, b: float) -> float:
    """Floor division that knows infinities."""
    if abs(a) == INF:
        return a
    if b == INF:
        return 0 if a >= 0 else -1
    return a // b


from patternc.expr import pattern as _pattern  # noqa: E402  comparisons build patterns, which are built on indices
