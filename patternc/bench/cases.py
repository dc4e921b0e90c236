"""The rows of `patternc bench attention`: patterns, shapes, and what is aimed at.

Targets are for an H200 with kernels made for it, from rates of other kernels measured on that card (torch 2.11, Triton 3.6): the
best of them, or of a hand-written sketch, or what is left of them after a mask of this kind.  Backward targets are those of a
deterministic backward.
"""

from __future__ import annotations

from dataclasses import dataclass

DOCUMENT = 1500  # tokens of a document in the `documents` case

# Blocks of 64: three beside the diagonal, three random ones, the first and the last for everybody.
BIGBIRD = "block(64, back=1, ahead=1) | global(64) | (q >= 16320) | (k >= 16320) | random_blocks(3, 64, seed=0)"

# Sixteen heads dilated by 1, 2, 4 and 8: four neighbours each, which share a key head, or in turn.
DILATED = ["causal & window(512)", "causal & dilate(2) & window(1024)", "causal & dilate(4) & window(2048)", "causal & dilate(8) & window(4096)"]
BY_FOUR = f"per_head({', '.join(text for text in DILATED for _ in range(4))})"
IN_TURN = f"per_head({', '.join(DILATED * 4)})"


# A linear tail alone, of features as wide as a head and twice as wide.
LINEAR = 'causal & (empty + linear_tail(feature="elu+1", norm="none"))'
LINEAR_WIDE = 'causal & (empty + linear_tail(norm="none"))'


@dataclass(frozen=True)
class Case:
    """One row: a pattern, a shape and its targets.

    Attributes:
        n, n_q: keys, and queries, which are the last positions; as many as keys where 0.
        kind: "softmax"; "decode", forward only; "linear". The last two are rated by bytes, since memory limits them.
        target: forward and backward, in useful TFLOP/s, for "decode" and "linear" in TB/s.
        target_ms: instead, in ms.
        like: instead, the name of a row whose rate in the same run less 10% is the target.
    """

    name: str
    text: str
    batch: int
    heads: int
    kv_heads: int
    n: int
    head_dim: int
    target: tuple[float | None, float | None] = (None, None)
    target_ms: tuple[float | None, float | None] = (None, None)
    like: str = ""
    n_q: int = 0
    kind: str = "softmax"

    @property
    def queries(self) -> int:
        return self.n_q or self.n

    @property
    def by_head(self) -> bool:
        """Whether heads see different numbers of pairs."""
        return "per_head" in self.text or "h %" in self.text

    @property
    def passes(self) -> tuple[str, ...]:
        return ("forward",) if self.kind == "decode" else ("forward", "backward")

    @property
    def unit(self) -> str:
        return "TFLOP/s" if self.kind == "softmax" else "TB/s"

    @property
    def shape(self) -> str:
        lengths = f"n{self.n}" if self.queries == self.n else f"n{self.n_q}:{self.n}"
        return f"B{self.batch} H{self.heads}:{self.kv_heads} {lengths} D{self.head_dim}"


CASES = (
    Case("full", "full", 4, 16, 16, 8192, 128, (720, 450)),
    Case("full-64", "full", 4, 16, 16, 8192, 64, (510, 380)),
    Case("causal", "causal", 4, 16, 16, 8192, 128, (620, 440)),
    Case("causal-64", "causal", 4, 16, 16, 8192, 64, (490, 360)),
    Case("window-512", "causal & window(512)", 4, 16, 4, 16384, 128, (550, 340)),
    Case("window-512-64", "causal & window(512)", 4, 16, 16, 16384, 64, (360, 290)),
    Case("window-4096", "causal & window(4096)", 4, 16, 4, 16384, 128, (670, 440)),
    Case("longformer", "window(left=256, right=256) | global(64)", 4, 16, 16, 16384, 64, (310, 240)),
    Case("streaming", "causal & (window(1024) | sink(4))", 4, 16, 4, 16384, 128, (560, 370)),
    Case("documents", "causal & documents(ids)", 4, 16, 4, 16384, 128, (500, 360)),
    Case("dilated-2", "causal & dilate(2) & window(1024)", 4, 16, 4, 16384, 128, like="window-512"),
    Case("dilated-4", "causal & dilate(4) & window(2048)", 4, 16, 4, 16384, 128, like="window-512"),
    Case("dilated-8", "causal & dilate(8) & window(4096)", 4, 16, 4, 16384, 128, like="window-512"),
    Case("heads", BY_FOUR, 4, 16, 4, 16384, 128),
    Case("heads-turn", IN_TURN, 4, 16, 4, 16384, 128),
    Case("heads-64", BY_FOUR, 4, 16, 16, 16384, 64),
    Case("strided-heads", "(h % 2 == 0) & causal & window(128) | (h % 2 == 1) & causal & dilate(128)", 1, 16, 16, 16384, 64),
    Case("strided", "causal & (window(128) | dilate(128))", 1, 16, 16, 16384, 64, (100, 75)),
    Case("grid-13", "neighborhood([128, 128], 13)", 4, 16, 16, 16384, 64, (80, 60)),
    Case("grid-33", "neighborhood([128, 128], 33)", 4, 16, 16, 16384, 64, (190, 150)),
    Case("bigbird", BIGBIRD, 4, 16, 16, 16384, 64, (260, 200)),
    Case("longformer-few", "window(left=256, right=256) | global(64)", 1, 4, 4, 16384, 64),
    Case("bigbird-few", BIGBIRD, 1, 4, 4, 16384, 64),
    Case("decode", "full", 8, 32, 8, 65536, 128, (3.6, None), n_q=1, kind="decode"),
    Case("decode-16", "causal", 8, 32, 8, 65536, 128, n_q=16, kind="decode"),
    Case("decode-window", "sink(4) | window(4096)", 8, 32, 8, 65536, 128, target_ms=(0.045, None), n_q=1, kind="decode"),
    Case("decode-window-16", "causal & (sink(4) | window(4096))", 8, 32, 8, 65536, 128, n_q=16, kind="decode"),
    Case("linear", LINEAR, 4, 16, 16, 16384, 128, target_ms=(0.45, 1.3), kind="linear"),
    Case("linear-wide", LINEAR_WIDE, 4, 16, 16, 16384, 128, target_ms=(0.75, 2.0), kind="linear"),
)
