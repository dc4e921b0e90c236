"""`attn.explain`: the report's values and its words; and the stages as text."""

import numpy as np
import pytest

import patternc as pc
from patternc.errors import ArgError, OperandError, ParameterError
from patternc.passes import PASSES
from patternc.stages import STAGES, stage_text

STREAMING = "causal & (window(512) | sink(4))"
TAIL = "causal & (window(left=255, right=0) | global(tokens) + linear_tail)"


def test_report():
    report = pc.compile(STREAMING).explain(4096, heads=8, head_dim=64)
    assert report.cost.allowed_pairs == 8 * int(pc.parse(STREAMING).dense(4096).sum())
    assert (report.layout.full_tiles, report.layout.partial_tiles) == (8 * 90, 8 * 87)
    text = str(report)
    for line in (
        "pattern   causal & (window(512) | sink(4))",
        "length    4096 queries, 4096 keys; heads 8, head_dim 64",
        "forward (q tiles over keys; forward, dq): formulas, 2 runs a row tile, in order",
        "    keys r0 - 511 .. r1, every pair in r1 - 511 .. r0",
        "tiles     6,776 empty, 696 partial, 720 full of 128 x 128 (exact)",
        "kernels   on cpu: torch operations over the tiles of the layout (backend cpu)",
    ):
        assert line in text.splitlines(), line
    assert f"{report.cost.waste:.1%} masked away" in text


def test_kinds_of_runs():
    assert "a table, 1 run a row tile" in str(pc.compile("causal & documents(ids)").explain(64, ids=np.zeros(64, int)))
    assert "lists of tiles" in str(pc.compile("dilate(1000)").explain(128))
    assert "keys 0 .. r1, every pair in 0 .. r0, in the tiles of a shared list: cols([1, 70])" in str(pc.compile("causal & cols([1, 70])").explain(128))
    text = str(pc.compile("causal & (window(9) | dilate(256)) | rows([3, 9])").explain(128))
    assert "    in the gaps: keys 0 .. r1, every pair in 0 .. -1, in steps of 256 from r0 .. r1" in text
    assert "    keys 0 .. n_k - 1, every pair in 0 .. n_k - 1, for rows where rows([3, 9])" in text


def test_attention_with_a_term():
    report = pc.compile(TAIL, num_heads=1, head_dim=128).explain(1024, tokens=[0, 700])
    exact, domain, rest = report.parts
    assert [p.name for p in report.parts] == ["E", "D", "R"]
    assert exact.causal and domain.causal and rest.causal
    spec = pc.parse(TAIL)
    counted = [int(p.dense(1024, **({"tokens": [0, 700]} if "tokens" in str(p) else {})).sum()) for p in (spec.exact, spec.domain)]
    assert rest.pattern is (spec.domain & ~spec.exact)
    assert counted[1] - counted[0] == int(rest.pattern.dense(1024, tokens=[0, 700]).sum())
    text = str(report)
    assert "term      linear_tail, on the pairs of R = D - E" in text and text.count("     provably causal; ") == 3


def test_a_term_over_everything_is_not_causal():
    report = pc.compile("window(64) + linear_tail", num_heads=1, head_dim=128).explain(256)
    assert not any(part.causal for part in report.parts)
    assert "not provably causal; 0 empty, 0 partial, 4 full of 128 x 128 (exact)" in str(report)


@pytest.mark.parametrize("exact, words", [
    ("window(64)", "carry states in 1 scan"), ("random_blocks(1, 64, 0)", "sum states of tiles"), ("window(64) | dilate(8)", "carry states in 3 scans in orders of their own, or"),
])  # fmt: skip
def test_how_a_term_is_summed(exact, words):
    assert f"the term by kernels that {words}" in str(pc.compile(f"causal & ({exact} + linear_tail)", num_heads=1, head_dim=64).explain(512))


@pytest.mark.parametrize("sizes, options", [((0,), {}), ((0, 10), {}), ((1, 0), {"q_start": 0}), ((10,), {"heads": 0})], ids=str)
def test_of_nothing(sizes, options):
    for text in ("causal", "causal & dilate(6)", "window(9) + linear_tail(norm=\"none\")"):
        assert "cost      0 allowed pairs" in str(pc.compile(text).explain(*sizes, **options))


@pytest.mark.parametrize("options, words", [({"head_dim": "a"}, "`head_dim` must be an integer"), ({"kv_heads": 0}, "`kv_heads` must be at least 1"), ({"heads": 6, "kv_heads": 4}, "6 heads are no multiple of 4 kv_heads")], ids=str)
def test_widths_and_heads_that_do_not_fit(options, words):
    for ask in (pc.compile("causal").explain, pc.compile("causal").cost):
        with pytest.raises(ParameterError, match=words):
            ask(100, **options)


