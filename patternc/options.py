"""Values of command line options: tiles and runtime args."""

from __future__ import annotations

from patternc.errors import ArgError, ParameterError
from patternc.expr.index import RESERVED


def tile_of(text: str | None) -> tuple[int, int] | None:
    """`128` or `128x64` as (rows, columns)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isascii() and p.isdigit() and 0 < int(p) < 1 << 31 for p in parts):
        raise ParameterError(f"a tile is one or two positive integers, got `{text}`", fix="write `--tile 128` or `--tile 128x64`")
    return int(parts[0]), int(parts[-1])


def values_of(given: list[str] | None) -> dict:
    """Values of `--arg`: an integer, a comma-separated list of integers or of true and false, or `@file.npy`."""
    out = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ArgError(f"an arg is given as NAME=VALUE, got `{text}`", fix="write `--arg w=512` or `--arg tokens=0,17,42`")
        if name in RESERVED:
            raise ArgError(f"`{name}` is the name of a parameter, not of an arg", fix=f"see whether there is an option --{name.replace('_', '-')}")
        out[name] = _value(name, value.strip())
    return out


def _value(name: str, text: str):
    import numpy as np

    if text.startswith("@"):
        try:
            return np.load(text[1:], allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArgError(f"arg `{name}`: {text[1:]} is not a readable .npy file", fix="save the array with `numpy.save`") from error
    words = [w.strip() for w in text.strip("[]").split(",")]
    listed = "," in text or text.startswith("[")
    words = [w for w in words if w]
    bools = {"true": True, "false": False}
    try:
        values = [bools[w.lower()] if w.lower() in bools else int(w) for w in words]
    except ValueError:
        raise ArgError(
            f"arg `{name}` must be integers or true and false, got `{text}`", fix=f"write `--arg {name}=512` or `--arg {name}=0,17,42`"
        ) from None
    if listed:
        try:
            return np.array(values, bool if values and all(isinstance(v, bool) for v in values) else np.int64)
        except OverflowError:
            raise ArgError(f"arg `{name}` has an integer beyond 64 bits", fix="positions and ids are smaller") from None
    if not values:
        raise ArgError(f"arg `{name}` has no value", fix=f"write `--arg {name}=512`")
    return values[0]
