"""Row tiles whose consumers visit tiles of their own, for the text of the Hopper forward (`hopper_text.py`).

Where a pattern is one run of keys, the tiles of a row tile are those from `whole_start` to `whole_stop`, and the producer loads them in
this order.  The rows of one consumer need some of them, without a gap: it passes the others by, and masks what its own rows want masked.
Of 192 rows under a window of 512 each 64 visit five tiles of 128 keys, all together seven.
"""

from __future__ import annotations

from patternc.plan import Plan

HELPERS = (
    '''
@gluon.jit
def _share(whole_start, whole_stop, start, stop):
    """Of the tiles [whole_start, whole_stop) how many come before [start, stop), how many are these, and how many follow.  Each at least one
    tile, which is tile 0 where there is none."""
    whole_stop = tl.maximum(whole_stop, whole_start + 1)
    start = tl.minimum(tl.maximum(start, whole_start), whole_stop - 1)
    stop = tl.minimum(tl.maximum(stop, start + 1), whole_stop)
    return start - whole_start, stop - start, whole_stop - stop
''',
    '''
@gluon.jit
def _pass(k_full, k_empty, v_full, v_empty, g, STAGES: tl.constexpr):
    """Give tile number g of both rings back unread."""
    slot = g % STAGES
    mbarrier.wait(k_full.index(slot), g // STAGES & 1)
    mbarrier.arrive(k_empty.index(slot), count=1)
    mbarrier.wait(v_full.index(slot), g // STAGES & 1)
    mbarrier.arrive(v_empty.index(slot), count=1)
''',
)
WHOLE = "first, BLOCK_M"  # the rows of a row tile, as parameters of `_find_tiles`
OWN = "first + own * (64 // PACK), 64 // PACK"
FOUND = ["start_0", "stop_0", "full_start_0", "full_stop_0", "r0"]


def ranged(plan: Plan) -> bool:
    """Whether a forward's tiles are one run, found by formulas alone."""
    axis = plan.forward
    return axis.kind == "formula" and axis.count == 1 and axis.filler is None and not axis.flagged


def find(call: str, results: list[str], own: bool) -> list[str]:
    """Statements that find the tiles of a row tile, and with `own` those of one consumer."""
    names = ["whole_start", "whole_stop", *["_"] * (len(results) - 2)]
    lines = ["first = tile * BLOCK_M", f"{', '.join(names)} = {call.replace('(first, rows', f'({WHOLE}')}"]
    if own:
        lines += [f"{', '.join(results)} = {call.replace('(first, rows', f'({OWN}')}"]
        lines += ["early, count, late = _share(whole_start, whole_stop, start_0, stop_0)"]
    return lines


def passing(number: str) -> list[str]:
    """Statements that pass by so many tiles."""
    return [f"for i in range({number}):", "    _pass(k_full, k_empty, v_full, v_empty, g, STAGES)", "    g += 1"]


def masked(number: str, mask: list[str]) -> list[str]:
    """Statements that mask the scores of a consumer's tile of a number, where not all of it is allowed."""
    at = f"whole_start + early + {number}" if number != "0" else "whole_start + early"
    return [f"at = {at}", "if (at < full_start_0) | (at >= full_stop_0):", *("    " + line for line in ["start = at * BLOCK_N", *mask])]
