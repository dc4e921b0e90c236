"""Patterns that data decide: documents in one row, prefixes, images in text."""

from __future__ import annotations

from patternc.expr.index import arg
from patternc.expr.pattern import Pattern
from patternc.primitives import causal, cols, documents, prefix, q, same
from patternc.zoo.checks import wrong


def packed(local: Pattern | None = None, causal_only: bool = True) -> Pattern:
    """Several documents in one row; nothing crosses their borders.

    Source: common practice (sequence packing); transformers finds documents where `position_ids` start again.

    Args:
        local: a pattern on positions inside the document, by the arg `position` (0, 1, .. in each document).
        causal_only: drop keys after the query.
    Args at call time: `document`, an id for each token (negative: padding), and with `local` also `position`.
    The trap: sinks, strides and chunks count from the row's start unless they are given as `local`; windows do not care.
    """
    inside = documents(arg("document"))
    if local is not None:
        inside = inside & _pattern("packed", "local", local).at(arg("position"))
    return causal & inside if causal_only else inside


def prefix_lm(per_document: bool = False) -> Pattern:
    """A prefix that is seen from everywhere, and causal attention after it.

    Source: Raffel et al. 2020 (T5), prefix language model.

    Args:
        per_document: documents (arg `document`) with a prefix each; the arg `prefix` is then a bool mask of the keys in prefixes.
    Args at call time: `prefix`, the number of keys in it, an int or one for each batch row.
    The trap: queries in the prefix see all of it, also what comes after them.
    """
    if per_document:
        return documents(arg("document")) & (causal | cols(arg("prefix")))
    return causal | prefix(arg("prefix"))


def image_blocks(text: Pattern = causal) -> Pattern:
    """Causal text with images whose tokens all see each other.

    Source: Gemma 3 and others; transformers `blockwise_overlay`.

    Args:
        text: the pattern outside images, `causal`; a sliding one is not cut further in them, as transformers' shared mask functions have it.
    Args at call time: `images`, for each token the number of its image, negative for text.
    The trap: ids are compared, so two neighbouring images need two ids.  Gemma 3 cuts images by its window too: `gemma3(images=True)`.
    """
    return _pattern("image_blocks", "text", text) | (same(arg("images")) & (arg("images")[q] >= 0))


def _pattern(function: str, name: str, value) -> Pattern:
    if not isinstance(value, Pattern):
        raise wrong(function, f"`{name}` is a pattern, got {value!r}", f"write `{function}({name}=pc.zoo.sliding_window(512))`")
    return value
