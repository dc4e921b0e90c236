"""Calls of other lengths compile nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("compiled_at_lengths.py")


def test_other_lengths(tmp_path):
    """The first call compiles what they need as well: kernels whose row tiles are cut, their merges, the forward for Hopper; no more than that."""
    folders = {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "PATTERNC_CACHE_DIR": str(tmp_path / "patternc")}
    environment = {**os.environ, "TRITON_INTERPRET": "0", **folders}
    command = [sys.executable, SCRIPT, "causal", "128", "128", "129", "1000", "4096", "20000"]
    runs = [json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    assert 4 < runs[0][0] <= 8 and not any(runs[0][1:])
    assert not any(runs[1]), "another process finds them"
