"""Triton functions that the kernels of a linear tail call: features, their gradients, rows of a slot."""

SOURCES = (
    '''
@triton.jit
def _load_slot(base, first, ok, stride, columns, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows first .. first + BLOCK - 1 of a matrix of WIDTH columns; 0 for rows that are not `ok`."""
    row = tl.arange(0, BLOCK)[:, None]
    at = base + tl.cast(first, tl.int64) * stride + (row * stride + columns[None, :])
    return tl.load(at, mask=ok[:, None] & (columns < WIDTH)[None, :], other=0.0)
''',
    '''
@triton.jit
def _store_slot(base, first, ok, stride, columns, values, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse of `_load_slot`."""
    row = tl.arange(0, BLOCK)[:, None]
    at = base + tl.cast(first, tl.int64) * stride + (row * stride + columns[None, :])
    tl.store(at, values.to(base.dtype.element_ty), mask=ok[:, None] & (columns < WIDTH)[None, :])
''',
    '''
@triton.jit
def _exponentials(x, sign, columns, D: tl.constexpr):
    """Numbers whose shares in their rows are softmax(sign * x), in float32, and one over the sums of rows."""
    x = x.to(tl.float32) * (sign * 1.4426950408889634)
    if D < x.shape[1]:
        x = tl.where((columns < D)[None, :], x, float("-inf"))
    e = tl.math.exp2(x - tl.max(x, 1)[:, None])
    return e, 1.0 / tl.sum(e, 1)
''',
    '''
@triton.jit
def _softmax_features(x, sign, columns, D: tl.constexpr):
    """softmax(sign * x) of each row, in float32."""
    e, share = _exponentials(x, sign, columns, D)
    return e * share[:, None]
''',
    '''
@triton.jit
def _softmax_gradient(x, sign, da, columns, D: tl.constexpr):
    """What x gains by the gradient of its features."""
    e, share = _exponentials(x, sign, columns, D)
    slope = sign * share
    return e * (da * slope[:, None] - (tl.sum(e * da, 1) * share * slope)[:, None])
''',
    '''
@triton.jit
def _elu_features(x, sign, columns, D: tl.constexpr):
    """elu(x) + 1, in float32."""
    x = x.to(tl.float32)
    a = tl.where(x > 0, x + 1.0, tl.math.exp2(tl.minimum(x, 0.0) * 1.4426950408889634))
    return tl.where((columns < D)[None, :], a, 0.0) if D < x.shape[1] else a
''',
    '''
@triton.jit
def _elu_gradient(x, sign, da, columns, D: tl.constexpr):
    x = x.to(tl.float32)
    return da * tl.where(x > 0, 1.0, tl.math.exp2(tl.minimum(x, 0.0) * 1.4426950408889634))
''',
    '''
@triton.jit
def _relu_features(x, sign, columns, D: tl.constexpr):
    return tl.maximum(x.to(tl.float32), 0.0)
''',
    '''
@triton.jit
def _relu_gradient(x, sign, da, columns, D: tl.constexpr):
    return tl.where(x > 0, da, 0.0)
''',
    '''
@triton.jit
def _identity_features(x, sign, columns, D: tl.constexpr):
    return x.to(tl.float32)
''',
    '''
@triton.jit
def _identity_gradient(x, sign, da, columns, D: tl.constexpr):
    return da
''',
)
