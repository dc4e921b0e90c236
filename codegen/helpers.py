"""Triton functions that generated kernels call; each is printed only into the modules that use it."""

from __future__ import annotations

import re

SOURCES = (
    '''
@triton.jit
def _floordiv(x, m):
    """Python's floor division; Triton's truncates."""
    quotient = x // m
    return tl.where(quotient * m > x, quotient - 1, quotient)
''',
    '''
@triton.jit
def _floormod(x, m):
    """Python's remainder; Triton's has the sign of the dividend."""
    remainder = x % m
    return tl.where(remainder < 0, remainder + m, remainder)
''',
    '''
@triton.jit
def _scalar(value, offset):
    """A number, or the entry of a tensor; beyond 2^30 all numbers mean the same to positions."""
    if value.dtype.is_ptr():
        value = tl.load(value + offset)
    return tl.minimum(tl.maximum(value, -1073741824), 1073741824).to(tl.int32)
''',
    '''
@triton.jit
def _tiles(lo, hi, inner_lo, inner_hi, first, last, BLOCK: tl.constexpr):
    """Tiles [start, stop) that hold a column of lo..hi, and tiles [full_start, full_stop) whose columns are all in inner_lo..inner_hi."""
    lo = tl.maximum(lo, first)
    hi = tl.minimum(hi, last)
    start = tl.where(lo <= hi, (lo - first) // BLOCK, 0)
    stop = tl.where(lo <= hi, (hi - first) // BLOCK + 1, 0)
    inner_lo = tl.minimum(tl.maximum(inner_lo, first), last + 1)
    inner_hi = tl.maximum(tl.minimum(inner_hi, last), first - 1)
    return start, stop, (inner_lo - first + BLOCK - 1) // BLOCK, (inner_hi + 1 - first) // BLOCK
''',
    '''
@triton.jit
def _swap(first, second, swap):
    return tl.where(swap, second, first), tl.where(swap, first, second)
''',
    '''
@triton.jit
def _clip(start, stop, full_start, full_stop, done):
    """A run after tile `done`, its full tiles within it."""
    start = tl.maximum(start, done)
    stop = tl.maximum(stop, start)
    full_start = tl.minimum(tl.maximum(full_start, start), stop)
    full_stop = tl.minimum(tl.maximum(full_stop, full_start), stop)
    return start, stop, full_start, full_stop
''',
    '''
@triton.jit
def _places(shared, sort: tl.constexpr, wide, start, stop):
    """Where in `shared` the tiles of a sort between two tiles are: first the sorts' counts of tiles before a tile, then their tiles."""
    ranks = shared + sort * wide
    tiles = (3 + sort) * wide
    return tiles + tl.load(ranks + start), tiles + tl.load(ranks + stop)
''',
    '''
@triton.jit
def _steps(lo, hi, stride, BLOCK: tl.constexpr):
    """The first tile, in 0 .. stride - 1, and the number of tiles that hold columns lo..hi, repeated every `stride` tiles."""
    first = _floordiv(lo, BLOCK)
    return _floormod(first, stride), tl.minimum(_floordiv(hi, BLOCK) - first + 1, stride)
''',
    '''
@triton.jit
def _step_place(tile, first, wide, stride):
    """How many chosen tiles lie before a tile, those of the step before tile 0 included."""
    past = tile - first + stride
    return past // stride * wide + tl.minimum(past % stride, wide)
''',
    '''
@triton.jit
def _step_tile(place, first, wide, stride):
    """The inverse of `_step_place`."""
    return first - stride + place // wide * stride + place % wide
''',
    '''
@triton.jit
def _dealt(program, programs, entries, long):
    """A program's entry of the schedule and its head: the long entries of all heads first, then the others head by head."""
    heads = programs // entries
    others = entries - long
    rest = program - long * heads
    entry = tl.where(rest < 0, program // heads, long + rest % tl.maximum(others, 1))
    return entry, tl.where(rest < 0, program % heads, rest // tl.maximum(others, 1))
''',
    '''
@triton.jit
def _load_part(base, own, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile [BLOCK, BLOCK_D] of the workspace, from row `own` on."""
    return tl.load(base + own * BLOCK_D + (tl.arange(0, BLOCK)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]))
''',
    '''
@triton.jit
def _store_part(base, own, values, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `_load_part`."""
    tl.store(base + own * BLOCK_D + (tl.arange(0, BLOCK)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]), values)
''',
    '''
@triton.jit
def _load_rows(base, first, stride, count, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr):
    """Rows first .. first + BLOCK - 1 of a [count, D] matrix as [BLOCK, BLOCK_D]; what is outside is 0.  CHECK: rows may be outside."""
    row = tl.arange(0, BLOCK)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    at = base + tl.cast(first, tl.int64) * stride + (row * stride + d)
    if CHECK and D < BLOCK_D:
        return tl.load(at, mask=(row < count - first) & (d < D), other=0.0)
    if CHECK:
        return tl.load(at, mask=row < count - first, other=0.0)
    if D < BLOCK_D:
        return tl.load(at, mask=d < D, other=0.0)
    return tl.load(at)
''',
    '''
@triton.jit
def _store_rows(base, first, stride, count, values, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `_load_rows`."""
    row = tl.arange(0, BLOCK)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    at = base + tl.cast(first, tl.int64) * stride + (row * stride + d)
    tl.store(at, values.to(base.dtype.element_ty), mask=(row < count - first) & (d < D))
''',
    '''
@triton.jit
def _load_box(base, first, offsets, ok, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows first + offsets of a matrix of rows of D entries, as [rows, BLOCK_D]; 0 where not `ok`, which is None where all rows exist."""
    d = tl.arange(0, BLOCK_D)[None, :]
    at = base + tl.cast(first, tl.int64) * stride + ((offsets * stride)[:, None] + d)
    if ok is not None:
        rows = tl.load(at, mask=ok[:, None] & (d < D), other=0.0)
    elif D < BLOCK_D:
        rows = tl.load(at, mask=d < D, other=0.0)
    else:
        rows = tl.load(at)
    return rows
''',
    '''
@triton.jit
def _store_box(base, first, offsets, ok, stride, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `_load_box`."""
    d = tl.arange(0, BLOCK_D)[None, :]
    at = base + tl.cast(first, tl.int64) * stride + ((offsets * stride)[:, None] + d)
    tl.store(at, values.to(base.dtype.element_ty), mask=ok[:, None] & (d < D))
''',
    '''
@triton.jit
def _softmax_step(acc, total, peak, s, v_tile, score_scale, PRECISION: tl.constexpr):
    """One tile of the online softmax, in base 2: `peak` is the largest scaled score so far, `total` the sum of weights."""
    higher = tl.maximum(peak, tl.max(s, 1) * score_scale)
    p = tl.math.exp2(s * score_scale - higher[:, None])
    shrink = tl.math.exp2(peak - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total, higher
''',
    '''
@triton.jit
def _merge(acc, total, peak, o, lse):
    """The state of the online softmax with what o and its natural log-sum-exp stand for; lse is -inf where they stand for nothing."""
    before = lse * 1.4426950408889634
    higher = tl.maximum(peak, before)
    shrink = tl.math.exp2(peak - higher)
    share = tl.math.exp2(before - higher)
    return acc * shrink[:, None] + o * share[:, None], total * shrink + share, higher
''',
    '''
@triton.jit
def _dq_step(dq, s, do_tile, k_tile, v_tile, lse, delta, score_scale, PRECISION: tl.constexpr):
    """dq += ds @ k for one tile; s, p, dp, ds are [queries, keys]."""
    p = tl.math.exp2(s * score_scale - lse[:, None])
    dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k_tile.dtype), k_tile, dq, input_precision=PRECISION)
''',
    '''
@triton.jit
def _dkdv_step(dk, dv, s, q_tile, do_tile, v_tile, lse, delta, score_scale, PRECISION: tl.constexpr):
    """dv += p @ do and dk += ds @ q for one tile; s, p, dp, ds are [keys, queries], so no product is transposed."""
    p = tl.math.exp2(s * score_scale - lse[None, :])
    dv = tl.dot(p.to(do_tile.dtype), do_tile, dv, input_precision=PRECISION)
    dp = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION)
    ds = p * (dp - delta[None, :])
    dk = tl.dot(ds.to(q_tile.dtype), q_tile, dk, input_precision=PRECISION)
    return dk, dv
''',
)


def used_by(text: str, sources: tuple[str, ...] | None = None) -> str:
    """The helpers that `text` and they themselves call, in the order of `sources`, by default `SOURCES`."""
    sources = SOURCES if sources is None else sources
    names = [re.search(r"def (\w+)", source)[1] for source in sources]
    used: list[str] = []
    for name, source in reversed(list(zip(names, sources))):  # a helper calls only those before it
        if f"{name}(" in text:
            used.insert(0, source)
            text += source
    return "\n".join(used)
