"""The generated text: what it means on random expressions, what it looks like, how it is launched."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from kernel_check import DEVICE, SMALL, causal, check, everywhere, formula, q_and_k, streaming, window
from strategies import HEADS, draw_args, patterns

import patternc as pc
from patternc.args import bind
from patternc.codegen import configs, helpers, prepared
from patternc.codegen.code import COL, ROW
from patternc.codegen.configs import Config
from patternc.codegen.kernels import generate
from patternc.codegen.launch import Call, attention_forward
from patternc.codegen.printer import Printer
from patternc.codegen.uses import Uses
from patternc.errors import BackendError, InternalError
from patternc.expr.index import Index
from patternc.expr.pattern import Pattern
from patternc.plan import AxisPlan, Plan

pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in ("Conversion of an array", "divide by zero", "overflow", "invalid value")]
VARIABLES = {"q": ("q_row", ROW), "k": ("k_col", COL), **{name: (name, 0) for name in ("h", "b", "n_q", "n_k")}}


def statements(pattern) -> list[str]:
    printer = Printer(VARIABLES, Uses())
    return [s.text for s in printer.statements({"allowed": printer.pattern(pattern)})]


# Meaning


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(patterns(), st.data())
def test_masks_mean_what_dense_says(pattern, data):
    """With equal scores and one-hot values the output shows the mask."""
    n_q, n_k = data.draw(st.sampled_from([(24, 24), (9, 24)]))
    args = draw_args(data.draw, pattern, n_q, n_k, heads=HEADS, batch=2)
    wanted = pattern.dense(n_q, n_k, heads=HEADS, batch=2, **args)
    bound = bind(pattern, args, n_q, n_k, HEADS, 2).torch(DEVICE)
    zeros, values = torch.zeros(2, HEADS, n_k, 16, device=DEVICE), torch.eye(n_k, device=DEVICE).expand(2, HEADS, n_k, n_k)
    call = Call(everywhere(pattern), 1.0, bound.q_start, bound.values, configs={"forward": Config(16, 32, 4, 1)})
    o, _ = attention_forward(call, zeros[:, :, :n_q].contiguous(), zeros, values.contiguous())
    assert torch.equal(o.cpu() > 0, torch.as_tensor(wanted)), str(pattern)


@pytest.mark.parametrize("broken", ["_floormod", "_floordiv", "_tiles", "_clip"])
def test_the_tests_notice(broken, monkeypatch):
    """A wrong helper fails the comparison with dense attention."""
    wrong = {
        "_floormod": ("remainder + m", "remainder"),
        "_floordiv": ("quotient - 1", "quotient"),
        "_tiles": ("(inner_hi + 1 - first) // BLOCK", "(inner_hi + BLOCK - first) // BLOCK"),
        "_clip": ("tl.maximum(start, done)", "start"),
    }[broken]
    assert sum(wrong[0] in source for source in helpers.SOURCES) == 1
    monkeypatch.setattr(helpers, "SOURCES", tuple(source.replace(*wrong) for source in helpers.SOURCES))
    generate.cache_clear()
    q, k = q_and_k(60, 60)
    plan, allowed = {
        "_floormod": (everywhere((pc.q - 2 * pc.k) % 7 >= 3), (q - 2 * k) % 7 >= 3),
        "_floordiv": (everywhere((pc.q - pc.k) // 5 == -1), (q - k) // 5 == -1),
        "_tiles": (causal, k <= q),
        "_clip": (streaming(30, 4), (k <= q) & ((q - k < 30) | (k < 4))),
    }[broken]
    with pytest.raises(AssertionError):
        check(plan, allowed, 60)
    generate.cache_clear()


# Text


def test_comparisons_keep_the_row_part_out_of_the_loop():
    assert statements(pc.q - pc.k <= 9) == ["row_0 = q_row - 9", "allowed = k_col >= row_0"]
    assert statements(pc.causal) == ["allowed = k_col <= q_row"]
    assert statements((pc.q - pc.k) % 3 == 1) == ["row_0 = q_row % 3", "col_0 = (k_col + 1) % 3", "allowed = row_0 == col_0"]
    assert statements(pc.q // 8 == pc.k // 8) == ["col_0 = k_col >> 3", "row_0 = q_row >> 3", "allowed = col_0 == row_0"]
    assert statements(pc.dilate(4)) == ["row_0 = q_row & 3", "col_0 = k_col & 3", "allowed = row_0 == col_0"]


def test_shared_parts_are_named_once():
    doc = pc.arg("doc")
    lines = statements((doc[pc.q] == doc[pc.k]) & (doc[pc.q] >= 0))
    assert sum("tl.load" in line for line in lines) == 2
    assert any(line.startswith("doc_q = tl.load(arg_doc + q_row, mask=") for line in lines)


def test_precedence():
    text = statements(~((pc.q < 3) | (pc.k < 5)) & (pc.q + pc.k > 9))[-1]
    ast.parse(text)
    assert "~(" in "".join(statements(~((pc.q < 3) | (pc.k < 5))))


def test_unknown_operations_fail_loudly():
    with pytest.raises(InternalError, match="index operation `ceil`"):
        statements(Pattern("in", Index("ceil", pc.q), 0, 1))
    with pytest.raises(InternalError, match="pattern operation `implies`"):
        statements(Pattern("implies", pc.causal, pc.full))
    with pytest.raises(InternalError, match="variable `z`"):
        statements(Index("var", "z") < 3)
    with pytest.raises(InternalError, match="kind `magic`"):
        generate(Plan(pc.causal, AxisPlan("magic", (), 1, True), causal.transposed))


def test_two_loops_and_the_mask_only_in_the_first():
    for kernel in ("forward", "backward_dq", "backward_dkdv"):
        text = generate(streaming(30, 4)).kernels[kernel].text
        before, partial, full = re.split(r"\n *for (?:i|turn) in tl\.range", text)
        assert "allowed" in partial and "allowed" not in before and "allowed" not in full
        assert "mask" not in full.split("_store_rows")[0]


@pytest.mark.parametrize("p, n", [(pc.causal & pc.window(512), None), (pc.neighborhood((64, 64), 9), 4096), (pc.causal & pc.dilate(4) & pc.window(2048), 4096), (pc.causal & (pc.window(9) | pc.dilate(256)), None)], ids=str)
def test_no_loop_divides_by_what_may_be_zero(p, n):
    """Loops without iterations are prepared too, and a compiler may conclude from a division that its divisor is not zero."""
    text = pc.compile(p).source(n)
    inside = [line for line in text.splitlines() if line.startswith("        ")]
    divisors = [d for line in inside for d in re.findall(r"(?://|%) ([\w.]+)", line)]
    assert divisors and all(d.isdigit() or d.isupper() or d == "tl.maximum" or d in ("wide", "stride") for d in divisors), divisors


def test_no_full_loop_where_no_tile_can_be_full():
    never = Plan(pc.dilate(2), formula((0, pc.n_k - 1, 0, -1)), formula((0, pc.n_q - 1, 0, -1)))
    assert generate(never).kernels["forward"].text.count("tl.range") == 1


def test_helpers_are_printed_only_where_used():
    assert "_floormod" not in generate(causal).text and "_swap" not in generate(causal).text
    assert "_swap" in generate(streaming(30, 4)).text


def test_text_is_plain():
    for variant in ("pointers", "descriptors", "rows"):
        text = generate(window(512), variant).text
        ast.parse(text)
        assert max(map(len, text.splitlines())) <= 170
        assert text.endswith(f"\n# Pattern:\n# {window(512).mask}\n")


def test_equal_bytes_in_every_process():
    code = (
        "import hashlib, patternc as pc\nfrom patternc.codegen.kernels import generate\nfrom patternc.plan import make_plan\n"
        'p = pc.documents(pc.arg("d")) & (pc.window(9) | pc.sink(4) | pc.cols(pc.table([3, 7])))\n'
        "print(hashlib.sha256(generate(make_plan(p)).text.encode()).hexdigest())"
    )
    hashes = {subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}) for seed in ("1", "2")}
    assert len(hashes) == 1


def test_one_source_and_one_specialisation_for_all_lengths(tmp_path, monkeypatch):
    """Triton compiles once per key; the keys of three lengths, a prime, 1 and a power of two among them, are equal."""
    code = """
