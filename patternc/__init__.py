"""patternc: a compiler for attention patterns."""

from patternc import nn, zoo
from patternc.compile import compile
from patternc.equivalence import equivalent
from patternc.expr.arithmetic import clamp, maximum as max, minimum as min
from patternc.expr.attention import Attention, Term, linear_tail
from patternc.expr.index import Index, arg, fixed_length, table, where
from patternc.expr.pattern import Pattern
from patternc.parsing import parse
from patternc.plotting import plot
from patternc.primitives import (
    b,
    block,
    causal,
    cols,
    dilate,
    documents,
    empty,
    full,
    global_,
    h,
    heads,
    i,
    k,
    n_k,
    n_q,
    per_head,
    prefix,
    q,
    rows,
    same,
    sink,
    valid,
    window,
    within,
)
from patternc.structured import block_table, neighborhood, random_blocks
from patternc.verify import verify
