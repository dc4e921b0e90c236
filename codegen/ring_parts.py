"""What the simulation of a ring (`hopper_ring.py`) is made of: barriers, tiles in shared memory, products, and those who compute."""

from __future__ import annotations

from dataclasses import dataclass, field

from patternc.errors import InternalError


class Anything:
    """A value that nothing here depends on."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return self

    __getitem__ = __call__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __floordiv__ = __mod__ = __rshift__ = __call__
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __invert__ = __call__
    __rfloordiv__ = __rmod__ = __rtruediv__ = __call__


ANYTHING = Anything()


@dataclass
class Barrier:
    name: str
    arrivals: int = 0
    pending: int = 0
    bytes: int = 0
    done: int = 0

    def arrive(self, count: int = 1, more: int = 0) -> None:
        self.pending -= count
        self.bytes += more
        if self.pending < 0:
            raise InternalError(f"too many arrivals at {self.name}")
        self._complete()

    def receive(self, size: int) -> None:
        self.bytes -= size
        self._complete()

    def _complete(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.done, self.pending = self.done + 1, self.arrivals


@dataclass(eq=False)
class Slot:
    """Shared memory for one tile: what is in it, of which matrix and from which row on, how many products read it now, and how often it
    has been read."""

    name: str
    machine: object = None
    holds: object = None
    matrix: str = ""
    row: int = 0
    reading: int = 0
    read: int = 0
    size: int = 8

    def reshape(self, shape):
        return self

    permute = reshape

    def store(self, value) -> None:
        if self.reading:
            raise InternalError(f"{self.name} is written while it is read")
        if not isinstance(self.holds, tuple):
            raise InternalError(f"{self.name} is written, and holds {self.holds}")
        self.holds = ("output", self.holds[0])
        self.machine.now.written.append(self)


@dataclass
class Slots:
    name: str
    slots: list
    dtype: object = ANYTHING

    def index(self, i: int):
        return self.slots[i]


@dataclass
class Product:
    """A product that has been issued: of which tile, and what it reads."""

    kind: str
    tile: object
    reads: tuple[Slot, ...]
    done: bool = False
    masked: bool = False

    def to(self, dtype):
        return self

    def __getitem__(self, _):
        return self

    def __mul__(self, _):
        return self

    __truediv__ = __mul__


@dataclass
class Order:
    """The row tiles by the numbers that programs take, from a number on."""

    turns: range
    number: int = 0

    def __add__(self, more: int) -> Order:
        return Order(self.turns, self.number + more)

    @property
    def turn(self) -> int:
        return self.turns[self.number]


@dataclass
class Partition:
    name: str
    steps: object
    waits: tuple[Barrier, int] | None = None
    finished: bool = False
    issued: list[Product] = field(default_factory=list)
    stored: list[Slot] = field(default_factory=list)
    written: list[Slot] = field(default_factory=list)  # since the last fence
    scores: list = field(default_factory=list)
    values: list = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return not self.finished and (self.waits is None or self.waits[0].done & 1 != self.waits[1])
