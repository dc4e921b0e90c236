"""The kernels compile for Hopper without a GPU, and the hot loops keep everything in registers."""

from __future__ import annotations

import pytest

import patternc as pc
from patternc.codegen import configs, offline
from patternc.codegen.kernels import generate
from patternc.plan import R0, R1, AxisPlan, Plan, Run

WIDTH = 512
plan = Plan(
    pc.causal & (pc.q - pc.k < WIDTH),
    AxisPlan("formula", (Run(R0 - WIDTH + 1, R1, R1 - WIDTH + 1, R0),), 1, True),
    AxisPlan("formula", (Run(R0, R1 + WIDTH - 1, R1, R0 + WIDTH - 1),), 1, True),
)
KERNELS = [("forward", False), ("forward", True), ("backward_dq", False), ("backward_dkdv", False)]
CASES = [(variant, d, kernel, short) for variant in ("descriptors", "pointers") for d in (64, 128) for kernel, short in KERNELS]


@pytest.fixture(scope="module")
def reports():
    jobs = [
        offline.Job(generate(plan, variant), kernel, "bf16", d, d, configs.choose(kernel, variant, d, d, 2, short)) for variant, d, kernel, short in CASES
    ]
    rows = offline.Job(generate(plan), "backward_rows", "bf16", 128, 128, configs.choose("backward_rows", "pointers", 128, 128, 2))
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
    report = reports["pointers", 128, "forward", True]
    assert "LDGSTS.E.BYPASS.128" in report.sass
    assert "LDGSTS.E.32" not in report.sass and report.instructions["LDGSTS"] <= 96


def test_rows(reports):
    assert reports["rows"].stack == 0


def test_offsets_are_wide(reports):
    """Offsets of heads and of rows are products of 64 bits: tensors beyond 2^31 elements are reached."""
    text = generate(plan).text
    for name in ("q", "k", "v", "o"):
        assert f"tl.cast(b, tl.int64) * {name}_stride_b" in text and f"{name}_stride_h: tl.int64" in text
    assert "tl.cast(first, tl.int64) * stride" in text
