"""A process that compiles kernels, whatever this one does with them (`offline.compile_all`)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from contextlib import suppress
from functools import lru_cache
from typing import IO

_one_at_a_time = threading.Lock()


def ask(jobs: list) -> list | str:
    """Reports of `offline.compile_one`, or what went wrong."""
    given = pickle.dumps(jobs)
    with _one_at_a_time:
        return _compiler(tuple(os.environ.items())).answer(given)


@lru_cache(maxsize=1)
def _compiler(environment: tuple[tuple[str, str], ...]) -> _Compiler:
    return _Compiler({**dict(environment), "TRITON_INTERPRET": "0"})


class _Compiler:
    """The process: it takes seconds to begin, and ends with this one, or where a question has no answer."""

    def __init__(self, environment: dict[str, str]):
        command, self.errors = [sys.executable, "-m", "patternc.codegen.compiler"], tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment)
        self.end = weakref.finalize(self, _end, self.process, self.errors)

    def answer(self, given: bytes) -> list | str:
        try:
            self.process.stdin.write(given)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (BrokenPipeError, EOFError):
            code = self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace")
            self._leave()
            return f"{said}\nthe compiler ended with code {code}"
        except BaseException:  # its answer would be taken for that to the next question
            self._leave()
            raise

    def _leave(self) -> None:
        _compiler.cache_clear()
        self.end()


def _end(process: subprocess.Popen, errors: IO) -> None:
    process.kill()
    process.wait()
    for file in (process.stdin, process.stdout, errors):
        with suppress(OSError):
            file.close()


def serve() -> None:
    """Answer questions until there are no more."""
    from patternc.codegen.offline import compile_one

    with suppress(EOFError, BrokenPipeError):
        while True:
            jobs = pickle.load(sys.stdin.buffer)
            try:
                found = [compile_one(job) for job in jobs]
            except Exception:
                found = traceback.format_exc()
            pickle.dump(found, sys.stdout.buffer)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
