"""The kernels compile for Hopper without a GPU, and the hot loops keep everything in registers."""

from __future__ import annotations

from dataclasses import replace

import pytest

import patternc as pc
from patternc.codegen import configs, offline, tail_blocks, tail_blocks_launch, tail_configs, tail_kernels
from patternc.codegen.kernels import generate
from patternc.codegen.pieces import MERGES, merges
from patternc.codegen.tail_blocks_text import BlockForm
from patternc.codegen.tail_text import Form
from patternc.orders.boxes import box_axis
from patternc.orders.count import Sizes, choose_boxes
from patternc.orders.search import orders
from patternc.passes import lower
from patternc.plan import R0, R1, AxisPlan, Plan, Run, make_plan, mask_of

WIDTH = 512
plan = Plan(
    pc.causal & (pc.q - pc.k < WIDTH),
    AxisPlan("formula", (Run(R0 - WIDTH + 1, R1, R1 - WIDTH + 1, R0),), 1, True),
    AxisPlan("formula", (Run(R0, R1 + WIDTH - 1, R1, R0 + WIDTH - 1),), 1, True),
)
KERNELS = ("forward", "backward_dq", "backward_dkdv")
CASES = [
    (variant, d, kernel, config)
    for variant in ("descriptors", "pointers") for d in (64, 128) for kernel in KERNELS for config in configs.candidates(kernel, variant, d, d, 2)
]  # fmt: skip


@pytest.fixture(scope="module")
def reports():
    jobs = [offline.Job(generate(plan, variant), kernel, "bf16", d, d, config, group=4) for variant, d, kernel, config in CASES]
    rows = offline.Job(generate(plan), "backward_rows", "bf16", 128, 128, *configs.candidates("backward_rows", "pointers", 128, 128, 2))
    return dict(zip([*CASES, "rows"], offline.compile_all([*jobs, rows])))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_registers_and_shared_memory(reports, case):
    report = reports[case]
    assert report.stack <= 16 and report.loop_spills == 0, f"{report.registers} registers, {report.stack} bytes of stack"
    assert report.shared < offline.SHARED_LIMIT
    assert report.instructions["HGMMA"] >= 16  # the tensor cores of Hopper, not those of Ampere
    assert "HMMA" not in report.instructions


def test_descriptor_loops_copy_by_tma(reports):
    for (variant, _, kernel, _), report in ((c, r) for c, r in reports.items() if c != "rows"):
        copies = {"UTMALDG", "UTMASTG"} & report.instructions.keys()
        assert copies == ({"UTMALDG", "UTMASTG"} if variant == "descriptors" else set())
        if variant == "descriptors" and kernel == "forward":
            assert "LDGSTS" not in report.instructions


def test_pointer_loads_are_wide(reports):
    """Strides are not specialised, and yet 16 bytes are copied at a time."""
    report = next(report for case, report in reports.items() if case[:3] == ("pointers", 128, "forward"))
    assert "LDGSTS.E.BYPASS.128" in report.sass
    assert "LDGSTS.E.32" not in report.sass and report.instructions["LDGSTS"] <= 96


def test_rows(reports):
    assert reports["rows"].stack == 0


