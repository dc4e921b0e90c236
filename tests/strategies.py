"""Random expressions for hypothesis, and values for their args.

    @given(patterns(), st.data())
    def test_something(p, data):
        args = draw_args(data.draw, p, n_q=8, n_k=8, heads=HEADS, batch=2)
        p.dense(8, heads=HEADS, batch=2, **args)

`DRAWN` counts how often each construct was drawn, for tests that print their coverage.  Patterns with `per_head` are made for
HEADS query heads.  Each arg name has one use, so that any two drawn expressions may be combined.
"""

from collections import Counter

import numpy as np
import torch
from hypothesis import strategies as st

import patternc as pc
from patternc.args import signature
from patternc.expr.node import postorder

HEADS = 2
DRAWN = Counter()

SCALARS = ("w", "s", "count")
POSITION_ARRAYS = ("doc", "ids")  # [n_k] or [B, n_k], subscripted by q, k
BATCH_ARRAYS = ("grid",)  # [B, n_k], subscripted by b and a position
LOOKUPS = ("lut",)  # LOOKUP entries, subscripted by anything: indices outside make the comparison false
LOOKUP = 8
POSITION_SETS = ("tokens", "marks")
HEAD_SETS = ("which",)
LENGTHS = ("mask",)

small = st.integers(-9, 20)
sizes = st.integers(1, 12)
counts = st.integers(0, 12)


def drawn(name):
    DRAWN[name] += 1
    return name


@st.composite
def position_sets(draw, args=True):
    """What rows, cols and global take."""
    kind = draw(st.sampled_from(("count", "range", "list", "table") + ("arg",) * args))
    drawn(f"set of {kind}")
    if kind == "count":
        return draw(counts)
    if kind == "range":
        start, length, step = draw(counts), draw(counts), draw(st.integers(1, 4))
        return range(start, start + length, step)
    if kind == "arg":
        return pc.arg(draw(st.sampled_from(POSITION_SETS)))
    listed = draw(st.lists(st.integers(0, 30), max_size=6))
    return pc.table(listed or [3]) if kind == "table" else listed


@st.composite
def scalars(draw, least=0, args=True):
    """A parameter: an integer, or an arg."""
    if args and draw(st.integers(0, 3)) == 0:
        drawn("arg scalar")
        return pc.arg(draw(st.sampled_from(SCALARS)))
    return draw(st.integers(least, 12))


@st.composite
def reads(draw, position, args=True):
    """A table or an arg, subscripted."""
    kind = draw(st.sampled_from(("table", "table2", "outside") + ("doc", "grid", "lut", "chain") * args))
    drawn(f"read {kind}")
    if kind == "table":
        data = draw(st.lists(st.integers(-3, 9), min_size=1, max_size=6))
        return pc.table(data)[position % len(data)]
    if kind == "table2":
        data = draw(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=3))
        return pc.table(data)[position % len(data), draw(st.sampled_from((pc.h % 2, pc.q % 2)))]
    if kind == "outside":  # a negative subscript reads nothing
        return pc.table(draw(st.lists(st.integers(-3, 9), min_size=3, max_size=5)))[pc.min(position, 2) - draw(counts)]
    if kind == "doc":
        return pc.arg(draw(st.sampled_from(POSITION_ARRAYS)))[draw(st.sampled_from((pc.q, pc.k)))]
    if kind == "grid":
        return pc.arg("grid")[pc.b, draw(st.sampled_from((pc.q, pc.k)))]
    if kind == "chain":
        return pc.arg("lut")[pc.arg("doc")[draw(st.sampled_from((pc.q, pc.k)))]]
    return pc.arg("lut")[position % LOOKUP]


ATOMS = (pc.q, pc.q, pc.k, pc.k, pc.h, pc.b, pc.n_q, pc.n_k)
INDEX_OPERATIONS = ("+", "-", "*", "* const", "//", "%", "// var", "% var", "neg", "abs", "min", "max", "clamp", "where", "read")


