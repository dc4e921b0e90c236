"""Runs the text of a Gluon kernel with numpy, as far as the kernels of a linear tail need: Triton's own interpreter knows no Gluon.

Numbers are float64 whatever the text rounds to.  Those that run beside each other are coroutines, which go on in random order, two programs'
where one waits for the other; loads and stores arrive at random times, and products read shared memory until they are waited for.  What a
card would answer with a hang, a wrong number or an illegal instruction is an AssertionError here.
"""

import ast
import random
from types import SimpleNamespace

import numpy as np
from gluon_memory import Leaving, Number, Product, Tile, tensor

from patternc.codegen.hopper_ring import STOPS, coroutines
from patternc.codegen.ring_parts import ANYTHING, Barrier


class Card:
    """Runs programs one after the other, or some beside each other."""

    def __init__(self, text: str, kernel: str, seed: int):
        self.random, self.program, self.now, self.unfenced = random.Random(seed), 0, None, []
        self.namespace, self.running, self.arriving, self.leaving, self.issued = self._modules(), [], [], [], {}
        self.unseen = False  # barriers that were made since the last fence, of which TMA may know nothing
        exec(compile(coroutines(ast.parse(text), (*STOPS, "_await", "_load")), "<gluon>", "exec"), self.namespace)
        self.namespace |= {
            "_high": lambda x: x, "_low": np.zeros_like, "_wide": lambda x: x, "_rows_of": lambda x, i, _: x[i * 64 : (i + 1) * 64], "_of_rows": lambda x, like: x[:, None],
            "_halves": lambda x: np.split(x, 2, 1), "_signed": lambda x, sign: x * sign, "_larger": np.maximum,
            "_announce": self._announce, "_await": self._await, "_add": self._add,
            "_scalar": lambda value, offset: value,
        }  # fmt: skip
        self.kernel = self.namespace[kernel]

    def run(self, grid: int, *parameters, together: int = 1) -> None:
        for begun, program in enumerate(self.random.sample(range(grid), grid), 1):
            self.program = program
            self.kernel(*parameters)
            if begun % together == 0 or begun == grid:
                self._go()

    @staticmethod
    def describe(array, rows, width):
        shape = [rows, width]
        return SimpleNamespace(array=array, dtype=None, layout="tile", block_type=SimpleNamespace(nbytes=rows * width, shape=shape))

    def _modules(self) -> dict:
        tl = SimpleNamespace(
            constexpr=ANYTHING, int64=np.int64, float32=np.float64, static_range=range, program_id=lambda _: Number(self.program),
            atomic_add=self._atomic_add, cdiv=lambda a, b: Number(-(-a // b)), minimum=self._least, where=self._where, maximum=self._most, abs=np.abs, exp2=np.exp2, max=lambda x, axis: x.max(axis),
            sum=lambda x, axis: x.sum(axis), arange=lambda a, b, layout=None: tensor(np.arange(a, b)), zeros=lambda shape, *_: tensor(np.zeros(shape)),
            convert_layout=lambda x, _: x, load=self._load_pointers, store=self._store_pointers, warp_specialize=self._beside,
            allocate_shared_memory=self._allocate, NVMMASharedLayout=ANYTHING, NVMMADistributedLayout=ANYTHING, DotOperandLayout=ANYTHING,
            SliceLayout=ANYTHING, SwizzledSharedLayout=ANYTHING, BlockedLayout=ANYTHING, _core=SimpleNamespace(builtin=lambda f: f),
        )  # fmt: skip
        barriers = SimpleNamespace(
            MBarrierLayout=lambda: "barriers", init=self._init, wait=lambda barrier, phase, pred=True: (lambda: barrier.done & 1 != phase) if pred else None,
            arrive=lambda barrier, count=1, pred=True: barrier.arrive(count) if pred else None,
            expect=lambda barrier, size, pred=True: barrier.arrive(1, size) if pred else None,
        )  # fmt: skip
        tma = SimpleNamespace(async_load=self._load, async_store=self._store, store_wait=self._store_wait)
        gluon = SimpleNamespace(jit=lambda f=None, **_: f if f else lambda g: g)
        return {
            "gluon": gluon, "tl": tl, "mbarrier": barriers, "tma": tma, "fence_async_shared": self._fence, "warpgroup_mma": self._multiply,
            "warpgroup_mma_wait": self._wait,
        }  # fmt: skip

    @staticmethod
    def _where(condition, a, b):
        return tensor(np.where(condition, a, b))

    @staticmethod
    def _least(a, b):
        return Number(min(a, b)) if isinstance(a, int) and isinstance(b, int) else np.minimum(a, b)

    @staticmethod
    def _most(a, b):
        return Number(max(a, b)) if isinstance(a, int) and isinstance(b, int) else np.maximum(a, b)

    def _atomic_add(self, pointer, value):
        cell = pointer.array.reshape(-1)[pointer.offset :][:1]
        before = Number(cell[0])
        cell += value
        return before

    def _announce(self, pointer, count):
        for x in [x for x in self.leaving if x.who is self.now]:
            x.arrive()
            self.leaving.remove(x)
        pointer.array.ravel()[pointer.offset] = count

    @staticmethod
    def _await(pointer, count):
        return lambda: pointer.array.ravel()[pointer.offset] >= count

    def _allocate(self, dtype, shape, layout):
        make = (lambda i: Barrier(f"barrier {i}")) if layout == "barriers" else (lambda i: Tile(shape[1:], self))
        slots = [make(i) for i in range(shape[0])]
        return SimpleNamespace(index=slots.__getitem__, dtype=None)

    def _fence(self):
        self.unseen = False
        for who, threads in self.unfenced:
            if who is self.now:
                threads.discard(id(who))
        self.unfenced = [x for x in self.unfenced if x[0] is not self.now]

    def _init(self, barrier, count):
        barrier.arrivals, barrier.pending, self.unseen = count, count, True

    def _rows(self, desc, place, slot):
        b, h, first, column = place
        rows = np.arange(first, first + slot.data.shape[0])
        inside = (rows >= 0) & (rows < desc.array.shape[2])
        return desc.array[b, h], rows, inside, slice(column, column + slot.data.shape[1])

    def _load(self, desc, place, barrier, slot, pred=True):
        if pred:
            assert not slot.reading, "a load overwrites what a product reads"
            assert not slot.touched, "a load overwrites what threads may still read, without a fence"
            slot.there = False
            self.arriving.append((desc, place, barrier, slot))

    def _arrive(self, desc, place, barrier, slot):
        matrix, rows, inside, columns = self._rows(desc, place, slot)
        data = np.zeros(slot.data.shape)
        data[inside] = matrix[rows[inside], columns]
        slot.write(data)
        barrier.receive(desc.block_type.nbytes)

    def _store(self, desc, place, slot, add=False):
        assert place[2] >= 0, "TMA cannot store where a tile begins before the first row"
        assert not slot.written, "what threads wrote is stored without a fence"
        self.leaving.append(Leaving(self.now, slot, self._rows(desc, place, slot), add))

    def _add(self, desc, place, slot):
        self._store(desc, place, slot, add=True)

    def _store_wait(self, count):
        for x in self.leaving:
            if x.who is self.now:
                x.read()

    @staticmethod
    def _load_pointers(pointer, mask=True, other=0.0):
        at = np.asarray(pointer.offset)
        if at.ndim == 0 and np.issubdtype(pointer.array.dtype, np.integer):
            return Number(pointer.array.ravel()[at])
        mask = np.broadcast_to(mask, at.shape)
        found = np.full(at.shape, other, dtype=np.float64)
        found[mask] = pointer.array.ravel()[at[mask]]
        return tensor(found)

    @staticmethod
    def _store_pointers(pointer, values, mask=True):
        at = np.broadcast_to(pointer.offset, values.shape)
        mask = np.broadcast_to(mask, values.shape)
        pointer.array.ravel()[at[mask]] = values[mask]

    def _multiply(self, a, b, acc, use_acc=True, is_async=False):
        made = Product(a, b, acc if use_acc else 0.0)
        self.issued.setdefault(id(self.now), []).append(made)
        return made

    def _wait(self, count, deps):
        issued = self.issued.get(id(self.now), [])
        while len(issued) > count:
            issued.pop(0).end()
        values = tuple(d.value if isinstance(d, Product) else d for d in deps)
        assert all(v is not None for v in values), "a product is used that may not have ended"
        return values if len(values) > 1 else values[0]

    def _beside(self, partitions, warps, registers):
        assert not self.unseen, "barriers without a fence"
        self.running += [SimpleNamespace(steps=f(*own), waits=None, program=self.program) for f, own in partitions]

    def _go(self):
        """Until all that runs has ended; perhaps one program is late, or one of those that run in it."""
        late = self.random.choice(self.running)
        is_late = self.random.choice([lambda p: False, lambda p: p is late, lambda p: p.program == late.program])
        while self.running:
            ready = [p for p in self.running if p.waits is None or p.waits()]
            assert ready or self.arriving, "the kernel would hang"
            if self.random.random() < 0.9:
                ready = [p for p in ready if not is_late(p)] or ready
            at = self.random.randrange(len(ready) + len(self.arriving) + len(self.leaving))
            if at >= len(ready) + len(self.arriving):
                self.leaving.pop(at - len(ready) - len(self.arriving)).arrive()
            elif at >= len(ready):
                self._arrive(*self.arriving.pop(at - len(ready)))
            else:
                self.now = ready[at]
                try:
                    self.now.waits = next(self.now.steps)
                except StopIteration:
                    self.running.remove(self.now)
        while self.leaving:
            self.leaving.pop().arrive()
        assert not any(self.issued.values()), "a product that nobody waited for"
