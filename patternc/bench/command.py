"""`patternc bench`: one command for each benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from patternc.bench.tables import table
from patternc.commands import Commands, check_writable, print_table, write

bench = typer.Typer(cls=Commands, help="Benchmarks.", no_args_is_help=True)

# ruff: noqa: UP007, UP045 - typer reads these annotations at run time, also on Python 3.10
JsonFile = Annotated[Optional[Path], typer.Option("--json", metavar="FILE", help="Write JSON to a file.")]
MarkdownFile = Annotated[Optional[Path], typer.Option("--markdown", metavar="FILE", help="Write the tables to a file as Markdown.")]

@bench.command("layout")
def bench_layout(
    n: Annotated[int, typer.Option("-n", "--n", min=2, help="Tokens.")] = 1 << 20,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Runs; the best counts.")] = 7,
    peers: Annotated[bool, typer.Option(help="Also run torch's create_block_mask at the sizes that it can hold.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
):  # fmt: skip
    """Time and memory of exact layouts at a million tokens, beside torch's create_block_mask."""
    from patternc.bench import layout

    rows = layout.measure(n, repeat, peers, progress=_progress)
    _show(layout, rows, f"layouts in tiles of {layout.TILE} x {layout.TILE}, one core", json, markdown)


@bench.command("cpu")
def bench_cpu(
    flex: Annotated[bool, typer.Option(help="Also compile FlexAttention.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """The cpu backend beside dense masked attention and compiled FlexAttention."""
    from patternc.bench import cpu

    rows = cpu.run(flex, progress=(lambda line: print(line, file=sys.stderr)) if json else print)
    if json:
        write(cpu.as_json(rows))


@bench.command("attention")
def bench_attention(
    cases: Annotated[Optional[str], typer.Option("--case", metavar="NAME,..", help="Names of cases; all by default.")] = None,
    against: Annotated[str, typer.Option("--against", metavar="NAME,..", help="Peers; those that are not installed are left out.")]
    = "flex,cudnn,fa2,flash-attn,fla",
    backward: Annotated[bool, typer.Option("--backward/--no-backward", help="Also measure backward passes.")] = True,
    json: JsonFile = None,
    markdown: MarkdownFile = None,
):  # fmt: skip
    """Attention beside other kernels on this machine's GPU, with targets and the card's roofline."""
    from patternc.bench.attention import run
    from patternc.bench.attention_report import OURS

    check_writable(json, markdown)
    report = run(cases, against, backward, _line, keep=lambda report: _save(report, json, markdown))
    print_table(report.table())
    for note in report.notes:
        write(note)
    if any(OURS not in row.ms for row in report.rows):
        raise typer.Exit(1)


@bench.command("latency")
def bench_latency(
    patterns: Annotated[Optional[list[str]], typer.Option("--pattern", help="A pattern; may be given several times. A few by default.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=16, help="Tokens.")] = 128,
    calls: Annotated[int, typer.Option("--calls", min=1, help="Calls of a round; the median of rounds counts.")] = 100,
    first: Annotated[bool, typer.Option("--first/--no-first", help="Also measure first calls, in new processes.")] = True,
    json: JsonFile = None,
    markdown: MarkdownFile = None,
):  # fmt: skip
    """What a call costs the host on this machine's GPU: launches, what Python adds, and the first call of a pattern."""
    from patternc.bench.latency import run

    check_writable(json, markdown)
    report = run(patterns or None, n, calls, first, _line)
    _save(report, json, markdown)
    for found in report.tables():
        print_table(found)


@bench.command("tail")
def bench_tail(
    cases: Annotated[Optional[str], typer.Option("--case", help="Comma-separated names of cases; all by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """What linear tails take on this machine's GPU, kernel by kernel, and their workspace."""
    from patternc.bench import tail

    rows = tail.run(cases, progress=(lambda row: print(row, file=sys.stderr)) if json else print)
    if json:
        write(tail.as_json(rows))


@bench.command("visits")
def bench_visits(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False):
    """Pairs visited for each pair allowed, in the orders, parts and tiles that are chosen."""
    from patternc.bench import visits

    rows = visits.run()
    write(visits.as_json(rows) if json else visits.as_markdown(rows))


@bench.command("predictions")
def bench_predictions(
    n: Annotated[int, typer.Option("-n", "--n", min=1024, help="Tokens; a square number fits all entries.")] = 16384,
    head_dim: Annotated[int, typer.Option("--head-dim", min=16, help="Width of a head.")] = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch rows.")] = 4,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that compile kernels.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Predicted and measured times of every entry of the zoo on this machine's GPU."""
    from patternc.bench.predictions import measure

    report = measure(n, head_dim, batch, workers, progress=lambda line: print(line, file=sys.stderr))
    write(report.json() if json else report.markdown())


@bench.command("zoo")
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


@bench.command("plan")
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
    _line(f"measuring {name}")


def _line(text: str) -> None:
    print(text, file=sys.stderr)


def _save(report, json: Path | None, markdown: Path | None) -> None:
    """Write the files that were asked for."""
    if json is not None:
        json.write_text(report.json() + "\n")
    if markdown is not None:
        markdown.write_text(report.markdown() + "\n")


def _show(bench, rows: list, title: str, json: bool, markdown: bool) -> None:
    """The rows of a benchmark, as it writes them."""
    if json or markdown:
        return write(bench.as_json(rows) if json else bench.as_markdown(rows))
    print_table(table(title, bench.HEADINGS, map(bench.cells, rows)))
