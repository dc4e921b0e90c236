"""The Triton backend through modules, interpreted: real plans of every kind, and what is kept between calls."""

import pytest
import torch
from patterns import CHOICES, PRIMITIVES, composition, near

import patternc as pc

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py runs the same on the card")


def check(spec, dtype=torch.float32, sizes=((70, 70), (33, 90)), **shapes):
    options = dict(heads=2, kv_heads=1, head_dim=16, batch=1, quiet=True, raise_error=True) | shapes
    pc.verify(spec, backend="triton", device="cpu", dtype=dtype, sizes=[tuple(s) for s in sizes], **options)


@pytest.mark.parametrize("spec", PRIMITIVES[::3], ids=str)
def test_primitive(spec):
    check(spec)


@pytest.mark.parametrize("spec", CHOICES[1::4], ids=str)
def test_choice(spec):
    pc.verify(spec, backend="triton", device="cpu", sizes=[(290, 290)], heads=2, kv_heads=2, head_dim=16, batch=1, quiet=True, raise_error=True)


@pytest.mark.parametrize("seed", range(6))
def test_composition(seed):
    check(composition(seed), sizes=[(65, 80)])


@pytest.mark.parametrize("spec", [pc.dilate(40), pc.block(16).roll(5), pc.causal & pc.documents(pc.arg("ids"))], ids=str)
def test_one_query_and_half_precision(spec):
    check(spec, torch.float16, sizes=[(1, 65), (129, 129)], batch=2, heads=4, kv_heads=2)


def test_written_args_make_new_tables():
    module, reference = (pc.compile(pc.causal & pc.documents(pc.arg("ids")), b) for b in ("triton", "reference"))
    q, k, v = torch.randn(3, 1, 1, 150, 16)
    doc = torch.arange(150) // 70
    for _ in range(2):
        torch.testing.assert_close(module(q, k, v, ids=doc), reference(q, k, v, ids=doc))
    doc.copy_(torch.arange(150) // 33)
    torch.testing.assert_close(module(q, k, v, ids=doc), reference(q, k, v, ids=doc))
    torch.testing.assert_close(module(q, k, v, ids=doc.tolist()), reference(q, k, v, ids=doc))
    with torch.inference_mode():
        doc = torch.arange(150) // 20
        torch.testing.assert_close(module(q, k, v, ids=doc), reference(q, k, v, ids=doc))


def test_positions_that_leave_32_bits_are_refused():
    module = pc.compile((pc.q * 100_000_000) // 7 <= pc.k, "triton")
    with pytest.raises(pc.errors.BackendError, match="kernels compute in 32 bits"):
        module(*torch.randn(3, 1, 1, 64, 16))
    torch.testing.assert_close(*(pc.compile((pc.q * 1_000) // 7 <= pc.k * 99, b)(*torch.ones(3, 1, 1, 64, 16)) for b in ("triton", "reference")))


def test_bounds_that_leave_32_bits():
    """Formulas multiply by what the pattern divides by: what is out of the way stays there, and what would wrap is refused."""
    check(near(pc.q // 8, pc.k // 8, 16, 5), sizes=[(128, 128)])
    module = pc.compile(pc.causal & (pc.q // 64 - pc.k // 64 <= pc.arg("w")), "triton")
    with pytest.raises(pc.errors.BackendError, match="kernels compute in 32 bits"):
        module(*torch.randn(3, 1, 1, 200, 16), w=2**26)
