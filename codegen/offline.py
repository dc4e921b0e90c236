"""Compiling generated kernels for a GPU that need not be there, and reading what the compiler made of them.

Triton brings its own assembler and disassembler.  A process that interprets kernels (TRITON_INTERPRET=1) cannot compile
them, so `compile_all` has another process do it (`compiler.py`).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from patternc.codegen import cache, compiler, configs, hopper, hopper_launch, tail_configs, tail_pass, tail_pass_launch
from patternc.codegen.configs import Config
from patternc.codegen.dispatch import renamed
from patternc.codegen.frame import is_wide
from patternc.codegen.generated import Kernel, Source
from patternc.codegen.parameters import box_constants
from patternc.codegen.tail_blocks import BlockSource
from patternc.codegen.tail_configs import TailConfig
from patternc.codegen.tail_kernels import TailSource
from patternc.codegen.tail_pass import PassConfig, PassSource
from patternc.codegen.uses import is_pointer
from patternc.errors import BackendError
from patternc.orders.count import Boxes
from patternc.tail_blocks import CHUNK, TARGETS

SHARED_LIMIT = 227 * 1024  # bytes a program may have on sm_90


@dataclass(frozen=True)
class Job:
    """A kernel to compile.

    Attributes:
        dtype: "bf16", "fp16" or "fp32".
        heads, group: query heads, and query heads for each key head.
        arch: compute capability times ten, or the name of AMD's, such as "gfx942".
        boxes: `orders.count.Boxes` of a kernel in digits; of a kernel by groups of heads, one or None for each group.
        types: Triton types that replace the usual ones, such as "*i32" for a `q_start_value` that is a tensor.
    """

    source: Source
    kernel: str
    dtype: str
    head_dim: int
    value_dim: int
    config: Config
    heads: int = 16
    group: int = 1
    arch: int | str = 90
    boxes: Boxes | tuple[Boxes | None, ...] | None = None
    types: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TailJob:
    """A kernel of a linear tail to compile.

    Attributes:
        dtype: "bf16" or "fp32".
        config, slot: of `tail_configs`.
        precision: of products of float32.
    """

    source: TailSource | BlockSource | PassSource
    kernel: str
    dtype: str
    head_dim: int
    value_dim: int
    config: TailConfig | PassConfig
    slot: int = 256
    heads: int = 16
    group: int = 1
    arch: int = 90
    precision: str = "ieee"


@dataclass(frozen=True)
class Report:
    """What a job compiled to.

    Attributes:
        registers, stack, shared: registers a thread, bytes of stack a thread (spills), bytes of shared memory a program.
        cubin: the binary, empty for AMD's cards.
    """

    registers: int
    stack: int
    shared: int
    cubin: bytes = field(repr=False, default=b"")

    @cached_property
    def sass(self) -> str:
        """The listing."""
        return _tool("nvdisasm", "-c", binary=self.cubin) if self.cubin else ""

    @cached_property
    def instructions(self) -> dict[str, int]:
        """Number of SASS instructions by opcode without modifiers."""
        return dict(Counter(opcode for _, opcode, _ in self._lines[0]))

    @cached_property
    def loop_spills(self) -> int:
        """Loads and stores of the stack inside loops."""
        return self._in_loops("LDL", "STL")

    @cached_property
    def loop_stores(self) -> int:
        """Stores to the stack inside loops: loads alone are of what does not change there."""
        return self._in_loops("STL")

    def _in_loops(self, *opcodes: str) -> int:
        """Instructions inside loops.  A loop is what a backward branch jumps over, but for that in which warps wait for work of their own."""
        if not self.stack:
            return 0
        lines, labels = self._lines
        jumps = ((at, labels.get(target[1])) for at, opcode, rest in lines if opcode == "BRA" and (target := re.search(r"`\((\S+)\)", rest)))
        waits = [at for at, opcode, _ in lines if opcode == "USETMAXREG"]
        loops = [(target, at) for at, target in jumps if target is not None and target < at and not any(target <= x <= at for x in waits)]
        return sum(any(low <= at <= high for low, high in loops) for at, opcode, _ in lines if opcode in opcodes)

    @cached_property
    def _lines(self) -> tuple[list[tuple[int, str, str]], dict[str, int]]:
        """Address, opcode and the rest of each instruction, and the addresses of labels."""
        lines, labels, waiting = [], {}, []
        for line in self.sass.splitlines():
            if m := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)([^;]*);", line):
                labels |= dict.fromkeys(waiting, int(m[1], 16))
                lines.append((int(m[1], 16), m[2], m[3]))
                waiting = []
            elif m := re.match(r"(\.L_\w+):", line):
                waiting.append(m[1])
        return lines, labels


def signature(job: Job | TailJob) -> tuple[dict[str, str], dict[str, object]]:
    """Triton's types of the runtime parameters, and the values of the constexprs."""
    if isinstance(job, TailJob):
        return _tail_signature(job)
    if job.kernel == "backward":
        return _fused_signature(job)
    kernel: Kernel = job.source.kernels[job.kernel]
    d, dv, c = configs.padded(job.head_dim), configs.padded(job.value_dim), job.config
    constants = {
        "HEADS": job.heads, "GROUP": job.group, "D": job.head_dim, "DV": job.value_dim, "BLOCK_D": d, "BLOCK_DV": dv, "BLOCK_M": c.block_m,
        "BLOCK_N": c.block_n, "STAGES": c.stages, "PRECISION": "ieee", "ALIGN": 16 if job.head_dim % 16 == job.value_dim % 16 == 0 else 8,
    }  # fmt: skip
    if kernel.variant == "hopper":
        constants |= hopper.constants(job.head_dim, job.heads, _row_tile(job)) | {"ORDERED": True}
    types, values = {}, {}
    parts = zip(kernel.groups, job.boxes or [None] * len(kernel.groups)) if kernel.groups else ((kernel, job.boxes),)
    for number, (part, boxes) in enumerate(parts):
        mine = constants | (box_constants(boxes, job.kernel == "backward_dkdv") if boxes is not None else {})
        types |= renamed(number, part, {p: dict(job.types).get(p) or _type(p, job, part) for p in part.parameters})
        values |= renamed(number, part, {name: mine[name] for name in part.constants})
    return {p: types.get(p, "i32") for p in kernel.parameters}, {name: values[name] for name in kernel.constants}


