"""The zoo: every entry against a definition of its own, pair by pair, and through the backends; texts, parameters, traps."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from patterns import zoo_case

import patternc as pc
from patternc import zoo
from patternc.errors import ParameterError
from patternc.printing import named_data
from patternc.zoo.registry import ENTRIES, LINEAR, NAMES, entry

pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in ("Conversion of an array", "divide by zero")]  # of the interpreter
N = 97
BLOCK, GLOBAL = 8, 8  # of the BigBird examples
every = pytest.mark.parametrize("e", ENTRIES, ids=lambda e: e.name)


def group_of(x, g, n, shift):
    """LongLoRA: the place and the group of a token after rolling."""
    rolled = (x - shift) % n
    return rolled, rolled // g


# What each system says, of plain integers: (q, k, head, n).  The parameters are those of the registry's small examples.
DEFINITIONS = {
    "sliding_window": lambda q, k, h, n: 0 <= q - k < 20,
    "sliding_window_two_sided": lambda q, k, h, n: abs(q - k) <= 11,
    "sliding_window_flash": lambda q, k, h, n: q - 19 <= k <= q + 5,
    "sliding_window_rattention": lambda q, k, h, n: 0 <= q - k <= 20,
    "sliding_window_encoder": lambda q, k, h, n: abs(q - k) <= 10,
    "strided": lambda q, k, h, n: k <= q and (q - k <= 11 or (q - k) % 11 == 0),
    "strided_heads": lambda q, k, h, n: k <= q and ((q - k) % 11 == 0 if h % 2 else q - k <= 10),
    "fixed": lambda q, k, h, n: k <= q and (q // 16 == k // 16 or k % 16 in (13, 14, 15)),
    "fixed_heads": lambda q, k, h, n: k <= q and (q // 16 == k // 16 or (k // 2) % 8 == 8 - 1 - h % 2),
    "blockwise": lambda q, k, h, n: q // 16 == k // 16 or 0 in (q, k),
    "overlapping_blocks": lambda q, k, h, n: q // 16 * 16 - 8 <= k < q // 16 * 16 + 16 + 8,
    "longformer": lambda q, k, h, n: abs(q - k) <= 8 or q % 24 == 0 or k % 24 == 0,
    "longformer_dilated": lambda q, k, h, n: (k - q) in [d * (1, 3)[h] for d in range(-6, 7)] or q % 24 == 0 or k % 24 == 0,
    "blockbert": lambda q, k, h, n: (q // 33 + (0, 1, 2, 0)[h]) % 3 == k // 33,
    "s2_attn_leak_free": lambda q, k, h, n: k <= q and (q // 22 == k // 22 if h == 0 else rolled_causal(q, k, n)),
    "s2_attn": lambda q, k, h, n: k <= q and q // 22 == k // 22 if h == 0 else rolled_causal(q, k, n),
    "s2_attn_flash": lambda q, k, h, n: k <= q and (q // 22 == k // 22 if h == 0 else (q + 11) // 22 == (k + 11) // 22),
    "streaming_llm": lambda q, k, h, n: k <= q and (k < 3 or q - k < 17),
    "lm_infinite": lambda q, k, h, n: k <= q and (k < 5 or q - k < 22),
    "longt5_local": lambda q, k, h, n: abs(q - k) <= 10,
    "longt5_unmasked": lambda q, k, h, n: abs(q // 11 - k // 11) <= 1,
    "etc": lambda q, k, h, n: q < 9 or k < 9 or abs(q - k) <= 12,
    "etc_hard": lambda q, k, h, n: k < 9 or (document(q, n) == document(k, n) if q < 9 else abs(q - k) <= 12),
    "biblosan": lambda q, k, h, n: q // 14 == k // 14 and k < q,
    "biblosan_backward": lambda q, k, h, n: k > q,
    "reformer_local": lambda q, k, h, n: k // 13 in (q // 13, (q // 13 - 1) % 8),
    "routing_local": lambda q, k, h, n: k <= q and q // 13 - k // 13 <= 1,
    "mistral": lambda q, k, h, n: 0 <= q - k < 20,
    "gemma2": lambda q, k, h, n: k <= q,
    "gemma3": lambda q, k, h, n: 0 <= q - k < 20,
    "gemma3_images": lambda q, k, h, n: (k <= q or same_image(q, k, n)) and q - k < 20,
    "gemma3_bidirectional": lambda q, k, h, n: abs(q - k) < 20 // 2 + 1,
    "gpt_neo": lambda q, k, h, n: 0 <= q - k < 20,
    "modernbert": lambda q, k, h, n: abs(q - k) <= 10,
    "llama4": lambda q, k, h, n: k <= q and q // 30 == k // 30,
    "llama4_padded": lambda q, k, h, n: 10 <= k <= q and (q - 10) // 30 == (k - 10) // 30,
    "gpt_oss": lambda q, k, h, n: 0 <= q - k < 20,
    "packed": lambda q, k, h, n: k <= q and document(q, n) == document(k, n),
    "packed_local": lambda q, k, h, n: k <= q and document(q, n) == document(k, n) and (k - begin(k, n) < 2 or q - k < 9),
    "prefix_lm": lambda q, k, h, n: k <= q or k < 24,
    "prefix_lm_documents": lambda q, k, h, n: document(q, n) == document(k, n) and (k <= q or k - begin(k, n) < 8),
    "image_blocks": lambda q, k, h, n: k <= q or same_image(q, k, n),
}  # fmt: skip


def rolled_causal(q, k, n):
    (a, i), (b, j) = group_of(q, 22, n, 11), group_of(k, 22, n, 11)
    return i == j and b <= a


def document(x, n):
    return (x >= 27) + (x >= 59)  # of 97 tokens: 27 are 2/7, 32 are 1/3


def begin(x, n):
    return (0, 27, 59)[document(x, n)]


def same_image(q, k, n):
    return 19 <= q < 28 and 19 <= k < 28 or 48 <= q < 57 and 48 <= k < 57


def pairs(e, n):
    define = DEFINITIONS[e.name]
    return np.array([[[bool(define(q, k, h, n)) for k in range(n)] for q in range(n)] for h in range(e.heads)])


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition(name):
    e = entry(name)
    p, wanted = e.example(), pairs(e, e.length)
    assert (p.dense(e.length, heads=e.heads, **e.args(p, e.length))[0].numpy() == wanted).all()
    decode = p.dense(5, e.length, heads=e.heads, **e.args(p, e.length))[0].numpy()  # with a cache: positions are absolute
    assert (decode == wanted[:, -5:]).all()


def bigbird_blocks(n, first, last):
    """Block pairs that BigBird sees without its random ones; the first `first` and the last `last` blocks are global."""
    blocks = -(-n // BLOCK)
    i, j = np.arange(blocks)[:, None], np.arange(blocks)
    ends = (i < first) | (j < first) | (i >= blocks - last) | (j >= blocks - last)
    return (abs(i - j) <= 1) | ends


@pytest.mark.parametrize("name, first, last", [("bigbird", 1, 1), ("bigbird_released", 1, 1), ("bigbird_etc", 1, 0)])
def test_definition_of_bigbird(name, first, last):
    e = entry(name)
    n = 104
    found = e.example().dense(n, heads=2)[0].numpy().reshape(2, 13, 8, 13, 8)
    assert (found.all((2, 4)) == found.any((2, 4))).all()
    fixed, found = bigbird_blocks(n, first, last), found.any((2, 4))
    assert (found & fixed == fixed).all()
    drawn = found & ~fixed
    for h in range(2):
        middle = drawn[h, first : 13 - last]
        if name == "bigbird_etc":  # the released rule draws from everything but blocks 0 and 12 and the neighbours: block 1 may be drawn
            assert (middle.sum(1) <= 2).all() and middle.sum() >= 18 and not middle[:, 12].any()
        else:
            assert (middle.sum(1) == np.minimum(2, (~fixed[first : 13 - last]).sum(1))).all()
    assert (drawn[0] != drawn[1]).any()


def test_bigbird_plans_follow_the_released_rule():
    for length, size, random, low, high in ((1024, 64, 3, 1, 16), (4096, 64, 3, 1, 16), (1280, 64, 3, 1, 10), (768, 64, 3, 1, 11), (512, 64, 2, 1, 7)):
        plan, blocks = zoo.bigbird_plan(length, size, random, heads=3, seed=1), length // size
        assert plan.shape == (3, blocks, random) and (plan[:, [0, -1]] == -1).all()
        for i in range(1, blocks - 1):
            for h in range(3):
                row = plan[h, i][plan[h, i] >= 0]
                assert len(set(row)) == len(row) and (abs(row - i) > 1).all() and (row >= low).all()
                assert (row < (high if length != 768 else blocks - 1)).all(), (length, i, row)
        assert (zoo.bigbird_plan(length, size, random, heads=5, seed=1)[:3] == plan).all() and (zoo.bigbird_plan(length, size, random, 3, 2) != plan).any()
    half = zoo.bigbird_plan(640, 64, 3, heads=2)  # 10 blocks: more than 3 + 5, not more than 2 * 3 + 5
    assert all((0 < row[:1]).all() and (row[:1] < 8).all() for row in half[:, 1:-1].reshape(-1, 3)[:, :1])


def test_bigbird_takes_a_released_plan():
    plan = np.random.default_rng(0).integers(0, 13, (2, 11, 3))  # as transformers stores it, without the global rows
    p = zoo.bigbird(104, 8, plan=plan)
    found = p.dense(104, heads=2)[0, :, ::8, ::8].numpy()
    wanted = np.stack([bigbird_blocks(104, 1, 1)] * 2)
    for h in range(2):
        for i in range(11):
            wanted[h, i + 1, plan[h, i]] = True
    assert (found == wanted).all()
    assert pc.parse(str(p), **named_data(p)) is p
    with pytest.raises(ParameterError, match="the plan has 11 rows, and 128 tokens are 16 blocks"):
        zoo.bigbird(128, 8, plan=plan)
    named = zoo.bigbird(plan=pc.table(np.pad(plan, [(0, 0), (1, 1), (0, 0)]), name="plan"), size=8)
    assert 'block_table(table("plan"), 8)' in str(named)


def test_the_four_pieces_of_etc():
    pieces = [zoo.etc(9, 12, piece).dense(N) for piece in ("g2g", "g2l", "l2g", "l2l")]
    assert (sum(x.int() for x in pieces) == zoo.etc(9, 12).dense(N).int()).all()


def test_s2_attn_is_the_released_roll():
    q, k, v = torch.randn(3, 1, 2, 96, 8, dtype=torch.float64).unbind(0)

    def grouped(q, k, v, g):
        parts = [x.unflatten(1, (-1, g)) for x in (q, k, v)]
        return torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True).flatten(1, 2)

    rolled = grouped(*(x[:, 1].roll(-12, 1) for x in (q, k, v)), 24).roll(12, 1)
    wanted = torch.stack([grouped(q[:, 0], k[:, 0], v[:, 0], 24), rolled], 1)
    p = zoo.s2_attn(24, 2)
    torch.testing.assert_close(pc.compile(p, "cpu")(q, k, v), wanted)
    ends = [(0, 12), (12, 84), (84, 96)]  # the FlashAttention path cuts groups in half there
    cut = torch.cat([grouped(*(x[:, 1, a:b] for x in (q, k, v)), min(24, b - a)) for a, b in ends], 1)
    flash = pc.compile(zoo.s2_attn(24, 2, "flash"), "cpu")(q, k, v)
    torch.testing.assert_close(flash, torch.stack([wanted[:, 0], cut], 1))
    leaks = (p.dense(96, heads=2) & ~pc.causal.dense(96)).any(-1)[0, 1].nonzero().flatten().tolist()
    assert leaks == list(range(12)) and not (zoo.s2_attn(24, 2, "leak_free").dense(96, heads=2) & ~pc.causal.dense(96)).any()


# every entry


@every
def test_text(e):
    for p in (e.example(), e.at(16384)):
        assert pc.parse(str(p), **named_data(p)) is p


@every
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_forward_and_backward(e, backend):
    zoo_case(e, backend, "cpu", torch.float32)


@every
def test_documented(e):
    doc = e.function.__doc__
    assert "Source:" in doc and "The trap:" in doc
    for parameter in {**e.small, **e.options(16384)}:
        assert parameter in doc, parameter


@every
def test_oracles_exist(e):
    """The named test is there and calls the entry's function, itself or through what its file defines."""
    if e.oracle.startswith("none: "):
        assert len(e.oracle) > len("none: "), "the reason is missing"
        return
    file, test = e.oracle.split("::")
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    defined = {name: node for node in tree.body for name in _names(node)}
    reached, ahead = set(), [test]
    while ahead:
        name = ahead.pop()
        if name in defined and name not in reached:
            reached.add(name)
            ahead += [x.id for x in ast.walk(defined[name]) if isinstance(x, ast.Name)]
            ahead += [x.value for d in getattr(defined[name], "decorator_list", []) for x in ast.walk(d) if isinstance(x, ast.Constant)]
    used = {x.attr for name in reached for x in ast.walk(defined[name]) if isinstance(x, ast.Attribute) and ast.unparse(x.value) in ("zoo", "pc.zoo")}
    assert test in defined and e.function.__name__ in used, f"{e.oracle} does not call pc.zoo.{e.function.__name__}"


