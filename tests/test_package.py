"""The package as installed: metadata, the command's entry point, lazy imports, and the built wheel."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest

import patternc as pc

ROOT = Path(__file__).parent.parent


def run(code: str, **options) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_metadata():
    assert version("patternc")
    assert any(r.startswith("torch") for r in requires("patternc"))
    (script,) = [e for e in entry_points(group="console_scripts") if e.name == "patternc"]
    assert script.value == "patternc.cli:main"


def test_readme_example():
    assert str(pc.causal & (pc.window(512) | pc.sink(4))) == "causal & (window(512) | sink(4))"


@pytest.mark.parametrize("code", ["import patternc", "import patternc as pc; pc.compile(pc.causal); pc.parse('causal & window(5)').sympy; pc.plot, pc.equivalent, pc.verify"])
def test_heavy_modules_are_loaded_when_needed(code):
    assert run(f"import sys; {code}; print(sorted({{'triton', 'sympy', 'matplotlib'}} & set(sys.modules)))").splitlines()[-1] == "[]"


def _pip(*arguments) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with what the built wheel installs; built from a copy, since setuptools leaves folders behind."""
    source, wheels, installed = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in ("patternc", "codegen", "grammars"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source)
    _pip("install", "--no-deps", "--no-index", "--target", installed, next(wheels.glob("*.whl")))
    return installed


def test_wheel(wheel, tmp_path):
    """Parsing (the grammar), layouts, kernels' source, a run and the command, from the wheel alone."""
    code = f"""
import sys
sys.path.insert(0, {str(wheel)!r})
import torch, patternc as pc
assert pc.__file__.startswith({str(wheel)!r}), pc.__file__
attn = pc.compile(pc.parse("causal & (window(9) | sink(2))"))
q, k, v = (torch.randn(1, 2, 50, 8) for _ in range(3))
assert torch.allclose(attn(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn.spec.dense(50)), atol=1e-5)
assert "@triton.jit" in attn.source()
import patternc.bench.layout, patternc.cli, patternc.codegen as generated
assert generated.__file__.startswith({str(wheel)!r})
print("fine")
"""
    assert run(code, cwd=tmp_path).splitlines()[-1] == "fine"
    every = {p.relative_to(ROOT / folder) for folder in ("patternc",) for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts}
    assert all((wheel / "patternc" / p).exists() for p in every)
    assert {p.name for p in (wheel / "patternc" / "codegen").glob("*.py")} == {p.name for p in (ROOT / "codegen").glob("*.py")}
    assert (wheel / "patternc" / "grammars" / "pattern.lark").exists()
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-m", "patternc", "source", "--stage", "text", "sink(2)&causal"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout == "sink(2) & causal\n", done.stderr
