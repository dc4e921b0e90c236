"""What patterns and attentions mean: every pair evaluated by itself, dense attention in float64, plain autograd.

Everything else is checked against this file, so it is slow, needs O(n^2) memory, and imports nothing of the compiler but
the expression's nodes and the reading of args.
"""

from __future__ import annotations

import math

import torch

from patternc.args import Bound, bind
from patternc.errors import InternalError
from patternc.expr.attention import Attention
from patternc.expr.node import Node
from patternc.expr.pattern import Pattern
from patternc.forms import afford

RMS_EPS = 1e-8
FAVOR_EPS = 1e-4
MOST_PAIRS = 1 << 32


def dense(pattern: Pattern, n_q: int, n_k: int | None = None, heads: int = 1, batch: int = 1, *, q_start=None, device=None, **args) -> torch.Tensor:
    """The allowed pairs: bool [batch, heads, n_q, n_k] on `device` (by default where the args are, else the CPU).

    Raises:
        ArgError, ShapeError, DtypeError, DeviceError, ParameterError: see `patternc.args.bind`.
    """
    return mask_of(pattern, bind(pattern, args, n_q, n_k, heads, batch, q_start, device), device)


def mask_of(pattern: Pattern, call: Bound, device=None) -> torch.Tensor:
    """`dense` for args that are bound already."""
    if device is None:
        given = [v.device for v in (*call.values.values(), call.q_start) if isinstance(v, torch.Tensor)]
        device = given[0] if given else "cpu"
    shape = call.batch, call.heads, call.n_q, call.n_k
    check_size(*shape)
    if 0 in shape:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    return holds(pattern, Pairs(call.torch(device, torch.int64), device)).expand(shape).contiguous()


def check_size(*shape: int) -> None:
    """Raise LimitError where the pairs of a call are too many to be looked at one by one."""
    afford(math.prod(shape), MOST_PAIRS, "pairs of a dense mask", "use a shorter length; `pc.compile(p).layout(n)` has the tiles of long ones")


class Pairs:
    """All pairs of a call: variables as int64 tensors that broadcast to [batch, heads, n_q, n_k]."""

    def __init__(self, call: Bound, device):
        self.args = call.values
        self.device = device
        start = torch.as_tensor(call.q_start, device=device, dtype=torch.int64).view(-1, 1, 1, 1)
        self.vars = {
            "b": self.range(call.batch).view(-1, 1, 1, 1),
            "h": self.range(call.heads).view(1, -1, 1, 1),
            "q": self.range(call.n_q).view(1, 1, -1, 1) + start,
            "k": self.range(call.n_k).view(1, 1, 1, -1),
            "n_q": self.number(call.n_q),
            "n_k": self.number(call.n_k),
        }

    def range(self, n: int) -> torch.Tensor:
        return torch.arange(n, device=self.device)

    def number(self, value: int) -> torch.Tensor:
        return torch.full((1, 1, 1, 1), value, device=self.device)


