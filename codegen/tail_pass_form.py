"""What the one-pass kernels of a linear tail (`tail_pass.py`) are generated for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True)
class Sum:
    """A result: `o_i = sum of (x_i . y_j) z_j` over the pairs of a row and a key not after the row's last one; the names of its matrices.

    Attributes:
        u: the matrix whose features o is the gradient of, if it is one: then the result is the gradient of u.
    """

    x: str
    y: str
    z: str
    u: str | None
    o: str


DK, DV = Sum("v", "do", "q", "k", "dk"), Sum("k", "q", "do", None, "dv")
SUMS = {
    "forward": (Sum("q", "k", "v", None, "o"),),
    "backward_q": (Sum("do", "v", "k", "q", "dq"),),
    "backward_k": (DK,),
    "backward_v": (DV,),
    "backward_kv": (DK, DV),  # their state is the same, transposed
}
OF_SUMS = {"key_states": ("k", "v"), "row_states": ("q", "do")}
OF_ROWS = ("q", "do", "o", "dq")  # the others are of keys


def kernels_of(feature: str) -> tuple[str, ...]:
    """The kernels of a feature, those of the backward after that of the forward."""
    return ("forward", "backward_q", *(("backward_kv",) if feature == "softmax" else ("backward_k", "backward_v")))


@dataclass(frozen=True)
class PassForm:
    """What a one-pass kernel is generated for.

    Attributes:
        kernel: a name in SUMS.
        feature: a name in `tail_text.FEATURES`.
        mirrored: rows and keys are counted from the last ones.
        add: results are added to what is there.
        dead: a table says which keys are read at all.
        shared: several query heads share a key head.
        wide: heads have 128 columns, not 64.
    """

    kernel: str
    feature: str
    mirrored: bool = False
    add: bool = False
    dead: bool = False
    shared: bool = False
    wide: bool = False

    @cached_property
    def sums(self) -> tuple[Sum, ...]:
        return tuple(replace(s, u=None) if self.feature == "identity" else s for s in SUMS[self.kernel])

    @property
    def y(self) -> str:
        """The state is a sum of y^T z over tiles; sums before the last one have it transposed."""
        return self.sums[-1].y

    @property
    def z(self) -> str:
        return self.sums[-1].z

    @cached_property
    def ours(self) -> list[str]:
        """The matrices on the side of the results, whose tiles come together."""
        return list(dict.fromkeys(m for s in self.sums for m in (s.x, s.u) if m))

    @property
    def results(self) -> list[str]:
        return [s.o for s in self.sums]

    @property
    def described(self) -> dict[str, str]:
        """How many columns tiles of each matrix have, `D` or `W`: those of z, u and results are a slice where programs take slices."""
        narrow = {self.z, *self.results, *(s.u for s in self.sums)}
        return {m: "W" if m in narrow else "D" for m in (*self.ours, self.y, self.z, *self.results)}

    @property
    def transposed(self) -> bool:
        """Whether the state is one of columns of v by features; else features by columns."""
        return self.kernel in ("backward_q", "backward_k")

    @property
    def of_rows(self) -> bool:
        """Whether rows have results, of earlier keys, or keys, of later rows."""
        return self.kernel in ("forward", "backward_q")

    @property
    def both(self) -> bool:
        """Whether there are two results of each tile, found by a warpgroup each, which else take turns."""
        return len(self.sums) > 1

    def featured(self, matrix: str) -> bool:
        """Whether features of a matrix are multiplied, not the matrix itself."""
        return self.feature != "identity" and matrix in ("q", "k")

    def changed(self, matrix: str) -> bool:
        """Whether tiles of y or z are replaced before they are multiplied: by features, by 0 where keys are dead."""
        return self.featured(matrix) or self.dead and self.of_rows and matrix == "k"

    @property
    def apart(self) -> bool:
        """Whether programs take one half of the features each, the second adding its results to those of the first; else slices of columns."""
        return self.feature == "softmax"

    def held(self, s: Sum) -> bool:
        """Whether tiles of x stay in registers, so that the next tile may come, or as others need what features would replace."""
        return self.kernel == "forward" or self.both and self.featured(s.x)

    @property
    def terms(self) -> int:
        """Rounded terms of a state: one would spoil dq, since do is nearly orthogonal to the mean of v, which is most of it."""
        return 2 if self.kernel == "backward_q" else 1

    @property
    def paired(self) -> bool:
        """Whether there is a state for each two chunks, and the rows of the second go through the keys of the first as well.

        That is less to hand on, which pays where it is two terms for the rows of one head.
        """
        return self.apart and self.terms > 1 and not self.shared

    @property
    def made(self) -> bool:
        """Whether tiles of y or z are changed for all: by the warpgroup that sums a state, if not by those of the results."""
        return self.changed(self.y) or self.changed(self.z)

    @property
    def made_by_results(self) -> bool:
        """Whether a result's warpgroup changes the tiles of its own chunk, since the one that sums a state has more to do than it."""
        return self.paired and self.wide

    @property
    def may_begin_before(self) -> bool:
        """Whether a tile of results may begin before the first one there is."""
        return self.of_rows or self.mirrored


@dataclass(frozen=True)
class SumsForm:
    """What a kernel that sums what slots add to states (`tail_pass_sums.py`) is generated for: a name in OF_SUMS, and the rest as in `PassForm`."""

    kernel: str
    feature: str
    mirrored: bool = False
    dead: bool = False

    @property
    def y(self) -> str:
        return OF_SUMS[self.kernel][0]

    @property
    def z(self) -> str:
        return OF_SUMS[self.kernel][1]

    @property
    def described(self) -> dict[str, str]:
        """How many columns tiles of each matrix have."""
        return {self.y: "D", self.z: "W"}

    @property
    def halves(self) -> bool:
        """Whether features have halves, which warpgroups of their own sum."""
        return self.feature == "softmax"

    @property
    def made(self) -> bool:
        """Whether what is multiplied is made of tiles of y, and not these tiles."""
        return self.feature != "identity" or self.masked

    @property
    def masked(self) -> bool:
        return self.dead and self.y == "k"