def _fused_signature(job: Job) -> tuple[dict[str, str], dict[str, object]]:
    def kind(parameter: str) -> str:
        name, _, what = parameter.rpartition("_")
        if what == "desc":
            dtype, width = ("fp32", 64) if name == "dq" else (job.dtype, job.head_dim)
            return f"tensordesc<{dtype}{[1, 1, 64, width]},{hopper_launch.tile_layout([1, 1, 64, width], dtype)!r}>"
        if what == "ptr":
            return "*fp32" if name in ("lse2", "delta") else "*i32"
        return "fp32" if parameter in ("scale", "score_scale") else "i32"

    constants = {"HEADS": job.heads, "GROUP": job.group, "D": job.head_dim, "STAGES": job.config.stages}
    return {p: kind(p) for p in job.source.kernels["backward"].parameters}, constants


def _row_tile(job: Job) -> hopper.RowTile:
    return hopper.row_tile(job.source.plan, job.head_dim, job.heads, job.heads // job.group)


def _type(parameter: str, job: Job, kernel: Kernel) -> str:
    if not is_pointer(parameter):
        if parameter in ("scale", "score_scale"):
            return "fp32"
        return "i64" if is_wide(parameter) else "i32"
    name, _, kind = parameter.rpartition("_")
    dtype = job.dtype
    if kernel.variant == "hopper" and kind == "desc":
        own = _row_tile(job)
        block = {"k": [1, job.config.block_n], "k0": [1, own.positions], "q": [own.pack, hopper.ROWS // own.pack]}
        block = hopper_launch.tile_block(*block[name.replace("v", "k").replace("o", "q")], job.head_dim)
        return f"tensordesc<{dtype}{block},{hopper_launch.tile_layout(block, dtype)!r}>"
    if name.endswith("0") and not name.startswith("table"):  # what earlier parts found
        name, dtype = name[:-1], "fp32"
        if kind == "ptr":
            return "*fp32"
    if kind == "desc":
        keys, values = name in ("k", "v", "dk", "dv"), name in ("v", "o", "do", "dv")
        block = [job.config.block_n if keys else job.config.block_m, configs.padded(job.value_dim if values else job.head_dim)]
        return f"tensordesc<{dtype}{[1] * {'rows': 0, 'descriptors': 2, 'box descriptors': 3}[kernel.variant] + block}>"
    if parameter in ("q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "dq_ptr", "dk_ptr", "dv_ptr"):
        return f"*{job.dtype}"
    if parameter in ("lse_ptr", "lse2_ptr", "delta_ptr", "dlse_ptr") or parameter.startswith("part_"):
        return "*fp32"
    return "*u8" if any(a.parameter == parameter and a.kind == "member" for a in kernel.arrays) else "*i32"


def _tail_signature(job: TailJob) -> tuple[dict[str, str], dict[str, object]]:
    kernel = job.source.kernels[job.kernel]
    if isinstance(job.source, PassSource):
        return _pass_signature(job)
    constants = tail_configs.constants(job.config, job.slot, job.head_dim, job.value_dim, job.heads, job.group)
    constants |= {"ALIGN": 16, "PRECISION": job.precision, "ADD": False, "TARGETS": TARGETS, "CHUNK": CHUNK}
    constants |= {"SLAB": job.config.slice, "WIDTH": job.head_dim * job.value_dim}
    kinds = dict.fromkeys(("sums_ptr", "dsums_ptr", "vectors_ptr", "gains_ptr", "totals_ptr", "centre_ptr"), "*fp32")
    kinds |= dict.fromkeys(("live_ptr", "live_rows_ptr", "live_keys_ptr", "weight_ptr"), "*u8")
    kinds |= dict.fromkeys(("first_ptr", "last_ptr", "low_ptr", "base_ptr", "begin_ptr", "entries_ptr", "column_ptr"), "*i32")

    def kind(parameter: str) -> str:
        if parameter.endswith("_ptr"):
            return kinds.get(parameter, "*i32" if parameter.endswith(("_list_ptr", "_order_ptr")) else f"*{job.dtype}")
        if parameter.endswith("_desc"):
            rows, columns = tail_configs.tile_of(job.kernel, parameter.removesuffix("_desc"))
            return f"tensordesc<{job.dtype}{[1, 1, constants[rows], constants[columns]]}>"
        return "i64" if f"{parameter}: tl.int64" in kernel.text else "i32"

    return {p: kind(p) for p in kernel.parameters}, {c: constants[c] for c in kernel.constants}


def _pass_signature(job: TailJob) -> tuple[dict[str, str], dict[str, object]]:
    form = job.source.form
    constants = tail_pass_launch.constants(form, job.head_dim, job.heads, job.group)

    def kind(parameter: str) -> str:
        name, _, what = parameter.rpartition("_")
        if what == "desc":
            block = [1, 1, tail_pass.CHUNK, constants[form.described[name]]]
            return f"tensordesc<bf16{block},{hopper_launch.tile_layout(block, 'bf16')!r}>"
        return "i32" if what != "ptr" else {"states": "*fp32", "live": "*u8", "counts": "*i32"}.get(name, "*bf16")

    return {p: kind(p) for p in job.source.kernels[job.kernel].parameters}, constants


def compile_one(job: Job | TailJob) -> Report:
    """Compile in this process."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    function = getattr(cache.load(job.source.text), job.kernel)
    if not isinstance(function, triton.runtime.JITFunction):
        raise BackendError("this process interprets kernels and cannot compile them", fix="use `compile_all`, or unset TRITON_INTERPRET")
    types, constants = signature(job)
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t.startswith("*")}
    made = GluonASTSource if function.is_gluon() else ASTSource
    source = made(fn=function, signature={**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants, attrs=aligned)
    options = {"num_warps": job.config.warps, "num_stages": job.config.stages}
    amd = isinstance(job.arch, str)
    compiled = triton.compile(source, target=GPUTarget("hip", job.arch, 64) if amd else GPUTarget("cuda", job.arch, 32), options=options)
    if amd:
        found = (int(re.search(rf"{name}:\s+(\d+)", compiled.asm["amdgcn"])[1]) for name in (r"\.vgpr_count", r"\.private_segment_fixed_size"))
        return Report(*found, compiled.metadata.shared)
    usage = _tool("cuobjdump", "-res-usage", binary=compiled.asm["cubin"])
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return Report(registers, stack, compiled.metadata.shared, compiled.asm["cubin"])


def _tool(name: str, option: str, binary: bytes) -> str:
    """What one of the tools that Triton brings says of a binary."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(binary)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
        done = subprocess.run([tool, option, cubin], capture_output=True, text=True)
    return done.stdout + done.stderr


def compile_all(jobs: list[Job | TailJob]) -> list[Report]:
    """Compile in another process, whatever this one does with kernels.  Raises BackendError."""
    found = compiler.ask(jobs)
    if isinstance(found, str):
        raise BackendError(f"offline compilation failed:\n{found[-4000:]}")
    return found
