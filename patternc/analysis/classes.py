"""Tile classes: partial tiles with equal shape columns have equal masks, so one tile of each class decides for all.

On a tile every node is `shift + local(i, j)`; the columns are integers that fix `local`.  Tiles are grouped by a hash of
their columns and then compared with their representative, so no probability enters the answer.
"""

from __future__ import annotations

import numpy as np

from patternc.analysis.contract import forward
from patternc.analysis.evaluate import evaluate
from patternc.expr.arithmetic import terms
from patternc.expr.index import Index
from patternc.expr.node import postorder
from patternc.expr.pattern import Pattern
from patternc.forms import afford
from patternc.passes import literals

_MIX = np.random.default_rng(1).integers(1, 1 << 62, 8192, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
NEVER = 1 << 60
MOST_PAIRS = 1 << 26  # of one tile, which are looked at together
MOST_ENTRIES = 8  # of an array that one tile reads, to be told apart by their values and not by their place


def shape_columns(p: Pattern, box: dict, count: int) -> list[np.ndarray]:
    """Integer columns, one entry a tile, that together determine the tile's mask.

    A comparison that is decided on a tile contributes only its verdict; one that is not contributes its bounds relative to
    the node's shift, and the node's own shape.
    """
    zero = np.zeros(count, np.int64)
    comparisons = literals(p)
    domain: dict[Index, tuple] = {}
    shift: dict[Index, np.ndarray] = {}
    shape: dict[Index, list[np.ndarray]] = {}
    for x in postorder(*(c.args[0] for c in comparisons)):
        if x.op == "data":
            continue
        low, high = (np.broadcast_to(v, (count,)) for v in (box[x.args[0]] if x.op == "var" else forward(x, domain)))
        domain[x] = low, high
        base, columns = _shape_of(x, domain, shift, shape, zero)
        if x.op in ("var", "const"):
            shift[x], shape[x] = base + zero, columns
            continue
        constant = low == high
        if constant.any():
            base = np.where(constant, low, base)
            columns = [constant * 1, *(np.where(constant, 0, c) for c in columns)]
        shift[x], shape[x] = base, columns
    keys = [box[v][1] - box[v][0] + zero for v in ("q", "k")]
    for literal in comparisons:
        core, low, high = literal.args
        a, b = domain[core]
        low, high = (-NEVER if low is None else low), (NEVER if high is None else high)
        missed = (b < low) | (a > high)
        cuts_low, cuts_high = ~missed & (a < low), ~missed & (b > high)
        open_ = cuts_low | cuts_high
        keys.append(np.where(open_, 2, missed * 1))
        entries = _entries(literal, domain, shift, shape)
        if entries is not None:
            keys += [np.where(open_, column, 0) for column in entries]
            continue
        keys.append(np.where(cuts_low, low - shift[core], -NEVER))
        keys.append(np.where(cuts_high, high - shift[core], NEVER))
        keys += [np.where(open_, column, 0) for column in shape[core]]
    return keys


def _entries(literal: Pattern, domain, shift, shape) -> list[np.ndarray] | None:
    """Columns of `w * T[s] + rest in [low, high]` where few entries of T meet a tile: each relative to `rest`, and if it may decide at all."""
    core, low, high = literal.args
    constant, parts = terms(core)
    reads = [x for x in parts if x.op == "read" and len(x.args) == 2]
    if len(reads) != 1 or not len(shift[core]):
        return None
    read, s, data = reads[0], reads[0].args[1], reads[0].args[0].args[0]
    first, last = domain[s]
    count = int((last - first).max()) + 1
    if count > MOST_ENTRIES or s.op == "const":
        return None
    w, rest_low, rest_high, base = parts[read], constant, constant, constant
    columns = [last - first, *shape[s]]
    for x, c in parts.items():
        if x is not read:
            a, b = domain[x]
            rest_low, rest_high = (rest_low + c * a, rest_high + c * b) if c > 0 else (rest_low + c * b, rest_high + c * a)
            base = base + c * shift[x]
            columns += shape[x]
    for j in range(count):
        value = w * data.at(np.minimum(first + j, last))
        fails = np.zeros(len(value), bool)
        holds = np.ones(len(value), bool)
        if low is not None:
            fails, holds = fails | (value + rest_high < low), holds & (value + rest_low >= low)
        if high is not None:
            fails, holds = fails | (value + rest_low > high), holds & (value + rest_high <= high)
        columns.append(np.where(fails, -NEVER, np.where(holds, NEVER, value + base)))
    return columns


def _shape_of(x: Index, domain, shift, shape, zero):
    """`(shift, columns)` of a node that is not constant on the tile."""
    op, args = x.op, x.args
    if op == "const":
        return zero + args[0], []
    if op == "var":
        return domain[x][0], []
    if op == "sum":
        atoms = list(zip(args[1::2], args[2::2]))
        return sum(w * shift[t] for t, w in atoms) + args[0], [c for t, _ in atoms for c in shape[t]]
    if op in ("div", "mod") and args[1].op == "const":
        m, inner = args[1].args[0], args[0]
        if op == "div":
            return shift[inner] // m, [shift[inner] % m, *shape[inner]]
        a, b = domain[inner]
        straight = a // m == b // m  # no wrap inside the tile: the remainder is the node itself, shifted
        return np.where(straight, shift[inner] - a // m * m, 0), [straight * 1, np.where(straight, 0, shift[inner] % m), *shape[inner]]
    if op in ("min", "max") and len(args) == 2:
        (a, b), (c, d) = domain[args[0]], domain[args[1]]
        first, second = (b <= c, d <= a) if op == "min" else (a >= d, c >= b)
        second = second & ~first
        both = ~(first | second)
        columns = [first * 1 + second * 2, np.where(both, shift[args[0]] - shift[args[1]], 0)]
        columns += [np.where(second, 0, column) for column in shape[args[0]]] + [np.where(first, 0, column) for column in shape[args[1]]]
        return np.where(second, shift[args[1]], shift[args[0]]), columns
    # Anything else (data, products, ..) is fixed by where its inputs are: absolute, so such tiles share a class only if equal.
    return zero, [column for child in x.children if child.op != "data" for column in (shift[child], *shape[child])]


def group(columns: list[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """`(representatives, class of each tile)` by equal columns."""
    columns = [c for c in columns if count and (c != c[0]).any()]
    if not columns:
        return np.zeros(min(count, 1), np.int64), np.zeros(count, np.int64)
    hashed = np.zeros(count, np.uint64)
    for i, column in enumerate(columns):
        bits = column.astype(np.int64).view(np.uint64)
        hashed += (bits ^ (bits >> np.uint64(29))) * _MIX[i % len(_MIX)]
        hashed ^= hashed >> np.uint64(31)
    _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
    if all((c[first][inverse] == c).all() for c in columns):
        return first, inverse
    _, first, inverse = np.unique(np.stack(columns, 1), axis=0, return_index=True, return_inverse=True)  # a hash collision
    return first, inverse.ravel()


def count_pairs(p: Pattern, box: dict, budget: int = 1 << 20) -> np.ndarray:
    """The number of allowed pairs in each box, by looking at them."""
    (q0, q1), (k0, k1) = box["q"], box["k"]
    out = np.zeros(len(q0), np.int64)
    height, width = int((q1 - q0).max()) + 1 if len(q0) else 0, int((k1 - k0).max()) + 1 if len(q0) else 0
    afford(height * width, MOST_PAIRS, "pairs of one tile", "use smaller tiles")
    chunk = max(1, budget // max(1, height * width))
    for a in range(0, len(q0), chunk):
        s = slice(a, a + chunk)
        q, k = q0[s, None, None] + np.arange(height)[:, None], k0[s, None, None] + np.arange(width)
        # A ragged box repeats its last row and column instead of leaving the sequence; the surplus is masked away.
        truth = evaluate(p, {"q": np.minimum(q, q1[s, None, None]), "k": np.minimum(k, k1[s, None, None])})
        out[s] = np.broadcast_to(truth & (q <= q1[s, None, None]) & (k <= k1[s, None, None]), (len(q), height, width)).sum((1, 2))
    return out
