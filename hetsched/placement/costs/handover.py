"""What a run takes between its tasks: until its threads are there, to hand a step to another thread or stream, and to go on with the next one.

None of it is part of a task, and on a run of some milliseconds it is a tenth of it and more. So traces teach it like the seconds of tasks, as kinds
of their own (`GAP`), and `placement.shared` counts on it. Pure.

It depends on who dispatches. Where a plan asks nothing but the threads of one device they share its steps without a lock; loops, wide launches and
streams are walked under one (`executors.cpu.Crew`), which takes ten times as long for each step: `Way`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.graph.graph import Nested
from hetsched.machine import Device, Machine
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import GAP, device_key, link_key
from hetsched.timeline import Copy, Free, Lane, Launch, Span, Timeline

FloatArray: TypeAlias = NDArray[np.float64]

# Starts and finishes are read from a clock between which a call lies.
CLOCK_SECONDS = 2e-6
# What takes longer is not handing over: a program is built, once.
MOST_SECONDS = 0.05
# Threads beyond this many begin as this one does.
MOST_THREADS = 8


class Way(NamedTuple):
    """How the steps of a plan are dispatched. is_plain: by the threads of one device alone; threads: how many of them there are."""

    is_plain: bool
    threads: int

    def first(self, kind: str, number: int) -> str:
        """The kind of the seconds from the start of a run to the first step of thread `number` of a device."""
        return f"{GAP}: first of {kind} {min(number, MOST_THREADS)}, {min(self.threads, MOST_THREADS)} threads, {self._name}"

    def handed(self, is_from_stream: bool) -> str:
        """The kind of the seconds from the last of what an idle thread or stream waited for, made elsewhere, to its start."""
        return f"{GAP}: handed by a {'stream' if is_from_stream else 'thread'}, {self._name}"

    @property
    def next(self) -> str:
        """The kind of the seconds between two steps of a thread that had the second one to do already, or made it ready itself."""
        return f"{GAP}: next, {self._name}"

    @property
    def _name(self) -> str:
        return "plain" if self.is_plain else "walked"


# The kind of the seconds until a stream, or a copy engine, does the first step that it is given.
STREAM_FIRST = f"{GAP}: first of a stream"


def way_of(machine: Machine, lanes: Iterable[tuple[Lane, ...]], has_loops: bool) -> Way:
    """How a plan with launches and copies on these lanes is dispatched (those of the bodies of its loops among them, as sets of one lane)."""
    used = {lane for on in lanes for lane in on}
    is_plain = not has_loops and len({lane.owner for lane in used}) == 1 and all(len(on) == 1 for on in lanes)
    shared = {d.id for d in machine.devices if d.shares_lanes}
    return Way(is_plain and {lane.owner for lane in used} <= shared, len({lane for lane in used if lane.owner in shared}))


def body_lanes(plan: Timeline) -> Iterator[tuple[Lane, ...]]:
    """The lanes that the plan of a loop's body names, one by one; of loops in it too."""
    for span in (*plan.prologue, *plan.spans, *plan.epilogue):
        if not (isinstance(span.command, Launch) and span.command.task in plan.loops):
            yield from ((lane,) for lane in span.lanes)
    for _, inner in plan.nested:
        yield from body_lanes(inner)


def handovers(trace: Timeline, plan: Timeline | None = None) -> list[Lesson]:
    """What the outermost steps of a trace teach of what lies between them. plan: what was followed, for what reuse of memory made steps wait."""
    kinds = list(map(type, map(itemgetter(1), trace.spans)))
    spans = list(trace.spans) if Free not in kinds else [s for s, kind in zip(trace.spans, kinds, strict=True) if kind is not Free]
    if not spans:
        return []
    found: Mapping[tuple[str, str], Sequence[float] | FloatArray]
    is_loop = [False] * len(spans)
    if trace.graph.has_loops:
        is_loop = [isinstance(s.command, Launch) and isinstance(trace.graph.task_ops[s.command.task], Nested) for s in spans]
        lanes = [s.lanes for s, inside in zip(spans, is_loop, strict=True) if not inside]
    else:
        lanes = [on for on in trace.lane_sets if on]
    # A plan tells them by one turn, a trace by all.
    lanes += [on for _, body in (trace if plan is None else plan).nested for on in body_lanes(body)]
    way = way_of(trace.machine, lanes, bool(trace.loops))
    keys = {d.id: device_key(d) for d in trace.machine.devices} | {x.id: link_key(x, trace.machine) for x in trace.machine.links}
    if way.is_plain and Copy not in kinds and not any(is_loop):
        key = keys.get(spans[0].lanes[0].owner, "")
        found = {(key, kind): x for kind, x in _plain_gaps(trace, spans, plan, way).items()} if key else {}
    else:
        found = _gaps(trace, spans, is_loop, plan, way, keys)
    return [Lesson(key, GAP, kind, 1, "", 0.0, 0.0, float(np.median(x)), 0.0, len(x)) for (key, kind), x in found.items() if len(x)]


