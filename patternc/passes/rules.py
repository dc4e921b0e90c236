"""Rules and the driver that applies them: a pass is a table of rules, each with its law in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from patternc.errors import InternalError
from patternc.expr.node import Node
from patternc.expr.transform import rewrite

ROUNDS = 64  # a table that still changes the expression after this many sweeps is looping


@dataclass(frozen=True)
class Rule:
    """`before -> after` in words, and the function that does it: a new node, or None where the rule does not apply."""

    law: str
    apply: Callable[[Node], Node | None]


def apply_rules(root: Node, rules: tuple[Rule, ...]) -> Node:
    """Apply the first rule that fits at every node, bottom-up, until nothing changes."""

    def change(node: Node) -> Node | None:
        for rule in rules:
            new = rule.apply(node)
            if new is not None and new is not node:
                return new
        return None

    for _ in range(ROUNDS):
        new = rewrite(root, change)
        if new is root:
            return root
        root = new
    raise InternalError(f"rules do not settle after {ROUNDS} sweeps: {[r.law for r in rules]}", typed=str(root))
