"""Shared pieces of Triton text, and their way into statements.

Equal pieces are one object.  What is used twice, or is constant along an axis of the tile, gets a name and a statement of
its own; a kernel places statements by their level, so that what depends on rows only is computed before the column loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from patternc.codegen.uses import Uses

ROW, COL, HEAD = 1, 2, 4  # what a value depends on: bits of a level; 0 is a scalar of the program
PREFIX = {0: "scalar", ROW: "row", COL: "col", ROW | COL: "tile"}

# How tightly Python binds, loosest first.
COMPARE, OR, XOR, AND, SHIFT, ADD, MUL, UNARY, ATOM = range(9)


@dataclass(frozen=True, eq=False)
class Code:
    """A piece of Triton text: `form` with `{}` for each of `args`, each printed at least as tight as `inner` says."""

    form: str
    args: tuple[Code, ...]
    level: int
    binds: int
    inner: tuple[int, ...]
    label: str | None  # a value that always gets a statement, and the name it would like to have


@dataclass(frozen=True)
class Statement:
    level: int
    text: str


class Writer:
    """Makes pieces and statements.

    Args:
        uses: collects the args and tables that the text reads.
        taken: names that statements must not use.
    """

    def __init__(self, uses: Uses, taken: Iterable[str] = ()):
        self.uses = uses
        self.codes: dict[tuple, Code] = {}
        self.taken = set(taken)

    def make(self, form: str, *args: Code, binds: int = ATOM, inner: tuple[int, ...] = (), label: str | None = None, level: int = 0) -> Code:
        key = (form, *map(id, args))
        if key not in self.codes:
            for a in args:
                level |= a.level
            self.codes[key] = Code(form, args, level, binds, inner or (COMPARE,) * len(args), label)
        return self.codes[key]

    def number(self, value: int) -> Code:
        return self.make(str(value), binds=UNARY if value < 0 else ATOM)

    def binary(self, a: Code, symbol: str, b: Code, binds: int) -> Code:
        """`a symbol b`; Python would need fewer parentheses around `&` and `>>` than its readers do."""
        left, right = (ADD, ADD) if binds == COMPARE else (UNARY, UNARY) if symbol == ">>" else (binds, binds + 1)
        return self.make(f"{{}} {symbol} {{}}", a, b, binds=binds, inner=(left, right))

    def call(self, function: str, *args: Code) -> Code:
        return self.make(f"{function}({', '.join(['{}'] * len(args))})", *args)

    @property
    def false(self) -> Code:
        return self.make("b < 0", binds=COMPARE)

    def join(self, symbol: str, parts: Iterable[Code | None]) -> Code | None:
        """Parts under `&` or `|`, those that vary least first, so that little work is left for the whole tile."""
        kept = sorted((p for p in parts if p is not None), key=lambda c: ((c.level & (ROW | COL)).bit_count(), c.level & (ROW | COL), c.level & HEAD))
        groups: dict[int, Code] = {}
        for part in kept:
            before = groups.get(part.level)
            groups[part.level] = part if before is None else self.binary(before, symbol, part, AND if symbol == "&" else OR)
        joined = None
        for group in groups.values():
            joined = group if joined is None else self.binary(joined, symbol, group, AND if symbol == "&" else OR)
        return joined

    def statements(self, roots: dict[str, Code]) -> list[Statement]:
        """Assignments that leave the value of every root in the variable of its name."""
        uses: dict[int, int] = {}

        def count(code: Code) -> None:
            uses[id(code)] = uses.get(id(code), 0) + 1
            if uses[id(code)] == 1:
                for a in code.args:
                    count(a)

        for code in roots.values():
            count(code)
        out: list[Statement] = []
        names: dict[int, str] = {}

        def text(code: Code, level: int, tight: int) -> str:
            if id(code) in names:
                return names[id(code)]
            if code.args and (code.label or uses[id(code)] > 1 or code.level != level):
                body = render(code)
                names[id(code)] = self.fresh(code)
                out.append(Statement(code.level, f"{names[id(code)]} = {body}"))
                return names[id(code)]
            body = render(code)
            return f"({body})" if code.binds < tight else body

        def render(code: Code) -> str:
            return code.form.format(*(text(a, code.level, tight) for a, tight in zip(code.args, code.inner)))

        for name, code in roots.items():
            body = text(code, code.level, COMPARE) if id(code) in names or not code.args else render(code)
            out.append(Statement(code.level, f"{name} = {body}"))
            if code.args:
                names.setdefault(id(code), name)
        return out

    def fresh(self, code: Code) -> str:
        base = code.label or PREFIX[code.level & (ROW | COL)]
        self.taken |= self.uses.names()
        number = 0
        while (name := f"{base}_{number}" if number or not code.label else base) in self.taken:
            number += 1
        self.taken.add(name)
        return name
