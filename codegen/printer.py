"""The printer of Triton text: index expressions and patterns, node by node, as `Code`.

Two tables say what each operation becomes; an operation that is in neither is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable

from patternc.codegen.code import ADD, AND, ATOM, COL, COMPARE, MUL, ROW, SHIFT, UNARY, XOR, Code, Writer
from patternc.codegen.uses import Uses
from patternc.errors import InternalError
from patternc.expr.arithmetic import linear, mod, terms
from patternc.expr.bounds import interval
from patternc.expr.index import Index
from patternc.expr.node import Node
from patternc.expr.pattern import Pattern

SPLIT_LIMIT = 2**30  # bounds beyond this are not moved across a comparison, where they could overflow


class Printer(Writer):
    """Prints the expressions of one kernel.

    Args:
        variables: Triton text and level of every variable (`q`, `k`, `h`, `b`, `n_q`, `n_k`, `r0`, `r1`, `q_start`).
        uses, taken: see `Writer`.
    """

    def __init__(self, variables: dict[str, tuple[str, int]], uses: Uses, taken: Iterable[str] = ()):
        super().__init__(uses, taken)
        self.variables = variables
        self.memo: dict[int, tuple[Node, Code]] = {}

    # Integers

    def index(self, x: Node) -> Code:
        """The code of an index expression."""
        if id(x) not in self.memo:
            if x.op not in INDEX:
                raise InternalError(f"no Triton text for the index operation `{x.op}`")
            self.memo[id(x)] = (x, INDEX[x.op](self, x))
        return self.memo[id(x)][1]

    def _const(self, x: Index) -> Code:
        return self.number(x.args[0])

    def _var(self, x: Index) -> Code:
        if x.args[0] not in self.variables:
            raise InternalError(f"the variable `{x.args[0]}` has no meaning in this place of a kernel")
        text, level = self.variables[x.args[0]]
        return self.make(text, level=level)

    def _arg(self, x: Index) -> Code:
        return self.make(self.uses.scalar(x.args[0]))

    def _sum(self, x: Index) -> Code:
        constant, parts = terms(x)
        rows, cols, mixed = self._split(x)
        if rows and cols:  # one addition a pair of the tile
            pieces = [(linear(constant, rows), 1), (linear(0, cols), 1), *((a, c) for a, c in mixed.items())]
            if all(c < 0 for c in cols.values()):
                pieces[1] = (linear(0, {a: -c for a, c in cols.items()}), -1)
            return self._add(0, pieces)
        return self._add(constant, parts.items())

    def _add(self, constant: int, pieces) -> Code:
        """`constant + sum(weight * piece)`, positive pieces first."""
        total = None
        for piece, weight in sorted(pieces, key=lambda item: item[1] < 0):
            code = self.index(piece)
            if abs(weight) != 1:
                code = self.binary(self.number(abs(weight)), "*", code, MUL)
            if total is None:
                total = code if weight > 0 else self.make("-{}", code, binds=UNARY, inner=(UNARY,))
            else:
                total = self.binary(total, "+" if weight > 0 else "-", code, ADD)
        if total is None:
            return self.number(constant)
        return self.binary(total, "+" if constant > 0 else "-", self.number(abs(constant)), ADD) if constant else total

    def _split(self, x: Index) -> tuple[dict, dict, dict]:
        """The terms of `x` that do not vary along columns, those that vary along columns only, and the others."""
        rows, cols, mixed = {}, {}, {}
        for atom, weight in terms(x)[1].items():
            level = self.index(atom).level
            (rows if not level & COL else mixed if level & ROW else cols)[atom] = weight
        return rows, cols, mixed

    def _mul(self, x: Index) -> Code:
        a, b = map(self.index, x.args)
        return self.binary(a, "*", b, MUL)

    def _div(self, x: Index) -> Code:
        dividend, divisor = x.args
        shift = _power_of_two(divisor)
        if shift is not None:  # an arithmetic shift floors
            return self.binary(self.index(dividend), ">>", self.number(shift), SHIFT)
        if interval(dividend)[0] >= 0:
            return self.binary(self.index(dividend), "//", self.index(divisor), MUL)
        return self.call("_floordiv", self.index(dividend), self.index(divisor))

    def _mod(self, x: Index) -> Code:
        dividend, divisor = x.args
        if _power_of_two(divisor) is not None:
            return self.make("{} & {}", self.index(dividend), self.number(divisor.args[0] - 1), binds=AND, inner=(UNARY, ATOM))
        rows, cols, mixed = self._split(dividend)
        m = self.index(divisor)
        if rows and cols and not mixed and not m.level:  # remainders of rows and of columns are added, and reduced once
            total = self.binary(self.index(mod(linear(terms(dividend)[0], rows), divisor)), "+", self.index(mod(linear(0, cols), divisor)), ADD)
            return self.call("tl.where", self.binary(total, ">=", m, COMPARE), self.binary(total, "-", m, ADD), total)
        if interval(dividend)[0] >= 0:
            return self.binary(self.index(dividend), "%", m, MUL)
        return self.call("_floormod", self.index(dividend), m)

    def _extremum(self, x: Index) -> Code:
        codes = sorted((self.index(a) for a in x.args), key=lambda c: c.level.bit_count())
        total = codes[0]
        for code in codes[1:]:
            total = self.call("tl.minimum" if x.op == "min" else "tl.maximum", total, code)
        return total

    def _abs(self, x: Index) -> Code:
        return self.call("tl.abs", self.index(x.args[0]))

    def _where(self, x: Index) -> Code:
        condition = self.pattern(x.args[0])
        return self.index(x.args[1]) if condition is None else self.call("tl.where", condition, *map(self.index, x.args[1:]))

    # Memory

    def _read(self, x: Index) -> Code:
        source, *subscripts = x.args
        array = self.uses.array(source, len(subscripts))
        codes = [self.index(s) for s in subscripts]
        offset = codes[0]
        for axis, code in enumerate(codes[1:], 1):
            wide = offset if array.static else self.call("tl.cast", offset, self.make("tl.int64"))
            offset = self.binary(self.binary(wide, "*", self.make(array.sizes[axis]), MUL), "+", code, ADD)
        return self._load(array.name, offset, self._inside(x), f"{array.label}_{_label(subscripts)}")

    def _load(self, pointer: str, offset: Code, inside: Code | None, label: str) -> Code:
        address = self.binary(self.make(pointer), "+", offset, ADD)
        if inside is None:
            return self.make("tl.load({})", address, label=label)
        return self.make("tl.load({}, mask={}, other=0)", address, inside, label=label)

    def _inside(self, x: Index) -> Code | None:
        """Whether all subscripts of a read are within its tensor; None if that is proved."""
        source, *subscripts = x.args
        array = self.uses.array(source, len(subscripts))
        checks = []
        for subscript, size in zip(subscripts, array.sizes):
            low, high = interval(subscript)
            code = self.index(subscript)
            if low < 0 and (high < 0 or (array.static and low >= int(size))):
                return self.false
            if low < 0:
                checks.append(self.binary(code, ">=", self.number(0), COMPARE))
            if array.static and low >= int(size):
                return self.false
            if not (array.static and high < int(size)):
                checks.append(self.binary(code, "<", self.make(size), COMPARE))
        return self.join("&", checks)

    def _inside_value(self, x: Index) -> Code:
        valid = self.join("&", [self._inside(x), *map(self.valid, x.args[1:])])
        return self.number(1) if valid is None else self.call("tl.cast", valid, self.make("tl.int32"))

    def _member(self, x: Index) -> Code:
        source, position, _ = x.args
        mask = self.uses.member(source)
        code = self.index(position)
        low = None if interval(position)[0] >= 0 else self.binary(code, ">=", self.number(0), COMPARE)
        inside = self.join("&", [low, self.binary(code, "<", self.make(mask.sizes[0]), COMPARE)])
        return self._load(mask.name, code, inside, f"{mask.label}_{_label([position])}")

    def valid(self, x: Node) -> Code | None:
        """Whether all reads that the value of `x` depends on are inside their tensors; None if there are none."""
        if x.op == "where":
            condition, yes, no = x.args
            a, b = self.valid(yes), self.valid(no)
            if a is None and b is None:
                return None
            c = self.pattern(condition)
            if c is None:
                return a
            return self.join("|", [self.join("&", [c, a]), self.join("&", [self._negate(c), b])])
        checks = [self.valid(c) for c in x.children if isinstance(c, Index)]
        return self.join("&", [self._inside(x) if x.op == "read" else None, *checks])

    # Patterns

    def pattern(self, p: Node) -> Code | None:
        """The code of a pattern, None for the full one."""
        if p.op == "true":
            return None
        if p.op not in PATTERN:
            raise InternalError(f"no Triton text for the pattern operation `{p.op}`")
        if id(p) not in self.memo:
            self.memo[id(p)] = (p, PATTERN[p.op](self, p))
        return self.memo[id(p)][1]

    def _false(self, p: Pattern) -> Code:
        return self.false

    def _in(self, p: Pattern) -> Code:
        core, low, high = p.args
        if core.op == "inside":
            valid = self.join("&", [self._inside(core), *map(self.valid, core.args[1:])])
            return (valid or self._negate(self.false)) if low == 1 else self._negate(valid) if valid else self.false
        x, low, high = self._sides(core, low, high)
        if low is not None and low is high:
            comparison = self.binary(x, "==", low, COMPARE)
        else:
            sides = [(">=", low), ("<=", high)]
            comparison = self.join("&", [self.binary(x, symbol, side, COMPARE) for symbol, side in sides if side is not None])
        return self.join("&", [self.valid(core), comparison])

    def _sides(self, core: Index, low: int | None, high: int | None) -> tuple[Code, Code | None, Code | None]:
        """`core in [low, high]` as a value and two bounds, with all that is constant along columns moved into the bounds."""
        bounds = [b for b in (low, high) if b is not None]
        inner = core.args[0] if core.op == "mod" else core
        rows, cols, mixed = self._split(inner)
        if rows and cols and not mixed:
            constant = terms(inner)[0]
            one = low == high or high == 0  # one remainder: R + C = r (mod m) if R = r - C (mod m)
            if core.op == "mod" and one and not self.index(core.args[1]).level:
                left = self.index(mod(linear(constant, rows), core.args[1]))
                right = self.index(mod(linear(high, {a: -c for a, c in cols.items()}), core.args[1]))
                return left, right, right
            if core.op != "mod" and max(map(abs, bounds)) <= SPLIT_LIMIT:
                sign = -1 if all(c < 0 for c in cols.values()) else 1
                value = self.index(linear(0, {a: sign * c for a, c in cols.items()}))
                rows = {a: -sign * c for a, c in rows.items()}
                sides = [None if b is None else self.index(linear(sign * (b - constant), rows)) for b in (low, high)]
                return value, *(sides if sign > 0 else sides[::-1])
        value = self._remainder(core) if core.op == "mod" and high == 0 else self.index(core)
        low_code, high_code = (None if b is None else self.number(b) for b in (low, high))
        return (value, high_code, high_code) if core.op == "mod" and high == 0 else (value, low_code, high_code)

    def _remainder(self, x: Index) -> Code:
        """`x % m` where only zero or not matters: Triton's truncation does not change that."""
        if _power_of_two(x.args[1]) is not None:
            return self.index(x)
        return self.binary(self.index(x.args[0]), "%", self.index(x.args[1]), MUL)

    def _and(self, p: Pattern) -> Code | None:
        return self.join("&", map(self.pattern, p.args))

    def _or(self, p: Pattern) -> Code | None:
        codes = [self.pattern(c) for c in p.args]
        return None if None in codes else self.join("|", codes)

    def _negate(self, code: Code) -> Code:
        return self.make("~{}", code, binds=UNARY, inner=(UNARY,))

    def _not(self, p: Pattern) -> Code:
        code = self.pattern(p.args[0])
        return self.false if code is None else self._negate(code)

    def _xor(self, p: Pattern) -> Code:
        a, b = (self.pattern(c) or self._negate(self.false) for c in p.args)
        return self.binary(a, "^", b, XOR)

    def _per_head(self, p: Pattern) -> Code:
        h = self.make(*self.variables["h"][:1], level=self.variables["h"][1])
        parts = ((self.binary(h, "==", self.number(j), COMPARE), part) for j, part in enumerate(p.args) if part.op != "false")
        return self.join("|", [self.join("&", [head, self.pattern(part)]) for head, part in parts]) or self.false

def _power_of_two(divisor: Node) -> int | None:
    if divisor.op == "const" and divisor.args[0] > 0 and divisor.args[0].bit_count() == 1:
        return divisor.args[0].bit_length() - 1
    return None


def _label(subscripts) -> str:
    return "_".join(s.args[0] if s.op == "var" else "at" for s in subscripts)


INDEX = {
    "const": Printer._const, "length": Printer._const, "var": Printer._var, "arg": Printer._arg, "sum": Printer._sum, "mul": Printer._mul,
    "div": Printer._div, "mod": Printer._mod, "min": Printer._extremum, "max": Printer._extremum, "abs": Printer._abs, "where": Printer._where,
    "read": Printer._read, "member": Printer._member, "inside": Printer._inside_value,
}  # fmt: skip
PATTERN = {
    "false": Printer._false, "in": Printer._in, "and": Printer._and, "or": Printer._or, "not": Printer._not, "xor": Printer._xor,
    "per_head": Printer._per_head,
}  # fmt: skip
