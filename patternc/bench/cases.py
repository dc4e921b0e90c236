"""The rows of `patternc bench attention`: patterns and shapes."""

from __future__ import annotations

from dataclasses import dataclass

DOCUMENT = 1500  # tokens of a document in the `documents` case

# Blocks of 64: three beside the diagonal, three random ones, the first and the last for everybody.
BIGBIRD = "block(64, back=1, ahead=1) | global(64) | (q >= 16320) | (k >= 16320) | random_blocks(3, 64, seed=0)"

# Sixteen heads dilated by 1, 2, 4 and 8: four neighbours each, which share a key head, or in turn.
DILATED = ["causal & window(512)", "causal & dilate(2) & window(1024)", "causal & dilate(4) & window(2048)", "causal & dilate(8) & window(4096)"]
BY_FOUR = f"per_head({', '.join(text for text in DILATED for _ in range(4))})"
IN_TURN = f"per_head({', '.join(DILATED * 4)})"


@dataclass(frozen=True)
class Case:
    """One row: a pattern and a shape (batch, query heads, key heads, length, head_dim)."""

    name: str
    text: str
    batch: int
    heads: int
    kv_heads: int
    n: int
    head_dim: int

    @property
    def by_head(self) -> bool:
        """Whether heads see different numbers of pairs."""
        return "per_head" in self.text or "h %" in self.text

    @property
    def shape(self) -> str:
        return f"B{self.batch} H{self.heads}:{self.kv_heads} n{self.n} D{self.head_dim}"


CASES = (
    Case("full", "full", 4, 16, 16, 8192, 128),
    Case("full-64", "full", 4, 16, 16, 8192, 64),
    Case("causal", "causal", 4, 16, 16, 8192, 128),
    Case("causal-64", "causal", 4, 16, 16, 8192, 64),
    Case("window-512", "causal & window(512)", 4, 16, 4, 16384, 128),
    Case("window-512-64", "causal & window(512)", 4, 16, 16, 16384, 64),
    Case("window-4096", "causal & window(4096)", 4, 16, 4, 16384, 128),
    Case("longformer", "window(left=256, right=256) | global(64)", 4, 16, 16, 16384, 64),
    Case("streaming", "causal & (window(1024) | sink(4))", 4, 16, 4, 16384, 128),
    Case("documents", "causal & documents(ids)", 4, 16, 4, 16384, 128),
    Case("dilated-2", "causal & dilate(2) & window(1024)", 4, 16, 4, 16384, 128),
    Case("dilated-4", "causal & dilate(4) & window(2048)", 4, 16, 4, 16384, 128),
    Case("dilated-8", "causal & dilate(8) & window(4096)", 4, 16, 4, 16384, 128),
    Case("heads", BY_FOUR, 4, 16, 4, 16384, 128),
    Case("heads-turn", IN_TURN, 4, 16, 4, 16384, 128),
    Case("heads-64", BY_FOUR, 4, 16, 16, 16384, 64),
    Case("strided-heads", "(h % 2 == 0) & causal & window(128) | (h % 2 == 1) & causal & dilate(128)", 1, 16, 16, 16384, 64),
    Case("strided", "causal & (window(128) | dilate(128))", 1, 16, 16, 16384, 64),
    Case("grid-13", "neighborhood([128, 128], 13)", 4, 16, 16, 16384, 64),
    Case("grid-33", "neighborhood([128, 128], 33)", 4, 16, 16, 16384, 64),
    Case("bigbird", BIGBIRD, 4, 16, 16, 16384, 64),
    Case("longformer-few", "window(left=256, right=256) | global(64)", 1, 4, 4, 16384, 64),
    Case("bigbird-few", BIGBIRD, 1, 4, 4, 16384, 64),
)
