"""A call with a term as one function, in groups of heads, beside its parts one after the other."""

import pytest
import torch
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc import functional, joint, reference

pytestmark = MARKS
RATTENTION = pc.zoo.rattention(window=5)


def inputs(own=False, n=40, heads=8, kv_heads=4):
    g = torch.Generator().manual_seed(0)
    shapes = [(heads, 16), (kv_heads, 16), (kv_heads, 8)] + [(heads, 8), (kv_heads, 8)] * own
    x = [torch.randn(1, h, n, d, generator=g).to(DEVICE).requires_grad_() for h, d in shapes]
    scales = [(torch.randn(heads, 8, generator=g) + 1).to(DEVICE).requires_grad_() for _ in range(2)]
    return x, dict(zip(("tail_q", "tail_k"), x[3:])), dict(zip(("exact_scale", "tail_scale"), scales))


@pytest.mark.parametrize("groups, own", [(1, False), (2, True), (4, False), (4, True)])
def test_groups(monkeypatch, groups, own):
    """As many groups as heads allow; each is as large as it must be, and no larger; results and all gradients are those of the reference."""
    x, tails, scales = inputs(own)
    monkeypatch.setattr(joint, "groups_of", lambda *_: groups)
    spans, norms = [], functional.runtime.backend_module("triton").backward_norms
    monkeypatch.setattr(functional.runtime.backend_module("triton"), "backward_norms", lambda dy, *rest: (spans.append(dy.shape[1]), norms(dy, *rest))[1])
    leaves = [*x, *scales.values()]
    out, lse = functional.attention(RATTENTION, *x[:3], backend="triton", **tails, **scales)
    wanted, wanted_lse = reference.attention(RATTENTION, *x[:3], **tails, **scales)
    torch.testing.assert_close(out, wanted.to(out.dtype), atol=1e-4, rtol=1e-4)
    found, want = (torch.autograd.grad((y * y.detach().cos()).sum() + z.sin().sum(), leaves) for y, z in ((out, lse), (wanted, wanted_lse)))
    for a, b in zip(found, want):
        torch.testing.assert_close(a, b.to(a.dtype), atol=2e-3, rtol=1e-3)
    assert spans == [8 // groups] * groups


@pytest.mark.filterwarnings("ignore:an input whose last stride is not 1")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("lie", [lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)])
def test_gradients_of_inputs_that_lie_otherwise(own, lie):
    """Memory for gradients lies as kernels write it, however inputs do."""
    x, _, scales = inputs(own)
    leaves, found = [lie(y.detach()).requires_grad_() for y in x], []
    for attend in (lambda *given, **more: functional.attention(*given, backend="triton", **more), reference.attention):
        out, _ = attend(RATTENTION, *leaves[:3], **dict(zip(("tail_q", "tail_k"), leaves[3:])), **scales)
        found.append(torch.autograd.grad((out * out.detach().cos()).sum(), leaves))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b.to(a.dtype), atol=2e-3, rtol=1e-3)


def test_what_depends_on_heads_goes_whole():
    spec = pc.parse("causal & ((h % 2 == 0) & window(3) | window(2) + linear_tail)")
    q, k = (torch.empty(1, h, 1 << 16, 128, device="meta") for h in (16, 16))
    assert joint.groups_of(spec, q, k) == 1


@pytest.mark.parametrize("shape, kv_heads, groups", [((1, 16, 1 << 16, 128), 16, 8), ((1, 16, 1 << 14, 128), 16, 1), ((4, 16, 1 << 14, 128), 4, 1), ((2, 12, 1 << 17, 64), 12, 6)])
def test_groups_of_long_calls(shape, kv_heads, groups):
    """So many that the workspace is three quarters of the inputs and the output, where it can be."""
    q = torch.empty(shape, device="meta")
    assert joint.groups_of(RATTENTION, q, q[:, :kv_heads]) == groups


def test_what_is_one_function():
    (q, k, v, *own), _, _ = inputs(True)
    assert joint.takes(RATTENTION, q, k, v, None, None) and joint.takes(RATTENTION, q, k, v, *own)
    assert not joint.takes(RATTENTION, q, k, v, own[0].half(), own[1])
    for other in (pc.zoo.rattention(5, initial_state=True), pc.zoo.performer()):
        assert not joint.takes(other, q, k, v, None, None)


def test_keys_and_queries_that_share_memory_have_gradients_of_their_own():
    """A query that is detached for the term passes nothing on from it."""
    (q, k, v), _, _ = inputs()
    apart = functional.attention(RATTENTION, q, k, v, backend="triton", tail_q=q.detach(), tail_k=k.detach())[0]
    wanted = reference.attention(RATTENTION, q, k, v, tail_q=q.detach(), tail_k=k.detach())[0].to(q.dtype)
    for a, b in zip(*(torch.autograd.grad((y * y.detach().cos()).sum(), (q, k, v)) for y in (apart, wanted))):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)
