"""The registered operators: layouts of their results as graphs expect them, gradients beside numbers among the args."""

import pytest
import torch
from kernel_check import DEVICE, MARKS

import patternc as pc
from patternc import functional, joint, operators
from patternc.errors import DtypeError, OperandError, ShapeError
from patternc.runtime import compiled

pytestmark = MARKS
HEADS, KV_HEADS, N, D = 4, 2, 12, 8
LAYOUTS = ["heads apart", "heads side by side", "slices of one tensor"]


def rows(layout, grad=True):
    """q, k, v as a model's projections lay them out."""
    shapes = (HEADS, N), (KV_HEADS, N), (KV_HEADS, N)
    if layout == "heads apart":
        found = [torch.randn(2, h, n, D, device=DEVICE) for h, n in shapes]
    elif layout == "heads side by side":
        found = [torch.randn(2, n, h, D, device=DEVICE).transpose(1, 2) for h, n in shapes]
    else:
        found = torch.randn(2, N, HEADS + 2 * KV_HEADS, D, device=DEVICE).transpose(1, 2).split((HEADS, KV_HEADS, KV_HEADS), 1)
    return [x.detach().requires_grad_(grad) for x in found]


def call(spec, **args):
    functional.prepare(spec)
    return *operators.pack(spec.facts["arg_names"], args, None), compiled(spec).key


def check(operator, given):
    torch.library.opcheck(operator, given, test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"))


@pytest.mark.parametrize("backend", ["triton", "cpu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention(layout, backend):
    check(operators.attention, (*rows(layout), *call(pc.parse('causal & window(arg("w"))'), w=5), backend, 0.3, False, False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_terms(layout):
    check(operators.tail_attention, (*rows(layout), *call(pc.parse('causal & (window(arg("w")) + linear_tail)'), w=5), "triton", "softmax", True))
    q, k, v = rows(layout, grad=False)
    t, w = torch.randn_like(q), torch.rand(q.shape[:3], device=DEVICE)
    check(operators.norms_backward, (torch.randn_like(q), q, t, *torch.rand(2, HEADS, D, device=DEVICE).unbind()))
    check(operators.quotient_backward, (torch.randn_like(q), t, w))
    check(operators.linear_attention, (*rows(layout), *call(pc.parse("causal & (window(5) + linear_tail)"))))


@pytest.mark.parametrize("layout, own", [(LAYOUTS[1], True), (LAYOUTS[2], False)])
def test_both_parts(layout, own):
    q, k, v = rows(layout)
    more = rows(layout)[:2] if own else (None, None)
    scales = torch.rand(2, HEADS, D, device=DEVICE).requires_grad_().unbind()
    spec = pc.parse('causal & documents(arg("d")) & (window(arg("w")) + linear_tail)')
    args = call(spec, w=5, d=torch.arange(N, device=DEVICE) // 7)
    check(joint.joint, (q, k, v, *more, *scales, *args, 0.3, False))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("text", ['causal & window(arg("w"))', 'causal & (window(arg("w")) + linear_tail)', 'causal & (window(arg("w")) + linear_tail(norm="none"))'])
def test_gradients_beside_numbers(text, backend):
    module, x = pc.compile(text, backend, num_heads=HEADS, head_dim=D).to(DEVICE), rows(LAYOUTS[1])
    runs = [module(*x, w=5), torch.compile(module, fullgraph=True, backend="aot_eager")(*x, w=5)]
    torch.testing.assert_close(*runs)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), [*x, *module.parameters()]) for y in runs))


def test_few_queries_of_many_keys():
    """Heads that share keys are the rows of one tile there: results are given back as the queries lie."""
    q = torch.randn(1, 3, 8, D, device=DEVICE).transpose(1, 2)
    k, v = (torch.randn(1, 2, 700, D, device=DEVICE) for _ in range(2))
    out, _ = operators.attention(q, k, v, *call(pc.causal), "triton", 0.3, False, False)
    assert out.stride() == q.stride()
    torch.testing.assert_close(out, pc.compile(pc.causal, "cpu")(q, k, v, scale=0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
def test_scales_of_other_shapes_are_refused(backend):
    spec, (q, k, v) = pc.parse("causal & (window(5) + linear_tail)"), rows(LAYOUTS[0], grad=False)
    for wrong in (torch.ones(2 * HEADS, D)[:2], torch.ones(HEADS, D - 1), torch.ones(D)):
        with pytest.raises(ShapeError, match=rf"`exact_scale` must have shape \(4, 8\), got \({', '.join(map(str, wrong.shape))}"):
            functional.attention(spec, q, k, v, backend=backend, exact_scale=wrong.to(DEVICE))
    with pytest.raises(OperandError, match="`tail_scale` must be a torch tensor, got list"):
        functional.attention(spec, q, k, v, backend=backend, tail_scale=[1.0])
    with pytest.raises(DtypeError, match="`tail_scale` has dtype torch.int64"):
        functional.attention(spec, q, k, v, backend=backend, tail_scale=torch.ones(HEADS, D, dtype=torch.int64, device=DEVICE))


def test_own_queries_of_other_kinds_are_refused():
    module, (q, k, v) = pc.compile("causal & (window(5) + linear_tail)", "triton", num_heads=HEADS, head_dim=D).to(DEVICE), rows(LAYOUTS[0], grad=False)
    for wrong, error in (([1], OperandError), (torch.tensor(1.0, device=DEVICE), ShapeError), (q[0], ShapeError)):
        with pytest.raises(error, match="`tail_q` must"):
            module(q, k, v, tail_q=wrong)
