"""Calls whose arguments do not fit a function's signature: errors of patternc in text and in Python, not Python's TypeError."""

from __future__ import annotations

import functools
import inspect

from patternc.errors import ParameterError, suggest

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_fit(name: str, function, positional, named) -> None:
    """Raise ParameterError if the arguments do not fit the function, which the user knows as `name`."""
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    known = [p.name for p in plain if p.kind in BY_NAME and p.name != "self"]
    for key in named:
        if key not in known and not any(p.kind is p.VAR_KEYWORD for p in plain):
            close = suggest(key, known)
            fix = f"its parameters are {', '.join(f'`{p}`' for p in known)}" if known else "it takes none by name"
            raise ParameterError(f"`{name}` has no parameter `{key}`" + (f"; did you mean `{close}`?" if close else ""), fix=fix) from None
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        form = inspect.Signature([p for p in plain if p.name != "self"])
        raise ParameterError(f"`{name}`: {error}", fix=f"its form is `{name}{form}`") from None


def fitting(name: str):
    """Decorator of functions that users call by `name`; help and `inspect.signature` see the function itself."""

    def decorate(function):
        @functools.wraps(function)
        def call(*positional, **named):
            try:
                return function(*positional, **named)
            except TypeError:
                check_fit(name, function, positional, named)
                raise

        return call

    return decorate
