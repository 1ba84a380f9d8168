"""What a trace teaches: for each kind of task, and for each link, the seconds of a launch or copy as they were measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter
from statistics import median
from typing import Any

import numpy as np

from hetsched.graph.alike import alike
from hetsched.placement.costs.history import Lesson
from hetsched.placement.costs.kinds import BEGIN, COPY, TURN, Kind, Kinds, begin_kind, device_key, is_learned, link_key, turn_kind
from hetsched.timeline import Copy, Lane, Launch, Timeline

# Turns of a loop teach what a turn takes from so many on.
LEAST_TURNS = 4
# So many launches of a kind in one run are many. Of fewer, but some, one is left out that took so many times what the others took: a kernel was built
# meanwhile, or memory was found for it.
MANY, SOME, FAR = 10, 4, 5.0


def lessons(trace: Timeline, plan: Timeline | None = None) -> list[Lesson]:
    """One lesson for each kind on each device (or link), from the spans that were measured. plan: what was followed, for loops of a few turns.

    Of a loop the first turn is left out where there are more (it binds arrays, and touches memory first), and turns of a smaller batch are.
    """
    found: dict[tuple[str, str, int], tuple[Kind, list[float]]] = {}
    first: dict[tuple[str, str, int], tuple[Kind, list[float]]] = {}  # of launches that did more than others will
    kinds = Kinds()
    for owner in _timelines(trace):
        if owner.loop is None and not owner.attributed and not owner.cold and _teach_launches(owner, found, kinds):
            continue
        like, is_straight, attributed = alike(owner.graph).kind.tolist(), owner.loop is None, owner.attributed
        # (kind of a task in its graph, its lanes, its width), or (value, lanes, 0) -> what spans like it have taught.
        rows: dict[tuple[int, Any, int], list[float]] = {}
        for i, (lanes, command, start, finish) in enumerate(owner.spans):
            if attributed and i in attributed:
                continue
            if owner.cold and i in owner.cold:
                named = _named(owner, lanes, command, kinds) if isinstance(command, Launch) else None
                if named is not None:
                    first.setdefault((named[0], named[1].text, named[2]), (named[1], []))[1].append(finish - start)
                continue
            if type(command) is Launch:
                if not is_straight and _is_other(owner, command.turn):
                    continue
                # Spans of a straight plan share their lanes as objects, mostly.
                row = like[command.task], id(lanes) if is_straight else lanes, command.width
            elif type(command) is Copy:
                row = -1 - command.value, lanes, 0
            else:
                continue
            known = rows.get(row)
            if known is None:
                named = _named(owner, lanes, command, kinds)
                known = rows[row] = [] if named is None else found.setdefault((named[0], named[1].text, named[2]), (named[1], []))[1]
            known.append(finish - start)
    out = [_lesson(key, width, kind, seconds) for (key, _, width), (kind, seconds) in found.items()]
    out += [_lesson(at[0], at[2], kind, seconds)._replace(first=True) for at, (kind, seconds) in first.items() if at not in found]
    return [*out, *_loops(trace, plan)]


def _teach_launches(trace: Timeline, found: dict[tuple[str, str, int], tuple[Kind, list[float]]], kinds: Kinds) -> bool:
    """Add what a straight trace of launches alone teaches, by arrays: 0.4 us a span. False where there is something else in it."""
    if set(map(type, map(itemgetter(1), trace.spans))) != {Launch}:
        return False
    lanes, commands, starts, finishes = zip(*trace.spans, strict=True)
    sets = {id(on): number for number, on in enumerate(trace.lane_sets)}
    n = len(commands)
    like = alike(trace.graph).kind[np.fromiter(map(itemgetter(0), commands), np.int64, n)]
    row = np.fromiter(map(sets.__getitem__, map(id, lanes)), np.int64, n)
    width = np.fromiter(map(itemgetter(4), commands), np.int64, n)
    seconds = np.array(finishes) - np.array(starts)
    _, one, group = np.unique((like * len(sets) + row) * (int(width.max()) + 1) + width, return_index=True, return_inverse=True)
    sort = np.argsort(group.reshape(-1), kind="stable")
    parts = np.split(seconds[sort], np.cumsum(np.bincount(group.reshape(-1)))[:-1])
    for i, part in sorted(zip(one.tolist(), parts, strict=True), key=itemgetter(0)):
        named = _named(trace, lanes[i], commands[i], kinds)
        if named is not None:
            found.setdefault((named[0], named[1].text, named[2]), (named[1], []))[1].extend(part.tolist())
    return True


def _timelines(trace: Timeline) -> Iterator[Timeline]:
    """The trace, and those of the bodies of its loops and of the branches that ran, those in them too."""
    yield trace
    for _, body in trace.nested:
        yield from _timelines(body)


def _named(owner: Timeline, lanes: tuple[Lane, ...], command: Launch | Copy, kinds: Kinds) -> tuple[str, Kind, int] | None:
    """(device or link, kind, width) under which a span teaches; None where it does not."""
    if isinstance(command, Launch):
        if not is_learned(owner.graph, command.task) or not lanes:
            return None
        key = device_key(owner.machine.device(lanes[0].owner))
        return (key, kinds.of(owner.graph, command.task), command.width) if key else None
    key = link_key(owner.machine.link(command.src.node, command.dst.node), owner.machine)
    nbytes = float(owner.graph.value_nbytes[command.value])
    return (key, Kind(COPY, f"{COPY} {nbytes:.0f}", "uint8", 0.0, nbytes), 1) if key else None


def _loops(trace: Timeline, plan: Timeline | None) -> Iterator[Lesson]:
    """Of each loop that ran on one device of threads: what beginning and ending it took, and, where its turns ran one after another, the seconds from

    turn to turn, dispatching and all; tasks that run every k turns not counted. Turns of a loop of few overlap, or differ in their batch: what it
    takes beside what was planned for them is taken for its beginning.
    """
    if not trace.loops:
        return
    planned = {} if plan is None else {s.command.task: s.finish - s.start for s in plan.spans if isinstance(s.command, Launch)}
    for span in trace.spans:
        body = trace.loops.get(span.command.task) if isinstance(span.command, Launch) else None
        if body is not None and body.loop is None:
            yield from _loops(body, None)
        if body is None or body.loop is None:
            continue
        inner = plan.loops.get(span.command.task) if plan is not None and isinstance(span.command, Launch) else None
        yield from _loops(body, inner)
        if body.loop.stop is not None or body.loops:
            continue
        yield from _beside_graphs(span.finish - span.start, body)
        owners = {lanes[0].owner for lanes in {s.lanes for s in (*body.spans, *body.prologue)} if lanes}
        if len(owners) != 1 or any(isinstance(s.command, Copy) for s in body.spans):
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
        if body.turns >= LEAST_TURNS or inner is None:
            more = span.finish - span.start - body.turns * median(steady) - _seldom(body)
        else:
            assert isinstance(span.command, Launch)
            more = span.finish - span.start - (planned[span.command.task] - inner.begin_seconds)
        yield _lesson(device_key(device), 1, Kind(BEGIN, begin_kind(body.graph, body.turns), "", 0.0, 0.0), [max(more, 0.0)])


def _beside_graphs(seconds: float, body: Timeline) -> Iterator[Lesson]:
    """What a loop of `seconds` on one stream of a device that takes turns as graphs took beside its launches: capturing turns, handing them over."""
    assert body.loop is not None
    owners = {s.lanes[0].owner for s in body.spans if s.lanes and isinstance(s.command, Launch)}
    device = body.machine.device(owners.pop()) if len(owners) == 1 else None
    if device is None or device.replay_seconds is None or not device_key(device) or body.turns < LEAST_TURNS:
        return
    turns: dict[int, float] = {}
    for i, (_, command, start, finish) in enumerate(body.spans):
        if i not in body.attributed and isinstance(command, Launch) and command.task not in body.loop.seldom and not _is_other(body, command.turn):
            turns[command.turn] = turns.get(command.turn, 0.0) + finish - start
    if turns:
        more = seconds - body.turns * median(turns.values()) - _seldom(body)
        yield _lesson(device_key(device), 1, Kind(BEGIN, begin_kind(body.graph, body.turns), "", 0.0, 0.0), [max(more, 0.0)])


def _seldom(body: Timeline) -> float:
    """Seconds of all launches of tasks that do not run every turn, by those that the trace has kept."""
    assert body.loop is not None
    every = body.loop.seldom
    if not every:
        return 0.0
    found: dict[int, list[float]] = {}
    for _, command, start, finish in body.spans:
        if isinstance(command, Launch) and command.task in every:
            found.setdefault(command.task, []).append(finish - start)
    return sum(-(-body.turns // every[task]) * median(seconds) for task, seconds in found.items())


def _steady(body: Timeline) -> tuple[list[float], bool]:
    """Seconds of the last turns, where there are many (what is hot has been compiled by then); True where they ran one after another."""
    assert body.loop is not None
    ends: dict[int, list[float]] = {}
    for _, command, start, finish in body.spans:
        at = ends.get(command.turn)  # type: ignore[union-attr]
        if at is None:
            ends[command.turn] = [start, finish]  # type: ignore[union-attr]
        else:
            if start < at[0]:
                at[0] = start
            if finish > at[1]:
                at[1] = finish
    turns = sorted(ends)[len(ends) // 2 :]
    pairs = [(a, b) for a, b in pairwise(turns) if b == a + 1 and not body.loop.is_remainder(b)]
    # What runs every k turns is no part of a turn: it is counted by itself. (Where it runs every other turn there is no turn without it.)
    seldom = [k for k in body.loop.every.values() if k > 1]
    usual = [(a, b) for a, b in pairs if all(b % k for k in seldom)]
    pairs = usual if len(usual) >= LEAST_TURNS else pairs
    in_line = all(ends[b][0] >= ends[a][1] for a, b in pairs)
    return [ends[b][1] - ends[a][1] for a, b in pairs] or [finish - start for start, finish in (ends[t] for t in turns)], in_line and bool(pairs)


def _is_other(owner: Timeline, turn: int) -> bool:
    """True for turns of a loop that are not like the others: the first of several, and those of a smaller batch."""
    return owner.loop is not None and ((turn == 0 and owner.turns > 1) or owner.loop.is_remainder(turn))


def _lesson(device: str, width: int, kind: Kind, seconds: list[float]) -> Lesson:
    """Of many launches the mean of the middle half: the others were interrupted, or lucky. The spread between runs tells of interruptions."""
    n = len(seconds)
    kept = sorted(seconds)
    if n >= MANY:
        kept = kept[n // 4 : n - n // 4]
    elif n >= SOME and kept[-1] > FAR * median(kept):
        kept = kept[:-1]
    mean = sum(kept) / len(kept)
    spread = math.sqrt(sum((x - mean) ** 2 for x in kept) / len(kept))
    return Lesson(device, kind.op, kind.text, width, kind.dtype, kind.flops, kind.nbytes, mean, spread, n)
