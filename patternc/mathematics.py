"""Patterns as mathematics: the predicate as a sympy relation, and closed pair counts.

The one file that imports sympy.  It is far too slow for planning or for a call, and serves documentation, `explain`, proofs
in tests, and formulas.
"""

from __future__ import annotations

import math

import numpy as np
import sympy as sp

from patternc.errors import AttentionError, OperandError
from patternc.expr import arithmetic as ar, bounds as bd, index as ix
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import Pattern

MAX_PERIOD = 64  # of the divisors of a pattern, for a formula to be sought
MAX_THRESHOLD = 8_500  # the largest constant, likewise: the counts that are fitted are this long
MAX_PIECES = 4
N = sp.Symbol("n")


def to_sympy(node: Node):
    """A pattern as a sympy boolean, an index expression as a sympy expression.

    Symbols are plain (`sympy.Symbol("q")`), so that `p.sympy().subs({"q": 3, "k": 1})` works; they stand for integers.
    Scalar args are symbols, reads are functions (`doc(q)`), `//` is floor of a quotient, `%` is Mod, a membership is a
    function that is 1 for members.  A pattern per head is a disjunction over `h`.
    """
    if not isinstance(node, (Index, Pattern)):
        raise AttentionError("an attention is not one relation", typed=str(node), fix="ask its patterns: `A.exact.sympy()`, `A.domain.sympy()`")
    done: dict[int, object] = {}
    for n in postorder(node):
        done[id(n)] = _convert(n, [done[id(c)] for c in n.children])
    return done[id(node)]


def _convert(n: Node, parts: list):
    op = n.op
    if op in ("const", "length"):
        return sp.Integer(n.args[0])
    if op in ("var", "arg"):
        return sp.Symbol(n.args[0])
    if op == "sum":
        return sp.Add(n.args[0], *(c * a for c, a in zip(n.args[2::2], parts)))
    if op == "div":
        return sp.floor(parts[0] / parts[1])
    if op == "where":
        return sp.Piecewise((parts[1], _plain(parts[0])), (parts[2], True))
    if op == "table":
        return sp.Symbol(n.args[0].name or "T" + n.args[0].order[1:7])
    if op == "read":
        return sp.Function(parts[0].name, integer=True)(*parts[1:])
    if op == "member":
        return sp.Function(f"in_{parts[0].name}", integer=True)(parts[1])
    if op == "in":
        return _relation(n, parts[0])
    if op == "per_head":
        return sp.Or(*(sp.And(sp.Eq(sp.Symbol("h"), head), p) for head, p in enumerate(parts)))
    if op not in _SYMPY:
        raise OperandError(f"`{op}` has no sympy form", typed=str(n), fix="ask the pattern that you wrote, not one of the compiler's stages")
    return _SYMPY[op](*parts)


_SYMPY = {
    "mul": sp.Mul, "mod": sp.Mod, "min": sp.Min, "max": sp.Max, "abs": sp.Abs, "true": lambda: sp.true, "false": lambda: sp.false,
    "and": sp.And, "or": sp.Or, "not": sp.Not, "xor": sp.Xor,
}  # fmt: skip


def _plain(condition):
    """A condition with cases of conditions in the place of conditions on cases, which sympy 1.14 cannot take apart if they depend on no symbol."""
    asked = [r for r in condition.atoms(sp.Rel) if r.has(sp.Piecewise)]
    return condition.xreplace({r: _by_cases(r, sp.piecewise_fold(r.lhs)) for r in asked})


def _by_cases(relation, cases):
    if not isinstance(cases, sp.Piecewise):
        return relation.func(cases, relation.rhs)
    found = sp.true
    for value, condition in reversed(cases.args):
        found = sp.ITE(condition, _by_cases(relation, value), found)
    return found


def _relation(p: Pattern, core):
    """`low <= core <= high`: an equation where that says the same."""
    x, low, high = p.args
    if low is None or high is None:
        a, b = bd.interval(x)
        if a == high:
            return sp.Eq(core, high)
        if b == low:
            return sp.Eq(core, low)
    if low == high:
        return sp.Eq(core, low)
    return sp.And(*([] if low is None else [sp.Ge(core, low)]), *([] if high is None else [sp.Le(core, high)]))


def count_formula(p: Pattern):
    """The number of allowed pairs of the square pattern [n, n] of one head, as a sympy expression in `n`; or None.

    Patterns of comparisons on q, k and their sum or difference, with constant bounds and divisors, have counts that are a
    polynomial in n of degree 2 at most from some length on, one for each residue of n modulo the common period of the divisors.
    The formula is fitted to counts of short lengths and checked at many others.  Shorter lengths get pieces of their own, exact
    for every n; where they would be many, the formula is a Piecewise for `n >= threshold` only.
    """
    if not isinstance(p, Pattern):
        raise AttentionError("an attention has no pair count", typed=str(p), fix="ask its patterns: `A.exact.count_formula()`")
    shape = _shape_of(p)
    if shape is None:
        return None
    period, reach = shape
    start = reach + period
    lengths = [start + j for j in range(8 * period + 1)]
    counts = _counts(p, lengths[-1])
    formula = _fit(counts, start, period, lengths[-1])
    if formula is None:
        return None
    if len(set(formula)) > 1:  # one polynomial a residue: as many cases as residues are no closed form
        return None
    pieces, stop = [], lengths[-1]
    polynomial = formula[0]
    while True:
        first = stop
        while first > 0 and _at(polynomial, first - 1) == counts[first - 1]:
            first -= 1
        pieces.append((sp.expand(_at(polynomial, N)), N >= first if first > 1 else True))
        if first <= 1 or len(pieces) > MAX_PIECES:
            break
        stop = first - 1
        polynomial = _through([(n, counts[n]) for n in sorted({max(stop - 2, 0), max(stop - 1, 0), stop})])
    return sp.Piecewise(*(pieces if len(pieces) <= MAX_PIECES else pieces[:1]))


