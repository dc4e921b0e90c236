"""The text form at its limits: hostile texts fail quickly, long ones are linear, the deepest and widest still print and parse."""

import sys

import pytest

import patternc as pc
from patternc.errors import LimitError, OperandError, PatterncError
from patternc.expr.node import MAX_TEXT
from patternc.parsing import parse
from patternc.scanning import MAX_CHARACTERS

q, k, i, arg = pc.q, pc.k, pc.i, pc.arg


HOSTILE = {
    "100,000 characters": "causal & " * 11_111 + "full", "one name": "a" * 100_000, "nested calls": "abs(" * 10_000 + "q" + ")" * 10_000,
    "nested parentheses": "(" * 10_000 + "causal" + ")" * 10_000, "open only": "(" * 30_000, "close only": ")" * 30_000, "lists": "rows(" + "[" * 5_000 + "]" * 5_000 + ")",
    "1,000 digits": "q < " + "9" * 1_000, "digits in a window": f"window({'1' * 1_000})", "power by product": "9999999999 * " * 2_000 + "9 < q",
    "NUL": "causal\x00", "escape": "\x1b[31mcausal", "newlines": "\n" * 40_000, "surrogate": "causal \ud800", "right to left": "causal \u202e full",
    "unclosed string": 'arg("' + "x" * 40_000, "long arg name": f'arg("{"x" * 39_990}") < q', "exponential": "(q * k < 3)" + ".at(i * i)" * 3_000, "rolls": "window(3)" + ".roll(1)" * 4_000,
    "deep where": "where(causal, " * 250 + "q" + ", k)" * 250 + "< 3", "product": "q*" * 19_000 + "q < 3", "xors": "^".join(f"(q<{n})" for n in range(4_000)),
    "big range": "documents(range(2147483647))", "code": "__import__('os').system('true')", "dunder": "causal.__class__", "attribute": "q.args", "format": "{q!r}", "lambda": "(lambda: 1)()",
    "moves of a large pattern": "(" + "|".join(f"(q<{n})" for n in range(1_500)) + ")" + ".at(i+1)" * 2_000,
}  # fmt: skip


def calls(run) -> int:
    """How many functions a run calls: time without a clock."""
    found = 0

    def count(frame, event, arg):
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def allowed(text: str) -> int:
    parse("causal")  # the grammar is loaded once
    return 20_000 + 250 * len(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_fail_quickly(name):
    def run():
        with pytest.raises(PatterncError) as error:
            parse(HOSTILE[name])
        assert len(str(error.value)) < 1_500

    assert calls(run) < allowed(HOSTILE[name])


LONG = {
    "and": "causal&" * 2_000 + "full", "not": "~" * 13_000 + "causal", "minus": "-" * 13_000 + "q", "sum": "q+" * 6_000 + "q", "or": "|".join(f"(q<{n})" for n in range(1_000)),
    "sums of atoms": "+".join(f"q%{n}" for n in range(2, 1_000)), "list": "rows([" + "7," * 6_000 + "])", "min": "min(" + "q%3," * 3_000 + "q)", "comment": "causal #" + "(" * 40_000,
    "moves": "causal" + ".at(i+1)" * 1_500, "floors": "q" + "//1" * 4_000,
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_long_texts_are_linear(name):
    assert calls(lambda: parse(LONG[name])) < allowed(LONG[name])
    x = parse(LONG[name])
    assert parse(str(x)) is x


def test_limits():
    with pytest.raises(LimitError, match=f"text of {MAX_CHARACTERS + 1} characters"):
        parse(" " * (MAX_CHARACTERS + 1))
    with pytest.raises(LimitError, match="integer of 1000 digits is too large"):
        parse("q < " + "9" * 1000)
    with pytest.raises(OperandError, match="parse takes text, got int"):
        parse(3)


DEEPER = {
    "where": (q, lambda x: pc.where(q < k, k, 2 * (x // 3) + 5)), "mod": (q, lambda x: (2 * x + k) % 7 + k), "not xor": (pc.causal, lambda p: ~(p ^ pc.window(3))),
    "product": (q, lambda x: (x + k) * q), "moved": (pc.rows(arg("t")), lambda p: pc.global_(3) & ~(p | pc.dilate(2))), "min": (q, lambda x: abs(2 * pc.min(x, k) - 1)),
    "read": (q, lambda x: arg("d")[x]), "head": (pc.causal, lambda p: pc.per_head(p, pc.full)), "condition": (pc.causal, lambda p: pc.where(p, q, k) < 3),
    "member": (pc.rows(arg("t")), lambda p: p.at(i * 3 // 2)), "neg": (q, lambda x: -(-x // 3) - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEPER)
def test_the_deepest_expressions_print_and_parse(name):
    x, deeper = DEEPER[name]
    try:
        while x.depth < 195:
            x = deeper(x)
    except LimitError:
        pass
    assert x.depth > 45 and parse(str(x)) is x
    p = x < 5 if isinstance(x, pc.Index) else x
    assert parse(str(p)) is p


def test_the_widest_expressions_print_and_parse():
    wide = pc.per_head(*(pc.causal & (pc.window(3 + n) | pc.global_(range(n, 9 + n))) for n in range(200)))
    assert parse(str(wide)) is wide
    with pytest.raises(LimitError, match=f"limit {MAX_TEXT}"):
        pc.per_head(*([wide] * 20))
