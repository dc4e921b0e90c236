"""ETC and BigBird: global tokens, blocks and windows, random blocks by the released rules."""

from __future__ import annotations

import numpy as np

from patternc.expr.index import Index, arg
from patternc.expr.pattern import EMPTY, Pattern
from patternc.primitives import block, cols, global_, k, n_k, q, rows, same, window
from patternc.structured import block_table, random_blocks
from patternc.zoo.checks import chosen, whole, wrong

PIECES = ("g2g", "g2l", "l2g", "l2l")
PLANNED_LENGTHS = {"transformers": (1024, 3072, 4096), "google": (1024, 2048, 3072, 4096)}  # drawn from the first 1024 tokens


def etc(global_tokens: int = 256, radius: int = 84, piece: str | None = None, hard_g2l: bool = False) -> Pattern:
    """ETC: a long input with a window, and a short global input that sees and is seen by everything.

    Source: Ainslie et al. 2020; google-research/etcmodel.  The two inputs are one row here, the global one first.

    Args:
        global_tokens: length of the global input.
        radius: keys on each side in the long input, 84.
        piece: one of the four pieces, "g2g", "g2l", "l2g" or "l2l" (queries to keys); None is their union.
        hard_g2l: a global token sees only the long tokens of its own segment, by the arg `segment`, an id for each token of the row.
    The trap: all pieces of a query share one softmax.  Relative labels are biases, which are no part of a pattern.
    """
    count, radius = whole("etc", "global_tokens", global_tokens, 0), whole("etc", "radius", radius, 0)
    if piece is not None:
        chosen("etc", "piece", piece, PIECES)
    g_q, g_k = rows(count), cols(count)
    near, g2l = window(left=radius, right=radius), g_q & ~g_k
    if hard_g2l:
        g2l = g2l & same(arg("segment"))
    elif piece is None:
        return global_(count) | near
    pieces = {"g2g": g_q & g_k, "g2l": g2l, "l2g": ~g_q & g_k, "l2l": ~g_q & ~g_k & near}
    return pieces[piece] if piece is not None else g_k | g2l | (~g_q & near)


def bigbird(
    length: int | None = None, size: int = 64, random: int = 3, heads: int = 12, seed: int = 0, plan=None, rule: str = "transformers"
) -> Pattern:
    """BigBird, internal transformer construction: window, first and last block global, random blocks for each head.

    Source: Zaheer et al. 2020; google-research/bigbird; transformers `BigBirdBlockSparseAttention`.

    Args:
        length: number of tokens, for random blocks by the released rule (see `bigbird_plan`).  None draws from all blocks at whatever
            length is called, apart from those that are seen anyway; no length and no number of heads is needed then.
        size: tokens a block, 64.
        random: random blocks a row, 3; 0 for none.
        heads, seed: of the draws by the released rule; `seed` of the others too.
        plan: a released plan instead: an array or table [heads, blocks, entries], or [heads, blocks - 2, entries] without the global rows
            as transformers stores it.
        rule: whose released rule, "transformers" or "google"; they differ at 2048 tokens.
    Raises:
        ParameterError: `length` is no multiple of `size`, or the plan does not have its blocks.
    The trap: the released code counts a key twice whose block is random and also in the window or global; a pattern counts it once.
    In evaluation transformers draws nothing and block 0 stands in for every random block: `random=0` has the same keys, without
    the multiplicity.  At up to (5 + 2 * random) * size tokens transformers silently uses full attention.
    """
    size = whole("bigbird", "size", size, 1)
    last = (_blocks(size) - 1) * size
    seen = block(size, back=1, ahead=1) | global_(size) | (q >= last) | (k >= last)
    return seen | _random("bigbird", length, size, random, heads, seed, plan, rule, 1, 1)


