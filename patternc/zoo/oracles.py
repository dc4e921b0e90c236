"""Beside which test each entry of the zoo is held: a comparison with a model or with released code, or why there is none."""

MODELS, BLOCKS, MASKS = "test_oracles.py::test_", "test_oracles_blocks.py::test_", "test_oracles_masks.py::test_masking_utils"
ROLL = "test_zoo.py::test_s2_attn_is_the_released_roll"

TESTED = {
    **{name: f"{MODELS}{name}" for name in ("mistral", "gemma2", "gemma3", "gemma3_images", "gemma3_bidirectional", "gpt_neo", "modernbert")},
    **{name: f"{MODELS}{name}" for name in ("llama4", "gpt_oss", "prefix_lm")},
    "llama4_padded": f"{MODELS}llama4",
    **{name: f"{BLOCKS}{name}" for name in ("longformer", "reformer_local")},
    "sliding_window_encoder": f"{BLOCKS}longformer_without_global_tokens",
    "longt5_local": f"{BLOCKS}longt5",
    "longt5_unmasked": f"{BLOCKS}longt5_without_a_mask",
    "bigbird_released": f"{BLOCKS}bigbird_plans",
    **dict.fromkeys(("sliding_window", "sliding_window_two_sided", "packed", "packed_local", "image_blocks"), MASKS),
    **dict.fromkeys(("s2_attn", "s2_attn_flash"), ROLL),
}

UNTESTED = {
    "released for TensorFlow": ("strided", "strided_heads", "fixed", "fixed_heads", "etc", "etc_hard", "biblosan", "biblosan_backward"),
    "released for JAX": ("sliding_window_rattention",),
    "released as patches of old transformers": ("streaming_llm", "lm_infinite"),
    "no code was released": ("blockbert",),
    "the released code is the internal construction": ("bigbird_etc",),
    "its kernels run on GPUs only": ("sliding_window_flash",),
    "xformers has dropped it": ("blockwise", "overlapping_blocks"),
    "transformers has no dilation": ("longformer_dilated",),
    "no model of transformers packs prefixes": ("prefix_lm_documents",),
    "NATTEN is no dependency of the tests": ("neighborhood_1d", "neighborhood_2d", "neighborhood_3d"),
    "its code is no dependency of the tests": ("routing_local",),
    "random blocks of our own": ("bigbird",),
    "a repair of our own": ("s2_attn_leak_free",),
}

ORACLES = TESTED | {name: f"none: {reason}" for reason, names in UNTESTED.items() for name in names}
