"""Heads that see different patterns, each group of them in the order that serves it.

A pattern that mentions `h` is another one for every head, mostly one of a few: Longformer's dilated heads, S2's shifted half.
Heads with the same pattern are a group with a plan of its own; the kernels of all groups are one launch (`codegen.dispatch`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from patternc.analysis.evaluate import evaluate
from patternc.analysis.specialise import specialise
from patternc.args import Bound
from patternc.choices import Listed, Stepped
from patternc.expr.index import const
from patternc.expr.node import Node, postorder, roomy
from patternc.expr.pattern import H, Pattern
from patternc.expr.transform import rewrite, substitute
from patternc.orders import choose
from patternc.orders.boxes import BoxAxis
from patternc.passes import lower, variables
from patternc.plan import AxisPlan, Plan, Run, make_plan
from patternc.rates import HALF, Rate, Shape
from patternc.visits import Visits

MOST_GROUPS = 4  # each is a function in every kernel; a draw of its own for every head is no group
GAIN = 0.97  # predicted time of groups over that of one plan, from which on a kernel of several functions is worth it
COLUMNS = {"forward": "k", "transposed": "q"}
MOST_COUNTS = 16  # numbers of heads whose groups are kept


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """Heads that see the same pairs.

    Attributes:
        heads: query heads, ascending.
        pattern: what they see, without `h`.
        plan: the pattern's, at one length.
    """

    heads: tuple[int, ...]
    pattern: Pattern
    plan: Plan

    def __str__(self):
        """`heads 0, 2`."""
        return f"head{'s' * (len(self.heads) > 1)} {', '.join(map(str, self.heads))}"

    def whole(self, sharing: int) -> bool:
        """Whether it holds all or none of every `sharing` consecutive heads: the query heads of a key head."""
        return all(len([h for h in self.heads if h // sharing == shared]) == sharing for shared in {h // sharing for h in self.heads})


@dataclass(frozen=True, eq=False)
class HeadsAxis:
    """One direction of a plan, group by group.

    Attributes:
        direction: "forward" or "transposed", the part of each group's plan.
        groups: all heads, each in one group; of an `apart` axis one group alone.
        longest: places in `groups`, those whose programs take longest first.
        apart: key heads may have query heads in other groups too, which are left to those groups' launches.
    """

    direction: str
    groups: tuple[HeadGroup, ...]
    longest: tuple[int, ...]
    apart: bool = False

    kind = "heads"

    @property
    def axes(self) -> tuple[AxisPlan | BoxAxis, ...]:
        return tuple(getattr(group.plan, self.direction) for group in self.groups)

    @property
    def alone(self) -> tuple[HeadsAxis, ...]:
        """An axis for each group's own launch."""
        return tuple(HeadsAxis(self.direction, (group,), (0,), True) for group in self.groups)


def groups_of(plan: Plan) -> tuple[HeadGroup, ...]:
    """The groups of heads of a plan, the same for both directions; none where heads are treated alike."""
    return next((axis.groups for axis in (plan.forward, plan.transposed) if axis.kind == "heads"), ())


def heads_alike(p: Pattern, heads: int) -> dict[Pattern, tuple[int, ...]]:
    """The patterns that heads see, without `h`, and the heads of each; empty where a static pattern does not have a few."""
    kept = p.facts.setdefault("heads_alike", {})
    if heads not in kept:
        if len(kept) >= MOST_COUNTS:
            kept.pop(next(iter(kept)))
        kept[heads] = _alike(lower(p), heads)
    return kept[heads]


@roomy
def _alike(lowered: Pattern, heads: int) -> dict[Pattern, tuple[int, ...]]:
    if "h" not in variables(lowered) or any(x.op == "arg" for x in postorder(lowered)):
        return {}
    found: dict[Pattern, list[int]] = {}
    for head in range(heads):
        found.setdefault(lower(rewrite(substitute(lowered, {H: const(head)}), _entry)), []).append(head)
        if len(found) > MOST_GROUPS:
            return {}
    return {pattern: tuple(own) for pattern, own in found.items()}


def _entry(x: Node) -> Node | None:
    """The number that a table read at numbers holds."""
    if x.op in ("read", "member", "inside") and not variables(x):
        return const(int(evaluate(specialise(x, {}), {})))
    return None


def may_change(p: Pattern, bound: Bound) -> bool:
    """Whether the plan of a length may be another than the natural one."""
    return isinstance(bound.q_start, int) and bool(heads_alike(p, bound.heads) or any(choose.axes_in_digits(p).values()))


