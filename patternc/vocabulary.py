"""The names of the text form: what `parse` knows and what the printer may use.  They are the public names of `patternc`."""

from __future__ import annotations

import builtins
import keyword

from patternc import primitives, structured
from patternc.expr import arithmetic as ar, index
from patternc.expr.attention import linear_tail

VALUES = {
    **{name: getattr(primitives, name) for name in ("q", "k", "h", "b", "n_q", "n_k", "i", "causal", "full", "empty")},
    "linear_tail": linear_tail,
    "True": True,
    "False": False,
    "None": None,
}

PRIMITIVES = {
    **{"global" if name == "global_" else name: getattr(primitives, name) for name in primitives.__all__},
    **{name: getattr(structured, name) for name in structured.__all__},
}
"""Functions with parameters: an unknown name among these is an arg."""

INDEX_FUNCTIONS = {
    "arg": index.arg,
    "table": index.table,
    "fixed_length": index.fixed_length,
    "where": index.where,
    "min": ar.minimum,
    "max": ar.maximum,
    "clamp": ar.clamp,
    "abs": builtins.abs,
    "range": builtins.range,
}

FUNCTIONS = {**PRIMITIVES, **INDEX_FUNCTIONS}
METHODS = ("at", "shift", "roll")
NAMES = {*VALUES, *FUNCTIONS, *METHODS}


def plain(name: str) -> bool:
    """Whether an arg of this name may be written bare in a parameter's place."""
    return name.isascii() and name.isidentifier() and name not in NAMES and not keyword.iskeyword(name)
