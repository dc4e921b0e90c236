"""The layers of models that alternate between a window and everything: one function a model, one pattern a layer."""

from __future__ import annotations

from patternc.expr.index import arg
from patternc.expr.pattern import FULL, Pattern
from patternc.primitives import block, causal, k, q
from patternc.zoo.checks import whole, wrong
from patternc.zoo.packing import image_blocks
from patternc.zoo.windows import sliding_window


def mistral(window: int = 4096) -> Pattern:
    """Every layer of Mistral 7B: `window` keys including the query's own.

    Source: Jiang et al. 2023; transformers `MistralModel`.  Default: a window of 4096.
    The trap: a cache that rolls keeps `window` keys with the query's own, not `window` before it.
    """
    return sliding_window(whole("mistral", "window", window, 1))


def gemma2(layer: int = 0, window: int = 4096) -> Pattern:
    """Gemma 2: layers 0, 2, 4, .. slide, the others are full.

    Source: Gemma team 2024; transformers `Gemma2Config.layer_types`.

    Args:
        layer: number of the layer.
        window: keys including the query's own, 4096.
    The trap: the scores are capped (softcap 50), which is no part of a pattern.
    """
    layer = whole("gemma2", "layer", layer, 0)
    return sliding_window(whole("gemma2", "window", window, 1)) if layer % 2 == 0 else causal


def gemma3(layer: int = 0, window: int = 512, every: int = 6, images: bool = False, bidirectional: bool = False) -> Pattern:
    """Gemma 3: of `every` layers the last is full, the others slide.

    Source: Gemma team 2025; transformers `Gemma3TextConfig`, `Gemma3Model`.

    Args:
        layer: number of the layer.
        window: keys including the query's own; released models have 512 (1B) and 1024, the configuration's default is 4096.
        every: 5 sliding layers, then a full one.
        images: tokens of one image see each other, by the arg `images` (an id for each token, negative for text).
        bidirectional: the embedding variant, without causality and without images.
    The trap: the embedding variant rewrites its window to window // 2 + 1, so `window` counts both sides there; images are cut by
    the window of sliding layers.
    """
    if images and bidirectional:
        raise wrong("gemma3", "the bidirectional variant is a text model", "drop `images` or `bidirectional`")
    layer, window, every = whole("gemma3", "layer", layer, 0), whole("gemma3", "window", window, 1), whole("gemma3", "every", every, 1)
    sliding = (layer + 1) % every != 0
    if bidirectional:
        return sliding_window(window // 2, "hf", causal_only=False) if sliding and window > 1 else FULL if not sliding else q == k
    seen = image_blocks() if images else causal
    if not sliding:
        return seen
    return seen & (q - k < window) if images else sliding_window(window)


def gpt_neo(layer: int = 0, window: int = 256) -> Pattern:
    """GPT-Neo: layers 1, 3, 5, .. slide, the others are full.

    Source: Black et al. 2021; transformers `GPTNeoConfig.attention_types`.

    Args:
        layer: number of the layer.
        window: keys including the query's own, 256.
    The trap: it starts with a full layer, unlike Gemma 2; and scores have no factor 1/sqrt(d).
    """
    layer = whole("gpt_neo", "layer", layer, 0)
    return sliding_window(whole("gpt_neo", "window", window, 1)) if layer % 2 else causal


def modernbert(layer: int = 0, window: int = 128, every: int = 3) -> Pattern:
    """ModernBERT: layers 0, 3, 6, .. are full, the others see `window // 2` keys on each side.

    Source: Warner et al. 2024; transformers `ModernBertConfig.local_attention`.

    Args:
        layer: number of the layer.
        window: the full width, 128.
        every: of so many layers the first is full, 3.
    The trap: `window` 128 is 129 keys: 64 on each side and the query's own.
    """
    layer, every = whole("modernbert", "layer", layer, 0), whole("modernbert", "every", every, 1)
    window = whole("modernbert", "window", window, 1)
    return FULL if layer % every == 0 else sliding_window(window, "encoder")


def llama4(layer: int = 0, chunk: int = 8192, every: int = 4, left_padding: bool = False) -> Pattern:
    """Llama 4: three of four layers are causal inside chunks, every fourth is causal over everything.

    Source: Meta 2025; transformers `chunked_causal_mask_function`.

    Args:
        layer: number of the layer.
        chunk: tokens a chunk, 8192.
        every: of so many layers the last is full.
        left_padding: chunks start at the first valid token: by the arg `padding`, an int or one for each batch row.
    The trap: the first token of a chunk sees only itself; with left padding chunks move along with each row.
    """
    layer, chunk, every = whole("llama4", "layer", layer, 0), whole("llama4", "chunk", chunk, 1), whole("llama4", "every", every, 1)
    chunks = block(chunk) if (layer + 1) % every else FULL
    if not left_padding:
        return causal & chunks
    return causal & chunks.shift(arg("padding")) & (k >= arg("padding"))


def gpt_oss(layer: int = 0, window: int = 128) -> Pattern:
    """gpt-oss: layers 0, 2, 4, .. slide, the others are full.

    Source: OpenAI 2025; transformers `GptOssConfig.layer_types`.

    Args:
        layer: number of the layer.
        window: keys including the query's own, 128.
    The trap: its learned sink is a logit in the softmax's denominator and no key, so it is no part of the pattern.
    """
    layer = whole("gpt_oss", "layer", layer, 0)
    return sliding_window(whole("gpt_oss", "window", window, 1)) if layer % 2 == 0 else causal


def of_layers(build, layers: int, **options) -> str:
    """The patterns of a model's layers as a table: runs of layers with the same pattern share a line.

    `print(pc.zoo.of_layers(pc.zoo.gemma3, 26))`.
    """
    texts = [str(build(layer, **options)) for layer in range(whole("of_layers", "layers", layers, 1))]
    kinds = {text: [i for i, t in enumerate(texts) if t == text] for text in texts}
    return "\n".join(f"{text:<32} layers {_listed(numbers)}" for text, numbers in kinds.items())


def _listed(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for x in numbers:
        if spans and x == spans[-1][1] + 1:
            spans[-1][1] = x
        else:
            spans.append([x, x])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
