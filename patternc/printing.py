"""Expression to canonical text.  `parse(to_text(x)) is x`, and the smallest named form is printed.

The printer proposes texts and keeps what is exact: a recogniser (`recognise`) guesses the parameters of a primitive from a
node, calls the primitive, and accepts the name only if the result is the same object.  Interning makes that check free of
doubt, so a wrong guess costs nothing but a longer text.
"""

from __future__ import annotations

from patternc.errors import PatterncError
from patternc.expr import arithmetic as ar
from patternc.expr.attention import Attention, Term, TermOver, linear_tail
from patternc.expr.index import Index
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import FULL, Pattern, compare
from patternc.readings import ATOM, BOTH, COMPARISON, PRODUCT, SUM, UNARY, UNION, XOR, liftings, readings
from patternc.recognise import Call, named, named_group
from patternc.recognise_structured import structured
from patternc.vocabulary import plain


def to_text(node: Node) -> str:
    """The canonical text of an index expression, pattern, term or attention."""
    return Printer(node).text(node)


def named_data(node: Node) -> dict:
    """What `parse(to_text(node), **named_data(node))` needs: the named tables, and the feature if it is a callable."""
    out = {}
    for n in postorder(node):
        if n.op == "table" and n.args[0].name:
            out[n.args[0].name] = n.args[0].data
        elif isinstance(n, Term) and not isinstance(n, TermOver) and callable(n.feature):
            out[feature_name(n.feature)] = n.feature
    return out


def feature_name(feature) -> str:
    name = getattr(feature, "__name__", type(feature).__name__)
    return name if plain(name) else "feature"


