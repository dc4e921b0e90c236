"""Patterns: sets of (b, h, q, k), built from comparisons of index expressions and the set algebra.

The one comparison is `core in [low, high]` on a canonical linear form, so `q - k < 5`, `k > q - 5` and `not (q - k >= 5)`'s
positive half meet on the same core.  Constructors remove what is trivially true or false and flatten; the structure that
the user wrote is otherwise kept, so that a pattern prints as it was thought.
"""

from __future__ import annotations

from patternc.errors import OperandError, TruthValueError
from patternc.expr.arithmetic import add, affine, mod, scale
from patternc.expr.bounds import interval
from patternc.expr.calls import fitting
from patternc.expr.index import Index, as_index
from patternc.expr.node import Node
from patternc.expr.refuse import refuse

TRUTH_HINT = "use `&`, `|` and `~` instead of `and`, `or` and `not`, and two comparisons instead of a chained one: `(0 <= q - k) & (q - k < 5)`"


@refuse("patterns", "patterns combine by `&`, `|`, `-`, `^` and `~`; comparisons need parentheses beside them")
class Pattern(Node):
    """A set of (b, h, q, k): which keys each query may attend to.  `==` compares by identity."""

    __slots__ = ()

    def __and__(self, other):
        return _combine(self, other, "&")

    def __or__(self, other):
        return _combine(self, other, "|")

    def __xor__(self, other):
        return _combine(self, other, "^")

    def __sub__(self, other):
        return _combine(self, other, "-")

    def __add__(self, other):
        from patternc.expr.attention import plus

        return plus(self, other)

    def __invert__(self):
        return negate(self)

    def __rand__(self, other):
        as_pattern(other, "&")  # never a pattern, so this raises

    def __ror__(self, other):
        as_pattern(other, "|")

    def __rxor__(self, other):
        as_pattern(other, "^")

    def __rsub__(self, other):
        as_pattern(other, "-")

    def __bool__(self):
        raise TruthValueError("a pattern has no truth value", typed=str(self), fix=TRUTH_HINT)

    def __str__(self):
        from patternc.printing import to_text

        return to_text(self)

    __repr__ = __str__

    @fitting(".at")
    def at(self, f) -> Pattern:
        """The pullback `A(f(q), f(k))`.

        Args:
            f: an index expression in the placeholder `i` (`pc.i // 64`), an arg or table to be subscripted by the
                position, or a Python callable that is applied to the placeholder once.
        """
        from patternc.expr.transform import apply_index, substitute

        return substitute(self, {v: apply_index(f, v) for v in (Q, K)}, checked=True)

    @fitting(".shift")
    def shift(self, s) -> Pattern:
        """`A(q - s, k - s)`: the pattern moved `s` positions to the right."""
        return self.at(PLACE - as_index(s, "shift"))

    @fitting(".roll")
    def roll(self, s) -> Pattern:
        """`A((q - s) % n_k, (k - s) % n_k)`: moved to the right, wrapping around."""
        return self.at((PLACE - as_index(s, "roll")) % N_K)

    def dense(self, n_q: int, n_k: int | None = None, heads: int = 1, batch: int = 1, *, q_start=None, device=None, **args):
        """The reference meaning: every pair, one by one.

        Args:
            n_q, n_k: number of queries and keys (n_k defaults to n_q); queries are the last n_q positions.
            q_start: position of the first query, an int or an int tensor of shape [] or [batch].
            args: the runtime args by name.
        Returns:
            a bool tensor of shape [batch, heads, n_q, n_k].
        Raises:
            ArgError, ShapeError, DtypeError: when args are missing, unknown or do not fit.
        """
        from patternc.reference import dense

        return dense(self, n_q, n_k, heads=heads, batch=batch, q_start=q_start, device=device, **args)

    def sympy(self):
        """The predicate as a sympy relation in the symbols q, k, h, b, n_q, n_k, for LaTeX and proofs."""
        from patternc.mathematics import to_sympy

        return to_sympy(self)

    def count_formula(self):
        """The closed number of allowed pairs of a square pattern as a sympy expression in n, or None if none is known."""
        from patternc.mathematics import count_formula

        return count_formula(self)


FULL = Pattern("true")
EMPTY = Pattern("false")
Q, K, N_Q, N_K = (Index("var", name) for name in ("q", "k", "n_q", "n_k"))
H, B = Index("var", "h"), Index("var", "b")
PLACE = Index("var", "i")


def as_pattern(value, symbol: str) -> Pattern:
    if isinstance(value, Pattern):
        return value
    if isinstance(value, Index):
        value.__and__(None)  # raises, naming the parentheses that are missing
    if isinstance(value, Node):
        kind = "attention" if value.op == "attention" else "term"
        fix = "name its part: `A.exact` or `A.domain`" if kind == "attention" else "a term is added to a pattern: `causal + linear_tail`"
        raise OperandError(f"`{symbol}` takes patterns here, not the {kind} `{value}`", fix=fix)
    raise OperandError(f"`{symbol}` takes patterns, got {value!r}", fix="`pc.full` and `pc.empty` are the constant patterns")


