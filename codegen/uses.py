"""What a kernel's text refers to: the args and tables of its pattern."""

from __future__ import annotations

from dataclasses import dataclass, field

from patternc.expr.index import Index
from patternc.expr.table import Table


def is_pointer(parameter: str) -> bool:
    """Whether a kernel's parameter is a tensor and not a number.  Names of the user come after `_of_`, whatever they are."""
    return parameter.startswith("ptr_of_") or ("_of_" not in parameter and parameter.endswith(("_ptr", "_desc")))


@dataclass(frozen=True)
class Array:
    """A tensor in a kernel.

    Attributes:
        label: its name in labels of statements.
        name: the pointer to the current batch row.
        parameter: the pointer that is passed.
        sizes: text of the size of each axis: numbers for tables, parameters for args.
        source: the name of the arg, or the table.
        kind: "array" (int32 values) or "member" (int8, 1 where the position belongs).
    """

    label: str
    name: str
    parameter: str
    sizes: tuple[str, ...]
    source: str | Table
    kind: str

    @property
    def static(self) -> bool:
        return isinstance(self.source, Table)

    def parameters(self) -> list[str]:
        """Parameters of the kernel: the pointer, and for an arg its batch stride and its sizes."""
        return [self.parameter] if self.static else [self.parameter, f"stride_of_{self.source}", *self.sizes]

    def prologue(self) -> list[str]:
        """Statements that make `name` from the parameters."""
        return [] if self.static else [f"{self.name} = {self.parameter} + tl.cast(b, tl.int64) * stride_of_{self.source}"]


@dataclass
class Uses:
    """Collected while a kernel is printed, in order of first use."""

    scalars: list[str] = field(default_factory=list)
    arrays: dict[tuple[object, str], Array] = field(default_factory=dict)

    def scalar(self, name: str) -> str:
        if name not in self.scalars:
            self.scalars.append(name)
        return f"arg_{name}"

    def array(self, source: Index, rank: int) -> Array:
        return self._note(source, "array", rank)

    def member(self, source: Index) -> Array:
        return self._note(source, "member", 1)

    def _note(self, source: Index, kind: str, rank: int) -> Array:
        key = (source.args[0], kind)
        if key not in self.arrays:
            self.arrays[key] = self._static(source.args[0], kind) if source.op == "table" else self._runtime(source.args[0], kind, rank)
        return self.arrays[key]

    def _static(self, table: Table, kind: str) -> Array:
        label = f"table_{sum(a.static for a in self.arrays.values())}"
        # The set of a membership becomes a mask that reaches to its largest position.
        sizes = table.data.shape if kind == "array" else (max(0, int(table.data.max())) + 1,)
        return Array(label, f"{label}_ptr", f"{label}_ptr", tuple(map(str, sizes)), table, kind)

    def _runtime(self, name: str, kind: str, rank: int) -> Array:
        return Array(name, f"arg_{name}", f"ptr_of_{name}", tuple(f"size_{axis}_of_{name}" for axis in range(rank)), name, kind)

    def parameters(self) -> list[str]:
        """The kernel's parameters, in order: scalars with their batch strides, then arrays."""
        scalars = [p for name in self.scalars for p in (f"value_of_{name}", f"stride_of_{name}")]
        return scalars + [p for array in self.arrays.values() for p in array.parameters()]

    def names(self) -> set[str]:
        """All names that parameters and prologue bind."""
        return {*self.parameters(), *(f"arg_{name}" for name in self.scalars), *(array.name for array in self.arrays.values())}

    def prologue(self) -> list[str]:
        """Statements that turn the parameters into what the text reads."""
        lines = []
        for name in self.scalars:
            lines.append(f"arg_{name} = _scalar(value_of_{name}, b * stride_of_{name})")
        return lines + [line for array in self.arrays.values() for line in array.prologue()]
