"""Every entry of the zoo: what the documentation, the command line, the benchmark and the tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from patternc import zoo
from patternc.errors import UnknownNameError, suggest
from patternc.expr.pattern import Pattern
from patternc.signature import signature
from patternc.zoo.oracles import ORACLES


@dataclass(frozen=True, eq=False)
class Entry:
    """One published pattern.

    Attributes:
        name: of the entry: its function's, or that with a variant behind it.
        function: of `pc.zoo`.
        source: authors, year, and the code it is defined by.
        small: parameters of the example that tests run and pictures show.
        heads: query heads of the small example.
        published: parameters as published, a function of the number of tokens where they depend on it.
        published_heads: how many heads its parts are made for; 1 where all heads are alike.
        oracle: the test that compares it with a model or released code, as `file::test`, or `none: ` and the reason.
        length: tokens of the small example.
        samples: runtime args that differ from those of `SAMPLES`.
    """

    name: str
    function: Callable
    source: str
    small: dict
    oracle: str
    heads: int = 1
    published: dict | Callable[[int], dict] = field(default_factory=dict)
    published_heads: int = 1
    length: int = 97
    samples: dict = field(default_factory=dict)

    def example(self) -> Pattern:
        """The small pattern."""
        return self.function(**self.small)

    def at(self, n: int) -> Pattern:
        """The published pattern for `n` tokens."""
        return self.function(**self.options(n))

    def options(self, n: int) -> dict:
        return self.published(n) if callable(self.published) else self.published

    def args(self, p: Pattern, n: int) -> dict:
        """Runtime args for a pattern of this entry at `n` tokens: two documents in three, a few images, one token in a hundred global."""
        makers = {**SAMPLES, **self.samples}
        return {name: makers[name](n) for name in signature(p)}

    def call(self, options: dict) -> str:
        """The call as Python code."""
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in options.items())
        return f"pc.zoo.{self.function.__name__}({shown})"


def _shown(value) -> str:
    if isinstance(value, Pattern):
        return f'pc.parse("{value}")'
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _document(n: int) -> np.ndarray:
    """Ids of documents of 2/7, 1/3 and the rest of the row."""
    return np.searchsorted([2 * n // 7, 2 * n // 7 + n // 3], np.arange(n), "right")


def _position(n: int) -> np.ndarray:
    ids = _document(n)
    return np.arange(n) - np.searchsorted(ids, ids)


def _images(n: int) -> np.ndarray:
    """Text with two images of a tenth of the row each."""
    ids = np.full(n, -1)
    ids[n // 5 : n // 5 + n // 10] = 0
    ids[n // 2 : n // 2 + n // 10] = 1
    return ids


SAMPLES = {
    "document": _document,
    "position": _position,
    "images": _images,
    "segment": _document,
    "prefix": lambda n: n // 4,
    "padding": lambda n: n // 9,
    "tokens": lambda n: np.arange(0, n, max(n // 4, 1024 if n > 4096 else 1)),
}


def _sides(n: int, axes: int) -> list[int]:
    """Sides of about equal length whose product is n."""
    if axes == 1:
        return [n]
    side = max(d for d in range(1, round(n ** (1 / axes)) + 1) if n % d == 0)
    return [side, *_sides(n // side, axes - 1)]


ENTRIES = tuple(
    Entry(*given[:4], ORACLES[given[0]], **(given[4] if len(given) > 4 else {}))
    for given in (
        ("sliding_window", zoo.sliding_window, "masking_utils of transformers", {"size": 20}, {"published": {"size": 512}}),
        ("sliding_window_two_sided", zoo.sliding_window, "masking_utils of transformers", {"size": 11, "causal_only": False},
         {"published": {"size": 512, "causal_only": False}}),
        ("sliding_window_flash", zoo.sliding_window, "FlashAttention, `window_size`", {"size": (19, 5), "convention": "flash"},
         {"published": {"size": (511, 0), "convention": "flash"}}),
        ("sliding_window_rattention", zoo.sliding_window, "Wang et al. 2025 (RATTENTION), axlearn", {"size": 20, "convention": "rattention"},
         {"published": {"size": 512, "convention": "rattention"}}),
        ("sliding_window_encoder", zoo.sliding_window, "Longformer, ModernBERT", {"size": 20, "convention": "encoder"},
         {"published": {"size": 512, "convention": "encoder"}}),
        ("strided", zoo.strided, "Child et al. 2019, section 4.2", {"stride": 11}),
        ("strided_heads", zoo.strided, "Child et al. 2019; openai/sparse_attention", {"stride": 11, "version": "code", "use": "heads"},
         {"heads": 2, "published": {"version": "code", "use": "heads"}, "published_heads": 2}),
        ("fixed", zoo.fixed, "Child et al. 2019, section 4.3", {"stride": 16, "summary": 3}),
        ("fixed_heads", zoo.fixed, "openai/sparse_attention `get_blocksparse_obj`", {"stride": 16, "summary": 2, "verts": 2},
         {"heads": 4, "published": {"summary": 32, "verts": 4, "block_size": 32}, "published_heads": 4}),
        ("blockwise", zoo.blockwise, "Xiong et al. 2021, xformers", {"size": 16, "cls": True}, {"published": {"cls": True}}),
        ("overlapping_blocks", zoo.overlapping_blocks, "Xiong et al. 2021, xformers", {"size": 16}),
        ("longformer", zoo.longformer, "Beltagy et al. 2020", {"width": 16}),
        ("longformer_dilated", zoo.longformer, "Beltagy et al. 2020; allenai/longformer", {"width": 12, "dilation": [1, 3]},
         {"heads": 2, "published": {"dilation": [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]}, "published_heads": 12}),
        ("blockbert", zoo.blockbert, "Qiu et al. 2019", {"blocks": 3, "shifts": [0, 1, 2, 0]}, {"heads": 4, "published_heads": 12}),
        ("s2_attn", zoo.s2_attn, "Chen et al. 2023 (LongLoRA)", {"group": 22, "heads": 2},
         {"heads": 2, "published": lambda n: {"group": n // 4}, "published_heads": 32}),
        ("s2_attn_leak_free", zoo.s2_attn, "Chen et al. 2023 (LongLoRA), repaired", {"group": 22, "heads": 2, "version": "leak_free"},
         {"heads": 2, "published": lambda n: {"group": n // 4, "version": "leak_free"}, "published_heads": 32}),
        ("s2_attn_flash", zoo.s2_attn, "Chen et al. 2023 (LongLoRA), `forward_flashattn`", {"group": 22, "heads": 2, "version": "flash"},
         {"heads": 2, "published": lambda n: {"group": n // 4, "version": "flash"}, "published_heads": 32}),
        ("streaming_llm", zoo.streaming_llm, "Xiao et al. 2023", {"sinks": 3, "recent": 17}),
        ("lm_infinite", zoo.lm_infinite, "Han et al. 2023", {"start": 5, "recent": 22}),
        ("longt5_local", zoo.longt5_local, "Guo et al. 2021", {"radius": 10}),
        ("longt5_unmasked", zoo.longt5_local, "Guo et al. 2021; transformers without a mask", {"radius": 10, "masked": False},
         {"published": {"masked": False}}),
        ("etc", zoo.etc, "Ainslie et al. 2020", {"global_tokens": 9, "radius": 12}),
        ("etc_hard", zoo.etc, "Ainslie et al. 2020", {"global_tokens": 9, "radius": 12, "hard_g2l": True}, {"published": {"hard_g2l": True}}),
        ("bigbird", zoo.bigbird, "Zaheer et al. 2020; random blocks of our own", {"size": 8, "random": 2},
         {"heads": 2, "published_heads": 12}),
        ("bigbird_released", zoo.bigbird, "Zaheer et al. 2020; transformers' rule", {"length": 104, "size": 8, "random": 2, "heads": 2},
         {"heads": 2, "length": 101, "published": lambda n: {"length": n}, "published_heads": 12}),
        ("bigbird_etc", zoo.bigbird_etc, "Zaheer et al. 2020",
         {"length": 104, "global_tokens": 8, "size": 8, "random": 2, "heads": 2},
         {"heads": 2, "length": 101, "published": lambda n: {"length": n}, "published_heads": 12}),
        ("neighborhood_1d", zoo.neighborhood, "Hassani et al. 2022 (NATTEN)", {"shape": 97, "kernel": 12, "dilation": 2},
         {"published": lambda n: {"shape": n, "kernel": 255}}),
        ("neighborhood_2d", zoo.neighborhood, "Hassani et al. 2022 (NATTEN)", {"shape": [9, 11], "kernel": [5, 4]},
         {"length": 99, "published": lambda n: {"shape": _sides(n, 2), "kernel": 13}}),
        ("neighborhood_3d", zoo.neighborhood, "Hassani et al. 2025 (GNA)", {"shape": [4, 5, 6], "kernel": 3, "stride": [1, 2, 3]},
         {"length": 120, "published": lambda n: {"shape": _sides(n, 3), "kernel": 7}}),
        ("biblosan", zoo.biblosan, "Shen et al. 2018 (Bi-BloSAN)", {"size": 14}),
        ("biblosan_backward", zoo.biblosan, "Shen et al. 2018 (Bi-BloSAN), over block vectors", {"size": None, "direction": "backward"},
         {"published": {"size": None, "direction": "backward"}}),
        ("reformer_local", zoo.reformer_local, "Kitaev et al. 2020", {"chunk": 13, "causal_only": False},
         {"published": {"causal_only": False}}),
        ("routing_local", zoo.routing_local, "Roy et al. 2020", {"size": 13}),
        ("mistral", zoo.mistral, "Jiang et al. 2023", {"window": 20}),
        ("gemma2", zoo.gemma2, "Gemma team 2024", {"layer": 1, "window": 20}),
        ("gemma3", zoo.gemma3, "Gemma team 2025", {"layer": 0, "window": 20}),
        ("gemma3_images", zoo.gemma3, "Gemma team 2025", {"layer": 0, "window": 20, "images": True}, {"published": {"images": True}}),
        ("gemma3_bidirectional", zoo.gemma3, "Gemma team 2025", {"layer": 0, "window": 20, "bidirectional": True},
         {"published": {"bidirectional": True}}),
        ("gpt_neo", zoo.gpt_neo, "Black et al. 2021", {"layer": 1, "window": 20}, {"published": {"layer": 1}}),
        ("modernbert", zoo.modernbert, "Warner et al. 2024", {"layer": 1, "window": 20}, {"published": {"layer": 1}}),
        ("llama4", zoo.llama4, "Meta 2025", {"chunk": 30}),
        ("llama4_padded", zoo.llama4, "Meta 2025; transformers", {"chunk": 30, "left_padding": True}, {"published": {"left_padding": True}}),
        ("gpt_oss", zoo.gpt_oss, "OpenAI 2025", {"window": 20}),
        ("packed", zoo.packed, "sequence packing", {}),
        ("packed_local", zoo.packed, "sequence packing, positions in documents", {"local": zoo.streaming_llm(2, 9)},
         {"published": {"local": zoo.streaming_llm()}}),
        ("prefix_lm", zoo.prefix_lm, "Raffel et al. 2020", {}),
        ("prefix_lm_documents", zoo.prefix_lm, "Raffel et al. 2020, packed", {"per_document": True},
         {"published": {"per_document": True}, "samples": {"prefix": lambda n: _position(n) < n // 12}}),
        ("image_blocks", zoo.image_blocks, "Gemma 3; transformers `blockwise_overlay`", {}),
    )
)  # fmt: skip

NAMES = {entry.name: entry for entry in ENTRIES}


@dataclass(frozen=True, eq=False)
class Linear:
    """One published attention with a linear term, its parameters as published and the test that compares it with its formula."""

    name: str
    function: Callable
    source: str
    options: dict
    oracle: str

    def call(self) -> str:
        return f"pc.zoo.{self.function.__name__}({', '.join(f'{name}={_shown(value)}' for name, value in self.options.items())})"


LINEAR = {
    given[0]: Linear(*given, f"test_zoo_linear.py::test_{'performer' if given[0] == 'performer' else 'is_the_formula'}")
    for given in (
        ("rattention", zoo.rattention, "Wang et al. 2025 (RATTENTION)", {"window": 512}),
        ("rattention_documents", zoo.rattention, "RATTENTION, nothing crosses documents", {"window": 512, "documents": "reset"}),
        ("rattention_released", zoo.rattention, "RATTENTION, documents as released in axlearn", {"window": 512, "documents": "released"}),
        ("performer", zoo.performer, "Choromanski et al. 2020 (FAVOR+)", {}),
    )
}


def entry(name: str) -> Entry:
    """The entry of a name.  Raises UnknownNameError."""
    if name not in NAMES:
        close = suggest(name, [*NAMES, *LINEAR])
        raise UnknownNameError(f"no entry of the zoo is named `{name}`", fix=f"did you mean `{close}`?" if close else "`patternc zoo` lists all")
    return NAMES[name]
