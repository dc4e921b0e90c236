"""What a published model attends to, asked of the model: its attention weights, or how its outputs depend on its values.

Models come from Hugging Face transformers with small random configs; nothing is downloaded.  Their mask helpers are not
consulted: a pair is allowed if its weight is positive.
"""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HEADS, VOCABULARY = 4, 64
SMALL = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=HEADS, max_position_embeddings=128,
    pad_token_id=0, bos_token_id=1, eos_token_id=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_cache=False,
)  # fmt: skip
GROUPED = SMALL | dict(num_key_value_heads=2, head_dim=8)


def build(config: str, model: str, **options):
    """A model with random weights; the test is skipped where this version of transformers does not have it."""
    import transformers

    missing = [name for name in (config, model) if not hasattr(transformers, name)]
    if missing:
        pytest.skip(f"transformers {transformers.__version__} has no {missing[0]}")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config, model = getattr(transformers, config), getattr(transformers, model)
    return model(config(**options, attn_implementation="eager")).eval()


def tokens(batch: int, n: int) -> torch.Tensor:
    """Token ids without padding."""
    return torch.randint(2, VOCABULARY - 4, (batch, n), generator=torch.Generator().manual_seed(n))


def weights(model, **inputs) -> tuple[torch.Tensor, ...]:
    """The attention weights that the model reports, [B, H, n_q, n_k] for each layer."""
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


def masks(model, **inputs) -> list[torch.Tensor]:
    return [w > 0 for w in weights(model, **inputs)]


def gradients(model, values, output, heads=HEADS, rows=None, length_first=False, **inputs) -> list[torch.Tensor]:
    """The weights of one attention by derivatives, [B, H, rows, n_k] for each time that a module of `values` is called.

    An attention is linear in its values: the derivative of its output at q by the value at k is the weight of the pair, and
    of a key that occurs twice the sum of both weights.  `values` are the projections that make the values, `output` is the
    projection that takes the attention's output; `length_first` says that values are laid out [n, B, ..].
    """
    made, taken = [], []
    hooks = [v.register_forward_hook(lambda _, __, out: made.append(out)) for v in values]
    hooks.append(output.register_forward_pre_hook(lambda _, args: taken.append(args[0])))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    out = taken[0].unflatten(-1, (heads, -1))[..., 0]
    found = [[] for _ in made]
    for q in range(out.shape[1]) if rows is None else rows:
        for row, by in zip(found, torch.autograd.grad(out[:, q].sum(), made, retain_graph=True)):
            by = by.transpose(0, 1) if length_first else by
            row.append(by.unflatten(-1, (heads, -1))[..., 0].transpose(1, 2))
    return [torch.stack(rows, 2) for rows in found]


def times(weights: torch.Tensor) -> torch.Tensor:
    """How often each key is counted, from the weights of queries that are zero: then every key weighs the same each time."""
    least = torch.where(weights > 0, weights, torch.inf).amin(-1, keepdim=True)
    counts = weights / least
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    return counts.round().int()


def agree(seen: torch.Tensor, pattern, queries=None, **args) -> None:
    """The model's mask [B, H, n_q, n_k] is the pattern's, in the rows of `queries` (bool [B, n_q], all by default)."""
    batch, heads, n_q, n_k = seen.shape
    differ = seen != pattern.dense(n_q, n_k, heads=heads, batch=batch, **args)
    if queries is not None:
        differ &= queries[:, None, :, None]
    if differ.any():
        first = differ.nonzero()[0].tolist()
        raise AssertionError(f"{int(differ.sum())} pairs differ from {pattern}; at (b, h, q, k) = {first} the model says {bool(seen[tuple(first)])}")
