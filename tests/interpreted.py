"""Triton's interpreter without work that has no result: half of what tests of interpreted kernels take."""

import inspect
import math
from functools import cache

import numpy as np
from triton.language import core
from triton.language.core import is_builtin
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def hasten() -> None:
    """Find once what a language module has, what a shape's types and names are and which dtype is which; leave out a check that nothing reports.

    The check is for overflow, and its assertions for kernels in debug mode; `test_positions_that_leave_32_bits_are_refused` and its like
    test ours.
    """
    interpreter._patch_builtin = _patch_builtin
    interpreter._get_np_dtype = _np_dtype
    interpreter.interpreter_builder.options.__dict__["sanitize_overflow"] = False
    core.tensor.__init__, core.block_type.__init__, core.tuple.__init__ = _tensor, _block_type, _tuple
    core.tuple.type = property(_type_of_tuple, lambda self, type: setattr(self, "own_type", type))


@cache
def _builtins(package) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


@cache
def _interpreted(member, builder):
    """A function of the language as interpreted kernels call it."""
    semantic = TritonSemantic(builder)

    def call(*args, **kwargs):
        kwargs.pop("_semantic", None)
        return member(*args, **kwargs, _semantic=semantic)

    return call


def _patch_builtin(package, builder, scope) -> None:
    names = _builtins(package)
    if names and is_builtin(getattr(package, names[0])):  # else they are replaced already: a function calls another
        for name in names:
            scope.set_attr(package, name, _interpreted(getattr(package, name), builder))


DTYPES = {"int1": bool, "fp16": np.float16, "bf16": np.uint16, "fp32": np.float32, "fp64": np.float64}
DTYPES |= {name: getattr(np, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
DTYPES = {name: np.dtype(x) for name, x in DTYPES.items()}


def _np_dtype(dtype) -> np.dtype:
    scalar = dtype.element_ty if isinstance(dtype, core.block_type) else dtype
    return np.dtype(np.uint64) if isinstance(scalar, core.pointer_type) else DTYPES[scalar.name]


@cache
def _of_shape(shape: tuple):
    return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(math.prod(shape))


def _tensor(self, handle, type) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _of_shape((*type.shape,) if type.is_block() else ())


_blocks: dict[tuple, tuple] = {}


def _block_type(self, element_ty, shape) -> None:
    shape = shape.value if isinstance(shape, core.constexpr) else shape
    sizes = (*[size.value if isinstance(size, core.constexpr) else size for size in shape],)
    found = _blocks.get((element_ty.name, sizes))
    if found is None:
        assert sizes
        found = _blocks[element_ty.name, sizes] = core.tuple(sizes), core.validate_block_shape(sizes), f"<{list(sizes)}, {element_ty}>"
    self.element_ty, (self.shape, self.numel, self.name) = element_ty, found


def _tuple(self, args, type=None) -> None:
    self.values, self.own_type = [*args], type if type is None or isinstance(type, core.tuple_type) else core.tuple_type(type)


def _type_of_tuple(self):
    if self.own_type is None:
        self.own_type = core._type_for_tuple_values(self.values)
    return self.own_type
