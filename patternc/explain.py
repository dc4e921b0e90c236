"""What the compiler decided for one attention at one length, and what that costs: values, and a readable report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from patternc.advice import Advice, advice
from patternc.args import Bound, bind, signature
from patternc.cards import in_use
from patternc.compile import provably_causal
from patternc.cost import Cost, cost, first_row
from patternc.directions import KERNEL_TILE, Direction, directions
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.forms import widths
from patternc.layout import Layout, layout
from patternc.plan import make_plan
from patternc.prediction import Prediction, predict
from patternc.rates import Shape
from patternc.tail_plan import TailPlan, tail_plan


@dataclass(frozen=True)
class Part:
    """One set of pairs of an attention with a term: E (exact), D (domain) or R = D - E.

    Attributes:
        name: "E", "D" or "R".
        causal: provably no key after the query.
        layout: its tiles.
    """

    name: str
    pattern: Pattern
    causal: bool
    layout: Layout


@dataclass(frozen=True)
class Explanation:
    """The report of `AttentionModule.explain`; `str` of it is meant to be read.

    Attributes:
        spec: the pattern or attention.
        bound, shape: the call that is explained, one batch row of it, and the width of its heads.
        directions: what the kernels "forward" and dq do at this length, and dk and dv.
        layout: the exact tiles of the exact part at this length.
        cost: of the forward pass of one batch row, in the kernels' own tiles.
        prediction: microseconds of that batch row's kernels on the measured card; None where only tensors say where queries start.
        parts: E, D and R of an attention with a term, else empty.
        tail: the class of R, which says how the term is summed; None without a term.
        kernels: kernel family by device.
    """

    spec: Pattern | Attention
    bound: Bound
    shape: Shape
    directions: tuple[Direction, Direction]
    layout: Layout
    cost: Cost
    prediction: Prediction | None
    parts: tuple[Part, ...]
    tail: TailPlan | None
    kernels: dict[str, str]
    head_dim: int

    @cached_property
    def advice(self) -> list[Advice]:
        """Small changes of the pattern's numbers that save much, or give more for about the same."""
        return [] if self.prediction is None else advice(self._exact, self.bound, self.shape)

    @property
    def _exact(self) -> Pattern:
        return self.spec.exact if isinstance(self.spec, Attention) else self.spec

    def __str__(self):
        found, price = self.layout, self.cost
        lines = [f"pattern   {self.spec}"]
        if self.parts:
            lines.append(f"exact     {self._exact}")
        lines += [
            f"mask      {make_plan(self._exact).mask}",
            f"length    {found.n_q} queries, {found.n_k} keys; heads {found.heads}, head_dim {self.head_dim}",
        ]
        for direction in self.directions:
            lines += ["", *direction.lines()]
        lines += [
            "",
            f"tiles     {tiles_line(found)}",
            f"cost      {price.allowed_pairs:,} allowed pairs of {price.visited_pairs:,} visited ({price.waste:.1%} masked away)",
            f"          {price.full_tiles:,} full and {price.partial_tiles:,} partial tiles of {KERNEL_TILE[0]} x {KERNEL_TILE[1]} visited",
            f"          {_human(price.flops, 1000)}FLOP, {_human(price.bytes, 1024)}B of memory traffic at least (two-byte elements)",
        ]
        if self.prediction is not None:
            times = f"forward {self.prediction.forward:,.0f} us, backward {self.prediction.backward:,.0f} us"
            lines.append(f"time      predicted for the exact part of a batch row in 16 bits: {times} ({in_use().card.name})")
            if in_use().path is not None:
                lines.append(f"          by rates of this card's own. {in_use().outdated}".rstrip())
        lines += [f"advice    {line}" for line in self.advice]
        if self.parts:
            lines += ["", f"term      {self.spec.term}, on the pairs of R = D - E"]
            for part in self.parts:
                lines.append(f"  {part.name}  {part.pattern}")
                lines.append(f"     {'provably causal' if part.causal else 'not provably causal'}; {tiles_line(part.layout)}")
            lines.append(f"     {self.tail}")
        lines += ["", *(f"kernels   on {device}: {text}" for device, text in self.kernels.items())]
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    spec,
    backend: str,
    n_q: int,
    /,
    n_k: int | None = None,
    heads: int = 1,
    head_dim: int = 128,
    *,
    batch: int = 1,
    kv_heads=None,
    value_dim=None,
    q_start=None,
    tile=(128, 128),
    **args,
) -> Explanation:
    """Collect the report.

    Args:
        spec: the pattern or attention.
        backend: the module's, "auto" included.
        n_q, n_k, heads, batch, q_start, args: as in `Pattern.dense`.
        head_dim, value_dim, kv_heads: for the cost.
        tile: rows and columns of the tiles that are reported.
    """
    exact = spec.exact if isinstance(spec, Attention) else spec
    whole = bind(spec, args, n_q, n_k, heads, batch, q_start)  # names the args of the term too
    own = {name: args[name] for name in signature(exact)}

    def tiles(p: Pattern, count: bool = False) -> Layout:
        given = {name: args[name] for name in signature(p)}
        return layout(p, first_row(bind(p, given, n_q, n_k, heads, batch, q_start)), tile, count=count)

    natural = make_plan(exact)
    bound = first_row(bind(exact, own, n_q, n_k, heads, batch, q_start))
    head_dim, value_dim, kv_heads = widths(bound.heads, head_dim, value_dim, kv_heads)
    shape = Shape.of(head_dim, value_dim)
    price = cost(
        exact,
        natural,
        whole.n_q,
        whole.n_k,
        heads,
        head_dim,
        batch=batch,
        value_dim=value_dim,
        kv_heads=kv_heads,
        q_start=q_start,
        tile=KERNEL_TILE,
        **own,
    )
    found = directions(exact, bound, batch, kv_heads, shape)
    expected = predict(exact, bound, shape, dealt=True) if isinstance(bound.q_start, int) else None
    parts, tail = (), None
    if isinstance(spec, Attention):
        rest = all_of(spec.domain, negate(exact))
        named = (("E", exact), ("D", spec.domain), ("R", rest))
        parts = tuple(Part(name, p, provably_causal(p), tiles(p)) for name, p in named)
        tail = tail_plan(rest, first_row(whole))
    return Explanation(spec, bound, shape, found, tiles(exact), price, expected, parts, tail, kernels_of(backend, tail), head_dim)