def _gaps(
    trace: Timeline, spans: list[Span], is_loop: list[bool], plan: Timeline | None, way: Way, keys: Mapping[str, str]
) -> dict[tuple[str, str], list[float]]:
    """(device or link, kind) -> seconds, of any spans."""
    found: dict[tuple[str, str], list[float]] = {}
    shared = {d.id for d in trace.machine.devices if d.shares_lanes}
    waits = _waits(trace, spans, plan)
    until: dict[Lane, tuple[float, int]] = {}
    for number in sorted(range(len(spans)), key=lambda i: (spans[i].start, spans[i].finish)):
        span = spans[number]
        key = keys.get(span.lanes[0].owner, "") if len(span.lanes) == 1 else ""
        if key and not is_loop[number]:
            kind, seconds = _gap(span, spans, waits[number], until.get(span.lanes[0]), way, shared)
            if kind and 0 < seconds < MOST_SECONDS:
                found.setdefault((key, kind), []).append(seconds)
        for lane in span.lanes:
            if lane not in until or span.finish > until[lane][0]:
                until[lane] = span.finish, number
    return found


def _plain_gaps(trace: Timeline, spans: list[Span], plan: Timeline | None, way: Way) -> dict[str, FloatArray]:
    """Kind -> seconds, of launches each on one thread of one device: what `_gap` says of each, by arrays. 0.5 us a span."""
    graph, n = trace.graph, len(spans)
    lanes, commands, starts, finishes = zip(*spans, strict=True)
    start, finish = np.array(starts), np.array(finishes)
    at = np.full(len(graph), -1, dtype=np.int64)  # task -> its span
    at[list(map(itemgetter(0), commands))] = np.arange(n)
    before, later = [at[graph.value_task[graph.input_values]]], [np.repeat(at, np.diff(graph.input_start))]
    before[0][graph.value_task[graph.input_values] < 0] = -1
    edges = list(graph.after)
    if plan is not None:
        edges += [(a.task, b.task) for e in plan.after if not e.turns and (a := _launch(plan, e.before)) and (b := _launch(plan, e.later))]
    if edges:
        pairs = at[np.array(edges, dtype=np.int64)]
        before.append(pairs[:, 0])
        later.append(pairs[:, 1])
    waited, waits = np.concatenate(before), np.concatenate(later)
    is_known = (waited >= 0) & (waits >= 0)
    waited, waits = waited[is_known], waits[is_known]
    there = np.zeros(n)  # when the last of what each waits for was there
    np.maximum.at(there, waits, finish[waited])
    is_waiting = np.bincount(waits, minlength=n) > 0
    order = np.lexsort((finish, start))
    number = {on: i for i, on in enumerate(dict.fromkeys(lanes))}
    row = np.fromiter(map(number.__getitem__, lanes), np.int64, n)[order]
    found: dict[str, FloatArray] = {}
    following, handed = [], []
    for on, i in number.items():
        mine = order[row == i]
        first = int(mine[0])
        if not is_waiting[first]:
            found[way.first(on[0].kind, on[0].number)] = start[first : first + 1]
        free, mine = np.maximum.accumulate(finish[mine])[:-1], mine[1:]
        began, ready = start[mine], there[mine]
        told = began >= ready - CLOCK_SECONDS  # others were handed over ahead of what they wait for
        is_next = free >= ready - CLOCK_SECONDS
        following.append((began - np.maximum(free, ready))[told & is_next])
        handed.append((began - ready)[told & ~is_next])
    found[way.next], found[way.handed(False)] = np.concatenate(following), np.concatenate(handed)
    return {kind: x[(x > 0) & (x < MOST_SECONDS)] for kind, x in found.items()}


