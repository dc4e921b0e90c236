"""Runtime args: what a call may give, in which shapes, and what it is told when it does not fit."""

import numpy as np
import pytest
import torch

import patternc as pc
from patternc.args import bind, signature
from patternc.errors import ArgError, DeviceError, DtypeError, LimitError, ParameterError, ShapeError
from patternc.expr.bounds import bounds

arg, q, k, h, b = pc.arg, pc.q, pc.k, pc.h, pc.b


def test_signature_names_every_use():
    p = pc.window(arg("w")) & pc.documents(arg("doc")) & pc.valid(arg("m")) & (pc.cols(arg("t")) | (arg("x")[b, q // 4] == 1)) & pc.heads(arg("hs"))
    found = signature(p + pc.linear_tail)
    assert {name: (use.kind, use.rank, use.over_heads) for name, use in found.items()} == {
        "doc": ("array", 1, False), "hs": ("positions", 1, True), "m": ("lengths", 1, False), "t": ("positions", 1, False),
        "w": ("scalar", 0, False), "x": ("array", 2, False),
    }
    assert len(found["doc"].subscripts) == 2
    assert signature(pc.causal) == {}


def test_signature_finds_args_inside_subscripts():
    assert signature(arg("a")[arg("b_")[q]] == arg("c"))["b_"].kind == "array"


@pytest.mark.parametrize("pattern, message", [
    (pc.window(arg("w")) & pc.documents(arg("w")), "arg `w` is used as a number and with subscripts (1)\nfix: give the two uses two names"),
    (pc.cols(arg("t")) & pc.valid(arg("t")), "arg `t` is used as a set of positions and by `valid`\nfix: give the two uses two names"),
    ((arg("t")[q] == 0) & (arg("t")[b, q] == 0), "arg `t` is used with subscripts (2) and with subscripts (1)\nfix: give the two uses two names"),
])
def test_conflicting_uses(pattern, message):
    with pytest.raises(ArgError) as error:
        signature(pattern)
    assert sorted(str(error.value).split()) == sorted(message.split())


doc, window, cols, valid = pc.documents(arg("doc")), pc.window(arg("w")), pc.cols(arg("t")), pc.valid(arg("m"))

WRONG = [
    (doc, dict(), ArgError, "missing arg `doc`\nfix: give it by name: `doc=...`"),
    (doc & window, dict(), ArgError, "missing args `doc`, `w`\nfix: give them by name: `doc=...`"),
    (doc, dict(doc=None), ArgError, "missing arg `doc`\nfix: give it by name: `doc=...`"),
    (doc, dict(docs=[0] * 6), ArgError, "unknown arg `docs`\nfix: did you mean `doc`?"),
    (doc, dict(doc=[0] * 6, tokens=3), ArgError, "unknown arg `tokens`\nfix: the pattern's args are doc"),
    (pc.causal, dict(doc=[0] * 6), ArgError, "unknown arg `doc`\nfix: the pattern has no args"),
    (doc, dict(doc=torch.zeros(6)), DtypeError, "arg `doc` must hold integers or bools, got float32\nfix: convert it, as in `x.long()`"),
    (doc, dict(doc=[0.5] * 6), DtypeError, "arg `doc` must hold integers or bools, got float64\nfix: convert it, as in `x.long()`"),
    (doc, dict(doc="abc"), ArgError, "arg `doc` must be a number or a tensor, got str\nfix: give integers or bools"),
    (doc, dict(doc=[[0], [0, 1]]), ArgError, "arg `doc` must be a number or a tensor, got a ragged list\nfix: give a tensor of integers or bools"),
    (doc, dict(doc=q), ArgError,
     "arg `doc` must be a number or a tensor, got an expression\nfix: expressions belong into the pattern; a call takes values"),
    (doc, dict(doc=3), ShapeError, "arg `doc` takes 1 subscript in the pattern, got the number 3\nfix: give a tensor of 1 axis"),
    (doc, dict(doc=torch.zeros(5).long()), ShapeError,
     "arg `doc` is indexed by a position, so its length there is n_k = 6, got shape (5,)\nfix: queries index it absolutely too, whatever n_q is"),
    (doc, dict(doc=torch.zeros(3, 6).long()), ShapeError, "arg `doc` has a batch axis of 3, and the batch is 2\n    (3, 6)\nfix: use 2 or 1 rows"),
    (doc, dict(doc=torch.zeros(2, 2, 6).long()), ShapeError,
     "arg `doc` must have 1 axis, or 2 with the batch in front, got shape (2, 2, 6)\nfix: compare it with the pattern"),
    (arg("d")[b, q] == 0, dict(d=torch.zeros(2, 2, 6).long()), ShapeError,
     "arg `d` has 2 subscripts, the batch `b` among them, got shape (2, 2, 6)\nfix: give a tensor of 2 axes"),
    (arg("d")[b, q] == 0, dict(d=torch.zeros(1, 6).long()), ShapeError,
     "arg `d` has length 1 along axis 0, and its subscript there reaches 1\nfix: make it longer, or bound the subscript: `min(..., 0)`"),
    (arg("d")[q // 2] == 0, dict(d=[0, 0]), ShapeError,
     "arg `d` has length 2 along axis 0, and its subscript there reaches 2\nfix: make it longer, or bound the subscript: `min(..., 1)`"),
    (pc.table([0, 1])[k // 2] == 0, dict(), ShapeError,
     "a table has length 2 along axis 0, and its subscript there reaches 2\nfix: make it longer, or bound the subscript: `min(..., 1)`"),
    (window, dict(w=True), DtypeError, "arg `w` must be an integer, got bool\nfix: give an int, or an int tensor of shape [] or [batch]"),
    (window, dict(w=2**40), LimitError, "arg `w` is too large: 1099511627776\nfix: keep integers within 2147483647 in magnitude"),
    (window, dict(w=np.uint64(2**63)), LimitError, "arg `w` is too large: 9223372036854775808\nfix: keep integers within 2147483647 in magnitude"),
    (window, dict(w=np.array(2**63, np.uint64)), LimitError,
     "arg `w` is too large: 9223372036854775808\nfix: keep integers within 2147483647 in magnitude"),
    (window, dict(w=torch.tensor([3, -(2**31)])), LimitError, "arg `w` is too large: 2147483648\nfix: keep integers within 2147483647 in magnitude"),
    (window, dict(w=[1, 2, 3]), ShapeError,
     "arg `w` must be a number or have shape [] or [2], got (3,)\nfix: give one integer, or one for each batch row"),
    (cols, dict(t=3), ShapeError,
     "arg `t` is a mask or a list of positions, got the number 3\nfix: a list of one position is `[3]`; a count belongs into the pattern"),
    (cols, dict(t=torch.zeros(5).bool()), ShapeError, "arg `t` is a mask over n_k = 6, got shape (5,)\nfix: give [6] or [2, 6]"),
    (pc.per_head(pc.causal, pc.full), dict(), ShapeError,
     "per_head gives 2 patterns, and there are 3 query heads\nfix: give one pattern for each query head"),
]


@pytest.mark.parametrize("pattern, args, error, message", WRONG, ids=[w[-1].split("\n")[0][:60] for w in WRONG])
def test_what_does_not_fit(pattern, args, error, message):
    with pytest.raises(error) as raised:
        bind(pattern, args, 6, 6, heads=3, batch=2)
    assert str(raised.value) == message


@pytest.mark.parametrize("pattern, args, message", [
    (cols, dict(t=[0, 6]), "arg `t` holds the position 6, and n_k is 6\nfix: positions are below it; negative ones are ignored"),
    (valid, dict(m=[7, 1]), "arg `m` holds a length outside 0..6\nfix: lengths count keys"),
    (doc, dict(doc=torch.full((6,), 2**40)),
     "arg `doc` holds 1099511627776, which does not fit in 32 bits\nfix: keep values within 2147483647 in magnitude"),
])
def test_values_are_looked_at_only_when_asked(pattern, args, message):
    bind(pattern, args, 6, batch=2)
    with pytest.raises(ArgError) as raised:
        bind(pattern, args, 6, batch=2, check=True)
    assert str(raised.value) == message


@pytest.mark.parametrize("make", [lambda x: np.array(x, np.uint64), lambda x: torch.from_numpy(np.array(x, np.uint64))], ids=["numpy", "torch"])
def test_unsigned_values_do_not_turn_negative(make):
    assert bind(doc, dict(doc=make([0, 1, 2**63, 2**64 - 1])), 4).values["doc"].tolist() == [[0, 1, 2**63 - 1, 2**63 - 1]]
    with pytest.raises(LimitError, match="arg `w` is too large: 9223372036854775807"):
        bind(window, dict(w=make([5, 2**63])), 4, batch=2)


def test_check_follows_data_into_subscripts():
    p = arg("parent")[arg("owner")[q]] == k
    bind(p, dict(parent=[0, 1], owner=[0, 1, -1, 5]), 4)
    with pytest.raises(ShapeError, match="reaches 5"):
        bind(p, dict(parent=[0, 1], owner=[0, 1, -1, 5]), 4, check=True)
    bind(p, dict(parent=[0, 1], owner=[0, 1, -1, 1]), 4, check=True)


def test_sizes_and_q_start():
    with pytest.raises(ShapeError, match="5 queries are more than 3 keys.*\nfix: give the position of the first query: `q_start=0`"):
        bind(pc.causal, {}, 5, 3)
    assert bind(pc.causal, {}, 5, 3, q_start=0).q_start == 0
    assert bind(pc.causal, {}, 3, 5).q_start == 2
    assert bind(pc.causal, {}, 3, 5, q_start=torch.tensor(1)).q_start == 1
    assert bind(pc.causal, {}, 3, 5, batch=2, q_start=torch.tensor([0, 1])).q_start.tolist() == [0, 1]
    for wrong, message in [(-1, "q_start must be at least 0, got -1"), ([0, 1, 2], r"q_start must be a number or have shape \[\] or \[2\]")]:
        with pytest.raises((ParameterError, ShapeError), match=message):
            bind(pc.causal, {}, 3, 5, batch=2, q_start=wrong)
    with pytest.raises(ParameterError, match="`n_q` must be an integer, got 1.5"):
        bind(pc.causal, {}, 1.5)
    with pytest.raises(ParameterError, match="`heads` must be at least 0, got -1"):
        bind(pc.causal, {}, 3, heads=-1)


def test_queries_beyond_the_keys_need_a_tensor_that_covers_them():
    bind(doc, dict(doc=[0] * 8), 5, 6, q_start=3)
    with pytest.raises(ShapeError, match="the 8 positions up to the last query"):
        bind(doc, dict(doc=[0] * 6), 5, 6, q_start=3)


def test_devices():
    meta = torch.zeros(6, dtype=torch.int64, device="meta")
    with pytest.raises(DeviceError, match="arg `doc` is on meta, and the call is on cpu\nfix: move it"):
        bind(doc, dict(doc=meta), 6, device="cpu")
    with pytest.raises(DeviceError, match="arg `w` is on cpu, and arg `doc` is on meta"):
        bind(doc & window, dict(doc=meta, w=torch.tensor([3])), 6)
    bound = bind(doc & window & cols & valid, dict(doc=meta, w=3, t=meta, m=meta[0]), 6)  # nothing looks at values
    assert bound.values["t"].shape == (1, 6) and bound.values["t"].device.type == "meta"


@pytest.mark.parametrize("make", [np.array, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_normal_form(make):
    p = window & doc & cols & valid & (arg("x")[b, q] == 0)
    given = dict(w=4, doc=make([0, 0, 1, 1]), t=make([[-1, 2, 9], [0, 0, 0]]), m=make([1, 3]), x=make([[0, 1, 2, 3], [4, 5, 6, 7]]))
    bound = bind(p, given, 4, batch=2)
    for form in (bound, bound.numpy(), bound.torch()):
        v = form.values
        assert v["w"] == 4 and v["doc"].tolist() == [[0, 0, 1, 1]] and v["x"].shape == (1, 2, 4)
        assert v["t"].tolist() == [[False, False, True, False], [True, False, False, False]]
        assert v["m"].tolist() == [[True, False, False, False], [True, True, True, False]]
    assert bound.torch().values["doc"].dtype == torch.int32 and bound.torch().values["t"].dtype == torch.bool


def test_a_bool_mask_may_serve_sets_and_lengths():
    mask = torch.tensor([True, False, True])
    assert bind(cols & valid, dict(t=mask, m=mask[None]), 3).values["m"].tolist() == [[True, False, True]]


def test_numpy_view_shares_memory():
    ids = torch.zeros(6, dtype=torch.int64)
    view = bind(doc, dict(doc=ids), 6).numpy().values["doc"]
    ids[0] = 7
    assert view[0, 0] == 7


def test_key_is_hashable_and_ignores_values():
    key = lambda **args: bind(doc & window, args, 4, batch=2).key  # noqa: E731
    one = key(doc=[0, 0, 1, 1], w=3)
    assert one == key(doc=[1, 1, 1, 1], w=5) and hash(one) == hash(key(doc=[1, 1, 1, 1], w=5))
    assert len({one, key(doc=[[0] * 4] * 2, w=3), key(doc=[0] * 4, w=[1, 2])}) == 3
    assert bind(pc.causal, {}, 3, 5).key != bind(pc.causal, {}, 3, 5, q_start=1).key


def test_empty_lists_are_lists_of_no_position():
    assert not bind(cols, dict(t=[]), 4).values["t"].any()


@pytest.mark.parametrize("x, low, high", [
    (q - k, -5, 9), (2 * q - 3, 1, 15), (q // 4 - k % 3, -2, 2), (abs(q - k), 0, 9), (pc.clamp(q - k, 0, 3), 0, 3), (q * k, 0, 63),
    (q % 16, 2, 9), (q % pc.n_k, 0, 7), (pc.where(k < 3, q, -1), -1, 9), (pc.table([4, 2])[k % 2], 2, 4), (arg("w") - 1, 4, 4),
])
def test_bounds(x, low, high):
    assert bounds(x, {"q": (2, 9), "k": (0, 7), "n_k": (8, 8), "w": (5, 5)}) == (low, high)


def test_bounds_of_data_are_unknown_until_given():
    assert bounds(arg("t")[q], {"q": (0, 3)}) == (-float("inf"), float("inf"))
    assert bounds(arg("t")[q], {"q": (0, 3), "t[]": (1, 2)}) == (1, 2)
