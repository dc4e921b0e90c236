"""The card that `patternc tune` measures."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patternc.codegen import timing
from patternc.codegen.device import has_tma, processors, shared_memory
from patternc.errors import BackendError


@dataclass(frozen=True)
class Machine:
    """What a run asks of a card.

    Attributes:
        name: as torch gives it.
        processors: multiprocessors, or compute units.
        tma: it has descriptors.
        shared: bytes of shared memory that a program may have.
        memory: bytes of memory.
    """

    name: str
    processors: int
    tma: bool
    shared: int
    memory: int

    @staticmethod
    def current() -> Machine:
        """The current CUDA device.  Raises BackendError without one."""
        if not torch.cuda.is_available():
            raise BackendError("`tune` measures kernels and needs a CUDA device", fix="run it on a machine with a GPU")
        device = torch.device("cuda", torch.cuda.current_device())
        memory = torch.cuda.get_device_properties(device).total_memory
        return Machine(torch.cuda.get_device_name(device), processors(device), has_tma(device), shared_memory(device), memory)


def versions() -> dict[str, str]:
    """Of torch and Triton, on which times depend."""
    return {"torch": torch.__version__, "triton": timing.version()}
