"""On a GPU: every primitive and twenty random compositions, outputs and all gradients, in three dtypes (`pytest -m gpu`)."""

import random

import pytest
import torch

import patternc as pc

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ids, tokens, mask, width, place = pc.arg("ids"), pc.arg("tokens"), pc.arg("mask"), pc.arg("width"), pc.arg("place")
PRIMITIVES = [
    pc.causal, pc.full, pc.empty, pc.window(37), pc.window(left=50, right=3), pc.window(width), pc.dilate(3), pc.dilate(150), pc.block(48),
    pc.block(32, back=2, ahead=1), pc.rows(5), pc.rows([3, 77, 140]), pc.rows(tokens), pc.cols(range(10, 90, 7)), pc.cols(tokens), pc.global_(9),
    pc.global_(tokens), pc.sink(4), pc.prefix(60), pc.prefix(pc.arg("p")), pc.same(lambda i: i // 40), pc.same(ids), pc.documents(ids), pc.valid(mask),
    pc.window(9).at(pc.i // 3), pc.causal.at(place), pc.window(20).shift(11), pc.block(64).roll(17), pc.heads([0, 3]) & pc.causal,
    pc.per_head(pc.causal, pc.window(30), pc.sink(3), pc.empty), (pc.q - pc.k) % 3 == 1, (pc.q - 5) // 7 - (pc.k - 5) // 7 == -1,
    pc.where(pc.q < 50, pc.k, pc.q) < 60, pc.table([0, 2, 1, 2])[pc.q % 4] == pc.table([0, 2, 1, 2])[pc.k % 4],
]  # fmt: skip


def composition(seed: int) -> pc.Pattern:
    draw = random.Random(seed)
    pool = [p for p in PRIMITIVES if p.op not in ("true", "false")]
    out = draw.choice(pool)
    for _ in range(draw.randint(2, 4)):
        other, operator = draw.choice(pool), draw.choice("&&|||-^")
        out = {"&": out & other, "|": out | other, "-": out - other, "^": out ^ other}[operator]
    return pc.causal & out if draw.random() < 0.5 else out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("spec", PRIMITIVES, ids=str)
def test_primitive(spec, dtype):
    check(spec, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_composition(seed, dtype):
    check(composition(seed), dtype)


def check(spec, dtype):
    pc.verify(spec, backend="triton", device="cuda", dtype=dtype, sizes=[(200, 200), (65, 333), (1, 129)], heads=4, kv_heads=2, head_dim=64, quiet=True, raise_error=True)


@pytest.mark.parametrize("head_dim, value_dim", [(16, 16), (40, 40), (80, 64), (96, 96), (128, 64), (192, 128), (256, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_head_dims(head_dim, value_dim, dtype):
    pc.verify(
        pc.causal & (pc.window(70) | pc.sink(4)), backend="triton", device="cuda", dtype=dtype, sizes=[(300, 300)], heads=4, kv_heads=1,
        head_dim=head_dim, value_dim=value_dim, quiet=True, raise_error=True,
    )  # fmt: skip


def test_traced_and_captured():
    module = pc.compile(pc.causal & pc.window(100) & pc.documents(ids), "triton")
    q, k, v = (torch.randn(2, h, 300, 64, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2))
    doc = torch.arange(300, device="cuda") // 77
    want = module(q, k, v, ids=doc)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(q, k, v, ids=doc), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = module(q, k, v, ids=doc)
    doc.copy_(torch.arange(300, device="cuda") // 50)
    graph.replay()
    torch.testing.assert_close(out, module(q, k, v, ids=doc))


def test_offsets_beyond_32_bits():
    q = torch.randn(1, 1, 256, 64, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.empty(1, 1, 2**31 // 64 + 4096, 64, device="cuda", dtype=torch.bfloat16).normal_() for _ in range(2))
    out = pc.compile(pc.causal & pc.window(300), "triton")(q, k, v)
    want = pc.compile(pc.causal & pc.window(300), "triton")(q, k[:, :, -1024:], v[:, :, -1024:])
    torch.testing.assert_close(out, want)


def test_auto_takes_triton_and_runs_the_tail_with_torch():
    assert pc.compile(pc.causal)(*torch.randn(3, 1, 1, 40, 16, device="cuda")).is_cuda
