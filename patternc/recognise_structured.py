"""Which call of `structured` gives the first few of these operands of `&` or `|`.

As in `recognise`, parameters are guessed from the shape of nodes, and a guess counts if the call gives the same objects.
"""

from __future__ import annotations

from patternc.errors import PatterncError
from patternc.expr.index import Index, const
from patternc.expr.node import Node, postorder
from patternc.expr.pattern import H, K, Pattern, Q
from patternc.expr.table import INLINE
from patternc.recognise import Call
from patternc.structured import PRIME, axis_neighbors, coordinate


def structured(op: str, operands: tuple[Pattern, ...]) -> tuple[Call, int] | None:
    """`(call, how many operands it covers)`, or None."""
    for guesser in (_neighborhood, _random_blocks) if op == "and" else (_block_table,):
        for call in guesser(operands):
            covered = _covered(call, op, operands)
            if covered:
                return call, covered
    return None


def _covered(call: Call, op: str, operands) -> int:
    try:
        built = call.build()
    except PatterncError:
        return 0
    parts = built.args if built.op == op else (built,)
    return len(parts) if all(a is b for a, b in zip(parts, operands)) and len(parts) <= len(operands) else 0


def divisors(*nodes: Node) -> list[int]:
    """The constants of `//` and `%` in the nodes."""
    return sorted({n.args[1].args[0] for n in postorder(*nodes) if n.op in ("div", "mod") and n.args[1].op == "const"})


def divisors_of(x: Index, *nodes: Node) -> list[int]:
    """The constants m of `x // m` in the nodes; 1 if there are none."""
    return sorted({n.args[1].args[0] for n in postorder(*nodes) if n.op == "div" and n.args[0] is x and n.args[1].op == "const"}) or [1]


# neighborhood


def _neighborhood(operands):
    head = operands[0]
    if not (head.op == "in" and head.args[0].op == "length" and head.args[1:] == (1, None)):
        return
    total = head.args[0].args[0]
    seen = [x for x in {1, *divisors(*operands[1:10])} if total % x == 0]
    shapes = [(total,), *((total // x, x) for x in seen), *((total // y, y // x, x) for x in seen for y in seen if y % x == 0)]
    for sides in shapes:
        axes, rest, inner = [], list(operands[1:]), 1
        for axis in reversed(range(len(sides))):
            q, k = (coordinate(x, inner, sides[axis], outermost=axis == 0) for x in (Q, K))
            found = _axis(q, k, sides[axis], rest)
            if found is None:
                break
            axes.insert(0, found[0])
            rest = rest[found[1] :]
            inner *= sides[axis]
        else:
            yield Call("neighborhood", (list(sides) if len(sides) > 1 else sides[0], _merged([a[0] for a in axes])), _options(axes))


def _axis(q: Index, k: Index, side: int, operands: list[Pattern]):
    """`((kernel, dilation, stride, causal), operands covered)` of one axis."""
    near = operands[:3]
    if not near or near[0].op != "in":
        return None
    core, low, high = near[0].args
    residues = [p.args[0].args[1].args[0] for p in near if p.op == "in" and p.args[0].op == "mod" and p.args[0].args[1].op == "const"]
    factors = divisors(near[0])
    for dilation in dict.fromkeys([1, *residues]):
        strides = {1, *factors, *(x // y for x in factors for y in factors if x % y == 0)}
        for stride in sorted(strides):
            bound = high if low is None else low
            size = abs(bound)
            kernels = [high - low + 1] if None not in (low, high) else [size + 1, size + stride, size - stride + 2, abs(bound + stride)]
            for kernel in kernels:
                if not stride <= kernel <= side // dilation:
                    continue
                wanted = axis_neighbors(q, k, side, kernel, dilation, stride, causal=None in (low, high))
                if len(wanted) <= len(near) and all(a is b for a, b in zip(wanted, near)):
                    return (kernel, dilation, stride, None in (low, high)), len(wanted)
    return None


def _merged(values: list):
    return values[0] if len(set(values)) == 1 else values


def _options(axes) -> dict:
    columns = dict(zip(("dilation", "stride", "causal"), ([a[i] for a in axes] for i in (1, 2, 3))))
    plain = {"dilation": 1, "stride": 1, "causal": False}
    return {name: _merged(values) for name, values in columns.items() if set(values) != {plain[name]}}


# block_table


def _block_table(operands):
    read = _listed_row(operands[0])
    if read is None:
        return
    source, *row, column = read.args
    size = divisors_of(Q, operands[0])[0]
    if column.args != (0,):
        return
    if source.op == "table":
        data = source.args[0]
        yield Call("block_table", (data.data.tolist() if data.data.size <= INLINE else source, size))
        return
    width = 1
    while width < len(operands) and (r := _listed_row(operands[width])) is not None and r is Index("read", source, *row, const(width)):
        width += 1
    yield Call("block_table", (source, size), {"width": width, **({"per_head": True} if row[0] is H else {})})


def _listed_row(p: Pattern) -> Index | None:
    """The read of `T[.., q // size, j] == k // size`."""
    if p.op != "in" or p.args[1:] != (0, 0):
        return None
    reads = [n for n in p.args[0].children if n.op == "read"]
    return reads[0] if len(reads) == 1 and len(reads[0].args) in (3, 4) and reads[0].args[-1].op == "const" else None


# random_blocks


def _random_blocks(operands):
    if len(operands) < 2 or operands[0].op != "in" or not any(n.op == "const" and n.args[0] == PRIME for n in postorder(operands[1])):
        return
    free, draws = operands[0], operands[1].args if operands[1].op == "or" else operands[1:2]
    # The first number of each draw is the prime's remainder of a sum that starts with the seed.
    seeds = {(x - 12345) % PRIME for x in _inner_constants(draws[0])}
    heads = any(n is H for n in postorder(draws[0]))
    if draws[0].op != "in" or free.args[1] is None:
        return
    taken, first = free.args[1] - 1, draws[0].args[1]  # free >= 1 is `blocks >= 1 + taken`
    first = abs(first) if first is not None else 0
    for seed in sorted(seeds):
        for near in (None, *range((taken - first - 1) // 2 + 1)):
            last = taken - first - (0 if near is None else 2 * near + 1)
            if last < 0:
                continue
            options = {"seed": seed, "near": near, "first": first, "last": last, "per_head": heads}
            plain = {"seed": 0, "near": None, "first": 0, "last": 0, "per_head": True}
            given = {name: value for name, value in options.items() if value != plain[name]}
            yield Call("random_blocks", (len(draws), divisors_of(K, draws[0])[0]), given)


def _inner_constants(p: Pattern) -> set[int]:
    """Constants of the sums that are taken modulo the prime; 0 where a sum has none."""
    sums = [n.args[0] for n in postorder(p) if n.op == "mod" and n.args[1].op == "const" and n.args[1].args[0] == PRIME]
    return {x.args[0] if x.op == "sum" else 0 for x in sums}


