"""What names the data of a call, for results that are kept between calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from patternc.args import Bound

MOST_KEPT = 256  # things that are kept with a call's args


def layout_of(x: torch.Tensor) -> tuple:
    """What a launch depends on beside an address."""
    return x.dtype, x.device, x.shape, x.stride(), x.data_ptr() % 16


def layouts(*tensors) -> tuple | None:
    """What names the layouts of torch's own tensors; None where there are others, ones without a layout, or views that negate what they read."""
    for x in tensors:
        if type(x) is not torch.Tensor or x.is_neg():
            return None
    try:
        return tuple([layout_of(x) for x in tensors])
    except RuntimeError:  # nested or sparse
        return None


def named(values: Iterable) -> tuple | None:
    """What names numbers and tensors as long as nothing writes to them; None where that cannot be told.

    Layers of a model are called with the same document ids, and a backward with those of its forward.  Tensors count their
    own writes (`_version`); what writes behind torch's back (raw pointers) is not seen.  Under capture nothing is kept: a
    replay must compute its tables from what the tensors hold then.  Who keeps a name keeps the tensors too, since memory
    that is free is given to others.
    """
    names = []
    for x in values:
        if type(x) in (torch.Tensor, torch.nn.Parameter):
            if x.is_inference() or x.is_cuda and torch.cuda.is_current_stream_capturing() or x.is_nested or x.layout is not torch.strided:
                return None
            x = x.data_ptr(), x._version, x.shape, x.stride(), x.dtype
        elif x is not None and type(x) is not int:
            return None
        names.append(x)
    return tuple(names)


def unchanged(bound: Bound) -> tuple | None:
    """What names the data of a call as long as nothing writes to them; None where that cannot be told."""
    names = named((bound.q_start, *bound.values.values()))
    return None if names is None else (bound.n_q, bound.n_k, bound.heads, bound.batch, *names)


def data_of(bound: Bound) -> tuple | None:
    """What names the tensors of a call's args while nothing writes to them; None where that cannot be told."""
    return () if bound.static else unchanged(bound)


def keep_with(bound: Bound, key: tuple, value: object) -> object:
    """Keep something with a call's args, as long as these are kept."""
    if len(bound.kept) >= MOST_KEPT:
        bound.kept.clear()
    bound.kept[key] = value
    return value


def seen(x) -> bool:
    """Whether whoever writes to a value would be seen: numpy shares the memory of tensors on the CPU."""
    return not isinstance(x, torch.Tensor) or x.is_cuda


def live(bound: Bound, given: Iterable) -> bool:
    """Whether kernels read the tensors of a call's args themselves: then nothing that is kept hides what collectives or other kernels write to
    them, which torch does not count.  Copies in another dtype or layout would."""
    places = {x.data_ptr() for x in given if isinstance(x, torch.Tensor)}
    tensors = [x for x in (bound.q_start, *bound.values.values()) if isinstance(x, torch.Tensor)]
    return all(x.dtype in (torch.int32, torch.bool) and x.is_contiguous() and x.data_ptr() in places for x in tensors)
