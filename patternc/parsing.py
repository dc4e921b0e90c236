"""Text to expression.  `parse(str(p)) is p` for every expression; nothing is evaluated but the names of `vocabulary`.

The text is checked (`scanning`), parsed by lark's LALR parser (iterative), and built bottom-up by the same operators and
functions that Python code calls, so that both forms mean the same by construction.  An error raised while building gets the
text and the span of the guilty part.
"""

from __future__ import annotations

import functools
from importlib import resources

from lark import Lark
from lark.exceptions import UnexpectedInput, UnexpectedToken

from patternc.building import Builder
from patternc.errors import PatternSyntaxError
from patternc.expr import index as ix
from patternc.expr.calls import fitting
from patternc.expr.node import Node
from patternc.scanning import check_text

UNEXPECTED = {
    # token: (message, fix, texts that must give this message)
    "end": ("the text ends where an operand is expected", "complete it or remove the last operator", ("causal &", "window(5) | ", "q +", "~")),
    "method": (
        "what follows `.` is a method, which takes `(..)`", "patterns have `.at(f)`, `.shift(s)` and `.roll(s)`", ("causal.x", "causal.at & full"),
    ),
    "=": ("`=` only names a parameter", "write `==` to compare", ("k = q", "(k) = q", "causal = full")),
    ",": ("`,` separates parameters and list entries only", "join patterns with `&` or `|`", ("causal, full", "(q, k)", "window(,)")),
    "other": (
        "`{}` is not expected here",
        "an operand is missing before it, or it is one too many",
        ("& causal", "causal & | full", "window(5)..at(i)", "q < * k", "()"),
    ),
}  # fmt: skip


@fitting("parse")
def parse(text: str, /, **tables):
    """The expression that `text` writes: a pattern, an attention, a term or an index expression.

    Args:
        text: as in `causal & (window(512) | sink(4))`; see docs/language.md.
        tables: arrays for `table("name")`, and callables for `linear_tail(feature=name)`, by name; the text names all of them.
    Raises:
        PatternSyntaxError, UnknownNameError, LimitError: for the text itself.
        OperandError, ParameterError, AttentionError: as the same expression raises in Python, with the place in the text.
    """
    check_text(text)
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, text) from None
    builder = Builder(text, tables)
    result = builder.build(tree)
    builder.check_tables()
    if isinstance(result, int) and not isinstance(result, bool):
        return ix.const(result)
    if not isinstance(result, Node):
        shown = type(result).__name__ if not callable(result) else "function"
        raise PatternSyntaxError(f"the text is not a pattern but a {shown}", typed=text, fix="write a pattern, such as `causal & window(512)`")
    return result


@functools.cache
def _parser() -> Lark:
    grammar = resources.files("patternc.grammars").joinpath("pattern.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", propagate_positions=True, maybe_placeholders=False)


def _syntax_error(error: UnexpectedInput, text: str) -> PatternSyntaxError:
    token = error.token if isinstance(error, UnexpectedToken) else None
    word = "end" if token is None or token.type == "$END" else str(token)
    after_dot = token is not None and error.expected == {"LPAR"}
    message, fix, _ = UNEXPECTED["method"] if after_dot else UNEXPECTED.get(word, UNEXPECTED["other"])
    end = len(text.rstrip())
    span = (end, end + 1) if word == "end" else (token.start_pos, token.end_pos)
    return PatternSyntaxError(message.format(word), typed=text, span=span, fix=fix)
