"""Host side of the one-pass kernels of a linear tail: when they are taken, how slots are dealt, and their launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from patternc.codegen import cache, hopper_launch, tail_pass, tail_pass_sums
from patternc.codegen.descriptors import reachable
from patternc.codegen.device import is_hopper, processors
from patternc.codegen.launches import Launch
from patternc.codegen.tail_pass import CHUNK, SLOT, parts
from patternc.codegen.tail_pass_form import PassForm, SumsForm
from patternc.codegen.tail_text import Form

WIDTHS = (64, 128)  # of heads
LEAST = 1024  # rows from which on this pays, measured on an H100


def slots_of_program(form: Form, offset: int | None, q, k, v) -> int:
    """How many slots a program goes through; 0 where these kernels do not take the term.

    They take scans of which no table says more than which keys are dead, of heads that fit, on a Hopper card, and where there is
    something to do for half of its processors.
    """
    if form.sums or form.steps or form.gated or q.dtype != torch.bfloat16 or q.shape[3] not in WIDTHS or v.shape[3] != q.shape[3]:
        return 0
    if hopper_launch.language is None or not is_hopper(q.device):
        return 0
    rows = q.shape[2] - offset
    if min(q.shape[2], rows) < LEAST or not all(map(reachable, (q, k, v))):
        return 0
    heads = k.shape[0] * k.shape[1] * parts(PassForm("forward", form.feature), k.shape[3])
    slots = -(-max(k.shape[2], rows) // SLOT)
    each = deal(slots, heads, processors(q.device))
    return each if 2 * heads * -(-slots // each) >= processors(q.device) else 0


@lru_cache(maxsize=1024)
def deal(slots: int, heads: int, processors: int) -> int:
    """How many slots of each of `heads` to give to a program, so that processors have equally much to do.

    Where a head has several programs, other kernels sum what slots add before, which takes about a third of the time.
    """

    def cost(programs: int) -> float:
        return -(-heads * programs // processors) * -(-slots // programs) * (1.0 if programs == 1 else 1.3 + 0.01 * programs)

    return -(-slots // min(range(1, min(slots, 2 * processors) + 1), key=cost))


@dataclass(frozen=True)
class Pieces:
    """What enters the programs of a pass is summed of these, in chunks.

    Attributes:
        first, total: the chunks there are: nothing is needed of the last program's keys, or of the first one's rows.
        each: what a program of the pass goes through; a piece ends at each multiple, counted from `first` on.
        unit: what a program of the sums goes through; a piece ends there, too.
    """

    first: int
    total: int
    each: int
    unit: int

    @property
    def programs(self) -> int:
        return -(-self.total // self.unit)

    @cached_property
    def cuts(self) -> dict[str, int]:
        """As kernels are told of them.

        There are more `cells` than pieces by one: of keys a last one, which comes to hold what enters the last program, of rows a first one.
        """
        last, both = self.total - 1, math.lcm(self.each, self.unit)
        return {"unit": self.unit, "both": both, "cells": last // self.unit + last // self.each - last // both + 2}


@lru_cache(maxsize=1024)
def pieces(name: str, slots: int, each: int, heads: int, processors: int) -> Pieces:
    """Those of a term whose programs go through `each` slots, with as many programs a head as let processors end together, for a slot at least."""
    of_slot = SLOT // CHUNK
    first, total = (0, max(slots - 1, 0) // each * each) if name == "key_states" else (each, max(slots - each, 0))

    def cost(programs: int) -> int:
        return -(-heads * programs // processors) * (-(-total * of_slot // programs) + 1)

    programs = min(range(1, max(total, 1) + 1), key=cost)
    return Pieces(first * of_slot, total * of_slot, each * of_slot, max(-(-total * of_slot // programs), 1))


def reached(matrices: dict[str, torch.Tensor], results: list[str]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Matrices of the layouts that descriptors take, and the names of those that `Step.run` copies: a gradient may be one row for all heads."""
    copied = tuple(m for m, x in matrices.items() if m not in results and not reachable(x))
    return {**matrices, **{m: torch.empty_like(matrices[m], memory_format=torch.contiguous_format) for m in copied}}, copied


_launches: dict[tuple, Launch] = {}
MOST_LAUNCHES = 1024


def launch_of(form: PassForm | SumsForm, matrices: dict[str, torch.Tensor], heads: int, kv_heads: int) -> Launch:
    """The launch on matrices of one layout."""
    layout = tuple((m, x.device, x.shape, x.stride(), x.data_ptr() % 16) for m, x in matrices.items())
    key = form, heads, kv_heads, layout
    launch = _launches.get(key)
    if launch is None:
        if len(_launches) >= MOST_LAUNCHES:
            _launches.clear()
        launch = _launches[key] = _prepare(form, matrices, heads, kv_heads)
    return launch


def _prepare(form: PassForm | SumsForm, matrices: dict[str, torch.Tensor], heads: int, kv_heads: int) -> Launch:
    source, d = module(form).generate(form), matrices[form.y].shape[3]
    fixed = constants(form, d, heads, heads // kv_heads)
    described = {}
    for matrix, columns in form.described.items():
        pattern = hopper_launch.describe_tiles(matrices[matrix], CHUNK, fixed[columns])
        pattern.base = None
        described[f"{matrix}_desc"] = matrix, pattern
    kernel = source.kernels[form.kernel]
    pointers = [m for m in matrices if f"{m}_ptr" in kernel.parameters]
    fixed |= {f"{m}_stride_{axis}": matrices[m].stride(i) for m in pointers for i, axis in enumerate("bhn")}
    return Launch(kernel, getattr(cache.load(source.text), form.kernel), module(form).config_of(form, d), 0, 0, fixed, pointers, described)


def constants(form: PassForm | SumsForm, d: int, heads: int, group: int) -> dict[str, int]:
    """Constexprs by name."""
    return {"HEADS": heads, "GROUP": group, "D": d, **module(form).constants(form, d)}


def module(form: PassForm | SumsForm):
    """What generates a form's kernel."""
    return tail_pass_sums if isinstance(form, SumsForm) else tail_pass
