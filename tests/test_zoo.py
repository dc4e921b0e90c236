"""The zoo: every entry against a definition of its own, pair by pair, and through the backends; texts, parameters, traps."""

import numpy as np
import pytest
import torch
from patterns import zoo_case

import patternc as pc
from patternc import zoo
from patternc.errors import ArgError, DtypeError, ParameterError, PatterncError, ShapeError, UnknownNameError
from patternc.printing import named_data
from patternc.zoo.registry import ENTRIES, NAMES, entry

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
    from pathlib import Path

    file, test = e.oracle.split("::")
    path = Path(__file__).parent / file
    if path.exists():
        assert f"def {test}(" in path.read_text(encoding="utf-8") or file == "test_oracles.py", e.oracle


def test_all_functions_are_in_the_registry():
    used = {e.function for e in ENTRIES}
    public = {f for name, f in vars(zoo).items() if callable(f) and name not in ("of_layers", "bigbird_plan")}
    assert public == used and len(NAMES) == len(ENTRIES)
    assert {*DEFINITIONS} | {"bigbird", "bigbird_released", "bigbird_etc", "neighborhood_1d", "neighborhood_2d", "neighborhood_3d"} == {*NAMES}


def test_layers():
    assert zoo.of_layers(zoo.gemma3, 8, window=512) == f"{'causal & window(512)':<32} layers 0-4, 6-7\n{'causal':<32} layers 5"
    assert zoo.gemma2(0) is zoo.mistral() and zoo.gemma2(1) is pc.causal and zoo.gpt_neo(0) is pc.causal and zoo.gpt_oss(1) is pc.causal
    assert zoo.modernbert(0) is zoo.modernbert(3) is pc.full and zoo.llama4(3) is pc.causal and zoo.gemma3(5) is pc.causal


# mistakes


@pytest.mark.parametrize("build, words", [
    (lambda: zoo.sliding_window(-1), "`size` must be at least 1, got -1"), (lambda: zoo.sliding_window(512, "flash"), "`size` is (left, right)"),
    (lambda: zoo.sliding_window(5, "flsh"), 'did you mean "flash"'), (lambda: zoo.sliding_window((4, -2), "flash"), "`right` must be at least -1"),
    (lambda: zoo.strided(0), "`stride` must be at least 1"), (lambda: zoo.strided(4, "papr"), 'did you mean "paper"'), (lambda: zoo.strided(4, use="all"), "unknown use"),
    (lambda: zoo.fixed(16, 9, 2), "2 summaries of 9 columns do not fit in a block of 16"), (lambda: zoo.fixed(16, 3, block_size=4), "no whole blocks of 4"),
    (lambda: zoo.blockwise(0), "`size` must be at least 1, got 0"), (lambda: zoo.overlapping_blocks(0), "at least 1"), (lambda: zoo.longformer(7), "even, got 7"),
    (lambda: zoo.longformer(8, [1, 0]), "`dilation` must be at least 1, got 0"), (lambda: zoo.blockbert(2, [0, 2]), "a shift of 2 blocks"),
    (lambda: zoo.blockbert(2, []), "lists a shift for each head"), (lambda: zoo.s2_attn(8, 3), "3 is odd"), (lambda: zoo.s2_attn(0, 2), "`group` must be at least 1"),
    (lambda: zoo.bigbird(100, 8), "100 tokens are no whole blocks of 8"), (lambda: zoo.bigbird(random=-1), "`random` must be at least 0"),
    (lambda: zoo.bigbird_etc(128, 60), "60 global tokens are no whole blocks of 64"), (lambda: zoo.etc(piece="l2"), "unknown piece"), (lambda: zoo.etc(-1), "at least 0"),
    (lambda: zoo.neighborhood([8, 8], 9), "does not fit an axis of 8"), (lambda: zoo.biblosan(4, "up"), "unknown direction"), (lambda: zoo.biblosan(0), "at least 1"),
    (lambda: zoo.mistral(0), "at least 1"), (lambda: zoo.gemma3(-1), "`layer` must be at least 0"), (lambda: zoo.gemma3(1.5), "must be an integer, got 1.5"),
    (lambda: zoo.llama4(chunk=0), "`chunk` must be at least 1"), (lambda: zoo.modernbert(every=0), "`every` must be at least 1"), (lambda: zoo.reformer_local(0), "at least 1"),
    (lambda: zoo.streaming_llm(-1), "`sinks` must be at least 0"), (lambda: zoo.longt5_local(-1), "`radius` must be at least 0"), (lambda: entry("bigbrid"), "did you mean `bigbird`"),
    (lambda: zoo.of_layers(zoo.gemma3, 0), "`layers` must be at least 1"), (lambda: zoo.bigbird_plan(0), "`length` must be at least 1"),
    (lambda: zoo.bigbird(104, 8, plan=np.zeros(3, int)), "got shape (3,)"), (lambda: zoo.routing_local(0), "at least 1"), (lambda: zoo.lm_infinite(-1), "at least 0"),
])  # fmt: skip
def test_mistakes(build, words):
    with pytest.raises(PatterncError) as error:
        build()
    assert isinstance(error.value, (ParameterError, UnknownNameError)) and words in str(error.value) and "fix:" in str(error.value), str(error.value)


@pytest.mark.parametrize("name, wrong, error", [
    ("longformer", {"tokens": [0.5]}, DtypeError), ("longformer", {"tokens": torch.ones(96, dtype=torch.bool)}, ShapeError), ("longformer", {}, ArgError),
    ("packed", {"document": torch.zeros(96, dtype=torch.long)}, ShapeError), ("packed", {"document": torch.zeros(97)}, DtypeError), ("packed", {"document": 3}, ShapeError),
    ("prefix_lm", {"prefix": torch.zeros(3, dtype=torch.long)}, ShapeError), ("prefix_lm", {"prefix": 2.5}, DtypeError), ("llama4_padded", {"padding": torch.zeros(97)}, DtypeError),
    ("image_blocks", {"images": torch.zeros(2, 97, dtype=torch.long)}, ShapeError), ("etc_hard", {"segment": torch.zeros(97, 2, dtype=torch.long)}, ShapeError),
    ("s2_attn", {"tokens": 3}, ArgError),
])  # fmt: skip
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_wrong_args_are_caught_before_a_kernel_runs(name, wrong, error, backend):
    e = entry(name)
    q = torch.randn(1, e.heads, N, 16)
    with pytest.raises(error):
        pc.compile(e.example(), backend)(q, q, q, **wrong)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_wrong_values_read_no_memory_and_are_named_on_request(backend):
    q = torch.randn(1, 1, N, 16)
    attn = pc.compile(entry("longformer").example(), backend)
    wild = torch.tensor([5, 97, 2**31 - 1, -3])
    torch.testing.assert_close(attn(q, q, q, tokens=wild), attn(q, q, q, tokens=torch.tensor([5])))  # others are not there
    with pytest.raises(ArgError, match="97|2147483647"):
        attn(q, q, q, tokens=wild, check=True)
    packed = pc.compile(entry("packed_local").example(), backend)
    ids, position = torch.zeros(N, dtype=torch.long), torch.full((N,), 2**31 - 1)
    packed(q, q, q, document=ids, position=position)
    with pytest.raises(ArgError, match="32 bits"):
        packed(q, q, q, document=ids, position=position + 1, check=True)
