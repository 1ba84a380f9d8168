"""A run's own costs through other plans: what another policy would have made of them.

`MeasuredCosts` answers with what one trace has measured, and with another model scaled by how far that was off on the device where it has not.
`retimed` gives a plan's makespan under other costs, its order and devices kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from hetsched.errors import HetschedError
from hetsched.graph.graph import Graph, Loop
from hetsched.machine import Device, Link
from hetsched.placement.costs.estimate import CostModel, Estimate
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import Kinds
from hetsched.timeline import Copy, Free, Lane, Launch, Replica, Timeline

OTHERS = ("heft", "peft", "lookahead", "hedge", "min_min", "one_device")


@dataclass(eq=False)
class MeasuredCosts:
    """Costs as one run measured them. `lessons`: of that run, their `device` being the device's id; `base`: for what it has not measured."""

    lessons: Iterable[Lesson]
    base: CostModel
    _seconds: dict[tuple[str, str, int], float] = field(default_factory=dict)
    _kinds: Kinds = field(default_factory=Kinds)

    def __post_init__(self) -> None:
        self._seconds = {(x.device, x.kind, x.width): x.seconds for x in self.lessons}

    def launch(self, graph: Graph, task: int, device: Device, width: int = 1) -> Estimate:
        """What the run measured of this kind of task on this device, else the base's estimate."""
        op = graph.task_ops[task]
        if isinstance(op, Loop) or op.view:
            return self.base.launch(graph, task, device, width)
        found = self._seconds.get((device.id, self._kinds.of(graph, task).text, width))
        known = self.base.launch(graph, task, device, width)
        return known if found is None else known._replace(seconds=found, spread=0.0, source="this run")

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """The base's estimate."""
        return self.base.copy(nbytes, link)


def retimed(plan: Timeline, costs: CostModel) -> float:
    """The makespan of a plan under other costs: each command on its lanes and in their order, as early as lanes, data and reuse allow.

    A loop is scaled as the busiest of its lanes is.
    """
    lane_free: dict[Lane, float] = {}
    there: dict[Replica, float] = {}
    ended: dict[int, float] = {}
    done: dict[int, float] = {}
    waits: dict[int, list[int]] = {}
    for edge in plan.after:
        if edge.turns == 0:
            waits.setdefault(edge.later, []).append(edge.before)
    before: dict[int, list[int]] = {}
    for first, then in plan.graph.after:
        before.setdefault(then, []).append(first)
    for number, span in enumerate(plan.spans):
        command = span.command
        if isinstance(command, Free):
            continue
        reads = (command.src,) if isinstance(command, Copy) else command.reads
        start = max([0.0, *(lane_free.get(lane, 0.0) for lane in span.lanes), *(there.get(r, 0.0) for r in reads)])
        start = max([start, *(ended.get(b, 0.0) for b in waits.get(number, ()))])
        if isinstance(command, Launch):
            start = max([start, *(done.get(t, 0.0) for t in before.get(command.task, ()))])
            finish = start + _launch_seconds(plan, command, span.lanes, span.finish - span.start, costs)
            done[command.task] = finish
            there.update((r, finish) for r in command.writes)
        else:
            link = plan.machine.link(command.src.node, command.dst.node)
            finish = start + costs.copy(int(plan.graph.value_nbytes[command.value]), link).seconds
            there[command.dst] = finish
        ended[number] = finish
        lane_free.update((lane, finish) for lane in span.lanes)
    return max(ended.values(), default=0.0)


def _launch_seconds(plan: Timeline, command: Launch, lanes: tuple[Lane, ...], planned: float, costs: CostModel) -> float:
    body = plan.loops.get(command.task)
    if body is None:
        return costs.launch(plan.graph, command.task, plan.machine.device(lanes[0].owner), command.width).seconds if lanes else planned
    was: dict[Lane, float] = {}
    now: dict[Lane, float] = {}
    for span in body.spans:
        inner = span.command
        if isinstance(inner, Free):
            continue
        seconds = span.finish - span.start
        if isinstance(inner, Launch):
            new = _launch_seconds(body, inner, span.lanes, seconds, costs)
        else:
            new = costs.copy(int(body.graph.value_nbytes[inner.value]), body.machine.link(inner.src.node, inner.dst.node)).seconds
        for lane in span.lanes:
            was[lane] = was.get(lane, 0.0) + seconds
            now[lane] = now.get(lane, 0.0) + new
    most = max(was.values(), default=0.0)
    return planned * max(now.values()) / most if most > 0 else planned


class Regret(NamedTuple):
    """What another policy would have made of the measured costs: its makespan, and that of the plan that was followed, both by these costs."""

    policy: str
    seconds: float
    followed: float

    @property
    def saved(self) -> float:
        """The share of the followed plan's makespan that it would have saved; below 0: lost."""
        return 1 - self.seconds / self.followed if self.followed > 0 else 0.0


def regrets(plan: Timeline, costs: CostModel, policies: Iterable[str] = OTHERS, **options: object) -> list[Regret]:
    """Each policy's plan under measured costs against the plan that was followed, the best first. A policy that cannot plan this is left out.

    options: those of `plan_graph` that the followed plan was made with (`only`, `memory`).
    """
    from hetsched.placement import plan_graph

    followed = retimed(plan, costs)
    out = []
    for policy in policies:
        try:
            other = plan_graph(plan.graph, plan.machine, costs=costs, policy=policy, **options)  # type: ignore[arg-type]
        except HetschedError:
            continue
        out.append(Regret(policy, retimed(other, costs), followed))
    return sorted(out, key=lambda r: (r.seconds, r.policy))


def named(lessons: Iterable[Lesson]) -> list[Lesson]:
    """Lessons with the device's id for its key, as `MeasuredCosts` takes them."""
    return [x._replace(device=x.device.partition("|")[0]) for x in lessons]
