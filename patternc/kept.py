"""What names the data of a call, for results that are kept between calls."""

from __future__ import annotations

import torch

from patternc.args import Bound


def unchanged(bound: Bound) -> tuple | None:
    """What names the data of a call as long as nothing writes to them; None where that cannot be told.

    Layers of a model are called with the same document ids, and a backward with those of its forward.  Tensors count their
    own writes (`_version`); what writes behind torch's back (raw pointers) is not seen.  Under capture nothing is kept: a
    replay must compute its tables from what the tensors hold then.
    """
    values = [x for x in (bound.q_start, *bound.values.values()) if not isinstance(x, int)]
    if not all(isinstance(x, torch.Tensor) and not x.is_inference() for x in values):
        return None
    if any(x.is_cuda for x in values) and torch.cuda.is_current_stream_capturing():
        return None

    def name(x):
        return (x.data_ptr(), x._version, x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x

    return bound.n_q, bound.n_k, bound.heads, bound.batch, name(bound.q_start), *map(name, bound.values.values())
