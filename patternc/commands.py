"""What all commands share: their order and errors, and how they write."""

from __future__ import annotations

import sys

import typer
from typer.core import TyperGroup

from patternc.errors import PatterncError


class Commands(TyperGroup):
    """Commands in the order in which they are written, and patternc's errors without a traceback."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except PatterncError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None


def write(text: str) -> None:
    """Plain text to standard output; a reader that closes the pipe early is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = None
        raise typer.Exit(0) from None


def console():
    from rich.console import Console

    return Console(highlight=False)