def _launch(plan: Timeline, span: int) -> Launch | None:
    command = plan.spans[span].command
    return command if isinstance(command, Launch) else None


def _gap(span: Span, spans: list[Span], waits: list[int], until: tuple[float, int] | None, way: Way, shared: set[str]) -> tuple[str, float]:
    """(its kind, its seconds) of what lies before a span; "" where it says nothing. until: when its lane was free, and by which span."""
    lane, is_thread = span.lanes[0], span.lanes[0].owner in shared
    last = max(waits, key=lambda i: spans[i].finish, default=-1)
    there = spans[last].finish if last >= 0 else 0.0
    if until is None:
        if not is_thread:
            return STREAM_FIRST, span.start - there
        return (way.first(lane.kind, lane.number), span.start) if last < 0 else ("", 0.0)
    free, before = until
    if span.start < there - CLOCK_SECONDS:  # it was handed over ahead of what it waits for
        return "", 0.0
    if free >= there - CLOCK_SECONDS or before == last:
        return way.next, span.start - max(free, there)
    return way.handed(not any(on.owner in shared for on in spans[last].lanes)), span.start - there


def _waits(trace: Timeline, spans: list[Span], plan: Timeline | None) -> list[list[int]]:
    """For each span those that it waits for: by data, order, and reuse of memory."""
    maker: dict[tuple[int, str], int] = {}
    number_of: dict[object, int] = {}
    for i, span in enumerate(spans):
        command = span.command
        number_of[_name(command)] = i
        for replica in command.writes if isinstance(command, Launch) else (command.dst,) if isinstance(command, Copy) else ():
            maker[replica.value, replica.node] = i
    out: list[list[int]] = []
    for span in spans:
        command = span.command
        reads = command.reads if isinstance(command, Launch) else (command.src,) if isinstance(command, Copy) else ()
        out.append([maker[r.value, r.node] for r in reads if (r.value, r.node) in maker])
    pairs: list[tuple[object, object]] = [((a,), (b,)) for a, b in trace.graph.after]
    if plan is not None:
        pairs += [(_name(plan.spans[e.before].command), _name(plan.spans[e.later].command)) for e in plan.after if not e.turns]
    for before, later in pairs:
        if before in number_of and later in number_of:
            out[number_of[later]].append(number_of[before])
    return out


def _name(command: object) -> object:
    if isinstance(command, Launch):
        return (command.task,)
    return (command.value, command.src.node, command.dst.node) if isinstance(command, Copy) else None


class Handover:
    """What is known of it on a machine. known: (device or link, kind) -> seconds."""

    def __init__(self, machine: Machine, known: Mapping[tuple[str, str], float]) -> None:
        self.machine = machine
        self.known = known
        self.keys = {d.id: device_key(d) for d in machine.devices} | {x.id: link_key(x, machine) for x in machine.links}

    def first(self, way: Way, device: Device, kind: str, number: int) -> float:
        """From the start of a run to the first step of a thread. What is not known of so many threads is taken from the numbers next to it."""
        for threads in sorted(range(1, MOST_THREADS + 1), key=lambda k: (abs(k - way.threads), k)):
            found = self._of(device.id, way._replace(threads=threads).first(kind, number))
            if found is not None:
                return found
        return device.crossing_seconds if kind != "compute" or number else 0.0

    def handed(self, way: Way, owner: str, is_from_stream: bool) -> float:
        """From the last of what an idle thread, stream or copy engine of `owner` waits for to its start."""
        found = self._of(owner, way.handed(is_from_stream))
        return found if found is not None else next((d.crossing_seconds for d in self.machine.devices if d.id == owner and d.shares_lanes), 0.0)

    def next(self, way: Way, owner: str) -> float:
        """Between two steps of a thread or stream of `owner`."""
        return self._of(owner, way.next) or 0.0

    def stream(self, owner: str) -> float:
        """Until a stream or copy engine does the first step that it is given."""
        return self._of(owner, STREAM_FIRST) or 0.0

    def _of(self, owner: str, kind: str) -> float | None:
        return self.known.get((self.keys.get(owner, ""), kind))


def handover_of(costs: object, machine: Machine) -> Handover:
    """What a cost model knows of it; where it does not say, what the machine's devices state."""
    ask: Callable[[], Handover] | None = getattr(costs, "handover", None)
    return ask() if ask is not None else Handover(machine, {})