def kernels_of(backend: str, tail: TailPlan | None) -> dict[str, str]:
    """The kernel family in use, by device, in words."""
    cpu = "torch operations over the tiles of the layout (backend cpu)"
    triton = "Triton kernels generated from the plan (backend triton): forward, dq, dk/dv"
    dense = "the dense reference (backend reference), n x n memory"
    if tail is not None and tail.kind != "0":
        triton += f"; the term by kernels that {_how(tail)}"
    if backend == "reference":
        return {"any device": dense}
    if backend == "cpu":
        return {"any device": cpu}
    return {"cuda": triton} if backend == "triton" else {"cuda": triton, "cpu": cpu}


def _how(tail: TailPlan) -> str:
    """What a term's kernels do, by the class of its pairs."""
    if tail.scans:
        return f"carry states in {len(tail.scans)} scan{'s' * (len(tail.scans) > 1)}"
    sums = "sum states of tiles and mask the partial ones"
    scans = sum(len(level.scans) for level in tail.levels)
    return f"carry states in {scans} scans in orders of their own, or {sums}, whichever is less work" if tail.kind == "N" else sums


def tiles_line(found: Layout) -> str:
    """Counts of empty, partial and full tiles, summed over heads and batch rows."""
    grids = [(g.tiles.grid, len(g.heads) * len(g.batch)) for g in found.groups]
    total = sum(grid.row.tiles * grid.column.tiles * times for grid, times in grids)
    empty = total - found.full_tiles - found.partial_tiles
    exact = "exact" if found.exact else "not exact: some partial tiles may be empty or full"
    return f"{empty:,} empty, {found.partial_tiles:,} partial, {found.full_tiles:,} full of {found.tile[0]} x {found.tile[1]} ({exact})"


def _human(value: int, base: int) -> str:
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < base or prefix == "P":
            unit = prefix if base == 1000 or not prefix else prefix + "i"
            return f"{value:.4g} {unit}"
        value /= base
    return str(value)
