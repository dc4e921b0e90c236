"""Token by token: an attention with a term whose state has a constant size (see `patternc.decode_plan`).

What is kept of the tokens so far is a sum of `phi(k)^T v` in float32, a ring of the last keys, and the keys that rows read exactly at any
distance (sinks).  Keys are folded into the sum `FOLD` at a time, so that it is written as seldom; those that wait are read by masked
products.  A prompt goes through the parallel form.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from patternc.decode_plan import DecodePlan, decode_plan
from patternc.errors import DeviceError, DtypeError, OperandError, ShapeError
from patternc.forms import count
from patternc.tail import at_least_float32, feature_map, quotient, rms_norm, tail
from patternc.tail_plan import NOTHING

FOLD = 16
BLOCK = 128  # most tokens of a later step that are treated at a time
PROMPT = 64  # fewest tokens of a first step for which the parallel form is used
FOLDED_AT_ONCE = 4096  # keys whose features are in memory at a time


@dataclass(eq=False)
class DecodeState:
    """What is left of the tokens so far; `step` updates it in place.

    Attributes:
        position: how many there were.
        folded: keys before it are in `total`, or forgotten.
        ring, kept: of the last keys, at their position modulo the size of the ring, and of the plan's `kept` ones: keys, values, and
            the term's own keys, [B, Hkv, size, d] each.
        total: [B, Hkv, F, dv + 1] in float32 (float64 for float64), the last column being the sum of features.
    """

    plan: DecodePlan
    position: int = 0
    folded: int = 0
    ring: list[torch.Tensor] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    total: torch.Tensor | None = None

    def clone(self) -> DecodeState:
        """A state of its own with the same tokens: for beams, or to come back to."""
        copies = [[x.clone() for x in tensors] for tensors in (self.ring, self.kept)]
        return DecodeState(self.plan, self.position, self.folded, *copies, None if self.total is None else self.total.clone())


def init_state(spec, batch: int, length: int, args: dict) -> DecodeState:
    """The state before the first token; see `AttentionModule.init_state`."""
    return DecodeState(decode_plan(spec, count("batch", batch, least=1), count("length", length, least=1), args))


def check_step(spec, state, q, own) -> None:
    """Whether a state belongs to an attention and to the tokens of a step.  Raises OperandError, ShapeError, DtypeError, DeviceError."""
    if not isinstance(state, DecodeState):
        message = f"`state` must be one of `init_state`, got {type(state).__name__}"
        raise OperandError(message, fix="start with `state = attn.init_state(batch, length)`")
    plan = state.plan
    if plan.spec is not spec:
        raise OperandError("the state belongs to another attention", typed=str(plan.spec), fix=f"make one by `init_state` of `{spec}`")
    if q.shape[2] != own[0].shape[2]:
        message = f"a step takes as many queries as keys, got {q.shape[2]} and {own[0].shape[2]}"
        raise ShapeError(message, fix="give the query, key and value of each new token")
    if q.shape[0] != plan.bound.batch:
        raise ShapeError(f"the state is for batch {plan.bound.batch}, the tokens have {q.shape[0]}", fix=f"`init_state({q.shape[0]}, ...)`")
    if state.position + q.shape[2] > plan.length:
        raise ShapeError(f"the state is for {plan.length} tokens", fix="give `init_state` the most tokens that there will be")
    if not state.ring:
        return
    if len(own) != len(state.ring):
        without = "without" if len(own) > len(state.ring) else "with"
        raise OperandError(f"the tokens before these came {without} `tail_k`", fix="give it at every step or at none")
    if [x.shape[:2] + x.shape[3:] for x in own] != [x.shape[:2] + x.shape[3:] for x in state.ring]:
        raise ShapeError("the tokens have other shapes than those before them", fix="one state serves one batch")
    for now, before in zip(own, state.ring):
        if now.dtype != before.dtype:
            raise DtypeError(f"the tokens are {now.dtype}, those before them {before.dtype}", fix="keep to one dtype, or start a new state")
        if now.device != before.device:
            raise DeviceError(f"the tokens are on {now.device}, those before them on {before.device}", fix="keep to one device, or start a new state")


def step(state: DecodeState, q, own, tail_q, scale: float, learned: dict, parallel) -> torch.Tensor:
    """The outputs [B, H, t, dv] of the next t tokens.

    Args:
        own: keys, values, and the term's own keys if it has any.
        learned: what the module owns, by name.
        parallel: `parallel(**args)` gives the outputs of these tokens in the parallel form, with no tokens before them.
    """
    t = q.shape[2]
    if not t:
        return q.new_empty(*q.shape[:3], own[1].shape[3])
    if not state.ring:
        plan = state.plan
        size = min(plan.reach + FOLD, plan.length)
        state.ring = [x.new_zeros(*x.shape[:2], size, x.shape[3]) for x in own]
        state.kept = [x.new_zeros(*x.shape[:2], len(plan.kept), x.shape[3]) for x in own]
    phi = feature_map(state.plan.spec.term.feature, learned.get("projection"))
    if not state.position and t >= PROMPT:
        out = parallel(**state.plan.args_of(t, q.device))
        _take(state, np.arange(t), own, phi)
        return out
    blocks = (slice(at, at + BLOCK) for at in range(0, t, BLOCK))
    return torch.cat([_advance(state, q[:, :, s], [x[:, :, s] for x in own], tail_q[:, :, s], scale, learned, phi) for s in blocks], 2)


def _advance(state: DecodeState, q, own, tail_q, scale: float, learned: dict, phi) -> torch.Tensor:
    """At most BLOCK tokens."""
    plan, term = state.plan, state.plan.spec.term
    rows = np.arange(state.position, state.position + q.shape[2])
    kept, waiting = np.flatnonzero(plan.kept < state.folded), np.arange(state.folded, state.position)
    keys = np.concatenate([plan.kept[kept], waiting, rows])
    own = [torch.cat([b[:, :, kept], a[:, :, waiting % a.shape[2]], x], 2) for a, b, x in zip(state.ring, state.kept, own)]
    k, v, tail_k = own[0], own[1], own[-1] if len(own) > 2 else own[0]
    exact, rest = (_per_row(state, x, q.device)[:, None, None] for x in plan.pairs(rows, keys))
    # Rows after a reset read nothing of the sum: it holds no key of their document.
    sums_read = [r.base[rows[0]] < NOTHING and r.low[rows] == r.base[rows[0]] for r in plan.rows]
    some = _per_row(state, np.stack([np.broadcast_to(x, len(rows)) for x in sums_read]), q.device)[:, None, None, :, None]
    out = _softmax(q, k, v, exact, scale)

    def linear(feature, phi, q, k, v, sums):
        q, k, v = phi(q).unflatten(1, (k.shape[1], -1)), phi(k)[:, :, None], _with_ones(v)[:, :, None]
        y = (q @ k.mT).masked_fill(~rest, 0.0) @ v
        if state.total is not None:
            y = y + torch.where(some, q @ state.total[:, :, None].to(q.dtype), 0.0)
        y = y.flatten(1, 2)
        return (y[..., :-1], y[..., -1]) if sums else (y[..., :-1], None)

    y, total = tail(term, tail_q, tail_k, v, linear, learned.get("initial_state"), learned.get("projection"))
    y = y if total is None else quotient(y, total)
    if term.norm == "rms":
        out, y = rms_norm(out, learned.get("exact_scale")), rms_norm(y, learned.get("tail_scale"))
    _take(state, keys[len(kept) :], [x[:, :, len(kept) :] for x in own], phi)
    return (out + y).to(q.dtype)


def _per_row(state: DecodeState, x: np.ndarray, device) -> torch.Tensor:
    """What is there for each distinct batch row [R, ..], for all batch rows [B or 1, ..]."""
    row_of = state.plan.row_of
    return torch.from_numpy(x if len(x) == 1 else x[list(row_of)]).to(device)


def _take(state: DecodeState, keys: np.ndarray, own, phi) -> None:
    """Go to the token after `keys`, which are those from `state.folded` on: fold what no row reads exactly again, keep the others."""
    plan, before, new = state.plan, state.position, keys[-1] + 1
    following = min(new, plan.length - 1)
    stop = max(state.folded, int(plan.stop[following]) // FOLD * FOLD)
    _begin_anew(state, following, before)
    for at in range(state.folded, stop, FOLDED_AT_ONCE):
        _fold(state, np.arange(at, min(at + FOLDED_AT_ONCE, stop)), following, at - keys[0], own, phi)
    stays = np.isin(keys, plan.kept) & (keys >= before)
    first = max(stop, before) - keys[0]
    for ring, kept, x in zip(state.ring, state.kept, own):
        ring[:, :, keys[first:] % ring.shape[2]] = x[:, :, first:]
        if stays.any():
            kept[:, :, np.searchsorted(plan.kept, keys[stays])] = x[:, :, np.flatnonzero(stays)]
    state.position, state.folded = int(new), stop


def _begin_anew(state: DecodeState, following: int, before: int) -> None:
    """Forget sums of which no row from `following` on reads anything."""
    if state.total is None:
        return
    over = np.stack([r.base[following] != r.base[before] for r in state.plan.rows])
    if over.any():
        state.total = state.total.masked_fill(_per_row(state, over, state.total.device)[:, None, None, None], 0.0)


def _fold(state: DecodeState, keys: np.ndarray, following: int, at: int, own, phi) -> None:
    """Add keys to the sum, those that rows from `following` on read by the term."""
    live = np.stack([r.live[keys] & (keys >= r.base[following]) for r in state.plan.rows])
    if not live.any():
        return
    places = slice(at, at + len(keys))
    k, v = phi(own[2 if len(own) > 2 else 0][:, :, places]), _with_ones(own[1][:, :, places])
    k = k.to(v.dtype)
    if not live.all():
        k = k.masked_fill(~_per_row(state, live, k.device)[:, None, :, None], 0.0)
    gain = k.mT @ v
    state.total = gain if state.total is None else state.total + gain


def _with_ones(v: torch.Tensor) -> torch.Tensor:
    v = at_least_float32(v)
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def _softmax(q, k, v, mask, scale: float) -> torch.Tensor:
    """Exact attention of few queries, in float32: [B, H, t, dv]."""
    q, k, v = (at_least_float32(x) for x in (q, k, v))
    s = (q.unflatten(1, (k.shape[1], -1)) @ k[:, :, None].mT * scale).masked_fill(~mask, -torch.inf)
    weights = torch.where(mask.any(-1, keepdim=True), s, 0.0).softmax(-1).masked_fill(~mask, 0.0)
    return (weights @ v[:, :, None]).flatten(1, 2)
