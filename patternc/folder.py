"""The folder on disk that outlives a process: generated kernels, and what was measured of a card.

`PATTERNC_CACHE_DIR` moves it; where it cannot be written, a temporary folder serves this process.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import platformdirs

ENVIRONMENT = "PATTERNC_CACHE_DIR"
NEW = ".new-"  # begins the names of files that are being written
_fallback: dict[Path, Path] = {}


def wanted() -> Path:
    """The folder, whether it exists or not."""
    return Path(os.environ.get(ENVIRONMENT) or platformdirs.user_cache_dir("patternc")).expanduser()


def folder() -> Path:
    """The folder; it exists and can be written, or is a temporary one."""
    path = wanted()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        return instead_of(path, error)


def instead_of(path: Path, error: OSError) -> Path:
    """A temporary folder for this process in the place of one that cannot be written; the first time with a warning."""
    if path not in _fallback:
        _fallback[path] = Path(tempfile.mkdtemp(prefix="patternc-"))
        what = f"the cache {path} cannot be written ({error.strerror}); using {_fallback[path]} for this process"
        warnings.warn(f"{what}; set {ENVIRONMENT} to a folder that can be", stacklevel=3)
    return _fallback[path]


def write(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, whoever else writes and whatever interrupts this."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=NEW, suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
