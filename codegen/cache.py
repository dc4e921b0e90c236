"""Generated modules on disk: written once by the hash of their text, imported from there.

Triton needs the source file of a kernel, and finds yesterday's binaries by the kernel's text.  `PATTERNC_CACHE_DIR` moves
the folder; where it cannot be written, a temporary folder serves this process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
import warnings
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import platformdirs

ENVIRONMENT = "PATTERNC_CACHE_DIR"
_lock = threading.Lock()
_loaded: dict[str, ModuleType] = {}
_fallback: dict[Path, Path] = {}


def folder() -> Path:
    """The cache folder; it exists and can be written, or is a temporary one."""
    wanted = os.environ.get(ENVIRONMENT) or platformdirs.user_cache_dir("patternc")
    path = Path(wanted).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        return _instead_of(path, error)


def _instead_of(path: Path, error: OSError) -> Path:
    """A temporary folder for this process in the place of one that cannot be written; the first time with a warning."""
    if path not in _fallback:
        _fallback[path] = Path(tempfile.mkdtemp(prefix="patternc-"))
        warnings.warn(f"the kernel cache {path} cannot be written ({error.strerror}); using {_fallback[path]} for this process", stacklevel=3)
    return _fallback[path]


@lru_cache(maxsize=1)
def _versions() -> str:
    found = []
    for package in ("patternc", "triton"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    return ", ".join(found)


def name_of(text: str) -> str:
    """sha256 of a module's text and of the versions that made it."""
    return hashlib.sha256(f"{_versions()}\n{text}".encode()).hexdigest()


def store(text: str) -> Path:
    """Write the text unless an equal file is there.  Readers see the whole file or none, whoever else writes."""
    where = folder()
    try:
        return _write(text, where)
    except OSError as error:  # a directory in the file's place, a full disk
        return _write(text, _instead_of(where, error))


def _write(text: str, where: Path) -> Path:
    path = where / f"{name_of(text)}.py"
    content = text.encode()
    try:
        if path.read_bytes() == content:
            return path
    except OSError:
        pass
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-", suffix=".py")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load(text: str) -> ModuleType:
    """The module of a text, imported once a process."""
    if text in _loaded:
        return _loaded[text]
    name = f"patternc_kernels_{name_of(text)[:24]}"
    with _lock:
        if text in _loaded:
            return _loaded[text]
        spec = importlib.util.spec_from_file_location(name, store(text))
        module = importlib.util.module_from_spec(spec)
        # The text itself is executed: compiled files beside the source could be stale or foreign.
        sys.modules[name] = module  # inspect, and Triton through it, look the module up
        try:
            exec(compile(text, spec.origin, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        _loaded[text] = module
        return module


def _entries() -> list[Path]:
    return [p for p in folder().glob("*.py") if p.is_file() and (len(p.stem) == 64 or p.name.startswith(".new-"))]


def size() -> tuple[int, int]:
    """Number of cached modules and their bytes."""
    files = [p.stat().st_size for p in _entries()]
    return len(files), sum(files)


def clear() -> int:
    """Delete all cached modules; returns how many there were."""
    entries = _entries()
    for path in entries:
        path.unlink(missing_ok=True)
    return len(entries)
