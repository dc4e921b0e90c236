"""Names that a benchmark is given on the command line."""

from __future__ import annotations

from patternc.errors import UnknownNameError, suggest


def select(what: str, names: str, among: dict) -> list:
    """What a comma-separated list of names stands for, each once.  Raises UnknownNameError for others, and for an empty list."""
    given = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in given or [names]:
        if name not in among:
            close = suggest(name, among)
            raise UnknownNameError(f"unknown {what} `{name}`", fix=f"did you mean `{close}`?" if close else f"one of {', '.join(among)}")
    return [among[name] for name in given]
