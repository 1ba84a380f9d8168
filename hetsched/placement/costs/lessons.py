"""What a trace teaches: for each kind of task, and for each link, the seconds of a launch or copy as they were measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from hetsched.graph.alike import alike
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import BEGIN, COPY, TURN, Kind, Kinds, begin_kind, device_key, is_learned, link_key, turn_kind
from hetsched.timeline import Command, Copy, Free, Lane, Launch, Timeline

# Turns of a loop teach what a turn takes from so many on.
LEAST_TURNS = 4


def lessons(trace: Timeline) -> list[Lesson]:
    """One lesson for each kind on each device (or link), from the spans that were measured.

    Of a loop the first turn is left out where there are more (it binds arrays, and touches memory first), and turns of a smaller batch are.
    """
    found: dict[tuple[str, str, int], tuple[Kind, list[float]]] = {}
    kinds = Kinds()
    for owner in _timelines(trace):
        like = alike(owner.graph).kind.tolist() if owner.loop is None else []
        # (kind of a task in its graph, its lanes, its width) -> what launches like it have taught: in a straight plan every one of them counts.
        rows: dict[tuple[int, int, int], list[float]] = {}
        for i, (lanes, command, start, finish) in enumerate(owner.spans):
            if owner.attributed and i in owner.attributed:
                continue
            row = None
            if type(command) is Launch and like:
                row = like[command[0]], id(lanes), command[4]
                known = rows.get(row)
                if known is not None:
                    known.append(finish - start)
                    continue
            named = _named(owner, lanes, command, kinds)
            if named is None:
                continue
            key, kind, width = named
            known = found.setdefault((key, kind.text, width), (kind, []))[1]
            known.append(finish - start)
            if row is not None:
                rows[row] = known
    return [*(_lesson(key, width, kind, seconds) for (key, _, width), (kind, seconds) in found.items()), *_loops(trace)]


def _timelines(trace: Timeline) -> Iterator[Timeline]:
    """The trace, and those of the bodies of its loops, loops in loops too."""
    yield trace
    for body in trace.loops.values():
        yield from _timelines(body)


def _named(owner: Timeline, lanes: tuple[Lane, ...], command: Command, kinds: Kinds) -> tuple[str, Kind, int] | None:
    """(device or link, kind, width) under which a span teaches; None where it does not."""
    if isinstance(command, Launch):
        if not is_learned(owner.graph, command.task) or not lanes or _is_other(owner, command.turn):
            return None
        key = device_key(owner.machine.device(lanes[0].owner))
        return (key, kinds.of(owner.graph, command.task), command.width) if key else None
    if isinstance(command, Copy):
        key = link_key(owner.machine.link(command.src.node, command.dst.node), owner.machine)
        nbytes = float(owner.graph.value_nbytes[command.value])
        return (key, Kind(COPY, f"{COPY} {nbytes:.0f}", "uint8", 0.0, nbytes), 1) if key else None
    return None


def _loops(trace: Timeline) -> Iterator[Lesson]:
    """Of each loop that ran on one device of threads: what beginning and ending it took, and, where its turns ran one after another, the seconds from

    turn to turn, dispatching and all.
    """
    for span in trace.spans:
        body = trace.loops.get(span.command.task) if isinstance(span.command, Launch) else None
        if body is None or body.loop is None:
            continue
        yield from _loops(body)
        owners = {lane.owner for s in (*body.spans, *body.prologue) for lane in s.lanes}
        if len(owners) != 1 or body.loop.stop is not None or body.loops or any(isinstance(s.command, Copy) for s in body.spans):
            continue
        device = body.machine.device(owners.pop())
        if not device.shares_lanes or not device_key(device):
            continue
        steady, in_line = _steady(body)
        if not steady:
            continue
        rest = Kind(TURN, turn_kind(body.graph), "", 0.0, 0.0)
        if in_line and len(steady) >= LEAST_TURNS:
            yield _lesson(device_key(device), 1, rest, steady)
        more = span.finish - span.start - body.turns * median(steady)
        yield _lesson(device_key(device), 1, Kind(BEGIN, begin_kind(body.graph, body.turns), "", 0.0, 0.0), [max(more, 0.0)])


def _steady(body: Timeline) -> tuple[list[float], bool]:
    """Seconds of the last turns, where there are many (what is hot has been compiled by then); True where they ran one after another."""
    assert body.loop is not None
    ends: dict[int, tuple[float, float]] = {}
    for span in body.spans:
        assert not isinstance(span.command, Free)
        start, finish = ends.get(span.command.turn, (math.inf, 0.0))
        ends[span.command.turn] = min(start, span.start), max(finish, span.finish)
    turns = sorted(ends)[len(ends) // 2 :]
    pairs = [(a, b) for a, b in pairwise(turns) if b == a + 1 and not body.loop.is_remainder(b)]
    in_line = all(ends[b][0] >= ends[a][1] for a, b in pairs)
    return [ends[b][1] - ends[a][1] for a, b in pairs] or [finish - start for start, finish in (ends[t] for t in turns)], in_line and bool(pairs)


def _is_other(owner: Timeline, turn: int) -> bool:
    """True for turns of a loop that are not like the others: the first of several, and those of a smaller batch."""
    return owner.loop is not None and ((turn == 0 and owner.turns > 1) or owner.loop.is_remainder(turn))


def _lesson(device: str, width: int, kind: Kind, seconds: list[float]) -> Lesson:
    """Of many launches the mean without the slowest tenth: those were interrupted, which the spread between runs tells."""
    kept = sorted(seconds)[: math.ceil(0.9 * len(seconds))]
    mean = sum(kept) / len(kept)
    spread = math.sqrt(sum((x - mean) ** 2 for x in kept) / len(kept))
    return Lesson(device, kind.op, kind.text, width, kind.dtype, kind.flops, kind.nbytes, mean, spread, len(kept))
