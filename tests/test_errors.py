"""How errors look: one rendering for all classes, carets under the guilty part, and a page that shows one of each."""

import inspect
import pickle
import re
from pathlib import Path

import pytest

import patternc as pc
from patternc import errors
from patternc.errors import PatterncError, PatternSyntaxError, excerpt, suggest

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PatterncError)]
PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_renders_and_pickles(kind):
    error = kind("what is wrong", typed="causal & windw(5)", span=(9, 14), fix="write `window`")
    assert str(error) == "what is wrong\n    causal & windw(5)\n             ^^^^^\nfix: write `window`"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and again.span == (9, 14)


@pytest.mark.parametrize("kind", [c for c in CLASSES if c is not PatterncError])
def test_every_class_is_documented_and_fits_a_python_class(kind):
    assert f"## {kind.__name__}\n" in PAGE and kind.__doc__
    assert len(kind.__mro__) > 4 and not issubclass(kind, KeyError)


def test_documented_classes_exist():
    assert re.findall(r"^## (\w+)$", PAGE, re.M) == [n for n in dict.fromkeys(re.findall(r"^## (\w+)$", PAGE, re.M)) if hasattr(errors, n)]


@pytest.mark.parametrize("text, span, lines", [
    ("causal &", (8, 9), ["    causal &", "            ^"]),
    ("one\ntwo three\nfour", (8, 13), ["    two three", "        ^^^^^"]),
    ("a" * 100 + "!" + "b" * 100, (100, 101), ["    ..." + "a" * 36 + "!" + "b" * 35 + "...", "    ..." .replace(".", " ") + " " * 36 + "^"]),
    ("tab\there\x1b", (4, 8), ["    tab·here·", "        ^^^^"]),
    ("one\ntwo", (1, 6), ["    one", "     ^^"]),
    ("x" * 90, None, ["    " + "x" * 69 + "..."]),
])  # fmt: skip
def test_excerpts(text, span, lines):
    assert excerpt(text, span) == lines


def test_suggestions():
    assert suggest("windw", ["window", "block"]) == "window" and suggest("zzz", ["window"]) is None


def test_errors_of_a_multi_line_text():
    with pytest.raises(PatternSyntaxError) as error:
        pc.parse("causal &  # the past\n  (window(5) || sink(4))")
    assert str(error.value) == "`||` is not an operator\n      (window(5) || sink(4))\n                 ^^\nfix: write `|`"


def test_errors_chain_nothing():
    with pytest.raises(PatterncError) as error:
        pc.parse("causal & window(0)")
    assert error.value.__suppress_context__