def compare(x: Index, relation: str, other) -> Pattern:
    """`x relation other` as a pattern."""
    if isinstance(other, Pattern):
        raise OperandError(
            f"`{relation}` compares index expressions, and the right side is the pattern `{other}`",
            fix="`&` and `|` bind tighter than a comparison: write `(k <= q) & causal`",
        )
    d = add(x, scale(as_index(other, relation, x), -1))
    if relation == "<=":
        return between(d, None, 0)
    if relation == "<":
        return between(d, None, -1)
    if relation == ">=":
        return between(d, 0, None)
    if relation == ">":
        return between(d, 1, None)
    if relation == "==":
        return between(d, 0, 0)
    return any_of(between(d, None, -1), between(d, 1, None))  # `!=` is a comparison: false where a read is outside


def between(x: Index, low: int | None, high: int | None) -> Pattern:
    """`low <= x <= high` in canonical form; None leaves a side open.

    The bounds are moved onto the core of `x` (gcd 1, first coefficient positive, no constant), `abs` is unfolded, and what
    holds for all integers by the range of `%` and of a membership is removed.
    """
    core, g, c = affine(x)
    if core is None:
        inside = (low is None or low <= c) and (high is None or c <= high)
        return FULL if inside else EMPTY
    low, high = (None if low is None else low - c), (None if high is None else high - c)
    if g < 0:
        low, high, g = (None if high is None else -high), (None if low is None else -low), -g
    low, high = (None if low is None else -(-low // g)), (None if high is None else high // g)
    if core.op in ("mod", "member", "inside"):
        a, b = interval(core)
        if (low is not None and low > b) or (high is not None and high < a):
            return EMPTY
        low, high = (None if low is not None and low <= a else low), (None if high is not None and high >= b else high)
    if low is not None and high is not None and low > high:
        return EMPTY
    if low is None and high is None:
        return FULL
    if core.op == "abs":
        return _unfold_abs(core.args[0], low, high)
    if core.op == "mod" and high == 0:
        core = _residue_zero(core)
    return Pattern("in", core, low, high)


def _unfold_abs(x: Index, low: int | None, high: int | None) -> Pattern:
    if low is None or low <= 0:
        return FULL if high is None else between(x, -high, high)
    if high is None:
        return any_of(between(x, None, -low), between(x, low, None))
    return any_of(between(x, -high, -low), between(x, low, high))


def _residue_zero(core: Index) -> Index:
    """`(k - q) % m == 0` is `(q - k) % m == 0`: make the first coefficient positive."""
    x, m = core.args
    _, g, c = affine(x)
    return mod(scale(x, -1), m) if g < 0 and c == 0 else core


def _flatten(op: str, parts) -> list[Pattern]:
    out: dict[int, Pattern] = {}
    for part in parts:
        for p in part.args if part.op == op else (part,):
            out.setdefault(id(p), p)
    return list(out.values())


def _join(op: str, parts, unit: Pattern, zero: Pattern) -> Pattern:
    flat = [p for p in _flatten(op, parts) if p is not unit]
    identities = {id(p) for p in flat}
    if any(p is zero or (p.op == "not" and id(p.args[0]) in identities) for p in flat):
        return zero
    if not flat:
        return unit
    return flat[0] if len(flat) == 1 else Pattern(op, *flat)


def all_of(*parts: Pattern) -> Pattern:
    return _join("and", parts, FULL, EMPTY)


def any_of(*parts: Pattern) -> Pattern:
    return _join("or", parts, EMPTY, FULL)


def negate(p: Pattern) -> Pattern:
    if p.op == "not":
        return p.args[0]
    return EMPTY if p is FULL else FULL if p is EMPTY else Pattern("not", p)


def symmetric_difference(a: Pattern, b: Pattern) -> Pattern:
    if a is b:
        return EMPTY
    for x, y in ((a, b), (b, a)):
        if x is EMPTY:
            return y
        if x is FULL:
            return negate(y)
    return Pattern("xor", a, b)


def per_head_of(*parts: Pattern) -> Pattern:
    return Pattern("per_head", *parts)


def _combine(a: Pattern, b, symbol: str):
    from patternc.expr.attention import Attention, combine

    if isinstance(b, Attention):
        return combine(a, b, symbol)
    b = as_pattern(b, symbol)
    if symbol == "&":
        return all_of(a, b)
    if symbol == "|":
        return any_of(a, b)
    return all_of(a, negate(b)) if symbol == "-" else symmetric_difference(a, b)