def _shape_of(p: Pattern) -> tuple[int, int] | None:
    """`(period, reach)`: the count is a quasi-polynomial of that period for n beyond `reach`; None if that is not provable.

    It holds for boolean combinations of `c <= x <= d` with x one of q, k, q - k, q + k, a quotient of these, or `y % m` with y
    linear: beyond the points where their lines meet, growing the square adds the same shape again and again.
    """
    period, reach = 1, 1
    for node in postorder(p):
        if node.op == "in":
            found = _literal(*node.args)
            if found is None:
                return None
            period, reach = math.lcm(period, found[0]), reach + found[1]
        elif isinstance(node, Pattern) and node.op not in ("and", "or", "not", "xor", "true", "false"):
            return None
    # Lines that bound the pattern meet within `reach`; the period is added for the residues.
    reach += 2 * period
    return (period, reach) if period <= MAX_PERIOD and reach <= MAX_THRESHOLD else None


def _literal(core: Index, low, high) -> tuple[int, int] | None:
    """Period and extent of one comparison of a kind that is known to have a closed count."""
    size = max(abs(x) for x in (low, high) if x is not None) + 2
    if core.op == "mod" and core.args[1].op == "const" and _linear(core.args[0]):
        return core.args[1].args[0], 0
    if _linear(core) and set(ar.terms(core)[1].values()) <= {1, -1} and (len(ar.terms(core)[1]) == 1 or core is _DIFFERENCE or core is _TOTAL):
        return 1, size
    parts = ar.terms(core)[1]
    divisors = [a.args[1].args[0] for a in parts if a.op == "div" and a.args[1].op == "const" and _linear(a.args[0])]
    if len(divisors) == len(parts) and len(set(divisors)) == 1 and (len(parts) == 1 or sorted(parts.values()) == [-1, 1]):
        return divisors[0], divisors[0] * size
    return None


def _linear(x: Index) -> bool:
    return all(a.op == "var" and a.args[0] in ("q", "k") for a in ar.terms(x)[1])


_DIFFERENCE = ar.add(ix.var("q"), ar.scale(ix.var("k"), -1))
_TOTAL = ar.add(ix.var("q"), ix.var("k"))


def _counts(p: Pattern, n: int) -> list[int]:
    """`counts[m]`: allowed pairs with q, k < m, for every m up to n, from one square mask, in strips of rows."""
    shells = np.zeros(n + 1, np.int64)  # pairs by max(q, k)
    k = np.arange(n)
    for first in range(0, n, 256):
        q = np.arange(first, min(first + 256, n))[:, None]
        mask = np.broadcast_to(_evaluate(p, {"q": q, "k": k[None]}), (len(q), n))
        shells += np.bincount(np.maximum(q, k[None])[mask], minlength=n + 1)
    return [0, *np.cumsum(shells)[:n].tolist()]


def _evaluate(root: Pattern, env: dict):
    """The pattern's mask by numpy, for the operations that `_shape_of` admits."""
    done: dict[int, object] = {}
    for n in postorder(root):
        parts = [done[id(c)] for c in n.children]
        if n.op == "sum":
            value = n.args[0] + sum(c * a for c, a in zip(n.args[2::2], parts))
        elif n.op == "in":
            value = (parts[0] >= (parts[0] if n.args[1] is None else n.args[1])) & (parts[0] <= (parts[0] if n.args[2] is None else n.args[2]))
        elif n.op in ("const", "var"):
            value = n.args[0] if n.op == "const" else env[n.args[0]]
        elif n.op in ("true", "false"):
            value = np.array([[n.op == "true"]])
        else:
            value = _NUMPY[n.op](parts)
        done[id(n)] = value
    return done[id(root)]


_NUMPY = {
    "div": lambda p: p[0] // p[1], "mod": lambda p: p[0] % p[1], "not": lambda p: ~p[0], "xor": lambda p: p[0] ^ p[1],
    "and": lambda p: _all(p), "or": lambda p: ~_all([~x for x in p]),
}  # fmt: skip


def _all(parts):
    out = parts[0]
    for x in parts[1:]:
        out = out & x
    return out


def _fit(counts: list[int], first: int, period: int, last: int):
    """For each residue of n the polynomial (a, b, c) through the counts from `first` to `last`, or None if there is none."""
    out = []
    for r in range(period):
        points = [n for n in range(first, last + 1) if n % period == r]
        if len(points) < 4:
            return None
        polynomial = _through([(n, counts[n]) for n in (points[0], points[len(points) // 2], points[-1])])
        if any(_at(polynomial, n) != counts[n] for n in points):
            return None
        out.append(polynomial)
    return out


def _at(polynomial, n: int):
    a, b, c = polynomial
    return (a * n + b) * n + c


def _through(points) -> tuple:
    """The polynomial (a, b, c) of least degree through one to three points (x, y)."""
    f = sp.Poly(sp.interpolate(points, N), N)
    return tuple(f.coeff_monomial(N**d) for d in (2, 1, 0))
