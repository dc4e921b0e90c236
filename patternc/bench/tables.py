"""Tables of benchmarks: the same cells in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Headings of columns of text; others hold figures.
WORDS = ("case", "entry", "pattern", "implementation", "pass", "shape", "call", "kernel", "memory")


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a `pattern` is code."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "".join(" --- |" if h in WORDS else " ---: |" for h in headings)]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join(f"`{cell}`" if h == "pattern" and cell else cell for h, cell in zip(headings, cells)) + " |")
    return "\n".join(lines)


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]):
    """A rich table; where it is too wide, the widest columns are folded."""
    from rich.table import Table
    from rich.text import Text

    out = Table(title=title)
    for heading in headings:
        out.add_column(heading, justify="left" if heading in WORDS else "right", overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) for cell in row))
    return out
