"""The mask functions of transformers.masking_utils, which its newer models share, beside patterns."""

import pytest
import torch
from oracles import GROUPED, agree

import patternc as pc

arg, zoo, q, k = pc.arg, pc.zoo, pc.q, pc.k

N, WINDOW, CHUNK = 23, 5, 6
START = torch.tensor([0, 4, 10])
MASK = torch.arange(N) >= START[:, None]
IDS = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in ([9, 1, 6, 7], [4, 19], [23])])
PLACE = torch.stack([torch.cat([torch.arange(int(length)) for length in row.bincount()]) for row in IDS])
IMAGES = torch.full((3, N), -1)
IMAGES[0, 3:12], IMAGES[0, 12:18], IMAGES[1, 0:8] = 0, 1, 0

sliding, chunked, images, packed = zoo.sliding_window(WINDOW), zoo.llama4(chunk=CHUNK), zoo.image_blocks(), zoo.packed()
shifted = zoo.llama4(chunk=CHUNK, left_padding=True)  # chunks counted from each row's first token
padded, imaged, ids, place, start = dict(mask=MASK), dict(images=IMAGES), dict(document=IDS), dict(position=PLACE), dict(padding=START)
valid = pc.valid(arg("mask"))
odd = lambda b, h, q, k: (q + k) % 3 == b  # somebody's own mask function

# function of masking_utils, its options, the pattern, the pattern's args
CASES = [
    ("causal", {}, pc.causal, {}),
    ("causal", dict(attention_mask=MASK), pc.causal & valid, padded),
    ("causal", dict(position_ids=PLACE), packed, ids),
    ("causal", dict(block_sequence_ids=IMAGES), images, imaged),
    ("causal", dict(block_sequence_ids=IMAGES, attention_mask=MASK), images & valid, imaged | padded),
    ("causal", dict(or_mask_function=odd), pc.causal | ((q + k) % 3 == pc.b), {}),
    ("causal", dict(and_mask_function=odd), pc.causal & ((q + k) % 3 == pc.b), {}),
    ("sliding_window_causal", {}, sliding, {}),
    ("sliding_window_causal", dict(attention_mask=MASK), sliding & valid, padded),
    ("sliding_window_causal", dict(position_ids=PLACE), zoo.packed(sliding), ids | place),
    # The window does not cut images here, unlike in Gemma 3.
    ("sliding_window_causal", dict(block_sequence_ids=IMAGES), zoo.image_blocks(sliding), imaged),
    ("chunked_causal", {}, chunked, {}),
    ("chunked_causal", dict(attention_mask=MASK), shifted, start),
    ("chunked_causal", dict(position_ids=PLACE), zoo.packed(chunked), ids | place),
    ("bidirectional", dict(allow_is_bidirectional_skip=False), pc.full, {}),
    ("bidirectional", dict(attention_mask=MASK), valid, padded),
    # Both ends of the window count, unlike under a causal mask.
    ("bidirectional_sliding_window", {}, zoo.sliding_window(WINDOW, causal_only=False), {}),
    ("bidirectional_sliding_window", dict(attention_mask=MASK), zoo.sliding_window(WINDOW, causal_only=False) & valid, padded),
]  # fmt: skip


def made(name: str, n: int = N, past=None, **options) -> torch.Tensor:
    """bool [B, 1, n, n_k]: where a `create_*_mask` adds nothing to the scores."""
    from transformers import MistralConfig, masking_utils

    config = MistralConfig(**GROUPED, sliding_window=WINDOW, attn_implementation="eager")
    config.attention_chunk_size = CHUNK
    options = dict(attention_mask=None) | options | dict(config=config, inputs_embeds=torch.zeros(3, n, 32), past_key_values=past)
    return getattr(masking_utils, f"create_{name}_mask")(**options) == 0


@pytest.mark.parametrize("name, options, pattern, args", CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x) if isinstance(x, dict) else "")
def test_masking_utils(name, options, pattern, args):
    agree(made(name, **options), pattern, **args)


@pytest.mark.parametrize("name, pattern", [("causal", pc.causal), ("sliding_window_causal", sliding), ("chunked_causal", chunked)])
def test_masking_utils_with_earlier_keys(name, pattern):
    from transformers import DynamicCache

    past = DynamicCache()
    past.update(torch.zeros(3, 2, N - 7, 8), torch.zeros(3, 2, N - 7, 8), 0)
    seen = made(name, n=7, past=past)
    assert seen.shape == (3, 1, 7, N)
    agree(seen, pattern)
    wanted, args = (shifted, start) if pattern is chunked else (pattern & valid, padded)
    agree(made(name, n=7, past=past, attention_mask=MASK), wanted, **args)
