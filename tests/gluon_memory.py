"""Values of a kernel and its memory, for `gluon_numbers.py`: numbers, tensors, shared tiles, products and copies that take their time."""

from types import SimpleNamespace

import numpy as np


class Tensor(np.ndarray):
    type = SimpleNamespace(layout=None)

    def to(self, dtype):
        return self


def tensor(x):
    return np.asarray(x).view(Tensor)


class Number(int):
    """An integer that a kernel computes."""

    def to(self, dtype):
        return self


for _name in ("add", "sub", "mul", "floordiv", "mod", "radd", "rsub", "rmul", "rfloordiv", "rmod"):
    def _operate(self, other, name=f"__{_name}__"):
        found = getattr(int, name)(self, int(other)) if isinstance(other, (int, np.integer)) else NotImplemented
        return Number(found) if found is not NotImplemented else found

    setattr(Number, f"__{_name}__", _operate)


class Pointer:
    dtype = SimpleNamespace(element_ty=None)

    def __init__(self, array, offset=0):
        self.array, self.offset = array, offset

    def __add__(self, offset):
        return Pointer(self.array, self.offset + offset)


class Tile:
    """Shared memory of one tile."""

    dtype = None

    def __init__(self, shape, card):
        self.data, self.there, self.reading, self.version = tensor(np.full(shape, np.nan)), False, 0, 0
        self.card, self.touched, self.written = card, set(), set()  # by threads since their last fence

    def reshape(self, shape):
        assert list(self.data.shape) == list(shape)
        return self

    def load(self, layout):
        assert self.there, "read before it arrived"
        self.touch(self.touched)
        return self.data.copy()

    def store(self, value):
        self.touch(self.touched, self.written)
        self.write(value)

    def touch(self, *by):
        for threads in by:
            threads.add(id(self.card.now))
            self.card.unfenced.append((self.card.now, threads))

    def write(self, value):
        assert not self.reading, "overwritten while a product reads it"
        assert value.shape == self.data.shape
        self.data, self.there, self.version = tensor(np.array(value)), True, self.version + 1

    def permute(self, axes):
        return SimpleNamespace(tile=self, transposed=True)

    def slice(self, start, length, dim):
        some = slice(start, start + length)
        return Part(self, some) if dim == 0 else SimpleNamespace(tile=self, columns=some)


class Part:
    """Some rows of a tile."""

    dtype = None

    def __init__(self, tile, rows):
        self.tile, self.rows = tile, rows

    def load(self, layout):
        return self.tile.load(layout)[self.rows]

    def store(self, value):
        whole = self.tile.data.copy()
        whole[self.rows] = value
        self.tile.store(whole)


class Product:
    def __init__(self, a, b, acc):
        self.operands, self.acc, self.value = [(self._tile(x), x) for x in (a, b)], acc, None
        tiles = [tile for tile, _ in self.operands if tile is not None]
        self.nothing = not all(tile.there for tile in tiles)  # nobody may use it
        self.reads = [] if self.nothing else tiles
        for tile in self.reads:
            assert not tile.written, "a product of what threads wrote, without a fence"
            tile.reading += 1

    @staticmethod
    def _tile(x):
        return x if isinstance(x, Tile) else getattr(x, "tile", None)

    @staticmethod
    def _data(tile, x):
        return tile.data if tile is x else tile.data[:, x.columns] if hasattr(x, "columns") else tile.data.T

    def end(self):
        a, b = (x if tile is None else self._data(tile, x) for tile, x in self.operands)
        acc = self.acc.value if isinstance(self.acc, Product) else self.acc
        self.value = tensor(a @ b + acc) * (np.nan if self.nothing else 1)
        for tile in self.reads:
            tile.reading -= 1


class Leaving:
    """A bulk copy or reduction to memory: it reads its tile until `store_wait` and is done when it is done, at the latest where results are announced."""

    def __init__(self, who, tile, memory, add):
        self.who, self.tile, self.memory, self.add, self.data = who, tile, memory, add, None

    def read(self):
        if self.data is None:
            self.data = self.tile.data.copy()

    def arrive(self):
        self.read()
        matrix, rows, inside, columns = self.memory
        matrix[rows[inside], columns] = self.data[inside] + (matrix[rows[inside], columns] if self.add else 0)
