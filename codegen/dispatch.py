"""Kernels for heads that see different patterns: programs are dealt to one function for each group of heads, by ranges."""

from __future__ import annotations

import itertools

from patternc.codegen.frame import header, indent, wrap
from patternc.codegen.generated import Kernel
from patternc.orders.heads import HeadGroup, HeadsAxis


def named(number: int, function: Kernel, name: str) -> str:
    """The kernel's name of a parameter or constant of a group's function."""
    return f"g{number}_{name}" if name in function.own else name


def renamed(number: int, function: Kernel, values: dict) -> dict:
    """Values by the names of a group's function to those by the kernel's names."""
    return {named(number, function, name): value for name, value in values.items()}


def ranges(counts: list[int], order: tuple[int, ...]) -> dict[str, int]:
    """The parameters that deal programs: group i has `counts[i]` of them, from `first_i` on, and groups come in `order`."""
    first = dict(zip(order, itertools.accumulate((counts[i] for i in order), initial=0)))
    return {name: value for i, count in enumerate(counts) for name, value in ((f"first_{i}", first[i]), (f"stop_{i}", first[i] + count))}


def dispatch(name: str, doc: str, axis: HeadsAxis, functions: list[Kernel]) -> Kernel:
    """The kernel that deals its programs to the functions of the axis' groups."""
    parameters, constants = (
        [*dict.fromkeys(named(i, f, x) for i, f in enumerate(functions) for x in getattr(f, part))] for part in ("parameters", "constants")
    )
    parameters += ranges([0] * len(functions), axis.longest)
    body = ["program = tl.program_id(0)"]
    for i, function in enumerate(functions):
        # Tests one after the other: in branches of a branch the compiler does not let tiles share their memory.
        body.append(f"if (program >= first_{i}) & (program < stop_{i}):")
        names = [f"program - first_{i}", *(named(i, function, x) for x in (*function.parameters, *function.constants))]
        body += ["    " + line for line in (f"_{name}_{i}(", *wrap(names).splitlines(), ")")]
    text = "\n\n\n".join([*(f.text for f in functions), header(name, parameters, constants, doc) + indent(body)])
    variant = f"groups of {'boxes' if any(f.variant in ('pointers', 'boxes') for f in functions) else 'box descriptors'}"
    arrays = tuple(dict.fromkeys(array for f in functions for array in f.arrays))
    return Kernel(name, text, tuple(parameters), tuple(constants), axis, (), arrays, variant, groups=tuple(functions))


def function_header(name: str, number: int, parameters: list[str], constants: list[str], group: HeadGroup) -> str:
    """The signature of a group's function."""
    typed = wrap(["program", *parameters, *(f"{c}: tl.constexpr" for c in constants)])
    return f'@triton.jit\ndef _{name}_{number}(\n{typed}\n):\n    """{str(group).capitalize()}."""\n'
