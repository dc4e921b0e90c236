"""`pc.equivalent`: whether two patterns are the same set at one length, by asking whether `p ^ r` has a tile that is not empty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.analysis.classes import count_pairs
from patternc.analysis.evaluate import evaluate
from patternc.analysis.runs import members
from patternc.args import bind, signature
from patternc.errors import ArgError, OperandError, suggest
from patternc.expr.calls import fitting
from patternc.expr.pattern import Pattern, symmetric_difference
from patternc.layout import Group, layout

CHUNK = 4096  # tiles that are looked at together where a layout is not exact


@dataclass(frozen=True)
class Equivalence:
    """The answer of `equivalent`: true in a condition if the patterns are equal.

    Attributes:
        p, r: the two patterns.
        n_q, n_k: the length.
        counterexample: `(b, h, q, k)`, absolute positions, of a pair that is in one of them only; None if they are equal.
        holder: the one that has it.
    """

    p: Pattern
    r: Pattern
    n_q: int
    n_k: int
    counterexample: tuple[int, int, int, int] | None = None
    holder: Pattern | None = None

    def __bool__(self):
        return self.counterexample is None

    def __str__(self):
        at = f"{self.n_q} queries and {self.n_k} keys" if self.n_q != self.n_k else f"{self.n_k} tokens"
        if self:
            return f"equal at {at}: {self.p}  =  {self.r}"
        b, h, q, k = self.counterexample
        return f"different at {at}: batch row {b}, head {h}, query {q}, key {k} is in `{self.holder}` only"

    __repr__ = __str__


@fitting("equivalent")
def equivalent(p: Pattern, r: Pattern, n: int, /, n_k: int | None = None, heads: int = 1, batch: int = 1, *, q_start=None, **args) -> Equivalence:
    """Whether two patterns allow the same pairs at one length; no n x n mask is built.

    Args:
        p, r: the patterns, or their texts.
        n, n_k, heads, batch, q_start: sizes as in `Pattern.dense`.
        args: the runtime args of both.
    Returns:
        an `Equivalence`: true or false, with a counterexample.
    Raises:
        OperandError: for what is not a pattern.  ArgError, ShapeError, ..: as `Pattern.dense`.
    """
    p, r = (_pattern(x) for x in (p, r))
    difference = symmetric_difference(p, r)
    bound = [_bind(x, p, r, args, n, n_k, heads, batch, q_start) for x in (p, r, difference)][-1]
    found = layout(difference, bound)
    for group in sorted(found.groups, key=lambda g: (g.batch[0], g.heads[0])):
        at = _first_pair(group)
        if at is not None:
            cell = group.batch[0], group.heads[0], *at
            return Equivalence(p, r, bound.n_q, bound.n_k, cell, _holder(p, r, bound, cell, args))
    return Equivalence(p, r, bound.n_q, bound.n_k)


def _pattern(x) -> Pattern:
    if isinstance(x, str):
        from patternc.parsing import parse

        x = parse(x)
    if not isinstance(x, Pattern):
        raise OperandError(f"equivalent compares two patterns, got {x!r}", fix="compare an attention's parts: `A.exact`, `A.domain`")
    return x


def _bind(x: Pattern, p: Pattern, r: Pattern, args: dict, n, n_k, heads, batch, q_start):
    """Bind `x` to its own part of the args, which serve both patterns."""
    known = {**signature(p), **signature(r)}
    for name in args:
        if name not in known:
            close = suggest(name, known)
            raise ArgError(
                f"unknown arg `{name}`", fix=f"did you mean `{close}`?" if close else f"the patterns' args are {', '.join(known) or 'none'}"
            )
    return bind(x, {name: args[name] for name in signature(x) if name in args}, n, n_k, heads, batch, q_start, check=True)


def _first_pair(group: Group) -> tuple[int, int] | None:
    """A pair (q, k) that the group's pattern allows, or None; the first one of the first tile that has any."""
    tiles = group.tiles
    keys = np.sort(np.concatenate([tiles.full[0][:1], tiles.partial[0][:1] if tiles.exact else members(tiles.partial)]))
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        box = {name: tuple(np.broadcast_to(x, chunk.shape) for x in span) for name, span in tiles.grid.boxes(chunk).items()}
        hit = np.flatnonzero(count_pairs(group.pattern, box))
        if len(hit):
            (q0, q1), (k0, k1) = (tuple(int(x[hit[0]]) for x in box[name]) for name in ("q", "k"))
            q, k = np.arange(q0, q1 + 1)[:, None], np.arange(k0, k1 + 1)
            truth = np.broadcast_to(evaluate(group.pattern, {"q": q, "k": k}), (len(q), len(k)))
            row, column = np.argwhere(truth)[0]
            return q0 + int(row), k0 + int(column)
    return None


def _holder(p: Pattern, r: Pattern, bound, cell, args) -> Pattern:
    """Which of the two patterns has the pair."""
    b, h, q, k = cell
    own = bind(p, {name: args[name] for name in signature(p)}, bound.n_q, bound.n_k, bound.heads, bound.batch, bound.q_start)
    for group in layout(p, own, tile=(128, 128)).groups:
        if b in group.batch and h in group.heads:
            truth = evaluate(group.pattern, {"q": np.array([q]), "k": np.array([k])})
            return p if bool(np.all(truth)) else r
    return r


__all__ = ["Equivalence", "equivalent"]
