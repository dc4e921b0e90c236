"""What Triton compiled serves again: for parameters of the same kinds, and for layouts that differ in numbers alone."""

from types import SimpleNamespace

import torch

from patternc.codegen import launches
from patternc.codegen.configs import Config


def test_what_triton_compiled_serves_parameters_of_the_same_kinds():
    """A start in a tensor is another kernel than one in a number, a number that needs 64 bits another, and so is an address that is not aligned."""
    made, ran = [], []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *values: ran.append((grid, values))

    class Function:
        arg_names = ["q_start_value", "n_q", "BLOCK_M"]

        def __getitem__(self, grid):
            return lambda **values: made.append(values) or Compiled()

    launched = launches.Launch(None, Function(), Config(16, 16, 4, 1), 3, 1, {"n_q": 7, "BLOCK_M": 16}, [], {})
    aligned, shifted = torch.zeros(8, dtype=torch.int32), torch.zeros(9, dtype=torch.int32)[1:]
    for value in (0, 5, aligned, aligned + 1, shifted, aligned.long(), 1 << 31):
        launched.run(3, {"q_start_value": value}, {})
    assert len(made) == 5 and [values[0] if isinstance(values[0], int) else "tensor" for _, values in ran] == [5, "tensor"]
    assert ran[0] == ((3, 1, 1), (5, 7, 16))


def test_what_triton_compiled_serves_other_lengths(monkeypatch):
    """Layouts of the same constants, dtypes and alignments launch one compiled kernel; a stride that needs 64 bits is another one."""
    made, ran = [], []

    class Function:
        arg_names = ["q_ptr", "n_q", "BLOCK_M"]

        def __getitem__(self, grid):
            return lambda **values: made.append(values) or {(1, 1, 1): lambda *given: ran.append(given[1:])}

    monkeypatch.setattr(launches, "_kernels", {})
    monkeypatch.setattr(launches.triton.runtime, "JITFunction", Function)
    monkeypatch.setattr(launches.triton.runtime.driver, "_active", SimpleNamespace(get_current_device=lambda: 0))
    kernel, function, x = SimpleNamespace(constants=("BLOCK_M",)), Function(), torch.zeros(16)
    for n, block, tensor in ((7, 16, x), (9, 16, x), (9, 32, x), (9, 16, x.half()), (9, 16, x[1:]), (1 << 31, 16, x), (1 << 32, 16, x)):
        launches.Launch(kernel, function, Config(16, 16, 4, 1), 1, 1, {"n_q": n, "BLOCK_M": block}, ["q"], {}).run(1, {}, {"q": tensor})
    assert [(v["n_q"], v["BLOCK_M"]) for v in made] == [(7, 16), (9, 32), (9, 16), (9, 16), (1 << 31, 16)]
    assert ran == [(9, 16), (1 << 32, 16)]


def test_a_launch_is_made_again_without_looking_at_its_parameters(monkeypatch):
    """From the second time on, and with the other parameters of that time; those that are always the same are not asked for."""
    ran, looked = [], []

    class Function:
        arg_names = ["x_ptr", "table_ptr", "n", "scale", "BLOCK_M"]

        def __getitem__(self, grid):
            return lambda **values: {(3, 1, 1): lambda *given: ran.append(given)}

    kinds = launches._kinds
    monkeypatch.setattr(launches, "_kinds", lambda values: looked.append(1) or kinds(values))
    table, x, y = (torch.zeros(4, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.float32))
    launch = launches.Launch(None, Function(), Config(16, 16, 4, 1), 3, 1, {"n": 7, "BLOCK_M": 16}, ["x"], {})
    again = launches.Again(launch, 3, {"table_ptr": table})
    for scale, matrix in ((1.0, x), (2.0, y), (3.0, x)):
        before = len(looked)
        again.run({"scale": scale, "of another kernel": 5}, {"x": matrix})
        assert (len(looked) > before) == (scale == 1.0)
    assert ran == [(y, table, 7, 2.0, 16), (x, table, 7, 3.0, 16)] and launch.compiled[next(iter(launch.compiled))].fixed[1] is None
