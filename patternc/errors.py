"""Every error that patternc raises on purpose, one class per kind of mistake.

A message says what was typed, where, and how to mend it.  `PatterncError` renders the three parts the same way for all
classes; the wording is pinned in `tests/test_errors.py`, and `docs/errors.md` lists one example of each.
"""

from __future__ import annotations


class PatterncError(Exception):
    """Base of all patternc errors.

    Args:
        message: what is wrong, one sentence without a trailing period.
        typed: what the user wrote, shown on a line of its own.
        span: `(start, stop)` character offsets into `typed`; carets are drawn under them.
        fix: what to write instead.
    """

    def __init__(self, message: str, *, typed: str | None = None, span: tuple[int, int] | None = None, fix: str | None = None):
        self.message, self.typed, self.span, self.fix = message, typed, span, fix
        super().__init__(self.render())

    def render(self) -> str:
        lines = [self.message]
        if self.typed is not None:
            lines += excerpt(self.typed, self.span)
        if self.fix is not None:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self):
        return _rebuild, (type(self), self.message, self.typed, self.span, self.fix)


def _rebuild(cls, message, typed, span, fix):
    return cls(message, typed=typed, span=span, fix=fix)


def excerpt(text: str, span: tuple[int, int] | None, width: int = 72) -> list[str]:
    """The line of `text` that holds `span`, cut to `width` characters, with carets under the span."""
    if span is None:
        shown = text if len(text) <= width else text[: width - 3] + "..."
        return ["    " + _visible(shown)]
    start, stop = span
    line_start = text.rfind("\n", 0, start) + 1
    line_stop = text.find("\n", start)
    line = text[line_start : line_stop if line_stop >= 0 else len(text)]
    column = start - line_start
    shift = max(0, column - width // 2)
    head, tail = ("..." if shift else ""), ("..." if len(line) > shift + width else "")
    carets = max(1, min(stop - start, len(line) - column, shift + width - column))
    return ["    " + head + _visible(line[shift : shift + width]) + tail, "    " + " " * (len(head) + column - shift) + "^" * carets]


def _visible(text: str) -> str:
    """Control characters as a middle dot, so that carets stay aligned and terminals stay sane."""
    return "".join(c if c.isprintable() else "·" for c in text)


class PatternSyntaxError(PatterncError, SyntaxError):
    """The text of a pattern does not follow the grammar."""

    __str__ = PatterncError.render


class UnknownNameError(PatterncError, NameError):
    """A name in a text, or the name of a backend, stage, feature or pattern, is not known."""

    __str__ = PatterncError.render


class OperandError(PatterncError, TypeError):
    """An operator or constructor was given something that it does not take."""


class TruthValueError(PatterncError, TypeError):
    """A pattern or comparison was used as a bool (`and`, `or`, `not`, `if`, a chained comparison)."""


class ParameterError(PatterncError, ValueError):
    """A parameter of a primitive is out of range."""


class LimitError(PatterncError, ValueError):
    """An expression, an integer, or what a call would make is too large."""


class AttentionError(PatterncError, TypeError):
    """An operator that has no meaning for attentions (pattern + term)."""


class LeakError(PatterncError, ValueError):
    """The exact part is causal but the term would read the future."""


class ArgError(PatterncError, TypeError):
    """A runtime arg is missing, unknown, or does not fit the pattern."""


class ShapeError(PatterncError, ValueError):
    """A tensor has the wrong shape."""


class DtypeError(PatterncError, TypeError):
    """A tensor has a dtype that is not supported, or dtypes differ."""


class DeviceError(PatterncError, ValueError):
    """Tensors are on different devices, or on one that the backend cannot use."""


class BackendError(PatterncError, RuntimeError):
    """The chosen backend cannot do what was asked."""


class MissingExtraError(PatterncError, ImportError):
    """An optional dependency is needed."""


class VerificationError(PatterncError, AssertionError):
    """A result differs from the dense reference by more than its tolerance."""


class InternalError(PatterncError, RuntimeError):
    """A stage of the compiler produced something that its specification forbids: a bug in patternc."""


def suggest(name: str, known) -> str | None:
    """The closest known name, or None: for 'did you mean' hints."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
