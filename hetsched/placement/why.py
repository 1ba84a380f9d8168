"""Why a task runs where it does, what it would take elsewhere, and what would move it: all of it found by planning again.

For every other device the whole is planned once more with the task held there, so that copies, queues and memory are those of a real plan, not of
a formula. A flip point is searched the same way: one thing (a parameter of the pipeline, the speed of a device) is changed in growing steps until
the planner puts the task elsewhere, and the change is then halved between the last choice that was the same and the first that was not. Both
sides of a flip point have been planned.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from hetsched.errors import CommandLineError, OutOfMemoryError, PlacementError, did_you_mean
from hetsched.graph.graph import Graph, If, Loop, Nested, Where
from hetsched.graph.op import Op
from hetsched.machine import Device, Link, Machine
from hetsched.placement.asked import Asked, asked_for
from hetsched.placement.costs import CostModel, Estimate, RooflineCosts
from hetsched.placement.costs.figures import measure
from hetsched.placement.costs.replay import tell_bodies
from hetsched.text import bytes_text, percent_text, plural, seconds_text, table
from hetsched.timeline import Copy, Launch, Timeline

Chain = tuple[int, ...]  # the task numbers of the loops around a task, and its own
Plan = Callable[..., Timeline]

# A speed is changed by powers of this, at most so far; a parameter is doubled and halved at most so often.
SPEED_STEP, MOST_SPEED = 2.0, 2.0**10
MOST_DOUBLINGS = 12
# The two sides of a flip point of a speed differ by this share.
SPEED_TOLERANCE = 0.02
TIE = 1e-9


@dataclass(frozen=True)
class Option:
    """A task held on a device, and the whole planned around it. like: how many devices of the machine are the same, this one counted.

    compute_seconds: one launch; spread_seconds: the standard deviation of that estimate; source: where it comes from.
    copies_seconds, copied_bytes: of what it reads there and what others need of it from there.
    queue_seconds: from when all that it reads is there to its start.
    memory_bytes: what it reads, writes and works in, on the device's memory node. node_bytes: the most that the whole plan holds there.
    joules: of one launch. seconds, plan_joules: of the whole. figure: what the objective counts of the whole.
    worse: by what share the figure is above that of the plan; below 0: it is better. problem: why it cannot be there; then nothing else is known.
    why: the sentence on why it lost.
    """

    device: str
    like: int = 1
    chosen: bool = False
    compute_seconds: float = math.nan
    spread_seconds: float = math.nan
    source: str = ""
    copies_seconds: float = math.nan
    copied_bytes: int = 0
    queue_seconds: float = math.nan
    memory_bytes: int = 0
    node_bytes: int = 0
    joules: float | None = None
    seconds: float = math.nan
    plan_joules: float | None = None
    figure: float | None = None
    worse: float | None = None
    problem: str = ""
    why: str = ""


@dataclass(frozen=True)
class Flip:
    """Where the choice changes: at `same` the task is on `stays`, at `other`, the next value tried, on `becomes`.

    what: `batch` or `speed of cuda:0`. at: the value in force. A speed is a factor of what the machine states.
    """

    what: str
    at: float
    same: float
    other: float
    stays: str
    becomes: str

    def __str__(self) -> str:
        if self.what.startswith("speed of "):
            device, factor = self.what.removeprefix("speed of "), self.other
            change = f"{factor:.3g} x as fast" if factor >= 1 else f"{1 / factor:.3g} x slower"
            return f"{self.becomes} wins were {device} {change} (at {self.same:.3g} x its speed: {self.stays})"
        side = "from" if self.other > self.same else "down from"
        return f"{self.becomes} wins {side} {self.what} {self.other:g} on (at {self.same:g}: {self.stays}; now {self.at:g})"


@dataclass(frozen=True)
class Explanation:
    """Why a task is where it is. start, finish: of its launch, in a loop of its turn. objective: what the plan is least in.

    searched: what was changed in search of a flip point, and how far, without one (`speed of cuda:0 up to 1024 x`).
    """

    task: str
    op: str
    device: str
    start: float
    finish: float
    objective: str
    options: tuple[Option, ...]
    flips: tuple[Flip, ...] = ()
    searched: tuple[str, ...] = ()
    policy: str = ""
    replans: int = field(default=0, compare=False)

    def option(self, device: str) -> Option:
        """What the task would take on `device`."""
        return next(o for o in self.options if o.device == device)

    def __str__(self) -> str:
        lines = [f"{self.task}: {self.op} on {self.device}, chosen by {self.policy} for {self.objective}"]
        rows = []
        for o in self.options:
            name = o.device + (f" and {o.like - 1} like it" if o.like > 1 else "") + (" (chosen)" if o.chosen else "")
            if o.problem:
                rows.append([name, *["-"] * 8])
                continue
            joules = f"{o.joules:.3g} J" if o.joules is not None else "-"
            spread = f"+-{percent_text(o.spread_seconds / o.compute_seconds)}" if o.compute_seconds > 0 else ""
            copies, queue, whole = (seconds_text(x) for x in (o.copies_seconds, o.queue_seconds, o.seconds))
            rows.append([name, seconds_text(o.compute_seconds), spread, o.source, copies, queue, bytes_text(o.memory_bytes), joules, whole])
        head = ["on", "compute", "", "by", "copies", "queue", "memory", "energy", "whole plan"]
        lines += [f"  {line}" for line in table(head, rows, right=(1, 2, 4, 5, 6, 7, 8))]
        lines += [f"  {o.device}: {o.problem or o.why}" for o in self.options if o.problem or o.why]
        lines += [f"  flips: {flip}" for flip in self.flips]
        if self.searched:
            lines.append(f"  no flip found: {'; '.join(self.searched)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Parameter:
    """A whole number that a graph depends on. build(value) gives the graph, or raises a `HetschedError` where the value cannot be."""

    value: int
    build: Callable[[int], Graph]
    least: int = 1


def explain_task(
    plan: Timeline,
    task: str,
    replan: Plan,
    *,
    flips: bool = True,
    vary: Mapping[str, Parameter] | None = None,
    seconds: float | None = None,
) -> Explanation:
    """Why `task` is where it is in `plan`.

    task: its name, inside loops `loop/task`, or the end of that. replan: `plan_graph`. flips: search for what would move it. vary: parameters of the
    graph to search over, by name. seconds: no new search is begun after this time; None: no limit.
    Raises `CommandLineError` where no task, or more than one, is called so, and for a loop (its tasks are placed each by itself).
    """
    return _Search(plan, task, replan).explain(flips, vary or {}, seconds)


def names(graph: Graph, prefix: str = "", around: Chain = ()) -> Iterator[tuple[str, Chain]]:
    """(path, chain) of every task, those of loops by `loop/task`."""
    for number, op in enumerate(graph.task_ops):
        path = prefix + graph.task_names[number]
        yield path, (*around, number)
        if isinstance(op, Loop):
            yield from names(op.body, path + "/", (*around, number))


def find_task(graph: Graph, task: str) -> tuple[str, Chain]:
    """The one task that `task` means: its path, or the end of it; the name of a group means its tasks, of which one is to be named."""
    every = list(names(graph))
    found = [x for x in every if x[0] == task] or [x for x in every if x[0].startswith(task + "/")] or [x for x in every if x[0].endswith("/" + task)]
    if not found:
        inside = next((x[0] for x in every if isinstance(op_at(graph, x[1]), If) and f"/{task}".find(f"/{x[0]}/") >= 0), None)
        if inside is not None:
            raise CommandLineError(f"{task!r} is in a branch of the if {inside!r}; why a task of a branch is where it is is not told yet")
        near = did_you_mean(task, [x[0] for x in every]).partition(" known:")[0].rstrip(";")
        raise CommandLineError(f"the plan has no task {task!r}{near}; `hetsched plan` lists {plural(len(every), 'task')}")
    if len(found) > 1:
        named = ", ".join(x[0] for x in found[:8]) + (", ..." if len(found) > 8 else "")
        raise CommandLineError(f"{task!r} means {plural(len(found), 'task')}: {named}; give more of the name")
    path, chain = found[0]
    if isinstance(op_at(graph, chain), If):
        raise CommandLineError(f"{path!r} is an if, whose tasks are placed each by itself; why they are where they are is not told yet")
    if isinstance(op_at(graph, chain), Loop):
        raise CommandLineError(f"{path!r} is a loop, whose tasks are placed each by itself; name one of them, as {path}/TASK")
    return path, chain


def held(graph: Graph, chain: Chain, device: str) -> Graph:
    """`graph` with one task held on `device`, whatever its own constraints but `same_as`. Nothing else is new."""
    out = copy.copy(graph)
    number = chain[0]
    if len(chain) == 1:
        old = graph.where.get(number)
        out.where = {**graph.where, number: Where((device,), (), old.same_as if old is not None else None)}
        return out
    loop = graph.task_ops[number]
    assert isinstance(loop, Loop)
    rest = None if loop.remainder is None else held(loop.remainder, chain[1:], device)
    out.task_ops = list(graph.task_ops)
    out.task_ops[number] = replace(loop, body=held(loop.body, chain[1:], device), remainder=rest)
    return out


def faster(machine: Machine, devices: frozenset[str], factor: float) -> Machine:
    """`machine` with some devices `factor` times as fast: in arithmetic, memory and launches."""

    def quick(d: Device) -> Device:
        flops = {kind: f * factor for kind, f in d.flops_per_second.items()}
        replay = None if d.replay_seconds is None else d.replay_seconds / factor
        return replace(
            d, flops_per_second=flops, bytes_per_second=d.bytes_per_second * factor, launch_seconds=d.launch_seconds / factor, replay_seconds=replay
        )

    return replace(machine, devices=tuple(quick(d) if d.id in devices else d for d in machine.devices))


@dataclass(frozen=True)
class FasterCosts:
    """Measured costs, with launches on some devices `factor` times as fast."""

    costs: CostModel
    devices: frozenset[str]
    factor: float

    def launch(self, graph: Graph, task: int, device: Device, width: int) -> Estimate:
        """The estimate of `costs`, divided by `factor` on the devices that are faster."""
        found = self.costs.launch(graph, task, device, width)
        if device.id not in self.devices:
            return found
        joules = None if found.joules is None else found.joules / self.factor
        return found._replace(seconds=found.seconds / self.factor, spread=found.spread / self.factor, joules=joules)

    def copy(self, nbytes: int, link: Link) -> Estimate:
        """The estimate of `costs`."""
        return self.costs.copy(nbytes, link)

    def in_body(self, graph: Graph, every: Mapping[str, int]) -> None:
        """Tell `costs` of the body of a loop, if it wants to know."""
        tell = getattr(self.costs, "in_body", None)
        if tell is not None:
            tell(graph, every)


class _Search:
    """Plans again and again around one task of a plan."""

    def __init__(self, plan: Timeline, task: str, replan: Plan) -> None:
        self.plan, self.asked, self.replan = plan, asked_for(plan), replan
        self.path, self.chain = find_task(plan.graph, task)
        self.base = measure(plan)
        self.replans = 0

    def again(self, graph: Graph, machine: Machine | None = None, costs: CostModel | None = None) -> Timeline:
        """The plan of `graph`, asked for as the first was."""
        a: Asked = self.asked
        self.replans += 1
        tell_bodies(costs if costs is not None else a.costs, graph)
        return self.replan(
            graph, machine or a.machine, costs=costs if costs is not None else a.costs, policy=a.policy, objective=a.objective,
            plan_seconds=a.plan_seconds, only=a.only, memory=a.memory,
        )  # fmt: skip

    def explain(self, flips: bool, vary: Mapping[str, Parameter], seconds: float | None) -> Explanation:
        began = time.monotonic()
        span_of, device = _launch(self.plan, self.chain)
        chosen = self.option(self.plan, device, True)
        options = [chosen, *(self.elsewhere(chosen, d, n) for d, n in self.others(device))]
        found: list[Flip] = []
        searched: list[str] = []
        axes = self.axes(device, vary) if flips else []
        for axis in axes:
            if seconds is not None and time.monotonic() - began > seconds:
                searched.append(f"{axis.what} was not searched, {seconds_text(seconds)} were over")
                continue
            flip = axis.search(device)
            if flip:
                found += flip
            else:
                searched.append(axis.range)
        plan, number = span_of
        op = op_at(self.plan.graph, self.chain)
        assert isinstance(op, Op)
        span = plan.spans[number]
        return Explanation(
            self.path, op.name, device, span.start, span.finish, str(self.asked.objective), tuple(options), tuple(found), tuple(searched),
            self.plan.policy, self.replans,
        )  # fmt: skip

    def others(self, device: str) -> list[tuple[Device, int]]:
        """The devices other than the chosen one, of like ones the first, with how many there are."""
        alike: dict[object, list[Device]] = {}
        for d in self.asked.machine.devices:
            if d.id != device:
                alike.setdefault(repr(replace(d, id="", memory="" if d.memory == d.id else d.memory)), []).append(d)
        return [(group[0], len(group)) for group in alike.values()]

    def elsewhere(self, chosen: Option, device: Device, like: int) -> Option:
        """The task held on another device."""
        op = op_at(self.plan.graph, self.chain)
        assert isinstance(op, Op)
        graph = _graph_at(self.plan.graph, self.chain)
        specs = [graph.value_specs[v] for v in graph.reads(self.chain[-1])]
        if not op.view and op.kernel_for(device, specs) is None:
            return Option(device.id, like, problem=f"has no kernel for {op.name}")
        where = graph.where.get(self.chain[-1])
        if where is not None and not _allowed(where, device):
            return Option(device.id, like, problem="the `device:` of the task does not allow it")
        try:
            plan = self.again(held(self.plan.graph, self.chain, device.id))
        except (PlacementError, OutOfMemoryError) as error:
            return Option(device.id, like, problem=str(error).splitlines()[0])
        if _launch(plan, self.chain)[1] != device.id:
            return Option(device.id, like, problem="the plan as it was asked for (`-d`, `same_as`) does not allow it")
        option = replace(self.option(plan, device.id, False), like=like)
        return replace(option, why=_why(chosen, option))

    def option(self, plan: Timeline, device: str, chosen: bool) -> Option:
        """What the task takes in `plan`."""
        (timeline, number), _ = _launch(plan, self.chain)
        span = timeline.spans[number]
        command = span.command
        assert isinstance(command, Launch)
        arrived, copies, copied = _copies(timeline, command)
        model = self.asked.model
        estimate = model.launch(timeline.graph, command.task, plan.machine.device(device), command.width)
        node = plan.machine.device(device).memory
        here = dict.fromkeys((*command.reads, *command.writes))
        workspace = timeline.workspaces.get(command.task, ("", 0, 0))[2]
        figures = measure(plan)
        figure, base = self.asked.objective.score(figures, self.base), self.asked.objective.score(self.base, self.base)
        worse = figure / base - 1 if figure is not None and base else None
        return Option(
            device, 1, chosen, span.finish - span.start, estimate.spread, estimate.source, copies, copied, max(0.0, span.start - arrived),
            sum(int(timeline.graph.value_nbytes[r.value]) for r in here) + workspace, plan.peak.get(node, 0), estimate.joules, plan.makespan,
            figures.joules, figure, worse,
        )  # fmt: skip

    def axes(self, device: str, vary: Mapping[str, Parameter]) -> list[_Axis]:
        """What is changed in search of a flip point: parameters, the chosen device slower, the others faster.

        Parameters that leave the values around the task as they are (a number of epochs) seldom move it, and come last.
        """
        out: list[_Axis] = []
        last: list[_Axis] = []
        for name, parameter in vary.items():
            axis = _Axis(name, parameter.value, True, parameter.least, MOST_DOUBLINGS, self._with_parameter(parameter), self.path)
            (out if self.matters(parameter) else last).append(axis)
        groups = [frozenset(d.id for d in self.asked.machine.devices if _same(d, self.asked.machine.device(device)))]
        for other, _ in self.others(device):
            group = frozenset(d.id for d in self.asked.machine.devices if _same(d, other))
            groups += [group] if group not in groups else []
        for group in groups:
            first = min(group, key=[d.id for d in self.asked.machine.devices].index)
            out.append(_Axis(f"speed of {first}", 1.0, False, 0.0, 0, self._with_speed(group), self.path, -1 if device in group else 1))
        return out + last

    def matters(self, parameter: Parameter) -> bool:
        """True if a parameter changes the bytes of the values in the graph that the task is in."""
        here = _graph_at(self.plan.graph, self.chain).value_nbytes.tolist()
        for value in (2 * parameter.value, parameter.value // 2):
            try:
                graph = parameter.build(max(value, parameter.least))
                return bool(_graph_at(graph, find_task(graph, self.path)[1]).value_nbytes.tolist() != here)
            except (CommandLineError, ValueError):
                continue
        return False

    def _with_parameter(self, parameter: Parameter) -> Callable[[float], Timeline]:
        return lambda value: self.again(parameter.build(int(value)))

    def _with_speed(self, group: frozenset[str]) -> Callable[[float], Timeline]:
        costs = self.asked.costs

        def plan(factor: float) -> Timeline:
            if costs is None or isinstance(costs, RooflineCosts):
                return self.again(self.plan.graph, faster(self.asked.machine, group, factor))
            return self.again(self.plan.graph, costs=FasterCosts(costs, group, factor))

        return plan


@dataclass
class _Axis:
    """One thing that is changed. direction: -1: only down, 1: only up, 0: both."""

    what: str
    at: float
    whole: bool
    least: float
    doublings: int
    plan: Callable[[float], Timeline]
    path: str
    direction: int = 0
    known: dict[float, str | None] = field(default_factory=dict)

    @property
    def range(self) -> str:
        """How far it is searched, in words."""
        tried = [x for x, device in self.known.items() if device is not None and x != self.at]
        if not tried:
            return f"{self.what} cannot be changed"
        if not self.whole:
            return f"{self.what} up to {max(tried):g} x" if self.direction > 0 else f"{self.what} down to 1/{1 / min(tried):g}"
        return f"{self.what} from {min(*tried, self.at):g} to {max(*tried, self.at):g}"

    def device(self, value: float) -> str | None:
        """Where the planner puts the task at `value`; None where that cannot be planned, or has no such task."""
        if value not in self.known:
            try:
                plan = self.plan(value)
                self.known[value] = _launch(plan, find_task(plan.graph, self.path)[1])[1]
            except (PlacementError, OutOfMemoryError, CommandLineError, ValueError):
                self.known[value] = None
        return self.known[value]

    def search(self, device: str) -> list[Flip]:
        """The nearest flip point above, and below."""
        self.known[self.at] = device
        return [flip for up in (True, False) if self.direction in (0, 1 if up else -1) and (flip := self._towards(device, up)) is not None]

    def _towards(self, device: str, up: bool) -> Flip | None:
        same, other = self.at, self._next(self.at, up)
        while other is not None:
            found = self.device(other)
            if found is None:
                return None
            if found != device:
                return self._narrowed(device, same, other)
            same, other = other, self._next(other, up)
        return None

    def _next(self, value: float, up: bool) -> float | None:
        if not self.whole:
            value = value * SPEED_STEP if up else value / SPEED_STEP
            return value if 1 / MOST_SPEED <= value <= MOST_SPEED else None
        if up:
            value = max(2 * value, value + 1)
            return value if value <= max(self.at, 1) * 2**self.doublings else None
        return None if value <= self.least else max(float(self.least), float(int(value) // 2))

    def _narrowed(self, device: str, same: float, other: float) -> Flip:
        """Halve between `same`, where the choice is `device`, and `other`, where it is not."""
        while abs(other - same) > 1 if self.whole else max(other / same, same / other) > 1 + SPEED_TOLERANCE:
            middle = float((int(same) + int(other)) // 2) if self.whole else math.sqrt(same * other)
            found = self.device(middle)
            if found is None:
                break
            same, other = (middle, other) if found == device else (same, middle)
        becomes = self.device(other)
        assert becomes is not None
        return Flip(self.what, self.at, same, other, device, becomes)


def _launch(plan: Timeline, chain: Chain) -> tuple[tuple[Timeline, int], str]:
    """((the timeline that holds the task's launch, the number of its span), its device)."""
    timeline = plan
    for loop in chain[:-1]:
        timeline = timeline.loops[loop]
    for number, span in enumerate(timeline.spans):
        if isinstance(span.command, Launch) and span.command.task == chain[-1]:
            return (timeline, number), span.lanes[0].owner
    raise CommandLineError(f"the plan launches no task {timeline.graph.task_names[chain[-1]]!r}")


def _copies(timeline: Timeline, command: Launch) -> tuple[float, float, int]:
    """(when all that a launch reads is there, seconds of the copies to and from it, their bytes)."""
    reads, writes = set(command.reads), set(command.writes)
    arrived, seconds, nbytes = 0.0, 0.0, 0
    for span in timeline.spans:
        other = span.command
        if isinstance(other, Copy):
            if other.dst in reads:
                arrived = max(arrived, span.finish)
            if other.dst in reads or other.src in writes:
                seconds += span.finish - span.start
                nbytes += int(timeline.graph.value_nbytes[other.value])
        elif isinstance(other, Launch) and other is not command and reads & set(other.writes):
            arrived = max(arrived, span.finish)
    return arrived, seconds, nbytes


def _why(chosen: Option, option: Option) -> str:
    """Why an option lost: by how much, and what most of that is."""
    if option.worse is None:
        return "what the objective counts is not known there"
    if abs(option.worse) <= TIE:
        return "as good: the whole comes to the same"
    if option.worse < 0:
        return f"better by {percent_text(-option.worse)}: the policy did not find it"
    more = {
        "it computes longer there": option.compute_seconds - chosen.compute_seconds,
        "copies": option.copies_seconds - chosen.copies_seconds,
        "it waits longer for a lane": option.queue_seconds - chosen.queue_seconds,
    }
    cause, excess = max(more.items(), key=lambda item: item[1])
    lost = f"the whole would be {percent_text(option.worse)} worse"
    if excess <= 0:
        return f"{lost}: what comes after it is put elsewhere"
    return f"{lost}: {cause} ({seconds_text(excess)} more)"


def _allowed(where: Where, device: Device) -> bool:
    inside = not where.allow or any(device.matches(p) for p in where.allow)
    return inside and not any(device.matches(p) for p in where.exclude)


def _same(a: Device, b: Device) -> bool:
    """True for two devices of one make."""
    return a.id == b.id or (a.kind == b.kind and a.name == b.name and a.name != "" and dict(a.flops_per_second) == dict(b.flops_per_second))


def _graph_at(graph: Graph, chain: Chain) -> Graph:
    """The graph, or body, that the task of `chain` is in."""
    for loop in chain[:-1]:
        op = graph.task_ops[loop]
        assert isinstance(op, Loop)
        graph = op.body
    return graph


def op_at(graph: Graph, chain: Chain) -> Op | Nested:
    """What the task of `chain` runs."""
    return _graph_at(graph, chain).task_ops[chain[-1]]


__all__ = ["Explanation", "FasterCosts", "Flip", "Option", "Parameter", "explain_task", "faster", "find_task", "held", "names", "op_at"]
