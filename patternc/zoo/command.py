"""`patternc zoo`, `patternc bench zoo` and `patternc bench plan`."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from patternc.errors import ParameterError
from patternc.zoo import page
from patternc.zoo.registry import ENTRIES, Entry, entry

# ruff: noqa: UP007, UP045 - typer reads these annotations at run time, also on Python 3.10


def zoo(
    name: Annotated[Optional[str], typer.Argument(metavar="[NAME]", help="One entry; all of them without it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the documentation.")] = False,
    write: Annotated[Optional[Path], typer.Option("--write", metavar="FOLDER", help="Write zoo.md and its pictures into a folder.")] = None,
):
    """Published patterns: a list, one entry, or their documentation."""
    from patternc import cli

    if write is not None:
        try:
            made = page.write(write)
        except OSError as error:
            message = f"the page cannot be written to `{write}`: {error.strerror or error}"
            raise ParameterError(message, fix="give a folder that can be written") from None
        return cli.write(f"wrote {len(made)} files, {write / 'zoo.md'} among them")
    if markdown:
        return cli.write(page.page())
    if name is None:
        return cli.console().print(table())
    e = entry(name)
    cli.write(describe(e))
    from patternc.terminal import text

    p = e.example()
    cli.write(f"picture    {e.call(e.small)}\n")
    cli.console().print(text(p, e.length, heads=e.heads, **e.args(p, e.length)))


def table():
    """All entries as a rich table."""
    from rich.table import Table

    out = Table(title="published patterns", expand=True)
    for heading, width in (("name", max(len(e.name) for e in ENTRIES)), ("source", 24), ("expression as published", None)):
        out.add_column(heading, overflow="ellipsis", no_wrap=True, width=width, ratio=None if width else 1)
    for e in ENTRIES:
        out.add_row(e.name, e.source, str(e.at(page.LENGTH)).replace("[", "\\["))
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


def bench_zoo(
    n: Annotated[int, typer.Option("-n", "--n", min=1024, help="Tokens; a square and a cube number fit all entries.")] = 1 << 18,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Runs; the best counts.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
):
    """Time and memory of the exact layout of every entry of the zoo."""
    from patternc.bench import zoo as bench

    rows = bench.measure(n, repeat, progress=_progress)
    _show(bench, rows, f"layouts of {n:,} tokens in tiles of {bench.TILE} x {bench.TILE}, one core", json, markdown)


def bench_plan(
    n: Annotated[int, typer.Option("-n", "--n", min=1024, help="Tokens; a square number fits all entries but those on a cube.")] = 1 << 14,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Processes; the best counts.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
):
    """The time that planning takes at the first call and at the second, for every entry of the zoo."""
    from patternc.bench import plan as bench

    _show(bench, bench.measure(n, repeat, progress=_progress), f"plans for {n:,} tokens, one core", json, markdown)


def _progress(name: str) -> None:
    print(f"measuring {name}", file=sys.stderr)


def _show(bench, rows: list, title: str, json: bool, markdown: bool) -> None:
    """The rows of a benchmark, as it writes them."""
    from rich.table import Table

    from patternc import cli

    if json or markdown:
        return cli.write(bench.as_json(rows) if json else bench.as_markdown(rows))
    out = Table(title=title)
    for heading in bench.HEADINGS:
        out.add_column(heading, justify="left" if heading == "entry" else "right")
    for row in rows:
        out.add_row(*bench.cells(row))
    cli.console().print(out)
