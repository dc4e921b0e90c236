"""Which orders an expression suggests."""

from __future__ import annotations

import math

from patternc.expr.arithmetic import terms
from patternc.expr.node import postorder, roomy
from patternc.expr.pattern import Pattern
from patternc.orders.digits import NATURAL, Order
from patternc.orders.simplify import in_digits
from patternc.passes import variables

MOST_CUTS = 4  # digits beside the first
MOST_ORDERS = 16


@roomy
def orders(lowered: Pattern) -> list[Order]:
    """The orders that `//` and `%` in the expression suggest, and again in what each cut leaves; the natural one is not among them.

    Where all cuts together leave comparisons of single digits, orders with fewer cuts have nothing to add, and are not looked at.
    """
    order, cuts = NATURAL, _cuts(lowered, NATURAL)
    while cuts and order is not None:
        order = _together(order, cuts)
        cuts = set() if order is None else _cuts(in_digits(lowered, order, "k"), order)
    if order is not None and not order.natural and _apart(in_digits(lowered, order, "k"), order):
        return [order]
    found: list[Order] = []
    todo = [NATURAL]
    while todo and len(found) < MOST_ORDERS:
        order = todo.pop(0)
        if len(order.strides) > MOST_CUTS:
            continue
        for digit, cut in sorted(_cuts(in_digits(lowered, order, "k"), order)):
            new = order.split(digit, cut)
            if new is not None and new not in found:
                found.append(new)
                todo.append(new)
    return found


def _cuts(p: Pattern, order: Order) -> set[tuple[int, int]]:
    """`(digit, c)` of every `// c` and `% c` whose argument is linear in a digit, and that cuts it.

    `// c` that only queries or only keys are asked groups positions, and bounds hold for groups as well; under `%` it names a digit.
    A digit of 100 values is cut by 3 only where it stands alone on its side: of a sum of digits, `% 3` is no remainder of one of them.
    """
    names = {name: i for side in ("q", "k") for i, name in enumerate([side] if order.natural else order.names(side))}
    nodes = [x for x in postorder(p) if x.op in ("div", "mod") and x.args[1].op == "const"]
    taken = {y for x in nodes if x.op == "mod" for y in postorder(x) if y.op in ("div", "mod")}
    sides: dict[tuple[int, int], set[str]] = {}
    for x in nodes:
        parts = [(t.args[0], w) for t, w in terms(x.args[0])[1].items() if t.op == "var" and t.args[0] in names]
        for name, w in parts:
            digit, cut = names[name], x.args[1].args[0] // math.gcd(w, x.args[1].args[0])
            whole = order.extents[digit] is None or order.extents[digit] % cut == 0
            alone = sum(other[0] == name[0] for other, _ in parts) == 1
            if (whole or alone) and order.split(digit, cut) is not None:
                sides.setdefault((digit, cut), set()).update("qk" if x in taken else name[0])
    return {cut for cut, own in sides.items() if len(own) == 2}


def _together(order: Order, cuts: set[tuple[int, int]]) -> Order | None:
    """The order with all cuts; None where it has too many digits, or two cuts of one digit are not nested."""
    for digit in {digit for digit, _ in cuts}:
        own = sorted(cut for d, cut in cuts if d == digit)
        if any(b % a for a, b in zip(own, own[1:])):
            return None
    strides = {*order.strides, *(order.strides[digit] * cut for digit, cut in cuts)}
    return Order(tuple(sorted(strides, reverse=True))) if len(strides) <= MOST_CUTS + 1 else None


def _apart(p: Pattern, order: Order) -> bool:
    """Whether every comparison is of one digit of keys and one of queries, beside digits that are tied."""
    comparisons = [x for x in postorder(p) if x.op == "in"]
    tied = {t.args[0] for x in comparisons if x.args[1:] == (0, 0) for t in terms(x.args[0])[1] if t.op == "var"}
    alone = [variables(x) - tied for x in comparisons]
    return p.op != "false" and all(len(own.intersection(order.names(side))) <= 1 for own in alone for side in "qk")
