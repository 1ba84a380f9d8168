"""From a plan to a program: steps and the arcs between them. Pure; what every executor walks.

A step is what is dispatched at once: one command, or a **segment** of launches of one lane that need not wait between them. Arcs come from
data (a reader waits for the launch or copy that makes its replica), from reuse (`Timeline.after`), from order-only edges, from lane order
on devices whose lanes are streams, and from a loop's stop value.

Segments. In a straight plan on lanes that share their tasks, only chains are joined (a task whose one reader follows it on the same device):
that costs no freedom. In a loop's body, neighbours on a lane are joined as long as the joined steps stay without a cycle and neither a
long launch waits for another lane's result nor another lane waits for the end of a long launch that it does not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.errors import InternalError
from hetsched.executors.steps import Step
from hetsched.executors.straight import Straight, straight
from hetsched.executors.walk import Arc, find_cycle
from hetsched.graph.graph import Graph, Loop, Nested
from hetsched.machine import HOST, Device
from hetsched.machine.calibration import load
from hetsched.timeline import Copy, Free, Lane, Launch, Replica, Span, Timeline

FloatArray: TypeAlias = NDArray[np.float64]

# Tasks this share of a thread crossing long, or shorter, are done by one thread; where the device does not say, a crossing takes 10 us.
FINE_SHARE = 0.5
CROSSING_SECONDS = 10e-6
# Tasks that take longer on average stay steps of their own, with spans of their own in the trace: dispatching one takes a hundredth of it.
COARSE_SECONDS = 200e-6

# Joining tasks delays the readers on other lanes by at most this much; below, a hand-over between threads costs more than it gains.
LONG_SECONDS = 50e-6

# A joined step of a loop's body has bindings for every combination of its ring slots: no more than these.
MOST_BINDINGS = 24


@dataclass(frozen=True)
class Program:
    """A plan ready to be walked: `steps`, `arcs` between them, `window`: turns in flight.

    carried: body input value -> carried output value. every: task -> k > 1. stop_step: the step that brings the stop value to the host, or -1.
    straight: the same in arrays, where each step is launches of ops on one lane of one device; None where that is not so, or not known.
    """

    plan: Timeline
    steps: Sequence[Step]
    arcs: Sequence[Arc]
    window: int
    carried: dict[int, int]
    every: Mapping[int, int]
    stop_step: int = -1
    straight: Straight | None = None

    @property
    def plain_on(self) -> str:
        """The device on one lane of which each step is; "" where that is not so, or not known."""
        return self.straight.owner if self.straight is not None else ""

    @cached_property
    def seldom(self) -> Mapping[int, tuple[int, ...]]:
        """Step -> k of each of its commands that are left out but every k > 1 turns."""
        if not self.every:
            return {}
        spans = self.plan.spans
        rows = ((step.index, tuple(k for i in step.spans if (k := every_k(self.plan, spans[i], self.every)) > 1)) for step in self.steps)
        return {step: found for step, found in rows if found}

    def commands(self, step: int, first: int, end: int) -> int:
        """How many launches and copies a step does in the turns from `first` to `end` - 1."""
        seldom = self.seldom.get(step, ())
        often = len(self.steps[step].spans) - len(seldom)
        return often * (end - first) + sum(-(-end // k) + -first // k for k in seldom)

    def commands_of_all(self, turns: int) -> int:
        """How many launches and copies the first `turns` turns are, loops inside as one each."""
        return sum(self.commands(step.index, 0, turns) for step in self.steps)


def is_solo(program: Program) -> bool:
    """True for a straight plan that is one step on a thread of the host: the caller's thread does it, and nobody has to be asked."""
    plan, steps = program.plan, program.steps
    if plan.loop is not None or plan.loops or len(steps) != 1 or len(steps[0].lanes) != 1 or steps[0].kind != "compute":
        return False
    owner = next((d for d in plan.machine.devices if d.id == steps[0].owner), None)
    return owner is not None and owner.shares_lanes and owner.memory == HOST