WORDING = [
    (lambda: pc.window(1.5), "window: `size` must be an integer or an index expression, got 1.5\nfix: write `window(4)`, or `window(arg(\"w\"))` for a runtime value"),
    (lambda: pc.window(), "window takes a size, or left= and right=\nfix: write `window(512)` or `window(left=511, right=0)`"),
    (lambda: pc.block(4, back=-1), "block: `back` must be at least 0, got -1\n    block(back=-1)\nfix: use back >= 0"),
    (lambda: pc.rows([-1]), "rows got the negative position -1\nfix: positions start at 0"),
    (lambda: pc.rows("ab"), "rows takes a count, a range, a list of positions or an arg, got 'ab'\nfix: write `rows([0, 17, 42])`"),
    (lambda: pc.valid(3), 'valid takes an arg, got 3\nfix: write `valid(arg("mask"))`, or `sink(n)` for a fixed length'),
    (lambda: pc.per_head(), "per_head takes one pattern for each query head, got none\nfix: write `per_head(causal, full)` for two heads"),
    (lambda: pc.q // pc.k, "the divisor of `//` must be provably at least 1, and `k` is not\nfix: write `max(k, 1)`"),
    (lambda: pc.q / 2, "`/` does not give an integer\nfix: use `//`, the floor division"),
    (lambda: 1.5 + pc.q, "expected an integer or an index expression, got 1.5\nfix: positions are integers; use `//` to divide"),
    (lambda: pc.q == "doc", 'expected an integer or an index expression, got \'doc\'\nfix: `arg("doc")` names a runtime value'),
    (lambda: pc.q + 10**10, "integer 10000000000 is too large\nfix: keep integers within 2147483647 in magnitude"),
    (lambda: pc.arg("scale"), '`scale` cannot name an arg: the call itself uses that name\nfix: rename it, as in `arg("scale_")`'),
    (lambda: pc.same(pc.q // 2), "an index function is written in the placeholder `i`, and `q // 2` names `q`\nfix: write `pc.i` (text: `i`) for the position"),
    (lambda: pc.table([0, 1]) + 1, "a table is not an integer until it is subscripted\n    table([0, 1])\nfix: subscript it: `table([0, 1])[q % 2]`"),
    (lambda: pc.table([]), "a table holds integers or bools and at least one entry, got shape (0,) of float64\nfix: write `table([0, 2, 1])` or pass an integer array"),
    (lambda: pc.linear_tail(norm="rmz"), 'unknown norm `rmz`\nfix: did you mean "rms"?'),
    (lambda: pc.linear_tail(num_features=0), "`num_features` is an integer from 1 to 65536, got 0\nfix: write `num_features=64`"),
    (lambda: pc.linear_tail(seed=-1), "`seed` is an integer from 0 to 2147483647, got -1\nfix: write `seed=64`"),
    (lambda: pc.linear_tail(initial_state=3), "`initial_state` is True or False, got 3\nfix: write `initial_state=True`"),
    (lambda: pc.linear_tail(over=pc.causal, meant=None), "`meant` is True or False, got None\nfix: write `meant=True`"),
    (lambda: pc.per_head(pc.causal + pc.linear_tail), "`per_head` takes patterns here, not the attention `causal + linear_tail`\nfix: name its part: `A.exact` or `A.domain`"),
    (lambda: pc.q**2, "`**` has no meaning for an index expression\n    q\nfix: index expressions have `+ - * // %`, `abs`, `min`, `max`, `where` and comparisons"),
    (lambda: pc.causal < 3, "`<` has no meaning for patterns\n    causal\nfix: patterns combine by `&`, `|`, `-`, `^` and `~`; comparisons need parentheses beside them"),
    (lambda: pc.window(sise=3), "`window` has no parameter `sise`; did you mean `size`?\nfix: its parameters are `size`, `left`, `right`"),
    (lambda: pc.window(1, 2), "`window`: too many positional arguments\nfix: its form is `window(size=None, *, left=None, right=None)`"),
    (lambda: pc.sink(), "`sink`: missing a required argument: 'count'\nfix: its form is `sink(count)`"),
    (lambda: pc.causal.at(), "`.at`: missing a required argument: 'f'\nfix: its form is `.at(f)`"),
    (lambda: pc.linear_tail(features="relu"), "`linear_tail` has no parameter `features`; did you mean `feature`?\n"
     "fix: its parameters are `feature`, `norm`, `num_features`, `seed`, `initial_state`, `over`, `meant`"),
    (lambda: pc.compile(pc.causal, heads=3), "`compile` has no parameter `heads`; did you mean `num_heads`?\nfix: its parameters are `spec`, `backend`, `num_heads`, `head_dim`"),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(WORDING)))
def test_wording(n):
    build, message = WORDING[n]
    with pytest.raises(PatterncError) as error:
        build()
    assert str(error.value) == message


@pytest.mark.parametrize("name, function", [(name, f) for name, f in vars(pc).items() if inspect.isfunction(f)])
def test_no_call_raises_pythons_type_error(name, function):
    for call in (lambda: function(no_such_parameter=3), lambda: function(*["x"] * 30)):
        with pytest.raises(PatterncError):
            call()


def test_signatures_are_those_of_the_functions():
    assert str(inspect.signature(pc.dilate)) == "(d) -> 'Pattern'" and pc.window.__doc__.startswith("`abs(q - k) < size`") and pc.window.__name__ == "window"
