"""Arithmetic on index expressions, in canonical form.

A sum is stored as `c0 + c1*atom1 + c2*atom2 + ...` with sorted atoms, and `//` and `%` pull out what is divisible.  Every
rewrite here holds for all integers; what needs bounds is done later (`patternc.passes`).
"""

from __future__ import annotations

import math

from patternc.errors import OperandError, ParameterError
from patternc.expr.bounds import interval
from patternc.expr.calls import fitting
from patternc.expr.index import MAX_INT, Index, as_index, const, unread


def terms(x: Index) -> tuple[int, dict[Index, int]]:
    """`(constant, {atom: coefficient})` of a linear form; any other node is an atom with coefficient 1."""
    if x.op == "const":
        return x.args[0], {}
    if x.op == "sum":
        return x.args[0], dict(zip(x.args[1::2], x.args[2::2]))
    return 0, {x: 1}


def linear(constant: int, parts: dict[Index, int]) -> Index:
    """The canonical node of `constant + sum(coefficient * atom)`."""
    items = [item for item in parts.items() if item[1]]
    if len(items) > 1:
        items.sort(key=lambda item: item[0].order)
    for atom, _ in items:
        if atom.op == "table":
            unread(atom)
    if not items:
        return const(constant)
    if len(items) == 1 and constant == 0 and items[0][1] == 1:
        return items[0][0]
    for value in (constant, *(c for _, c in items)):
        if abs(value) > MAX_INT:
            const(value)  # raises
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
    return combine(0, ((x, 1), (y, 1)))


def combine(constant: int, items) -> Index:
    """`constant + sum(weight * x)` for `(x, weight)`."""
    merged: dict[Index, int] = {}
    for x, weight in items:
        own, parts = terms(x)
        constant += weight * own
        for atom, c in parts.items():
            merged[atom] = merged.get(atom, 0) + weight * c
    return linear(constant, merged)


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
    low = interval(m)[0]
    if low < 1:
        shown = m.args[0] if m.op == "const" else str(m)
        fix = "use a positive integer" if m.op == "const" else f"write `max({shown}, 1)`"
        raise ParameterError(f"the divisor of `{symbol}` must be provably at least 1, and `{shown}` is not", fix=fix)


def divisor(m: Index) -> Index:
    """A divisor that is known to be at least 1, as constructors can see it: bounds of digits may have taken its `max(.., 1)` away."""
    return m if interval(m)[0] >= 1 else maximum(m, 1)


def multiples(x: Index, n: int) -> tuple[Index, Index]:
    """`(A, R)` with `x == n*A + R`: A takes every term whose coefficient is a multiple of n, and what it can of the constant."""
    c, parts = terms(x)
    whole = linear(c // n, {a: w // n for a, w in parts.items() if w % n == 0})
    return whole, linear(c % n, {a: w for a, w in parts.items() if w % n})


def floordiv(x: Index, m: Index) -> Index:
    """Floor division.  `(m*A + B)//m -> A + B//m` and `(A//a)//m -> A//(a*m)`."""
    _check_divisor(m, "//")
    if m.op != "const":
        return const(0) if x.op == "const" and x.args[0] == 0 else Index("div", x, m)
    n = m.args[0]
    whole, rest = multiples(x, n)
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


@fitting("min")
def minimum(*xs) -> Index:
    """The smallest of integers and index expressions (`pc.min`)."""
    return _extremum("min", min, xs)


@fitting("max")
def maximum(*xs) -> Index:
    """The largest of integers and index expressions (`pc.max`)."""
    return _extremum("max", max, xs)


@fitting("clamp")
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
