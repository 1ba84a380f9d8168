"""A timeline as flat events, which every report draws: the turns of a loop's body are set out one by one, at the time they run.

The plan of a body holds turn 0 and a period; its turn i begins i periods later. The trace of a body holds the turns it kept, at their own times.
Inside a loop only as many turns as the caller asks for are set out; `totals` and `busy_seconds` count all of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hetsched.graph.graph import Nested
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
    skip = timeline.loop.seldom if timeline.loop is not None else {}
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
                yield from _walk(body, f"{event.name}/{body.prefix}", event.name, 0.0 if body.measured else event.start, turns)
    if planned_body:
        origin += timeline.makespan
    for span in timeline.epilogue:
        yield _event(timeline, span, prefix, loop, max(timeline.turns - 1, 0), origin)


def _event(timeline: Timeline, span: Span, prefix: str, loop: str, turn: int, shift: float) -> Event:
    command, graph = span.command, timeline.graph
    start, finish = span.start + shift, span.finish + shift
    if isinstance(command, Launch):
        op = graph.task_ops[command.task]
        kind = "loop" if isinstance(op, Nested) else "launch"
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
    """The timeline of the body, where `span` launches a loop that has one; of an if that of the branch that has run, or counts most in the plan."""
    body = timeline.loops.get(span.command.task) if isinstance(span.command, Launch) else None
    return body.likeliest if body is not None else None


def length(spans: Sequence[Span]) -> float:
    """The last finish."""
    return max((s.finish for s in spans), default=0.0)


class Total(NamedTuple):
    """All spans of one task, or of one copy, on the same lanes: how often they ran and the seconds that took, every turn of every loop counted.

    timeline, span: one of them. loop: the names of the loops around it, `outer/inner`, "" outside.
    """

    timeline: Timeline
    span: Span
    loop: str
    times: float
    seconds: float


_known_totals: weakref.WeakKeyDictionary[Timeline, tuple[Total, ...]] = weakref.WeakKeyDictionary()


def totals(timeline: Timeline) -> tuple[Total, ...]:
    """What ran, loops and the tasks of their bodies included, without setting out the turns. One pass, made once for a timeline."""
    found = _known_totals.get(timeline)
    if found is None:
        found = _known_totals[timeline] = tuple(_totals(timeline, "", 1.0))
    return found


def _totals(timeline: Timeline, loop: str, repeats: float) -> Iterator[Total]:
    groups: dict[Any, list[Any]] = {}  # what is the same from turn to turn, and its lanes -> [one of the spans, how many, their seconds]
    turns: set[int] = set()
    for span in timeline.spans:
        lanes, command, start, finish = span
        key: Any
        if isinstance(command, Launch):
            key = command.task, lanes
        elif isinstance(command, Copy):
            key = command.value, command.src.node, command.dst.node, lanes
        else:
            continue
        turns.add(command.turn)
        group = groups.get(key)
        if group is None:
            groups[key] = [span, 1, finish - start]
        else:
            group[1] += 1
            group[2] += finish - start
    seen: dict[Any, int] = {}  # on whatever lanes
    for key, (_, n, _) in groups.items():
        seen[key[:-1]] = seen.get(key[:-1], 0) + n
    every = timeline.loop.seldom if timeline.loop is not None else {}
    for key, (span, n, seconds) in groups.items():
        k = every.get(_task_of(timeline, span), 1) if every else 1
        weight = repeats * _weight(timeline, k, seen[key[:-1]], turns)
        yield Total(timeline, span, loop, n * weight, seconds * weight)
        body = body_of(timeline, span)
        if body is not None:
            name = timeline.prefix + timeline.graph.task_names[span.command.task]
            yield from _totals(body, f"{loop}/{name}" if loop else name, n * weight)
    yield from (Total(timeline, span, loop, repeats, repeats * (span.finish - span.start)) for span in (*timeline.prologue, *timeline.epilogue))


def _weight(timeline: Timeline, every: int, seen: int, turns: set[int]) -> float:
    """How often a span stands for itself: in the plan of a body, for every turn; in the trace of one, for turns that were not kept as well.

    every: it runs in every so many turns. seen: how many spans there are of it. turns: those of which there are spans.
    """
    runs = -(-timeline.turns // every)
    if timeline.loop is None:
        return 1.0
    if not timeline.measured:
        return float(runs) if timeline.period is not None else 1.0
    # What runs once a loop (the copy of an invariant) is seen in one turn of many, and stands for itself.
    expected = len(turns) if every == 1 else sum(t % every == 0 for t in turns)
    return runs / seen if seen >= expected else 1.0


def busy_seconds(timeline: Timeline) -> dict[Lane, float]:
    """Lane -> seconds in which a command ran on it; every turn of every loop counted, the time a loop only holds a lane not."""
    out: dict[Lane, float] = {}
    for total in totals(timeline):
        if body_of(total.timeline, total.span) is None:
            for lane in total.span.lanes:
                out[lane] = out.get(lane, 0.0) + total.seconds
    return out


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
