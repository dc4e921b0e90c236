"""Static tables: interned, hashable wrappers around integer arrays."""

from __future__ import annotations

import hashlib
import threading
import weakref

import numpy as np

from patternc.errors import LimitError, ParameterError

_tables: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_lock = threading.Lock()

INLINE = 64  # entries; longer tables print by name
MAX_RANGE = 1_000_000  # numbers of a range that is made a table: a range costs nothing to write


class Table:
    """An immutable int64 array, equal to every table with the same contents and name.

    Attributes:
        data: the array, read-only.
        name: how the text form refers to it, or None.
        order: a content hash and the name, to sort by.
    """

    __slots__ = ("data", "name", "order", "__weakref__")

    @staticmethod
    def of(data, name: str | None = None) -> Table:
        if isinstance(data, Table):
            return data
        if isinstance(data, range) and len(data) > MAX_RANGE:
            raise LimitError(
                f"a table of a range of {len(data)} numbers", fix=f"write it as an index expression, or give an array; the limit is {MAX_RANGE}"
            )
        try:
            array = np.asarray(data.cpu() if hasattr(data, "cpu") else data)
        except (ValueError, OverflowError):  # ragged lists
            raise ParameterError("a table's rows must have the same length", fix="write `table([[0, 1], [1, 0]])`") from None
        except (TypeError, RuntimeError):  # on the meta device, sparse, bfloat16, ..
            raise ParameterError("the values of this tensor cannot be read", fix="give a dense tensor of integers that holds data") from None
        if array.dtype.kind not in "iub" or array.ndim == 0 or array.size == 0:
            raise ParameterError(
                f"a table holds integers or bools and at least one entry, got shape {array.shape} of {array.dtype}",
                fix="write `table([0, 2, 1])` or pass an integer array",
            )
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) > 2**31 - 1:
            raise ParameterError("a table entry does not fit in 32 bits", fix="keep entries within 2147483647 in magnitude")
        array = np.ascontiguousarray(array, dtype=np.int64).copy()
        array.flags.writeable = False
        if name is not None and not (isinstance(name, str) and name.isidentifier()):
            raise ParameterError(f"a table's name must be an identifier, got {name!r}", fix='write `table(T, name="plan")`')
        digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
        if name is None and array.size > INLINE:
            name = f"t{digest[:10]}"
        if array.size <= INLINE:
            name = None  # printed in full
        key = (digest, name)
        with _lock:
            found = _tables.get(key)
            if found is None:
                found = object.__new__(Table)
                found.data, found.name, found.order = array, name, f"T{digest[:24]}{name or ''}"
                _tables[key] = found
            return found

    @property
    def width(self) -> int:
        """About the length of its text."""
        return len(self.name) + 9 if self.name else len(str(self.data.tolist())) + 7

    @property
    def extremes(self) -> tuple[int, int]:
        """The smallest and the largest entry."""
        return int(self.data.min()), int(self.data.max())

    def __reduce__(self):
        return Table.of, (self.data, self.name)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self
