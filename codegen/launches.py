"""What a kernel is launched with, and launching it: once through Triton, then by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from patternc.codegen.configs import Config
from patternc.codegen.descriptors import moved
from patternc.codegen.generated import Kernel

captured: list[torch.Tensor] = []  # tables that CUDA graphs go on reading, which nobody else may keep
_kernels: dict[tuple, object] = {}  # compiled ones, by `Launch._key`
MOST_KERNELS = 4096
MOST_INT32 = 2**31 - 1  # integers beyond it, which are never far below 0, are parameters of another type


@dataclass
class Launch:
    """What is decided once for inputs of one layout: everything but addresses and runtime values.

    Attributes:
        kernel: as it is where its row tiles are dealt in the usual order.
        function: the launcher of it, or of the kernel that is dealt by a schedule.
        grid, copies: programs in the usual order, and how many there are for each row tile.
        values: parameters that the layout fixes, constexprs among them.
        pointers: names of matrices that are passed as they are.
        descriptors: by parameter, the matrix that it describes and its descriptor.
        merge: what puts the pieces of row tiles together, where they are cut.
        form: `form(f)`, the launcher where row tiles are dealt in a form f (`schedule.FORMS`).
        compiled: by the kinds of what a call decides, the compiled kernel; nothing where kernels are interpreted.
    """

    kernel: Kernel
    function: object
    config: Config
    grid: int
    copies: int
    values: dict
    pointers: list[str]
    descriptors: dict[str, tuple[str, TensorDescriptor]]
    merge: Launch | None = None
    form: Callable[[str], object] | None = None
    compiled: dict[tuple, Positional] = field(default_factory=dict)

    def parameters(self, values: dict, matrices: dict[str, torch.Tensor]) -> dict:
        """All parameters by name, `values` being those that a call decides."""
        values = {**values, **self.values}
        for matrix in self.pointers:
            values[f"{matrix}_ptr"] = matrices[matrix]
        for parameter, (matrix, pattern) in self.descriptors.items():
            values[parameter] = moved(pattern, matrices[matrix])
        return values

    def dealt(self, form: str) -> Launch:
        """The same with row tiles that are dealt in a form."""
        return replace(self, function=self.form(form), merge=None, compiled={})

    @cached_property
    def decided(self) -> list[str]:
        """The parameters that a call decides."""
        fixed = {*self.values, *self.descriptors, *(f"{matrix}_ptr" for matrix in self.pointers)}
        return [name for name in self.function.arg_names if name not in fixed]

    def run(self, grid: int, values: dict, matrices: dict[str, torch.Tensor]) -> None:
        """Launch on matrices and the parameters that a call decides.

        Triton looks at each parameter at every launch; what it found for parameters of the same kinds serves again.
        """
        kinds = _kinds(values)
        ready = self.compiled.get(kinds)
        if ready is None:
            key = self._key(kinds, matrices)
            made = _kernels.get(key)
            if made is None:
                made = self.function[(grid,)](**self.parameters(values, matrices), num_warps=self.config.warps, num_stages=self.config.stages)
                if made is None:  # interpreted
                    return
                if key is not None:
                    if len(_kernels) >= MOST_KERNELS:
                        _kernels.clear()
                    _kernels[key] = made
                ready = self.compiled[kinds] = Positional.of(made, self, values)
                ready.hold(ready.parameters(values, matrices))
            else:
                ready = self.compiled[kinds] = Positional.of(made, self, values)
                ready.run(grid, values, matrices)
        else:
            ready.run(grid, values, matrices)

    def _key(self, kinds: tuple, matrices: dict[str, torch.Tensor]) -> tuple | None:
        """What makes two launches run one compiled kernel: no number but constants is compiled into it, only how wide it is; None if interpreted."""
        if not isinstance(self.function, triton.runtime.JITFunction):
            return None
        constants = {name for name, _ in self.code[1:]}
        numbers = [(name, _kind(x)) for name, x in self.values.items() if name not in constants]
        blocks = [(name, *pattern.block_shape) for name, (_, pattern) in self.descriptors.items()]
        seen = [(name, x.dtype, x.data_ptr() % 16) for name, x in matrices.items()]
        device = triton.runtime.driver.active.get_current_device()
        return *self.code, device, self.config, kinds, *numbers, *blocks, *seen

    @cached_property
    def code(self) -> tuple:
        """The function and its constants, by name: what is compiled, for tensors of some dtypes and alignments."""
        names = self.kernel.constants if self.kernel is not None else self.values
        return self.function, *((name, self.values[name]) for name in names if name in self.values)


def _kinds(values: dict) -> tuple:
    """What is compiled follows from these of the parameters that a call decides."""
    names = sorted(values)
    given = [values[name] for name in names]
    return (*names, *[(x.dtype, x.data_ptr() % 16) if isinstance(x, torch.Tensor) else _kind(x) for x in given])


def _kind(x) -> object:
    """What a parameter's type follows from, that of an integer from how wide it is."""
    return x > MOST_INT32 if type(x) is int else type(x)


