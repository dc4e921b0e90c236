"""The text form: what prints parses back to the same object, text and Python agree, and no text can do harm."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from strategies import attentions, indices, patterns

import patternc as pc
from patternc.errors import OperandError, ParameterError, PatterncError, PatternSyntaxError, UnknownNameError
from patternc.expr.index import as_index
from patternc.expr.node import Node
from patternc.parsing import UNEXPECTED, parse
from patternc.printing import named_data, to_text
from patternc.scanning import LOOKALIKES, MISTAKES

q, k, h, b, i, arg, tail = pc.q, pc.k, pc.h, pc.b, pc.i, pc.arg, pc.linear_tail
quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=400)


@quiet
@given(st.one_of(patterns(), patterns(4), indices(4), attentions(), attentions(3)))
@example(abs(-abs(arg("w"))))
@example(q < -(2**31) + 1)
@example(pc.within(q - k, -(2**31), -(2**31) + 1))
@example(pc.linear_tail(over=pc.causal))
@example((1 <= q - k) & (q - k <= arg("w")))
def test_parse_inverts_print(x):
    text = to_text(x)
    assert parse(text, **named_data(x)) is x
    assert len(text) <= x.width


CANONICAL = """
causal | full | empty | q | -q | 5 - q | 2*(q // 3) | q * k * h | (q + 1) * (k + 2) | min(q, k, 3)
window(5) | window(left=3, right=0) | window(w) | window(left=l, right=r) | window(left=l, right=0) | window(8*h + 8) | window(left=2147483647, right=0)
dilate(2) | block(64) | block(64, back=1) | block(64, back=1, ahead=2) | block(64, back=x) | same(doc) | same(doc[b, i]) | q // 64 == k // 32
rows(4) | rows([5]) | rows(range(3, 9)) | rows([3, 7, 9]) | rows(range(0, 64, 2)) | cols(range(3, 9)) | cols(tokens) | heads([0, 3]) | heads(2) | heads(hs)
global(64) | global(tokens) | global([1, 5, 9]) | global(range(0, 64, 2)) | sink(4) | sink(0) | prefix(n) | prefix(n[b]) | valid(mask)
documents(doc) | documents([0, 0, 1, 1]) | documents(doc[b, i]) | per_head(causal, full) | per_head(window(w), k < arg("x")[b, q])
rows(t).at(i // 2) | global(t).at(i // 2) | valid(m).at((i - 3) % n_k) | cols([1, 5, 9]).at(n_k - i - 1)
k < q | q <= k | q - k >= 5 | (q - k) % 3 == 1 | q != k | q % 8 != 3 | abs(q - k) >= 5 | abs(q - k) == 3 | abs(q % 8 - 3) <= 1 | h <= min(q, k)
abs(2*arg("s") - 2*q + 3) <= 3 | q < 2147483647 | q < -2147483647 | within(q - k, -2147483640, -2147483639) | where(q < arg("w"), q, k) < arg("w")
arg("doc")[b, q] == arg("ids")[b, k] | table([0, 1])[q % 2] == 0 | table([[0, 1], [1, 0]])[q % 2, k % 2] == 0 | arg("causal") < q | arg("größe") < q
~causal | causal & ~window(5) | causal ^ window(5) ^ dilate(2) | causal ^ (window(5) ^ dilate(2)) | ~(causal & window(5)) | causal & (window(5) OR global(3))
causal OR global(64) OR sink(3) | (q != 5) & (k < q) | causal & window(5) OR dilate(2) & sink(4)
linear_tail | linear_tail(feature="elu+1", norm="none") | linear_tail(feature="favor+", norm="denominator", num_features=64, seed=3) | linear_tail(initial_state=True)
window(512) OR global(t) OR dilate(2) + linear_tail | causal & (window(512) + linear_tail) | (causal & window(4)) + linear_tail(over=full) | linear_tail(over=causal)
window(3) + linear_tail(over=causal) | dilate(2) OR (causal & (window(512) + linear_tail)) | empty + linear_tail | full + linear_tail | (k < q) + linear_tail
documents(doc) & causal & (window(9) + linear_tail(norm="none")) | (causal & window(4) OR dilate(2) & sink(4)) + linear_tail(over=causal OR dilate(2), meant=False)
""".replace("\n", " | ").split(" | ")


@pytest.mark.parametrize("text", [t.replace(" OR ", " | ") for t in CANONICAL if t.strip()])
def test_canonical_texts_print_as_they_are(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize("typed, printed", [
    ("abs(q-k)<5", "window(5)"), ("(q - k) < 5", "q - k < 5"), ("k<=q", "causal"), ("q >= k", "causal"), ("q == k", "window(1)"), ("same(i // 64)", "block(64)"),
    ("~~causal", "causal"), ("causal - window(5)", "causal & ~window(5)"), ("global(64) | rows(64)", "global(64)"), ("window(2*256)", "window(512)"),
    ("causal.shift(3)", "causal"), ("window(5).at(i // 64)", "block(64, back=4, ahead=4)"), ("sink(4).shift(2)", "sink(6)"), ("rows(range(9, 0, -4))", "rows(range(1, 13, 4))"),
    ("q + 0*k == 3 # comment", "rows([3])"), ("not_causal", None), ("window(512) + linear_tail | dilate(2)", "window(512) | dilate(2) + linear_tail"),
    ("prefix(4)", "sink(4)"), ("same(i // 64, i // 64)", "block(64)"), ("max(q, k) == q", "max(q, k) == q"), ("full & causal | empty", "causal"), ("rows([2, 1, 0])", "rows(3)"),
])  # fmt: skip
def test_typed_and_printed(typed, printed):
    if printed is None:
        with pytest.raises(UnknownNameError):
            parse(typed)
    else:
        assert str(parse(typed)) == printed and parse(printed) is parse(typed)


def test_named_forms_inside_chains():
    p = pc.causal | pc.global_(64) | pc.dilate(2) | pc.rows(arg("t")) | pc.cols(arg("t"))
    assert str(p) == "causal | global(64) | dilate(2) | global(t)"
    assert str(pc.causal & pc.documents(arg("doc")) & pc.window(left=arg("w"), right=arg("w"))) == "causal & documents(doc) & window(left=w, right=w)"


def test_tables():
    listed = list(range(0, 600, 7))
    p = pc.rows(listed) | pc.cols(pc.table(listed, name="plan"))
    data = named_data(p)
    assert "plan" in data and 'cols(table("plan"))' in str(p)
    assert parse(str(p), **data) is p
    assert parse('cols(table("plan"))', plan=listed[::-1]) is pc.cols(pc.table(listed, name="plan"))
    assert parse("cols(plan)", plan=np.array(listed)) is pc.cols(pc.table(listed, name="plan"))
    assert parse('table("x")[q % 2] == 0', x=[0, 1]) is parse("table([0, 1])[q % 2] == 0")  # short tables need no name
    with pytest.raises(UnknownNameError, match="table `plam` is not given; did you mean `plan`"):
        parse('cols(table("plam"))', plan=listed)
    with pytest.raises(UnknownNameError, match="the text names no table `plan`\n    cols\\(plam\\)\nfix: did you mean `plam`"):
        parse("cols(plam)", plan=listed)
    with pytest.raises(UnknownNameError, match='fix: read it by `table\\("causal"\\)`, or leave it out'):
        parse("causal", causal=listed)


def feature(x):
    return x


def test_callable_features():
    a = pc.window(4) + tail(feature=feature, norm="none")
    assert str(a) == 'window(4) + linear_tail(feature=feature, norm="none")'
    assert parse(str(a), feature=feature) is a and named_data(a) == {"feature": feature}
    lambda_tail = pc.window(4) + tail(feature=lambda x: x)
    assert parse(str(lambda_tail), **named_data(lambda_tail)) is lambda_tail


# text and Python

NAMESPACE = {name: getattr(pc, name) for name in dir(pc) if not name.startswith("_")} | {"abs": abs, "range": range, "__builtins__": {}}
VARIABLE = st.sampled_from(["q", "k", "h", "b", "n_k", "q - k", 'arg("w")', 'arg("doc")[q]', "table([0, 2])[q % 2]"])
NUMBER = st.integers(0, 9).map(str)
indices_text = st.deferred(lambda: st.one_of(
    VARIABLE, VARIABLE, NUMBER,
    st.tuples(indices_text, st.sampled_from(["+", "-", "*", "//", "%"]), indices_text).map(" ".join),
    st.tuples(indices_text, st.sampled_from(["//", "%"]), NUMBER).map(" ".join),
    indices_text.map(lambda x: f"({x})"), indices_text.map(lambda x: f"-{x}"), indices_text.map(lambda x: f"abs({x})"),
    st.tuples(st.sampled_from(["min", "max"]), indices_text, indices_text).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
    st.tuples(patterns_text, indices_text, indices_text).map(lambda t: f"where({', '.join(t)})"),
    st.sampled_from(["causal", "range(3)"]),
))  # fmt: skip
patterns_text = st.deferred(lambda: st.one_of(
    st.sampled_from(["causal", "full", "empty", "window(3)", "window(left=2, right=0)", "global(range(0, 9, 2))", "block(4, 1)", "rows([1, 5])", "heads(1)", "sink(0)", "window(0)"]),
    st.tuples(VARIABLE, st.sampled_from(["<", "<=", "==", "!=", ">=", ">"]), indices_text).map(" ".join),
    st.tuples(VARIABLE, st.sampled_from(["<", "=="]), indices_text).map(lambda t: f"({' '.join(t)})"),
    st.tuples(patterns_text, st.sampled_from(["&", "|", "^", "-"]), patterns_text).map(" ".join),
    patterns_text.map(lambda x: f"({x})"), patterns_text.map(lambda x: f"~{x}"),
    st.tuples(st.sampled_from(["causal", "window(3)", "(q < 5)"]), st.sampled_from([".at(i // 2)", ".shift(3)", ".roll(1)", ".at(q)"])).map("".join),
    st.tuples(patterns_text, st.sampled_from([" + linear_tail", " + linear_tail(over=causal)"])).map("".join),
    st.just("q"),
))  # fmt: skip


def outcome(build):
    try:
        value = build()
    except Exception as error:  # Python's own TypeErrors count as errors too
        return error
    value = as_index(value) if type(value) is int else value
    return value if isinstance(value, Node) else TypeError("not an expression")


@quiet
@given(st.one_of(patterns_text, indices_text))
@example("k <= q & causal")
@example("causal & k <= q")
@example("2*q//3*4 % 5 - 1 == -3 // 2")
@example("~causal & full - causal ^ full | empty")
@example("-q % 3 == 1")
@example("-abs(q) // 2 < 3")
@example("0 <= q - k < 5")
def test_text_and_python_agree(text):
    parsed, evaluated = outcome(lambda: parse(text)), outcome(lambda: eval(text.replace("global(", "global_("), NAMESPACE))
    if isinstance(evaluated, Exception):
        assert isinstance(parsed, PatterncError), f"{parsed!r}, and Python: {evaluated!r}"
    else:
        assert parsed is evaluated


# errors


@pytest.mark.parametrize("message, text", [(message, bad) for _, message, _, texts in MISTAKES for bad in texts])
def test_mistakes(message, text):
    with pytest.raises(PatternSyntaxError) as error:
        parse(text)
    assert error.value.message == message and error.value.typed == text and error.value.span is not None and error.value.fix


@pytest.mark.parametrize("message, text", [(message, bad) for message, _, texts in UNEXPECTED.values() for bad in texts])
def test_unexpected_tokens(message, text):
    with pytest.raises(PatternSyntaxError) as error:
        parse(text)
    assert message.split("`{}`")[-1] in error.value.message


@pytest.mark.parametrize("character, fix", LOOKALIKES.items())
def test_lookalikes(character, fix):
    with pytest.raises(PatternSyntaxError, match=f"U\\+{ord(character):04X}") as error:
        parse(f"causal {character} full")
    assert error.value.fix == f"write `{fix}`"


ERRORS = [
    ("windw(5)", UnknownNameError, "unknown pattern `windw`; did you mean `window`?\n    windw(5)\n    ^^^^^\nfix: write `window`; a runtime value is written `arg(\"windw\")`"),
    ("causal & foo", UnknownNameError, "unknown pattern `foo`\n    causal & foo\n             ^^^\nfix: a runtime value is written `arg(\"foo\")`"),
    ("q - k < w", UnknownNameError, "unknown pattern `w`\n    q - k < w\n            ^\nfix: a runtime value is written `arg(\"w\")`"),
    ("per_head(causl, full)", UnknownNameError, "unknown pattern `causl`; did you mean `causal`?\n    per_head(causl, full)\n             ^^^^^\nfix: write `causal`; a runtime value is written `arg(\"causl\")`"),
    ("0 <= q - k < 5", PatternSyntaxError, "comparisons cannot be chained\n    0 <= q - k < 5\n    ^^^^^^^^^^^^^^\nfix: write two comparisons: `(0 <= q - k) & (q - k < 5)`"),
    ("k <= q & causal", OperandError, "`&`, `|`, `^` and `~` combine patterns, and this operand is an index expression\n    k <= q & causal\n         ^^^^^^^^^^\n"
     "fix: `&` binds tighter than a comparison: put parentheses around it, `(k <= q) & causal`"),
    ("causal & window(0)", ParameterError, "window: `size` must be at least 1, got 0\n    causal & window(0)\n             ^^^^^^^^^\nfix: use size >= 1"),
    ("window(sise=3)", ParameterError, "`window` has no parameter `sise`; did you mean `size`?\n    window(sise=3)\n    ^^^^^^^^^^^^^^\nfix: its parameters are `size`, `left`, `right`"),
    ("causal.att(i)", UnknownNameError, "unknown method `.att`; did you mean `.at`?\n    causal.att(i)\n    ^^^^^^^^^^^^^\nfix: patterns have `.at(f)`, `.shift(s)` and `.roll(s)`"),
    ("window", PatternSyntaxError, "`window` is a function\n    window\n    ^^^^^^\nfix: give it parameters in parentheses: `window(...)`"),
    ("causal()", OperandError, "`causal` takes no parameters\n    causal()\n    ^^^^^^^^\nfix: write `causal` without parentheses"),
    ("causal + window(3)", OperandError, "`+` does not join two patterns\n    causal + window(3)\n    ^^^^^^^^^^^^^^^^^^\nfix: use `|` for the union of patterns; `+` adds a term such as `linear_tail`"),
    ("(causal & window(5)", PatternSyntaxError, "`(` is never closed\n    (causal & window(5)\n    ^\nfix: add `)`"),
    ("causal & window(5))", PatternSyntaxError, "`)` closes nothing\n    causal & window(5))\n                      ^\nfix: remove it, or open it with `(`"),
    ("rows([1, 2)", PatternSyntaxError, "`)` closes nothing\n    rows([1, 2)\n              ^\nfix: close `[` first, with `]`"),
    ("causal window(5)", PatternSyntaxError, "an operator is missing between `causal` and `window`\n    causal window(5)\n           ^^^^^^\nfix: join patterns with `&`, `|`, `-` or `^`"),
    ("causal & \x00full", PatternSyntaxError, "a control character, U+0000\n    causal & ·full\n             ^\nfix: remove it"),
    ("cаusal", PatternSyntaxError, "`а` (U+0430, cyrillic small letter a) is not part of the language\n    cаusal\n     ^\nfix: names are ASCII letters; another name of a runtime value is written `arg(\"...\")`"),
    ("", PatternSyntaxError, "the text is empty\nfix: write a pattern, such as `causal & window(512)`"),
    ("causal - linear_tail", OperandError, "`-` takes patterns here, not the term `linear_tail`\n    causal - linear_tail\n    ^^^^^^^^^^^^^^^^^^^^\n"
     "fix: a term is added to a pattern: `causal + linear_tail`"),
    ("linear_tail(over=linear_tail)", OperandError, "`over=` takes patterns here, not the term `linear_tail`\n    linear_tail(over=linear_tail)\n    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
     "fix: a term is added to a pattern: `causal + linear_tail`"),
    ("[1, 2]", PatternSyntaxError, "the text is not a pattern but a list\n    [1, 2]\nfix: write a pattern, such as `causal & window(512)`"),
]  # fmt: skip


@pytest.mark.parametrize("text, kind, message", ERRORS)
def test_error_wording(text, kind, message):
    with pytest.raises(kind) as error:
        parse(text)
    assert str(error.value) == message


@settings(quiet, max_examples=300)
@given(st.text(max_size=60) | st.text(alphabet="qkwindow()[]{}<>=!&|^~+-*/%#.,'\" 0123456789\n\t", max_size=60))
def test_any_text_gives_an_expression_or_a_patternc_error(text):
    try:
        assert isinstance(parse(text), Node)
    except PatterncError as error:
        assert error.fix is not None


def test_printing_is_the_same_in_every_process():
    code = """
import patternc as pc
a = pc.arg
print(a("z") * pc.q + a("y") * pc.k + a("x"), pc.min(a("b_"), a("a"), pc.q), (a("n")[pc.k] * pc.h < a("m")) | (pc.min(pc.k, a("c"), a("b1")) == pc.table([3, 1])[pc.q % 2]))
"""
    runs = [subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout for seed in ("1", "2")]
    assert runs[0] == runs[1] != ""
