"""What is wrong with a text before its grammar is asked: size, nesting, brackets, and habits from Python and other languages.

One linear pass over the characters.  It bounds the work of everything after it, and it knows the frequent mistakes by name,
so that the parser proper only meets text that looks like an expression.
"""

from __future__ import annotations

import re
import unicodedata

from patternc.errors import LimitError, OperandError, PatternSyntaxError
from patternc.expr.node import MAX_DEPTH, MAX_TEXT

MAX_CHARACTERS = MAX_TEXT + 5_000  # canonical text is at most MAX_TEXT long; the rest is room for spaces and comments
MAX_NESTING = MAX_DEPTH + 20
MAX_DIGITS = 10

MISTAKES = (
    # (regular expression, message, fix, texts that must give this message)
    (
        r"(?:and|or|not)\b",
        "`and`, `or` and `not` are not operators here",
        "use `&`, `|` and `~`, with parentheses around comparisons",
        ("causal and full", "causal or full", "not causal", "(k <= q) and window(5)"),
    ),
    (
        r"(?:if|else|for|in|is|lambda)\b",
        "Python statements are not part of the language",
        "use comparisons, `where(condition, a, b)` and the named patterns",
        ("causal if full", "lambda i: i", "q in [1, 2]", "[x for x in q]"),
    ),
    (r"&&", "`&&` is not an operator", "write `&`", ("causal && full", "&& causal")),
    (r"\|\|", "`||` is not an operator", "write `|`", ("causal || full",)),
    (r"=>|=<", "this is not a comparison", "write `>=` or `<=`", ("k => q", "k =< q")),
    (r"<>|===|!==|:=|->", "this is not a comparison", "write `==` or `!=`", ("k <> q", "k === q", "k !== q", "k := q")),
    (r"\*\*", "there is no power operator", "multiply: `q * q`", ("q ** 2 < k",)),
    (r"<<|>>", "there are no shift operators", "multiply or divide: `q * 4`, `q // 4`", ("q << 2 == k", "q >> 2 == k")),
    (r"!(?!=)", "`!` is not an operator", "write `~` for the complement, `!=` for a comparison", ("!causal", "full & ! causal")),
    (r"/(?!/)", "`/` does not give an integer", "use `//`, the floor division", ("q / 2 == k", "window(1024 / 2)")),
    (
        r"[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+|[0-9]+[eE][-+]?[0-9]+",
        "positions are integers, and this is not one",
        "write an integer; use `//` to divide",
        ("window(1.5)", "q < .5", "window(1e3)", "q * 2. < k"),
    ),
    (
        r"0[xXoObB][0-9A-Fa-f_]+|[0-9]+_[0-9_]+|0[0-9]+",
        "numbers are plain decimals",
        "write it without prefix, underscores and leading zeros",
        ("window(0x10)", "window(1_000)", "window(007)"),
    ),
    (r"[0-9]+[A-Za-z_][A-Za-z_0-9]*", "a number runs into a name", "put an operator between them, as in `2*q`", ("2q < k", "window(5k)")),
    (r"pc\s*\.\s*(?=[A-Za-z_])", "names have no prefix in text", "leave `pc.` away: `window(5)`", ("pc.causal", "pc . window(5)")),
    (r"[\"'][^\"'\n]*\\", "strings have no escapes", "write the name as it is", ('arg("a\\n") < q',)),
    (r"[\"']", "this string has no end", 'close it on the same line: `arg("doc")`', ('arg("doc', "table('x\") < q")),
    (
        r"[;{}@:$?`\\]",
        "this character has no meaning here",
        "remove it: patterns are joined by `&`, `|`, `-` and `^`, positions are listed in `[...]`",
        ("causal; full", "{causal}", "causal @ full", "arg('d')[1:2] < q", "causal ?"),
    ),
)

_TOKEN = re.compile(
    r"(?P<skip>[ \t\r\n]+|#[^\n]*)|(?P<string>\"[^\"\\\n]*\"|'[^'\\\n]*')|"
    + "|".join(f"(?P<m{n}>{mistake[0]})" for n, mistake in enumerate(MISTAKES))
    + r"|(?P<integer>[0-9]+)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<open>[(\[])|(?P<close>[)\]])|(?P<operator>//|<=|>=|==|!=|[-+*%&|^~<>=,.])"
)

