"""The kernels of two RMSNorms, and of sums over their weights, beside torch in float64: values and gradients, rows of zeros included."""

import pytest
import torch
from kernel_check import DEVICE, MARKS

from patternc import operators
from patternc.codegen import norms as codegen_norms
from patternc.codegen.launch import row_vectors
from patternc.codegen.norms import backward_norms, norms
from patternc.codegen.quotients import backward_quotient, quotient
from patternc.tail import quotient as by_torch, rms_norm

pytestmark = MARKS


@pytest.mark.parametrize("dtype, n, dv, layout", [(torch.float32, 70, 24, "bnhd"), (torch.float32, 7, 128, "bhnd"), (torch.float16, 40, 16, "bhnd")], ids=str)
def test_norms(monkeypatch, dtype, n, dv, layout):
    monkeypatch.setattr(codegen_norms, "STEPS", 2)
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(2, 3, n, dv, generator=g)
    o, t, dy = draw(), 100 * draw(), draw()
    o[:, :, :3] = 0
    t[:, 1, 2:5] = 0
    scales = [torch.rand(3, dv, generator=g) + 0.5 for _ in range(2)]
    o, dy = o.to(dtype), dy.to(dtype)
    exact = [x.double().requires_grad_() for x in (o, t, *scales)]
    want = rms_norm(exact[0], exact[2]) + rms_norm(exact[1], exact[3])
    wanted = [want, *torch.autograd.grad((want * dy).sum(), exact)]
    if layout == "bnhd":
        o, t = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (o, t))
    given = [x.to(DEVICE) for x in (o, t, *scales)]
    got = [norms(*given), *backward_norms(dy.to(DEVICE), *given)]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for a, b in zip(got, wanted):
        a = a.cpu().double()
        assert not a.isnan().any() and not a.isinf().any()
        largest = float(b.detach().abs().max()) if dtype == torch.float32 else min(float(b.detach().abs().max()), 6e4)
        torch.testing.assert_close(a, b.detach().clamp(-largest, largest), atol=tolerance * largest, rtol=tolerance)


@pytest.mark.parametrize("dtype, n, dv", [(torch.float32, 70, 24), (torch.float16, 256, 16), (torch.float32, 1, 16)], ids=str)
def test_vectors_of_rows(dtype, n, dv):
    """What the backward of an attention needs of each row is what its own kernel finds of o and do."""
    dy, o, t = (torch.randn(2, 3, n, dv, device=DEVICE, dtype=dtype) for _ in range(3))
    lse, dlse = (torch.randn(2, 3, n, device=DEVICE) for _ in range(2))
    lse[:, :, n // 3] = -torch.inf
    vectors = row_vectors(lse).fill_(torch.nan)
    do, *_ = backward_norms(dy, o, t, *torch.rand(2, 3, dv, device=DEVICE), (lse, dlse, vectors))
    delta = torch.where(lse.isinf(), 0, (o.double() * do.double()).sum(-1) - dlse)
    torch.testing.assert_close(vectors[0, :, :, :n].double(), delta.double(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(vectors[1, :, :, :n], torch.where(lse.isinf(), torch.inf, lse * 1.4426950408889634))
    assert (vectors[0, :, :, n:] == 0).all() and (vectors[1, :, :, n:] == torch.inf).all()


def test_operator():
    x = [torch.randn(1, 2, 9, 16, device=DEVICE, requires_grad=True) for _ in range(2)] + [torch.ones(2, 16, device=DEVICE, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(operators.norms, tuple(x))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("dtype, n, dv", [(torch.float32, 70, 24), (torch.float16, 19, 128)], ids=str)
def test_quotient(dtype, n, dv, alone):
    g = torch.Generator().manual_seed(0)
    o, t, dy = (torch.randn(2, 3, n, dv, generator=g).to(x) for x in (dtype, torch.float32, dtype))
    w = torch.rand(2, 3, n, generator=g) + 0.5
    w[:, 1, 2:5] = 0
    t[:, 1, 2:5] = 0
    exact = [x.double().requires_grad_() for x in (t, w)]
    want = by_torch(*exact) + (0 if alone else o.double())
    wanted = [want, *torch.autograd.grad((want * dy).sum(), exact)]
    t, w = t.transpose(1, 2).contiguous().transpose(1, 2).to(DEVICE), w.to(DEVICE)
    got = [quotient(None if alone else o.to(DEVICE), t, w, dtype), *backward_quotient(dy.to(DEVICE), t, w)]
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a.cpu().double(), b.detach(), atol=1e-4, rtol=1e-5 if a.dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("alone", [False, True])
def test_operator_of_quotients(alone):
    o, t = (torch.randn(1, 2, 9, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    w = torch.rand(1, 2, 9, device=DEVICE).add(0.5).requires_grad_()
    torch.library.opcheck(operators.quotient, (None if alone else o, t, w, torch.float32))
