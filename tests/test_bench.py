"""`patternc bench attention` and `latency` without a GPU: names, tables from made-up rows, rooflines, peers that are stood in for."""

import json
import sys
import types

import pytest
import torch
from typer.testing import CliRunner

from patternc import cli
from patternc.bench import attention, cases, peers
from patternc.bench.attention_report import Report, Row
from patternc.bench.names import select
from patternc.bench.roofline import CARDS, work
from patternc.compile import compile
from patternc.errors import UnknownNameError
from patternc.parsing import parse

CASE = {case.name: case for case in cases.CASES}


def small(name, n, n_q=0):
    """A case of the same pattern on inputs that a CPU holds."""
    case = CASE[name]
    return cases.Case(name, case.text, 1, 4, case.kv_heads // (case.heads // 4) or 1, n, 16, case.target, n_q=n_q, kind=case.kind)


def made_up():
    """Two rows of the window and one of a dilated window, as if measured on an H200."""
    report = Report("NVIDIA H200", {"torch": "2.x", "triton": "3.x"}, ["flex", "cudnn"])
    for name, direction, ms in (("window-512", "forward", 0.5), ("window-512", "backward", 2.0), ("dilated-2", "forward", 0.6)):
        case = CASE[name]
        pairs = case.heads * (512 * case.n - 512 * 511 // 2)
        report.rows.append(Row(case, direction, work(case, direction, pairs, case.n), {"patternc": ms, "flex": 2 * ms}))
    report.errors["window-512"] = {"patternc": 2.2e-3, "flex": 2.3e-3}
    report.notes.append("fla is left out: ModuleNotFoundError: No module named 'fla'")
    return report


def test_names():
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names) and {"decode", "decode-window", "linear", "dilated-8", "grid-33"} <= set(names)
    assert all(case.like == "" or case.like in CASE for case in cases.CASES)
    assert [c.name for c in attention.select("causal, full")] == ["causal", "full"] and len(attention.select(None)) == len(names)
    assert attention.select_peers("") == [] and attention.select_peers("fla,flex,fla") == ["fla", "flex"]
    with pytest.raises(UnknownNameError, match=r"unknown case `widow-512`\nfix: did you mean `window-512`\?"):
        attention.select("causal,widow-512")
    with pytest.raises(UnknownNameError, match="unknown peer `cuda-dnn`"):
        attention.select_peers("cuda-dnn")
    with pytest.raises(UnknownNameError, match="unknown case ``\nfix: one of full, "):
        attention.select("")
    assert select("row", "b,a,b", {"a": 1, "b": 2}) == [2, 1]


def test_cases_parse_and_show_their_shape():
    for case in cases.CASES:
        parse(case.text)
    assert CASE["decode-16"].shape == "B8 H32:8 n16:65536 D128" and CASE["full"].shape == "B4 H16:16 n8192 D128"
    assert CASE["decode"].passes == ("forward",) and CASE["decode"].unit == "TB/s"


def test_roofline_of_dense_attention():
    """By hand: 8192^2 pairs of 64 heads at D 128 are 2.199e12 FLOP, 2.22 ms at 989 TFLOP/s; four tensors of 134 MB take 0.11 ms."""
    case, card = CASE["full"], CARDS["NVIDIA H200"]
    forward = work(case, "forward", 16 * 8192**2, 8192)
    assert forward.flops == 4 * 128 * 4 * 16 * 8192**2 == 2199023255552 and forward.bytes == 4 * 2 * 4 * 16 * 8192 * 128
    assert forward.bound(card) == "compute" and forward.least_ms(card) == pytest.approx(2.2235, rel=1e-4)
    assert forward.rate(forward.least_ms(card)) == pytest.approx(989)
    backward = work(case, "backward", 16 * 8192**2, 8192)
    assert (backward.flops, backward.bytes) == (2.5 * forward.flops, 2 * forward.bytes)


def test_roofline_of_decoding():
    """By hand: 4100 keys and values of 64 key heads, and q and o, are 134.5 MB: 28 us of an H200's memory."""
    case, card = CASE["decode-window"], CARDS["NVIDIA H200"]
    pairs, keys, _ = attention._counts(case, parse(case.text), {})
    assert (pairs, keys) == (32 * 4100, 4100)
    decoding = work(case, "forward", pairs, keys)
    assert decoding.bytes == 2 * 2 * 8 * 8 * 4100 * 128 + 2 * 2 * 8 * 32 * 128
    assert decoding.bound(card) == "memory" and decoding.least_ms(card) == pytest.approx(0.02804, rel=1e-3)
    assert decoding.rate(decoding.least_ms(card)) == pytest.approx(4.8)


def test_counts():
    case = small("documents", 3000)
    ids = torch.arange(3000, dtype=torch.int32) // cases.DOCUMENT
    assert attention._counts(case, parse(case.text), {"ids": ids}) == (4 * 2 * (1500 * 1501 // 2), 3000, 0)
    assert attention._counts(CASE["linear-wide"], parse(CASE["linear-wide"].text), {}) == (0, 16384, 256)


def test_cells():
    report = made_up()
    window, backward, dilated = map(report.cells, report.rows)
    flops = 4 * 128 * 4 * 16 * (512 * 16384 - 512 * 511 // 2)
    assert window[:4] == ["window-512", "causal & window(512)", "B4 H16:4 n16384 D128", "forward"]
    assert window[4:8] == [f"{flops / 0.5e9:.0f} (0.500)", "2.00x", "550", f"989 ({flops / 989e9:.3f})"]
    assert window[8:] == [f"{flops / 1e9:.0f} (1.000)", "-", "2.2e-03"]
    assert backward[3] == "backward" and backward[6] == "340"
    assert dilated[6] == f"{0.9 * flops / 0.5e9:.0f}"  # the window of this run less 10%
    report.device = "Some other card"
    assert report.cells(report.rows[0])[7] == "-" and "Some other card" in report.title


def test_tables():
    report = made_up()
    text = report.markdown()
    assert text.startswith("useful TFLOP/s (ms): NVIDIA H200, torch 2.x, triton 3.x, bfloat16\n\n| case | pattern | shape | pass | patternc | vs flex |")
    assert "| window-512 | `causal & window(512)` |" in text and text.endswith("- fla is left out: ModuleNotFoundError: No module named 'fla'")
    found = json.loads(report.json())
    assert found["rows"][0]["ms"] == {"patternc": 0.5, "flex": 1.0} and found["rows"][0]["ratio"] == 2 and found["rows"][0]["target"] == 550
    assert found["rows"][0]["bound"] == "compute" and found["rows"][0]["unit"] == "TFLOP/s" and found["peers"] == ["flex", "cudnn"]
    from rich.console import Console

    screen = Console(width=200)
    with screen.capture() as shown:
        screen.print(report.table())
    assert "causal & window(512)" in shown.get() and "2.00x" in shown.get() and "roofline" in shown.get()


def test_patterns_are_escaped():
    report = made_up()
    report.rows = [Row(CASE["longformer"], "forward", work(CASE["longformer"], "forward", 1, 16384), {})]
    assert r"`window(left=256, right=256) \| global(64)`" in report.markdown() and "| - | - | 310 |" in report.markdown()


def on_cpu(name):
    """patternc's cpu backend or a dense attention in the place of kernels."""
    if name == "dense":
        return lambda case, spec, args: peers.Implementation(lambda q, k, v: compile(spec, "reference")(q, k, v, **args))
    return lambda case, spec, args: peers.Implementation(lambda q, k, v: compile(spec, "cpu")(q, k, v, **args))


@pytest.fixture
def no_card(monkeypatch):
    """Measuring on the CPU, where every call takes a millisecond."""
    from patternc.codegen import timing

    def once(work):
        work()
        return 1.0

    monkeypatch.setattr(timing, "median_ms", once)
    monkeypatch.setattr(timing, "captured_ms", once)
    monkeypatch.setattr(attention, "DEVICE", "cpu")
    monkeypatch.setattr(attention, "patternc", on_cpu("cpu"))
    monkeypatch.setattr(attention, "PEERS", {**peers.PEERS, "flex": on_cpu("dense")})


@pytest.mark.parametrize("case", [small("documents", 100), small("linear", 100), small("decode-window-16", 300, 16)])
def test_measuring(no_card, case):
    report = Report("a CPU", {}, ["flex", "fla"])
    lines = []
    attention.measure(report, case, True, lines.append)
    assert [row.direction for row in report.rows] == list(case.passes)
    assert all(row.ms == {"patternc": 1.0, "flex": 1.0} for row in report.rows)
    assert all(error < 0.01 for error in report.errors[case.name].values())
    assert report.peers == ["flex"] and report.notes == ["fla is left out: ModuleNotFoundError: No module named 'fla'"]
    assert len(lines) == 3 and lines[0].startswith(case.name)
    attention.measure(report, case, False, lines.append)
    assert [row.direction for row in report.rows] == [*case.passes, "forward"]


def test_failures_and_wrong_results_are_noted(no_card, monkeypatch):
    def broken(case, spec, args):
        raise RuntimeError("out of luck\nand more")

    attention.PEERS["flex"] = broken
    attention.PEERS["fa2"] = lambda case, spec, args: peers.Implementation(lambda q, k, v: q * 2.0)
    report = Report("a CPU", {}, ["flex", "fa2", "cudnn"])
    attention.measure(report, small("documents", 100), False, lambda line: None)
    assert report.notes[0] == "documents: flex failed: RuntimeError: out of luck"
    assert report.notes[1].startswith("documents: fa2 is wrong by ") and len(report.notes) == 2
    assert set(report.rows[0].ms) == {"patternc", "fa2"}


@pytest.mark.parametrize("name", ["full", "causal", "window-512", "decode-16", "longformer"])
def test_flash_attn_is_called_with_the_right_band(monkeypatch, name):
    """A stand-in with the package's conventions: [B, n, H, D], -1 for all, queries at the end."""

    def flash_attn_func(q, k, v, causal=False, window_size=(-1, -1)):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        left, right = (None if w == -1 else w for w in window_size)
        right = 0 if causal else right
        ahead = torch.arange(k.shape[2])[None] - torch.arange(k.shape[2] - q.shape[2], k.shape[2])[:, None]
        allowed = torch.ones_like(ahead, dtype=torch.bool)
        allowed &= True if right is None else ahead <= right
        allowed &= True if left is None else ahead >= -left
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed, enable_gqa=True).transpose(1, 2)

    package = types.ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    case = small(name, 1100, 16 if CASE[name].n_q else 0)
    made = peers.PEERS["flash-attn"](case, parse(case.text), {})
    if name == "longformer":
        assert made is None
        return
    q, k, v = (torch.randn(1, h, n, 16) for h, n in ((4, case.queries), (case.kv_heads, 1100), (case.kv_heads, 1100)))
    assert attention.relative_error(case, parse(case.text), {}, made.attend(q, k, v), q, k, v) < 1e-5


def test_fla_takes_features(monkeypatch):
    def chunk_linear_attn(q, k, v, scale=None, normalize=True):
        assert scale == 1.0 and not normalize and q.is_contiguous() and q.requires_grad
        weights = torch.einsum("bihf,bjhf->bhij", q.float(), k.float()).tril()
        return torch.einsum("bhij,bjhd->bihd", weights, v.float()), None

    for name in ("fla", "fla.ops", "fla.ops.linear_attn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["fla.ops.linear_attn"].chunk_linear_attn = chunk_linear_attn
    for name in ("linear", "linear-wide"):
        case = small(name, 200)
        made = peers.PEERS["fla"](case, parse(case.text), {})
        q, k, v = (torch.randn(1, 4, 200, 16) for _ in range(3))
        out = made.attend(*made.inputs(q, k, v))
        assert attention.relative_error(case, parse(case.text), {}, out, q, k, v) < 0.01
    assert peers.PEERS["fla"](CASE["full"], parse("full"), {}) is None


def test_masks_of_queries_at_the_end():
    p = parse("causal & (sink(4) | window(20))")
    allowed = peers.mask_mod(p, {}, 100, 92)
    found = allowed(0, 0, torch.arange(8)[:, None], torch.arange(100)[None])
    assert torch.equal(found, p.dense(8, 100)[0, 0])


def test_files_are_checked_before_anything_is_measured(tmp_path):
    done = CliRunner().invoke(cli.app, ["bench", "attention", "--json", str(tmp_path / "no folder" / "a.json")])
    assert done.exit_code == 2 and "cannot be written\nfix: give the name of a file" in done.output


def test_a_run_writes_tables(no_card, monkeypatch, tmp_path):
    """All of the command but the card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(attention, "CASES", (small("documents", 100),))
    names = tmp_path / "a.json", tmp_path / "a.md"
    done = CliRunner().invoke(cli.app, ["bench", "attention", "--against", "flex", "--no-backward", "--json", str(names[0]), "--markdown", str(names[1])])
    assert done.exit_code == 0 and "causal & documents(ids)" in done.output, done.output
    assert json.loads(names[0].read_text())["rows"][0]["ratio"] == 1 and "| documents |" in names[1].read_text()
