"""Sparse Transformers and blocks: strided and fixed attention, blockwise attention, shifted groups, chunks of sorted models."""

from __future__ import annotations

from patternc.expr.index import as_index
from patternc.expr.pattern import Pattern, between
from patternc.primitives import block, causal, dilate, global_, h, k, n_k, per_head, q, window
from patternc.zoo.checks import chosen, whole, wrong


def strided(stride: int = 128, version: str = "paper", use: str = "merged", layer: int = 0) -> Pattern:
    """Sparse Transformer, strided: a window of `stride` keys and every stride-th key before it.

    Source: Child et al. 2019, section 4.2; openai/sparse_attention.

    Args:
        stride: about the square root of the length; 128 for text and images.
        version: "paper" sees `stride` keys before the query, the released "code" one less.
        use: "merged" is the union in every head; "heads" gives even heads the window and odd heads the stride; "layers" alternates them by
            `layer`.
    The trap: the two versions differ by one key; the released block-sparse kernels permute tokens, which changes no pair.
    """
    stride = whole("strided", "stride", stride, 1)
    chosen("strided", "version", version, ("paper", "code"))
    near = window(left=stride if version == "paper" else stride - 1, right=0)
    return _factors("strided", near, causal & dilate(stride), use, layer)


def fixed(
    stride: int = 128,
    summary: int = 8,
    verts: int = 1,
    use: str = "merged",
    layer: int = 0,
    block_size: int | None = None,
    heads: int | None = None,
) -> Pattern:
    """Sparse Transformer, fixed: the query's own block, and the last columns of every block as its summary.

    Source: Child et al. 2019, section 4.3; openai/sparse_attention `get_blocksparse_obj`.

    Args:
        stride: tokens a block; 128 or 256.
        summary: columns of a summary; 8, 16 or 32.
        verts: how many distinct summaries there are: head h uses the (h % verts)-th from the end of the block, and where only every
            other head has a summary (`use="heads"`) the (h // 2 % verts)-th.  The released code's `num_verts`; its `vertsize` is
            `summary / block_size`.
        use: "merged" is the union in every head, as the released code does; "heads" and "layers" as in `strided`.
        block_size: granularity of the released kernels, which only checks that the other parameters are multiples of it.
        heads: of the attention, which only checks that `verts` divides them, as the released code requires.
    Raises:
        ParameterError: summaries do not fit in a block, or are no multiples of `block_size`, or `heads` is none of `verts`.
    The trap: paper and code agree where `verts` is 1; several heads share one summary there.
    """
    stride, summary, verts = (whole("fixed", name, x, 1) for name, x in (("stride", stride), ("summary", summary), ("verts", verts)))
    if summary * verts > stride:
        raise wrong("fixed", f"{verts} summaries of {summary} columns do not fit in a block of {stride}", "summary * verts <= stride")
    if block_size is not None:
        size = whole("fixed", "block_size", block_size, 1)
        if stride % size or summary % size or (stride // size) % (summary // size):
            rule = "block_size divides stride and summary, and summary divides stride"
            raise wrong("fixed", f"stride {stride} and summary {summary} are no whole blocks of {size}", rule)
    if heads is not None and whole("fixed", "heads", heads, 1) % verts:
        raise wrong("fixed", f"{verts} summaries for {heads} heads", "verts divides heads")
    own = (h // 2 if use == "heads" else h) % verts
    last = k % stride - (stride - summary) + own * summary
    return _factors("fixed", causal & block(stride), causal & between(last, 0, summary - 1), use, layer)


def _factors(name: str, near: Pattern, far: Pattern, use: str, layer: int) -> Pattern:
    chosen(name, "use", use, ("merged", "heads", "layers"))
    if use == "merged":
        return near | far
    if use == "layers":
        return far if whole(name, "layer", layer, 0) % 2 else near
    return ((h % 2 == 0) & near) | ((h % 2 == 1) & far)


def blockwise(size: int = 512, cls: bool = False) -> Pattern:
    """Blockwise attention without overlap.

    Source: Xiong et al. 2021 (arXiv 2112.07210); xformers `block` and `blockwise_noglobal`.

    Args:
        size: tokens a block; 512 in "block", 256 in "blockwise_noglobal".
        cls: the first token sees and is seen by everything ("block").
    The trap: the reference appends the global key as a column of its own; it counts once all the same.
    """
    blocks = block(whole("blockwise", "size", size, 1))
    return blocks | global_(1) if cls else blocks


def overlapping_blocks(size: int = 256) -> Pattern:
    """Blockwise attention with overlap: the query's block and half a block on each side of it.

    Source: Xiong et al. 2021; the same tiling as Long-Short Transformer (Zhu et al. 2021).

    Args:
        size: tokens a block; 256, so 512 keys.
    The trap: what a query sees depends on its place in the block, so it is no window: 128 to 383 keys to each side.
    """
    size = whole("overlapping_blocks", "size", size, 1)
    return between(k - q // size * size, -max(size // 2, 1), size - 1 + max(size // 2, 1))


def blockbert(blocks: int = 2, shifts=(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1)) -> Pattern:
    """BlockBERT: the row in `blocks` blocks, and each head sees one block from each, its own or one that is `shift` further on.

    Source: Qiu et al. 2019 (arXiv 1911.02972).

    Args:
        blocks: the paper's n, 2 or 3.
        shifts: for each head; 0 is local.  The paper's twelve heads: ten local ones and two shifted by 1 for n = 2; 8:2:2 for n = 3.
    The trap: shifted heads do not see the query itself.  A length that `blocks` does not divide has a shorter last block.
    """
    blocks = whole("blockbert", "blocks", blocks, 1)
    if not isinstance(shifts, (tuple, list)) or not shifts:
        raise wrong("blockbert", f"`shifts` lists a shift for each head, got {shifts!r}", "write `shifts=[0, 0, 1]`")
    shifts = [whole("blockbert", "shifts", s, 0) for s in shifts]
    if max(shifts) >= blocks:
        raise wrong("blockbert", f"a shift of {max(shifts)} blocks is more than the {blocks} blocks allow", "0 <= shift < blocks")
    size = (n_k + (blocks - 1)) // blocks
    apart = k // size - q // size
    return per_head(*((apart - s) % as_index(blocks) == 0 if s else apart == 0 for s in shifts))


def s2_attn(group: int = 2048, heads: int = 32, version: str = "wrap", length: int | None = None) -> Pattern:
    """LongLoRA's shifted sparse attention: causal groups, shifted by half a group in the second half of the heads.

    Source: Chen et al. 2023; dvlab-research/LongLoRA `llama_attn_replace.py`.

    Args:
        group: tokens a group, usually a quarter of the length.
        heads: of the attention, exactly; even.
        version: "wrap" rolls as released; "leak_free" is the same without keys after the query; "flash" is the released FlashAttention
            path, whose first and last groups are half ones.
        length: number of tokens, which only checks that `group` divides it, as the released code requires; otherwise the last group is shorter.
    Raises:
        ParameterError: an odd number of heads, or a length that is no whole groups.
    The trap: "wrap" leaks: the last group holds the first half group behind the last one, whose rows see the future.  For odd groups the
    released code rolls back by one token less than it rolled, which this does not repeat.  It is for training only.
    """
    group, heads = whole("s2_attn", "group", group, 1), whole("s2_attn", "heads", heads, 2)
    chosen("s2_attn", "version", version, ("wrap", "leak_free", "flash"))
    if heads % 2:
        raise wrong("s2_attn", f"half of the heads are shifted, and {heads} is odd", "use an even number of heads")
    if length is not None and whole("s2_attn", "length", length, 1) % group:
        raise wrong("s2_attn", f"{length} tokens are no whole groups of {group}", "group divides length")
    own, shift = causal & block(group), (group + 1) // 2
    moved = own.shift(shift) if version == "flash" else own.roll(shift)
    if version == "leak_free":
        moved = causal & moved
    return per_head(*[own] * (heads // 2), *[moved] * (heads // 2))


def reformer_local(chunk: int = 64, causal_only: bool = True) -> Pattern:
    """Reformer's local attention: chunks that see themselves and the chunk before, around the end.

    Source: Kitaev et al. 2020; transformers `LocalSelfAttention` (one chunk before, none after).

    Args:
        chunk: tokens a chunk, 64.
        causal_only: a decoder, which drops keys after the query.
    The trap: chunks are circular, so an encoder's first chunk sees the last one; causality hides that.  Lengths are multiples of `chunk`
    there; here the last chunk may be shorter.
    """
    chunk = whole("reformer_local", "chunk", chunk, 1)
    if causal_only:
        return causal & block(chunk, back=1)
    chunks = (n_k + (chunk - 1)) // chunk
    return (q // chunk - k // chunk) % chunks <= 1


def routing_local(size: int = 256, causal_only: bool = True) -> Pattern:
    """The local heads of Routing Transformer: blocks that see the block before, and where not causal the one after.

    Source: Roy et al. 2020; lucidrains/routing-transformer.

    Args:
        size: tokens a block, 256.
        causal_only: without, blocks see the block after them too.
    The trap: its other heads choose keys by content, which no pattern of positions says.
    """
    size = whole("routing_local", "size", size, 1)
    return causal & block(size, back=1) if causal_only else block(size, back=1, ahead=1)


def biblosan(size: int | None = 64, direction: str = "forward") -> Pattern:
    """Bi-BloSAN's masks: strictly directional inside blocks of tokens, and strictly directional over block vectors.

    Source: Shen et al. 2018; taoshen58/BiBloSA `simple_block_attention`.

    Args:
        size: tokens a block; None is the mask over block vectors (or over tokens without blocks).
        direction: "forward" sees what comes before, "backward" what comes after; the model runs both and concatenates them.
    The trap: strict, so a query does not see itself, and the first token of a block sees nothing: its output is 0.  Its logits are vectors,
    one for each feature, so the model is no dot-product attention.
    """
    chosen("biblosan", "direction", direction, ("forward", "backward"))
    past = k < q if direction == "forward" else k > q
    return past if size is None else block(whole("biblosan", "size", size, 1)) & past
