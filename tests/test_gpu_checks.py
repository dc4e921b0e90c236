"""On a card: results that are exact, bits that repeat, errors beside FlexAttention's, and what the sanitizer says."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sanitized import CASES

import patternc as pc
from patternc.args import bind
from patternc.codegen import fused_launch, hopper_choice, prepared
from patternc.codegen.backend import call_of
from patternc.codegen.launch import attention_forward
from patternc.runtime import compiled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
VARIANTS = ["descriptors", "hopper"] if HOPPER else ["pointers"]


def forward(text, variant, q, k, v, scale, stay=None, monkeypatch=None):
    """One forward by the kernel of a variant; `stay` says whether its programs take many row tiles each."""
    if stay is not None:
        monkeypatch.setattr(hopper_choice.Choice, "stays", lambda self, device: stay)
        monkeypatch.setattr(prepared, "_launches", {})
    p = pc.parse(text)
    call = call_of(compiled(p), scale, bind(p, {}, q.shape[2], k.shape[2], heads=q.shape[1], batch=q.shape[0]), q, k, v)
    return attention_forward(replace(call, plan=compiled(p).plan, variant=variant), q, k, v)[0]


def draw(heads, n, width, dtype, low=-8, high=9):
    return torch.randint(low, high, (2, heads, n, width), device="cuda").to(dtype)


# Exact results.  A register that is read before a product has written it would show here, and nowhere else in so many digits.


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("text, keys", [("full", 2048), ("causal & window(256)", 256), ("causal & window(32)", 32), ("causal & dilate(64)", 64)])
def test_means_of_integers(monkeypatch, text, keys, head_dim, dtype, variant, stay):
    """Equal scores: the mean of as many integers as a power of two, for the rows that see so many keys."""
    n = 4096 if "dilate" in text else 2048
    q, k, v = torch.zeros(2, 8, n, head_dim, device="cuda", dtype=dtype), draw(2, n, head_dim, dtype), draw(2, n, head_dim, dtype)
    out = forward(text, variant, q, k, v, 1.0, stay, monkeypatch)
    allowed = pc.parse(text).dense(n, n)[0, 0].to("cuda", torch.float64)
    want = (allowed @ v.double().repeat_interleave(4, 1) / keys).to(dtype)
    rows = allowed.sum(-1) == keys
    assert rows.any() and torch.equal(out[:, :, rows], want[:, :, rows])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_one_key_outweighs_all_others(monkeypatch, head_dim, causal, variant):
    """Each query finds the one key of its window that has its code: the output is that key's value, bit by bit."""
    n, text = 2048, f"window(left={head_dim - 1}, right=0)" if causal else f"block({head_dim})"
    places = torch.arange(n, device="cuda")
    code = torch.randint(0, head_dim, (2, 8, n), device="cuda")
    q = torch.nn.functional.one_hot(code, head_dim).to(torch.bfloat16) * 256
    k = torch.nn.functional.one_hot(places % head_dim, head_dim).to(torch.bfloat16).expand(2, 2, n, head_dim).contiguous()
    v = torch.randn(2, 2, n, head_dim, device="cuda", dtype=torch.bfloat16)
    key = places - (places - code) % head_dim if causal else places // head_dim * head_dim + code
    out = forward(text, variant, q, k, v, 1.0)
    want = v.repeat_interleave(4, 1).gather(2, key.clamp(min=0)[..., None].expand(-1, -1, -1, head_dim))
    rows = (key >= 0).all(0).all(0)
    assert rows.sum() > n // 2 and torch.equal(out[:, :, rows], want[:, :, rows])


# Bits that repeat

REPEATED = [
    ("causal & window(300)", 8, 4096, 4096), ("causal", 8, 2048, 2048), ("causal & (window(200) | sink(4))", 8, 4096, 4096),
    ("window(left=100, right=100) | global(20)", 8, 3072, 3072), ("causal & dilate(2) & window(400)", 8, 4096, 4096), ("causal", 8, 1, 16384),
    ("causal & window(3000)", 8, 3, 16384), ("causal & (window(128) + linear_tail)", 8, 2048, 2048), ("random_blocks(3, 64, seed=0) | window(30)", 8, 2048, 2048),
]  # fmt: skip


