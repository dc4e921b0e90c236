"""`patternc tune`."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from patternc import cards, folder
from patternc.bench.tables import table
from patternc.commands import check_writable, print_table, write
from patternc.errors import OperandError, ParameterError
from patternc.rates import Card

if TYPE_CHECKING:
    from patternc.codegen.fitting import Choice

INTERRUPTED = 130  # the exit code of what Ctrl-C stopped
WRITABLE = f"make room, set {folder.ENVIRONMENT} to a folder that can be written, or write the table to a file with `-o FILE`"
COSTS = ("program", "full", "partial", "mask")
KINDS = {True: "16 bits", False: "float32"}

# ruff: noqa: UP007, UP045 - typer reads these annotations at run time, also on Python 3.10


def tune(
    width: Annotated[Optional[list[int]], typer.Option("--width", help="Head dimensions: 64, 128, 256; all by default.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that compile kernels, at most.")] = 8,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what was measured on this card before.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the table in use and where it comes from; measure nothing.")] = False,
    output: Annotated[Optional[Path], typer.Option("-o", "--output", metavar="FILE", help="Write the table to this file too, as JSON.")] = None,
):
    """What kernels cost on this machine's GPU: the table that orders, tiles and configurations are chosen by."""
    if show:
        if restart or output is not None or width:
            raise ParameterError("`--show` prints the table in use and measures nothing", fix="leave the other options out")
        return _show()
    from patternc.codegen.trials import WIDTHS
    from patternc.codegen.tuning import Machine, tune as run

    if unknown := [w for w in width or () if w not in WIDTHS[True]]:
        raise ParameterError(f"heads of width {unknown[0]} have no kernels of their own", fix=f"give some of {', '.join(map(str, WIDTHS[True]))}")
    check_writable(output)
    lasting = folder.folder() == folder.wanted()
    if not lasting and output is None:
        raise OperandError(f"{folder.wanted()} cannot be written, and the table would be lost", fix=WRITABLE)
    machine = Machine.current()
    try:
        with _progress() as progress:
            card, choices = run(machine, tuple(width or ()), workers, restart, progress)
    except KeyboardInterrupt:
        write("\nstopped; what was measured is kept: `patternc tune` goes on from here, `patternc tune --restart` begins again")
        raise typer.Exit(INTERRUPTED) from None
    print_table(table(f"what was chosen on {card.name}", HEADINGS, map(_cells, choices)))
    if output is not None:
        output.write_text(card.json())
        write(f"wrote {output}")
    if lasting:
        _save(card)


def _save(card: Card) -> None:
    try:
        path = cards.save(card)
    except OSError as error:
        raise OperandError(f"{cards.path_of(card.name)} cannot be written: {error.strerror}", fix=WRITABLE) from None
    write(f"wrote {path}: calls on this card use it from the next process on")


HEADINGS = ("kernel", "memory", "width", "dtype", "without tuning", "best", "faster by", "fit within")


def _cells(choice: Choice) -> list[str]:
    gain = "it does not run" if math.isnan(choice.gain) else f"{choice.gain - 1:.1%}" if choice.best != choice.default else ""
    default = "" if choice.default is None else str(choice.default)
    what = [choice.kernel, choice.access, str(choice.width), KINDS[choice.half]]
    return [*what, default, str(choice.best), gain, f"{choice.error:.0%}"]


def _show() -> None:
    used, device = cards.in_use(), cards.device_name()
    card = used.card
    rows = []
    for (kernel, access, width, half), found in card.rates.items():
        for rate in found:
            costs = [f"{getattr(rate, name):.3f}" for name in COSTS]
            rows.append([kernel, access, str(width), KINDS[half], str(rate.config), *costs])
    headings = ("kernel", "memory", "width", "dtype", "configuration", *COSTS)
    print_table(table("microseconds of a processor", headings, rows))
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    where = used.path or "the table that comes with patternc"
    write(f"rates of {card.name}, {card.date}, {versions}: {where}")
    if used.outdated:
        write(used.outdated)
    if used.path is None and device is not None:
        write(f"This card, {device}, was not measured: `patternc tune` does, and its rates take their place.")


@contextmanager
def _progress():
    """What a run reports to: a bar in a terminal, else a line for each job."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield lambda done, total, line: print(f"[{done}/{total}] {line}", file=sys.stderr, flush=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task("", total=None)

        def at(done: int, total: int, line: str) -> None:
            if "left out" in line:
                screen.print(line, markup=False, highlight=False)
            bar.update(task, completed=done, total=total, description=line)

        yield at
