"""What users get wrong in calls: every mistake is an error of patternc; odd but meaningful calls agree with the reference."""

import numpy as np
import pytest
import torch

import patternc as pc
from patternc import arg, k, q
from patternc.errors import (
    ArgError,
    BackendError,
    DeviceError,
    DtypeError,
    OperandError,
    ParameterError,
    PatterncError,
    PatternSyntaxError,
    ShapeError,
)
from patternc.reference import dense
from patternc.verify import verify

WINDOW = pc.causal & pc.window(5)
TAIL = pc.causal & (pc.window(left=4, right=0) + pc.linear_tail(norm="none"))
Q, K, V = (torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))


@pytest.mark.parametrize("spec", [WINDOW, TAIL], ids=["pattern", "attention"])
@pytest.mark.parametrize("inputs, options, error, message", [
    ((None, K, V), {}, OperandError, "`q` must be a torch tensor, got NoneType"),
    ((Q.numpy(), K, V), {}, OperandError, "`q` must be a torch tensor, got ndarray"),
    ((Q, K.to_sparse(), V), {}, OperandError, "`k` must be a dense tensor, got a sparse one"),
    ((Q.to("meta"), K.to("meta"), V.to("meta")), {}, DeviceError, "are on the meta device"),
    ((Q[:, :0], K, V), {}, ShapeError, "0 query heads cannot share 2 key heads"),
    ((Q, K, V), {"scale": float("nan")}, ParameterError, "`scale` must be finite, got nan"),
    ((Q, K, V), {"scale": -float("inf")}, ParameterError, "`scale` must be finite, got -inf"),
    ((Q, K, V), {"check": [1]}, OperandError, "`check` must be True or False, got list"),
])  # fmt: skip
def test_inputs(spec, inputs, options, error, message):
    with pytest.raises(error, match=message):
        pc.compile(spec, "cpu")(*inputs, **options)


@pytest.mark.parametrize("options, error, message", [
    ({"tail_q": 3}, OperandError, "`tail_q` must be a torch tensor, got int"),
    ({"tail_q": Q.long()}, DtypeError, "`tail_q` has dtype torch.int64"),
    ({"tail_k": K.to("meta")}, DeviceError, "`tail_k` is on meta, and `k` is on cpu"),
])  # fmt: skip
def test_tail_inputs(options, error, message):
    with pytest.raises(error, match=message):
        pc.compile(TAIL, "cpu")(Q, K, V, **options)


def test_a_term_does_not_fit():
    wide = torch.randn(1, 2, 8, 32)
    state = pc.causal & (pc.window(left=4, right=0) + pc.linear_tail(initial_state=True))
    with pytest.raises(ShapeError, match="parameters are for the value's head_dim 16, got 32"):
        pc.compile(state, "cpu", num_heads=2, head_dim=16)(Q, K, wide)
    with pytest.raises(ShapeError, match="parameters are for head_dim 16 in the term, got 32"):
        pc.compile(state, "cpu", num_heads=2, head_dim=16)(Q, K, V, tail_q=wide, tail_k=wide)
    for feature in (lambda x: None, lambda x: x[..., 0]):
        with pytest.raises(ShapeError, match="it may change the last axis only"):
            pc.compile(pc.empty + pc.linear_tail(feature=feature, norm="none"), "cpu")(Q, K, V)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.uint64])
