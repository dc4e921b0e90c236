"""What stepping through an attention with a term needs: which keys are folded into its state, and when.

Once no later row reads a key exactly, and every later row reads it by the term or none does, it is *folded* into the sum of
`phi(k)^T v` and forgotten.  Keys before `stop[q]` are such keys when row q comes.  What bounds `stop`:

    the exact part   the first key that row q or a later one reads; keys that rows read at any distance (sinks) are kept apart
    the term         R = D - E where R is a prefix that only grows between resets, as for windows and chunks, else D alone,
                     as for dilated windows: keys of a window that it leaves out then wait with the others

The state has a constant size where the keys that wait are few however long the sequence is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.analysis.evaluate import evaluate
from patternc.analysis.ranges import Ranges, ranges_of
from patternc.args import Bound, bind
from patternc.cells import specialisations
from patternc.compile import provably_causal
from patternc.errors import BackendError
from patternc.expr.attention import Attention
from patternc.expr.node import postorder, roomy
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.passes import TooManyConjuncts, disjuncts, lower, variables
from patternc.signature import signature
from patternc.subscripts import heads_listed
from patternc.tail_plan import NOTHING, Prefix, class_of

MOST_KEPT = 4096  # keys that rows read exactly at any distance
KEEP_ALL = "keep all keys and values, and give n_q < n_k"


@dataclass(frozen=True, eq=False)
class Row:
    """The pairs of one batch row, or of several equal ones.

    Attributes:
        exact, domain: specialised patterns.
        low: int64 [length], the first key that row q may read by the term, NOTHING where it reads none.
        base: int64 [length], `low` of the first row from q on that reads any: no row from q on reads a key before it by the term.
        live: bool [length], keys that are folded at all.
    """

    exact: Pattern
    domain: Pattern
    low: np.ndarray
    base: np.ndarray
    live: np.ndarray


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """What stepping needs of an attention, for a batch of sequences of up to `length` tokens.

    Attributes:
        bound: sizes and args.
        rows: the distinct pairs; batch row b has those of `rows[row_of[b]]`.
        stop: int64 [length], never falls: keys before `stop[q]` are folded or forgotten when row q comes.
        kept: the keys that rows read exactly at any distance, sorted; they are never folded.
        reach: most keys that wait for a row, its own among them.
    """

    spec: Attention
    bound: Bound
    rows: tuple[Row, ...]
    row_of: tuple[int, ...]
    stop: np.ndarray
    kept: np.ndarray
    reach: int

    @property
    def length(self) -> int:
        return self.bound.n_k

    def pairs(self, rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether rows read keys exactly, and by the term: bool [distinct rows, rows, keys] each."""
        at, shape = {"q": rows[:, None], "k": keys[None]}, (len(rows), len(keys))
        exact = np.stack([np.broadcast_to(evaluate(r.exact, at), shape) for r in self.rows])
        return exact, np.stack([np.broadcast_to(evaluate(r.domain, at), shape) for r in self.rows]) & ~exact

    def args_of(self, length: int, device) -> dict:
        """The args of a call on the first tokens."""
        call = self.bound.torch(device)
        return {name: _first(call.uses[name], value, length) for name, value in call.values.items()}


def _first(use, value, length: int):
    """The entries of an arg that belong to the first positions."""
    if use.kind == "scalar":
        return value
    axes = range(use.rank) if use.kind == "array" else (0,)
    for axis in axes:
        if use.kind != "array" or any(s[axis].op == "var" and s[axis].args[0] in ("q", "k") for s in use.subscripts):
            value = value.narrow(axis + 1, 0, length)
    return value


def _refuse(why: str, spec, fix: str = KEEP_ALL):
    return BackendError(f"there is no state of constant size: {why}", typed=str(spec), fix=fix)


