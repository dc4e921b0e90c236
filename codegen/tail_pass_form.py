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
        dead: a table says which keys are read at all.
        shared: several query heads share a key head.
    """

    kernel: str
    feature: str
    mirrored: bool = False
    add: bool = False
    dead: bool = False
    shared: bool = False

    @property
    def roles(self) -> dict[str, str]:
        """The matrix of each role: x and y, whose products weigh z; u, whose features have the gradient that is found; o, the result."""
        named = zip("xyzuo", ROLES[self.kernel])
        return {role: matrix for role, matrix in named if matrix and not (role == "u" and self.feature == "identity")}

    @property
    def transposed(self) -> bool:
        """Whether the state is one of columns of v by features; else features by columns."""
        return self.kernel in ("backward_q", "backward_k")

    @property
    def of_rows(self) -> bool:
        """Whether rows have results, of earlier keys, or keys, of later rows."""
        return self.kernel in ("forward", "backward_q")

    def featured(self, role: str) -> bool:
        """Whether features of a matrix are multiplied, not the matrix itself."""
        return self.feature != "identity" and self.roles.get(role) in ("q", "k")

    def changed(self, role: str) -> bool:
        """Whether the tiles of a matrix are replaced before they are multiplied: by features, by 0 where keys are dead."""
        return self.featured(role) or self.dead and self.of_rows and self.roles.get(role) == "k"

    @property
    def apart(self) -> bool:
        """Whether programs take one half of the features each, the second adding its results to those of the first; else slices of columns."""
        return self.feature == "softmax"

    @property
    def held(self) -> bool:
        """Whether tiles of x stay in registers: gradients of features need those, and other heads read a tile of keys again."""
        return self.kernel == "forward"

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
    def in_place(self) -> bool:
        """Whether u is read where its result is put then, which leaves memory for more tiles of y and z: many are read for one of keys."""
        return "u" in self.roles and self.shared and not self.of_rows

    @property
    def made(self) -> bool:
        """Whether the warpgroup that sums a state changes tiles of y or z for the others."""
        return self.changed("y") or self.changed("z")

    @property
    def may_begin_before(self) -> bool:
        """Whether a tile of results may begin before the first one there is."""
        return self.of_rows or self.mirrored

    @property
    def rings(self) -> list[str]:
        """What has barriers: tiles of x, of u, of y and z, states, and results."""
        return ["x", *["u"] * ("u" in self.roles), "yz", "s", "o"]