def plan_at(p: Pattern, natural: Plan, bound: Bound, shape: Shape = HALF) -> Plan:
    """The natural plan, or one with directions in digits or by groups of heads where these are predicted to be faster.

    Groups also take the place of lists of tiles where none of them needs lists.
    """
    if not isinstance(bound.q_start, int) or not (alike := heads_alike(p, bound.heads)):
        return choose.plan_at(p, natural, bound, shape)
    groups, found = None, {}
    for direction, column in COLUMNS.items():
        whole = getattr(natural, direction)
        spared = whole.kind == "list" and all(getattr(make_plan(one), direction).kind != "list" for one in alike)
        if not spared and not any(choose.axes_in_digits(one)[column] for one in alike):
            continue
        groups = groups or tuple(HeadGroup(heads, one, choose.plan_at(one, make_plan(one), bound, shape)) for one, heads in alike.items())
        now = [_options(group, direction, bound, shape)[0].time for group in groups]
        if spared or _shared(groups, now) < GAIN * _shared(groups, [_time(group, whole, direction, bound, shape) for group in groups]):
            found[direction] = HeadsAxis(direction, groups, tuple(sorted(range(len(groups)), key=lambda i: -now[i])))
    return replace(natural, **found) if found else natural


def compared(p: Pattern, natural: Plan, bound: Bound, shape: Shape = HALF) -> dict[str, list[choose.Option]]:
    """The orders there are, best first, by direction and where `plan_at` has groups of heads by their heads; empty where there is one."""
    if not may_change(p, bound):
        return {}
    plan, found = plan_at(p, natural, bound, shape), {}
    for direction, column in COLUMNS.items():
        axis = getattr(plan, direction)
        if axis.kind == "heads":
            own = {group: replace(bound, heads=len(group.heads)) for group in axis.groups}
            found |= {f"{direction}, {group}": _options(group, direction, one, shape) for group, one in own.items()}
        elif not heads_alike(p, bound.heads):
            found[direction] = choose.options(p, getattr(natural, direction), bound, column, shape)
    return found


def predicted(p: Pattern, axis: AxisPlan | BoxAxis | HeadsAxis, bound: Bound, kernel: str, rate: Rate) -> choose.Option | None:
    """What a kernel visits and how long that takes (`choose.predicted`), by groups of heads too."""
    if axis.kind != "heads":
        return choose.predicted(p, axis, bound, kernel, rate)
    found = [choose.predicted(group.pattern, own, bound, kernel, rate) for group, own in zip(axis.groups, axis.axes)]
    if None in found:
        return None
    pairs = sum(o.pairs * len(group.heads) // bound.heads for o, group in zip(found, axis.groups))
    return choose.Option(axis, None, pairs, _shared(axis.groups, [o.time for o in found]))


def access_of(axis: AxisPlan | BoxAxis | HeadsAxis, bound: Bound) -> str:
    """How kernels reach memory (`choose.access_of`); by groups of heads, as the neediest group does."""
    if axis.kind != "heads":
        return choose.access_of(axis, bound)
    return "boxes" if any(choose.access_of(own, bound) == "boxes" for own in axis.axes) else "box descriptors"


def _time(group: HeadGroup, whole: AxisPlan, direction: str, bound: Bound, shape: Shape) -> float:
    """The predicted time if all heads were those of a group, in the natural order that all heads have in common."""
    axis = getattr(make_plan(group.pattern), direction) if whole.kind == "list" else _of_head(whole, group.heads[0])
    return next(o.time for o in choose.options(group.pattern, axis, bound, COLUMNS[direction], shape) if o.axis is axis)


def _options(group: HeadGroup, direction: str, bound: Bound, shape: Shape) -> list[choose.Option]:
    return choose.options(group.pattern, getattr(make_plan(group.pattern), direction), bound, COLUMNS[direction], shape)


def _shared(groups: tuple[HeadGroup, ...], times: list[float]) -> float:
    """The time of one launch, from what it would take if all heads were those of one group."""
    counts = [len(group.heads) for group in groups]
    return sum(time * count for time, count in zip(times, counts)) / sum(counts)


def _of_head(axis: AxisPlan, head: int) -> AxisPlan:
    """A direction of a plan as one head follows it."""

    def at(x):
        return None if x is None else substitute(x, {H: const(head)})

    def columns(x):
        return Listed(at(x.condition)) if isinstance(x, Listed) else Stepped(at(x.low), at(x.high), x.period) if isinstance(x, Stepped) else None

    def run(x):
        return None if x is None else Run(at(x.lo), at(x.hi), at(x.inner_lo), at(x.inner_hi), at(x.rows), columns(x.columns))

    return replace(axis, runs=tuple(map(run, axis.runs)), filler=run(axis.filler))


def visits_of(p: Pattern, axis: AxisPlan | BoxAxis | HeadsAxis, bound: Bound, tile: tuple[int, int], transposed: bool = False) -> Visits:
    """What kernels visit in one direction (`visits.visits`), in digits and by groups of heads too."""
    if axis.kind != "heads":
        return choose.visits_of(p, axis, bound, tile, transposed)
    parts = [
        choose.visits_of(group.pattern, own, replace(bound, heads=len(group.heads)), tile, transposed) for group, own in zip(axis.groups, axis.axes)
    ]
    return Visits(*(sum(getattr(part, name) for part in parts) for name in ("pairs", "full_tiles", "partial_tiles")), None)
