"""What holds because digits are bounded: the rules that turn an expression in positions into one in digits.

`6*(q0 - k0) + q1 - k1 <= 599` with `q1 == k1` beside it becomes `q0 - k0 <= 99`, and `(128*q0 + q1) // 128` becomes `q0`.
"""

from __future__ import annotations

from functools import lru_cache

from patternc.errors import InternalError
from patternc.expr.arithmetic import affine, multiples, terms
from patternc.expr.bounds import INF, bounds
from patternc.expr.index import Index, const
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import EMPTY, Pattern, all_of, any_of, between
from patternc.expr.transform import rebuild, rewrite, substitute
from patternc.orders.digits import Order
from patternc.passes import Conjunct, decided, merge, unwrapped, variables
from patternc.passes.normal import DECIDED, UNWRAPPED, Bounds
from patternc.passes.rules import Rule

ROUNDS = 64  # rules that still change a node after so many steps are looping
MOST_MULTIPLES = 2  # alternatives that one comparison may become
MOST_KEPT = 20_000  # nodes whose results an order keeps


@lru_cache(maxsize=256)
def in_digits(p: Pattern, order: Order, column: str) -> Pattern:
    """A lowered pattern in the digits of an order.

    Lines of no whole number of pieces are cut in stages: `// 100` and `% 100` are gone before a digit of 100 values is cut by 3.

    Args:
        column: the side whose digits are replaced where both sides' are equal.
    """
    if order.natural:
        return p
    return simplifier(order).simplify(order.refined(in_digits(p, order.coarser, column)), column)


@lru_cache(maxsize=64)
def simplifier(order: Order) -> Simplifier:
    """The simplifier of an order; both directions of a pattern, and its parts, share what it has found."""
    return Simplifier(order)


class Simplifier:
    """Rules under the bounds of an order's digits, applied from the leaves up; a node is looked at once."""

    def __init__(self, order: Order):
        self.env = order.ranges()
        self.bounds: dict[Node, tuple[float, float]] = {}
        self.done: dict[Node, Node] = {}
        known = self.known
        self.rules = (
            Rule("(g*A + R) // c -> A // (c/g), (g*A + R) % c -> g*(A % (c/g)) + R where g divides c and 0 <= R < g", lambda x: _divide(x, known)),
            Rule("min, max of what is ordered by bounds -> one of them", lambda x: _extremum(x, known)),
            Rule(DECIDED, lambda x: decided(x, known)),
            Rule("g*A + R in I -> A in J where no R in its bounds changes J", lambda x: _coarse(x, known)),
            Rule("g*A + R == c -> A == m & R == c - g*m, for the few m that R's bounds allow", lambda x: _digitwise(x, known)),
            Rule("(u + v) % 2 == 0 -> u == v for digits of two values", lambda x: _parity(x, known)),
            Rule(UNWRAPPED, lambda x: unwrapped(x, known, worth=_hides)),
        )

    def known(self, x: Index) -> tuple[float, float]:
        if x not in self.bounds:
            self.bounds[x] = bounds(x, self.env)
        return self.bounds[x]

    def simplify(self, p: Pattern, column: str) -> Pattern:
        """An equal pattern on the digits that exist; where digits of both sides are equal, those of `column` are replaced."""
        for _ in range(ROUNDS):
            new = merge(rewrite(self.settled(p), lambda x: _tied(x, column)))
            if new is p:
                return p
            p = new
        raise InternalError("digits do not settle", typed=str(p))

    def settled(self, root: Node) -> Node:
        """The node when no rule changes it or anything below it."""
        if root in self.done:
            return self.done[root]
        if len(self.done) > MOST_KEPT:
            self.done, self.bounds = {}, {}
        for x in postorder(root):  # children first: what recursion is left is over what rules make
            if x not in self.done:
                self.done[x] = self._settle(x)
        return self.done[root]

    def _settle(self, x: Node) -> Node:
        for _ in range(ROUNDS):
            new = rebuild(x, tuple([self.settled(child) for child in x.children]))
            if new is x:
                new = next((new for rule in self.rules if (new := rule.apply(x)) is not None and new is not x), x)
            if new is x:
                return x
            if new in self.done:
                return self.done[new]
            x = new
        raise InternalError(f"rules do not settle after {ROUNDS} steps: {[r.law for r in self.rules]}", typed=str(x))


def _factors(x: Index, divisor: int = 0) -> list[int]:
    """Coefficients worth taking out of a sum, largest first; those that divide `divisor`, where it is given."""
    return sorted({abs(w) for w in terms(x)[1].values() if abs(w) > 1 and divisor % abs(w) == 0}, reverse=True)


