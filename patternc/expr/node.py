"""The one node type of patternc: frozen and interned, so that equality is `is` and sharing is free.

A node has an operation name and arguments (nodes, integers, strings, None or interned payloads).  The two sorts of
expression, `Index` (integer valued) and `Pattern` (a set of pairs), and the values built on them (`Attention`, `Term`)
are subclasses that differ in the operators they offer, not in how they are stored.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import hashlib
import sys
import threading
import weakref

from patternc.errors import LimitError

MAX_DEPTH = 200  # nesting of an expression; recursion over nodes is therefore always safe
MAX_SIZE = 50_000  # nodes counted as a tree, so that sharing cannot hide an exponential expression
MAX_TEXT = 40_000  # characters of the canonical text, so that what prints can be parsed again

# The limits in force, as (depth, size, text).  Passes take expressions apart, so what they make may be larger than what users write.
_limits = contextvars.ContextVar("limits", default=(MAX_DEPTH, MAX_SIZE, MAX_TEXT))

_pool: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_lock = threading.Lock()
_recent: collections.deque = collections.deque(maxlen=4096)  # passes make, drop and make again: nodes live a little longer than their users


class Node:
    """A frozen, interned node.  Build nodes with the functions of `index`, `pattern` and `attention` only.

    Attributes:
        op: name of the operation.
        args: its arguments.
        children: the nodes among them.
        depth, size: nesting, and number of nodes counted as a tree.
        width: an upper bound of the length of the canonical text.
        light: there are no tables or other data in it.
    """

    __slots__ = ("op", "args", "children", "depth", "size", "width", "light", "facts", "__weakref__")

    __array_ufunc__ = None  # numpy values on the left of an operator defer to the node's own

    op: str
    args: tuple
    children: tuple[Node, ...]
    depth: int
    size: int
    width: int
    light: bool
    facts: dict

    def __new__(cls, op: str, *args):
        # Children enter the key by identity: their own `==` builds patterns and must never be asked.
        key = (cls, op, *[id(a) if isinstance(a, Node) else (type(a), a) for a in args])
        found = _pool.get(key)
        if found is not None:
            return found
        with _lock:
            found = _pool.get(key)
            if found is not None:
                return found
            children = tuple([a for a in args if isinstance(a, Node)])
            depth = 1 + max([c.depth for c in children], default=0)
            size = 1 + sum([c.size for c in children])
            width = _WIDTH.get(op, 24) + sum([_width(a) for a in args])
            deepest, largest, longest = _limits.get()
            if depth > deepest or size > largest or width > longest:
                what = f"of {width} characters (limit {longest})" if width > longest else f"of {size} nodes (limit {largest})"
                what = f"nested {depth} deep (limit {deepest})" if depth > deepest else what
                raise LimitError(f"expression {what}", fix="put the data of a large pattern into a table or a runtime arg")
            node = object.__new__(cls)
            setter = object.__setattr__
            light = all([c.light for c in children]) and all([a is None or isinstance(a, (Node, int, str)) for a in args])
            for name, value in zip(Node.__slots__, (op, args, children, depth, size, width, light, {})):
                setter(node, name, value)
            _pool[key] = node
            if light:
                _recent.append(node)
            return node

    @property
    def order(self) -> str:
        """A string that sorts nodes the same way in every process: it never depends on creation order."""
        found = self.facts.get("order")
        if found is None:
            found = self.facts["order"] = _order(self.op, self.args)
        return found

    def __setattr__(self, name, value):
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name):
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __reduce__(self):
        return type(self), (self.op, *self.args)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


_WIDTH = {"const": 0, "var": 1, "arg": 7, "sum": 4, "in": 12, "mul": 5, "div": 6, "mod": 5, "true": 4, "false": 5, "and": 2, "or": 2, "not": 3}


def _width(argument) -> int:
    """What an argument of a node adds to the text: its own, and the separator before it."""
    if isinstance(argument, Node):
        return argument.width + 3
    if argument is None or isinstance(argument, int):
        return 0 if argument is None else len(str(argument)) + 3
    return getattr(argument, "width", None) or (len(argument) if isinstance(argument, str) else 24)


_RANK = {"q": "0", "k": "1", "h": "2", "b": "3", "n_q": "4", "n_k": "5"}


def _order(op: str, args: tuple) -> str:
    parts = (a.order if isinstance(a, Node) else _RANK.get(a, a) if isinstance(a, str) else str(getattr(a, "order", a)) for a in args)
    text = f"{op}({','.join(parts)})"
    if len(text) <= 96:
        return text
    return text[:72] + "#" + hashlib.sha256(text.encode()).hexdigest()[:20]


def postorder(*roots: Node) -> list[Node]:
    """All nodes below `roots`, children before parents, each once."""
    seen: set[int] = set()
    out: list[Node] = []

    def visit(node: Node) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        for child in node.children:
            visit(child)
        out.append(node)

    for root in roots:
        visit(root)
    return out


def roomy(function):
    """Decorate a function of the compiler that makes nodes no user will print: its limits are wider."""

    @functools.wraps(function)
    def wider(*args, **options):
        token = _limits.set((2 * MAX_DEPTH, sys.maxsize, sys.maxsize))  # passes visit a shared node once, however large its tree
        try:
            return function(*args, **options)
        finally:
            _limits.reset(token)

    return wider


def fact(compute):
    """Cache a property of a node on the node: `@fact def f(node)` runs once per node."""
    name = compute.__name__

    def cached(node: Node):
        if name not in node.facts:
            node.facts[name] = compute(node)
        return node.facts[name]

    cached.__doc__, cached.__name__ = compute.__doc__, name
    return cached
