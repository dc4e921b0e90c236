"""Patterns beside the attention weights of the models that they are named after."""

import pytest
import torch
from oracles import GROUPED, HEADS, SMALL, VOCABULARY, agree, build, gradients, masks, tokens, weights

import patternc as pc
from patternc.args import signature

arg, zoo = pc.arg, pc.zoo
valid = pc.valid(arg("mask"))

# The pattern of a model's layer.
EXPECTED = {
    "mistral": lambda layer, window: zoo.mistral(window),
    "gemma2": zoo.gemma2,
    "gemma3": zoo.gemma3,
    "gemma3 bidirectional": lambda layer, window: zoo.gemma3(layer, window, bidirectional=True),
    "gemma3 images": lambda layer, window: zoo.gemma3(layer, window, images=True),
    "gpt_neo": zoo.gpt_neo,
    "modernbert": zoo.modernbert,
    "modernbert padded": lambda layer, window: zoo.modernbert(layer, window) & valid,
    "llama4": zoo.llama4,
    "llama4 padded": lambda layer, chunk: zoo.llama4(layer, chunk, left_padding=True),
    "llama4 packed": lambda layer, chunk: zoo.packed(zoo.llama4(layer, chunk)),
    "gpt_oss": zoo.gpt_oss,
    "documents": lambda layer, window: zoo.packed() & zoo.mistral(window),
    "left_padding": lambda layer, window: zoo.mistral(window) & valid,
    "prefix_lm": lambda layer, _: zoo.prefix_lm(),
}

N = 23
LENGTHS = [[9, 1, 6, 7], [4, 19]]  # of packed documents
IDS = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS])
PLACE = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])
START = torch.tensor([0, 4, 10])  # of rows with padding to the left
MASK = torch.arange(N) >= START[:, None]
DECODERS = {
    "mistral": ("MistralConfig", "MistralModel", GROUPED),
    "gemma2": ("Gemma2Config", "Gemma2Model", GROUPED | dict(num_hidden_layers=4)),
    "gemma3": ("Gemma3TextConfig", "Gemma3TextModel", GROUPED | dict(num_hidden_layers=7)),
    "llama4": ("Llama4TextConfig", "Llama4TextModel", GROUPED | dict(num_hidden_layers=5, intermediate_size_mlp=32, num_local_experts=2)),
    "gpt_oss": ("GptOssConfig", "GptOssModel", GROUPED | dict(num_hidden_layers=3, num_local_experts=2, num_experts_per_tok=1)),
}  # fmt: skip


def decoder(name, **options):
    config, model, sizes = DECODERS[name]
    return build(config, model, **sizes | options)


def compare(seen, name, size=None, queries=None, **args):
    """The masks of a model's layers beside the patterns of that name."""
    patterns = [EXPECTED[name](layer, size) for layer in range(len(seen))]
    assert patterns[0] in patterns[1:], "too few layers to see the order"
    for mask, pattern in zip(seen, patterns):
        agree(mask, pattern, queries, **{key: value for key, value in args.items() if key in signature(pattern)})


@pytest.mark.parametrize("window", [1, 5, N, 40])
def test_mistral(window):
    compare(masks(decoder("mistral", sliding_window=window), input_ids=tokens(2, N)), "mistral", window)


def test_gemma2():
    compare(masks(decoder("gemma2", sliding_window=5), input_ids=tokens(2, N)), "gemma2", 5)


def test_gemma3():
    compare(masks(decoder("gemma3", sliding_window=5), input_ids=tokens(2, N)), "gemma3", 5)


@pytest.mark.parametrize("window", [5, 6])
def test_gemma3_bidirectional(window):
    model = decoder("gemma3", sliding_window=window, use_bidirectional_attention=True)
    compare(masks(model, input_ids=tokens(2, N)), "gemma3 bidirectional", window)


VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)


def test_gemma3_images():
    """Rows with two images, with one and with none; the vision tower is not run."""
    ids = torch.full((3, N), -1)
    ids[0, 3:12], ids[0, 15:18], ids[1, 0:8] = 0, 1, 0
    special = dict(image_token_id=VOCABULARY - 1, boi_token_index=VOCABULARY - 2, eoi_token_index=VOCABULARY - 3)
    text = GROUPED | dict(num_hidden_layers=7, sliding_window=5)
    model = build("Gemma3Config", "Gemma3Model", text_config=text, vision_config=VISION, mm_tokens_per_image=4, **special)
    seen = masks(model, input_ids=tokens(3, N), token_type_ids=(ids >= 0).long(), use_cache=False)
    compare(seen, "gemma3 images", 5, images=ids)