def is_chain(program: Program) -> bool:
    """True for a body that is one segment which waits for itself: its turns follow each other, with nothing to ask in between."""
    return program.plan.loop is not None and program.arcs == (Arc(0, 0, 1),) and len(program.steps) == 1 and program.stop_step < 0


def carried_values(loop: Loop | None) -> dict[int, int]:
    """Body input value -> the body's output value that becomes it in the next turn."""
    if loop is None:
        return {}
    return {loop.body.inputs[a]: loop.body.outputs[b] for a, b in loop.carried}


def every_of(loop: Loop | None) -> Mapping[int, int]:
    """`Loop.seldom`; empty of a straight plan."""
    return loop.seldom if loop is not None else {}


def every_k(plan: Timeline, span: Span, every: Mapping[int, int]) -> int:
    """In every how many turns a command of a body runs: a task, or the copy of what it makes."""
    command = span.command
    task = command.task if isinstance(command, Launch) else int(plan.graph.value_task[command.value]) if isinstance(command, Copy) else -1
    return every.get(task, 1)


def span_arcs(plan: Timeline) -> list[Arc]:
    """The arcs between the spans of a plan: data, order, reuse, stream lanes, stop."""
    graph, carried = plan.graph, carried_values(plan.loop)
    maker: dict[tuple[int, str, int], int] = {}
    launch_of: dict[int, int] = {}
    for i, span in enumerate(plan.spans):
        command = span.command
        if isinstance(command, Launch):
            launch_of[command.task] = i
            for replica in command.writes:
                maker[replica.value, replica.node, replica.generation] = i
        elif isinstance(command, Copy):
            maker[command.dst.value, command.dst.node, command.dst.generation] = i
    arcs: list[Arc] = []

    def read(replica: Replica, reader: int) -> None:
        value, distance = replica.value, 0
        if value in carried:
            own = maker.get((value, replica.node, 0))
            if own is not None:  # a carried input copied to another node within the turn
                arcs.append(Arc(own, reader))
                return
            value, distance = carried[value], 1
        before = maker.get((value, replica.node, replica.generation))
        if before is not None:
            arcs.append(Arc(before, reader, distance))
        elif graph.value_task[value] >= 0 or replica.generation:
            raise InternalError(f"the plan never brings value {graph.value_names[value]!r} to {replica.node}")

    for i, span in enumerate(plan.spans):
        command = span.command
        if isinstance(command, Launch):
            for replica in command.reads:
                read(replica, i)
        elif isinstance(command, Copy):
            read(command.src, i)
    arcs += [Arc(launch_of[a], launch_of[b]) for a, b in graph.after]
    arcs += [Arc(*edge) for edge in plan.after]
    arcs += _stream_arcs(plan)
    # In a turn that it leaves out, a task of every k turns is done when it is done in the turn before: readers of that turn take what it made then.
    every = every_of(plan.loop)
    arcs += [Arc(i, i, 1) for i, span in enumerate(plan.spans) if every_k(plan, span, every) > 1] if every else []
    if plan.loop is not None and plan.loop.stop is not None:
        # The stop value decides whether the next turn exists at all: nothing of it may begin before.
        stop = stop_span(plan)
        arcs += [Arc(stop, i, 1) for i, s in enumerate(plan.spans) if not isinstance(s.command, Free)]
    return list(dict.fromkeys(arcs))


def stop_span(plan: Timeline) -> int:
    """The span that brings a loop's stop value to the host, -1 where there is none."""
    if plan.loop is None or plan.loop.stop is None:
        return -1
    value = plan.graph.outputs[plan.loop.stop]
    for i, span in enumerate(plan.spans):
        command = span.command
        made = command.writes if isinstance(command, Launch) else (command.dst,) if isinstance(command, Copy) else ()
        if any(r.value == value and r.node == HOST for r in made):
            return i
    raise InternalError(f"the plan never brings the stop value {plan.graph.value_names[value]!r} to the host")


