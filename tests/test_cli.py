"""The command line: output, exit codes, and messages without a traceback."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from patternc import cli, fuzzing
from patternc.errors import InternalError

P = "causal & (window(20) | sink(3))"


def run(*args, code=0):
    result = CliRunner().invoke(cli.app, [str(a) for a in args])
    assert result.exit_code == code, result.output + str(result.exception)
    return result.stdout if code == 0 else result.output


def fails(*args):
    out = run(*args, code=2)
    assert "Traceback" not in out
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATTERNC_CACHE_DIR", str(tmp_path / "cache"))


def test_show(tmp_path, monkeypatch):
    out = run("show", "causal", "-n", 64, "--tile", 16)
    assert out.splitlines()[:2] == ["▒▒······", "██▒▒····"] and "6 full" in out
    assert "██" in run("show", P, "-n", 100000)
    monkeypatch.setenv("COLUMNS", "40")
    assert max(len(line) for line in run("show", P, "-n", 100000).splitlines()) <= 40
    monkeypatch.undo()
    assert run("show", "window(w) | global(tokens)", "-n", 64, "--arg", "w=9", "-a", "tokens=0,40")
    assert "████" in run("show", "per_head(causal, full)", "-n", 32, "--head", 1)
    assert "`head` is 3, and there is 1" in fails("show", "causal", "-n", 32, "--head", 3)
    assert run("show", "causal", "-n", 32, "--head", 3, "--heads", 4)
    for ending in ("png", "svg"):
        path = tmp_path / f"mask.{ending}"
        assert f"wrote {path}" in run("show", P, "-n", 100, "-o", path).replace("\n", "")
        assert path.stat().st_size > 3000


def test_args(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(64) // 16)
    out = run("show", "documents(ids)", "-n", 64, "--tile", 16, "--arg", f"ids=@{tmp_path / 'ids.npy'}")
    assert "4 full" in out
    values = cli.values_of(["w=512", "tokens=0,17,42", "one=[5]", "mask=true,false", "none=[]", "shift=-3"])
    assert values["shift"] == -3
    assert values["w"] == 512 and values["tokens"].tolist() == [0, 17, 42] and values["one"].tolist() == [5]
    assert values["mask"].dtype == bool and values["none"].size == 0
    for wrong in ("w", "=3", "w=", "w=1.5", "w=a", "ids=@nowhere.npy", "n_k=4", "3=4"):
        assert "error: " in fails("show", "window(w)", "--arg", wrong)
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04K\x01.")
    assert "not a readable .npy file" in fails("show", "documents(ids)", "--arg", f"ids=@{tmp_path / 'pickled.npy'}")


def test_explain():
    out = run("explain", P, "-n", 256, "--heads", 2, "--head-dim", 64, "--tile", "32x64")
    assert "of 32 x 64 (exact)" in out and "allowed pairs" in out
    assert "R = D - E" in run("explain", "causal & (window(20) + linear_tail)", "-n", 128)


def test_source():
    assert "@triton.jit" in run("source", P)
    assert run("source", "causal&(sink(3)|window(20))", "--stage", "text") == "causal & (sink(3) | window(20))\n"
    assert "q - k in [0, 19]" in run("source", P, "--stage", "conjuncts")
    assert "forward (q tiles" in run("source", P, "--stage", "plan")
    for stage in ("guard", "expand", "negate", "decide", "merge"):
        assert run("source", P, "--stage", stage).strip()
    assert "did you mean `kernels`?" in fails("source", P, "--stage", "kernel")


def test_verify():
    out = run("verify", P, "-n", 40, "--backend", "cpu", "--heads", 2, "--head-dim", 16)
    assert out.strip()
    assert "unknown dtype" in fails("verify", P, "--dtype", "int8")


def test_cache():
    assert "0 modules" in run("cache")
    from patternc.codegen import cache

    cache.store("x = 1\n")
    assert "1 modules" in run("cache")
    assert "deleted  1 modules" in run("cache", "--clear")
    assert "0 modules" in run("cache")


def test_bench_layout():
    rows = json.loads(run("bench", "layout", "-n", 8192, "--repeat", 1, "--no-peers", "--json"))
    assert len(rows) == 4 and all(row["ms"] > 0 and row["exact"] for row in rows)
    assert rows[0]["full_tiles"] == 186 and rows[0]["partial_tiles"] == 124
    assert "| causal window 512 | 4,096 |" in run("bench", "layout", "-n", 4096, "--repeat", 1, "--no-peers", "--markdown")


def test_bench_layout_agrees_with_torch():
    from patternc.bench.layout import CASES, _ours, _torch

    for case, text in CASES.items():
        one, two = _ours(case, text, 1024, 1), _torch(case, 1024)
        assert (one.full_tiles, one.partial_tiles) == (two.full_tiles, two.partial_tiles), case


def test_bench_attention_needs_a_gpu():
    import torch

    if not torch.cuda.is_available():
        assert "error: " in fails("bench", "attention")
        assert "needs a CUDA device" in fails("bench", "tail")


def test_fuzz():
    out = run("fuzz", "--seconds", 1, "--seed", 5)
    assert "seed 5" in out and "examples passed" in out and "drawn: " in out
    assert "passed" in run("fuzz", "--replay", 5) and "pattern " in run("fuzz", "--replay", 5)


def test_fuzz_reports_a_failure(monkeypatch):
    """A broken analysis gives a seed, a smaller example, and a command that replays it."""

    def broken(example):
        if "causal" in str(example.pattern):
            raise InternalError("wrong")

    monkeypatch.setattr(fuzzing, "check", broken)
    out = run("fuzz", "--seconds", 60, "--seed", 1, code=1)
    seed = int(out.rsplit("--replay ", 1)[1].split()[0])
    assert "FAILED: InternalError: wrong" in out
    again = run("fuzz", "--replay", seed, code=1)
    assert "pattern  causal" in again.split("smaller, and fails too:")[-1]
    monkeypatch.undo()
    assert "passed" in run("fuzz", "--replay", seed)


def test_a_seed_always_draws_the_same():
    for seed in range(20):
        one, two = fuzzing.example_of(seed), fuzzing.example_of(seed)
        assert one.pattern is two.pattern and one.describe() == two.describe()


def test_messages():
    assert "unknown pattern `windw`; did you mean `window`?" in fails("explain", "windw(3)")
    assert "missing arg `ids`" in fails("explain", "documents(ids)", "-n", 32)
    assert "unknown arg `w`" in fails("show", "causal", "--arg", "w=3")
    assert "a tile is one or two positive integers" in fails("show", "causal", "--tile", "0x4")
    assert "too many for a terminal" in fails("show", "causal", "-n", 4096, "--tile", 16)
    assert "reads the future" in fails("explain", "(causal & window(9)) + linear_tail")
    assert "cannot be written" in fails("show", "causal", "-n", 64, "-o", "/nowhere/mask.png")
    assert "beyond 64 bits" in fails("show", "cols(t)", "--arg", "t=1,99999999999999999999")
    assert "`n_q` must be at least 0" in fails("show", "causal", "-n", -3)
    for wrong in (("fuzz", "--replay", -4), ("fuzz", "--seed", -1), ("explain", "causal", "--heads", 0), ("bench", "layout", "-n", 0), ("show",)):
        assert fails(*wrong)
    assert "No such command" in fails("shw", "causal")


def test_module_and_entry_point():
    for command in ([sys.executable, "-m", "patternc"], [os.path.join(os.path.dirname(sys.executable), "patternc")]):
        done = subprocess.run([*command, "show", "causal &"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-m", "patternc", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in ("show", "explain", "source", "verify", "bench", "fuzz", "cache"))


def test_zoo(tmp_path):
    out = run("zoo")
    assert "longformer" in out and "causal & window(512)" in out
    out = run("zoo", "gemma3")
    assert "Gemma 3: of `every` layers" in out and "causal & window(512)" in out and "oracle" in out and "97 queries" in out
    assert "did you mean `bigbird`" in fails("zoo", "bigbrd")
    assert run("zoo", "--markdown").startswith("# The zoo")
    assert "wrote" in run("zoo", "--write", tmp_path / "made") and (tmp_path / "made" / "zoo" / "etc.svg").stat().st_size > 1000
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("zoo", "--write", tmp_path / "file")


def test_bench_plan(monkeypatch):
    from patternc.bench import plan

    monkeypatch.setattr(plan, "ENTRIES", [plan.NAMES[name] for name in ("sliding_window", "neighborhood_2d", "bigbird")])
    rows = json.loads(run("bench", "plan", "-n", 4096, "--repeat", 1, "--json"))
    assert [row["forward"] for row in rows] == ["formula", "64 * x0 + x1", "list"] and all(row["again_us"] < 1e3 * row["ms"] for row in rows)
    assert "| sliding_window | 1 |" in run("bench", "plan", "-n", 1024, "--repeat", 1, "--markdown")


def test_bench_zoo():
    rows = json.loads(run("bench", "zoo", "-n", 1024, "--repeat", 1, "--json"))
    assert len(rows) > 40 and all(row["exact"] and row["ms"] > 0 for row in rows if row["entry"] != "packed_local")