def test_gpt_neo():
    sizes = dict(vocab_size=VOCABULARY, hidden_size=32, num_layers=4, num_heads=HEADS, max_position_embeddings=128, use_cache=False)
    model = build("GPTNeoConfig", "GPTNeoModel", **sizes, attention_types=[[["global", "local"], 2]], window_size=5)
    compare(masks(model, input_ids=tokens(2, N)), "gpt_neo", 5)


def test_modernbert():
    model = build("ModernBertConfig", "ModernBertModel", **SMALL | dict(num_hidden_layers=5), local_attention=6, cls_token_id=1, sep_token_id=1)
    compare(masks(model, input_ids=tokens(2, N)), "modernbert", 6)
    mask = torch.arange(N) < torch.tensor([[N], [11]])
    compare(masks(model, input_ids=tokens(2, N), attention_mask=mask), "modernbert padded", 6, queries=mask, mask=mask)


@pytest.mark.parametrize("chunk", [1, 6, 30])
def test_llama4(chunk):
    model = decoder("llama4", attention_chunk_size=chunk)
    compare(masks(model, input_ids=tokens(2, N)), "llama4", chunk)
    compare(masks(model, input_ids=tokens(3, N), attention_mask=MASK), "llama4 padded", chunk, queries=MASK, padding=START)
    compare(masks(model, input_ids=tokens(2, N), position_ids=PLACE), "llama4 packed", chunk, document=IDS, position=PLACE)


def test_gpt_oss():
    """The sink takes a part of each row's weight; it is no key."""
    found = weights(decoder("gpt_oss", sliding_window=5), input_ids=tokens(2, N))
    compare([w > 0 for w in found], "gpt_oss", 5)
    assert all((w.sum(-1) < 0.99).all() for w in found)


def test_documents():
    """Position ids that start again start a document; a window is the same in it as in the row."""
    compare(masks(decoder("mistral", sliding_window=5), input_ids=tokens(2, N), position_ids=PLACE), "documents", 5, document=IDS)


def test_left_padding():
    """A window counts positions, padding too.  Rows of padding, which have no key, are whatever the model makes of them."""
    seen = masks(decoder("mistral", sliding_window=5), input_ids=tokens(3, N), attention_mask=MASK)
    compare(seen, "left_padding", 5, queries=MASK, mask=MASK)
    assert torch.equal(EXPECTED["left_padding"](0, 5).dense(N, batch=3, mask=MASK)[:, 0].any(-1), MASK)


def test_prefix_lm():
    """PaliGemma: token type 0 is the prefix."""
    text = GROUPED | dict(model_type="gemma")
    vision = VISION | dict(model_type="siglip_vision_model", projection_dim=32)
    model = build("PaliGemmaConfig", "PaliGemmaModel", text_config=text, vision_config=vision, projection_dim=32, image_token_id=VOCABULARY - 1)
    length = torch.tensor([0, 7, N])
    suffix = (torch.arange(N) >= length[:, None]).long()
    compare(masks(model, input_ids=tokens(3, N), token_type_ids=suffix, use_cache=False), "prefix_lm", prefix=length)


@pytest.mark.parametrize("name, size", [("mistral", "sliding_window"), ("gemma3", "sliding_window"), ("llama4", "attention_chunk_size")])
def test_cache(name, size):
    """With keys of earlier calls queries are the last positions; what a layer has forgotten of them was not allowed."""
    model, ids, past = decoder(name, **{size: 5}), tokens(2, N), None
    for first, last in ((0, 14), (14, 21), (21, 22), (22, N)):
        with torch.no_grad():
            out = model(input_ids=ids[:, first:last], past_key_values=past, use_cache=True, output_attentions=True)
        past = out.past_key_values
        compare([torch.nn.functional.pad(w > 0, (last - w.shape[-1], 0)) for w in out.attentions], name, 5)


def test_weights_are_derivatives():
    """The two oracles agree: the weights that a model reports are those that it uses."""
    model = decoder("mistral", sliding_window=5, num_key_value_heads=HEADS)
    attention = model.layers[0].self_attn
    (found,) = gradients(model, [attention.v_proj], attention.o_proj, input_ids=tokens(2, N))
    torch.testing.assert_close(found, weights(model, input_ids=tokens(2, N))[0])


def test_the_oracle_tells_neighbours_apart():
    seen, sliding = masks(decoder("mistral", sliding_window=5), input_ids=tokens(2, N))[0], zoo.mistral
    for pattern in (sliding(4), sliding(6), pc.window(5), sliding(5) & (pc.h < 3), sliding(5) & (pc.b < 1)):
        with pytest.raises(AssertionError, match="pairs differ"):
            agree(seen, pattern)
