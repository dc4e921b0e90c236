"""The order in which a scan takes keys and rows: slots of at most `block` of each.

Row q reads the keys of earlier slots through the state, and those of its own slot through a masked product:

    key_first[t] - 1 <= last(q) < key_first[t + 1]      for the rows row_first[t] .. row_first[t + 1] - 1 of slot t

Every key and every row is in one slot.  Where `last(q) = q - shift`, slot t is keys and rows `t * block ..`, the rows moved by
an offset; elsewhere a table says where slots begin, and some have keys alone or rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patternc.tail_plan import NOTHING, Prefix, Scan


@dataclass(frozen=True, eq=False)
class Slots:
    """What kernels need of a scan.  Tables are int32 with a leading batch axis of 1 or B.

    Attributes:
        mirrored: rows and keys are counted from the last ones.
        block: most keys, and most rows, of a slot.
        count: number of slots.
        offset: slot t holds the keys `t * block ..` and the rows `t * block + offset ..`; None where `first` says so instead.
        first: [B', count + 1, 2], the first key and the first row of every slot.
        last: [B', n_q], the last key of each row; beside `first` only.
        low: [B', n_q], the lowest key of each row, NOTHING for rows without keys.  None where that is 0 for all rows in slots.
        base: [B', count + 1], the state that enters slot t holds the keys from `base[t]` on; beside `low` only.
        live: [B', n_k], 0 for keys that no row reads; None if there is none.
    """

    mirrored: bool
    block: int
    count: int
    offset: int | None
    first: np.ndarray | None
    last: np.ndarray | None
    low: np.ndarray | None
    base: np.ndarray | None
    live: np.ndarray | None


def slots_of(scan: Scan, starts: int | np.ndarray, n_q: int, n_k: int, block: int) -> Slots:
    """The slots of a scan.

    Args:
        starts: position of the first query, a number or one for each batch row.
    """
    parts = scan.prefixes
    starts = np.asarray(starts).reshape(-1)
    starts = n_k - n_q - starts if scan.mirrored else starts
    shifts = {p.shift for p in parts if (p.low < NOTHING).any()}
    if len(shifts) == 1 and None not in shifts and (starts == starts[0]).all():
        offset = shifts.pop() - int(starts[0])
        count = -(-max(n_k, n_q - offset) // block)
        first = last = None
        keys = [np.arange(count + 1) * block] * len(parts)
        gated = any((p.low[max(offset, 0) :] != 0).any() for p in parts)
    else:
        offset = None
        lasts = [np.clip(p.last, -1, n_k - 1) for p in parts]
        made = [_schedule(last, n_k, block) for last in lasts]
        count = max(map(len, made)) - 1
        made = [np.concatenate([m, np.broadcast_to(m[-1:], (count + 1 - len(m), 2))]) for m in made]
        keys = [m[:, 0] for m in made]
        first, last = _stack(scan, made), _stack(scan, lasts)
        gated = any((p.low != 0)[at >= 0].any() for p, at in zip(parts, lasts))
    low = base = live = None
    if gated:
        low, base = _stack(scan, [p.low for p in parts]), _stack(scan, [_bases(p, at) for p, at in zip(parts, keys)])
    if any(p.live is not None for p in parts):
        live = _stack(scan, [np.ones(n_k) if p.live is None else p.live for p in parts])
    return Slots(scan.mirrored, block, count, offset, first, last, low, base, live)


def _stack(scan: Scan, tables: list[np.ndarray]) -> np.ndarray:
    """One table, or the tables of the batch rows."""
    return np.stack([tables[i] for i in (scan.rows if len(tables) > 1 else (0,))]).astype(np.int32)


def _bases(p: Prefix, keys: np.ndarray) -> np.ndarray:
    """The last low end of a row's range before each of `keys`."""
    lows = np.unique(p.low[p.low < NOTHING])
    at = np.searchsorted(lows, keys, "left")
    return np.where(at > 0, np.append(lows, 0)[at - 1], 0)


def _schedule(last: np.ndarray, n_k: int, block: int) -> np.ndarray:
    """The first key and row of each slot, and what follows the last one, for rows that read up to `last` (-1 .. n_k - 1, never falling)."""
    n_q, key, row, out = len(last), 0, 0, [(0, 0)]
    while key < n_k or row < n_q:
        stop = min(key + block, n_k)
        rows = int(np.searchsorted(last, stop, "left"))
        if rows - row <= block:
            key, row = stop, rows
        else:
            full = int(last[row + block])  # the rows that read up to here do not all fit
            key, row = (key, row + block) if full < key else (full + 1, int(np.searchsorted(last, full, "left")))
        out.append((key, row))
    return np.array(out)
