"""Models that gather blocks of keys: their masks by derivatives, since what they report as weights is laid out in blocks."""

import numpy as np
import pytest
import torch
from oracles import HEADS, SMALL, VOCABULARY, agree, build, gradients, masks, times, tokens

import patternc as pc

arg, zoo = pc.arg, pc.zoo


@pytest.mark.parametrize("padded", [False, True])
def test_longformer(padded):
    """A window per layer, different global tokens per row; global rows have projections of their own."""
    n, widths = 24, [4, 8]
    model = build("LongformerConfig", "LongformerModel", **SMALL | dict(attention_window=widths), type_vocab_size=1)
    mask = torch.arange(n) < torch.tensor([[n - 5 if padded else n], [n]])
    chosen = torch.zeros(2, n, dtype=torch.bool)
    chosen[0, [0, 7, 18]], chosen[1, 3] = True, True
    inputs = dict(input_ids=tokens(2, n), attention_mask=mask.long(), global_attention_mask=chosen.long())
    for layer, width in zip(model.encoder.layer, widths):
        attention, output = layer.attention.self, layer.attention.output.dense
        found = sum(gradients(model, [attention.value, attention.value_global], output, length_first=True, **inputs))
        agree(found > 0, zoo.longformer(width) & pc.valid(arg("mask")), queries=mask, tokens=chosen, mask=mask)
        assert torch.allclose(found.sum(-1), mask[:, None].float().expand_as(found[..., 0]))


def test_longformer_without_global_tokens():
    """What is left is the two-sided window of encoders."""
    model = build("LongformerConfig", "LongformerModel", **SMALL | dict(attention_window=6, num_hidden_layers=1), type_vocab_size=1)
    attention = model.encoder.layer[0].attention
    (found,) = gradients(model, [attention.self.value], attention.output.dense, length_first=True, input_ids=tokens(2, 24))
    for pattern in (zoo.longformer(6, global_tokens=0), zoo.sliding_window(6, "encoder")):
        agree(found > 0, pattern)


def test_longformer_counts_once():
    """A global key inside the window is one key."""
    n = 24
    model = build("LongformerConfig", "LongformerModel", **SMALL | dict(attention_window=8, num_hidden_layers=1), type_vocab_size=1)
    attention = model.encoder.layer[0].attention
    silence(attention.self.query, attention.self.query_global)
    chosen = torch.zeros(1, n, dtype=torch.long)
    chosen[0, [3, 4]] = 1
    values = [attention.self.value, attention.self.value_global]
    found = sum(gradients(model, values, attention.output.dense, length_first=True, input_ids=tokens(1, n), global_attention_mask=chosen))
    agree(times(found) == 1, zoo.longformer(8), tokens=chosen.bool())


def silence(*projections):
    """All scores become zero."""
    for projection in projections:
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.zeros_(projection.bias)


def bigbird_model(block, count, length, **options):
    sizes = SMALL | dict(max_position_embeddings=length, num_random_blocks=count, block_size=block) | options
    model = build("BigBirdConfig", "BigBirdModel", **sizes, attention_type="block_sparse")
    return model, [layer.attention for layer in model.encoder.layer]


def draw(layer, block, count, blocks, length=None):
    """int [H, blocks, count]: the blocks that a layer draws while it is trained, -1 for none; the layer's number is the seed."""
    attention = layer.self
    np.random.seed(attention.seed)
    if length:  # drawn for the longest input, from the first 1024 tokens, and cut
        lists = [attention._bigbird_block_rand_mask(length, length, block, block, count, last_idx=1024)[: blocks - 2] for _ in range(HEADS)]
    else:
        plan = attention._get_rand_attn_plan(blocks * block, block, count)
        lists = attention._bigbird_block_rand_mask_with_head(blocks * block, blocks * block, block, block, HEADS, *plan)
    return np.pad(np.stack(lists), ((0, 0), (1, 1), (0, 0)), constant_values=-1)


def test_bigbird():
    """Trained: each layer and head draws its blocks, from a seed."""
    block, count, blocks = 4, 2, 12
    n = block * blocks
    model, layers = bigbird_model(block, count, 128)
    model.train()
    tables = [draw(layer, block, count, blocks) for layer in layers]
    assert not np.array_equal(*tables) and not np.array_equal(*tables[0][:2])
    mask = torch.arange(n) < torch.tensor([[n], [n - 9]])
    for layer, drawn in zip(layers, tables):
        values, output = [layer.self.value], layer.output.dense
        (found,) = gradients(model, values, output, input_ids=tokens(2, n))
        agree(found > 0, zoo.bigbird(n, block, plan=drawn))
        (found,) = gradients(model, values, output, input_ids=tokens(2, n), attention_mask=mask.long())
        agree(found > 0, zoo.bigbird(n, block, plan=drawn) & pc.valid(arg("mask")), queries=mask, mask=mask)


# length, tokens a block, draws: of many blocks, of a few more than draws, of as few as possible, and the lengths planned by hand.
PLANS = [(48, 4, 2), (84, 4, 8), (28, 4, 2), (1024, 64, 3), (2048, 64, 3), (3072, 64, 2)]


