"""Layers: attention over a pattern with its projections."""

from __future__ import annotations

import torch
from torch import nn

from patternc.compile import compile
from patternc.errors import ArgError, OperandError, ParameterError, ShapeError
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern


class PatternAttention(nn.Module):
    """Multi-head attention over a pattern: projections of the input, attention, projection of the output.

    Args:
        embed_dim: width of the input and the output.
        num_heads: query heads; they divide `embed_dim` unless `head_dim` is given.
        pattern: a pattern, an attention, or the text of one.
        num_kv_heads: key and value heads (GQA); default `num_heads`.
        head_dim: default `embed_dim // num_heads`.
        bias: whether the projections have one.
        backend: see `patternc.compile`.
        device, dtype: of the parameters.
    Raises:
        ParameterError: sizes do not divide.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, pattern: Pattern | Attention | str, num_kv_heads: int | None = None, head_dim: int | None = None,
        bias: bool = True, backend: str = "auto", device=None, dtype=None,
    ):  # fmt: skip
        super().__init__()
        for name, value in (("embed_dim", embed_dim), ("num_heads", num_heads), ("num_kv_heads", num_kv_heads), ("head_dim", head_dim)):
            missing = value is None and name in ("embed_dim", "num_heads")
            if missing or value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ParameterError(f"`{name}` is a positive integer, got {value!r}", fix=f"write `{name}=8`")
        if head_dim is None and embed_dim % num_heads:
            raise ParameterError(f"{num_heads} heads do not divide embed_dim {embed_dim}", fix="change one of them, or give head_dim")
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise ParameterError(f"{num_heads} query heads are no multiple of {num_kv_heads} kv heads", fix="num_kv_heads divides num_heads")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim = head_dim or embed_dim // num_heads
        options = dict(bias=bias, device=device, dtype=dtype)
        self.q_proj = nn.Linear(embed_dim, num_heads * self.head_dim, **options)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, **options)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, **options)
        self.out_proj = nn.Linear(num_heads * self.head_dim, embed_dim, **options)
        self.attention = compile(pattern, backend, num_heads=num_heads, head_dim=self.head_dim).to(device)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None, **call) -> torch.Tensor:
        """Attend from `x` [B, N_q, embed_dim] to `context` [B, N_k, embed_dim] (`x` itself by default).

        Args:
            call: runtime args of the pattern by name, and `scale`, `q_start`, `check`.
        Returns:
            [B, N_q, embed_dim].
        """
        if "return_lse" in call:
            raise ArgError("a layer returns its output alone", fix="project yourself, and call its `.attention` with `return_lse=True`")
        q, k, v = self._projected(x, x if context is None else context)
        return self.out_proj(self.attention(q, k, v, **call).transpose(1, 2).flatten(2))

    def init_state(self, batch: int, length: int, **args):
        """The state of `step` before the first token, for sequences of at most `length`; see `AttentionModule.init_state`."""
        return self.attention.init_state(batch, length, **args)

    @torch.no_grad()
    def step(self, x: torch.Tensor, state, scale: float | None = None):
        """The outputs of the next tokens `x` [B, t, embed_dim], and the state: see `AttentionModule.step`."""
        out, state = self.attention.step(*self._projected(x, x), state, scale)
        return self.out_proj(out.transpose(1, 2).flatten(2)), state

    def _projected(self, x: torch.Tensor, context: torch.Tensor):
        """Query, key and value."""
        for name, tensor in (("x", x), ("context", context)):
            if not isinstance(tensor, torch.Tensor):
                raise OperandError(f"`{name}` must be a torch tensor, got {type(tensor).__name__}", fix="pass [batch, length, embed_dim]")
            if tensor.dim() != 3 or tensor.shape[2] != self.embed_dim:
                raise ShapeError(
                    f"`{name}` must have shape [batch, length, {self.embed_dim}], got {tuple(tensor.shape)}", fix="project it to embed_dim"
                )
        q = self.q_proj(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        return q, *(p(context).unflatten(2, (self.num_kv_heads, self.head_dim)).transpose(1, 2) for p in (self.k_proj, self.v_proj))

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"
