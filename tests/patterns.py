"""Every primitive, and random compositions of them, with runtime args in most of their forms."""

import random

import numpy as np
import torch

import patternc as pc

ids, tokens, mask, width, place = pc.arg("ids"), pc.arg("tokens"), pc.arg("mask"), pc.arg("width"), pc.arg("place")
PRIMITIVES = [
    pc.causal, pc.full, pc.empty, pc.window(37), pc.window(left=50, right=3), pc.window(width), pc.dilate(3), pc.dilate(150), pc.block(48),
    pc.block(32, back=2, ahead=1), pc.rows(5), pc.rows([3, 77, 140]), pc.rows(tokens), pc.cols(range(10, 90, 7)), pc.cols(tokens), pc.global_(9),
    pc.global_(tokens), pc.sink(4), pc.prefix(60), pc.prefix(pc.arg("p")), pc.same(lambda i: i // 40), pc.same(ids), pc.documents(ids), pc.valid(mask),
    pc.window(9).at(pc.i // 3), pc.causal.at(place), pc.window(20).shift(11), pc.block(64).roll(17), pc.heads([0, 3]) & pc.causal,
    pc.per_head(pc.causal, pc.window(30), pc.sink(3), pc.empty), (pc.q - pc.k) % 3 == 1, (pc.q - 5) // 7 - (pc.k - 5) // 7 == -1,
    pc.random_blocks(2, 32, 3, near=0), pc.block_table([[(3 * i + j) % 26 for j in (0, 1, 5)] for i in range(26)], 13),
    pc.where(pc.q < 50, pc.k, pc.q) < 60, pc.table([0, 2, 1, 2])[pc.q % 4] == pc.table([0, 2, 1, 2])[pc.k % 4],
]  # fmt: skip

# Runs that choose among their tiles: by a shared list, by steps, by a condition on the row, in the gaps of other runs.
CHOICES = [
    pc.causal & (pc.k // 16 % 8 == 7), pc.causal & (pc.block(128) | (pc.k % 256 >= 248)), pc.window(40) | pc.global_([3, 77, 400]),
    pc.dilate(256), pc.causal & (pc.window(50) | pc.dilate(128)), (pc.q + pc.k) % 384 < 9, (pc.q % 200 == 5) | (pc.k % 200 == 190) | pc.window(5),
    pc.causal & (pc.window(9) | (pc.k // 8 % 16 == pc.h)), pc.window(150) | pc.dilate(2), pc.causal & (pc.prefix(pc.arg("p")) | pc.dilate(128) | pc.window(60)),
    pc.cols(range(64, 320)) | pc.rows([9]), pc.per_head(pc.dilate(128), pc.causal, pc.window(4), pc.block(100)),
]  # fmt: skip


def near(a, b, length, kernel):
    start = pc.min(pc.max(a - kernel // 2, 0), length - kernel)
    return (start <= b) & (b < start + kernel)


def grid(width, height, kernel, dilation=1):
    """A neighbourhood on a `height` x `width` image."""

    def one(a, b, n):
        return (a % dilation == b % dilation) & near(a // dilation, b // dilation, n // dilation, kernel)

    return one(pc.q // width, pc.k // width, height) & one(pc.q % width, pc.k % width, width)


# Patterns that are faster in another order, and a length at which they are.
ORDERED = [
    (pc.causal & pc.dilate(4) & pc.window(600), 1200), (pc.causal & pc.dilate(4) & pc.window(600), 1201), (pc.dilate(6) & pc.window(500), 1200),
    (grid(32, 32, 7), 1024), (grid(65, 31, 7), 2015), (grid(64, 32, 9, 2), 2048), (pc.causal & (pc.window(16) | pc.dilate(32)), 2048),
    (pc.zoo.fixed(32, 4), 2048), (pc.neighborhood((50, 50), 9, dilation=3), 2500), (pc.causal & (pc.dilate(4) & pc.window(600) | pc.sink(4)), 1200),
]  # fmt: skip


# Patterns whose heads are faster in groups, and a length at which they are: `(pattern, heads, length)`.
BY_HEADS = [
    (pc.zoo.longformer(128, [1, 1, 2, 2, 4, 4, 8, 8], 0), 8, 2048), (pc.zoo.longformer(128, [1, 2, 4, 1, 2, 4], 0), 6, 1997),
    (pc.zoo.strided(64, version="code", use="heads"), 4, 2048), (pc.heads([1, 3]) & pc.causal & pc.dilate(8) & pc.window(1024), 4, 1536),
    (pc.per_head(grid(32, 64, 7), pc.causal & (pc.k // 16 % 8 == 7), pc.window(60), grid(32, 64, 7)), 4, 2048),
]  # fmt: skip


def composition(seed: int) -> pc.Pattern:
    draw = random.Random(seed)
    pool = [p for p in PRIMITIVES if p.op not in ("true", "false")]
    out = draw.choice(pool)
    for _ in range(draw.randint(2, 4)):
        other, operator = draw.choice(pool), draw.choice("&&|||-^")
        out = {"&": out & other, "|": out | other, "-": out - other, "^": out ^ other}[operator]
    return pc.causal & out if draw.random() < 0.5 else out


def zoo_case(entry, backend: str, device: str, dtype: torch.dtype) -> None:
    """Outputs and all gradients of an entry's small example, at its own length."""
    p = entry.example()
    args = {name: torch.as_tensor(x, device=device) if isinstance(x, np.ndarray) else x for name, x in entry.args(p, entry.length).items()}
    pc.verify(
        p, backend=backend, device=device, dtype=dtype, sizes=[entry.length], heads=entry.heads, kv_heads=1, head_dim=16, batch=1, args=args,
        quiet=True, raise_error=True,
    )  # fmt: skip
