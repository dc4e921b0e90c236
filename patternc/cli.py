"""The command line: `patternc show|explain|source|verify|zoo|bench|tune|fuzz|cache`, also `python -m patternc`.

A user's mistake prints patternc's own message and exits with 2; a check that fails (verify, fuzz) exits with 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from patternc.bench.command import bench
from patternc.commands import Commands, console, write
from patternc.errors import UnknownNameError, suggest
from patternc.options import tile_of, values_of
from patternc.tune_command import tune
from patternc.zoo import command

app = typer.Typer(cls=Commands, help="A compiler for attention patterns.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(bench, name="bench")

# ruff: noqa: UP007, UP045 - typer reads these annotations at run time, also on Python 3.10
PatternText = Annotated[str, typer.Argument(metavar="PATTERN", help='The text of a pattern, such as "causal & window(512)".')]
Length = Annotated[int, typer.Option("-n", "--n", help="Queries; keys too, unless --n-k says otherwise.")]
Keys = Annotated[Optional[int], typer.Option("--n-k", help="Keys.")]
Args = Annotated[Optional[list[str]], typer.Option("--arg", "-a", metavar="NAME=VALUE", help="A runtime arg: 512, 0,17,42, true,false or @file.npy.")]
Tile = Annotated[Optional[str], typer.Option("--tile", help="Rows and columns of a tile: 128 or 128x64.")]
Heads = Annotated[int, typer.Option("--heads", min=1, help="Query heads.")]
Start = Annotated[Optional[int], typer.Option("--q-start", help="Position of the first query; by default queries are the last positions.")]
Backend = Annotated[str, typer.Option("--backend", help="auto, triton, cpu or reference.")]


@app.command()
def show(
    pattern: PatternText, n: Length = 512, n_k: Keys = None, arg: Args = None, tile: Tile = None, q_start: Start = None,
    head: Annotated[int, typer.Option("--head", min=0, help="Which query head.")] = 0,
    heads: Annotated[Optional[int], typer.Option("--heads", min=1, help="Query heads; by default as many as the pattern names.")] = None,
    output: Annotated[Optional[Path], typer.Option("-o", "--output", help="Save a picture instead: .png, .svg or .pdf.")] = None,
):  # fmt: skip
    """The mask and its tiles, in the terminal or as a picture."""
    from patternc.plotting import plot
    from patternc.terminal import TEXT_TILES, text

    options = {"head": head, "heads": heads, "q_start": q_start, "tile": tile_of(tile), **values_of(arg)}
    spec = parsed(pattern)
    if output is None:
        screen = console()
        screen.print(text(spec, n, n_k, tiles=min(TEXT_TILES, max(screen.width // 2, 1)), **options))
    else:
        plot(spec, n, n_k, path=output, **options)
        console().print(f"wrote {output}", markup=False, highlight=False)


@app.command()
def explain(
    pattern: PatternText, n: Length = 4096, n_k: Keys = None, arg: Args = None, tile: Tile = None, q_start: Start = None,
    heads: Heads = 1, head_dim: Annotated[int, typer.Option("--head-dim", min=1, help="Width of a head.")] = 128, backend: Backend = "auto",
):  # fmt: skip
    """Runs, tiles, cost and kernels of a pattern at one length."""
    shape = tile_of(tile) or (128, 128)
    write(str(_compile(pattern, backend, heads, head_dim).explain(n, n_k, heads, head_dim, q_start=q_start, tile=shape, **values_of(arg))))


@app.command()
def source(
    pattern: PatternText,
    stage: Annotated[
        str, typer.Option("--stage", help="text, a pass (guard, expand, negate, decide, merge), conjuncts, plan, kernels, term or hopper.")
    ] = "kernels",
    n: Annotated[Optional[int], typer.Option("-n", "--n", help="Plan and kernels in the orders of positions that this length asks for.")] = None,
    heads: Annotated[Optional[int], typer.Option("--heads", help="With -n: query heads; by default those that per_head lists, else 1.")] = None,
):
    """The generated Triton kernels, or any stage on the way to them."""
    from patternc.stages import STAGES, stage_text

    if stage not in STAGES:
        close = suggest(stage, STAGES)
        raise UnknownNameError(f"unknown stage `{stage}`", fix=f"did you mean `{close}`?" if close else f"one of {', '.join(STAGES)}")
    text = stage_text(parsed(pattern), stage, n, heads)
    if stage == "kernels" and sys.stdout.isatty():
        from rich.syntax import Syntax

        console().print(Syntax(text, "python", background_color="default"))
    else:
        write(text)


@app.command()
def verify(
    pattern: PatternText, arg: Args = None, backend: Backend = "auto",
    n: Annotated[Optional[int], typer.Option("-n", "--n", help="One length; by default a few that reach beyond the pattern's numbers.")] = None,
    n_k: Keys = None,
    heads: Annotated[Optional[int], typer.Option("--heads", min=1, help="Query heads.")] = None,
    head_dim: Annotated[int, typer.Option("--head-dim", min=1, help="Width of a head.")] = 32,
    device: Annotated[Optional[str], typer.Option("--device", help="cpu or cuda.")] = None,
    dtype: Annotated[Optional[str], typer.Option("--dtype", help="float32, float16, bfloat16 or float64.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random inputs.")] = 0,
):  # fmt: skip
    """Outputs and all gradients against the dense float64 reference."""
    import torch

    from patternc.verify import verify as run

    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype is not None and dtype not in kinds:
        raise UnknownNameError(f"unknown dtype `{dtype}`", fix=f"one of {', '.join(kinds)}")
    sizes = None if n is None else [(n, n if n_k is None else n_k)]
    report = run(
        parsed(pattern),
        backend=backend,
        device=device,
        dtype=kinds.get(dtype),
        sizes=sizes,
        heads=heads,
        head_dim=head_dim,
        args=values_of(arg),
        seed=seed,
    )
    raise typer.Exit(0 if report.ok else 1)


app.command("zoo")(command.zoo)


app.command()(tune)


@app.command()
def fuzz(
    seconds: Annotated[Optional[float], typer.Option("--seconds", min=0, help="Stop after this long; by default when interrupted.")] = None,
    seed: Annotated[Optional[int], typer.Option("--seed", min=0, help="Of the first example.")] = None,
    replay: Annotated[Optional[int], typer.Option("--replay", min=0, metavar="SEED", help="Check the one example that has this seed.")] = None,
):
    """Random patterns against their dense meaning, until stopped."""
    import random

    import torch

    from patternc.fuzzing import Failure, example_of, fuzz, run_seed

    torch.set_num_threads(1)  # the tensors are small
    if replay is not None:
        result = run_seed(replay)
        write(str(result) if isinstance(result, Failure) else "refused as too large" if not result else f"passed\n{example_of(replay).describe()}")
        raise typer.Exit(1 if isinstance(result, Failure) else 0)
    seed = random.SystemRandom().randrange(1 << 40) if seed is None else seed
    write(f"seed {seed}; stop with Ctrl-C" if seconds is None else f"seed {seed}, for {seconds:g} seconds")
    with console().status("") as status:
        outcome = fuzz(seed, seconds, progress=lambda o: status.update(f"{o.passed} examples") if o.passed % 20 == 0 else None)
    drawn = ", ".join(f"{name.strip()} {count}" for name, count in sorted(outcome.drawn.items()))
    write(f"{outcome.passed} examples passed, {outcome.refused} too large to build\ndrawn: {drawn}")
    if outcome.failure is not None:
        write(str(outcome.failure))
        raise typer.Exit(1)


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Delete the cached kernels.")] = False):
    """Where generated kernels are kept, and how many there are."""
    from patternc.codegen import cache as kept

    write(f"folder   {kept.folder()}")
    modules, size = kept.size()
    write(f"content  {modules} modules, {size / 1024:.1f} KiB")
    if clear:
        write(f"deleted  {kept.clear()} modules")


def parsed(text: str):
    from patternc.parsing import parse

    return parse(text)


def _compile(text: str, backend: str, heads: int, head_dim: int):
    from patternc.compile import compile

    return compile(text, backend, num_heads=heads, head_dim=head_dim)


def main() -> None:
    """The entry point of the command `patternc`."""
    app(prog_name="patternc")
