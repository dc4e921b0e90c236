"""The kernels of two RMSNorms beside torch in float64: values and gradients, rows of zeros included."""

import pytest
import torch
from kernel_check import DEVICE, MARKS

from patternc import operators
from patternc.codegen import norms as codegen_norms
from patternc.codegen.norms import backward_norms, norms
from patternc.tail import rms_norm

pytestmark = [*MARKS, pytest.mark.usefixtures("one_thread")]


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


def test_operator():
    x = [torch.randn(1, 2, 9, 16, device=DEVICE, requires_grad=True) for _ in range(2)] + [torch.ones(2, 16, device=DEVICE, requires_grad=True) for _ in range(2)]
    torch.library.opcheck(operators.norms, tuple(x))
