"""What the compiler decided for one attention at one length, and what that costs: values, and a readable report."""

from __future__ import annotations

from dataclasses import dataclass

from patternc.args import Bound, bind, signature
from patternc.balance import Balance, Costs, balance, of_groups, row_tiles
from patternc.choices import Listed, Stepped
from patternc.compile import provably_causal
from patternc.cost import Cost, cost, first_row
from patternc.errors import ParameterError
from patternc.expr.attention import Attention
from patternc.expr.pattern import Pattern, all_of, negate
from patternc.layout import Layout, layout
from patternc.orders.boxes import BoxAxis
from patternc.orders.choose import Option
from patternc.orders.heads import HeadsAxis, access_of, compared, plan_at
from patternc.orders.parts import parts_at
from patternc.plan import AxisPlan, Plan, Run, make_plan
from patternc.rates import Shape, mask_weight

DIRECTIONS = {"forward": ("q tiles over keys", "forward, dq"), "transposed": ("k tiles over queries", "dk, dv")}


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
        plan: how kernels find their tiles at this length, where they treat the pattern as one.
        pieces: disjoint parts that kernels run one after the other at this length, each with its plan; empty where there is one.
        balances: for each of these plans, how programs get the row tiles of "forward" and "transposed"; None where only tensors say it.
            Directions by groups of heads are left out: their programs start group by group, each in the usual order.
        orders: for "forward" and "transposed", by groups of heads for "forward, heads 0, 1" and so on, the orders there are, best first;
            empty where there is only the natural one.
        layout: the exact tiles of the exact part at this length.
        cost: of the forward pass of one batch row, in the kernels' own tiles.
        parts: E, D and R of an attention with a term, else empty.
        kernels: kernel family by device.
    """

    spec: Pattern | Attention
    plan: Plan
    pieces: tuple[tuple[Pattern, Plan], ...]
    balances: tuple[dict[str, Balance | None], ...]
    orders: dict[str, list[Option]]
    layout: Layout
    cost: Cost
    parts: tuple[Part, ...]
    kernels: dict[str, str]
    head_dim: int

    def __str__(self):
        found, price = self.layout, self.cost
        lines = [f"pattern   {self.spec}"]
        if self.parts:
            lines.append(f"exact     {self.parts[0].pattern}")
        lines += [
            f"mask      {self.plan.mask}",
            f"length    {found.n_q} queries, {found.n_k} keys; heads {found.heads}, head_dim {self.head_dim}",
            "",
        ]
        for number, (p, plan) in enumerate(self.pieces, 1):
            lines += [f"part {number}    {p}", *describe_plan(plan), *describe_balances(self.balances[number - 1]), ""]
        if not self.pieces:
            lines += describe_plan(self.plan) + describe_orders(self.orders)
            lines += ["", *(describe_balances(self.balances[0]) + [""] if self.balances[0] else [])]
        lines += [f"tiles     {tiles_line(found)}"]
        lines += [
            f"cost      {price.allowed_pairs:,} allowed pairs of {price.visited_pairs:,} visited ({price.waste:.1%} masked away)",
            f"          {price.full_tiles:,} full and {price.partial_tiles:,} partial tiles of {KERNEL_TILE[0]} x {KERNEL_TILE[1]} visited",
            f"          {_human(price.flops, 1000)}FLOP, {_human(price.bytes, 1024)}B of memory traffic at least (two-byte elements)",
        ]
        if self.parts:
            lines += ["", f"term      {self.spec.term}, on the pairs of R = D - E"]
            for part in self.parts:
                lines.append(f"  {part.name}  {part.pattern}")
                lines.append(f"     {'provably causal' if part.causal else 'not provably causal'}; {tiles_line(part.layout)}")
        lines += ["", *(f"kernels   on {device}: {text}" for device, text in self.kernels.items())]
        return "\n".join(lines)

    __repr__ = __str__


KERNEL_TILE = (64, 64)  # what `cost` counts in


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
    shape = Shape.of(head_dim, value_dim)
    plan = plan_at(exact, natural, bound, shape)
    pieces = parts_at(exact, bound, shape)
    pieces = tuple((p, plan_at(p, make_plan(p), bound, shape)) for p in pieces) if len(pieces) > 1 else ()
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
    balances = tuple(balances_of(p, own_plan, bound, batch, kv_heads or heads, shape) for p, own_plan in pieces or ((exact, plan),))
    parts = ()
    if isinstance(spec, Attention):
        rest = all_of(spec.domain, negate(exact))
        named = (("E", exact), ("D", spec.domain), ("R", rest))
        parts = tuple(Part(name, p, provably_causal(p), tiles(p)) for name, p in named)
    orders = compared(exact, natural, bound, shape)
    return Explanation(spec, plan, pieces, balances, orders, tiles(exact), price, parts, kernels_of(spec, backend), head_dim)


def balances_of(p: Pattern, plan: Plan, bound: Bound, batch: int, kv_heads: int, shape: Shape) -> dict[str, Balance | None]:
    """How row tiles of `KERNEL_TILE` are dealt in both directions; `bound` is that of one batch row."""
    if bound.heads % kv_heads:
        raise ParameterError(f"{bound.heads} heads are no multiple of {kv_heads} kv_heads", fix="give `kv_heads=` a divisor of `heads=`")
    found = {}
    for name, kernel, copies in (("forward", "forward", bound.heads), ("transposed", "backward_dkdv", kv_heads)):
        axis = getattr(plan, name)
        if axis.kind == "heads":
            continue
        tiles = row_tiles(p, axis, bound, KERNEL_TILE, name == "transposed")
        if tiles is None:
            found[name] = None
            continue
        costs = Costs.of(kernel, access_of(axis, bound), shape, KERNEL_TILE, mask_weight(axis.mask if axis.kind == "boxes" else plan.mask))
        found[name] = balance(of_groups(costs.work(tiles), bound.heads // copies), copies * batch, costs, name == "forward")
    return found


def describe_balances(found: dict[str, Balance | None]) -> list[str]:
    """The order of programs, as simulated for processors of a Hopper card."""
    told = {name: "usual order, since only data on the device say how long rows are" if one is None else str(one) for name, one in found.items()}
    return [f"balance   {name}: {text}" for name, text in told.items()]


def kernels_of(spec, backend: str) -> dict[str, str]:
    """The kernel family in use, by device, in words."""
    cpu = "torch operations over the tiles of the layout (backend cpu)"
    triton = "Triton kernels generated from the plan (backend triton): forward, dq, dk/dv"
    dense = "the dense reference (backend reference), n x n memory"
    if isinstance(spec, Attention):
        triton = "the term has no Triton kernel yet; auto runs the cpu backend's torch operations on the tensors' device"
    if backend == "reference":
        return {"any device": dense}
    if backend == "cpu":
        return {"any device": cpu}
    return {"cuda": triton} if backend == "triton" else {"cuda": triton, "cpu": cpu}


def describe_plan(plan: Plan) -> list[str]:
    """How each direction finds its tiles, with the formulas of its runs."""
    lines = []
    for name, (what, used) in DIRECTIONS.items():
        lines += describe_axis(f"{name} ({what}; {used})", getattr(plan, name), "keys" if name == "forward" else "queries")
    return lines


def describe_orders(orders: dict[str, list[Option]]) -> list[str]:
    """The orders that were compared: what each visits, and how long it is predicted to take beside the best."""
    lines = []
    for name, found in orders.items():
        lines += ["", f"orders    {name}: position = {found[0].order}, predicted fastest"]
        for option in found:
            text = f"visits {option.pairs:,} pairs, predicted time {option.time / found[0].time:.2f}"
            lines.append(f"          {option.order}: {text}")
    return lines


def _describe_boxes(title: str, axis: BoxAxis, columns: str) -> list[str]:
    lines = [f"{title}: position = {axis.order}{_shared(axis.tied) if len(axis.parts) == 1 else ''}; boxes of the other digits"]
    for number, part in enumerate(axis.parts, 1):
        if len(axis.parts) > 1:
            lines.append(f"    disjoint part {number}{_shared(part.tied)}")
        for i, digit in part.digits.items():
            for run in digit.runs:
                lines.append(f"    x{i} of {columns} {run.lo} .. {run.hi}, every pair in {run.inner_lo} .. {run.inner_hi}")
    return lines


def _shared(tied: tuple[int, ...]) -> str:
    return f", {', '.join(f'x{i}' for i in tied)} shared" if tied else ""


def _describe_groups(title: str, axis: HeadsAxis, columns: str) -> list[str]:
    lines = [f"{title}: groups of heads, each with tiles of its own, in one launch"]
    for group, own in zip(axis.groups, axis.axes):
        lines += ["    " + line for line in [f"{group}: {group.pattern}", *describe_axis("    tiles", own, columns)]]
    return lines


def describe_axis(title: str, axis: AxisPlan | BoxAxis | HeadsAxis, columns: str) -> list[str]:
    if isinstance(axis, HeadsAxis):
        return _describe_groups(title, axis, columns)
    if isinstance(axis, BoxAxis):
        return _describe_boxes(title, axis, columns)
    if axis.kind == "list":
        return [f"{title}: lists of tiles, made for each length on the host"]
    if axis.kind == "table":
        return [f"{title}: a table, {_plural(axis.count, 'run')} a row tile, made on the tensors' device"]
    order = "" if axis.count < 2 else ", in order" if axis.ascending else ", sorted in the kernel"
    lines = [f"{title}: formulas, {_plural(len(axis.all_runs), 'run')} a row tile{order}"]
    for run in axis.all_runs:
        gaps = "in the gaps: " if run is axis.filler and axis.count else ""
        lines.append(f"    {gaps}{columns} {run.lo} .. {run.hi}, every pair in {run.inner_lo} .. {run.inner_hi}{_choice(run)}")
    return lines


def _choice(run: Run) -> str:
    """What a run takes of the tiles between its bounds."""
    rows = f", for rows where {run.rows}" if run.rows is not None else ""
    if isinstance(run.columns, Listed):
        return f"{rows}, in the tiles of a shared list: {run.columns.condition}"
    if isinstance(run.columns, Stepped):
        return f"{rows}, in steps of {run.columns.period} from {run.columns.low} .. {run.columns.high}"
    return rows


def tiles_line(found: Layout) -> str:
    """Counts of empty, partial and full tiles, summed over heads and batch rows."""
    grids = [(g.tiles.grid, len(g.heads) * len(g.batch)) for g in found.groups]
    total = sum(grid.row.tiles * grid.column.tiles * times for grid, times in grids)
    empty = total - found.full_tiles - found.partial_tiles
    exact = "exact" if found.exact else "not exact: some partial tiles may be empty or full"
    return f"{empty:,} empty, {found.partial_tiles:,} partial, {found.full_tiles:,} full of {found.tile[0]} x {found.tile[1]} ({exact})"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _human(value: int, base: int) -> str:
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < base or prefix == "P":
            unit = prefix if base == 1000 or not prefix else prefix + "i"
            return f"{value:.4g} {unit}"
        value /= base
    return str(value)


__all__ = ["DIRECTIONS", "Explanation", "Part", "describe_plan", "explain", "kernels_of", "tiles_line"]
