"""Token by token: an attention with a term whose state has a constant size.

Where the pairs of the term only grow, `R(q) <= R(q + 1)`, a key that a row reads by the term is never read by the exact part again:
it is *folded* into the sum of `phi(k)^T v`, in float32, and forgotten.  What is kept of the others is a ring of the last keys,
and the keys that the term never reads (sinks).  Keys are folded `FOLD` at a time, so that the sum is written as seldom;
those that wait are read by masked products.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from patternc.analysis.evaluate import evaluate
from patternc.args import bind
from patternc.cells import specialisations
from patternc.compile import provably_causal
from patternc.errors import BackendError, DeviceError, DtypeError, OperandError, ParameterError, ShapeError
from patternc.expr.attention import Attention
from patternc.expr.pattern import all_of, negate
from patternc.passes import lower, variables
from patternc.signature import signature
from patternc.tail import at_least_float32, feature_map, rms_norm, tail
from patternc.tail_plan import NOTHING, tail_plan

FOLD = 16
MOST_KEPT = 4096  # keys that the term never reads


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """What stepping needs of an attention, for sequences of up to `length` tokens.

    Attributes:
        exact: the exact part, specialised.
        last: int64 [length], row q reads the live keys up to `last[q]` by the term; none where `reads[q]` is false.
        live: bool [length].
        kept: the keys that are not live, sorted.
        reach: most keys that are after `last[q]` and not after q.
    """

    spec: Attention
    exact: object
    last: np.ndarray
    reads: np.ndarray
    live: np.ndarray
    kept: np.ndarray
    reach: int

    @staticmethod
    def of(spec, length: int) -> DecodePlan:
        """The plan of an attention.  Raises BackendError where there is no state of constant size, and says why."""
        if not isinstance(spec, Attention):
            raise BackendError("a pattern without a term has no state to step with", typed=str(spec), fix="keep keys and values, and give n_q < n_k")
        if signature(spec) or {"n_q", "n_k", "h"} & (variables(spec.exact) | variables(spec.domain)):
            raise BackendError("its pairs depend on args, heads or the length", typed=str(spec), fix="step with a pattern of q and k alone")
        if not (provably_causal(spec.exact) and provably_causal(spec.domain)):
            raise BackendError("it may read keys after the query", typed=str(spec), fix="step with a causal attention: `causal & (..)`")
        plan = tail_plan(all_of(spec.domain, negate(spec.exact)), bind(spec, {}, length))
        positions = np.arange(length)
        last, low, live = np.full(length, -1), np.full(length, NOTHING), np.ones(length, bool)
        if plan.kind == "P":
            (prefix,) = plan.scans[0].prefixes
            last, low = np.maximum(prefix.last, -1), prefix.low
            live = live if prefix.live is None else prefix.live
        reads = low < NOTHING
        again, stops = np.unique(low[reads]).size > 1, (reads[:-1] & ~reads[1:]).any()
        if plan.kind not in ("P", "0") or again or stops:
            why = "they begin anew" if again else "a row reads none after one that reads some" if stops else str(plan)
            raise BackendError(f"the pairs of its term do not only grow: {why}", typed=str(spec), fix="keep all keys, and give n_q < n_k")
        kept = np.flatnonzero(~live)
        if len(kept) > MOST_KEPT:
            raise BackendError(f"its term never reads {len(kept)} keys, which the state would have to keep", typed=str(spec), fix="keep all keys")
        (_, _, _, exact), *_ = specialisations(lower(spec.exact), bind(spec.exact, {}, length).numpy())
        return DecodePlan(spec, exact, last, reads, live, kept, int((positions - last).max()))


@dataclass(eq=False)
class DecodeState:
    """What is left of the tokens so far; `step` updates it in place.

    Attributes:
        batch: rows.
        position: how many there were.
        folded: live keys before it are in `total`.
        ring, kept: of the last keys, at their position modulo the size of the ring, and of the plan's `kept` ones: keys, values, and
            the term's own keys, [B, Hkv, size, d] each.
        total: [B, Hkv, F, dv + 1] in float32, the last column being the sum of features.
    """

    plan: DecodePlan
    batch: int
    position: int = 0
    folded: int = 0
    ring: list[torch.Tensor] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    total: torch.Tensor | None = None


def init_state(spec, batch: int, length: int) -> DecodeState:
    """The state before the first token, of `batch` rows of up to `length` tokens."""
    for name, value, fix in (("batch", batch, "give the number of rows"), ("length", length, "give the most tokens that there will be")):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ParameterError(f"`{name}` is a positive integer, got {value!r}", fix=fix)
    return DecodeState(DecodePlan.of(spec, length), batch)


def check_state(spec, state, q, k) -> None:
    """Whether a state belongs to an attention and to the tokens of a step.  Raises OperandError, ShapeError."""
    if not isinstance(state, DecodeState):
        message = f"`state` must be one of `init_state`, got {type(state).__name__}"
        raise OperandError(message, fix="start with `state = attn.init_state(batch, length)`")
    if state.plan.spec is not spec:
        raise OperandError("the state belongs to another attention", typed=str(state.plan.spec), fix=f"make one by `init_state` of `{spec}`")
    if q.shape[0] != state.batch:
        raise ShapeError(f"the state is of {state.batch} rows, and the tokens are of {q.shape[0]}", fix=f"start with `init_state({q.shape[0]}, ..)`")
    if q.shape[2] != k.shape[2]:
        message = f"a step takes as many queries as keys, got {q.shape[2]} and {k.shape[2]}"
        raise ShapeError(message, fix="give the query, key and value of each new token")


def step(state: DecodeState, q, k, v, scale: float, tail_q, tail_k, learned: dict) -> torch.Tensor:
    """The outputs [B, H, t, dv] of the next t tokens."""
    if not q.shape[2]:
        return q.new_empty(*q.shape[:3], v.shape[3])
    if state.position + q.shape[2] > len(state.plan.last):
        raise ShapeError(f"the state is for {len(state.plan.last)} tokens", fix="give `init_state` the most tokens that there will be")
    own = [k, v] if tail_k is k else [k, v, tail_k]
    if not state.ring:
        state.ring = [x.new_zeros(*x.shape[:2], state.plan.reach + 2 * FOLD, x.shape[3]) for x in own]
        state.kept = [x.new_zeros(*x.shape[:2], len(state.plan.kept), x.shape[3]) for x in own]
    if [x.shape[:2] + x.shape[3:] for x in own] != [x.shape[:2] + x.shape[3:] for x in state.ring]:
        raise ShapeError("the tokens have other shapes than those before them", fix="one state serves one batch")
    for now, before in zip(own, state.ring):
        if now.dtype != before.dtype:
            raise DtypeError(f"the tokens are {now.dtype}, those before them {before.dtype}", fix="keep to one dtype, or start a new state")
        if now.device != before.device:
            raise DeviceError(f"the tokens are on {now.device}, those before them on {before.device}", fix="keep to one device, or start a new state")
    out = []
    for at in range(0, q.shape[2], FOLD):
        now = slice(at, at + FOLD)
        out.append(_advance(state, q[:, :, now], [x[:, :, now] for x in own], tail_q[:, :, now], scale, learned))
    return torch.cat(out, 2)


def _advance(state: DecodeState, q, own, tail_q, scale: float, learned: dict) -> torch.Tensor:
    """At most FOLD tokens."""
    plan, term = state.plan, state.plan.spec.term
    rows = np.arange(state.position, state.position + q.shape[2])
    phi = feature_map(term.feature, learned.get("projection"))
    _fold(state, min(int(plan.last[rows[0]]) + 1, state.position), phi)  # before new keys take the places of those it reads
    _write(state, rows, own)
    waiting = np.arange(state.folded, rows[-1] + 1)
    kept = np.flatnonzero(plan.kept < state.folded)
    keys = np.concatenate([plan.kept[kept], waiting])
    k, v, *tail_k = (torch.cat([b[:, :, kept], a[:, :, waiting % a.shape[2]]], 2) for a, b in zip(state.ring, state.kept))
    exact = torch.from_numpy(np.broadcast_to(evaluate(plan.exact, {"q": rows[:, None], "k": keys[None]}), (len(rows), len(keys))).copy())
    read = plan.live[keys] & (keys >= state.folded) & (keys <= plan.last[rows][:, None]) & plan.reads[rows][:, None]
    read, some = torch.from_numpy(read).to(q.device), torch.from_numpy(plan.reads[rows]).to(q.device)
    out = _softmax(q, k, v, exact.to(q.device), scale)

    def linear(feature, phi, q, k, v, sums):
        group = q.shape[1] // k.shape[1]
        q, k, v = phi(q).unflatten(1, (-1, group)), phi(k)[:, :, None], _with_ones(v)[:, :, None]
        y = (q @ k.mT).masked_fill(~read, 0.0) @ v
        if state.total is not None:
            y = y + (q @ state.total[:, :, None].to(q.dtype)) * some[:, None]
        y = y.flatten(1, 2)
        return (y[..., :-1], y[..., -1]) if sums else (y[..., :-1], None)

    y = tail(term, tail_q, tail_k[0] if tail_k else k, v, linear, learned.get("initial_state"), learned.get("projection"))
    if term.norm == "rms":
        out, y = rms_norm(out, learned.get("exact_scale")), rms_norm(y, learned.get("tail_scale"))
    state.position += len(rows)
    return (out + y).to(q.dtype)


def _with_ones(v: torch.Tensor) -> torch.Tensor:
    v = at_least_float32(v)
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def _write(state: DecodeState, rows: np.ndarray, own) -> None:
    """Put new keys into the ring, and those that are kept beside it."""
    stays = np.isin(rows, state.plan.kept)
    places = np.searchsorted(state.plan.kept, rows[stays])
    for ring, kept, x in zip(state.ring, state.kept, own):
        ring[:, :, rows % ring.shape[2]] = x
        if stays.any():
            kept[:, :, places] = x[:, :, np.flatnonzero(stays)]


def _fold(state: DecodeState, stop: int, phi) -> None:
    """Move live keys before `stop` into the sum, whole lots of them."""
    stop -= stop % FOLD
    if stop <= state.folded:
        return
    keys = np.arange(state.folded, stop)
    places = keys[state.plan.live[keys]] % state.ring[0].shape[2]
    k, v = phi(state.ring[-1 if len(state.ring) > 2 else 0][:, :, places]), _with_ones(state.ring[1][:, :, places])
    gain = k.to(v.dtype).mT @ v
    state.total = gain if state.total is None else state.total + gain
    state.folded = stop


def _softmax(q, k, v, mask, scale: float) -> torch.Tensor:
    """Exact attention of few queries, in float32: [B, H, t, dv]."""
    q, k, v = (at_least_float32(x) for x in (q, k, v))
    s = (q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT * scale).masked_fill(~mask, -torch.inf)
    weights = torch.where(mask.any(-1, keepdim=True), s, 0.0).softmax(-1).masked_fill(~mask, 0.0)
    return (weights @ v[:, :, None]).flatten(1, 2)