@pytest.mark.parametrize("text, heads, n_q, n_k", REPEATED)
def test_bits_repeat(text, heads, n_q, n_k):
    """200 times, forward and, in fewer, backward."""
    module = pc.compile(text, "triton", num_heads=heads, head_dim=128).cuda()
    q, k, v = (torch.randn(2, h, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h, n in ((heads, n_q), (2, n_k), (2, n_k)))
    grad, first, wrong = torch.randn_like(q), None, torch.zeros((), device="cuda", dtype=torch.int64)
    for turn in range(200):
        with torch.set_grad_enabled(turn % 4 == 0):
            out = module(q, k, v)
        found = [out.detach(), *(torch.autograd.grad(out, (q, k, v), grad) if turn % 4 == 0 else ())]
        first = first or found
        for a, b in zip(found, first):
            wrong += (a != b).sum()
    assert int(wrong) == 0


# Errors

COMPARED = ["full", "causal", "causal & window(300)", "causal & (window(200) | sink(4))", "window(left=100, right=100) | global(20)", "causal & dilate(4) & window(800)"]


@pytest.mark.parametrize("head_dim, fused", [(64, False), (128, False), *[(64, True), (128, True)] * HOPPER])
@pytest.mark.parametrize("text", COMPARED)
def test_errors_beside_flex(monkeypatch, text, head_dim, fused):
    """Against float64, outputs and gradients, at most 1.2 times FlexAttention's on the same inputs; the fused backward's as well."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from patternc.bench.peers import mask_mod

    n, spec = 1536, pc.parse(text)
    monkeypatch.setattr(fused_launch, "pays", lambda *given: fused)
    ours_spec = pc.parse(f"({text}) & (q != 100003)") if fused else spec  # a node of its own, of which nothing is kept
    q, k, v = (torch.randn(2, h, n, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (8, 2, 2))
    grad = torch.randn_like(q)
    torch._dynamo.reset()
    mask = None if text == "full" else create_block_mask(mask_mod(spec, {}, n), None, None, n, n, device="cuda")
    flex = torch.compile(flex_attention, dynamic=False)

    def results(attend, *rows):
        out = attend(*rows)
        return out, *torch.autograd.grad(out, rows, grad.to(out.dtype))

    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = results(pc.compile(spec, "reference"), *wide)
    ours = results(pc.compile(ours_spec, "triton"), q, k, v)
    theirs = results(lambda *rows: flex(*rows, block_mask=mask, enable_gqa=True), q, k, v)
    for name, exact, a, b in zip(("out", "dq", "dk", "dv"), want, ours, theirs):
        mine, other = ((x.double() - exact).norm() / exact.norm() for x in (a, b))
        assert mine <= 1.2 * other, f"{name}: {mine:.2e} beside {other:.2e}"


# Memory and races


def _sanitizer() -> str | None:
    folders = [*(Path(p) for p in os.environ.get("CUDA_HOME", "/usr/local/cuda").split(os.pathsep)), *Path("/usr/local").glob("cuda*")]
    return shutil.which("compute-sanitizer") or next((str(f / "bin/compute-sanitizer") for f in folders if (f / "bin/compute-sanitizer").exists()), None)


@pytest.mark.skipif(_sanitizer() is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool, case", [*(("memcheck", case) for case in CASES), *(("racecheck", case) for case in CASES if "pointers" in case)])
def test_sanitizer(tool, case):
    if case.endswith(tuple({"descriptors", "hopper"} - set(VARIANTS))) or (case.endswith("one pass") and not HOPPER):
        pytest.skip("these kernels are for Hopper")
    command = [_sanitizer(), "--tool", tool, "--error-exitcode", "9", sys.executable, str(Path(__file__).with_name("sanitized.py")), case]
    done = subprocess.run(command, env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and "SUMMARY: 0 " in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]
