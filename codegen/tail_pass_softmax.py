"""Softmax features in the one-pass kernels of a linear tail (`tail_pass.py`): of bfloat16, two columns in a register as long as may be.

A row's largest entry is found by halves of its columns, which the same threads have, so that neither its maximum nor its sum is a chain
over all of them.
"""

SOURCES = (
    '''
@gluon.jit
def _halves(x):
    """The first half of the columns and the second."""
    return x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute((0, 2, 1)).split()
''',
    '''
@gluon.jit
def _signed(x, sign):
    """sign * x, two numbers at a time."""
    flip = tl.where(sign < 0, -2147450880, 0)  # the highest bit of either
    return tl.inline_asm_elementwise("xor.b32 $0, $1, $2;", "=r,r,r,r", [x, flip], dtype=tl.bfloat16, is_pure=True, pack=2)
''',
    '''
@gluon.jit
def _larger(x, y):
    return tl.inline_asm_elementwise("max.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.bfloat16, is_pure=True, pack=2)
''',
    '''
@gluon.jit
def _wide(x):
    """Numbers in float32, by one instruction each."""
    text: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
    return tl.inline_asm_elementwise(text, "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2)
''',
    '''
@gluon.jit
def _of_rows(x, like):
    """Numbers of rows, laid out as the rows of a tile are."""
    return tl.convert_layout(x, tl.SliceLayout(1, like.type.layout))[:, None]
''',
    '''
@gluon.jit
def _exponentials(x, sign, columns, D: tl.constexpr):
    """Numbers whose shares in their rows are softmax(sign * x), in float32, and one over the sums of rows."""
    x = _signed(x, sign)
    a, b = _halves(x)
    most = _larger(a, b)
    if most.shape[1] > 32:
        a, b = _halves(most)
        most = _larger(a, b)
    most = tl.max(_wide(most), 1) * 1.4426950408889634
    e = tl.exp2(_wide(x) * 1.4426950408889634 - _of_rows(most, x))
    a, b = _halves(e)
    total = a + b
    if total.shape[1] > 32:
        a, b = _halves(total)
        total = a + b
    return e, _of_rows(1.0 / tl.sum(total, 1), e)
''',
    '''
@gluon.jit
def _softmax_features(x, sign, columns, D: tl.constexpr):
    """softmax(sign * x) of each row, in float32."""
    e, share = _exponentials(x, sign, columns, D)
    return e * share
''',
    '''
@gluon.jit
def _softmax_gradient(x, sign, da, columns, D: tl.constexpr):
    """What x gains by the gradient of its features."""
    e, share = _exponentials(x, sign, columns, D)
    slope = sign * share
    return e * (da * slope - tl.sum(e * da, 1)[:, None] * share * slope)
''',
)
