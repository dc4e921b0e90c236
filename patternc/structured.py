"""The named patterns on grids and blocks: neighbourhoods, given blocks and random blocks.

Like those of `primitives` they are index expressions and tables, and no analysis knows their names.
"""

from __future__ import annotations

import math
import operator

import numpy as np

from patternc.errors import OperandError, ParameterError
from patternc.expr.arithmetic import clamp, floordiv, maximum, minimum, mod
from patternc.expr.calls import fitting
from patternc.expr.index import Index, as_index, fixed_length, table
from patternc.expr.pattern import H, K, Pattern, Q, all_of, any_of, between
from patternc.expr.table import Table
from patternc.primitives import n_k

MOST_BLOCKS = 64  # blocks a row of a block table: each is a comparison of its own
MOST_DRAWS = 16  # random blocks a row: each is a page of arithmetic
PRIME = 46337  # the largest prime whose products fit in 32 bits; cubing permutes the remainders, since PRIME % 3 == 2


def neighborhood(shape, kernel, dilation=1, stride=1, causal=False) -> Pattern:
    """Neighbourhood attention on a grid: every query has exactly `kernel` keys an axis; at borders the window moves inwards.

    Source: Hassani et al., "Neighborhood Attention Transformer" (2022), its dilated form (2022) and its strided one (GNA, 2025).
    With `g = q % dilation` an axis of length L splits into groups of `m = ceil((L - g) / dilation)` positions, on which
    `leader = min((q // stride) * stride + stride // 2, m - 1)` and the keys start at `clamp(leader - kernel // 2, 0, m - kernel)`.

    Args:
        shape: the grid's sides, one to three of them, outermost first: the token at (y, x) is number `y * width + x`.
        kernel: keys along each axis; an even one has `kernel // 2` before the query and `kernel // 2 - 1` after it.
        dilation: distance between keys.
        stride: this many neighbouring queries share the keys of the one in their middle (of their last one where causal).
        causal: along these axes no key comes after the query; there windows shrink at the start instead of moving.
        Each of the last four is one value for all axes, or a list with one for each.
    Raises:
        ParameterError: unless `1 <= kernel`, `kernel * dilation <= side` and `1 <= stride <= kernel` on every axis.
        ShapeError: at the call, for another number of keys than the sides' product.

    The trap: it is no `window` where borders are near, since the window moves there instead of shrinking.
    """
    sides = _sides(shape)
    kernel, dilation, stride = (_each(name, x, len(sides)) for name, x in (("kernel", kernel), ("dilation", dilation), ("stride", stride)))
    causal = [bool(c) for c in causal] if isinstance(causal, (tuple, list)) else [bool(causal)] * len(sides)
    if len(causal) != len(sides):
        raise ParameterError(f"neighborhood: `causal` has {len(causal)} entries, and the grid {len(sides)} axes", fix="give one for each axis")
    parts, inner = [fixed_length(math.prod(sides)) >= 1], 1
    for axis in reversed(range(len(sides))):
        _check_axis(sides[axis], kernel[axis], dilation[axis], stride[axis])
        q, k = (coordinate(x, inner, sides[axis], outermost=axis == 0) for x in (Q, K))
        parts += axis_neighbors(q, k, sides[axis], kernel[axis], dilation[axis], stride[axis], causal[axis])
        inner *= sides[axis]
    return all_of(*parts)


def coordinate(x: Index, inner: int, side: int, outermost: bool) -> Index:
    """The coordinate of a token along an axis of a row-major grid: `inner` tokens lie between two steps."""
    x = floordiv(x, as_index(inner))
    return x if outermost else mod(x, as_index(side))


