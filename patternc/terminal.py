"""Pictures of patterns in a terminal: the tiles of a layout as text."""

from __future__ import annotations

from patternc.errors import ParameterError
from patternc.plotting import COLOURS, Picture, picture

TEXT_TILES = 38  # two characters each: 76 columns
GLYPHS = ("··", "▒▒", "██")  # empty, partial, full
STYLES = ("grey42", "dark_orange", "dodger_blue2")


def text(p, n: int, /, n_k: int | None = None, *, tile=None, tiles: int = TEXT_TILES, **options):
    """The tiles as a `rich.text.Text`, two characters a tile: `··` empty, `▒▒` partial, `██` full.  Parameters as in `plot`.

    Without `tile`, tiles are made large enough that at most `tiles` of them stand in a line.
    """
    from rich.text import Text

    shown = picture(p, n, n_k, tile=tile, tiles=tiles, **options)
    rows, columns = shown.kinds.shape
    if max(rows, columns) > 2 * TEXT_TILES:
        raise ParameterError(f"{rows} x {columns} tiles are too many for a terminal", fix="leave `tile` out, use larger tiles, or save a picture")
    out = Text(no_wrap=True)
    for i, line in enumerate(shown.kinds):
        for j, kind in enumerate(line):
            termed = shown.term is not None and kind == 0 and _holds_term(shown, i, j)
            out.append("░░" if termed else GLYPHS[kind], "green" if termed else STYLES[kind])
        out.append("\n")
    counts = [int((shown.kinds == kind).sum()) for kind in range(3)]
    out.append(f"{shown.n_q} queries (down), {shown.n_k} keys; tiles of {shown.tile[0]} x {shown.tile[1]}\n")
    for kind, name in enumerate(COLOURS):
        out.append(f"{GLYPHS[kind]}", STYLES[kind])
        out.append(f" {counts[kind]} {name}  ")
    if shown.term is not None:
        out.append("░░", "green")
        out.append(" term only")
    return out


def _holds_term(shown: Picture, i: int, j: int) -> bool:
    if shown.pairs is None:
        return bool(shown.term[i, j])
    bm, bn = shown.tile
    return bool(shown.term[i * bm : (i + 1) * bm, j * bn : (j + 1) * bn].any())
