"""Attentions: a pattern plus a term on the pairs that the pattern leaves out.

An attention is `(E, D, t)`: softmax over the exact pattern E, and the term t over `D - E`, where the domain D is everything
unless `over=` or an intersection narrows it.  The algebra lifts from patterns:

    X & (E, D, t) = (E & X, D & X, t)          X | (E, D, t) = (E | X, D | X, t)
"""

from __future__ import annotations

import inspect

from patternc.errors import AttentionError, OperandError, ParameterError, TruthValueError, UnknownNameError, suggest
from patternc.expr.calls import fitting
from patternc.expr.index import MAX_INT
from patternc.expr.node import Node
from patternc.expr.pattern import FULL, Pattern, all_of, any_of, as_pattern, negate
from patternc.expr.refuse import refuse

FEATURES = ("softmax", "elu+1", "relu", "identity", "favor+")
MOST_FEATURES = 1 << 16  # of `favor+`; its own default is a few hundred
NORMS = ("rms", "none", "denominator")


def _takes_one(feature) -> None:
    """Raise ParameterError where a callable cannot be called with a tensor."""
    try:
        inspect.signature(feature).bind(None)
    except TypeError:
        what = f"a feature takes one tensor [.., d], and {getattr(feature, '__name__', 'this callable')} does not"
        raise ParameterError(what, fix="write `lambda x: torch.relu(x)`") from None
    except ValueError:  # a builtin without a signature
        return


