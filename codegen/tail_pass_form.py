"""What the one-pass kernels of a linear tail (`tail_pass.py`) are generated for.

All are one sum, `o_i = sum of (x_i . y_j) z_j`, over the pairs of a row and a key not after the row's last one.
"""

from __future__ import annotations

from dataclasses import dataclass

ROLES = {  # x, y, z, u and the result of each kernel
    "forward": ("q", "k", "v", None, "o"),
    "backward_q": ("do", "v", "k", "q", "dq"),
    "backward_k": ("v", "do", "q", "k", "dk"),
    "backward_v": ("k", "q", "do", None, "dv"),
}
OF_ROWS = ("q", "do", "o", "dq")  # the others are of keys


@dataclass(frozen=True)
class PassForm:
    """What a one-pass kernel is generated for.

    Attributes:
        kernel: a name in ROLES.
        feature: a name in `tail_text.FEATURES`.
        mirrored: rows and keys are counted from the last ones.
        add: the result is added to what is there.
    """

    kernel: str
    feature: str
    mirrored: bool = False
    add: bool = False

    @property
    def roles(self) -> dict[str, str]:
        """The matrix of each role: x and y, whose products weigh z; u, whose features have the gradient that is found; o, the result."""
        return {role: matrix for role, matrix in zip("xyzuo", ROLES[self.kernel]) if matrix}

    @property
    def of_rows(self) -> bool:
        """Whether rows have results, of earlier keys, or keys, of later rows."""
        return self.kernel in ("forward", "backward_q")

    def featured(self, role: str) -> bool:
        """Whether features of a matrix are multiplied, not the matrix itself."""
        return self.feature != "identity" and self.roles.get(role) in ("q", "k")

    @property
    def apart(self) -> bool:
        """Whether programs take one half of the features each, and the results are added afterwards; else they take slices of columns."""
        return self.feature == "softmax"

    @property
    def terms(self) -> int:
        """Rounded terms of a state: one would spoil dq, since do is nearly orthogonal to the mean of v, which is most of it."""
        return 2 if self.kernel == "backward_q" else 1

    @property
    def made(self) -> bool:
        """Whether the warpgroup that sums a state makes features of y or z for the others."""
        return self.featured("y") or self.featured("z")

    @property
    def may_begin_before(self) -> bool:
        """Whether a tile of results may begin before the first one there is."""
        return self.of_rows or self.mirrored

    @property
    def rings(self) -> list[str]:
        """What has barriers: tiles of x and u, of y and z, states, and what results are added to."""
        return ["x", "yz", "s", *["o"] * self.add]
