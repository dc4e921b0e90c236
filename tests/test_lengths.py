"""Calls of other lengths compile nothing."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from patternc.codegen import lengths

SCRIPT = Path(__file__).with_name("compiled_at_lengths.py")


CASES = [("causal", "128", ["128", "129", "1000", "4096", "20000"]), ("causal & dilate(4) & window(640)", "64", ["2048", "4096", "4097", "16384"])]


@pytest.mark.parametrize("text, head_dim, lengths", CASES)
def test_other_lengths(tmp_path, text, head_dim, lengths):
    """The first call compiles what they need as well: kernels whose row tiles are cut, their merges, the forward for Hopper, kernels for lines of
    unequal lengths, the fused backward; no more than that."""
    folders = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "PATTERNC_CACHE_DIR": str(tmp_path / "patternc")}
    environment = {**os.environ, "TRITON_INTERPRET": "0", **folders}
    command = [sys.executable, SCRIPT, text, head_dim, *lengths]
    runs = [json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    assert 4 < runs[0][0] <= 9 and not any(runs[0][1:])
    assert not any(runs[1]), "another process finds them"


def test_a_launch_waits_for_what_is_being_compiled(monkeypatch):
    """For its own kernel and for the one that merges its pieces, and for no other."""
    done = []
    merge = SimpleNamespace(code=("merge", 64), merge=None)
    launch = SimpleNamespace(code=("forward", 64), merge=merge)
    with ThreadPoolExecutor(1) as thread:
        futures = {x: thread.submit(done.append, x) for x in (("forward", 64), ("merge", 64), ("forward", 128))}
        monkeypatch.setattr(lengths, "_pending", futures)
        lengths.settle(launch)
        assert done[:2] == [("forward", 64), ("merge", 64)] and list(futures) == [("forward", 128)]
        lengths.settle_all()
    assert len(done) == 3 and not futures


def test_other_lengths_wait_for_first_launches(monkeypatch):
    """They are not compiled beside a first launch, nor soon after it, unless somebody needs them."""
    done, futures = [], {}
    monkeypatch.setattr(lengths, "QUIET", 60)
    monkeypatch.setattr(lengths, "_compile", lambda device, kernels: done.append(kernels))
    monkeypatch.setattr(lengths.cache, "store", lambda note: None)
    monkeypatch.setattr(lengths, "_pending", futures)
    with ThreadPoolExecutor(1) as thread:
        with lengths.first_launch():
            futures["forward", 64] = thread.submit(lengths._compile_later, None, ["one"], "")
        time.sleep(0.2)
        assert not done
        lengths.settle_all()
    assert done == [["one"]] and not futures
