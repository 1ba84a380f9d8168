"""A run's own costs through other plans: what another policy would have made of them.

`MeasuredCosts` answers with what one trace has measured, and with another model scaled by how far that was off on the device where it has not.
`retimed` gives a plan's makespan under other costs, its order and devices kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hetsched.errors import HetschedError
from hetsched.graph.graph import Graph, If, Loop, Nested, Where
from hetsched.machine import Device, Link
from hetsched.placement.costs.estimate import CostModel, Estimate
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import Kinds, begin_kind, turn_kind
from hetsched.timeline import Copy, Free, Lane, Launch, Replica, Timeline

OTHERS = ("heft", "peft", "lookahead", "hedge", "min_min", "one_device")


@dataclass(eq=False)
class MeasuredCosts:
    """Costs as one run measured them. `lessons`: of that run, their `device` being the device's id; `base`: for what it has not measured."""

    lessons: Iterable[Lesson]
    base: CostModel
    _seconds: dict[tuple[str, str, int], float] = field(default_factory=dict)
    _kinds: Kinds = field(default_factory=Kinds)
    _bodies: dict[int, tuple[Graph, list[int]]] = field(default_factory=dict)  # id -> the body, and every how many turns each of its tasks runs
    _shares: dict[tuple[int, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seconds = {(x.device, x.kind, x.width): x.seconds for x in self.lessons}

    def launch(self, graph: Graph, task: int, device: Device, width: int = 1) -> Estimate:
        """What the run measured of this kind of task on this device (in a loop, with its share of what a turn took), else the base's estimate."""
        op = graph.task_ops[task]
        if isinstance(op, Nested) or op.view:
            return self.base.launch(graph, task, device, width)
        known = self.base.launch(graph, task, device, width)
        found = self._measured(graph, task, device, width)
        if found is None:
            return known
        body = self._bodies.get(id(graph))
        share = self._share(graph, device) if body is not None and body[1][task] == 1 else 1.0
        return known._replace(seconds=found * share, spread=0.0, source="this run")

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """The base's estimate."""
        return self.base.copy(nbytes, link)

    def in_body(self, graph: Graph, every: Mapping[str, int] | None = None) -> None:
        """Say that `graph` is the body of a loop. every: task -> k, of those that do not run every turn."""
        self._bodies[id(graph)] = graph, [(every or {}).get(name, 1) for name in graph.task_names]
        tell = getattr(self.base, "in_body", None)
        if tell is not None:
            tell(graph, every)

    def beginning(self, body: Timeline) -> float:
        """Seconds that a loop took beside its turns, else what the base takes them for."""
        owners = {lane.owner for span in body.spans for lane in span.lanes if lane.kind != "copy"}
        found = [s for d in owners if (s := self._seconds.get((d, begin_kind(body.graph, body.turns), 1))) is not None]
        if found:
            return max(found)
        known: Any = getattr(self.base, "beginning", None)
        return float(known(body)) if known is not None else 0.0

    def _measured(self, graph: Graph, task: int, device: Device, width: int) -> float | None:
        return self._seconds.get((device.id, self._kinds.of(graph, task).text, width))

    def _share(self, graph: Graph, device: Device) -> float:
        """What a turn of the body took on the device over the sum of its tasks: dispatching is in it. 1 where no turn was measured by itself."""
        key = id(graph), device.id
        if key not in self._shares:
            turn, total = self._seconds.get((device.id, turn_kind(graph), 1)), 0.0
            for task, op in enumerate(graph.task_ops):
                if not isinstance(op, Nested) and not op.view and self._bodies[id(graph)][1][task] == 1:
                    total += self._measured(graph, task, device, 1) or 0.0
            self._shares[key] = turn / total if turn is not None and total > 0 else 1.0
        return self._shares[key]


def tell_bodies(costs: CostModel | None, graph: Graph) -> None:
    """Tell a model that wants to know which graphs are bodies of loops."""
    tell = getattr(costs, "in_body", None)
    if tell is None:
        return
    for op in graph.task_ops:
        if isinstance(op, Nested):
            if isinstance(op, Loop):
                tell(op.body, op.every)
            for part in op.parts.values():
                tell_bodies(costs, part)


def placed(graph: Graph, devices: Mapping[str, str], path: str = "") -> Graph:
    """`graph` with each task held on the device that `devices` names for it (those of loops by `loop/task`): as a run has placed it."""
    out = copy.copy(graph)
    out.where, out.task_ops = dict(graph.where), list(graph.task_ops)
    for task, name in enumerate(graph.task_names):
        op = graph.task_ops[task]
        if isinstance(op, If):
            inside = f"{path}{name}/"
            then, other = (placed(part, devices, inside + prefix) for prefix, part in op.parts.items())
            out.task_ops[task] = replace(op, then=then, otherwise=other)
        elif isinstance(op, Loop):
            rest = None if op.remainder is None else placed(op.remainder, devices, f"{path}{name}/")
            out.task_ops[task] = replace(op, body=placed(op.body, devices, f"{path}{name}/"), remainder=rest)
        elif path + name in devices:
            old = graph.where.get(task)
            out.where[task] = Where((devices[path + name],), (), old.same_as if old is not None else None)
    return out


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
    if body is not None and body.branch is not None:
        return sum(share * (retimed(branch, costs) + branch.begin_seconds) for share, branch in body.booked)
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
    begin: Any = getattr(costs, "beginning", None)
    turns = planned - body.begin_seconds
    return (turns * max(now.values()) / most if most > 0 else turns) + (begin(body) if begin is not None else body.begin_seconds)


class Regret(NamedTuple):
    """What another policy would have made of the measured costs: its makespan, and that of the plan that was followed, both by these costs."""

    policy: str
    seconds: float
    followed: float

    @property
    def saved(self) -> float:
        """The share of the followed plan's makespan that it would have saved; below 0: lost."""
        return 1 - self.seconds / self.followed if self.followed > 0 else 0.0


def regrets(plan: Timeline, costs: CostModel, policies: Iterable[str] = OTHERS, graph: Graph | None = None, **options: object) -> list[Regret]:
    """Each policy's plan under measured costs against the plan that was followed, the best first. A policy that cannot plan this is left out.

    graph: what the others may plan, where the followed plan was held (`placed`). options: those of `plan_graph` that the followed plan was made
    with (`only`, `memory`).
    """
    from hetsched.placement import plan_graph

    graph = graph if graph is not None else plan.graph
    tell_bodies(costs, plan.graph)
    tell_bodies(costs, graph)
    followed = retimed(plan, costs)
    out = []
    for policy in policies:
        try:
            other = plan_graph(graph, plan.machine, costs=costs, policy=policy, **options)  # type: ignore[arg-type]
        except HetschedError:
            continue
        out.append(Regret(policy, retimed(other, costs), followed))
    return sorted(out, key=lambda r: (r.seconds, r.policy))


def named(lessons: Iterable[Lesson]) -> list[Lesson]:
    """Lessons with the device's id for its key, as `MeasuredCosts` takes them."""
    return [x._replace(device=x.device.partition("|")[0]) for x in lessons]
