"""What all commands share: their order and errors, and how they write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer
from typer.core import TyperGroup

from patternc.errors import OperandError, PatterncError

WIDE = 200  # columns of a table that is written to a file or a pipe


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


def print_table(table) -> None:
    """A rich table to standard output."""
    screen = console()
    if not screen.is_terminal:
        screen.width = max(screen.width, WIDE)
    screen.print(table)


def check_writable(*paths: Path | None) -> None:
    """Whether files can be written, before minutes of measuring.  Raises OperandError."""
    for path in filter(None, paths):
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OperandError(f"{path} cannot be written", fix="give the name of a file in a folder that is there")