def test_every_operation_compiles():
    """The compiler is stricter than the interpreter: every operation, the sort, tables and lists, tensors for numbers."""
    doc, w = pc.arg("doc"), pc.arg("w")
    pattern = (
        ((pc.q - pc.k) % 3 == 1) | ((pc.q - 2 * pc.k) // 5 == w) | (pc.documents(doc) & ~pc.valid(pc.arg("m"))) | (doc[doc[pc.k] - 3] < 4)
        | (pc.table([[1, 0], [0, 1]])[pc.q // 64, pc.k // 64] == 1) | (pc.cols([1, 5, 9]) ^ (abs(pc.min(pc.q, 20) - pc.max(pc.k, 7)) < 6))
        | (pc.where(pc.h < 3, pc.q * pc.k, pc.k % (pc.h + 1)) < 7) | pc.per_head(pc.causal, pc.full, pc.empty, pc.k < pc.n_k - pc.b)
        | (pc.arg("bias")[pc.q, pc.k] > 0)
    )  # fmt: skip
    reach = pc.h * 7 + w
    near, first = Run(R0 - reach, R1, R1 - reach, R0), Run(pc.min(R0, 0), pc.min(R1, 3), R0, pc.where(R0 < 5, R0, -1))
    formula, table, lists = AxisPlan("formula", (near, first, near), 3, False), AxisPlan("table", (), 2, False), AxisPlan("list", (), 0, True)
    tensors = (("q_start_value", "*i32"), ("value_of_w", "*i32"))
    jobs = [
        offline.Job(generate(Plan(pattern, forward, transposed), variant), kernel, "fp16", 40, 24, configs.Config(32, 32, 4, 2), group=4, types=types)
        for forward, transposed, variant, types in ((formula, lists, "pointers", tensors), (table, formula, "descriptors", ()))
        for kernel in ("forward", "backward_dkdv")
    ]
    assert all(report.stack <= 16 for report in offline.compile_all(jobs))


def test_choices_keep_loops_in_registers():
    """A run among the tiles of a shared list, and one in steps, each in the gaps of a window."""
    plans = [make_plan(pc.causal & (pc.window(512) | other)) for other in ((pc.k // 16 % 8 == 7), pc.dilate(256))]
    jobs = [
        offline.Job(generate(p, "descriptors"), kernel, "bf16", 128, 128, configs.candidates(kernel, "descriptors", 128, 128, 2)[0])
        for p in plans
        for kernel in KERNELS
    ]
    assert all(report.stack <= 16 and report.loop_spills == 0 for report in offline.compile_all(jobs))


IN_DIGITS = [
    (128, pc.causal & pc.dilate(4) & pc.window(2048), "descriptors"), (64, pc.neighborhood((100, 100), 13, dilation=3), "pointers"),
    (64, pc.causal & (pc.dilate(4) & pc.window(2048) | pc.sink(4)), "descriptors"),
]  # fmt: skip


@pytest.mark.parametrize("d, p, variant", IN_DIGITS, ids=["dilated", "no whole pieces", "sinks"])
def test_boxes_keep_loops_in_registers(d, p, variant):
    order = orders(lower(p))[-1]
    in_digits = Plan(p, box_axis(lower(p), order, "k"), box_axis(lower(p), order, "q"))
    source, jobs = generate(in_digits, variant), []
    for kernel, axis in zip(KERNELS, (in_digits.forward, in_digits.forward, in_digits.transposed)):
        for config in configs.candidates(kernel, source.kernels[kernel].variant, d, d, 2):
            boxes = choose_boxes(axis, Sizes(16384, 16384, 0), *config.tile(kernel))
            jobs.append(offline.Job(source, kernel, "bf16", d, d, config, boxes=boxes))
    for report, job in zip(offline.compile_all(jobs), jobs):
        assert report.stack <= 16 and report.loop_spills == 0, (job.kernel, report.registers, report.stack)


def test_pieces_keep_loops_in_registers():
    """Kernels whose rows are cut, and those that put the pieces together."""
    plan = make_plan(pc.window(257) | pc.global_(64))
    kernels = [("forward", 128), ("backward_dq", 128), ("backward_dkdv", 64)]
    jobs = [offline.Job(generate(plan, "descriptors", True, "cut"), k, "bf16", d, d, configs.candidates(k, "descriptors", d, d, 2)[0], group=2) for k, d in kernels]
    jobs += [offline.Job(merges(plan), kernel, "bf16", 128, 128, configs.Config(64, 64, 8, 1)) for kernel in MERGES.values()]
    assert all(report.stack <= 16 and report.loop_spills == 0 for report in offline.compile_all(jobs))


def test_float32():
    jobs = [offline.Job(generate(plan), kernel, "fp32", 64, 64, *configs.candidates(kernel, "pointers", 64, 64, 4)) for kernel in KERNELS]
    assert all(report.stack <= 16 for report in offline.compile_all(jobs))


def test_offsets_are_wide(reports):
    """Offsets of heads and of rows are products of 64 bits: tensors beyond 2^31 elements are reached."""
    text = generate(plan).text
    for name in ("q", "k", "v", "o"):
        assert f"tl.cast(b, tl.int64) * {name}_stride_b" in text and f"{name}_stride_h: tl.int64" in text
    assert "tl.cast(first, tl.int64) * stride" in text


@pytest.mark.parametrize("feature, d, group", [("softmax", 128, 4), ("elu+1", 128, 1), ("softmax", 64, 1)])
def test_tails_keep_their_sums_in_registers(feature, d, group):
    """Accumulators of all features fit: nothing of them is spilled in loops."""
    source = tail_kernels.generate(Form(feature, False, False, False, False, described=True))
    chosen = tail_configs.choose(2, "ieee", (2 if feature == "softmax" else 1) * d, group)
    jobs = [offline.TailJob(source, name, "bf16", d, d, config, chosen.slot, group=group) for name, config in chosen.of.items()]
    for job, report in zip(jobs, offline.compile_all(jobs)):
        assert report.loop_spills == 0, f"{job.kernel}: {report.loop_spills} spills, {report.stack} bytes of stack"
        assert report.shared < offline.SHARED_LIMIT and "HMMA" not in report.instructions


@pytest.mark.parametrize("feature, d, block", [("softmax", 128, 64), ("elu+1", 128, 128)])
def test_block_sums_keep_their_sums_in_registers(feature, d, block):
    source = tail_blocks.generate(replace(BlockForm.of(feature, False, False, False), described=True), mask_of(pc.causal - (pc.window(1024) & pc.dilate(2))))
    chosen = tail_blocks_launch.choose(2, "ieee", (2 if feature == "softmax" else 1) * d, block).of | {"block_sums": tail_blocks_launch.SUMS}
    jobs = [offline.TailJob(source, name, "bf16", d, d, chosen[name], block) for name in source.kernels]
    for job, report in zip(jobs, offline.compile_all(jobs)):
        assert report.loop_spills == 0, f"{job.kernel}: {report.loop_spills} spills, {report.stack} bytes of stack"
        assert report.shared < offline.SHARED_LIMIT and "HMMA" not in report.instructions
