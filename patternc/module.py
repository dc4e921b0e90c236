"""The torch module that `pc.compile` returns."""

from __future__ import annotations

import torch
from torch import nn

from patternc import runtime
from patternc.args import bind, signature
from patternc.cost import Cost, cost
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern
from patternc.layout import Layout, layout


class AttentionModule(nn.Module):
    """Attention over one pattern; call it with query, key and value.

    Attributes:
        spec: the pattern or attention.
        backend: "auto", "triton", "cpu" or "reference".
    """

    def __init__(self, spec: Pattern | Attention, backend: str = "auto", num_heads: int | None = None, head_dim: int | None = None):
        super().__init__()
        self.spec, self.backend, self.num_heads, self.head_dim = spec, backend, num_heads, head_dim
        self._register()

    def _register(self) -> None:
        # What traced calls need is looked up here, so that tracing sees plain constants.
        self._key, self._names = runtime.compiled(self.spec).key, tuple(signature(self.spec))

    def forward(self, q, k, v, scale: float | None = None, return_lse: bool = False, q_start=None, check: bool = False, **args):
        """Attention of `q` to `k` and `v` within the pattern.

        Args:
            q: [B, H, N_q, D].  k: [B, H_kv, N_k, D].  v: [B, H_kv, N_k, D_v].  H is a multiple of H_kv; one dtype and device.
            scale: factor of the scores, 1/sqrt(D) by default.
            return_lse: also return the log-sum-exp of each row.
            q_start: position of the first query, an int or an int tensor of shape [] or [B]; default N_k - N_q.
            check: also check the values of args; this may wait for the device.
            args: the pattern's runtime args by name.
        Returns:
            out [B, H, N_q, D_v] in the dtype of q; with `return_lse` also lse [B, H, N_q], natural log, float32, -inf for rows
            that may attend to nothing (their output and gradients are 0).
        Raises:
            ShapeError, DtypeError, DeviceError, ArgError, OperandError: an input does not fit.
            BackendError: the backend cannot do this.
        """
        if torch.is_autocast_enabled(q.device.type):
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = (x.to(dtype) if x.dtype == torch.float32 else x for x in (q, k, v))
        backend = runtime.choose_backend(self.backend, q.device)
        if torch.compiler.is_compiling():
            out, lse = runtime.attend_traced(self._key, self._names, q, k, v, scale, q_start, check, args, backend)
        else:
            out, lse = runtime.attend(self.spec, q, k, v, scale, q_start, check, args, backend)
        return (out, lse) if return_lse else out

    @property
    def compiled(self) -> runtime.Compiled:
        return runtime.compiled(self.spec)

    def layout(
        self, n_q: int, n_k: int | None = None, heads: int = 1, batch: int = 1, *, q_start=None, tile=(128, 128), transposed: bool = False, **args
    ) -> Layout:
        """The exact tiles of the exact part at one length; sizes and args as in `Pattern.dense`."""
        return layout(self.compiled.exact, bind(self.compiled.exact, args, n_q, n_k, heads, batch, q_start), tile, transposed, count=True)

    def cost(self, n_q: int, n_k: int | None = None, heads: int = 1, head_dim: int = 128, **options) -> Cost:
        """What the forward pass costs at one length, exactly; see `patternc.cost.cost`."""
        return cost(self.compiled.exact, self.compiled.plan, n_q, n_k, heads, head_dim, **options)

    def explain(self, n_q: int, n_k: int | None = None, heads: int = 1, head_dim: int = 128, **options):
        """What the compiler decided and what it costs at one length: prints as a report; see `patternc.explain.explain`."""
        from patternc.explain import explain

        return explain(self.spec, self.backend, n_q, n_k, heads, head_dim, **options)

    def source(self) -> str:
        """The generated Triton kernels, as text."""
        return runtime.backend_module("triton").source(self.compiled)

    def extra_repr(self) -> str:
        return f'"{self.spec}", backend="{self.backend}"'

    def __getstate__(self):
        state = self.__dict__.copy()
        return {name: value for name, value in state.items() if name not in ("_key", "_names")}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._register()