def _stream_arcs(plan: Timeline) -> Iterable[Arc]:
    shared = {d.id for d in plan.machine.devices if d.shares_lanes}
    lanes: dict[Lane, list[tuple[float, float, int]]] = {}
    for i, span in enumerate(plan.spans):
        for lane in span.lanes:
            if lane.owner not in shared:
                lanes.setdefault(lane, []).append((span.start, span.finish, i))
    for rows in lanes.values():
        if plan.period is None:
            rows.sort()
            yield from (Arc(a[2], b[2]) for a, b in pairwise(rows))
        elif plan.period > 0:
            # In the steady state a lane runs its spans by phase. A span of a later stage belongs to an earlier turn: distances may be negative.
            phased = sorted((s - (s // plan.period) * plan.period, int(s // plan.period), i) for s, _, i in rows)
            yield from (Arc(a[2], b[2], a[1] - b[1]) for a, b in pairwise(phased))
            yield Arc(phased[-1][2], phased[0][2], phased[-1][1] - phased[0][1] + 1)


def compile_plan(plan: Timeline, join: bool = True, whole: bool = False) -> Program:
    """The program of a plan; `join=False` makes every command a step of its own. whole: a straight plan of tiny tasks may become one step."""
    if whole and (order := one_segment(plan)) is not None:
        return _program_of_one(plan, order)
    if join and (plain := straight(plan)) is not None:
        return Program(plan, plain.steps, plain.arcs, 1, {}, {}, straight=plain)
    arcs = span_arcs(plan)
    shared = {d.id for d in plan.machine.devices if d.shares_lanes}
    has_streams = any(lane.owner not in shared for span in plan.spans for lane in span.lanes)
    # Streams order steps across turns: a step of several lanes' launches could then wait for itself over several turns.
    alone = not join or (plan.loop is not None and has_streams)
    groups = [[i] for i, s in enumerate(plan.spans) if not isinstance(s.command, Free)] if alone else _segments(plan, arcs)
    if join and has_streams:
        groups = _stream_segments(plan, arcs, groups)
    of: dict[int, int] = {}
    for g, group in enumerate(groups):
        of.update((i, g) for i in group)
    steps = _steps(plan, groups)
    joined = list(dict.fromkeys(Arc(of[a], of[b], d) for a, b, d in arcs if of[a] != of[b] or d > 0))
    # A step that waits for itself one turn ago need not wait for itself two turns ago.
    nearest: dict[int, int] = {}
    for a, b, d in joined:
        if a == b:
            nearest[a] = min(d, nearest.get(a, d))
    joined = [arc for arc in joined if arc.before != arc.later or arc.turns == nearest[arc.before]]
    cycle = find_cycle(len(steps), joined)
    if cycle is not None:
        names = " -> ".join(describe(plan, plan.spans[steps[s].spans[0]]) for s in cycle)
        raise InternalError(f"the plan waits for itself: {names}")
    window = 1
    if plan.loop is not None:
        longest = max((s.finish for s in plan.spans), default=0.0)
        window = 2 + int(longest / plan.period) + 1 if plan.period else 2
        # Turns may run ahead of the plan when predictions were wrong; the rings still bound what is alive.
        window = min(max(window, 4, 1 + max(plan.rings.values(), default=0)), 64)
    return Program(plan, steps, tuple(joined), window, carried_values(plan.loop), every_of(plan.loop), of.get(stop_span(plan), -1))


def _steps(plan: Timeline, groups: list[list[int]]) -> tuple[Step, ...]:
    """The steps of spans that stand together."""
    steps: list[Step] = []
    for g, group in enumerate(groups):
        lanes, _, start, finish = plan.spans[group[0]]
        if len(group) == 1:
            steps.append(Step(g, (group[0],), lanes, start, finish - start))
        else:
            spans = [plan.spans[i] for i in group]
            steps.append(Step(g, tuple(group), lanes, min([s[2] for s in spans]), sum([s[3] - s[2] for s in spans])))
    return tuple(steps)


def one_segment(plan: Timeline) -> list[int] | None:
    """The launches of a straight plan in an order that keeps every arc, where one thread does them sooner than several would; else None.

    So it is on one lane, and on several where a task is far shorter than what handing it to another thread costs (Adam, Chandy and Dickson's grain
    size: below it, parallel work is slower than serial). One long task among them has nothing to run beside. Costs that were measured hold what
    dispatching adds to each task, which is not there inside a step: it is taken off again.
    """
    if plan.loop is not None or len(plan.spans) == 0 or plan.loops or plan.prologue:
        return None
    owner = next((s.lanes[0].owner for s in plan.spans if s.lanes), None)
    device = next((d for d in plan.machine.devices if d.id == owner), None)
    if device is None or not device.shares_lanes or device.memory != HOST:
        return None
    spans = plan.spans
    kinds = [type(s[1]) for s in spans]
    if Copy in kinds:
        return None
    launches = [i for i, kind in enumerate(kinds) if kind is Launch]
    rows = {id(s[0]): s[0] for s in [spans[i] for i in launches]}  # spans of a lane share the object, mostly
    if any(len(on) != 1 or on[0].kind != "compute" or on[0].owner != owner for on in rows.values()):
        return None
    start, finish = (np.array([spans[i][k] for i in launches]) for k in (2, 3))
    seconds = finish - start
    if seconds.sum() > COARSE_SECONDS * len(launches):
        return None
    tiny = seconds[seconds <= LONG_SECONDS]
    if len({on[0] for on in rows.values()}) > 1 and not _is_fine(device, tiny, len(launches) - len(tiny)):
        return None
    order: list[int] = np.array(launches)[np.lexsort((finish, start))].tolist()
    return order if _keeps_arcs(plan, order) else _topological(order, span_arcs(plan))


def _is_fine(device: Device, tiny: FloatArray, others: int) -> bool:
    """True if tasks of such lengths are better done by one thread: all but one are far shorter than handing them over."""
    if others > 1 or not len(tiny):
        return False
    mean, limit = float(tiny.mean()), FINE_SHARE * (device.crossing_seconds or CROSSING_SECONDS)
    if mean <= limit:
        return True
    calibration = load(device)
    return calibration is not None and mean - calibration.dispatch_seconds <= limit


def _keeps_arcs(plan: Timeline, order: list[int]) -> bool:
    """True if doing the launches in this order has every value made before it is read, and keeps order-only and reuse edges."""
    graph, spans = plan.graph, plan.spans
    tasks = [spans[i][1].task for i in order]  # type: ignore[union-attr]
    at = np.full(len(graph), -1, dtype=np.int64)
    at[tasks] = np.arange(len(order))
    producer = graph.value_task[graph.input_values]
    reader = np.repeat(at, np.diff(graph.input_start))
    made = producer >= 0
    if (at[producer[made]] >= reader[made]).any():
        return False
    if any(at[a] >= at[b] for a, b in graph.after):
        return False
    if not plan.after:
        return True
    position_of = {i: position for position, i in enumerate(order)}
    return all(position_of[a.before] < position_of[a.later] for a in plan.after if a.before in position_of and a.later in position_of)


def _program_of_one(plan: Timeline, order: list[int]) -> Program:
    spans = [plan.spans[i] for i in order]
    step = Step(0, tuple(order), (Lane(spans[0].lanes[0].owner, 0),), min([s[2] for s in spans]), sum([s[3] - s[2] for s in spans]))
    return Program(plan, (step,), (), 1, {}, {})


def _segments(plan: Timeline, arcs: list[Arc]) -> list[list[int]]:
    commands = [i for i, s in enumerate(plan.spans) if not isinstance(s.command, Free)]
    order = sorted(commands, key=lambda i: (plan.spans[i].start, plan.spans[i].finish, i))
    order = _topological(order, arcs)
    before: dict[int, list[int]] = {i: [] for i in order}
    after: dict[int, list[int]] = {i: [] for i in order}
    for a, b, d in arcs:
        if d == 0:
            before[b].append(a)
            after[a].append(b)
    shared = {d.id for d in plan.machine.devices if d.shares_lanes}

    def joinable(i: int) -> bool:
        span = plan.spans[i]
        plain = isinstance(span.command, Launch) and not isinstance(plan.graph.task_ops[span.command.task], Nested)
        return plain and len(span.lanes) == 1 and span.lanes[0].owner in shared

    return _lane_segments(plan, order, before, after, joinable) if plan.loop is not None else _chains(plan, order, before, after, joinable)


def _phase(plan: Timeline, start: float) -> float:
    return start - (start // plan.period) * plan.period if plan.period else start


def _stream_segments(plan: Timeline, arcs: list[Arc], groups: list[list[int]]) -> list[list[int]]:
    """`groups`, launches that follow each other on a stream joined where that changes nothing: nobody elsewhere waits in the same turn for one that
    is not the last, and none but the first waits for anybody elsewhere (or for those alone for whom the first waits too). So no cycle can come of it:
    whatever a joined launch needs is there when the first one starts."""
    shared = {d.id for d in plan.machine.devices if d.shares_lanes}
    every = every_of(plan.loop)
    spans = plan.spans

    def joinable(i: int) -> bool:
        lanes, command = spans[i].lanes, spans[i].command
        plain = isinstance(command, Launch) and not isinstance(plan.graph.task_ops[command.task], Nested) and command.task not in every
        return plain and len(lanes) == 1 and lanes[0].kind == "compute" and lanes[0].owner not in shared

    waits: dict[int, set[tuple[int, int]]] = {}
    is_awaited: set[int] = set()
    for before, later, turns in arcs:
        if spans[before].lanes != spans[later].lanes:
            if turns == 0:  # what a later turn waits for (room, mostly) can be had at the end of the step as well
                is_awaited.add(before)
            waits.setdefault(later, set()).add((before, turns))

    def slots(i: int) -> list[int]:
        command = spans[i].command
        assert isinstance(command, Launch)
        return [plan.rings.get(r._replace(turn=0), 1) for r in (*command.reads, *command.writes)]

    rows: dict[Lane, list[tuple[int, float, float, int]]] = {}
    for i in filter(joinable, (g[0] for g in groups if len(g) == 1)):
        stage = int(spans[i].start // plan.period) if plan.period else 0
        rows.setdefault(spans[i].lanes[0], []).append((stage, spans[i].start, spans[i].finish, i))
    into: dict[int, list[int]] = {}
    for lane, row in rows.items():
        # What lies between on the lane without being joinable parts them.
        whole = sorted((_phase(plan, s.start), s.finish, i) for i, s in enumerate(spans) if lane in s.lanes)
        stage_of = {i: stage for stage, _, _, i in row}
        current: list[int] = []
        for _, _, i in whole:
            if i not in stage_of:
                current = []
                continue
            period = math.lcm(*slots(i), *(n for j in current for n in slots(j)))
            joins = (
                bool(current) and stage_of[current[0]] == stage_of[i] and current[-1] not in is_awaited
                and waits.get(i, set()) <= waits.get(current[0], set()) and period <= MOST_BINDINGS
            )  # fmt: skip
            current = current if joins else []
            current.append(i)
            into[i] = current
    out: list[list[int]] = []
    for group in groups:
        joined = into.get(group[0], group)
        if group[0] == joined[0]:
            out.append(joined)
    return out


def _chains(
    plan: Timeline, order: list[int], before: dict[int, list[int]], after: dict[int, list[int]], joinable: Callable[[int], bool]
) -> list[list[int]]:
    """A task joins its one predecessor where it is that one's only successor, on the same device."""
    groups: list[list[int]] = []
    group_of: dict[int, int] = {}
    for i in order:
        preds = set(before[i])
        if len(preds) == 1 and joinable(i):
            (p,) = preds
            lane = plan.spans[i].lanes[0]
            if len(set(after[p])) == 1 and joinable(p) and plan.spans[p].lanes[0][::2] == lane[::2]:
                group_of[i] = group_of[p]
                groups[group_of[p]].append(i)
                continue
        group_of[i] = len(groups)
        groups.append([i])
    return groups


def _lane_segments(
    plan: Timeline, order: list[int], before: dict[int, list[int]], after: dict[int, list[int]], joinable: Callable[[int], bool]
) -> list[list[int]]:
    """A task joins the last segment of its lane unless that would make a cycle, or make a long launch wait or be waited for."""
    groups: list[list[int]] = []
    group_of: dict[int, int] = {}
    ancestors: list[int] = []  # bit sets of groups
    seconds: list[float] = []
    crossing: list[bool] = []  # another lane reads what the group has made so far
    tail: dict[tuple[Lane, ...], int] = {}
    for i in order:
        span = plan.spans[i]
        length = span.finish - span.start
        preds = {group_of[p] for p in before[i]}
        into = tail.get(span.lanes) if joinable(i) else None
        if into is not None:
            cycle = any((ancestors[p] >> into) & 1 for p in preds if p != into)
            waits = any(p != into and not (ancestors[into] >> p) & 1 for p in preds)
            if cycle or (crossing[into] and length > LONG_SECONDS) or (waits and seconds[into] > LONG_SECONDS):
                into = None
        if into is None:
            into = len(groups)
            groups.append([])
            ancestors.append(0)
            seconds.append(0.0)
            crossing.append(False)
            if joinable(i):
                tail[span.lanes] = into
        groups[into].append(i)
        group_of[i] = into
        seconds[into] += length
        crossing[into] = crossing[into] or any(plan.spans[b].lanes != span.lanes for b in after[i])
        mask = 0
        for p in preds - {into}:
            mask |= ancestors[p] | (1 << p)
        if mask & ~ancestors[into]:
            ancestors[into] |= mask
            for g in range(len(groups)):
                if (ancestors[g] >> into) & 1:
                    ancestors[g] |= ancestors[into]
    return groups


def _topological(order: list[int], arcs: list[Arc]) -> list[int]:
    """`order`, mended where spans of length 0 share a start: every arc of distance 0 runs forward."""
    import heapq

    rank = {i: r for r, i in enumerate(order)}
    out: dict[int, list[int]] = {i: [] for i in order}
    degree = dict.fromkeys(order, 0)
    for a, b, d in arcs:
        if d == 0:
            out[a].append(b)
            degree[b] += 1
    heap = [rank[i] for i in order if degree[i] == 0]
    heapq.heapify(heap)
    result = []
    while heap:
        i = order[heapq.heappop(heap)]
        result.append(i)
        for b in out[i]:
            degree[b] -= 1
            if degree[b] == 0:
                heapq.heappush(heap, rank[b])
    if len(result) < len(order):
        cycle = find_cycle(max(order) + 1, arcs) or []
        raise InternalError(f"the plan waits for itself: spans {cycle}")
    return result


def describe(plan: Timeline, span: Span) -> str:
    """A span in words: the task, or the value and its way."""
    graph: Graph = plan.graph
    if isinstance(span.command, Launch):
        return graph.task_names[span.command.task]
    if isinstance(span.command, Copy):
        return f"copy of {graph.value_names[span.command.value]} to {span.command.dst.node}"
    return f"free of {graph.value_names[span.command.replica.value]}"