def test_ids_of_any_integer_dtype(dtype):
    ids = (torch.arange(8) // 3).to(dtype)
    out, want = (pc.compile(pc.documents(arg("doc")), backend)(Q, K, V, doc=x) for backend, x in (("cpu", ids), ("reference", ids.long())))
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(pc.compile(pc.documents(arg("doc")), "cpu")(Q, K, V, doc=ids.numpy()), want)


def test_args_without_data():
    for ids in (torch.arange(8).to_sparse(), torch.zeros(8, dtype=torch.int64, device="meta")):
        with pytest.raises(PatterncError, match="must be a dense tensor|is on the meta device"):
            pc.compile(pc.documents(arg("doc")), "cpu")(Q, K, V, doc=ids)
        with pytest.raises(ParameterError, match="the values of this tensor cannot be read"):
            pc.parse("cols(tokens)", tokens=ids)


@pytest.mark.parametrize("spec", [WINDOW, pc.documents(arg("doc")), TAIL, pc.documents(arg("doc")) & TAIL], ids=str)
@pytest.mark.parametrize("batch, n_q, n_k", [(0, 8, 8), (1, 0, 0), (1, 0, 5)])
def test_nothing_to_do(spec, batch, n_q, n_k):
    inputs = [torch.randn(batch, 2, n, 16, requires_grad=True) for n in (n_q, n_k, n_k)]
    args = {"doc": torch.zeros(n_k, dtype=torch.int64)} if "doc" in str(spec) else {}
    out, lse = pc.compile(spec, "cpu")(*inputs, return_lse=True, **args)
    assert out.shape == (batch, 2, n_q, 16) and lse.shape == (batch, 2, n_q)
    assert all(g.shape == x.shape and not g.any() for g, x in zip(torch.autograd.grad(out.sum() + lse.sum(), inputs), inputs))


@pytest.mark.parametrize("make", [
    lambda x, y: x[y[q]] < 3, lambda x, y: ~(x[y[q]] <= k), lambda x, y: x[y[q]] % 3 == k % 3, lambda x, y: x[y[q]] == x[y[k]],
])  # fmt: skip
def test_reads_of_an_empty_tensor_are_outside(make):
    p, args = make(arg("x"), arg("y")), {"x": torch.zeros(0, dtype=torch.int64), "y": torch.arange(8)}
    out, want = (pc.compile(p, backend)(Q, K, V, **args) for backend in ("cpu", "reference"))
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("name", ["p", "r", "n", "spec", "plan"])
def test_args_may_be_named_like_parameters(name):
    p = pc.window(arg(name))
    args, module = {name: 3}, pc.compile(p, "cpu")
    torch.testing.assert_close(module(Q, K, V, **args), pc.compile(pc.window(3), "cpu")(Q, K, V))
    assert module.cost(8, **args).allowed_pairs == module.layout(8, **args).allowed_pairs == int(p.dense(8, **args).sum())
    assert str(module.explain(8, **args)) and pc.equivalent(p, pc.window(3), 8, **args)


@pytest.mark.parametrize("name", ["tile", "kv_heads", "value_dim", "transposed", "device"])
def test_reserved_names(name):
    with pytest.raises(ParameterError, match="the call itself uses that name"):
        arg(name)


@pytest.mark.parametrize("options", [{"tile": 128}, {"tile": (0, 5)}, {"tile": (8, "x")}, {"batch": -1}, {"heads": "x"}, {"n_k": 10**30}], ids=str)
def test_sizes_of_reports(options):
    module = pc.compile(WINDOW)
    for report in (module.layout, module.cost, module.explain):
        with pytest.raises(PatterncError):
            report(8, **options)
    for name in ("head_dim", "value_dim", "kv_heads"):
        with pytest.raises(ParameterError, match=f"`{name}` must be an integer, got 'x'"):
            module.cost(8, **{name: "x"})


@pytest.mark.parametrize("spec, options, error", [
    (pc.linear_tail, {}, OperandError), ("causal &", {}, PatternSyntaxError), ("linear_tail", {}, OperandError), (WINDOW, {"backend": "cuda"}, NameError), (WINDOW, {"device": "nowhere"}, DeviceError),
    (WINDOW, {"dtype": torch.int64}, DtypeError), (WINDOW, {"sizes": [(1, 2, 3)]}, ParameterError), (WINDOW, {"sizes": -1}, ParameterError),
    (WINDOW, {"heads": -1}, ParameterError), (WINDOW, {"batch": None}, ParameterError), (WINDOW, {"args": "x"}, OperandError), (WINDOW, {"run": 3}, OperandError),
    (WINDOW, {"seed": "x"}, ParameterError),
], ids=str)  # fmt: skip
def test_verify_takes(spec, options, error):
    with pytest.raises(error) as caught:
        verify(spec, quiet=True, **options)
    assert isinstance(caught.value, PatterncError)


def test_layers():
    for sizes in ((None, 4), (32, None)):
        with pytest.raises(ParameterError, match="is a positive integer, got None"):
            pc.nn.PatternAttention(*sizes, WINDOW)
    layer = pc.nn.PatternAttention(32, 4, WINDOW)
    with pytest.raises(OperandError, match="`x` must be a torch tensor, got list"):
        layer([1.0])
    with pytest.raises(ArgError, match="a layer returns its output alone"):
        layer(torch.randn(1, 8, 32), return_lse=True)


def test_traced_calls_raise_the_same_errors():
    traced = torch.compile(pc.compile(WINDOW, "cpu"), fullgraph=True, backend="aot_eager")
    with pytest.raises(DtypeError, match="different dtypes"):
        traced(Q.half(), K, V)
    with pytest.raises(ShapeError, match="`q` must have shape"):
        traced(Q[0], K, V)


@pytest.mark.parametrize("value", ["abc", {"a": 1}, [[0], [0, 1]], ["a"] * 8, object(), q, 3, None, True], ids=lambda x: type(x).__name__)
def test_traced_args_raise_the_same_errors(value):
    module = pc.compile(pc.documents(arg("doc")), "cpu")
    wordings = []
    for call in (module, torch.compile(module, fullgraph=True, backend="eager")):
        with pytest.raises(PatterncError) as caught:
            call(Q, K, V, doc=value)
        wordings.append((type(caught.value), str(caught.value)))
    assert wordings[0] == wordings[1]


def test_redraw_takes_a_seed():
    module = pc.compile(pc.empty + pc.linear_tail(feature="favor+", norm="none"), num_heads=2, head_dim=16)
    with pytest.raises(ParameterError, match="`seed` must be an integer"):
        module.redraw("x")
    with pytest.raises(BackendError, match="no random features"):
        pc.compile(WINDOW).redraw(1)


def test_a_picture_of_nothing():
    pytest.importorskip("matplotlib")
    with pytest.raises(ParameterError, match="has nothing to draw"):
        pc.plot(WINDOW, 0)
    with pytest.raises(ParameterError, match="`path` is the name of a file"):
        pc.plot(WINDOW, 8, path=3)
    with pytest.raises(ParameterError, match="`ax` is a matplotlib Axes"):
        pc.plot(WINDOW, 8, ax="x")
    assert np.array_equal(pc.plot(pc.window(arg("p")), 8, p=3).get_title(), "window(p)")


@pytest.mark.parametrize("use", [pc.compile, lambda p: dense(pc.parse(p), 4)], ids=["compile", "dense"])
def test_a_place_is_no_position(use):
    with pytest.raises(OperandError, match="(?s)`i` stands for a position inside of functions.*causal & \\(i < 1\\).*write `q` or `k`"):
        use("causal & (i < 1)")


def test_a_feature_takes_a_tensor():
    with pytest.raises(ParameterError, match="a feature takes one tensor \\[.., d\\], and <lambda> does not"):
        pc.linear_tail(feature=lambda: 1)
