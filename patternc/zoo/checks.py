"""Checks of parameters that all systems share."""

from __future__ import annotations

import operator

from patternc.errors import ParameterError, UnknownNameError, suggest


def wrong(function: str, message: str, fix: str) -> ParameterError:
    return ParameterError(f"zoo.{function}: {message}", fix=fix)


def whole(function: str, name: str, value, least: int) -> int:
    """An integer of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong(function, f"`{name}` must be an integer, got {value!r}", f"use an integer of at least {least}") from None
    if number < least:
        raise wrong(function, f"`{name}` must be at least {least}, got {number}", f"use {name} >= {least}")
    return number


def chosen(function: str, name: str, value, options) -> str:
    """One of the names in `options`."""
    if value not in options:
        close = suggest(str(value), options)
        listed = ", ".join(f'"{o}"' for o in options)
        raise UnknownNameError(f"zoo.{function}: unknown {name} {value!r}", fix=f'did you mean "{close}"?' if close else f"one of {listed}")
    return value
