"""`python compiled_at_lengths.py PATTERN HEAD_DIM LENGTH..` prints how many kernels a call at each length compiles, forward and backward.

They are compiled for a Hopper card without one, and not run.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

import patternc as pc
from patternc.codegen import backend, descriptors, fused_launch, hopper_launch, lengths, prepared
from patternc.codegen.timing import compilations


class Card:
    """What Triton asks of a driver to compile."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def main(text, head_dim, *sizes):
    triton.runtime.driver.set_active(Card())
    run = triton.runtime.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        run(self, *args, grid=grid, warmup=True, **options)

    triton.runtime.JITFunction.run = compile_only
    CUDABackend.make_cubin = lambda *_: b""  # the assembler would take a third of the time
    backend.check = lambda q, v: None
    for module in (prepared, descriptors, hopper_launch, fused_launch):
        for name in ("has_tma", "is_hopper"):
            if hasattr(module, name):
                setattr(module, name, lambda device: True)
    prepared.shared_memory = hopper_launch.shared_memory = fused_launch.shared_memory = lambda device: 227 * 1024
    module = pc.compile(text, "triton")

    def call(n):
        q, k, v = (torch.zeros(1, heads, n, int(head_dim), dtype=torch.bfloat16, requires_grad=True) for heads in (8, 4, 4))
        with compilations() as found:
            module(q, k, v).sum().backward()
            lengths.settle_all()
        return found.count(False)

    print(json.dumps([call(int(n)) for n in sizes]))


if __name__ == "__main__":
    main(*sys.argv[1:])