def test_numbers_beyond_the_sequence_cost_nothing():
    """Blocks longer than the sequence suggest no order of positions that anybody looks at."""
    module = pc.compile(pc.causal & pc.block(2**31 - 1))
    assert module.cost(4096).allowed_pairs == 4096 * 4097 // 2 and module.explain(4096).directions[0].pieces[0].orders[""][0].order.natural


def test_sizes_and_args():
    report = pc.compile("causal & window(w)").explain(16, 1000, heads=2, w=40)
    assert report.cost.allowed_pairs == 2 * 16 * 40
    with pytest.raises(ArgError, match="missing arg `w`"):
        pc.compile("causal & window(w)").explain(16)
    with pytest.raises(ArgError, match="unknown arg `v`"):
        pc.compile("causal & window(w)").explain(16, w=3, v=4)
    assert str(pc.compile("causal & documents(ids)").explain(64, batch=2, ids=np.zeros((2, 64), int)))


@pytest.mark.parametrize("backend, words", [("cpu", "on any device: torch"), ("reference", "dense reference"), ("triton", "on cuda: Triton"), ("auto", "on cuda: Triton")])
def test_kernel_family(backend, words):
    assert words in str(pc.compile("causal", backend=backend).explain(64))


def test_sizes_of_a_source_need_a_length():
    with pytest.raises(OperandError, match="sizes without `n_q` say nothing"):
        pc.compile("causal").source(heads=3)
    with pytest.raises(ParameterError, match="`heads` must be at least 1"):
        pc.compile("causal").source(100, heads=0)


def test_stages():
    assert STAGES == ("text", *(name for name, _, _ in PASSES), "conjuncts", "plan", "kernels", "term", "hopper")
    p = pc.parse("per_head(causal, window(9) ^ sink(2)) & ~cols([3, 9])")
    for stage in STAGES:
        assert stage_text(p, stage)
        assert stage_text(p, stage) == stage_text(pc.parse(str(p)), stage)
    assert stage_text(p, "text") == str(p)
    assert "^" in stage_text(p, "text") and "^" not in stage_text(p, "expand")
    assert "~" not in stage_text(p, "negate")
    assert "@triton.jit" in stage_text(p, "kernels")
    assert stage_text(pc.parse(STREAMING), "conjuncts").splitlines() == ["q - k in [0, 511]", "q - k in [0, oo) and k in (-oo, 3]"]
    assert stage_text(pc.causal & (pc.k > pc.q), "conjuncts") == "none: no pair is allowed"
    assert stage_text(pc.parse(TAIL), "plan").startswith("mask")
    assert "8 * x0 + x1" in stage_text(pc.causal & pc.dilate(8) & pc.window(4096), "plan", n=16384)
    parts = pc.causal & (pc.window(128) | pc.dilate(128))
    assert stage_text(parts, "plan", n=16384).count("mask ") == 2 and "runs in parts" in stage_text(parts, "hopper", n=16384)
    hopper = stage_text(pc.causal, "hopper")
    assert hopper.count("def backward(") == 2 and "heads of width 64" in hopper and "heads of width 128" in hopper
    assert "the backward is left to the portable kernels: heads or batch rows that differ" in stage_text(p, "hopper")


def test_stages_of_terms():
    assert stage_text(pc.causal, "term") == "# there is no term"
    hopper = stage_text(pc.parse("causal & (window(100) + linear_tail)"), "hopper")
    assert hopper.count("@gluon.jit(") == 6 and hopper.count("def backward(") == 2 and "def backward_kv(" in hopper and "warp_specialize" in hopper and "dkdv" not in hopper
    assert "equal modulo 4 are a line" in stage_text(pc.parse("causal & dilate(4) & window(2048)"), "hopper", 16384)
    assert "boxes of digits" in stage_text(pc.parse("neighborhood([64, 64], 7)"), "hopper", 4096)
    for text, class_name in (("causal & (window(100) + linear_tail)", "P"), ("window(100) + linear_tail", "PS"), ("dilate(4) + linear_tail", "X")):
        kernels = stage_text(pc.parse(text), "term", 512)
        assert "def key_states(" in kernels and ("def block_sums(" in kernels) == (class_name == "X")
    left = stage_text(pc.parse('causal & (block(64) + linear_tail)'), "hopper")
    assert "the term is left to the portable kernels: class P" in left
    with pytest.raises(ArgError, match="tokens"):
        stage_text(pc.parse(TAIL), "term")
    with pytest.raises(ParameterError, match="`n` must be at least 1"):
        stage_text(pc.parse("causal & (window(100) + linear_tail)"), "term", 0)
