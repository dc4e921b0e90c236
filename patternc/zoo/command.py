"""`patternc zoo`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Optional

import typer

from patternc.commands import console, write as emit
from patternc.errors import ParameterError
from patternc.zoo import page
from patternc.zoo.registry import ENTRIES, LINEAR, NAMES, Entry, Linear, entry

# ruff: noqa: UP007, UP045 - typer reads these annotations at run time, also on Python 3.10


def zoo(
    name: Annotated[Optional[str], typer.Argument(metavar="[NAME]", help="One entry; all of them without it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
    write: Annotated[Optional[Path], typer.Option("--write", metavar="FOLDER", help="Write zoo.md and its pictures into a folder.")] = None,
):
    """Published patterns: a list, one entry, or their documentation."""
    if write is not None:
        try:
            made = page.write(write)
        except OSError as error:
            message = f"the page cannot be written to `{write}`: {error.strerror or error}"
            raise ParameterError(message, fix="give a folder that can be written") from None
        return emit(f"wrote {len(made)} files, {write / 'zoo.md'} among them")
    if markdown:
        return emit(page.page())
    if name is None:
        return console().print(table())
    if name in LINEAR:
        return emit(describe_linear(LINEAR[name]))
    e = entry(name)
    emit(describe(e))
    from patternc.terminal import text

    p = e.example()
    emit(f"picture    {e.call(e.small)}\n")
    console().print(text(p, e.length, heads=e.heads, **e.args(p, e.length)))


def table():
    """All entries as a rich table."""
    from rich.table import Table

    out = Table(title="published patterns", expand=True)
    for heading, width in (("name", max(len(name) for name in (*NAMES, *LINEAR))), ("source", 24), ("expression as published", None)):
        out.add_column(heading, overflow="ellipsis", no_wrap=True, width=width, ratio=None if width else 1)
    for e in ENTRIES:
        out.add_row(e.name, e.source, str(e.at(page.LENGTH)).replace("[", "\\["))
    for e in LINEAR.values():
        out.add_row(e.name, e.source, str(e.function(**e.options)))
    return out


def describe(e: Entry) -> str:
    """One entry in words and numbers."""
    density, visited, flops = page.figures(e)
    heads = f", {e.published_heads} heads" if e.published_heads > 1 else ""
    return "\n".join([
        f"{e.name}: {inspect.getdoc(e.function)}",
        "",
        f"call       {e.call(e.options(page.LENGTH))}",
        f"pattern    {e.at(page.LENGTH)}",
        f"at {page.LENGTH}   {density} of all pairs allowed, {visited} visited, {flops} GFLOP a head of {page.HEAD_DIM}{heads}",
        f"oracle     {e.oracle}",
    ])  # fmt: skip


def describe_linear(e: Linear) -> str:
    """One attention with a linear term, in words."""
    lines = [f"call       {e.call()}", f"attention  {e.function(**e.options)}", f"oracle     {e.oracle}"]
    return "\n".join([f"{e.name}: {inspect.getdoc(e.function)}", "", *lines])