@st.composite
def indices(draw, depth=2, args=True, atoms=ATOMS):
    """An index expression."""
    if depth <= 0 or draw(st.integers(0, 4)) == 0:
        kind = draw(st.integers(0, 9))
        if kind == 0:
            return pc.q * 0 + draw(small)
        return pc.arg(draw(st.sampled_from(SCALARS))) if kind == 1 and args else draw(st.sampled_from(atoms))
    kind = drawn(draw(st.sampled_from(INDEX_OPERATIONS)))
    x = draw(indices(depth - 1, args, atoms))
    if kind in ("+", "-", "*"):
        y = draw(indices(depth - 1, args, atoms))
        return x + y if kind == "+" else x - y if kind == "-" else x * y
    if kind == "* const":
        return draw(small) * x
    if kind in ("//", "%"):
        m = draw(sizes)
        return x // m if kind == "//" else x % m
    if kind in ("// var", "% var"):
        m = draw(st.sampled_from((pc.n_k, pc.n_q, pc.h + 1, pc.max(pc.q - 2, 1)) + (pc.max(pc.arg("w"), 1),) * args))
        return x // m if kind == "// var" else x % m
    if kind in ("neg", "abs"):
        return -x if kind == "neg" else abs(x)
    if kind in ("min", "max"):
        y = draw(indices(depth - 1, args, atoms))
        return (pc.min if kind == "min" else pc.max)(x, y, draw(small))
    if kind == "clamp":
        return pc.clamp(x, draw(small), draw(indices(depth - 1, args, atoms)))
    if kind == "where":
        return pc.where(draw(comparisons(depth - 1, args)), x, draw(indices(depth - 1, args, atoms)))
    return draw(reads(x, args))


@st.composite
def index_functions(draw, args=True):
    """A function of the placeholder `i`, for `.at` and `same`."""
    m = draw(sizes)
    kind = drawn("at " + draw(st.sampled_from(("//", "%", "-", "reverse", "affine", "min", "where", "bits") + ("arg",) * args)))
    i = pc.i
    return {
        "at //": i // m, "at %": i % m, "at -": i - m, "at reverse": pc.n_k - 1 - i, "at affine": 2 * i - m, "at min": pc.min(i, m),
        "at where": pc.where(i < m, i, i - m), "at bits": (i % m) * 4 + i // m, "at arg": pc.arg("w") - i,
    }[kind]  # fmt: skip


RELATIONS = ("<", "<=", "==", "!=", ">=", ">")


@st.composite
def comparisons(draw, depth=2, args=True):
    relation = drawn(draw(st.sampled_from(RELATIONS)))
    x = draw(st.one_of(st.just(pc.q - pc.k), indices(depth, args), indices(depth, args).flatmap(lambda x: reads(x, args))))
    y = draw(st.one_of(small, indices(depth - 1, args)))
    return {"<": x < y, "<=": x <= y, "==": x == y, "!=": x != y, ">=": x >= y, ">": x > y}[relation]


PRIMITIVES = (
    "causal",
    "window",
    "window2",
    "dilate",
    "block",
    "rows",
    "cols",
    "global",
    "sink",
    "same",
    "same2",
    "documents",
    "documents list",
    "prefix",
    "valid",
    "heads",
    "within",
    "full",
    "empty",
)


@st.composite
def primitives(draw, args=True):
    """A named pattern."""
    name = drawn(draw(st.sampled_from(PRIMITIVES)))
    if name in ("causal", "full", "empty"):
        return getattr(pc, name)
    if name == "window":
        return pc.window(draw(scalars(1, args)))
    if name == "window2":
        return pc.window(left=draw(scalars(0, args)), right=draw(scalars(0, args)))
    if name == "dilate":
        return pc.dilate(draw(sizes))
    if name == "block":
        return pc.block(draw(sizes), back=draw(scalars(0, args)), ahead=draw(st.integers(0, 2)))
    if name in ("rows", "cols", "global"):
        return {"rows": pc.rows, "cols": pc.cols, "global": pc.global_}[name](draw(position_sets(args)))
    if name in ("sink", "prefix"):
        return (pc.sink if name == "sink" else pc.prefix)(draw(scalars(0, args)))
    if name == "same":
        return pc.same(draw(index_functions(args)))
    if name == "same2":
        return pc.same(draw(index_functions(args)), draw(index_functions(args)))
    if name == "documents" and args:
        return pc.documents(draw(st.sampled_from((pc.arg("doc"), pc.arg("grid")[pc.b, pc.i]))))
    if name.startswith("documents"):
        return pc.documents(draw(st.lists(st.integers(-1, 3), min_size=40, max_size=40)))
    if name == "valid":
        return pc.valid(pc.arg("mask")) if args else pc.causal
    if name == "heads":
        which = draw(st.sampled_from((1, [0], [1], range(0, 2), [0, 1]) + (pc.arg("which"),) * args))
        return pc.heads(which)
    return pc.within(draw(indices(1, args)), draw(small), draw(small) + 5)


PATTERN_OPERATIONS = ("&", "&", "|", "|", "-", "^", "~", "at", "shift", "roll", "per_head")