def _is_table(name: str, x) -> bool:
    """Whether a parameter is a tensor of integers on the device that outlives its call: counts are made for each call."""
    return isinstance(x, torch.Tensor) and x.is_cuda and not x.is_floating_point() and name != "counts_ptr"


@dataclass
class Positional:
    """A compiled kernel with the parameters of a launch by position: what its layout fixes, and where the rest belongs.

    Attributes:
        fixed: all parameters, None where a launch decides.
        values, pointers: positions of what a call decides, and of the addresses of matrices, by name.
        descriptors: positions, matrices and their descriptors.
        tables: positions of tensors of integers on the device that outlive a call.
    """

    kernel: object
    fixed: list
    values: list[tuple[int, str]]
    pointers: list[tuple[int, str]]
    descriptors: list[tuple[int, str, TensorDescriptor]]
    tables: list[int]

    @staticmethod
    def of(kernel, launch: Launch, values: dict) -> Positional:
        places = {name: i for i, name in enumerate(launch.function.arg_names)}
        return Positional(
            kernel,
            [launch.values.get(name) for name in places],
            [(places[name], name) for name in values if name not in launch.values],
            [(places[f"{matrix}_ptr"], matrix) for matrix in launch.pointers],
            [(places[name], matrix, pattern) for name, (matrix, pattern) in launch.descriptors.items()],
            [places[name] for name, x in {**launch.values, **values}.items() if _is_table(name, x)],
        )

    def with_fixed(self, values: dict) -> Positional:
        """The same where some of what a call decides is always the same."""
        fixed = self.fixed.copy()
        for i, name in self.values:
            fixed[i] = values.get(name)
        return replace(self, fixed=fixed, values=[(i, name) for i, name in self.values if name not in values])

    def parameters(self, values: dict, matrices: dict[str, torch.Tensor]) -> list:
        """All of them."""
        given = self.fixed.copy()
        for i, name in self.values:
            given[i] = values[name]
        for i, matrix in self.pointers:
            given[i] = matrices[matrix]
        for i, matrix, pattern in self.descriptors:
            given[i] = moved(pattern, matrices[matrix])
        return given

    def run(self, grid: int, values: dict, matrices: dict[str, torch.Tensor]) -> None:
        given = self.parameters(values, matrices)
        self.kernel[(grid, 1, 1)](*given)
        self.hold(given)

    def hold(self, given: list) -> None:
        """Keep the tables that a graph which is being captured goes on reading."""
        if self.tables and torch.cuda.is_current_stream_capturing():
            captured.extend(given[i] for i in self.tables)


class Again:
    """A launch that is made again and again, with parameters of the same kinds: what `Launch.run` finds by them serves from the second time on.

    Args:
        own: parameters that a call decides and that are always the same.
    """

    def __init__(self, launch: Launch, grid: int, own: dict):
        self.launch, self.grid, self.own, self.found = launch, grid, own, None

    def run(self, values: dict, matrices: dict[str, torch.Tensor]) -> None:
        """Launch on matrices and the other parameters that a call decides, which are among `values`."""
        if self.found is not None:
            self.found.run(self.grid, values, matrices)
            return
        given = {name: self.own[name] if name in self.own else values[name] for name in self.launch.decided}
        self.launch.run(self.grid, given, matrices)
        found = self.launch.compiled.get(_kinds(given))
        self.found = found and found.with_fixed(self.own)
