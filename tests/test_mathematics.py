"""Patterns as sympy relations, and closed pair counts."""

import pytest
import sympy
from hypothesis import HealthCheck, given, settings, strategies as st
from strategies import HEADS, patterns

import patternc as pc
from patternc.errors import AttentionError
from patternc.expr.node import postorder

q, k, arg = pc.q, pc.k, pc.arg
quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)


@quiet
@given(patterns(2, args=False), st.data())
def test_sympy_agrees_with_dense(p, data):
    n = data.draw(st.integers(1, 4))
    if any(node.op in ("read", "member") for node in postorder(p)):
        assert p.sympy() is not None
        return
    relation, mask = p.sympy(), p.dense(n, heads=HEADS)
    for qq, kk, hh in data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.integers(0, HEADS - 1)), min_size=1, max_size=3)):
        value = relation.subs({"q": qq, "k": kk, "h": hh, "b": 0, "n_q": n, "n_k": n})
        assert bool(value) == bool(mask[0, hh, qq, kk])


def test_sympy_takes_cases_of_cases():
    """A case that depends on no symbol, in the condition of another."""
    q = sympy.Symbol("q")
    inner = pc.where(pc.table([0], "t")[0] < 0, 0, pc.q)
    relation = (pc.where(inner < 2, 0, 1) < 1).sympy()
    assert relation.subs(sympy.Function("t", integer=True)(0), 5).subs(q, 1) == sympy.true
    relation = (pc.where(pc.where(pc.q < pc.k, pc.where(pc.k < 3, 1, 2), 5) < 2, 0, 1) < 1).sympy()
    for a in range(5):
        for b in range(5):
            assert bool(relation.subs({"q": a, "k": b})) == (a < b < 3)


def test_sympy_forms():
    x, y = sympy.symbols("q k")
    assert pc.causal.sympy() == sympy.Ge(x - y, 0)
    assert pc.dilate(3).sympy() == sympy.Eq(sympy.Mod(x - y, 3), 0)
    assert ((arg("w") + q // 4) % 2).sympy() == sympy.Mod(sympy.Symbol("w") + sympy.floor(x / 4), 2)
    assert str(pc.documents(arg("doc")).sympy()) == "(doc(q) >= 0) & Eq(-doc(k) + doc(q), 0)"
    assert "in_tokens" in str(pc.global_(arg("tokens")).sympy())
    assert "\\leq" in sympy.latex(pc.window(5).sympy())
    with pytest.raises(AttentionError, match="an attention is not one relation"):
        from patternc.mathematics import to_sympy

        to_sympy(pc.window(4) + pc.linear_tail)


n = sympy.Symbol("n")


@pytest.mark.parametrize("p, formula, at", [
    (pc.causal, n * (n + 1) / 2, 0), (pc.full, n**2, 0), (pc.empty, 0, 0), (pc.window(512) & pc.causal, 512 * n - 130816, 512), (pc.window(5), 9 * n - 20, 5),
    (pc.causal & (pc.window(9) | pc.sink(4)), 13 * n - 78, 13), (pc.sink(4), 4 * n, 4), (pc.window(left=256, right=256) | pc.global_(64), 641 * n - 102720, 400), (pc.rows([3, 4]), 2 * n, 5),
    (pc.window(4096) & pc.causal, 4096 * n - 8386560, 4096),
])  # fmt: skip
def test_count_formulas(p, formula, at):
    found = p.count_formula()
    for m in (at + 1, at + 17, 2**20):
        assert found.subs(n, m) == sympy.sympify(formula).subs(n, m)


@pytest.mark.parametrize("p", [pc.documents(arg("d")), pc.causal & pc.dilate(2), pc.heads(1) & pc.causal, pc.causal.roll(3), q * k < 9, pc.window(arg("w"))])
def test_no_count_formula(p):
    assert p.count_formula() is None


plain = st.sampled_from([pc.causal, pc.window(3), pc.window(left=4, right=1), pc.sink(2), pc.rows(range(2, 7)), pc.global_(3), q - k >= 3, q + k < 6, k < 4, pc.rows(range(1, 9, 2)), pc.block(4), q % 3 == 1])


@settings(quiet, max_examples=60)
@given(st.recursive(plain, lambda p: st.one_of(st.tuples(p, p).map(lambda t: t[0] & t[1]), st.tuples(p, p).map(lambda t: t[0] | t[1]), st.tuples(p, p).map(lambda t: t[0] ^ t[1]), p.map(lambda x: ~x)), max_leaves=4))
def test_count_formulas_are_exact(p):
    found = p.count_formula()
    if found is not None:
        for m in (1, 2, 3, 5, 8, 13, 40, 101):
            value = found.subs(n, m)
            assert value is sympy.nan or value == int(p.dense(m).sum()), m
