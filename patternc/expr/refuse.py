"""Python operators that have no meaning for a kind of expression raise patternc's errors, not Python's.

`pc.q ** 2` or `pc.causal + 3` would otherwise say `unsupported operand type(s)`, which names neither the reason nor the way out.
"""

from __future__ import annotations

from patternc.errors import OperandError

ARITHMETIC = {
    "add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "truediv": "/", "pow": "**", "lshift": "<<", "rshift": ">>",
    "matmul": "@", "and": "&", "or": "|", "xor": "^", "divmod": "divmod",
}  # fmt: skip
OTHER = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "neg": "-", "pos": "+", "abs": "abs", "invert": "~", "getitem": "[]", "contains": "in",
    "call": "()", "int": "int", "float": "float", "iter": "iteration", "round": "round",
}  # fmt: skip


def refuse(what: str, fix: str):
    """Class decorator: every operator that the class (or a base) does not define raises OperandError."""

    def decorate(cls):
        for name, symbol in {**ARITHMETIC, **{"r" + n: s for n, s in ARITHMETIC.items()}, **OTHER}.items():
            dunder = f"__{name}__"
            if not any(dunder in base.__dict__ for base in cls.__mro__[:-1]):
                setattr(cls, dunder, _refusal(symbol, what, fix))
        return cls

    return decorate


def _refusal(symbol: str, what: str, fix: str):
    def method(self, *_):
        raise OperandError(f"`{symbol}` has no meaning for {what}", typed=str(self), fix=fix)

    return method