@roomy
def decode_plan(spec, batch: int, length: int, args: dict) -> DecodePlan:
    """The plan of an attention.

    Args:
        spec: an attention with a term.
        batch, length: sequences, and the most tokens that each will have.
        args: the runtime args by name, for the whole length.
    Raises:
        BackendError: there is no state of constant size, and why.  ArgError, ShapeError, DtypeError: args do not fit.
    """
    if not isinstance(spec, Attention):
        raise BackendError("a pattern without a term has no state to step with", typed=str(spec), fix=KEEP_ALL)
    used = variables(lower(spec.exact)) | variables(lower(spec.domain))
    if "h" in used or heads_listed(spec) is not None or any(use.over_heads for use in signature(spec).values()):
        raise _refuse("its pairs differ from head to head", spec)
    if {"n_q", "n_k"} & used or any(x.op == "length" for x in postorder(spec)):
        raise _refuse("its pairs depend on the length, which grows", spec)
    if not (provably_causal(spec.exact) and provably_causal(spec.domain)):
        raise _refuse("it may read keys after the query", spec, "step with a causal attention: `causal & (..)`")
    bound = bind(spec, args, length, batch=batch).numpy()
    cells = [_by_row(p, bound) for p in (spec.exact, spec.domain, all_of(spec.domain, negate(spec.exact)))]
    distinct = list(dict.fromkeys(zip(*cells)))
    parts = [_exact_parts(exact, length, spec) for exact, *_ in distinct]
    kept = np.unique(np.concatenate([np.zeros(0, np.int64), *(keys for _, all_kept in parts for keys in all_kept)]))
    rows, stops, some = [], [], False
    for (exact, domain, rest), (oldest, _) in zip(distinct, parts):
        prefix = _prefix_of(rest, domain, length, spec)
        low, last, live = np.full(length, NOTHING), np.full(length, -1), np.ones(length, bool)
        if prefix is not None:
            low, last, some = prefix.low, prefix.last, True
            live = live if prefix.live is None else prefix.live.copy()
        live[kept] = False
        base = np.minimum.accumulate(low[::-1])[::-1]  # `low` never falls from row to row that reads any
        rows.append(Row(exact, domain, low, base, live))
        stops.append(np.minimum(oldest, np.maximum(last + 1, base)))
    positions = np.arange(length)
    stop = np.maximum.accumulate(np.clip(np.min(stops, 0), 0, positions))
    if some and length > 1 and not stop[-1]:
        raise _refuse("its exact part may read every earlier key again", spec)
    row_of = tuple(distinct.index(cell) for cell in zip(*cells))
    return DecodePlan(spec, bound, tuple(rows), row_of, stop, kept, int((positions + 1 - stop).max()))


def _by_row(p: Pattern, bound: Bound) -> list[Pattern]:
    """The specialised pattern of each batch row."""
    found: list[Pattern | None] = [None] * bound.batch
    for _, _, batch, pattern in specialisations(lower(p), bound):
        for b in batch:
            found[b] = pattern
    return found


def _exact_parts(exact: Pattern, length: int, spec) -> tuple[np.ndarray, list[np.ndarray]]:
    """The first key that row q or a later one reads [length], and the keys to be kept, which it leaves out."""
    positions, oldest, kept = np.arange(length), np.full(length, NOTHING), []
    try:
        parts = ranges_of(disjuncts(exact), positions, length)
    except TooManyConjuncts:
        raise _refuse("its exact part falls into too many parts", spec) from None
    for part in parts:
        first = _oldest(part)
        keys = np.flatnonzero(part.live)
        read = keys[(keys >= part.low[part.some].min(initial=length)) & (keys <= part.high[part.some].max(initial=-1))]
        if len(read) <= MOST_KEPT and len(read) < (positions + 1 - first).max():
            kept.append(read)
        else:
            oldest = np.minimum(oldest, first)
    return oldest, kept


def _oldest(part: Ranges) -> np.ndarray:
    """The first live key that row q or a later one reads."""
    keys = np.append(np.flatnonzero(part.live), NOTHING)
    low = np.where(part.some, keys[np.searchsorted(keys, np.clip(part.low, 0, NOTHING))], NOTHING)
    return np.minimum.accumulate(low[::-1])[::-1]


def _prefix_of(rest: Pattern, domain: Pattern, length: int, spec) -> Prefix | None:
    """R as a prefix that only grows between resets, else D; None where R has no pair."""
    positions = np.arange(length)
    kind, why, prefix, _ = class_of(rest, positions, length)
    if kind not in ("P", "0"):
        of_domain, _, prefix, _ = class_of(domain, positions, length)
        if of_domain != "P":
            raise _refuse(f"the pairs of its term do not only grow: {why}", spec)
    return prefix