@pytest.mark.parametrize("length, block, count", PLANS)
def test_bigbird_plans(length, block, count):
    """Draws by our own generator: those of the model have the same candidates, and as many, in every row."""
    model, (layer,) = bigbird_model(block, count, 4096, num_hidden_layers=1)
    model.train()
    blocks, rounds = length // block, 60
    theirs, ours = [], []
    for seed in range(rounds):
        layer.self.seed = seed
        theirs.append(draw(layer, block, count, blocks, 4096 if length in (1024, 3072) else None))
        ours.append(zoo.bigbird_plan(length, block, count, HEADS, seed))
    assert zoo.bigbird(length, block, count, HEADS, seed) is zoo.bigbird(length, block, plan=ours[-1])
    for row in range(blocks):
        seen = [np.stack(plans)[:, :, row] for plans in (theirs, ours)]
        assert len({frozenset(x.ravel().tolist()) for x in seen}) == 1, (row, *map(np.unique, seen))
        assert len({frozenset((x >= 0).sum(-1).ravel().tolist()) for x in seen}) == 1, row


def test_bigbird_in_evaluation():
    """Nothing is drawn: the model takes block 0 each time, which is there already and so counts 1 + count times."""
    block, count, blocks = 4, 2, 12
    model, (layer, _) = bigbird_model(block, count, 128)
    silence(layer.self.query)
    (found,) = gradients(model, [layer.self.value], layer.output.dense, input_ids=tokens(1, block * blocks))
    agree(found > 0, zoo.bigbird(size=block, random=0))
    again = (block <= pc.q) & (pc.q < block * (blocks - 1)) & pc.sink(block)
    assert torch.equal(times(found), (found > 0).int() + count * again.dense(block * blocks, heads=HEADS).int())


def test_bigbird_of_few_blocks():
    """Up to 5 + 2 count blocks the model attends to everything."""
    model, _ = bigbird_model(4, 2, 128)
    for seen in masks(model, input_ids=tokens(1, 36)):
        agree(seen, pc.full)


def test_bigbird_counts_twice():
    """At 1024 tokens the last block may be drawn although it is global; it then counts twice.  One query of each block is looked at."""
    block, count, blocks, length = 64, 3, 16, 4096
    model, (layer,) = bigbird_model(block, count, length, num_hidden_layers=1)
    silence(layer.self.query)
    model.train()
    drawn = draw(layer, block, count, blocks, length)
    rows = range(5, block * blocks, block)
    (found,) = gradients(model, [layer.self.value], layer.output.dense, rows=rows, input_ids=tokens(1, block * blocks))
    once = zoo.bigbird(size=block, random=0).dense(block * blocks, heads=HEADS)[:, :, rows]
    again = (torch.from_numpy(drawn)[..., None] == torch.arange(blocks)).sum(-2)
    expected = once.int() + again.repeat_interleave(block, -1).int()
    assert torch.equal(times(found), expected)
    assert set(expected.unique().tolist()) == {0, 1, 2} and (expected[..., -block:] == 2).any()


def longt5(kind, radius, **options):
    sizes = dict(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_heads=HEADS, num_layers=2, local_radius=radius, dropout_rate=0.0)
    model = build("LongT5Config", "LongT5EncoderModel", **sizes, encoder_attention_type=kind, **options)
    return model, [layer.layer[0] for layer in model.encoder.block]


@pytest.mark.parametrize("kind", ["local", "transient-global"])
@pytest.mark.parametrize("radius, n", [(3, 24), (4, 23)])
def test_longt5(kind, radius, n):
    """The radius is exact although keys are gathered by blocks; with summaries each query sees all of these besides."""
    model, layers = longt5(kind, radius, global_block_size=4)
    mask = torch.arange(n) < torch.tensor([[n], [n - 6]])
    for layer in layers:
        attention = next(layer.children())
        for inputs, valid in (({}, pc.full), (dict(attention_mask=mask.long()), pc.valid(arg("mask")))):
            found = gradients(model, [attention.v], attention.o, input_ids=tokens(2, n), **inputs)
            agree(found[0] > 0, zoo.longt5_local(radius) & valid, queries=mask if inputs else None, **dict(mask=mask) if inputs else {})
            if kind == "transient-global":
                assert found[1].shape[-1] == n // 4 and (found[1] > 0)[0].all()


def test_longt5_without_a_mask():
    """A layer that is called without a mask does not cut blocks to the radius."""
    model, (layer, _) = longt5("local", 3)
    attention = layer.LocalSelfAttention
    (found,) = gradients(attention, [attention.v], attention.o, hidden_states=torch.randn(1, 24, 32))
    agree(found > 0, zoo.longt5_local(3, masked=False))


@pytest.mark.parametrize("causal", [False, True])
def test_reformer_local(causal):
    sizes = dict(vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=HEADS, attention_head_size=8, feed_forward_size=32)
    sizes |= dict(attn_layers=["local"], local_attn_chunk_length=5, axial_pos_embds=False, max_position_embeddings=64)
    model = build("ReformerConfig", "ReformerModel", **sizes, is_decoder=causal, local_num_chunks_before=1, local_num_chunks_after=0)
    attention = model.encoder.layers[0].attention
    (found,) = gradients(attention, [attention.self_attention.value], attention.output.dense, hidden_states=torch.randn(2, 25, 32))
    agree(found > 0, zoo.reformer_local(5, causal))
