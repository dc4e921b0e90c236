"""Pictures of patterns: the tiles of a layout, and the pairs themselves where they are few, with matplotlib; `terminal` shows them as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patternc.analysis.evaluate import evaluate
from patternc.analysis.runs import ragged_arange
from patternc.args import bind, signature
from patternc.errors import MissingExtraError, OperandError, ParameterError
from patternc.expr.attention import Attention
from patternc.expr.calls import fitting
from patternc.expr.index import MAX_INT
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.forms import afford, count
from patternc.layout import Group, TileRuns, layout
from patternc.passes import variables
from patternc.subscripts import heads_listed

MOST_PAIRS_SHOWN = 512  # up to this length single pairs are drawn; beyond it only tiles
MOST_TILES = 1024  # along one axis; a finer picture has more pixels than a screen
DEFAULT_TILES = 32  # along the longer axis, unless the caller says how large a tile is
FINEST = 512  # the analysis of a tile of this size is still quick

# Per kind of tile: the background, and the colour of an allowed pair on it.
COLOURS = {"empty": ("#f4f4f2", None), "partial": ("#fbe3c0", "#e08a1e"), "full": ("#7fa8d6", "#3f73b0")}
TERM_COLOUR = "#d9ead8"  # pairs of the domain that the exact part leaves to the term


@dataclass(frozen=True)
class Picture:
    """What is drawn, as arrays.

    Attributes:
        kinds: int8 [row tiles, column tiles]: 0 empty, 1 partial, 2 full.
        pairs: bool [n_q, n_k], or None where there are too many to draw.
        term: the same for the pairs left to a term; for long sequences bool [row tiles, column tiles], the tiles that hold some.
        tile: rows and columns of a tile.  q_start: position of the first query.
    """

    kinds: np.ndarray
    pairs: np.ndarray | None
    term: np.ndarray | None
    tile: tuple[int, int]
    n_q: int
    n_k: int
    q_start: int


def picture(
    p,
    n: int,
    /,
    n_k: int | None = None,
    *,
    tile=None,
    head: int = 0,
    heads: int | None = None,
    row: int = 0,
    batch: int = 1,
    q_start=None,
    tiles: int = DEFAULT_TILES,
    **args,
) -> Picture:
    """The picture of one head and batch row as arrays; parameters as in `plot`.

    Raises:
        OperandError, ParameterError: for what is not a pattern, a tile or a head; for more than MOST_TILES tiles along one axis.
    """
    if isinstance(p, str):
        from patternc.parsing import parse

        p = parse(p)
    if not isinstance(p, (Pattern, Attention)):
        raise OperandError(f"plot draws a pattern or an attention, got {p!r}", fix='write `pc.plot(pc.causal, 64, path="causal.png")`')
    head, row, batch, tiles = count("head", head), count("row", row), count("batch", batch, 1), count("tiles", tiles, 1)
    heads = _heads(p, head) if heads is None else count("heads", heads, 1)
    for name, value, all_of_them, size in (("head", head, "heads", heads), ("row", row, "batch", batch)):
        if value >= size:
            message = f"`{name}` is {value}, and there {'is' if size == 1 else 'are'} {size}"
            raise ParameterError(message, fix=f"use 0 to {size - 1}, or say how many there are: `{all_of_them}={value + 1}`")
    longest = max(count("n_q", n), count("n_k", n if n_k is None else n_k), 1)
    shape = _tile(tile, longest, tiles)
    exact = p.exact if isinstance(p, Attention) else p

    def group(x: Pattern) -> Group:
        bound = bind(x, {name: args[name] for name in signature(x) if name in args}, n, n_k, heads, batch, q_start)
        return next(g for g in layout(x, bound, tuple(_fine(size) for size in shape)).groups if head in g.heads and row in g.batch)

    bind(p, args, n, n_k, heads, batch, q_start)  # all args at once, so that unknown ones are named
    found = group(exact)
    grid, few = found.tiles.grid, longest <= MOST_PAIRS_SHOWN
    term = None
    if isinstance(p, Attention):
        rest = group(all_of(p.domain, negate(exact)))
        term = _pairs(rest) if few else _kinds(rest.tiles, shape) > 0
    return Picture(_kinds(found.tiles, shape), _pairs(found) if few else None, term, shape, grid.row.count, grid.column.count, grid.row.first)


def _heads(p, head: int) -> int:
    """As many as `per_head` has, enough for `head` where the pattern reads `h`, else one that stands for all."""
    named = heads_listed(p)
    return named or (head + 1 if "h" in variables(p) else 1)


def _tile(tile, longest: int, tiles: int) -> tuple[int, int]:
    if tile is None:
        afford(tiles, MOST_TILES, "tiles along one axis of a picture", f"use `tiles={DEFAULT_TILES}`")
        size = 1
        while -(-longest // size) > tiles:
            size *= 2
        return size, size
    shape = (tile, tile) if isinstance(tile, int) else tuple(tile) if isinstance(tile, (tuple, list)) else ()
    if len(shape) != 2 or not all(isinstance(x, int) and 1 <= x <= MAX_INT for x in shape):
        raise ParameterError(f"`tile` is a positive integer or two of them, got {tile!r}", fix="write `tile=128` or `tile=(128, 64)`")
    if -(-longest // min(shape)) > MOST_TILES:
        raise ParameterError(
            f"{longest} positions in tiles of {min(shape)} are more than the {MOST_TILES} tiles that a picture can show",
            fix=f"use tiles of at least {-(-longest // MOST_TILES)}, or a shorter length",
        )
    return shape


def _fine(size: int) -> int:
    """The tile of the analysis: it looks at all pairs of one tile of a class, so a large tile is put together from small ones."""
    divisor = next((d for d in range(min(size, FINEST), 0, -1) if size % d == 0), size)
    return divisor if divisor >= FINEST // 8 or size <= FINEST else size


def _kinds(tiles: TileRuns, shape: tuple[int, int]) -> np.ndarray:
    """int8 [row tiles, column tiles] for tiles of `shape`, which are boxes of the analysed ones."""
    grid = tiles.grid
    down, across = shape[0] // grid.row.tile, shape[1] // grid.column.tile
    if down == across == 1:
        return tiles.kinds()
    rows, columns = -(-grid.row.tiles // down), -(-grid.column.tiles // across)
    row, start, stop, full = tiles.table
    first, count = start // across, (stop - 1) // across - start // across + 1
    run = np.repeat(np.arange(len(row)), count)
    column = ragged_arange(first, count)
    length = np.minimum(stop[run], (column + 1) * across) - np.maximum(start[run], column * across)
    counts = np.zeros((2, rows, columns), np.int64)
    np.add.at(counts, (full[run].astype(int), row[run] // down, column), length)
    heights = np.minimum(down, grid.row.tiles - np.arange(rows) * down)
    widths = np.minimum(across, grid.column.tiles - np.arange(columns) * across)
    whole = counts[1] == heights[:, None] * widths
    return np.where(whole, 2, counts.any(0)).astype(np.int8)


def _pairs(group: Group) -> np.ndarray:
    """bool [n_q, n_k]; the caller has checked that this is small."""
    grid = group.tiles.grid
    q, k = grid.row.first + np.arange(grid.row.count)[:, None], np.arange(grid.column.count)
    return np.broadcast_to(evaluate(group.pattern, {"q": q, "k": k}), (grid.row.count, grid.column.count))


@fitting("plot")
def plot(p, n: int, /, n_k: int | None = None, *, tile=None, head: int = 0, ax=None, path=None, **options):
    """Draw a mask with its tiles coloured empty, partial or full; queries go down, keys to the right.

    Up to 512 positions the allowed pairs are drawn too; beyond, the picture is of tiles only, and no n x n mask exists.
    Of an attention, the pairs that its term covers get a colour of their own.

    Args:
        p: a pattern, an attention, or the text of one.
        n, n_k: queries and keys; `n_k` defaults to `n`.
        tile: rows and columns of a tile, one number for both; by default 32 tiles or fewer along the longer axis.
        head: which query head, of those that the pattern names or `heads` says.
        ax: matplotlib axes to draw on; a new figure without it.
        path: where to save the figure; the ending says the format (.png, .svg, .pdf).
        options: `heads`, `row`, `batch`, `q_start` and the pattern's runtime args.
    Returns:
        the matplotlib axes.
    Raises:
        MissingExtraError: matplotlib is not installed.
        ParameterError: the tiles are too many for a picture, or `head`, `ax` or `path` do not fit.
    """
    shown = picture(p, n, n_k, tile=tile, head=head, **options)
    if not shown.n_q or not shown.n_k:
        raise ParameterError(f"a mask of {shown.n_q} queries and {shown.n_k} keys has nothing to draw", fix="use a length of at least 1")
    if path is not None and not isinstance(path, (str, Path)):
        raise ParameterError(f"`path` is the name of a file, got {path!r}", fix='write `path="mask.png"`')
    if path is not None and Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ParameterError(f"a picture is saved as .png, .svg or .pdf, got `{path}`", fix='write `path="mask.png"`')
    matplotlib = _matplotlib()
    if ax is None:
        width = 6.4
        height = min(max(width * shown.n_q / max(shown.n_k, 1), 1.2), 12.0) + 1.1
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        ax = figure.add_subplot()
    elif not isinstance(ax, matplotlib.axes.Axes):
        raise ParameterError(f"`ax` is a matplotlib Axes to draw on, got {ax!r}", fix="leave it out for a new figure")
    _draw(matplotlib, ax, shown, str(p))
    if path is not None:
        try:
            ax.figure.savefig(path, dpi=150)
        except OSError as error:
            message = f"the picture cannot be written to `{path}`: {error.strerror or error}"
            raise ParameterError(message, fix="give a path in a folder that exists") from None
    return ax


def _matplotlib():
    try:
        import matplotlib.axes
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.patches
    except ImportError:
        raise MissingExtraError("pictures need matplotlib", fix='pip install "patternc[viz]"') from None
    return matplotlib


def _draw(matplotlib, ax, shown: Picture, title: str) -> None:
    import textwrap

    image = _image(matplotlib.colors.to_rgb, shown)
    top, left = shown.q_start, 0
    ax.imshow(image, extent=(left, left + shown.n_k, top + shown.n_q, top), interpolation="nearest", aspect="equal")
    rows, columns = shown.kinds.shape
    if max(rows, columns) <= 64:
        bm, bn = shown.tile
        ax.hlines([top + i * bm for i in range(1, rows)], left, left + shown.n_k, color="white", linewidth=0.5)
        ax.vlines([left + j * bn for j in range(1, columns)], top, top + shown.n_q, color="white", linewidth=0.5)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title("\n".join(textwrap.wrap(title, 64)[:4]), fontsize=9, family="monospace")
    counts = [int((shown.kinds == kind).sum()) for kind in range(3)]
    full = COLOURS["full"][0 if shown.pairs is None else 1]
    names = [(f"{name} ({count})", full if name == "full" else COLOURS[name][0]) for name, count in zip(COLOURS, counts)]
    names += [("term", TERM_COLOUR)] if shown.term is not None else []
    handles = [matplotlib.patches.Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=label) for label, colour in names]
    ax.legend(
        handles=handles,
        title=f"tiles of {shown.tile[0]} x {shown.tile[1]}",
        title_fontsize=8,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(0, -0.1),
        ncols=4,
        frameon=False,
    )


def _image(rgb, shown: Picture) -> np.ndarray:
    """float [height, width, 3]: one pixel a pair where pairs are drawn, else one a tile."""
    background = np.array([rgb(COLOURS[name][0]) for name in COLOURS])
    if shown.pairs is None:
        image = background[shown.kinds]
        if shown.term is not None:
            image[shown.term & (shown.kinds == 0)] = rgb(TERM_COLOUR)
        return image
    bm, bn = shown.tile
    kinds = shown.kinds.repeat(bm, 0)[: shown.n_q].repeat(bn, 1)[:, : shown.n_k]
    image = background[kinds]
    if shown.term is not None:
        image[shown.term] = rgb(TERM_COLOUR)
    for kind, name in enumerate(COLOURS):
        colour = COLOURS[name][1]
        if colour is not None:
            image[shown.pairs & (kinds == kind)] = rgb(colour)
    return image
