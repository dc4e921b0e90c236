"""The zoo: what is refused, and in which words."""

import numpy as np
import pytest
import torch

import patternc as pc
from patternc import zoo
from patternc.errors import ArgError, DtypeError, ParameterError, PatterncError, ShapeError, UnknownNameError
from patternc.zoo.registry import entry

N = 97


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
    (lambda: zoo.s2_attn(22, 2, length=97), "97 tokens are no whole groups of 22"), (lambda: zoo.fixed(verts=3, heads=4), "verts divides heads"),
    (lambda: zoo.longformer(8, 2, chunked=True), "chunks have no dilation"), (lambda: zoo.gemma3(images=True, bidirectional=True), "text model"),
    (lambda: zoo.sliding_window(5, "rattention", False), "is causal"), (lambda: zoo.packed(3), "`local` is a pattern, got 3"),
    (lambda: zoo.image_blocks("full"), "`text` is a pattern"), (lambda: zoo.bigbird_plan(1000), "1000 tokens are no whole blocks of 64"),
    (lambda: zoo.bigbird(64, 8, plan=[[9]] * 8), "the plan lists block 9, and 64 tokens are 8 blocks"), (lambda: zoo.bigbird(64, 8, rule="gogle"), 'did you mean "google"'),
    (lambda: zoo.bigbird(16, 8, plan=[[1], [1, 0]]), "differ in length"), (lambda: zoo.bigbird(100, 8, plan=[[1]] * 12), "100 tokens are no whole blocks"),
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


@pytest.mark.parametrize("p, heads", [(zoo.s2_attn(8, 4), 2), (zoo.s2_attn(8, 4), 8), (zoo.blockbert(), 16), (zoo.longformer(8, [1, 2], 0), 4)])
def test_the_number_of_heads_is_the_attentions(p, heads):
    q = torch.randn(1, heads, 32, 16)
    with pytest.raises(ShapeError, match=f"there are {heads} query heads"):
        pc.compile(p, "cpu")(q, q, q)
