"""Runs the printed text of a Hopper forward with numbers in the place of tiles, before anybody runs it with tiles.

Those that run beside each other become coroutines, which stop at every wait and after every arrival.  Loads arrive late, products end when they
are waited for.  A hang, a tile that is overwritten while it is read or before it was, one that is read before it arrived, from another place
or of another matrix than it should be, weights of one tile times values of another, a mask of another tile, rows that leave without a fence or
not at all: each is an InternalError.  Numbers themselves are not looked at.
"""

from __future__ import annotations

import ast
import itertools
from types import SimpleNamespace

from patternc.codegen.ring_parts import ANYTHING, Barrier, Order, Partition, Product, Slot, Slots
from patternc.errors import InternalError

COUNTS = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 3), (3, 1), (1, 4), (5, 6), (0, 0), (2, 2))  # partial and full tiles of row tiles
STAGES, Q_STAGES = (2, 3), (1, 2)
ORDERS = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 3, 0))  # who goes on first, of the consumers and the producer
ONES = ("HEADS", "GROUP", "BLOCK_N", "SECTION", "PACK", "LINES")
CONSTANTS = {"D": 64, "DV": 64, "BLOCK_D": 64, "BLOCK_DV": 64, **dict.fromkeys(ONES, 1), "ORDERED": True}
QUERY_HEAD, KEY_HEAD, LINE, POSITION = 100, 200, 300, 10000  # of batch row 0; that of its first query
STOPS = ("mbarrier.wait", "mbarrier.arrive")
FULL = 1 << 20  # tiles from here on are full ones


def check(text: str, consumers: int = 2) -> None:
    """Simulate a module's forward on small cases.  Raises InternalError."""
    tree = coroutines(ast.parse(text))
    code = compile(tree, "<ring>", "exec")
    find = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_find_tiles")
    found = [ast.unparse(n) for n in find.body[-1].value.elts]
    parameters = next([a.arg for a in n.args.args] for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "forward")
    kinds = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    counts = [(p, f) for p, f in COUNTS if (not f or "_full_tile" in kinds) and (not p or "_partial_tile" in kinds)]
    if "_share" in kinds:  # tiles of one run, of which each consumer has its own
        counts = [(0, p + f) for p, f in COUNTS]
    cases = [*([c] for c in counts), counts, counts[::-1]]
    queries = Q_STAGES[1:] if "k0_desc" in parameters else Q_STAGES  # scores ahead want another tile of queries
    for own, stages, q_stages in itertools.product(cases, STAGES, queries):
        for order, last_first in itertools.product(ORDERS, (False, True)):
            sizes = {"STAGES": stages, "Q_STAGES": q_stages, "CONSUMERS": consumers, "BLOCK_M": 64 * consumers}
            try:
                Machine(own, order, last_first).run(code, found, parameters, sizes)
            except InternalError:
                raise
            except Exception as error:  # whatever a wrong text runs into
                raise InternalError(f"the kernel's text fails: {error!r}") from error


def coroutines(tree: ast.Module, stops: tuple[str, ...] = STOPS) -> ast.Module:
    """Functions that wait, which they do where they call one of `stops`, become coroutines; imports go."""
    tree.body = [n for n in tree.body if not isinstance(n, ast.ImportFrom)]
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    waiting = set(stops)
    while more := {name for name, f in functions.items() if name not in waiting and waiting & set(map(_callee, ast.walk(f)))}:
        waiting |= more

    class Yields(ast.NodeTransformer):
        def visit_Call(self, node):
            self.generic_visit(node)
            if _callee(node) not in waiting:
                return node
            return (ast.Yield if _callee(node) in stops else ast.YieldFrom)(node)

    return ast.fix_missing_locations(Yields().visit(tree))