def holds(p: Pattern, pairs: Pairs) -> torch.Tensor:
    """Which pairs are in the pattern: bool, broadcasts to [batch, heads, n_q, n_k]."""
    op, args = p.op, p.args
    if op in ("true", "false"):
        return torch.full((1, 1, 1, 1), op == "true", device=pairs.device)
    if op == "in":
        core, low, high = args
        x, inside = value(core, pairs)
        return inside & (x >= (x if low is None else low)) & (x <= (x if high is None else high))
    parts = [holds(a, pairs) for a in args]
    if op == "not":
        return ~parts[0]
    if op == "per_head":
        parts = [part & (pairs.vars["h"] == head) for head, part in enumerate(parts)]
    join = {"and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor, "per_head": torch.logical_or}.get(op)
    if join is None:
        raise InternalError(f"the reference has no meaning for `{op}`")
    result = parts[0]
    for part in parts[1:]:
        result = join(result, part)
    return result


def value(x: Node, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The integer, and whether every read that it depends on was inside its tensor; of a `where`, only the side it takes."""
    op, args = x.op, x.args
    always = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=pairs.device)
    if op in ("const", "length"):
        return pairs.number(args[0]), always
    if op == "var":
        return pairs.vars[args[0]], always
    if op == "arg":
        given = pairs.args[args[0]]
        return (pairs.number(given) if isinstance(given, int) else given.view(-1, 1, 1, 1)), always
    if op == "read":
        return _read(args[0], [value(s, pairs) for s in args[1:]], pairs)
    if op == "member":
        return _member(args[0], value(args[1], pairs), pairs)
    if op == "where":
        chosen = holds(args[0], pairs)
        (a, a_inside), (b, b_inside) = value(args[1], pairs), value(args[2], pairs)
        return torch.where(chosen, a, b), torch.where(chosen, a_inside, b_inside)
    if op == "sum":
        total, inside = pairs.number(args[0]), always
        for atom, weight in zip(args[1::2], args[2::2]):
            v, ok = value(atom, pairs)
            total, inside = total + weight * v, inside & ok
        return total, inside
    if op not in _ARITHMETIC:
        raise InternalError(f"the reference has no meaning for `{op}`")
    parts = [value(a, pairs) for a in args]
    f = _ARITHMETIC[op]
    result, inside = parts[0]
    if op == "abs":
        return f(result), inside
    for v, ok in parts[1:]:
        result, inside = f(result, v), inside & ok
    return result, inside


_ARITHMETIC = {
    "mul": torch.mul,
    "div": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "mod": torch.remainder,  # has the sign of the divisor, which is at least 1
    "min": torch.minimum,
    "max": torch.maximum,
    "abs": torch.abs,
}


def _source(source: Node, pairs: Pairs) -> torch.Tensor:
    """The data behind a read, with a leading batch axis of 1 or `batch`."""
    if source.op == "table":
        return torch.tensor(source.args[0].data, device=pairs.device)[None]
    return pairs.args[source.args[0]].long()


def _read(source: Node, subscripts, pairs: Pairs):
    data = _source(source, pairs)
    inside = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=pairs.device)
    index = [pairs.vars["b"] if data.shape[0] > 1 else torch.zeros_like(pairs.vars["b"][:1])]
    for (s, ok), size in zip(subscripts, data.shape[1:]):
        inside = inside & ok & (s >= 0) & (s < size)
        index.append(s.clamp(0, max(size - 1, 0)))
    if data.numel() == 0:
        return pairs.number(0), inside
    return data[tuple(index)], inside


def _member(source: Node, position, pairs: Pairs):
    """1 where the position is in the set: a listed one, or one where the mask is true; elsewhere 0."""
    x, inside = position
    if source.op == "table":
        return torch.isin(x, _source(source, pairs)).long(), inside
    found, within = _read(source, [(x, torch.ones_like(x, dtype=torch.bool))], pairs)
    return torch.where(within, found, 0), inside


def attention(
    spec: Pattern | Attention, q, k, v, args: dict | None = None, *, scale: float | None = None, q_start=None, check: bool = False,
    tail_q=None, tail_k=None, exact_scale=None, tail_scale=None, initial_state=None, projection=None, dtype=torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention with the pattern's mask, and the linear tail of an attention on the pairs that its exact part leaves out.

    Exact part: softmax over E of `scale * q.k`.  Tail: `sum over R = D - E of (phi(q).phi(k)) v`, plus `phi(q) h0` for every
    row; without a denominator (RATTENTION, arXiv 2506.15545), or divided by the sum of its weights (`norm="denominator"`:
    the state has one more column, which is the weight's).  With `norm="rms"` each part goes through an RMSNorm of its own
    (eps 1e-8) before they are added.  A row without keys gives exactly 0 in a part, and gradient 0.

    Args:
        spec: a pattern or an attention.
        q: [B, H, Nq, D].  k: [B, Hkv, Nk, D].  v: [B, Hkv, Nk, Dv]; Hkv divides H, query head h reads kv head h // (H / Hkv).
        args: runtime args by name.
        scale: of the exact scores; D ** -0.5 by default.
        tail_q, tail_k: what the tail uses instead of q and k, of the same shapes but any D.
        exact_scale, tail_scale: [H, Dv], the RMSNorms' scales; 1 by default.
        initial_state: [H, F, Dv], h0 of each query head ([H, F, Dv + 1] with a denominator).
        projection: [m, D], the random features of favor+.
        dtype: of the computation and of the results.
    Returns:
        out [B, H, Nq, Dv] and lse [B, H, Nq], the natural log of the exact part's softmax denominator (-inf without keys).
    """
    exact, domain, term = (spec.exact, spec.domain, spec.term) if isinstance(spec, Attention) else (spec, None, None)
    call = bind(spec, args or {}, q.shape[2], k.shape[2], q.shape[1], q.shape[0], q_start, q.device, check)
    mask = mask_of(exact, call, q.device)
    group = q.shape[1] // k.shape[1]
    q, k, v = q.to(dtype), _repeat(k, group, dtype), _repeat(v, group, dtype)
    out, lse = _softmax(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    if term is None:
        return out, lse
    rest = mask_of(domain, call, q.device) & ~mask
    tail_q = q if tail_q is None else tail_q.to(dtype)
    tail_k = k if tail_k is None else _repeat(tail_k, group, dtype)
    phi = feature_map(term.feature, None if projection is None else projection.to(dtype))
    state = None if initial_state is None else initial_state.to(dtype)
    tail = _tail(phi(tail_q), phi(tail_k), v, rest, state, term.norm == "denominator")
    if term.norm == "rms":
        out, tail = _rms(out, exact_scale), _rms(tail, tail_scale)
    return out + tail, lse


def _repeat(x, group: int, dtype):
    return x.to(dtype).repeat_interleave(group, 1)


def _softmax(q, k, v, mask, scale: float):
    some = mask.any(-1)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    top = torch.where(some, scores.detach().amax(-1) if scores.shape[-1] else 0.0, 0.0)
    weights = torch.exp(scores - top[..., None])  # exactly 0 where masked, also in rows without keys
    total = torch.where(some, weights.sum(-1), 1.0)
    return weights @ v / total[..., None], torch.where(some, top + total.log(), -torch.inf)


def feature_map(feature, projection=None):
    """The map phi from [..., d] to [..., F]."""
    if callable(feature):
        return feature
    if feature == "softmax":
        return lambda x: torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)
    if feature == "elu+1":
        return lambda x: torch.nn.functional.elu(x) + 1
    if feature == "relu":
        return torch.relu
    if feature == "identity":
        return lambda x: x
    return lambda x: _favor(x, projection)


def _favor(x, projection):
    """Positive random features of the softmax kernel (Performer, arXiv 2009.14794, equation 5); no stabiliser."""
    x = x * x.shape[-1] ** -0.25
    y = torch.exp(x @ projection.transpose(-1, -2) - x.square().sum(-1, keepdim=True) / 2) + FAVOR_EPS
    return y * projection.shape[-2] ** -0.5


def _tail(phi_q, phi_k, v, mask, state, denominator: bool):
    if denominator:
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    y = (phi_q @ phi_k.transpose(-1, -2)).masked_fill(~mask, 0.0) @ v
    y = y if state is None else y + phi_q @ state
    if not denominator:
        return y
    weight = y[..., -1:]
    return torch.where(weight != 0, y[..., :-1] / torch.where(weight != 0, weight, 1.0), 0.0)


def _rms(x, scale):
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + RMS_EPS)
    return y if scale is None else y * scale.to(x.dtype)[:, None]
