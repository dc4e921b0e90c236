"""Whether the integers of a pattern fit into the 32 bits that kernels compute in."""

from __future__ import annotations

import math
from collections.abc import Iterable

from patternc.args import Bound
from patternc.errors import BackendError
from patternc.expr.bounds import INF, bounds
from patternc.expr.index import MAX_INT
from patternc.expr.node import Node, postorder

MOST_LENGTHS = 64  # that are known to fit


def check_width(compiled, bound: Bound, roots: Iterable[Node]) -> None:
    """Kernels compute positions in 32 bits.  Raises BackendError where one that is under `roots` may not fit at this length."""
    kept = compiled.state.setdefault("fits", set())
    roots = tuple(roots)
    start = bound.q_start if isinstance(bound.q_start, int) else 0
    scalars = {name: (value, value) for name, value in bound.values.items() if isinstance(value, int)}
    sizes = start, bound.n_q, bound.n_k, bound.heads, bound.batch
    # What fits at the next powers of two fits at all lengths below: one that grows is looked at once in a while.
    most = tuple(1 << max(size - 1, 0).bit_length() for size in sizes)
    key = roots[0], most, *scalars.items()
    if key in kept:
        return
    if _widest(roots, _intervals(most, False) | scalars) is None:
        if len(kept) >= MOST_LENGTHS:
            kept.clear()
        kept.add(key)
    elif found := _widest(roots, _intervals(sizes, True) | scalars):
        node, reach = found
        raise BackendError(
            f"`{node}` may reach {reach} at this length, and kernels compute in 32 bits",
            typed=str(compiled.spec),
            fix='divide before multiplying, or use backend="cpu"',
        )


def _intervals(sizes: tuple[int, ...], exact: bool) -> dict[str, tuple[int, int]]:
    """What variables may be, at these sizes (`exact`), or at all up to them."""
    start, n_q, n_k, heads, batch = sizes
    env = {"q": (exact * start, start + n_q - 1), "k": (0, n_k - 1), "h": (0, heads - 1), "b": (0, batch - 1)}
    env |= {"q_start": (exact * start, start), "n_q": (n_q if exact else 1, n_q), "n_k": (n_k if exact else 1, n_k)}
    return env | dict.fromkeys(("r0", "r1"), (0, max(env["q"][1], env["k"][1])))


def _widest(roots: tuple[Node, ...], env: dict[str, tuple[int, int]]) -> tuple[Node, int] | None:
    """A node that may not fit, and how far it may reach."""
    for x in dict.fromkeys(node for root in roots for node in postorder(root)):
        if x.op not in ("sum", "mul"):
            continue
        parts = [max(map(abs, bounds(c, env))) for c in x.children]
        most = math.prod(parts) if x.op == "mul" else abs(x.args[0]) + sum(abs(w) * p for w, p in zip(x.args[2::2], parts))
        if MAX_INT < most < INF:
            return x, int(most)
    return None
