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
    start = bound.q_start if isinstance(bound.q_start, int) else 0
    scalars = {name: value for name, value in bound.values.items() if isinstance(value, int)}
    roots = tuple(roots)
    key = roots[0], bound.n_q, bound.n_k, start, *scalars.items()
    if key in kept:
        return
    env = {"q": (start, start + bound.n_q - 1), "k": (0, bound.n_k - 1), "h": (0, bound.heads - 1), "b": (0, bound.batch - 1)}
    env |= {"n_q": (bound.n_q,) * 2, "n_k": (bound.n_k,) * 2, "q_start": (start,) * 2, **{name: (value, value) for name, value in scalars.items()}}
    env |= dict.fromkeys(("r0", "r1"), (0, max(env["q"][1], env["k"][1])))
    for x in dict.fromkeys(node for root in roots for node in postorder(root)):
        if x.op not in ("sum", "mul"):
            continue
        parts = [max(map(abs, bounds(c, env))) for c in x.children]
        most = math.prod(parts) if x.op == "mul" else abs(x.args[0]) + sum(abs(w) * p for w, p in zip(x.args[2::2], parts))
        if MAX_INT < most < INF:
            raise BackendError(
                f"`{x}` may reach {int(most)} at this length, and kernels compute in 32 bits",
                typed=str(compiled.spec),
                fix='divide before multiplying, or use backend="cpu"',
            )
    if len(kept) >= MOST_LENGTHS:
        kept.clear()
    kept.add(key)