def axis_neighbors(q: Index, k: Index, side: int, kernel: int, dilation: int, stride: int, causal: bool) -> list[Pattern]:
    """The comparisons of one axis, on its coordinates."""
    d, s = as_index(dilation), as_index(stride)
    own, key, members = floordiv(q, d), floordiv(k, d), floordiv(side + dilation - 1 - mod(q, d), d)
    if stride == 1:
        leader = own
    else:
        leader = minimum(floordiv(own, s) * stride + (stride - 1 if causal else stride // 2), members - 1)
    if causal:
        parts = [between(leader - key, None, kernel - 1), between(own - key, 0, None)]
    else:
        parts = [between(key - clamp(leader - kernel // 2, 0, members - kernel), 0, kernel - 1)]
    return parts if dilation == 1 else [*parts, mod(q - k, d) == 0]


def _sides(shape) -> list[int]:
    sides = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not 1 <= len(sides) <= 3:
        raise ParameterError(f"neighborhood: a grid has one to three axes, got {len(sides)}", fix="write `neighborhood([64, 64], 7)`")
    return [_whole("neighborhood", "shape", x, 1) for x in sides]


def _each(name: str, value, axes: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * axes
    if len(values) != axes:
        message = f"neighborhood: `{name}` has {len(values)} entries, and the grid {axes} axes"
        raise ParameterError(message, fix="give one for each axis, or one for all")
    return [_whole("neighborhood", name, x, 1) for x in values]


def _check_axis(side: int, kernel: int, dilation: int, stride: int) -> None:
    if kernel * dilation > side:
        what = f"kernel {kernel}" if dilation == 1 else f"kernel {kernel} with dilation {dilation}"
        raise ParameterError(f"neighborhood: {what} does not fit an axis of {side}", fix="kernel * dilation <= side, on every axis")
    if stride > kernel:
        message = f"neighborhood: stride {stride} leaves out keys, since the kernel is {kernel}"
        raise ParameterError(message, fix="1 <= stride <= kernel, on every axis")


def _whole(primitive: str, name: str, value, least: int, most: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ParameterError(f"{primitive}: `{name}` must be an integer, got {value!r}", fix=f"use an integer of at least {least}") from None
    if number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        fix = f"use {name} >= {least}" if most is None else f"use {wanted}"
        raise ParameterError(f"{primitive}: `{name}` must be {wanted}, got {number}", fix=fix)
    return number


def block_table(T, block, width=None, per_head=False) -> Pattern:
    """The key blocks listed for each query block: `k // block in T[q // block]`, for each head by itself where T has a head axis.

    Args:
        T: adjacency lists.  Static: an array or nested lists [query blocks, entries], or [heads, query blocks, entries] (lists may
            differ in length).  At call time: an arg of that shape, with `width` its last axis and `per_head` telling whether it has a
            head axis; one axis more is the batch in front.  Negative entries are padding, and entries beyond the keys match nothing.
        block: tokens a block, of queries and of keys.
        width: entries a row of an arg.
        per_head: whether an arg has a head axis.
    Raises:
        ParameterError: the lists are empty or longer than 64 entries, `width` is missing for an arg or given for a table.
        OperandError: T is no table.
        ShapeError: at the call, where queries or heads go beyond the table.

    The trap: a row is a set.  References that gather the listed blocks (BigBird's among them) count a key twice in the softmax
    if its block is listed twice, or is listed and in the window; here every key counts once.
    """
    size = as_index(_whole("block_table", "block", block, 1))
    if isinstance(T, Index) and T.op == "arg":
        if width is None:
            raise ParameterError("block_table of an arg needs its number of entries a row", fix=f"write `block_table({T}, {block}, width=3)`")
        source, width = T, _whole("block_table", "width", width, 1, MOST_BLOCKS)
    else:
        if width is not None or per_head:
            raise ParameterError("block_table: `width` and `per_head` describe an arg; a table shows both", fix="leave them out")
        source = _adjacency(T)
        per_head, width = source.args[0].data.ndim == 3, source.args[0].data.shape[-1]
    row = (*([H] if per_head else []), floordiv(Q, size))
    return any_of(*(source[(*row, j)] == floordiv(K, size) for j in range(width)))


def _adjacency(T) -> Index:
    """A table of sorted rows without repetitions, padded with -1 at the end."""
    name = None
    if isinstance(T, Index):
        if T.op != "table":
            raise OperandError(f"block_table takes a table or an arg, got the expression `{T}`", fix="give an array [query blocks, entries]")
        T, name = T.args[0].data, T.args[0].name
    if isinstance(T, (list, tuple)):
        T = _padded(T)
    data = Table.of(T).data
    if data.ndim not in (2, 3):
        raise ParameterError(
            f"block_table takes [query blocks, entries] or [heads, query blocks, entries], got shape {data.shape}",
            fix="a row lists the key blocks of one query block",
        )
    data = np.sort(data, -1)
    again = np.zeros(data.shape, bool)
    again[..., 1:] = data[..., 1:] == data[..., :-1]
    last = np.iinfo(np.int64).max
    data = np.sort(np.where(again | (data < 0), last, data), -1)
    data = np.where(data == last, -1, data)[..., : max(1, int((data < last).sum(-1).max()))]
    if data.shape[-1] > MOST_BLOCKS:
        raise ParameterError(
            f"a row of the block table lists {data.shape[-1]} blocks, and {MOST_BLOCKS} are the most",
            fix="write rows that see nearly everything by `rows` or `global`, and leave them out of the table",
        )
    return table(data, name)


def _padded(rows):
    """Nested lists as an array, short rows filled with -1."""
    if not rows or not isinstance(rows[0], (list, tuple)):
        return rows
    if rows[0] and isinstance(rows[0][0], (list, tuple)):
        heads = [[list(row) for row in head] for head in rows]
        longest = max((len(row) for head in heads for row in head), default=0)
        return [[row + [-1] * (longest - len(row)) for row in head] for head in heads]
    longest = max(map(len, rows))
    return [list(row) + [-1] * (max(longest, 1) - len(row)) for row in rows]


def random_blocks(count, block, seed=0, near=None, first=0, last=0, per_head=True) -> Pattern:
    """Every query block sees `count` random key blocks, drawn anew for each head.

    The draws are integer arithmetic on (head, query block, draw, seed): the same on every machine and at every call, and one head's
    do not depend on how many heads there are.  No length is needed in advance.  At each length the candidates are the blocks that
    the keys have then; they are cut into `count` shares of nearly equal size, and one block is drawn from each, so that no block
    is drawn twice.  A longer sequence has more candidates, hence other draws.

    Args:
        count: blocks a row, 1 to 16.  Where fewer candidates are left, all of them.
        block: tokens a block, of queries and of keys.
        seed: 0 to 46336.
        near: candidates exclude the query's own block and `near` on each side of it (0 excludes the own block only); None excludes none.
            Sides are counted around the ends: block 0's left neighbour is the last candidate.
        first, last: candidates exclude this many blocks at the start and at the end, as for global ones.
        per_head: whether heads draw by themselves.
    Raises:
        ParameterError: a parameter is out of range.
        BackendError: at the call, where kernels' 32 bits do not hold the draws: beyond 46,346 candidates a share.
    """
    names = ("count", "block", "seed", "first", "last")
    ranges = ((1, MOST_DRAWS), (1, None), (0, PRIME - 1), (0, 1 << 20), (0, 1 << 20))
    count, block, seed, first, last = (
        _whole("random_blocks", name, x, *limits) for name, x, limits in zip(names, (count, block, seed, first, last), ranges)
    )
    near = None if near is None else _whole("random_blocks", "near", near, 0, 1 << 20)
    row, size = floordiv(Q, as_index(block)), as_index(block)
    ring = floordiv(n_k + (block - 1), size) - (first + last)  # the candidates, and the row's own neighbourhood
    free = ring - (0 if near is None else 2 * near + 1)
    begin = row - first if near is None else row + (near + 1 - first)
    draws = []
    for j in range(count):
        low = floordiv(free * j, as_index(count))
        share = floordiv(free * (j + 1), as_index(count)) - low
        place = low + floordiv(_chance(row, H if per_head else as_index(0), j, seed) * share, as_index(PRIME))
        draws.append(mod(begin + place, maximum(ring, 1)) + first == floordiv(K, size))
    return all_of(free >= 1, any_of(*draws))


def _chance(row: Index, head: Index, draw: int, seed: int) -> Index:
    """A number in 0 .. PRIME - 1 for each (row, head, draw, seed): two rounds of adding and cubing modulo a prime.

    Cubing permutes the remainders, so the numbers of one head and draw are all different for PRIME consecutive rows.
    """
    x = mod(row, as_index(PRIME)) * 19937 + head * 7919 + (seed + 4001 * draw + 12345) % PRIME
    x = _cube(mod(x, as_index(PRIME)))
    return _cube(mod(x + head * 3571 + (seed * 28657 + 9973 * draw + 1) % PRIME, as_index(PRIME)))


def _cube(x: Index) -> Index:
    prime = as_index(PRIME)
    return mod(mod(x * x, prime) * x, prime)


__all__ = ["block_table", "neighborhood", "random_blocks"]
globals().update({name: fitting(name)(globals()[name]) for name in __all__})
