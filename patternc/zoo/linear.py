"""Attentions with a linear term: softmax where the pattern is exact, linear attention over the rest of the domain."""

from __future__ import annotations

from patternc import primitives
from patternc.expr.attention import Attention, linear_tail
from patternc.expr.index import arg
from patternc.zoo.checks import chosen, whole, wrong

DOCUMENTS = ("reset", "released")


def rattention(window: int = 512, initial_state: bool = False, documents: str | None = None) -> Attention:
    """RATTENTION: softmax in a causal window, linear attention over every token before it.

    Source: Wang et al. 2025 (RATTENTION, arXiv 2506.15545); axlearn.

    Args:
        window: keys before the query, 512; with its own that is one more.
        initial_state: a learned state for each query head, which the linear part starts from.
        documents: None for one document a row; "reset" where nothing crosses the borders that the arg `document` sets; "released" as
            the released code does it: the window ends at a border, and the linear part does not.
    Args at call time: `document` with `documents`, an id for each token.
    Raises:
        ParameterError: a window below 0.  UnknownNameError: another way with documents.
    The trap: the window has window + 1 keys. Features are softmax(x) and softmax(-x), without the scale 1/sqrt(d) and before a rotary
    embedding (`tail_q`, `tail_k`); each part has an RMSNorm with scales of its own, and there is no denominator.
    """
    near = primitives.window(left=whole("rattention", "window", window, 0), right=0)
    if not isinstance(initial_state, bool):
        raise wrong("rattention", f"`initial_state` is True or False, got {initial_state!r}", "write `initial_state=True`")
    term = linear_tail(initial_state=initial_state)
    if documents is None:
        return primitives.causal & (near + term)
    own = primitives.documents(arg("document"))
    if chosen("rattention", "documents", documents, DOCUMENTS) == "reset":
        return primitives.causal & own & (near + term)
    return primitives.causal & (own | ~near) & (near + term)


def performer(num_features: int | None = None, causal_only: bool = True, seed: int = 0) -> Attention:
    """Performer: linear attention with positive orthogonal random features, no softmax at all.

    Source: Choromanski et al. 2020 (FAVOR+, arXiv 2009.14794).

    Args:
        num_features: random features, by default head_dim * ln(head_dim).
        causal_only: drop keys after the query.
        seed: of the features; `redraw(seed)` of the module draws others.
    Raises:
        ParameterError: fewer features than one.
    The trap: it approximates softmax attention with the scale 1/sqrt(d), which is part of the features: give no scale of your own.
    """
    if num_features is not None:
        num_features = whole("performer", "num_features", num_features, 1)
    term = linear_tail(feature="favor+", norm="denominator", num_features=num_features, seed=whole("performer", "seed", seed, 0))
    domain = primitives.causal if causal_only else primitives.full
    return domain & (primitives.empty + term)
