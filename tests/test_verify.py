"""`pc.verify` agrees with what is right and finds what is wrong."""

import pytest
import torch

import patternc as pc
from patternc import functional
from patternc.errors import OperandError, ParameterError, ShapeError, UnknownNameError, VerificationError
from patternc.samples import default_sizes, random_args
from patternc.verify import verify

arg = pc.arg
WINDOW = pc.causal & pc.window(9)
RIGHT = [
    WINDOW, pc.documents(arg("d")) & pc.causal & pc.valid(arg("m")), pc.window(arg("w")) | pc.global_(arg("t")),
    pc.per_head(pc.causal, pc.full, pc.dilate(3)), WINDOW + pc.linear_tail(over=pc.causal, initial_state=True),
    pc.causal & (pc.window(9) + pc.linear_tail("favor+", "denominator")),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spec", RIGHT, ids=str)
def test_agrees(spec, dtype):
    report = verify(spec, backend="cpu", device="cpu", dtype=dtype, sizes=[37, (20, 70)], quiet=True)
    assert report, [c for c in report.checks if not c.ok]
    assert {"out", "lse", "dq", "dk", "dv"} <= {c.tensor for c in report.checks}


def test_takes_text():
    text = "causal & (window(9) + linear_tail)"
    assert verify(text, backend="cpu", device="cpu", sizes=[20], quiet=True).checks[0].tensor == "out"
    with pytest.raises(UnknownNameError, match="did you mean `window`"):
        verify("causal & windw(9)")
    with pytest.raises(OperandError, match="verify takes a pattern, an attention or its text, got 9"):
        verify(9)


def instead(spec):
    return lambda q, k, v, args, **options: functional.attention(spec, q, k, v, args, **options)


WRONG = {
    "one key too many": (WINDOW, instead(pc.causal & pc.window(10))),
    "not causal": (WINDOW, instead(pc.window(9))),
    "scale": (WINDOW, lambda q, k, v, args, **o: functional.attention(WINDOW, q, k, v, args, scale=0.2, **o)),
    "lse in bits": (WINDOW, lambda q, k, v, args, **o: (lambda out, lse: (out, lse * 1.4427))(*functional.attention(WINDOW, q, k, v, args, **o))),
    "tail off by one": (WINDOW + pc.linear_tail(over=pc.causal), instead(WINDOW + pc.linear_tail(over=pc.causal & (pc.k != pc.q - 9)))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", WRONG)
def test_finds(case, dtype):
    spec, run = WRONG[case]
    assert not verify(spec, run=run, device="cpu", dtype=dtype, sizes=[70], quiet=True)


def test_finds_wrong_gradients_and_noise_in_empty_rows():
    def detached(q, k, v, args, **options):
        return functional.attention(WINDOW, q, k.detach() + 0 * k, v, args, **options)

    wrong = [c.tensor for c in verify(WINDOW, run=detached, device="cpu", sizes=[37], quiet=True).checks if not c.ok]
    assert wrong == ["dk"]
    late = WINDOW & (pc.q >= 5)

    def noise(q, k, v, args, **options):
        out, lse = functional.attention(late, q, k, v, args, **options)
        return out + 1e-30, lse

    (check,) = [c for c in verify(late, run=noise, device="cpu", sizes=[37], quiet=True).checks if not c.ok]
    assert (check.tensor, check.note) == ("out", "rows that should be 0")


def test_raises_on_request_and_names_the_tensor():
    with pytest.raises(VerificationError, match=r"custom on cpu in float32 differs from the reference: `\w+` at 70 x 70: error .*tolerance") as error:
        verify(WINDOW, run=instead(pc.window(9)), device="cpu", dtype=torch.float32, sizes=[70], quiet=True, raise_error=True)
    assert str(WINDOW) in str(error.value)


def test_prints_a_table(capsys):
    verify(WINDOW, backend="cpu", device="cpu", sizes=[20])
    text = capsys.readouterr().out
    assert "agrees" in text and "20 x 20" in text and "dq" in text and "%" in text


def test_sizes_and_args():
    assert (1227, 1227) in default_sizes(pc.window(600)) and (300, 300) in default_sizes(pc.causal)
    given = random_args(RIGHT[1], 5, 8, 2, 3, torch.Generator().manual_seed(0))
    assert given["d"].shape == (8,) and given["m"].shape == (3,)
    small = pc.table([0, 1, 1, 0] * 30)[pc.q] == 1  # its table ends at 120 tokens: longer sizes are left out
    assert {c.size for c in verify(small, device="cpu", backend="cpu", quiet=True).checks} == {"1 x 1", "37 x 37"}
    with pytest.raises(ShapeError, match="its subscript there reaches 127"):
        verify(small, device="cpu", sizes=[128], quiet=True)
    with pytest.raises(ParameterError, match="3 query heads are no multiple of 2 kv heads"):
        verify(WINDOW, heads=3, kv_heads=2, quiet=True)
    assert verify(RIGHT[1], args=dict(d=torch.zeros(37, dtype=torch.int64)), sizes=[37], backend="cpu", device="cpu", quiet=True)