def bigbird_etc(
    length: int | None = None,
    global_tokens: int = 128,
    size: int = 64,
    random: int = 3,
    heads: int = 12,
    seed: int = 0,
    plan=None,
    rule: str = "transformers",
) -> Pattern:
    """BigBird, extended transformer construction: global tokens are added in front, beside a window and random blocks.

    Source: Zaheer et al. 2020, section 2.

    Args:
        length: of the whole row, global tokens included, for random blocks by the released rule; None draws from all blocks.
        global_tokens: in front, whole blocks.
        size, random, heads, seed, plan, rule: as in `bigbird`; rows and entries of a plan count blocks of the whole row.
    Raises:
        ParameterError: `global_tokens` is no multiple of `size`.
    The trap: the last block is not global here; the random rule never draws it all the same.
    """
    size, count = whole("bigbird_etc", "size", size, 1), whole("bigbird_etc", "global_tokens", global_tokens, 0)
    if count % size:
        raise wrong("bigbird_etc", f"{count} global tokens are no whole blocks of {size}", "global_tokens is a multiple of size")
    seen = block(size, back=1, ahead=1) | global_(count)
    return seen | _random("bigbird_etc", length, size, random, heads, seed, plan, rule, count // size, 0)


def _blocks(size: int) -> Index:
    return (n_k + (size - 1)) // size


def _random(name: str, length, size: int, random, heads, seed, plan, rule, first: int, last: int) -> Pattern:
    random = whole(name, "random", random, 0)
    chosen(name, "rule", rule, PLANNED_LENGTHS)
    if plan is not None:
        return block_table(_whole_plan(name, plan, length, size), size)
    if random == 0:
        return EMPTY
    if length is None:
        return random_blocks(random, size, seed, near=1, first=first, last=last)
    drawn = bigbird_plan(_whole_blocks(name, length, size) * size, size, random, heads, seed, rule)
    return block_table(drawn, size) if (drawn >= 0).any() else EMPTY


def _whole_blocks(name: str, length, size: int) -> int:
    length = whole(name, "length", length, 1)
    if length % size:
        raise wrong(name, f"{length} tokens are no whole blocks of {size}", "length is a multiple of size; the model pads")
    return length // size


def _whole_plan(name: str, plan, length, size: int):
    try:
        data = plan.args[0].data if isinstance(plan, Index) and plan.op == "table" else np.asarray(plan.cpu() if hasattr(plan, "cpu") else plan)
    except ValueError:
        raise wrong(name, "the rows of the plan differ in length", "fill short rows with -1") from None
    if data.ndim not in (2, 3):
        raise wrong(name, f"a plan is [heads, blocks, entries] or [blocks, entries], got shape {data.shape}", "give the plan of one layer")
    if length is None:
        return plan
    blocks = _whole_blocks(name, length, size)
    if data.size and data.max() >= blocks:
        raise wrong(name, f"the plan lists block {data.max()}, and {length} tokens are {blocks} blocks", "0 <= block < length / size; -1 for none")
    if data.shape[-2] == blocks - 2:
        return np.pad(data, [(0, 0)] * (data.ndim - 2) + [(1, 1), (0, 0)], constant_values=-1)
    if data.shape[-2] != blocks:
        message = f"the plan has {data.shape[-2]} rows, and {length} tokens are {blocks} blocks"
        raise wrong(name, message, "one row a block, or one less at each end")
    return plan


def bigbird_plan(length: int, size: int = 64, random: int = 3, heads: int = 12, seed: int = 0, rule: str = "transformers") -> np.ndarray:
    """Random blocks by the released rule, drawn by our own generator: int64 [heads, blocks, random], -1 where a rule leaves too few.

    Source: transformers `_bigbird_block_rand_mask`, `_bigbird_block_rand_mask_with_head`, `_get_rand_attn_plan`.
    At 1024, 3072 and 4096 tokens candidates are the blocks of the first 1024 tokens after block 0; at other lengths those of the first
    `2 * random + 5` blocks, or where there are fewer blocks half of them from the first `random + 5` and the rest from what follows;
    the last block of such a range is never drawn, nor is block 0, nor the own block and its neighbours.  The first and last rows are global
    and have none.

    Args:
        length, size: tokens, and tokens a block, which divides them.
        random, heads, seed: draws a row, rows' heads, seed: draws of one head and row depend on nothing but the three numbers.
        rule: "transformers", or "google" for google-research/bigbird, which draws 2048 tokens from the first 1024 too.
    Raises:
        ParameterError: `length` is no multiple of `size`.
    The trap: the released generator is numpy's global one, so no released plan can be drawn again; give it as `plan=`.
    """
    given = {"length": length, "size": size, "random": random, "heads": heads}
    length, size, random, heads = (whole("bigbird_plan", name, x, 1) for name, x in given.items())
    seed = whole("bigbird_plan", "seed", seed, 0)
    blocks = _whole_blocks("bigbird_plan", length, size)
    few = length in PLANNED_LENGTHS[chosen("bigbird_plan", "rule", rule, PLANNED_LENGTHS)] and 1024 % size == 0 and 1024 // size > 2
    plan = np.full((heads, blocks, random), -1, np.int64)
    for i in range(1, blocks - 1):
        shares = _candidates(i, blocks, random, 1024 // size if few else None)
        for h in range(heads):
            bits = np.random.Philox(key=np.array([seed, h], np.uint64), counter=np.array([0, 0, 0, i], np.uint64))
            drawn = [x for candidates, count in shares for x in _draw(candidates, count, bits)]
            plan[h, i, : len(drawn)] = sorted(drawn)
    return plan


def _candidates(i: int, blocks: int, random: int, first: int | None) -> list[tuple[list[int], int]]:
    """`(blocks to draw from, how many)` for row i; of the first blocks only where `first` says how many those are."""
    if first is not None:
        return [([j for j in range(1, first) if abs(i - j) > 1], random)]
    if blocks > 2 * random + 5:
        ranges = [(0, 2 * random + 5, random)]
    elif blocks > random + 5:
        ranges = [(0, random + 5, random // 2), (random + 5, blocks, random - random // 2)]
    else:
        ranges = [(0, blocks, random)]
    return [([j for j in range(a, b) if _legal(i, j, b)], count) for a, b, count in ranges]


def _legal(i: int, j: int, end: int) -> bool:
    """Row i may draw block j of a range that ends before `end`; the rows beside a global block leave out the one beyond the other."""
    return j not in (0, end - 1) and abs(i - j) > 1 and (i, j) not in ((1, end - 2), (end - 2, 1))


def _draw(candidates: list[int], count: int, bits) -> list[int]:
    """`count` of the candidates without repetition: the first steps of a shuffle, in integers."""
    pool = list(candidates)
    for n in range(min(count, len(pool))):
        other = n + (int(bits.random_raw()) * (len(pool) - n) >> 64)
        pool[n], pool[other] = pool[other], pool[n]
    return pool[:count]