def _divide(x: Node, known: Bounds) -> Node | None:
    if x.op not in ("div", "mod") or x.args[1].op != "const":
        return None
    inner, c = x.args[0], x.args[1].args[0]
    low, high = known(inner)
    if abs(low) < INF and low // c == high // c:
        return const(int(low // c)) if x.op == "div" else inner - int(low // c) * c
    for g in _factors(inner, c):
        whole, rest = multiples(inner, g)
        low, high = known(rest)
        if abs(low) == INF or low // g != high // g:
            continue
        whole, rest = whole + int(low // g), rest - int(low // g) * g
        return whole // (c // g) if x.op == "div" else whole % (c // g) * g + rest
    return None


def _extremum(x: Node, known: Bounds) -> Node | None:
    if x.op not in ("min", "max"):
        return None
    spans = [known(a) for a in x.args]
    pick = min if x.op == "min" else max
    limit = pick(b for _, b in spans) if x.op == "min" else pick(a for a, _ in spans)
    keep = [a for a, (low, high) in zip(x.args, spans) if (low < limit or high == limit if x.op == "min" else high > limit or low == limit)]
    if len(keep) == len(x.args) or not keep:
        return None
    return keep[0] if len(keep) == 1 else Index(x.op, *keep)


def _coarse(x: Node, known: Bounds) -> Node | None:
    """The bound on `A` is `ceil((low - R) / g)`, and `floor((high - R) / g)` above."""
    if x.op != "in":
        return None
    core, low, high = x.args
    for g in _factors(core):
        whole, rest = multiples(core, g)
        a, b = known(rest)
        if abs(a) == INF or abs(b) == INF or whole.op == "const" or rest.op == "const":
            continue
        lows = {None} if low is None else {-((int(r) - low) // g) for r in (a, b)}
        highs = {None} if high is None else {(high - int(r)) // g for r in (a, b)}
        if len(lows) == len(highs) == 1:
            return between(whole, lows.pop(), highs.pop())
    return None


def _digitwise(x: Node, known: Bounds) -> Node | None:
    if x.op != "in" or x.args[1] is None or x.args[1] != x.args[2]:
        return None
    core, value, _ = x.args
    for g in _factors(core):
        whole, rest = multiples(core, g)
        a, b = known(rest)
        if abs(a) == INF or abs(b) == INF or rest.op == "const":
            continue
        choices = range(-((int(b) - value) // g), (value - int(a)) // g + 1)
        if len(choices) <= MOST_MULTIPLES:
            return any_of(*(all_of(between(whole, m, m), between(rest, value - g * m, value - g * m)) for m in choices)) if choices else EMPTY
    return None


def _parity(x: Node, known: Bounds) -> Node | None:
    """Modulo 2 a sign means nothing, and sums are how the constructors write differences."""
    if x.op != "in" or x.args[0].op != "mod" or x.args[0].args[1] is not const(2) or x.args[1:] != (0, 0) and x.args[1:] != (None, 0):
        return None
    constant, parts = terms(x.args[0].args[0])
    if constant or list(parts.values()) != [1, 1] or any(known(t) != (0, 1) for t in parts):
        return None
    u, v = parts
    return between(u - v, 0, 0)


def _tied(x: Node, column: str) -> Node | None:
    if x.op != "and":
        return None
    for part in x.args:
        pair = _equal_digits(part)
        if pair is None:
            continue
        old, new = pair if pair[0].args[0].startswith(column) else pair[::-1]
        changed = all_of(*(other if other is part else substitute(other, {old: new}) for other in x.args))
        if changed is not x:
            return changed
    return None


def _equal_digits(p: Pattern) -> tuple[Index, Index] | None:
    """The two variables of `u - v == 0`."""
    if p.op != "in" or p.args[1:] != (0, 0):
        return None
    constant, parts = terms(p.args[0])
    if constant or sorted(parts.values()) != [-1, 1] or any(t.op != "var" for t in parts):
        return None
    return tuple(parts)


def _hides(atom: Index) -> bool:
    """Whether `//` or `%` stands in the way of a bound: `//` of one digit alone can be solved for it."""
    return atom.op == "mod" or len(variables(atom)) > 1


def pruned(conjunct: Conjunct, order: Order) -> Conjunct | None:
    """A conjunct without comparisons that others in it imply, None if they contradict: `128*(q0 - k0) + q1 - k1 >= 0` beside `q0 - k0 >= 1`."""
    env = order.ranges()
    out = dict(conjunct)
    for core, (low, high) in conjunct.items():
        for g in _factors(core):
            whole, rest = multiples(core, g)
            part, scale, shift = affine(whole)
            if part not in out or part is core:
                continue
            a, b = (scale * end + shift for end in out[part][:: 1 if scale > 0 else -1])
            c, d = bounds(rest, env)
            least, most = g * a + c, g * b + d
            if least > high or most < low:
                return None
            if low <= least and most <= high:
                del out[core]
                break
    return out
