"""Sliding windows in the conventions of the libraries, with sinks and with global tokens."""

from __future__ import annotations

from patternc.expr.index import arg
from patternc.expr.pattern import FULL, Pattern
from patternc.primitives import block, causal, dilate, global_, k, per_head, q, sink, window
from patternc.zoo.checks import chosen, whole, wrong

CONVENTIONS = ("hf", "flash", "rattention", "encoder")


def sliding_window(size, convention: str = "hf", causal_only: bool | None = None) -> Pattern:
    """Keys near the query, as four libraries count them.

    Source: Hugging Face transformers (masking_utils), FlashAttention (`window_size`), RATTENTION (Wang et al. 2025) and axlearn,
    the encoder family (Longformer, ModernBERT).

    Args:
        size: "hf": keys including the query's own, or where not causal neighbours on each side; "flash": the pair (left, right), -1 for
            no limit; "rattention": keys before the query; "encoder": the full width, half of it on each side.
        convention: "hf", "flash", "rattention" or "encoder".
        causal_only: drop keys after the query; by default as the convention does ("flash" and "encoder" do not).
    Raises:
        ParameterError: sizes below what the convention allows; "rattention" without causality, which it does not have.
        UnknownNameError: another convention.

    The trap: one number means different windows.  With 512, "hf" has 512 keys and without causality 1025 (both ends included),
    "rattention" has 513, and so has "encoder", half of them after the query.
    """
    chosen("sliding_window", "convention", convention, CONVENTIONS)
    if convention == "rattention" and causal_only is False:
        raise wrong("sliding_window", "the rattention convention is causal", 'drop `causal_only=False`, or use "hf", which has two-sided windows')
    if convention == "flash":
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            message = f"`size` is (left, right) in the flash convention, got {size!r}"
            raise wrong("sliding_window", message, 'write `sliding_window((511, 0), "flash")`')
        left, right = (whole("sliding_window", name, x, -1) for name, x in zip(("left", "right"), size))
        near = _left(left) & _right(right)
    elif convention == "hf":
        size = whole("sliding_window", "size", size, 1)
        near = window(size) if causal_only is not False else window(left=size, right=size)
    else:
        size = whole("sliding_window", "size", size, 0 if convention == "rattention" else 1)
        radius = size if convention == "rattention" else size // 2
        near = window(left=radius, right=0 if convention == "rattention" else radius)
    if convention in ("hf", "rattention") if causal_only is None else causal_only:
        return causal & near
    return near


def _left(limit: int) -> Pattern:
    return FULL if limit < 0 else q - k <= limit


def _right(limit: int) -> Pattern:
    return FULL if limit < 0 else q - k >= -limit


def streaming_llm(sinks: int = 4, recent: int = 2000) -> Pattern:
    """StreamingLLM: the first keys and the most recent ones.

    Source: Xiao et al. 2023; mit-han-lab/streaming-llm.

    Args:
        sinks: first keys, 4.
        recent: recent keys including the query's own; 2000 in its demo, 512 in the class of the cache.
    The trap: positions are those inside the cache, so a rotary embedding sees other distances than this pattern's positions; and the
    released prefill of a prompt longer than the cache is plain causal attention.
    """
    return causal & (sink(whole("streaming_llm", "sinks", sinks, 0)) | window(whole("streaming_llm", "recent", recent, 1)))


def lm_infinite(start: int = 10, recent: int = 4096) -> Pattern:
    """LM-Infinite's Lambda-shaped mask.

    Source: Han et al. 2023.

    Args:
        start: first keys, 10 to 100.
        recent: recent keys including the query's own: the length of pre-training, 2048 or 4096.
    The trap: distances beyond the window are capped to it, which is the embedding's business; a first token inside the window has its
    true distance.
    """
    return causal & (window(whole("lm_infinite", "recent", recent, 1)) | sink(whole("lm_infinite", "start", start, 0)))


def longt5_local(radius: int = 127, masked: bool = True) -> Pattern:
    """LongT5's local attention, of encoders.

    Source: Guo et al. 2021; transformers `LongT5LocalAttention`.

    Args:
        radius: keys on each side, 127.
        masked: as the encoder calls it; a layer called without a mask leaves the radius out and sees three blocks of radius + 1.
    The trap: the two differ, and scores have no factor 1/sqrt(d).
    """
    radius = whole("longt5_local", "radius", radius, 0)
    return window(radius + 1) if masked else block(radius + 1, back=1, ahead=1)


def longformer(width: int = 512, dilation=1, global_tokens=None, chunked: bool = False) -> Pattern:
    """Longformer: a window, dilated by head, and global tokens that see and are seen by everything.

    Source: Beltagy, Peters and Cohan 2020; allenai/longformer; transformers `LongformerSelfAttention`.

    Args:
        width: the whole window, even; half of it on each side.
        dilation: distance between the window's keys; a list has one for each head.
        global_tokens: the arg `tokens` by default; a count, a range or a list of positions; 0 for none.
        chunked: the released `sliding_chunks_no_overlap`: own and both neighbouring chunks of width // 2, without dilation.
    Raises:
        ParameterError: an odd width, or chunks with a dilation.
    The trap: global queries have projections of their own, so the model is not one attention with this pattern; a dilated window reaches
    `dilation * width / 2` on each side.  transformers has no dilation.
    """
    width = whole("longformer", "width", width, 2)
    if width % 2:
        raise wrong("longformer", f"`width` is the whole window and even, got {width}", f"use {width + 1}")
    side = width // 2
    tokens = global_(arg("tokens") if global_tokens is None else global_tokens)
    if chunked and dilation != 1:
        raise wrong("longformer", "chunks have no dilation", "drop `dilation` or `chunked`")
    if chunked:
        return block(side, back=1, ahead=1) | tokens
    if isinstance(dilation, (tuple, list)):
        return per_head(*(_dilated(side, whole("longformer", "dilation", d, 1)) for d in dilation)) | tokens
    return _dilated(side, whole("longformer", "dilation", dilation, 1)) | tokens


def _dilated(side: int, d: int) -> Pattern:
    return window(left=side * d, right=side * d) & dilate(d)
