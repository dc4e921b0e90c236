"""What a kernel of a linear tail is launched with, on matrices of one layout: decided once, then launched again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from patternc.codegen import cache, tail_configs
from patternc.codegen.descriptors import describe, reachable
from patternc.codegen.device import has_tma, precision
from patternc.codegen.launches import Launch
from patternc.codegen.matrices import strides
from patternc.codegen.tail_configs import TailConfig

LOADED = ("q", "k", "v", "do")


@dataclass(frozen=True)
class Step:
    """A kernel's launch.

    Attributes:
        programs: how many there are, perhaps none.
        fixed: parameters that are the same in every call.
        given: names of the parameters that are not.
        copied: matrices that the kernel cannot read as they are.
        counts: numbers, 0 at first, by which programs let each other know what they have stored.
    """

    launch: Launch
    programs: int
    fixed: dict
    given: tuple[str, ...]
    copied: tuple[str, ...] = ()
    counts: int = 0

    @staticmethod
    def of(launch: Launch, programs: int, fixed: dict, values: dict, copied: tuple[str, ...] = (), counts: int = 0) -> Step:
        """From all parameters that are the same in every call, and those of this one."""
        decided = [p for p in launch.decided if p != "counts_ptr"]
        kept = {p: fixed[p] for p in decided if p not in values}
        return Step(launch, programs, kept, tuple(p for p in decided if p in values), copied, counts)

    def run(self, values: dict, matrices: dict[str, torch.Tensor], device: torch.device) -> None:
        values = {**self.fixed, **{p: values[p] for p in self.given}}
        if self.counts:
            values["counts_ptr"] = torch.zeros(self.counts, dtype=torch.int32, device=device)
        if self.copied:
            matrices = {**matrices, **{m: matrices[m].clone(memory_format=torch.contiguous_format) for m in self.copied}}
        self.launch.run(self.programs, values, matrices)


def described_by(matrices: dict[str, torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether a kernel loads its inputs by descriptors."""
    loaded = [x for m, x in matrices.items() if m in LOADED]
    return bool(loaded) and has_tma(loaded[0].device) and dtype.itemsize == 2 and all(map(reachable, loaded))


def prepare(source, name: str, config: TailConfig, matrices: dict[str, torch.Tensor], constants: dict, described: bool) -> Launch:
    """The launch of a source's kernel on matrices of one layout; `constants` are those that do not follow from it."""
    kernel = source.kernels[name]
    align = math.gcd(16, *(s for x in matrices.values() for s in strides(x)))
    constants = {**constants, "ALIGN": align}
    fixed, pointers, descriptors = {c: constants[c] for c in kernel.constants}, [], {}
    for matrix, x in matrices.items():
        if described and matrix in LOADED:
            rows, columns = tail_configs.tile_of(name, matrix)
            pattern = describe(x, constants[rows], constants[columns], "descriptors")
            pattern.base = None
            descriptors[f"{matrix}_desc"] = matrix, pattern
        else:
            pointers.append(matrix)
            fixed |= dict(zip((f"{matrix}_stride_b", f"{matrix}_stride_h", f"{matrix}_stride_n"), (s // align for s in strides(x))))
    return Launch(kernel, getattr(cache.load(source.text), name), config, 0, 0, fixed, pointers, descriptors)


def operand_of(dtype: torch.dtype) -> tuple[torch.dtype, str]:
    """The dtype of operands for inputs of a dtype, and how products of float32 round.

    float16 would overflow in states and products: its operands are rounded to tf32, which has as many digits.
    """
    return (torch.float32, "tf32") if dtype == torch.float16 else (dtype, precision(dtype))
