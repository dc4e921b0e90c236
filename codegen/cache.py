"""Generated modules on disk: written once by the hash of their text, imported from there.

Triton needs the source file of a kernel, and finds yesterday's binaries by the kernel's text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from patternc.folder import NEW, folder, instead_of, write

_lock = threading.Lock()
_loaded: dict[str, ModuleType] = {}


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
        return _write(text, instead_of(where, error))


def holds(text: str) -> bool:
    return (folder() / f"{name_of(text)}.py").exists()


def _write(text: str, where: Path) -> Path:
    path = where / f"{name_of(text)}.py"
    content = text.encode()
    try:
        if path.read_bytes() == content:
            return path
    except OSError:
        pass
    write(path, content)
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
    return [p for p in folder().glob("*.py") if p.is_file() and (len(p.stem) == 64 or p.name.startswith(NEW))]


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