def _callee(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


class Machine:
    """One program and its row tiles, with so many partial and full tiles of columns each; a batch row has one of them, the last one comes first.

    Partitions that are ready go on in `order`; when none is, a load arrives, the first or the last that was issued.
    """

    def __init__(self, counts: list[tuple[int, int]], order: tuple[int, ...], last_first: bool):
        self.counts, self.order, self.last_first = counts, order, last_first
        self.partitions: list[Partition] = []
        self.now: Partition | None = None
        self.arriving: list[tuple[Slot, object, Barrier]] = []
        self.buffers, self.rows, self.fenced, self.masks = 0, 0, False, False

    def run(self, code, found: list[str], parameters: list[str], stages: dict[str, int]) -> None:
        ranged, self.rows = "start_0" in found and "partial_count" not in found, stages["BLOCK_M"]

        def find(*given):
            if ranged:
                first, rows, b, *_ = given
                start, stop = (0, self.counts[b][1]) if rows == self.rows else own_tiles(b, first % self.rows // rows, self.counts[b][1])
                return tuple({"start_0": start, "stop_0": stop}.get(name, 0) for name in found)
            b = given[1]
            values = dict(zip(("partial_count", "full_count"), self.counts[b])) | {"first": self._first(b), "r0": self._first(b) + POSITION}
            return tuple(values.get(name, 0) for name in found)

        namespace = self.modules()
        exec(code, namespace)
        self.masks = "_masked" in namespace
        namespace |= {
            "_find_tiles": find,
            "_place": lambda b, *_: (b % 3, b, QUERY_HEAD + b, KEY_HEAD + b, LINE + b),
            "_partial_tile": lambda i, *_: i,
            "_full_tile": lambda i, *_: FULL + i,
            **dict.fromkeys(("_masked", "_masked_first"), self._masked),
            "_weights": self._weights,
        }
        turns = range(len(self.counts))[::-1]
        sizes = {"items": len(turns), "n_q": 128, "n_k": 128, "order_ptr": Order(turns)}
        values = {name: ANYTHING for name in parameters} | CONSTANTS | stages | sizes
        matrix = SimpleNamespace(dtype=ANYTHING, layout=ANYTHING, block_type=SimpleNamespace(nbytes=8, shape=[1]))
        values |= {f"{x}_desc": SimpleNamespace(name=x, **vars(matrix)) for x in ("q", "k", "v", "k0", "v0", "o")}
        self.readers = lambda b, tile: sum(not ranged or tile in _own_or_one(b, i, self.counts[b][1]) for i in range(stages["CONSUMERS"]))
        namespace["forward"](*(values[name] for name in parameters))
        first = ["own"] if "k0_desc" in parameters else []
        for number, partition in enumerate(self.partitions[:-1]):
            tiles = [_own_or_one(b, number, f) if ranged else _tiles(p, f, bool(first)) for b, (p, f) in enumerate(self.counts)]
            wanted = [(b, tile) for b in turns for tile in (*first, *tiles[b])]
            if partition.stored:
                raise InternalError(f"{partition.name} ends before its rows have left")
            if partition.scores != wanted or partition.values != wanted:
                raise InternalError(f"{partition.name} computed the tiles {partition.scores} and {partition.values}, not {wanted}")

    # What the text calls

    def modules(self) -> dict:
        tl = SimpleNamespace(
            where=lambda c, a, b: ANYTHING if c is ANYTHING else a if c else b, maximum=_or_anything(max), minimum=_or_anything(min),
            cdiv=_or_anything(lambda a, b: -(-a // b)), cast=lambda x, _: x, static_range=range, constexpr=ANYTHING,
            program_id=lambda _: 0, num_programs=lambda _: 1,
            allocate_shared_memory=self._allocate, warp_specialize=self._beside, convert_layout=lambda x, *_: x,
        )  # fmt: skip
        names = "arange zeros full exp2 log2 sum max store abs float32 int32 int64 NVMMADistributedLayout DotOperandLayout SliceLayout"
        vars(tl).update(dict.fromkeys(names.split(), ANYTHING), load=lambda x, *_, **__: x.turn if isinstance(x, Order) else ANYTHING)
        barriers = SimpleNamespace(
            MBarrierLayout=lambda: "barriers", init=self._init, wait=lambda barrier, phase, pred=True: (barrier, phase) if pred else None,
            arrive=lambda barrier, count=1, pred=True: barrier.arrive(count) if pred else None,
            expect=lambda barrier, size, pred=True: barrier.arrive(1, size) if pred else None,
        )  # fmt: skip
        tma = SimpleNamespace(async_load=self._load, async_store=self._store, store_wait=self._stored)
        gluon = SimpleNamespace(jit=lambda f=None, **_: f if f else lambda g: g)
        return {
            "gluon": gluon, "tl": tl, "mbarrier": barriers, "tma": tma, "fence_async_shared": self._fence, "warpgroup_mma": self._multiply,
            "warpgroup_mma_wait": self._wait,
        }  # fmt: skip

    def _allocate(self, dtype, shape, layout) -> Slots:
        self.buffers += 1
        name = f"buffer {self.buffers}"
        made = Barrier if layout == "barriers" else lambda name: Slot(name, self)
        return Slots(name, [made(f"{name}[{i}]") for i in range(shape[0])])

    def _init(self, barrier: Barrier, count: int) -> None:
        barrier.arrivals = barrier.pending = count
        self.fenced = False

    def _fence(self) -> None:
        self.fenced = True
        if self.now is not None:
            self.now.written = []

    def _first(self, b: int) -> int:
        """The first row of a batch row's row tile."""
        return b % 3 * self.rows

    def _row(self, b: int) -> int:
        """The first row of it that is this consumer's."""
        return self._first(b) + 64 * self.partitions.index(self.now)

    def _load(self, desc, place, barrier: Barrier, slot: Slot, pred: bool = True) -> None:
        if not pred:
            return
        b, head, line, row, _ = place
        tile = (b, {"q": "queries", "k0": "own", "v0": "own"}.get(desc.name, row))
        if (head, line) != ((QUERY_HEAD if desc.name == "q" else KEY_HEAD) + b, LINE + b):
            raise InternalError(f"tile {tile} of {desc.name} is loaded from head {head} and line {line}")
        if tile[1] == "own" and row != self._first(b) + POSITION:
            raise InternalError(f"tile {tile} of {desc.name} is loaded from position {row}")
        slot.matrix, slot.row = desc.name[0], row
        if slot.reading or (slot.holds is not None and (desc.name == "q" or slot.read < self.readers(*slot.holds))):
            raise InternalError(f"tile {tile} of {desc.name} overwrites {slot.holds} in {slot.name}, which is still needed")
        slot.holds, slot.read = "a load", 0
        self.arriving.append((slot, tile, barrier))

    def _store(self, desc, place, slot: Slot) -> None:
        b, head, line, row, _ = place
        if slot.holds != ("output", b):
            raise InternalError(f"{slot.name} is stored as the rows of {b}, and holds {slot.holds}")
        if (head, line, row) != (QUERY_HEAD + b, LINE + b, self._row(b)):
            raise InternalError(f"{self.now.name} stores its rows at head {head}, line {line} and row {row}")
        if slot in self.now.written:
            raise InternalError(f"{slot.name} is stored without a fence")
        self.now.stored.append(slot)

    def _stored(self, count: int) -> None:
        for slot in self.now.stored:
            slot.holds = None
        self.now.stored = []

    def _multiply(self, a, b: Slot, acc, use_acc: bool = True, is_async: bool = False) -> Product:
        kind = "scores" if isinstance(a, Slot) else "values"
        wrong = [slot for slot in ((a, b) if kind == "scores" else (b,)) if slot.holds is None or slot.holds == "a load"]
        if not wrong and (b.matrix != ("k" if kind == "scores" else "v") or kind == "scores" and (a.matrix != "q" or a.row != self._row(a.holds[0]))):
            raise InternalError(f"{self.now.name} reads another matrix or other rows than those of its {kind}")
        if kind == "values":
            if wrong:
                raise InternalError(f"{self.now.name} reads {b.name} before its tile arrived")
            if a.tile != b.holds:
                raise InternalError(f"{self.now.name} multiplies the weights of tile {a.tile} with the values of tile {b.holds}")
            self.now.values.append(b.holds)
        # Scores may be of nothing, as long as nobody uses them.
        same = wrong or a.holds[0] == b.holds[0] if kind == "scores" else True
        made = Product(kind, None if wrong or not same else b.holds, (a, b) if kind == "scores" else (b,))
        self.now.issued.append(made)
        for slot in made.reads:
            slot.reading += 1
        return made

    def _wait(self, count: int, deps: list[Product]) -> Product:
        issued = self.now.issued
        while len(issued) > count:
            done = issued.pop(0)
            done.done = True
            for slot in done.reads:
                slot.reading, slot.read = slot.reading - 1, slot.read + 1
        if not deps[0].done:
            raise InternalError(f"{self.now.name} uses a product of tile {deps[0].tile} that may not have ended")
        return deps[0]

    def _masked(self, s: Product, start: int, *_) -> Product:
        if s.tile is not None and start != (self._first(s.tile[0]) + POSITION if s.tile[1] == "own" else s.tile[1]):
            raise InternalError(f"{self.now.name} masks the scores of tile {s.tile} as if they began at {start}")
        s.masked = True
        return s

    def _weights(self, s: Product, *_):
        if s.kind != "scores" or not s.done:
            raise InternalError(f"{self.now.name} makes weights of what are no scores yet")
        if s.tile is None:
            raise InternalError(f"{self.now.name} uses scores of queries and keys that do not belong together, or were read before they arrived")
        if self.masks and not s.masked and (s.tile[1] == "own" or s.tile[1] < FULL):
            raise InternalError(f"{self.now.name} masks nothing of the partial tile {s.tile}")
        self.now.scores.append(s.tile)
        return s, ANYTHING, ANYTHING, ANYTHING

    def _beside(self, partitions, warps, registers=None) -> None:
        if not self.fenced:
            raise InternalError("barriers are not there for loads without a fence")
        names = [*(f"consumer {i}" for i in range(len(partitions) - 1)), "producer"]
        self.partitions = [Partition(name, function(*args)) for name, (function, args) in zip(names, partitions)]
        while not all(p.finished for p in self.partitions):
            self.now = next((p for p in (self.partitions[i] for i in self.order if i < len(self.partitions)) if p.ready), None)
            if self.now is not None:
                self._go_on(self.now)
            elif self.arriving:
                slot, tile, barrier = self.arriving.pop(-1 if self.last_first else 0)
                slot.holds = tile
                barrier.receive(slot.size)
            else:
                stuck = [f"{p.name} waits for {p.waits[0].name}" for p in self.partitions if not p.finished]
                raise InternalError(f"the kernel would hang: {', '.join(stuck)}")

    def _go_on(self, partition: Partition) -> None:
        try:
            partition.waits = next(partition.steps)
        except StopIteration:
            partition.finished = True


def _tiles(partial: int, full: int, full_first: bool) -> list[int]:
    """The tiles of a row tile in their order."""
    kinds = [list(range(partial)), [FULL + i for i in range(full)]]
    return sum(kinds[::-1] if full_first else kinds, []) or [0]


def own_tiles(b: int, consumer: int, count: int) -> tuple[int, int]:
    """Tiles [start, stop) of a consumer among the first `count`: any, or none."""
    start = (2 * consumer + b) % (count + 1)
    return start, min(count, start + (consumer + 2 * b) % (count + 2))


def _own_or_one(b: int, consumer: int, count: int) -> range:
    start, stop = own_tiles(b, consumer, count)
    start = min(start, max(count - 1, 0))
    return range(start, max(stop, start + 1))


def _or_anything(f):
    return lambda *args: ANYTHING if any(a is ANYTHING for a in args) else f(*args)