@refuse("a term", "add it to a pattern: `window(512) + linear_tail`")
class Term(Node):
    """What an attention adds outside its exact part.  `linear_tail` is the one kind: linear attention.

    Calling a term gives a variant of it: `linear_tail(feature="elu+1", norm="denominator", over=causal)`.
    """

    __slots__ = ()

    @property
    def feature(self):
        return self.args[0]

    @property
    def norm(self) -> str:
        return self.args[1]

    @property
    def num_features(self) -> int | None:
        """Number of random features of `favor+`; None takes `head_dim * ln(head_dim)` of the Performer paper."""
        return self.args[2]

    @property
    def seed(self) -> int:
        return self.args[3]

    @property
    def initial_state(self) -> bool:
        return self.args[4]

    @fitting("linear_tail")
    def __call__(self, feature=None, norm=None, *, num_features=None, seed=None, initial_state=None, over=None, meant=True):
        """The same term with other parameters.

        Args:
            feature: "softmax" ([softmax(x); softmax(-x)], RATTENTION), "elu+1", "relu", "identity", "favor+" (Performer),
                or a callable from [..., d] to [..., F].
            norm: "rms" (a RMSNorm of each branch, RATTENTION), "none", or "denominator" (divide by the sum of weights).
            num_features, seed: of `favor+`.
            initial_state: a learned initial state per query head.
            over: the domain D, a pattern; consumed by `+`.
            meant: False keeps the check that a domain named by `over` does not reveal the future (how derived domains print).
        Raises:
            UnknownNameError, ParameterError: for other features, norms and options.
        """
        feature = self.feature if feature is None else feature
        norm = self.norm if norm is None else norm
        if isinstance(feature, str) and feature not in FEATURES:
            close = suggest(feature, FEATURES)
            raise UnknownNameError(
                f"unknown feature `{feature}`", fix=f'did you mean "{close}"?' if close else f"one of {', '.join(FEATURES)}, or a callable"
            )
        if not isinstance(feature, str) and (isinstance(feature, Node) or not callable(feature)):
            raise ParameterError(f"a feature is a name or a callable, got {feature!r}", fix=f"one of {', '.join(FEATURES)}")
        if callable(feature):
            _takes_one(feature)
        if norm not in NORMS:
            close = suggest(str(norm), NORMS)
            raise UnknownNameError(f"unknown norm `{norm}`", fix=f'did you mean "{close}"?' if close else f"one of {', '.join(NORMS)}")
        for name, value, least, most in (("num_features", num_features, 1, MOST_FEATURES), ("seed", seed, 0, MAX_INT)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
                raise ParameterError(f"`{name}` is an integer from {least} to {most}, got {value!r}", fix=f"write `{name}=64`")
        for name, value in (("initial_state", initial_state), ("meant", meant)):
            if not isinstance(value, bool) and (name == "meant" or value is not None):
                raise ParameterError(f"`{name}` is True or False, got {value!r}", fix=f"write `{name}=True`")
        options = (
            self.num_features if num_features is None else num_features,
            self.seed if seed is None else seed,
            self.initial_state if initial_state is None else initial_state,
        )
        term = Term("linear_tail", feature, norm, *options)
        return term if over is None else TermOver("over", term, as_pattern(over, "over="), meant)

    def __radd__(self, other):
        return plus(other, self)

    def __bool__(self):
        raise TruthValueError("a term has no truth value", fix="add it to a pattern: `window(512) + linear_tail`")

    def _no(self, *_):
        raise AttentionError(f"`{self}` alone is not a pattern", fix="add it to one: `empty + linear_tail`, `window(512) + linear_tail`")

    __and__ = __or__ = __xor__ = __sub__ = __rand__ = __ror__ = __rxor__ = __rsub__ = __invert__ = __add__ = _no
    del _no

    def __str__(self):
        from patternc.printing import to_text

        return to_text(self)

    __repr__ = __str__


class TermOver(Term):
    """A term together with its domain, on its way into `+`."""

    __slots__ = ()

    @property
    def domain(self) -> Pattern:
        return self.args[1]

    @property
    def meant(self) -> bool:
        return self.args[2]

    def __call__(self, *positional, **options):
        return self.args[0](*positional, **{"over": self.domain, "meant": self.meant, **options})


linear_tail = Term("linear_tail", "softmax", "rms", None, 0, False)


@refuse("an attention", "its patterns are `A.exact` and `A.domain`")
class Attention(Node):
    """`(exact, domain, term)`; see the module's docstring for its algebra."""

    __slots__ = ()

    @property
    def exact(self) -> Pattern:
        return self.args[0]

    @property
    def domain(self) -> Pattern:
        return self.args[1]

    @property
    def term(self) -> Term:
        return self.args[2]

    @property
    def domain_is_explicit(self) -> bool:
        """Whether the user wrote `over=`: then a domain that reaches the future is taken as meant."""
        return self.args[3]

    def __and__(self, other):
        return combine(self, other, "&")

    def __or__(self, other):
        return combine(self, other, "|")

    def __sub__(self, other):
        if isinstance(other, Attention):
            raise AttentionError("`-` cannot take an attention away", fix="subtract its exact part or its domain: `A - B.exact`, `A - B.domain`")
        return combine(self, negate(as_pattern(other, "-")), "&")

    def __add__(self, other):
        return plus(self, other)

    def __xor__(self, other):
        raise AttentionError("`^` has no meaning for an attention", typed=str(self), fix="combine its parts: `A.exact ^ B`, `A.domain ^ B`")

    def __rxor__(self, other):
        return self ^ other

    def __invert__(self):
        raise AttentionError(
            "`~` has no meaning for an attention", typed=str(self), fix="use its parts: `~A.exact`, `~A.domain`, `A.domain - A.exact`"
        )

    def __bool__(self):
        raise TruthValueError("an attention has no truth value", typed=str(self), fix="use `&` and `|` instead of `and` and `or`")

    def at(self, f):
        raise AttentionError(
            "`.at`, `.shift` and `.roll` move patterns",
            typed=str(self),
            fix="move the pattern before the term is added: `window(512).shift(3) + linear_tail`",
        )

    shift = roll = at

    def dense(self, *_, **__):
        raise AttentionError("an attention has no dense mask", fix="its patterns have: `A.exact.dense(n)`, `A.domain.dense(n)`")

    def __str__(self):
        from patternc.printing import to_text

        return to_text(self)

    __repr__ = __str__


def plus(left, term) -> Attention:
    """`pattern + term`."""
    if isinstance(left, Attention):
        raise AttentionError("this pattern already has a term", typed=str(left), fix="one term an attention; change its parameters instead")
    if not isinstance(left, Pattern):
        raise OperandError(f"`+` adds a term to a pattern, got {left!r} on the left", fix="write `empty + linear_tail`")
    if isinstance(term, Pattern):
        raise OperandError(
            "`+` does not join two patterns", typed=f"{left} + {term}", fix="use `|` for the union of patterns; `+` adds a term such as `linear_tail`"
        )
    if isinstance(term, TermOver):
        return Attention("attention", left, term.domain, term.args[0], term.meant)
    if isinstance(term, Term):
        return Attention("attention", left, FULL, term, False)
    raise OperandError(f"`+` adds a term such as `linear_tail` to a pattern, got {term!r}", fix="use `|` for the union of patterns")


def combine(a, b, symbol: str) -> Attention:
    """`a & b` or `a | b` where at least one side is an attention."""
    if symbol in "-^":  # a pattern on the left, an attention on the right
        raise AttentionError(f"`{symbol}` has no meaning with an attention on the right", typed=str(b), fix="name the part: `B.exact` or `B.domain`")
    join = all_of if symbol == "&" else any_of
    parts = []
    for x in (a, b):
        parts.append((x.exact, x.domain, x.term, x.domain_is_explicit) if isinstance(x, Attention) else (as_pattern(x, symbol),) * 2 + (None, False))
    (e1, d1, t1, w1), (e2, d2, t2, w2) = parts
    if t1 is not None and t2 is not None and t1 is not t2:
        raise AttentionError(
            "two different terms cannot be combined", typed=f"{t1}  and  {t2}", fix="combine the patterns first: `A.exact`, `A.domain`"
        )
    return Attention("attention", join(e1, e2), join(d1, d2), t1 if t1 is not None else t2, w1 or w2)