class Printer:
    """Texts by node.  `bare` says that the text stands in a primitive's parameter, where args need no `arg("...")`."""

    def __init__(self, root: Node):
        self.texts: dict[tuple[int, bool], tuple[str, int]] = {}
        self.names = set(named_data(root))
        self.keep: list[Node] = []  # nodes that only this printer made must outlive their id in `texts`

    def text(self, node: Node, level: int = COMPARISON, bare: bool = False) -> str:
        """The text of `node`, in parentheses where an operator of precedence `level` would otherwise take a part of it."""
        key = (id(node), bare)
        if key not in self.texts:
            self.keep.append(node)
            self.texts[key] = getattr(self, "_" + node.op, self._other)(node, bare)
        text, own = self.texts[key]
        return text if own >= level else f"({text})"

    def call(self, call: Call, bare: bool = False) -> str:
        """The text of a primitive's call; inside `per_head` and `over=` args are not bare."""
        parts = [self.value(v) for v in call.positional] + [f"{name}={self.value(v)}" for name, v in call.named.items()]
        text = f"{call.name}({', '.join(parts)})" if parts or call.parentheses else call.name
        return text if call.at is None else f"{text}.at({self.text(call.at, bare=True)})"

    def value(self, value) -> str:
        if isinstance(value, Node):
            return self.text(value, bare=True)
        if isinstance(value, range):
            parts = (value.start, value.stop, value.step)
            return f"range({', '.join(map(str, parts[: 3 if value.step != 1 else 2]))})"
        return str(value)

    # index expressions

    def _const(self, x, bare):
        return str(x.args[0]), ATOM if x.args[0] >= 0 else UNARY

    def _length(self, x, bare):
        return f"fixed_length({x.args[0]})", ATOM

    def _var(self, x, bare):
        return x.args[0], ATOM

    def _arg(self, x, bare):
        name = x.args[0]
        return (name if bare and plain(name) and name not in self.names else f'arg("{name}")'), ATOM

    def _table(self, x, bare):
        data = x.args[0]
        return (f'table("{data.name}")' if data.name else f"table({data.data.tolist()})"), ATOM

    def _sum(self, x, bare):
        constant, parts = ar.terms(x)
        return self.linear([(c, a) for a, c in parts.items()], constant, bare)

    def linear(self, parts, constant: int, bare: bool) -> tuple[str, int]:
        """`2*q - k + 5`: positive parts first."""
        parts = sorted(parts, key=lambda part: part[0] < 0)
        if constant > 0 and parts and parts[0][0] < 0:
            text, constant = str(constant), 0
        else:
            c, atom = parts.pop(0)
            text = self.part(c, atom, bare, first=True)
            if not parts and not constant:
                return text, PRODUCT if abs(c) != 1 else UNARY if c < 0 else self.texts[(id(atom), bare)][1]
        for c, atom in parts:
            text += f" {'-' if c < 0 else '+'} {self.part(abs(c), atom, bare)}"
        if constant:
            text += f" {'-' if constant < 0 else '+'} {abs(constant)}"
        return text, SUM

    def part(self, c: int, atom: Index, bare: bool, first: bool = False) -> str:
        if c == 1:
            return self.text(atom, SUM if first else PRODUCT, bare)
        return f"-{self.text(atom, UNARY, bare)}" if c == -1 else f"{c}*{self.text(atom, UNARY, bare)}"

    def binary(self, symbol, x, bare):
        return f"{self.text(x.args[0], PRODUCT, bare)} {symbol} {self.text(x.args[1], UNARY, bare)}", PRODUCT

    def _mul(self, x, bare):
        return self.binary("*", x, bare)

    def _div(self, x, bare):
        return self.binary("//", x, bare)

    def _mod(self, x, bare):
        return self.binary("%", x, bare)

    def function(self, name, children, bare):
        return f"{name}({', '.join(self.text(c, bare=bare) for c in children)})", ATOM

    def _abs(self, x, bare):
        return self.function(x.op, x.args, bare)

    _where = _abs

    def _min(self, x, bare):
        return self.function(x.op, sorted(x.args, key=lambda a: a.op == "const"), bare)

    _max = _min

    def _read(self, x, bare):
        return f"{self.text(x.args[0], ATOM, bare)}[{', '.join(self.text(s, bare=bare) for s in x.args[1:])}]", ATOM

    def _other(self, x, bare):
        """Nodes that passes make and no text can write."""
        return f"<{x.op} {', '.join(self.text(a, bare=bare) if isinstance(a, Node) else str(a) for a in x.args)}>", ATOM

    # patterns

    def _true(self, p, bare):
        return "full", ATOM

    def _false(self, p, bare):
        return "empty", ATOM

    def _in(self, p, bare):
        call = named(p) or (structured("or", (p,)) or [None])[0]
        return (self.call(call), ATOM) if call else (self.comparison(p, bare), COMPARISON)

    def comparison(self, p: Pattern, bare: bool) -> str:
        """The first reading of `low <= core <= high` that is the same node."""
        core, low, high = p.args
        for relation, left, right in readings(core, low, high):
            if same_node(p, lambda left=left, right=right, relation=relation: compare(left, relation, right)):
                return f"{self.text(left, UNION, bare)} {relation} {self.text(right, UNION, bare)}"
        return f"within({self.text(core, bare=True)}, {low}, {high})"

    def _and(self, p, bare):
        return self.group(p, "&", BOTH, bare)

    def _or(self, p, bare):
        return self.group(p, "|", UNION, bare)

    def group(self, p, symbol, level, bare):
        return self.join(self.parts(p, bare), symbol, level)

    def join(self, parts, symbol, level):
        if len(parts) == 1:
            return parts[0]
        return f" {symbol} ".join(text if own > level else f"({text})" for text, own in parts), level

    def parts(self, p: Pattern, bare: bool) -> list[tuple[str, int]]:
        """The operands of `&` or `|` with their precedence; neighbours that one name covers print as that name."""
        out, n = [], 0
        while n < len(p.args):
            found = structured(p.op, p.args[n:])
            if found is not None:
                out.append((self.call(found[0]), ATOM))
                n += found[1]
                continue
            pair = p.args[n : n + 2]
            call = named_group(p.op, pair) if len(pair) == 2 else None
            if isinstance(call, Call):
                out.append((self.call(call), ATOM))
            elif call is not None:
                left, relation, right = call
                out.append((f"{self.text(left, UNION, bare)} {relation} {self.text(right, UNION, bare)}", COMPARISON))
            else:
                self.text(pair[0], bare=bare)
                out.append(self.texts[(id(pair[0]), bare)])
            n += 1 if call is None else 2
        return out

    def _not(self, p, bare):
        return f"~{self.text(p.args[0], UNARY, bare)}", UNARY

    def _xor(self, p, bare):
        return f"{self.text(p.args[0], XOR, bare)} ^ {self.text(p.args[1], BOTH, bare)}", XOR

    def _per_head(self, p, bare):
        return f"per_head({', '.join(self.text(c) for c in p.args)})", ATOM

    # attentions

    def _linear_tail(self, t, bare=False, over=None):
        options = []
        if t.feature != linear_tail.feature:
            options.append(f"feature={feature_name(t.feature)}" if callable(t.feature) else f'feature="{t.feature}"')
        if t.norm != linear_tail.norm:
            options.append(f'norm="{t.norm}"')
        for name in ("num_features", "seed", "initial_state"):
            if getattr(t, name) != getattr(linear_tail, name):
                options.append(f"{name}={getattr(t, name)}")
        if over is not None:
            options.append(f"over={over}")
        return f"linear_tail({', '.join(options)})" if options else "linear_tail", ATOM

    def _over(self, t, bare):
        return self._linear_tail(t.args[0], over=self.text(t.domain) + ("" if t.meant else ", meant=False"))

    def _attention(self, a: Attention, bare):
        return self.attention(a.exact, a.domain, a.term, a.domain_is_explicit)

    def attention(self, exact: Pattern, domain: Pattern, term: Term, explicit: bool) -> tuple[str, int]:
        if domain is FULL:
            tail = self._linear_tail(term, over="full" if explicit else None)[0]
            if exact.op == "or":  # `a | b + t` is `(a | b) + t`
                *first, (last, own) = self.parts(exact, False)
                last = last if own >= SUM else f"({last})"
                return self.join([*first, (f"{last} + {tail}", SUM)], "|", UNION)
            return f"{self.text(exact, SUM)} + {tail}", SUM
        if not explicit:
            for join, symbol, level, left, rest, inside in liftings(exact, domain):
                if join(left, rest) is exact and join(left, inside) is domain:
                    inner = self.attention(rest, inside, term, False)[0]
                    return f"{self.text(left, level)} {symbol} ({inner})", level
        over = self.text(domain) + ("" if explicit else ", meant=False")
        return f"{self.text(exact, SUM)} + {self._linear_tail(term, over=over)[0]}", SUM


def same_node(node: Node, build) -> bool:
    try:
        return build() is node
    except PatterncError:
        return False
