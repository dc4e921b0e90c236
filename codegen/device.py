"""What a device has, and what torch's settings ask of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache

import torch

from patternc.balance import PROCESSORS


@lru_cache(maxsize=64)
def has_tma(device: torch.device) -> bool:
    """Whether tensors can be loaded by descriptors.  AMD's cards are "cuda" to torch too, and number their generations otherwise."""
    return torch.version.hip is None and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=64)
def is_hopper(device: torch.device) -> bool:
    return has_tma(device) and torch.cuda.get_device_capability(device)[0] == 9


@lru_cache(maxsize=64)
def shared_memory(device: torch.device) -> int:
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    return driver.active.utils.get_device_properties(index)["max_shared_mem"]


@lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """Of the device; kernels that are interpreted are dealt as on a Hopper card."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


def on(device: torch.device):
    """Launch on a device: a context."""
    return nullcontext() if device.type != "cuda" or device.index == torch.cuda.current_device() else torch.cuda.device(device)


def kept_on(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on a device that outlives its call.

    Another thread makes it: the CUDA graphs of torch.compile take what the calling thread allocates in their first run for theirs, and refuse
    what stays.
    """
    return _copier().submit(x.to, device).result() if device.type == "cuda" else x.to(device)


@lru_cache
def _copier() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="patternc copies")


def precision(dtype: torch.dtype) -> str:
    """Products of float32 follow torch's own setting."""
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    tf32 = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if tf32 else "ieee"
