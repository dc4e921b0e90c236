"""docs/zoo.md and its pictures, from the registry: `patternc zoo --write docs`.

Everything in them is exact or drawn from integers, so that the same registry gives the same files on every machine.
"""

from __future__ import annotations

import inspect
import textwrap
from functools import lru_cache
from pathlib import Path

import numpy as np

from patternc.cost import Cost, cost
from patternc.plan import make_plan
from patternc.zoo.registry import ENTRIES, LINEAR, Entry, Linear

LENGTH = 16384  # tokens of the costs
HEAD_DIM = 128
MOST_PICTURED = 3  # distinct heads
GAP = 6  # between the pictures of two heads

HEAD = f"""# The zoo

Published attention patterns by their names, `pc.zoo.longformer(512)`: each is an ordinary pattern that prints, parses, combines with others
and compiles. This page is made by `patternc zoo --write docs` from the registry in `patternc/zoo/registry.py`; `patternc zoo NAME` shows one
entry in the terminal. Every entry is checked against a definition of its own, pair by pair, and its outputs and gradients against dense
attention in float64; the column *oracle* names the test that compares it with a model or with what was released, where there is one.

Density is the share of all pairs that the published parameters allow at {LENGTH:,} tokens, *visited* the share that kernels with tiles of
64 x 64 look at, and GFLOP is the work of the forward pass on those for one head of width {HEAD_DIM}, all three averaged over heads.
Runtime data (documents, images, global tokens) are those of the registry: three documents, two images, a few tokens.
"""


@lru_cache(maxsize=128)
def price(entry: Entry) -> tuple[Cost, int]:
    """`(cost, heads)` of the published parameters at LENGTH tokens."""
    p, heads = entry.at(LENGTH), entry.published_heads
    return cost(p, make_plan(p), LENGTH, heads=heads, head_dim=HEAD_DIM, **entry.args(p, LENGTH)), heads


def figures(entry: Entry) -> list[str]:
    """Density, visited share and GFLOP per head, as text."""
    found, heads = price(entry)
    every = heads * LENGTH**2
    return [_percent(found.allowed_pairs / every), _percent(found.visited_pairs / every), f"{found.flops / heads / 1e9:.3g}"]


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


LINEAR_HEAD = """## Attentions with a linear term

Softmax where their pattern is exact, and linear attention over the rest of their domain; see [linear-tail.md](linear-tail.md). They need
`num_heads` and `head_dim` where they own parameters: `pc.compile(pc.zoo.rattention(), num_heads=16, head_dim=128)`.
"""


def linear_section(e: Linear) -> str:
    """One attention with a term: its call and its expression."""
    expression = textwrap.wrap(str(e.function(**e.options)), 118, break_long_words=False, break_on_hyphens=False)
    about = f"Source: {e.source}. Call: `{e.call()}`. Oracle: `{e.oracle}`."
    return "\n".join([f"### {e.name}", "", summary(e), "", about, "", "```text", *expression, "```", "", f"The trap: {trap(e)}", ""])


def summary(entry: Entry) -> str:
    """The first sentence of its function's documentation."""
    return inspect.getdoc(entry.function).splitlines()[0]


def trap(entry: Entry) -> str:
    """What its documentation warns of, as one line."""
    text = inspect.getdoc(entry.function).split("The trap:", 1)[1]
    return " ".join(text.split())


def page() -> str:
    """docs/zoo.md."""
    lines = [HEAD, "| name | source | density | visited | GFLOP | oracle |", "|---|---|---|---|---|---|"]
    for e in ENTRIES:
        density, visited, flops = figures(e)
        oracle = e.oracle if e.oracle.startswith("none") else f"`{e.oracle}`"
        lines.append(f"| [{e.name}](#{e.name}) | {e.source} | {density} | {visited} | {flops} | {oracle} |")
    return "\n".join([*lines, "", *(section(e) for e in ENTRIES), LINEAR_HEAD, *(linear_section(e) for e in LINEAR.values())])


def section(e: Entry) -> str:
    """One entry: its picture, its call and its expression."""
    expression = textwrap.shorten(str(e.at(LENGTH)), 400, placeholder=" ...")
    heads = f", {e.heads} heads" if e.heads > 1 else ""
    return "\n".join([
        f"## {e.name}",
        "",
        summary(e),
        "",
        f"![{e.name}](zoo/{e.name}.svg)",
        "",
        f"*Picture: `{e.call(e.small)}`, {e.length} tokens{heads}.* Published: `{e.call(e.options(LENGTH))}`",
        "",
        "```text",
        *textwrap.wrap(expression, 118, break_long_words=False, break_on_hyphens=False),
        "```",
        "",
        f"The trap: {trap(e)}",
        "",
    ])  # fmt: skip


def drawing(e: Entry) -> str:
    """The small example as SVG: one square a pair, queries downwards; distinct heads side by side."""
    p = e.example()
    masks = p.dense(e.length, heads=e.heads, **e.args(p, e.length))[0].numpy()
    distinct = [masks[h] for h in range(len(masks)) if not any((masks[h] == masks[g]).all() for g in range(h))][:MOST_PICTURED]
    width = len(distinct) * (e.length + GAP) - GAP
    size = f'width="{2 * width}" height="{2 * e.length}" viewBox="0 0 {width} {e.length}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} shape-rendering="crispEdges">']
    for n, mask in enumerate(distinct):
        x = n * (e.length + GAP)
        parts.append(f'<rect x="{x}" width="{e.length}" height="{e.length}" fill="#f4f4f2"/>')
        parts.append(f'<path d="{_runs(mask, x)}" stroke="#3f73b0" stroke-width="1"/>')
    return "\n".join([*parts, "</svg>", ""])


def _runs(mask: np.ndarray, left: int) -> str:
    """One stroke for each run of pairs in each row."""
    strokes = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        strokes += [f"M{left + a} {y}.5h{b - a}" for a, b in zip(edges[::2], edges[1::2])]
    return "".join(strokes)


def files() -> dict[str, str]:
    """What `write` puts below its folder, by path."""
    return {"zoo.md": page(), **{f"zoo/{e.name}.svg": drawing(e) for e in ENTRIES}}


def write(folder: Path) -> list[Path]:
    """Write the page and its pictures; pictures of entries that are gone are deleted."""
    made = files()
    (folder / "zoo").mkdir(parents=True, exist_ok=True)
    for old in (folder / "zoo").glob("*.svg"):
        if f"zoo/{old.name}" not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in made]