@st.composite
def patterns(draw, depth=3, args=True):
    """A pattern; compositions included."""
    if depth <= 0 or draw(st.integers(0, 5)) == 0:
        return draw(st.one_of(primitives(args), comparisons(2, args)))
    kind = drawn(draw(st.sampled_from(PATTERN_OPERATIONS)))
    p = draw(patterns(depth - 1, args))
    if kind in ("&", "|", "-", "^"):
        r = draw(patterns(depth - 1, args))
        return {"&": lambda: p & r, "|": lambda: p | r, "-": lambda: p - r, "^": lambda: p ^ r}[kind]()
    if kind == "~":
        return ~p
    if kind == "per_head":
        return pc.per_head(p, *(draw(patterns(depth - 2, args)) for _ in range(HEADS - 1)))
    if kind == "at":
        return _movable(p).at(draw(index_functions(args)))
    return _movable(p).shift(draw(scalars(0, args))) if kind == "shift" else _movable(p).roll(draw(scalars(0, args)))


def _movable(p):
    """Arrays of length n_k are subscripted by positions only; a moved pattern that reads one may leave it, which is an error."""
    return p if not set(signature(p)) & {*POSITION_ARRAYS, *BATCH_ARRAYS} and not any(n.op == "table" for n in postorder(p)) else pc.window(3)


TERMS = (
    pc.linear_tail, pc.linear_tail(feature="elu+1", norm="denominator"), pc.linear_tail(norm="none"),
    pc.linear_tail(feature="favor+", norm="denominator", num_features=8, seed=3), pc.linear_tail(feature="relu", norm="denominator"),
)  # fmt: skip


@st.composite
def attentions(draw, depth=2, args=True, term=None):
    """A pattern plus a term, then narrowed, widened or combined."""
    term = draw(st.sampled_from(TERMS)) if term is None else term
    base = draw(patterns(depth - 1, args))
    kind = drawn("+ " + draw(st.sampled_from(("term", "over", "&", "|", "-", "both &", "both |"))))
    if kind == "+ over":
        return base + term(over=draw(patterns(depth - 1, args)))
    a = base + term
    if kind == "+ term":
        return a
    if kind.startswith("+ both"):
        other = draw(patterns(depth - 1, args)) & (draw(patterns(depth - 1, args)) + term)
        return a & other if kind.endswith("&") else a | other
    x = draw(patterns(depth - 1, args))
    return {"+ &": lambda: x & a, "+ |": lambda: x | a, "+ -": lambda: a - x}[kind]()


def draw_args(draw, expression, n_q, n_k=None, heads=HEADS, batch=1, tensors=False):
    """Valid values for the args of `expression` (`name: value`) at these sizes; queries are the last n_q of n_k positions.

    Args:
        draw: a hypothesis draw function, such as `data.draw`.
        tensors: torch tensors instead of numpy arrays.
    """
    n_k = n_q if n_k is None else n_k
    out = {}
    for name, use in signature(expression).items():
        rows = None if name in LOOKUPS else draw(st.sampled_from((None, batch)))  # a lookup may be subscripted by b itself
        if use.kind == "scalar":
            value = draw(st.integers(-2, 14)) if rows is None else _ints(draw, (batch,), -2, 14)
        elif use.kind == "lengths":
            value = _ints(draw, (n_k,) if rows is None else (batch, n_k), 0, 1).astype(bool) if draw(st.booleans()) else _ints(draw, (batch,), 0, n_k)
        elif use.kind == "positions":
            size = heads if use.over_heads else n_k
            lead = () if rows is None else (batch,)
            mask = draw(st.booleans())
            value = _ints(draw, (*lead, size), 0, 1).astype(bool) if mask else _ints(draw, (*lead, draw(st.integers(0, 4))), -1, max(size - 1, -1))
        elif name in BATCH_ARRAYS:
            value = _ints(draw, (batch, n_k), -1, 3)
        elif name in LOOKUPS:
            value = _ints(draw, (LOOKUP,), -2, 9)
        elif draw(st.booleans()):  # sorted ids, as documents have
            value = np.sort(_ints(draw, (n_k,) if rows is None else (batch, n_k), 0, 3), axis=-1)
        else:
            value = _ints(draw, (n_k,) if rows is None else (batch, n_k), -1, 3)
        out[name] = torch.as_tensor(value) if tensors and isinstance(value, np.ndarray) else value
    return out


def _ints(draw, shape, low, high):
    """A random array from one drawn seed: shrinking values one by one is not worth its time."""
    return np.random.default_rng(draw(st.integers(0, 2**16))).integers(low, high + 1, shape)