LOOKALIKES = {
    "≤": "<=", "≥": ">=", "≠": "!=", "∧": "&", "∨": "|", "¬": "~", "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "÷": "//", "⊕": "^",
    "∩": "&", "∪": "|", "∖": "-", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u3000": " ",
}  # fmt: skip

_CLOSING = {"(": ")", "[": "]"}


def check_text(text: str) -> None:
    """Raise the error that a wrong text deserves, or return.

    Raises:
        OperandError: for what is not a string.
        LimitError: text too long, nested too deeply, a number too large.
        PatternSyntaxError: brackets, characters and operators that do not belong there.
    """
    if not isinstance(text, str):
        raise OperandError(f"parse takes text, got {type(text).__name__}", fix='write `parse("causal & window(512)")`')
    if len(text) > MAX_CHARACTERS:
        raise LimitError(
            f"text of {len(text)} characters (limit {MAX_CHARACTERS})",
            typed=text[:60],
            fix="put the data of a large pattern into a table or a runtime arg",
        )
    opened: list[int] = []
    previous, position = None, 0  # previous: the last token's kind and span
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise _strange(text, position)
        kind, span, word = found.lastgroup, found.span(), found.group()
        position = span[1]
        if kind == "skip":
            _printable(text, span, also="\t\r\n")
            continue
        if kind[0] == "m" and kind[1:].isdigit():
            _, message, fix, _ = MISTAKES[int(kind[1:])]
            raise PatternSyntaxError(message, typed=text, span=span, fix=fix)
        if kind in ("integer", "name", "string") and previous is not None and previous[0] in ("integer", "name", "string", "close"):
            before, after = text[previous[1][0] : previous[1][1]], word
            raise PatternSyntaxError(
                f"an operator is missing between `{_short(before)}` and `{_short(after)}`",
                typed=text,
                span=span,
                fix="join patterns with `&`, `|`, `-` or `^`",
            )
        if kind == "integer" and len(word) > MAX_DIGITS:
            raise LimitError(f"integer of {len(word)} digits is too large", typed=text, span=span, fix="keep integers within 2147483647 in magnitude")
        if kind == "string":
            _printable(text, span)
        if kind == "open":
            opened.append(span[0])
            if len(opened) > MAX_NESTING:
                raise LimitError(
                    f"text nested more than {MAX_NESTING} deep",
                    typed=text,
                    span=span,
                    fix="put the data of a large pattern into a table or a runtime arg",
                )
        if kind == "close":
            if not opened or _CLOSING[text[opened[-1]]] != word:
                fix = (
                    f"close `{text[opened[-1]]}` first, with `{_CLOSING[text[opened[-1]]]}`"
                    if opened
                    else f"remove it, or open it with `{'(' if word == ')' else '['}`"
                )
                raise PatternSyntaxError(f"`{word}` closes nothing", typed=text, span=span, fix=fix)
            opened.pop()
        previous = (kind, span)
    if opened:
        raise PatternSyntaxError(
            f"`{text[opened[-1]]}` is never closed", typed=text, span=(opened[-1], opened[-1] + 1), fix=f"add `{_CLOSING[text[opened[-1]]]}`"
        )
    if previous is None:
        raise PatternSyntaxError("the text is empty", fix="write a pattern, such as `causal & window(512)`")


def _printable(text: str, span: tuple[int, int], also: str = "") -> None:
    for position in range(*span):
        if not text[position].isprintable() and text[position] not in also:
            raise _strange(text, position)


def _strange(text: str, position: int) -> PatternSyntaxError:
    """The error for a character that no token starts with."""
    c = text[position]
    code = f"U+{ord(c):04X}"
    if c in LOOKALIKES:
        return PatternSyntaxError(
            f"`{c}` ({code}) is not part of the language", typed=text, span=(position, position + 1), fix=f"write `{LOOKALIKES[c]}`"
        )
    if not c.isprintable():
        return PatternSyntaxError(f"a control character, {code}", typed=text, span=(position, position + 1), fix="remove it")
    plain = unicodedata.normalize("NFKC", c)
    name = unicodedata.name(c, "unnamed").lower()
    fix = f"write `{plain}`" if plain.isascii() else 'names are ASCII letters; another name of a runtime value is written `arg("...")`'
    return PatternSyntaxError(f"`{c}` ({code}, {name}) is not part of the language", typed=text, span=(position, position + 1), fix=fix)


def _short(word: str) -> str:
    return word if len(word) <= 24 else word[:21] + "..."
