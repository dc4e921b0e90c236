"""The package as installed: imports, metadata, the command's entry point."""

import subprocess
import sys
from importlib.metadata import entry_points, requires, version

import patternc as pc


def test_metadata():
    assert version("patternc")
    assert any(r.startswith("torch") for r in requires("patternc"))
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "patternc"]
    assert script.value == "patternc.cli:main"


def test_readme_example():
    assert str(pc.causal & (pc.window(512) | pc.sink(4))) == "causal & (window(512) | sink(4))"


def test_importing_patternc_loads_no_heavy_module():
    """Triton, sympy and matplotlib are loaded when first needed."""
    code = "import sys, patternc; print(sorted({'triton', 'sympy', 'matplotlib'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
