"""Random inputs for checking attentions: sizes, runtime args, parameters, and which results must be exactly 0."""

from __future__ import annotations

import torch

from patternc import reference
from patternc.args import bind, signature
from patternc.expr.attention import Attention
from patternc.expr.bounds import INF, bounds
from patternc.expr.node import Node, postorder
from patternc.tail import favor_projection, feature_map


def default_sizes(spec: Node) -> list[tuple[int, int]]:
    """Small ones, ragged ones, one with fewer queries than keys, and one beyond the largest number in the pattern.

    Where the pattern fixes the number of keys: that many queries (unless that is a long dense reference), and a few.
    """
    fixed = [node.args[0] for node in postorder(spec) if node.op == "length"]
    if fixed:
        return [(n, fixed[0]) for n in dict.fromkeys((fixed[0] if fixed[0] <= 4096 else 8, min(37, fixed[0]), 1))]
    numbers = [abs(a) for node in postorder(spec) for a in node.args if isinstance(a, int) and not isinstance(a, bool) and node.op != "term"]
    reach = min(max([n for n in numbers if n <= 1200], default=0), 1200)
    return [(1, 1), (37, 37), (128, 128), (64, 203), (1, 150), *([(2 * reach + 29,) * 2] if reach > 100 else [(300, 300)])]


def random_args(spec: Node, n_q: int, n_k: int, heads: int, batch: int, generator, device="cpu", known=()) -> dict:
    """Random values for every arg of a pattern: sorted ids for tensors, widths, masks and lengths, some of them per batch row."""

    def draw(low, high, *size):
        return torch.randint(low, max(high, low + 1), size, generator=generator)

    env = {"q": (n_k - n_q, n_k - 1), "k": (0, n_k - 1), "h": (0, heads - 1), "b": (0, batch - 1), "n_q": (n_q, n_q), "n_k": (n_k, n_k)}
    out = {}
    for name, use in signature(spec).items():
        if name in known:
            continue
        if use.kind == "scalar":
            out[name] = int(draw(1, n_k + 1, 1))
        elif use.kind == "lengths":
            out[name] = draw(0, n_k + 1, batch)
        elif use.kind == "positions":
            out[name] = draw(-1, heads if use.over_heads else n_k, batch, 3)
        else:
            known_now = {**env, **{x: (v, v) for x, v in out.items() if isinstance(v, int)}}
            reach = [max(bounds(s[axis], known_now)[1] for s in use.subscripts) for axis in range(use.rank)]
            out[name] = draw(-1, 5, *(int(high) + 1 if 0 <= high < INF else n_k for high in reach)).sort(-1).values
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in out.items()}


def random_parameters(term, heads: int, head_dim: int, value_dim: int, generator) -> dict[str, torch.Tensor]:
    def normal(*shape):
        return torch.randn(shape, generator=generator)

    out = {}
    if term.feature == "favor+":
        out["projection"] = favor_projection(head_dim, term.num_features, term.seed)
    if term.norm == "rms":
        out.update(exact_scale=normal(heads, value_dim), tail_scale=normal(heads, value_dim))
    if term.initial_state:
        features = feature_map(term.feature, out.get("projection"))(torch.zeros(1, head_dim)).shape[-1]
        out["initial_state"] = normal(heads, features, value_dim + (term.norm == "denominator")).abs()
    return out


def structural_zeros(spec, args, sizes, device) -> dict[str, torch.Tensor]:
    """Rows of each tensor that no allowed pair reaches: exactly 0, not only small."""
    n_q, n_k, batch, heads, kv_heads = sizes
    call = bind(spec, args, n_q, n_k, heads, batch, device=device)
    term = spec.term if isinstance(spec, Attention) else None
    exact = reference.mask_of(spec if term is None else spec.exact, call, device)
    rest = torch.zeros_like(exact) if term is None else reference.mask_of(spec.domain, call, device) & ~exact

    def rows(mask):
        return ~mask.any(-1)

    def keys(mask):
        return ~mask.unflatten(1, (kv_heads, -1)).any(3).any(2)

    zeros = {"dq": rows(exact), "dk": keys(exact), "dv": keys(exact | rest), "dtail_k": keys(rest)}
    if term is None or not term.initial_state:
        zeros.update(out=rows(exact | rest), dtail_q=rows(rest))
    return zeros
