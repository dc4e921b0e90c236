"""What a card could do at best on a case: the longer of the time for its products and that for its memory traffic."""

from __future__ import annotations

from dataclasses import dataclass

from patternc.bench.cases import Case

ITEM = 2  # bytes of a bfloat16
BACKWARD = 2.5  # products of a backward for each of the forward: five for two


@dataclass(frozen=True)
class Card:
    """The vendor's datasheet: dense bfloat16 TFLOP/s and TB/s of device memory."""

    tflops: float
    bandwidth: float


# By the name that the driver gives.  SXM parts; other cards have no roofline.
CARDS = {"NVIDIA H100 80GB HBM3": Card(989.0, 3.35), "NVIDIA H200": Card(989.0, 4.8)}


@dataclass(frozen=True)
class Work:
    """What a pass has to do, whatever computes it.

    Attributes:
        flops: of the products over allowed pairs.
        bytes: of q, k, v and o (backward: and of their gradients), each once; keys that no query sees are not read.
        by_bytes: whether its rate counts bytes.
    """

    flops: float
    bytes: float
    by_bytes: bool

    def rate(self, ms: float) -> float:
        """Useful TFLOP/s, or TB/s, of a time; and the time of a rate, since one is the work over the other."""
        return (self.bytes if self.by_bytes else self.flops) / ms / 1e9

    def least_ms(self, card: Card) -> float:
        return max(self.flops / card.tflops, self.bytes / card.bandwidth) / 1e9

    def bound(self, card: Card) -> str:
        """What limits it: "compute" or "memory"."""
        return "compute" if self.flops / card.tflops >= self.bytes / card.bandwidth else "memory"


def work(case: Case, direction: str, pairs: int, keys: int, features: int = 0) -> Work:
    """The work of a pass.

    Args:
        direction: "forward" or "backward".
        pairs: that are allowed, of a batch row, all heads together; of a linear tail they do not count.
        keys: that some query sees, of each head.
        features: of a linear tail.
    """
    rows = case.batch * case.heads * case.queries
    flops = 4 * case.head_dim * (rows * features if case.kind == "linear" else case.batch * pairs)
    elements = 2 * rows * case.head_dim + 2 * case.batch * case.kv_heads * keys * case.head_dim
    times = (1, 1) if direction == "forward" else (BACKWARD, 2)
    return Work(times[0] * flops, times[1] * ITEM * elements, case.kind != "softmax")
