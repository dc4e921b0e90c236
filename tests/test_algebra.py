"""The algebra: laws of attentions, canonical forms, and the operators' refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st
from strategies import HEADS, TERMS, attentions, draw_args, indices, patterns

import patternc as pc
from patternc.errors import AttentionError, OperandError, PatterncError, TruthValueError
from patternc.expr.attention import Attention
from patternc.expr.node import postorder
from patternc.expr.transform import rebuild

q, k, h, b, i, arg, tail = pc.q, pc.k, pc.h, pc.b, pc.i, pc.arg, pc.linear_tail
quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)


def parts(a):
    return a.exact, a.domain, a.term


# attentions


@quiet
@given(patterns(2), attentions(2))
def test_lifting_laws(x, a):
    e, d, t = parts(a)
    assert parts(x & a) == (x & e, x & d, t)
    assert parts(x | a) == (x | e, x | d, t)
    assert parts(a & x) == (e & x, d & x, t)
    assert parts(a | x) == (e | x, d | x, t)
    assert parts(a - x) == (e & ~x, d & ~x, t)
    assert (x & a).domain_is_explicit == (x | a).domain_is_explicit == a.domain_is_explicit


@quiet
@given(patterns(1), patterns(1), patterns(1), st.sampled_from(TERMS))
def test_unions_may_be_grouped_in_any_order(x, y, z, t):
    want = x | y | z + t
    assert want is ((x | y) | (z + t)) and want is (x | (y | (z + t))) and want is (x | y | z) + t
    assert want.domain is pc.full
    assert x & (y & (z + t)) is (x & y) & (z + t)


@quiet
@given(patterns(1), patterns(1), st.sampled_from(TERMS), patterns(1))
def test_plus_makes_exact_domain_and_term(p, d, t, x):
    assert parts(p + t) == (p, pc.full, t) and not (p + t).domain_is_explicit
    assert parts(p + t(over=d)) == (p, d, t) and (p + t(over=d)).domain_is_explicit
    assert not (p + t(over=d, meant=False)).domain_is_explicit
    assert p + t is not p + t(over=pc.full)


@quiet
@given(attentions(2, term=tail), attentions(2, term=tail))
def test_the_same_term_twice(a, c):
    assert parts(a & c) == (a.exact & c.exact, a.domain & c.domain, tail)
    assert parts(a | c) == (a.exact | c.exact, a.domain | c.domain, tail)
    assert a & a is a and a | a is a


@quiet
@given(attentions(2, term=TERMS[0]), attentions(2, term=TERMS[1]))
def test_two_terms(a, c):
    for join in (lambda: a & c, lambda: a | c):
        with pytest.raises(AttentionError, match="two different terms cannot be combined"):
            join()


@quiet
@given(patterns(2), st.data())
def test_the_exact_part_lies_in_the_domain(x, data):
    a = data.draw(attentions(2))
    if a.domain_is_explicit:
        return
    a = a & x
    args = draw_args(data.draw, a.exact, 6, batch=2) | draw_args(data.draw, a.domain, 6, batch=2)
    exact, domain = (p.dense(6, heads=HEADS, batch=2, **{n: v for n, v in args.items() if n in pc.args.signature(p)}) for p in parts(a)[:2])
    assert not (exact & ~domain).any()


A = pc.window(4) + tail
REFUSED = [
    (lambda: ~A, AttentionError, "`~` has no meaning for an attention\n    window(4) + linear_tail\nfix: use its parts: `~A.exact`, `~A.domain`, `A.domain - A.exact`"),
    (lambda: pc.causal - A, AttentionError, "`-` has no meaning with an attention on the right\n    window(4) + linear_tail\nfix: name the part: `B.exact` or `B.domain`"),
    (lambda: A - A, AttentionError, "`-` cannot take an attention away\nfix: subtract its exact part or its domain: `A - B.exact`, `A - B.domain`"),
    (lambda: A ^ pc.causal, AttentionError, "`^` has no meaning for an attention\n    window(4) + linear_tail\nfix: combine its parts: `A.exact ^ B`, `A.domain ^ B`"),
    (lambda: pc.causal ^ A, AttentionError, "`^` has no meaning with an attention on the right"),
    (lambda: A + tail, AttentionError, "this pattern already has a term"),
    (lambda: tail & pc.causal, AttentionError, "`linear_tail` alone is not a pattern"),
    (lambda: pc.causal | tail, OperandError, "`|` takes patterns here, not the term `linear_tail`"),
    (lambda: pc.causal + pc.window(3), OperandError, "`+` does not join two patterns\n    causal + window(3)\nfix: use `|` for the union of patterns; `+` adds a term such as `linear_tail`"),
    (lambda: A.at(i // 2), AttentionError, "`.at`, `.shift` and `.roll` move patterns"),
    (lambda: A.dense(4), AttentionError, "an attention has no dense mask"),
    (lambda: bool(A), TruthValueError, "an attention has no truth value"),
    (lambda: bool(tail), TruthValueError, "a term has no truth value"),
    (lambda: 3 & A, OperandError, "`&` has no meaning for an attention"),
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(REFUSED)))
def test_refused_operators(n):
    build, kind, message = REFUSED[n]
    with pytest.raises(kind) as error:
        build()
    assert str(error.value).startswith(message)


# truth values and Python's operators


@pytest.mark.parametrize("build", [
    lambda: pc.causal and pc.full, lambda: pc.causal or pc.full, lambda: not pc.causal, lambda: 0 <= q - k < 5, lambda: q < k < h, lambda: 1 if q < 3 else 2,
    lambda: bool(q), lambda: q and k, lambda: 3 if A else 4, lambda: [x for x in range(3) if x == q],
])  # fmt: skip
def test_truth_values(build):
    with pytest.raises(TruthValueError):
        build()


def test_truth_hint_names_the_operators():
    with pytest.raises(TruthValueError) as error:
        bool(pc.causal)
    assert str(error.value) == (
        "a pattern has no truth value\n    causal\nfix: use `&`, `|` and `~` instead of `and`, `or` and `not`, and two comparisons instead of a chained one: "
        "`(0 <= q - k) & (q - k < 5)`"
    )


@pytest.mark.parametrize("build", [lambda: k <= q & pc.causal, lambda: pc.causal & k <= q, lambda: q & 3, lambda: 3 | q, lambda: ~q, lambda: q ^ k])
def test_missing_parentheses(build):
    with pytest.raises(OperandError, match="parentheses"):
        build()


STRANGERS = [1.5, "x", None, {1}, [1], (1,), {}, b"x", 1j, object(), np.array([1, 2]), np.float64(1.5), torch.tensor([1, 2]), torch.tensor(1.5), lambda: 1, slice(1)]
BINARY = ["+", "-", "*", "//", "%", "/", "**", "<<", ">>", "@", "&", "|", "^", "<", "<=", ">", ">="]


@pytest.mark.parametrize("operator", BINARY)
@pytest.mark.parametrize("left", [q, pc.causal, A, tail], ids=["index", "pattern", "attention", "term"])
def test_operators_with_strangers(operator, left):
    for stranger in STRANGERS:
        if operator == "%" and isinstance(stranger, (str, bytes)):
            continue  # Python's string formatting
        for code in (f"x {operator} y", f"y {operator} x"):
            with pytest.raises(PatterncError):
                eval(code, {"x": left, "y": stranger})


@pytest.mark.parametrize("code", [
    "q ** 2", "2 ** q", "q << 1", "1.5 + q", "q['x']", "q[0]", "q / 2", "2 / q", "divmod(q, 2)", "list(q)", "3 in q", "int(q)", "float(q)", "q()", "round(q)", "q == None", "q != 'x'",
    "q == pc.causal", "-pc.causal", "abs(pc.causal)", "pc.causal[3]", "pc.causal()", "list(pc.causal)", "q in pc.causal", "~tail", "-A", "A < 3", "A[0]", "pc.arg('d')[1:2]", "pc.arg('d')[()]",
    "pc.table([0, 1]) + q", "pc.table([0, 1])[q, k]", "pc.where(q, 1, 2)", "pc.where(pc.causal, pc.full, 2)", "pc.min()", "pc.max(q, 'x')", "pc.clamp(q, None, 3)", "q // 0", "q % -1", "q // k",
    "q + 2**31", "q * 10**30", "pc.causal.at(q)", "pc.causal.at('x')", "pc.causal.at(lambda: 3)", "pc.causal.at(lambda i: 'x')", "pc.causal.shift(1.5)", "pc.causal.roll(pc.causal)",
])  # fmt: skip
def test_mistakes_raise_patternc_errors(code):
    with pytest.raises(PatterncError) as error:
        eval(code, {"pc": pc, "q": q, "k": k, "A": A, "tail": tail})
    assert error.value.fix


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3), np.uint8(3), np.array(3), torch.tensor(3), True + 2])
def test_integers_of_other_libraries(number):
    assert number + q is q + 3 and q + number is q + 3 and number - q is 3 - q and number * q is 3 * q and q // number is q // 3 and q % number is q % 3
    assert (number < q) is (q > 3) and (q < number) is (q < 3) and (number == q) is (q == 3) and (number != q) is (q != 3)
    assert pc.window(number) is pc.window(3) and pc.table([1, 2, 3, 4])[number] is pc.table([1, 2, 3, 4])[3]


# canonical forms


@pytest.mark.parametrize("one, two", [
    (pc.window(5), abs(q - k) < 5), (pc.window(5), (abs(k - q) <= 4)), (pc.window(left=3, right=0), pc.within(q - k, 0, 3)), (pc.causal, k <= q), (pc.causal, q - k >= 0), (pc.causal, ~~(k < q + 1)),
    (pc.dilate(2), (q - k) % 2 == 0), (pc.dilate(3), (k - q) % 3 == 0), (pc.block(64), q // 64 == k // 64), (pc.same(i // 64), pc.block(64)), (pc.same(lambda x: x // 64), pc.block(64)),
    (pc.sink(4), k < 4), (pc.prefix(arg("n")), k < arg("n")), (pc.documents(arg("d")), (arg("d")[q] == arg("d")[k]) & (arg("d")[q] >= 0)), (pc.rows([0, 1, 2]), pc.rows(3)),
    (pc.rows(range(3, 9)), pc.rows([8, 7, 6, 5, 4, 3])), (pc.global_(4), pc.rows(4) | pc.cols(4)), (pc.causal.shift(7), pc.causal), (pc.window(9).shift(arg("s")), pc.window(9)),
    (pc.causal - pc.window(5), pc.causal & ~pc.window(5)), (2 * q < 5, q < 3), (3 * q - 3 * k == 6, q - k == 2), (q != k, (q < k) | (k < q)), ((q // 4) // 8 == k, q // 32 == k),
    ((8 * q + k) // 8 == 3, q + k // 8 == 3), ((q % 8) % 4 == 0, q % 4 == 0), (pc.min(q, k, q) < 3, pc.min(k, q) < 3), (pc.full & pc.causal, pc.causal), (pc.causal | ~pc.causal, pc.full),
    (pc.causal ^ pc.causal, pc.empty), (pc.causal ^ pc.full, ~pc.causal), (q % 5 < 5, pc.full), (q % 5 < 0, pc.empty), (pc.where(pc.full, q, k) < 3, q < 3), (pc.sink(4).at(i - 2), pc.sink(6)),
    (pc.causal.roll(3), (k - 3) % pc.n_k <= (q - 3) % pc.n_k), (pc.rows(np.array([3, 1])), pc.rows([1, 3])), (pc.rows(torch.tensor([3, 1])), pc.rows([1, 3])), (pc.rows(pc.table([3, 1])), pc.rows([1, 3])),
])  # fmt: skip
def test_canonical_forms(one, two):
    assert one is two


def test_linear_tail_is_one_object():
    assert tail() is tail and tail(feature="softmax", norm="rms") is tail and tail(norm="none")(norm="rms") is tail
    assert tail(over=pc.causal)(norm="none") is tail(norm="none", over=pc.causal)
    assert isinstance(pc.empty + tail, Attention)


@quiet
@given(st.one_of(patterns(3), indices(4), attentions()))
@example(abs(-abs(arg("w"))))
def test_nodes_are_canonical_and_survive_copies(x):
    assert copy.deepcopy(x) is x and copy.copy(x) is x and pickle.loads(pickle.dumps(x)) is x
    for node in postorder(x):
        if isinstance(node, (pc.Index, pc.Pattern)) and node.children and node.op not in ("in",):
            # through the constructors with the same children: nothing changes
            assert rebuild(node, node.children) is node
        if node.op == "in":
            assert pc.within(node.args[0], node.args[1] if node.args[1] is not None else -(2**40), node.args[2] if node.args[2] is not None else 2**40) is not None


def test_nodes_are_frozen():
    with pytest.raises(AttributeError):
        pc.causal.op = "or"
    with pytest.raises(AttributeError):
        del q.args


@quiet
@given(patterns(3), patterns(2), st.data())
def test_operators_are_set_operations(x, y, data):
    args = draw_args(data.draw, x, 5, 7, batch=2) | draw_args(data.draw, y, 5, 7, batch=2)

    def dense(p):
        return p.dense(5, 7, heads=HEADS, batch=2, **{n: v for n, v in args.items() if n in pc.args.signature(p)})

    a, c = dense(x), dense(y)
    for p, want in ((x & y, a & c), (x | y, a | c), (~x, ~a), (x - y, a & ~c), (x ^ y, a ^ c)):
        assert torch.equal(dense(p), want)