import torch, patternc as pc
from kernel_check import SMALL, streaming
from patternc.codegen import cache, launch
from patternc.codegen.kernels import generate
from patternc.codegen.launch import Call
from triton.backends.compiler import BaseBackend
from triton.backends.nvidia.compiler import CUDABackend
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import create_function_from_signature

keys, texts = set(), set()
backend = CUDABackend(GPUTarget("cuda", 90, 32))
class Recorded:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        def run(num_warps, num_stages, **values):
            bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
            keys.add((self.kernel.fn.__name__, str(bind(**values)[1])))
        return run

load = cache.load
def recorded(text):
    texts.add(text)
    module = load(text)
    return type("M", (), {name: Recorded(getattr(module, name)) for name in ("forward", "backward_rows", "backward_dq", "backward_dkdv")})
cache.load = recorded
for n in (1, 97, 128, 4096):
    for start in (0, 1, 16, n):
        q = torch.zeros(2, 4, n, 40)
        call = Call(streaming(30, 4), 1.0, start, configs=SMALL)
        o, lse = launch.attention_forward(call, q, q, q)
        launch.attention_backward(call, q, q, q, o, lse, o)
print(len(texts), len(keys))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "4"], done.stdout + done.stderr


# Launching


def test_configurations_step_down_to_what_fits():
    config = configs.candidates("forward", "descriptors", 256, 256, 2)[0]
    small = configs.fit("forward", config, 256, 256, 2, 99 * 1024)
    assert configs.shared_bytes("forward", small, 256, 256, 2) <= 99 * 1024
    steps = 0
    while config := configs.smaller(config):
        steps += 1
        assert config.block_m >= 16 and config.block_n >= 16
    assert 4 <= steps <= 12


