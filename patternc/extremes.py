"""Sequences with running extremes: which of their blocks may hold an entry of an interval, and which hold nothing else."""

from __future__ import annotations

import torch

from patternc.analysis.project import Interval

BLOCK = 32  # entries that the running extremes take together; tiles of columns are multiples of it


class Ordered:
    """A batch of integer sequences [B', n] with running extremes over blocks of entries.

    Attributes:
        values: int64 [B', n].
        rising: the sequence is known to rise where it is well-behaved (ranks of first occurrence), so that the extremes which
            only help falling ones are left out.
    """

    def __init__(self, values: torch.Tensor, rising: bool = False):
        self.values, self.rising = values, rising
        self._cache: dict[str, torch.Tensor] = {}

    def _block(self, largest: bool) -> torch.Tensor:
        """The smallest or the largest entry of every block; a last block that is cut off repeats its last entry."""
        size = self.values.shape[-1]
        padded = torch.nn.functional.pad(self.values, (0, -size % BLOCK), mode="constant")
        if size % BLOCK:
            padded[:, size:] = self.values[:, -1:]
        blocks = padded.unflatten(-1, (-1, BLOCK))
        return blocks.amax(-1) if largest else blocks.amin(-1)

    def running(self, name: str) -> torch.Tensor:
        """`prefix_max` and `suffix_min` rise; `prefix_min` and `suffix_max` fall, and are kept negated so that they rise too."""
        if name not in self._cache:
            self._cache[name] = {
                "prefix_max": lambda: self._block(True).cummax(-1).values,
                "suffix_min": lambda: self._block(False).flip(-1).cummin(-1).values.flip(-1),
                "prefix_min": lambda: -self._block(False).cummin(-1).values,
                "suffix_max": lambda: -self._block(True).flip(-1).cummax(-1).values.flip(-1),
            }[name]()
        return self._cache[name]

    def search(self, name: str, bound, right: bool = False) -> torch.Tensor:
        """How many blocks of a rising running extreme lie below `bound` (not above it with `right`); `bound` [B or 1, H or 1, R or 1]."""
        rising = self.running(name)
        if rising.shape[0] == 1:
            return torch.searchsorted(rising[0], bound.contiguous(), right=right)
        wide = bound.expand(rising.shape[0], *bound.shape[1:])
        return torch.searchsorted(rising, wide.reshape(rising.shape[0], -1).contiguous(), right=right).view(wide.shape)

    def outside(self, low, high) -> Interval:
        """Subscripts outside the interval hold no entry in `low .. high` (None is open)."""
        out = Interval()
        if low is not None:
            out.low = self.search("prefix_max", low) * BLOCK
            if not self.rising:
                out.high = self.search("suffix_max", -low, right=True) * BLOCK - 1
        if high is not None:
            last = self.search("suffix_min", high, right=True) * BLOCK - 1
            out.high = last if out.high is None else torch.minimum(out.high, last)
            if not self.rising:
                first = self.search("prefix_min", -high) * BLOCK
                out.low = first if out.low is None else torch.maximum(out.low, first)
        return out

    def within(self, low, high) -> Interval:
        """Every entry whose subscript lies in the interval is in `low .. high`: for each bound a suffix, or a longer prefix, of blocks."""
        blocks = self.running("prefix_max").shape[-1]
        out = Interval(torch.zeros_like(low if low is not None else high), None)
        out.high = out.low + self.values.shape[-1] - 1
        if low is not None:
            self._keep_longer(out, self.search("suffix_min", low), None if self.rising else self.search("prefix_min", -low, right=True), blocks)
        if high is not None:
            stop = self.search("prefix_max", high, right=True)
            if self.rising:
                out.high = torch.minimum(out.high, stop * BLOCK - 1)
            else:
                self._keep_longer(out, self.search("suffix_max", -high), stop, blocks)
        return out

    def _keep_longer(self, out: Interval, start, stop, blocks: int) -> None:
        """Cut `out` to the blocks from `start` on, or to those before `stop` if they are more."""
        use_suffix = torch.ones_like(start, dtype=torch.bool) if stop is None else blocks - start >= stop
        out.low = torch.where(use_suffix, torch.maximum(out.low, start * BLOCK), out.low)
        if stop is not None:
            out.high = torch.where(use_suffix, out.high, torch.minimum(out.high, stop * BLOCK - 1))

    def span(self, low, high):
        """Bounds of the entries whose subscripts lie in `low .. high`, from the running extremes."""
        size = self.values.shape[-1]
        if not size:  # every read is outside, and counts as 0
            return torch.zeros_like(low), torch.zeros_like(high)
        low, high = (x.clamp(0, size - 1) // BLOCK for x in (low, high))

        def at(name, index):
            rising = self.running(name)
            if rising.shape[0] == 1:
                return rising[0][index]
            wide = index.expand(rising.shape[0], *index.shape[1:])
            return rising.gather(1, wide.reshape(rising.shape[0], -1)).view(wide.shape)

        least = torch.maximum(at("suffix_min", low), -at("prefix_min", high))
        return least, torch.minimum(at("prefix_max", high), -at("suffix_max", low))
