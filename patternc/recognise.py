"""Which primitive, with which parameters, gives exactly this node.

Guessers propose a call from the shape of a node; `accept` builds it and compares by identity.  The order of the guessers is
the order of preference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from patternc import primitives as pr
from patternc.errors import PatterncError
from patternc.expr import arithmetic as ar, index as ix
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import PLACE, H, K, Pattern, Q, all_of, any_of, compare
from patternc.expr.table import INLINE
from patternc.expr.transform import substitute
from patternc.vocabulary import PRIMITIVES


@dataclass(frozen=True)
class Call:
    """`name(*positional, **named)`, then `.at(at)`; a bare name where `parentheses` is false."""

    name: str
    positional: tuple = ()
    named: dict = field(default_factory=dict)
    at: Index | None = None
    parentheses: bool = True

    def build(self) -> Pattern:
        if not self.parentheses:
            return getattr(pr, self.name)
        pattern = PRIMITIVES[self.name](*self.positional, **self.named)
        return pattern if self.at is None else pattern.at(self.at)


def accept(node: Pattern, guessers, parts) -> Call | None:
    """The first call proposed by `guesser(*parts)` that gives `node`."""
    for guesser in guessers:
        guesses = guesser(*parts)
        while True:
            try:
                call = next(guesses, None)
                if call is None:
                    break
                if call.build() is node:
                    return call
            except PatterncError:
                pass  # a guess that cannot be built is a wrong guess; a guesser that raised is exhausted
    return None


def named(p: Pattern) -> Call | None:
    """The primitive that gives this one comparison, or None."""
    return accept(p, LITERALS, p.args)


def named_group(op: str, pair: tuple[Pattern, Pattern]):
    """The primitive, or the comparison as `(left, relation, right)`, that gives these two operands of `&` or `|`; or None."""
    whole = (all_of if op == "and" else any_of)(*pair)
    call = accept(whole, GROUPS[op], pair)
    if call is not None or op == "and":
        return call
    for left, relation, right in _outside(*pair):
        try:
            if compare(left, relation, right) is whole:
                return left, relation, right
        except PatterncError:
            pass
    return None


def variables(x: Node) -> set[str]:
    return {n.args[0] for n in postorder(x) if n.op == "var"}


def has_arg(x: Node) -> bool:
    return any(n.op == "arg" for n in postorder(x))


def fixed(x: Index) -> bool:
    """Whether `x` is the same for all pairs: a size."""
    return not variables(x) & {"q", "k"}


# one comparison


def _causal(core, low, high):
    if core is Q_K:
        yield Call("causal", parentheses=False)


def _window(core, low, high):
    if core is Q_K and low is not None and high is not None:
        yield Call("window", (high + 1,))
        yield Call("window", named={"left": high, "right": -low})
    for atom, c in ar.terms(core)[1].items():
        if atom.op == "abs" and (size := _solve(core, low, high, atom, c)) is not None:
            yield Call("window", (size,))


def _dilate(core, low, high):
    if core.op == "mod":
        yield Call("dilate", (core.args[1],))


def _block(core, low, high):
    if low is not None and high is not None and (size := _block_size(core)) is not None:
        yield _block_call(size, high, -low)


def _block_call(size, back, ahead):
    return Call(
        "block", (size,), {name: value for name, value in (("back", back), ("ahead", ahead)) if value is not ix.const(0) and not _zero(value)}
    )


def _zero(value) -> bool:
    return isinstance(value, int) and value == 0


def _block_size(core: Index) -> Index | None:
    sizes = [a.args[1] for a in ar.terms(core)[1] if a.op == "div" and a.args[0] is Q]
    return sizes[0] if sizes else None


def _sets(core, low, high):
    """rows, cols, heads, sink."""
    for x, name in ((Q, "rows"), (K, "cols"), (H, "heads")):
        if core is x and high is not None:
            if low is not None:
                yield from (Call(name, (positions,)) for positions in _ranges(low, high, 1))
            elif x is K:
                yield Call("sink", (high + 1,))


def _ranges(low: int, high: int, step: int):
    """Ways to write the positions low, low + step, ..., high."""
    if low == 0 and step == 1:
        yield high + 1
    if low == high:
        yield [low]
    yield range(low, high + step, step)


def _member(core, low, high):
    """rows, cols, heads and valid of an arg or a list, at any position."""
    if core.op != "member":
        return
    source, position, kind = core.args
    places = [(K, "valid")] if kind == "lengths" else [(Q, "rows"), (K, "cols"), (H, "heads")]
    value = source.args[0].data.tolist() if source.op == "table" and source.args[0].data.size <= INLINE else source
    for x, name in places:
        if position is x:
            yield Call(name, (value,))
    for x, name in places:
        if x is not H and not variables(position) & ({"q", "k", "i"} - {x.args[0]}):
            yield Call(name, (value,), at=substitute(position, {x: PLACE}))
    if kind == "positions" and "i" in variables(position):
        yield Call("rows", (value,), at=position)


def _prefix(core, low, high):
    c = ar.terms(core)[1].get(K)
    if c in (1, -1) and (size := _solve(core, low, high, K, c)) is not None and has_arg(size):
        yield Call("prefix", (size,))


def _same(core, low, high):
    if low == high == 0:
        for sign in (1, -1):
            parts = {a: sign * c for a, c in ar.terms(core)[1].items() if "q" in variables(a)}
            f = substitute(ar.linear(0, parts), {Q: PLACE}) if parts else None
            if f is not None and f is not PLACE:
                yield Call("same", (_function(f),))


def _function(f: Index) -> Index:
    """`doc[i]` is written `doc`."""
    return f.args[0] if f.op == "read" and len(f.args) == 2 and f.args[1] is PLACE else f


def _solve(core, low, high, atom, c) -> Index | None:
    """`size` with `atom < size` equivalent to the comparison, if the other terms are a size."""
    if c not in (1, -1) or (high if c == 1 else low) is None or (low if c == 1 else high) is not None:
        return None
    rest = ar.add(core, ar.scale(atom, -c))
    try:
        size = ar.add(ix.const(high + 1), ar.scale(rest, -1)) if c == 1 else ar.add(rest, ix.const(1 - low))
    except PatterncError:
        return None
    return size if fixed(size) else None


# two operands


def _at_least_zero(p: Pattern) -> Index | None:
    """The x with `p` written as `x >= 0`."""
    if p.op != "in" or (p.args[1] is None) == (p.args[2] is None):
        return None
    core, low, high = p.args
    try:
        return ar.add(core, ix.const(-low)) if high is None else ar.add(ix.const(high), ar.scale(core, -1))
    except PatterncError:
        return None


def _between_sizes(a, b):
    """window(left=, right=) and block(back=, ahead=) whose bounds are args."""
    x, y = _at_least_zero(a), _at_least_zero(b)
    if x is None or y is None:
        return
    right, left = ar.add(x, ar.scale(Q_K, -1)), ar.add(y, Q_K)
    if fixed(right) and fixed(left):
        yield Call("window", named={"left": left, "right": right})
    size = _block_size(x)
    if size is not None:
        d = ar.add(ar.floordiv(Q, size), ar.scale(ar.floordiv(K, size), -1))
        ahead, back = ar.add(x, ar.scale(d, -1)), ar.add(y, d)
        if fixed(ahead) and fixed(back):
            yield _block_call(size, back, ahead)


def _stepped(a, b):
    """rows, cols and heads of a range with a step."""
    if a.op == b.op == "in" and None not in a.args[1:] and b.args[0].op == "mod" and b.args[0].args[1].op == "const":
        core, low, high = a.args
        for x, name in ((Q, "rows"), (K, "cols"), (H, "heads")):
            if core is x:
                yield Call(name, (range(low, high + b.args[0].args[1].args[0], b.args[0].args[1].args[0]),))


def _documents(a, b):
    if a.op == "in":
        for call in _same(*a.args):
            ids = call.positional[0]
            small = ids.op == "table" and ids.args[0].data.size <= INLINE
            yield Call("documents", (ids.args[0].data.tolist() if small else ids,))


def _global(a, b):
    """global(t): `q in t` beside `k in t`."""
    call = named(a) if a.op == "in" else named_group("and", a.args) if a.op == "and" and len(a.args) == 2 else None
    if isinstance(call, Call) and call.name == "rows":
        yield Call("global", call.positional, at=call.at)


def _outside(a, b):
    """`!=`, `abs(x) >= c` and `abs(x) == c`."""
    if a.op != "in" or b.op != "in":
        return
    (x, low, high), (y, other_low, other_high) = a.args, b.args
    if x is not y:
        return
    if None not in (high, other_low):
        middle = high + other_low
        if other_low - high == 2:
            yield from _unequal(x, high + 1)
        if low is None and other_high is None and middle % 2 == 0:
            yield from _away(x, middle // 2, ">=", other_low - middle // 2)
        if low == high and other_low == other_high and middle % 2 == 0:
            yield from _away(x, middle // 2, "==", other_low - middle // 2)


def _unequal(x: Index, value: int):
    parts = ar.terms(x)[1]
    less = ar.linear(0, {a: -c for a, c in parts.items() if c < 0})
    if value == 0 and less.op != "const":
        yield ar.add(x, less), "!=", less
    if abs(value) <= ix.MAX_INT:
        yield x, "!=", ix.const(value)


def _away(x: Index, centre: int, relation: str, distance: int):
    if abs(centre) <= ix.MAX_INT and abs(distance) <= ix.MAX_INT:
        try:
            yield ar.absolute(ar.add(x, ix.const(-centre))), relation, ix.const(distance)
        except PatterncError:
            return


Q_K = ar.add(Q, ar.scale(K, -1))
LITERALS = (_causal, _window, _block, _dilate, _member, _sets, _prefix, _same)
GROUPS = {"and": (_between_sizes, _stepped, _documents), "or": (_global,)}
