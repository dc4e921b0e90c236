"""Triton's interpreter without work that has no result: two fifths of what tests of interpreted kernels take."""

import inspect
from functools import lru_cache

from triton.language.core import is_builtin
from triton.runtime import interpreter


def hasten() -> None:
    """Look up what a language module has once, not at every call of a function in a kernel; leave out a check for overflow that nothing reports.

    The check's assertions are for kernels in debug mode; `test_positions_that_leave_32_bits_are_refused` and its like test ours.
    """
    interpreter._patch_builtin = _patch_builtin
    interpreter.interpreter_builder.options.__dict__["sanitize_overflow"] = False


@lru_cache
def _builtins(package) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def _patch_builtin(package, builder, scope) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if is_builtin(member):  # else it is replaced already: a function calls another
            interpreter._patch_attr(package, name, member, builder, scope)