@pytest.mark.parametrize("kernel", ["forward", "backward_dq", "backward_dkdv", "backward_rows"])
@pytest.mark.parametrize("width", [16, 40, 64, 80, 96, 128, 192, 256])
def test_every_width_has_a_configuration(kernel, width):
    for itemsize in (2, 4):
        for variant in ("pointers", "descriptors"):
            config = configs.fit(kernel, configs.candidates(kernel, variant, width, width, itemsize)[0], width, width, itemsize, 227 * 1024)
            assert configs.shared_bytes(kernel, config, width, width, itemsize) <= 227 * 1024


def test_out_of_resources_never_reaches_a_user(monkeypatch):
    from triton.runtime.errors import OutOfResources

    tried = []

    class Greedy:
        def __getitem__(self, grid):
            def run(BLOCK_M, BLOCK_N, **values):
                tried.append((BLOCK_M, BLOCK_N))
                if BLOCK_M * BLOCK_N > limit:
                    raise OutOfResources(300000, 232448, "shared memory")

            return run

    monkeypatch.setattr(prepared.cache, "load", lambda text: type("M", (), {"forward": Greedy()}))
    monkeypatch.setattr(prepared, "_chosen", {})
    q, limit = torch.zeros(1, 1, 64, 16), 1024
    attention_forward(Call(causal, 1.0), q, q, q)
    assert len(tried) > 1
    tried.clear()
    attention_forward(Call(causal, 1.0), q, q, q)
    assert len(tried) == 1  # what fits is remembered
    limit = 0
    with pytest.raises(BackendError, match="no tile of `forward` fits"):
        attention_forward(Call(window(3), 1.0), q, q, q)


def test_no_queries_no_keys_no_batch():
    for b, n_q, n_k in ((0, 4, 4), (1, 0, 4), (1, 4, 0)):
        q, k = torch.zeros(b, 1, n_q, 16, device=DEVICE), torch.zeros(b, 1, n_k, 16, device=DEVICE)
        o, lse = attention_forward(Call(causal, 1.0, configs=SMALL), q, k, k)
        assert o.shape == q.shape and (o == 0).all() and (lse == float("-inf")).all()


def test_names_of_args_never_clash():
    """Args may be called like anything that a kernel uses itself."""
    n = 20
    q, k = q_and_k(n, n)
    pattern = (pc.q - pc.k < pc.arg("w")) & (pc.k - pc.q < pc.arg("w_stride")) & (pc.arg("lse")[pc.k] > 0) & (pc.arg("arg_w")[pc.q] > pc.arg("x_ptr"))
    pattern &= (pc.arg("tl")[pc.k] < 9) & (pc.arg("table_0")[pc.k] < 9) & (pc.table([5, 6, 7])[pc.q % 3] > 0)
    vectors = {name: torch.arange(n, dtype=torch.int32, device=DEVICE)[None] for name in ("lse", "arg_w", "tl")}
    args = {"w": 5, "w_stride": 3, "x_ptr": 2, "table_0": vectors["tl"] % 11, **vectors}
    check(everywhere(pattern), (q - k < 5) & (k - q < 3) & (k > 0) & (q > 2) & (k < 9) & (k % 11 < 9), n, args=args)


def test_a_configuration_for_one_call_is_not_kept():
    x = torch.randn(1, 1, 40, 16, device=DEVICE)
    attention_forward(Call(causal, 1.0, configs={"forward": Config(16, 16, 4, 1)}), x, x, x)
    assert all(kept.config != Config(16, 16, 4, 1) for key, kept in prepared._launches.items() if key[0] is causal)