def _names(node):
    """What a statement of a module defines."""
    targets = getattr(node, "targets", [])
    return [node.name] if isinstance(node, ast.FunctionDef) else [x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)]


def test_all_functions_are_in_the_registry():
    used = {e.function for e in (*ENTRIES, *LINEAR.values())}
    public = {f for name, f in vars(zoo).items() if callable(f) and name not in ("of_layers", "bigbird_plan")}
    assert public == used and len(NAMES) == len(ENTRIES)
    assert {*DEFINITIONS} | {"bigbird", "bigbird_released", "bigbird_etc", "neighborhood_1d", "neighborhood_2d", "neighborhood_3d"} == {*NAMES}


def test_layers():
    assert zoo.of_layers(zoo.gemma3, 8, window=512) == f"{'causal & window(512)':<32} layers 0-4, 6-7\n{'causal':<32} layers 5"
    assert zoo.gemma2(0) is zoo.mistral() and zoo.gemma2(1) is pc.causal and zoo.gpt_neo(0) is pc.causal and zoo.gpt_oss(1) is pc.causal
    assert zoo.modernbert(0) is zoo.modernbert(3) is pc.full and zoo.llama4(3) is pc.causal and zoo.gemma3(5) is pc.causal


def test_every_other_head_has_a_summary_and_all_summaries_occur():
    p, x = zoo.fixed(16, 2, 2, use="heads").dense(64, heads=4)[0], pc.k % 16
    for h, columns in ((1, (x >= 14)), (3, (x >= 12) & (x < 14))):
        assert (p[h] == (pc.causal & columns).dense(64)[0, 0]).all()


def test_released_rules_differ_at_2048_tokens():
    plans = [zoo.bigbird_plan(2048, rule=rule) for rule in ("transformers", "google")]
    assert [int(plan.max()) for plan in plans] == [9, 15] and str(zoo.bigbird(2048, rule="google")) != str(zoo.bigbird(2048))
    assert (zoo.bigbird_plan(4096) == zoo.bigbird_plan(4096, rule="google")).all()
