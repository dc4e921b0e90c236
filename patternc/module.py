"""The torch module that `pc.compile` returns."""

from __future__ import annotations

import torch
from torch import nn

from patternc import functional, runtime
from patternc.args import bind, signature
from patternc.cost import Cost, cost
from patternc.errors import ArgError, BackendError, OperandError, ParameterError, ShapeError
from patternc.expr.attention import Attention, Term
from patternc.expr.calls import fitting
from patternc.expr.pattern import Pattern
from patternc.forms import count
from patternc.layout import Layout, layout
from patternc.subscripts import heads_of
from patternc.tail import favor_projection, feature_map

META_TOKENS = 16  # random tokens whose state an initial state starts from


class AttentionModule(nn.Module):
    """Attention over one pattern; call it with query, key and value.

    Attributes:
        spec: the pattern or attention.
        backend: "auto", "triton", "cpu" or "reference".
    """

    def __init__(self, spec: Pattern | Attention, backend: str = "auto", num_heads: int | None = None, head_dim: int | None = None):
        super().__init__()
        self.spec, self.backend, self.num_heads, self.head_dim = spec, backend, num_heads, head_dim
        functional.prepare(spec)
        if isinstance(spec, Attention):
            self._learn(spec.term)

    def __setstate__(self, state):
        super().__setstate__(state)
        functional.prepare(self.spec)

    def _learn(self, term: Term) -> None:
        """Make what the term owns: RMSNorm scales of both branches, an initial state, random features."""
        owns = term.norm == "rms" or term.initial_state or term.feature == "favor+"
        if not owns:
            return
        if self.num_heads is None or self.head_dim is None:
            raise ParameterError(f"`{term}` owns parameters for each head", fix="give compile `num_heads=` and `head_dim=`")
        h, d = self.num_heads, self.head_dim
        projection = None
        if term.feature == "favor+":
            projection = favor_projection(d, term.num_features, term.seed)
            self.register_buffer("projection", projection)
        if term.norm == "rms":
            self.exact_scale, self.tail_scale = (nn.Parameter(torch.ones(h, d)) for _ in range(2))
        if term.initial_state:
            # States of a few random tokens: a zero state would have a gradient as large as RMSNorm's epsilon is small.
            generator = torch.Generator().manual_seed(term.seed)
            phi = feature_map(term.feature, projection)(torch.randn(h, META_TOKENS, d, generator=generator))
            values = torch.randn(h, META_TOKENS, d, generator=generator)
            if term.norm == "denominator":
                values = torch.cat([values, torch.ones(h, META_TOKENS, 1)], -1)
            self.initial_state = nn.Parameter(phi.mT @ values)

    def redraw(self, seed: int) -> None:
        """New random features for `favor+`, in place.  Raises BackendError for other features."""
        if "projection" not in self._buffers:
            raise BackendError("this attention has no random features to redraw", fix='they come with `linear_tail(feature="favor+")`')
        count("seed", seed)
        self.projection.copy_(favor_projection(self.head_dim, self.projection.shape[0], seed))

    def forward(
        self, q, k, v, scale: float | None = None, return_lse: bool = False, q_start=None, check: bool = False, tail_q=None, tail_k=None, **args
    ):
        """Attention of `q` to `k` and `v` within the pattern.

        Args:
            q: [B, H, N_q, D].  k: [B, H_kv, N_k, D].  v: [B, H_kv, N_k, D_v].  H is a multiple of H_kv; one dtype and device.
            scale: factor of the scores, 1/sqrt(D) by default.
            return_lse: also return the log-sum-exp of each row of the exact part.
            q_start: position of the first query, an int or an int tensor of shape [] or [B]; default N_k - N_q.
            check: also check the values of args; this may wait for the device.
            tail_q, tail_k: what a term uses instead of q and k (before rotary embedding, say), of any head_dim.
            args: the pattern's runtime args by name.
        Returns:
            out [B, H, N_q, D_v] in the dtype of q; with `return_lse` also lse [B, H, N_q], natural log, float32, -inf for rows
            that may attend to nothing (their output and gradients are 0).
        Raises:
            ShapeError, DtypeError, DeviceError, ArgError, OperandError: an input does not fit.
            BackendError: the backend cannot do this.
        """
        if _in_autocast(q):
            q, k, v, tail_q, tail_k = _as_autocast(q, k, v, tail_q, tail_k)
            with torch.autocast(q.device.type, enabled=False):  # what is computed in float32 from here on, has to stay so
                return self.forward(q, k, v, scale, return_lse, q_start, check, tail_q, tail_k, **args)
        own = {}
        if isinstance(self.spec, Attention):
            own = self._owned()
            if own:
                self._check_own(own, q, v, q if tail_q is None else tail_q)
            own.update(tail_q=tail_q, tail_k=tail_k)
        elif tail_q is not None or tail_k is not None:
            raise ArgError("`tail_q` and `tail_k` belong to a term, and this pattern has none", fix="add one: `pattern + linear_tail`")
        out, lse = functional.attention(self.spec, q, k, v, args, backend=self.backend, scale=scale, q_start=q_start, check=check, **own)
        return (out, lse) if return_lse else out

    @fitting("init_state")
    def init_state(self, batch: int, length: int, **args):
        """The state before the first token, for `step`.

        Args:
            batch: sequences that go on together.
            length: the most tokens that each will have. The state's size does not depend on it where it is constant; what says which keys
                are forgotten takes a few bytes a token.
            args: the pattern's runtime args by name, for the whole length (a document's id for each token that may come).
        Raises:
            BackendError: there is no state of constant size, and why.
            ParameterError: a number is not a positive integer.
            ArgError, ShapeError, DtypeError: args do not fit.
        """
        from patternc.decode import init_state

        return init_state(self.spec, batch, length, args)

    @torch.no_grad()
    def step(self, q, k, v, state, scale: float | None = None, tail_q=None, tail_k=None):
        """The outputs of the next tokens, without gradients: what `forward` gives them after those that `state` has seen.

        Args:
            q: [B, H, t, D].  k: [B, H_kv, t, D].  v: [B, H_kv, t, D_v], of the next t tokens: a prompt, then one or several at a time.
            state: of `init_state`; it is updated in place (`state.clone()` keeps it).
            scale, tail_q, tail_k: as in `forward`.
        Returns:
            out [B, H, t, D_v] in the dtype of q, and the state.
        Raises:
            ShapeError, DtypeError, DeviceError, OperandError: an input does not fit.
        """
        from patternc.decode import check_step, step

        if _in_autocast(q):
            q, k, v, tail_q, tail_k = _as_autocast(q, k, v, tail_q, tail_k)
            with torch.autocast(q.device.type, enabled=False):
                return self.step(q, k, v, state, scale, tail_q, tail_k)
        runtime.check_tensors(q, k, v)
        own = [k, v] if tail_k is None or tail_k is k else [k, v, tail_k]
        functional.check_tail(q, k, q if tail_q is None else tail_q, k if tail_k is None else tail_k)
        check_step(self.spec, state, q, own)
        learned = self._owned()
        if learned:
            self._check_own(learned, q, v, q if tail_q is None else tail_q)

        def parallel(**args):
            return self.forward(q, k, v, scale, tail_q=tail_q, tail_k=tail_k, **args)

        return step(state, q, own, q if tail_q is None else tail_q, runtime.scale_of(scale, q.shape[-1]), learned, parallel), state

    def _owned(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers of the term by name."""
        return {name: x for name, x in (*self._parameters.items(), *self._buffers.items()) if x is not None}

    def _check_own(self, own: dict, q, v, tail_q) -> None:
        """Whether the term's parameters fit the call.  Raises ShapeError."""
        needs = [("{} query heads", "num_heads", q, 1, True)]
        needs.append(("the value's head_dim {}", "head_dim", v, 3, "tail_scale" in own or "initial_state" in own))
        needs.append(("head_dim {} in the term", "head_dim", tail_q, 3, "projection" in own or "initial_state" in own))
        for what, name, x, axis, matters in needs:
            if matters and isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[axis] != getattr(self, name):
                message = f"the term's parameters are for {what.format(getattr(self, name))}, got {x.shape[axis]}"
                raise ShapeError(message, fix=f"compile it with {name}={x.shape[axis]}")

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

    def source(self, n_q: int | None = None, n_k: int | None = None, q_start: int | None = None, heads: int | None = None) -> str:
        """The generated Triton kernels, as text: in the natural order of positions, or in the orders that these sizes ask for.

        `heads` defaults to what `per_head` lists, else 1.
        """
        bound = None
        if n_q is None and (n_k, q_start, heads) != (None, None, None):
            raise OperandError("sizes without `n_q` say nothing about the source", fix="give `n_q` too, or leave them all out")
        if n_q is not None:
            if signature(self.compiled.exact):
                raise OperandError("a pattern with runtime args has one source for all lengths", fix="leave the lengths out")
            exact = self.compiled.exact
            bound = bind(exact, {}, n_q, n_k, heads_of(exact, heads), q_start=q_start)
        return runtime.backend_module("triton").source(self.compiled, bound)

    def extra_repr(self) -> str:
        return f'"{self.spec}", backend="{self.backend}"'


def _in_autocast(q) -> bool:
    return isinstance(q, torch.Tensor) and (kind := q.device.type) != "meta" and torch.is_autocast_enabled(kind)


def _as_autocast(q, *others):
    """Tensors in float32 as autocast wants them."""
    dtype = torch.get_autocast_dtype(q.device.type)
    return [x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x for x in (q, *others)]
