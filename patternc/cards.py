"""Which card's rates are in use: those that `patternc tune` measured on this machine's card, else the committed ones of an H100.

Tables of `patternc tune` lie in the cache folder, one for each card, in the form of the committed one.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from patternc import folder
from patternc.rates import Card

COMMITTED = Path(__file__).with_name("rates.json")


@dataclass(frozen=True)
class InUse:
    """A table, and where it comes from: `path` is None for the committed one."""

    card: Card
    path: Path | None = None

    @property
    def outdated(self) -> str:
        """One sentence about a table that another Triton made, "" where it is this one's."""
        made, now = self.card.versions.get("triton", ""), triton_version()
        if not made or not now or made.partition("+")[0] == now.partition("+")[0]:
            return ""
        return f"They were measured with Triton {made}, and this is Triton {now}: `patternc tune` measures again."


def card() -> Card:
    """The rates in use."""
    return in_use().card


@lru_cache(maxsize=1)
def in_use() -> InUse:
    """The table in use, decided once a process: that of the CUDA device which is current then."""
    return _own() or InUse(committed())


@lru_cache(maxsize=1)
def committed() -> Card:
    """The table that comes with patternc."""
    return Card.read(COMMITTED.read_text())


def path_of(name: str, kind: str = "rates", where: Path | None = None) -> Path:
    """The file of a card: its `rates`, or the `times` that they are made from."""
    return (where or folder.wanted()) / f"{kind}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def save(made: Card) -> Path:
    """Write a card's table to the cache, where later processes find it; this one goes on with what it had."""
    path = path_of(made.name, where=folder.folder())
    folder.write(path, made.json().encode())
    return path


def device_name() -> str | None:
    """The name of the current CUDA device, None without one."""
    import torch

    try:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except RuntimeError:  # such as in a process that was forked from one that uses the device
        return None


def triton_version() -> str:
    """Of the installed Triton, "" without one."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def _own() -> InUse | None:
    """The table that was measured on this card.  One that cannot be used is ignored, with a warning: no call breaks because of it."""
    path = folder.wanted()
    try:
        # Asking for the device's name starts CUDA; nothing needs it where no card was ever measured.
        if not any(path.glob("rates-*.json")) or (name := device_name()) is None:
            return None
        path = path_of(name)
        if not path.exists():
            return None
        found = Card.read(path.read_text(encoding="utf-8"))
        if found.name != name:
            raise ValueError(f"it is the table of {found.name}")
        return InUse(found, path)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path} cannot be used, and what kernels cost on this card is taken from the committed table: {error}; "
            "run `patternc tune`, which writes it anew, or delete it",
            stacklevel=2,
        )
        return None
