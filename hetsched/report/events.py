"""A timeline as flat events, which every report draws: the turns of a loop's body are set out one by one, at the time they run.

The plan of a body holds turn 0 and a period; its turn i begins i periods later. The trace of a body holds the turns it kept, at their own times.
Inside a loop only as many turns as the caller asks for are set out; totals over all of them are `busy_seconds` and `copy_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hetsched.graph.graph import Loop
from hetsched.timeline import Copy, Free, Lane, Launch, Span, Timeline

ALL_TURNS = 1 << 60


class Event(NamedTuple):
    """One command on its lanes, seconds from the start of the run.

    kind: "launch", "loop" or "copy". name: task or value, inside a loop with the loop's name before it. loop: the innermost loop's name, "" outside.
    span: the span it came from; timeline: the one that holds it.
    """

    lanes: tuple[Lane, ...]
    kind: str
    name: str
    op: str
    loop: str
    turn: int
    start: float
    finish: float
    nbytes: int
    span: Span
    timeline: Timeline

    @property
    def seconds(self) -> float:
        return self.finish - self.start


def events(timeline: Timeline, turns: int = ALL_TURNS) -> list[Event]:
    """Every launch, loop and copy by start. Of each loop at most the first `turns` turns."""
    return sorted(_walk(timeline, "", "", 0.0, turns), key=lambda e: (e.start, e.finish))


def _walk(timeline: Timeline, prefix: str, loop: str, origin: float, turns: int) -> Iterator[Event]:
    skip = every_of(timeline)
    planned_body = timeline.period is not None and not timeline.measured
    for span in timeline.prologue:
        yield _event(timeline, span, prefix, loop, 0, origin)
    if planned_body:
        origin += length(timeline.prologue)
    for number in range(min(timeline.turns, turns) if planned_body else 1):
        shift = origin + number * (timeline.period or 0.0)
        for span in timeline.spans:
            command = span.command
            if isinstance(command, Free) or (timeline.measured and timeline.loop is not None and command.turn >= turns):
                continue
            turn = command.turn + number
            if turn % skip.get(_task_of(timeline, span), 1):
                continue
            event = _event(timeline, span, prefix, loop, turn, shift)
            yield event
            body = body_of(timeline, span)
            if body is not None:
                yield from _walk(body, event.name + "/", event.name, 0.0 if body.measured else event.start, turns)
    if planned_body:
        origin += timeline.makespan
    for span in timeline.epilogue:
        yield _event(timeline, span, prefix, loop, max(timeline.turns - 1, 0), origin)


def _event(timeline: Timeline, span: Span, prefix: str, loop: str, turn: int, shift: float) -> Event:
    command, graph = span.command, timeline.graph
    start, finish = span.start + shift, span.finish + shift
    if isinstance(command, Launch):
        op = graph.task_ops[command.task]
        kind = "loop" if isinstance(op, Loop) else "launch"
        return Event(span.lanes, kind, prefix + graph.task_names[command.task], op.name, loop, turn, start, finish, 0, span, timeline)
    assert isinstance(command, Copy)
    name, nbytes = graph.value_names[command.value], int(graph.value_nbytes[command.value])
    return Event(span.lanes, "copy", prefix + name, "copy", loop, turn, start, finish, nbytes, span, timeline)


def _task_of(timeline: Timeline, span: Span) -> int:
    """The task that a span launches, or whose value it copies; -1: an input of the graph."""
    command = span.command
    if isinstance(command, Launch):
        return command.task
    return int(timeline.graph.value_task[command.value]) if isinstance(command, Copy) else -1


def body_of(timeline: Timeline, span: Span) -> Timeline | None:
    """The timeline of the body, where `span` launches a loop that has one."""
    return timeline.loops.get(span.command.task) if isinstance(span.command, Launch) else None


def length(spans: Sequence[Span]) -> float:
    """The last finish."""
    return max((s.finish for s in spans), default=0.0)


def every_of(timeline: Timeline) -> dict[int, int]:
    """Task number -> k for the tasks of a body's plan that run every k turns."""
    if timeline.loop is None:
        return {}
    return {timeline.graph.task_index[name]: k for name, k in timeline.loop.every.items() if name in timeline.graph.task_index}


def _runs(body: Timeline, span: Span, turns: int) -> int:
    """How often a span of a body runs in `turns` turns."""
    return -(-turns // every_of(body).get(_task_of(body, span), 1))


def _identity(span: Span) -> tuple[object, ...]:
    """What stays the same of a span from turn to turn."""
    command = span.command
    if isinstance(command, Launch):
        return (command.task,)
    return (command.value, command.src.node, command.dst.node) if isinstance(command, Copy) else ()


def _weights(timeline: Timeline) -> list[float]:
    """For each span how often it stands for: in the plan of a body, every turn; in the trace of a body, the turns that were not kept as well."""
    found = [s for s in timeline.spans if not isinstance(s.command, Free)]
    if timeline.loop is None:
        return [1.0] * len(found)
    if not timeline.measured:
        return [float(_runs(timeline, s, timeline.turns)) if timeline.period is not None else 1.0 for s in found]
    kept: dict[tuple[object, ...], int] = {}
    for span in found:
        kept[_identity(span)] = kept.get(_identity(span), 0) + 1
    turns = {s.command.turn for s in found if not isinstance(s.command, Free)}
    every = every_of(timeline)
    out = []
    for span in found:
        k = every.get(_task_of(timeline, span), 1)
        seen = kept[_identity(span)]
        # What runs once a loop (the copy of an invariant) is seen in one turn of many, and stands for itself.
        each_turn = seen >= sum(t % k == 0 for t in turns)
        out.append(_runs(timeline, span, timeline.turns) / seen if each_turn else 1.0)
    return out


def busy_seconds(timeline: Timeline) -> dict[Lane, float]:
    """Lane -> seconds in which a command ran on it; every turn of every loop counted, the time a loop only holds a lane not."""
    out: dict[Lane, float] = {}
    for owner, span, repeats in counted(timeline):
        if body_of(owner, span) is None:
            for lane in span.lanes:
                out[lane] = out.get(lane, 0.0) + (span.finish - span.start) * repeats
    return out


def counted(timeline: Timeline, repeats: float = 1.0) -> Iterator[tuple[Timeline, Span, float]]:
    """(timeline, span, how often it ran) for every launch and copy, bodies of loops included, without setting out the turns."""
    found = [s for s in timeline.spans if not isinstance(s.command, Free)]
    for span, weight in zip(found, _weights(timeline), strict=True):
        n = repeats * weight
        yield timeline, span, n
        body = body_of(timeline, span)
        if body is not None:
            yield from counted(body, n)
    yield from ((timeline, span, repeats) for span in (*timeline.prologue, *timeline.epilogue))


def merged(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals as disjoint ones, ascending."""
    out: list[tuple[float, float]] = []
    for start, finish in sorted(i for i in intervals if i[1] > i[0]):
        if out and start <= out[-1][1]:
            if finish > out[-1][1]:
                out[-1] = (out[-1][0], finish)
        else:
            out.append((start, finish))
    return out
