"""A timeline in the Chrome trace-event format, for ui.perfetto.dev and chrome://tracing.

A process per device and per link, a track (thread) per lane. Spans on a track never overlap: what would overlap, which only a clock's jitter or a
fault can bring about, goes to a further track of the lane. Loops have a process of their own, for they hold their lanes while their tasks run there.
Arrows (flow events) lead from a copy's producer over the copy to its readers; counters show the bytes alive in each memory node. Times are
microseconds. Format: "Trace Event Format", the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from hetsched.graph.spec import Spec
from hetsched.report.events import ALL_TURNS, Event, events
from hetsched.timeline import Copy, Free, Lane, Launch, Replica, Timeline

MICRO = 1e6
MOST_TURNS = 200
LOOPS = Lane("loops", 0, "loop")
# Timeline, value, memory node, generation, turn.
_Made: TypeAlias = tuple[int, int, str, int, int]


def perfetto(timeline: Timeline, turns: int = MOST_TURNS) -> dict[str, Any]:
    """The trace as one JSON object. Of each planned loop the first `turns` turns are set out; a trace gives every turn that it kept."""
    found = events(timeline, turns if not timeline.measured else ALL_TURNS)
    tracks = _Tracks(timeline)
    out: list[dict[str, Any]] = []
    placed: list[tuple[Event, int, int]] = []
    for event in found:
        lanes = (LOOPS,) if event.kind == "loop" else event.lanes
        for lane in lanes:
            pid, tid = tracks.place(lane, event)
            placed.append((event, pid, tid))
            out.append(_slice(event, pid, tid))
    out += _flows(placed)
    out += _memory(timeline, found, tracks.counter_pid())
    out += tracks.names()
    other = {
        "tool": "hetsched",
        "kind": "trace" if timeline.measured else "plan",
        "policy": timeline.policy,
        "objective": timeline.objective,
        "makespan_seconds": timeline.makespan,
        "lower_bound_seconds": timeline.bound.seconds if timeline.bound is not None else None,
    }
    return {"traceEvents": out, "displayTimeUnit": "ms", "otherData": other}


def perfetto_text(timeline: Timeline, turns: int = MOST_TURNS) -> str:
    """`perfetto` as the text of a file."""
    return json.dumps(perfetto(timeline, turns), separators=(",", ":"), allow_nan=False) + "\n"


class _Tracks:
    """Process and thread numbers of lanes; a lane gets a further track where a span would overlap the last one on its tracks."""

    def __init__(self, timeline: Timeline) -> None:
        owners = [d.id for d in timeline.machine.devices] + [x.id for x in timeline.machine.links]
        self._pids: dict[str, int] = {owner: i + 1 for i, owner in enumerate(owners)}
        self._title = {d.id: f"{d.id} ({d.name or d.kind})" for d in timeline.machine.devices}
        self._tracks: dict[Lane, list[tuple[int, float]]] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._next: dict[int, int] = {}

    def _pid(self, owner: str) -> int:
        return self._pids.setdefault(owner, len(self._pids) + 1)

    def counter_pid(self) -> int:
        return self._pid("memory")

    def place(self, lane: Lane, event: Event) -> tuple[int, int]:
        pid = self._pid(lane.owner)
        tracks = self._tracks.setdefault(lane, [])
        # Compared in nanoseconds, the resolution the viewers keep.
        start, finish = round(event.start * 1e9), round(event.finish * 1e9)
        for i, (tid, until) in enumerate(tracks):
            if until <= start:
                tracks[i] = (tid, finish)
                return pid, tid
        tid = self._next[pid] = self._next.get(pid, 0) + 1
        self._names[pid, tid] = str(lane) if not tracks else f"{lane} (overlapping {len(tracks)})"
        if lane is LOOPS:
            self._names[pid, tid] = f"loops {tid}"
        tracks.append((tid, finish))
        return pid, tid

    def names(self) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for owner, pid in self._pids.items():
            if self._next.get(pid) or owner == "memory":
                title = self._title.get(owner, owner)
                out.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": title}})
                out.append({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}})
        for (pid, tid), name in self._names.items():
            out.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
            out.append({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}})
        return out


def _micros(seconds: float) -> float:
    return round(seconds * 1e9) / 1000


def _slice(event: Event, pid: int, tid: int) -> dict[str, Any]:
    command = event.span.command
    arguments: dict[str, Any] = {"op": event.op}
    if event.loop:
        arguments |= {"loop": event.loop, "turn": event.turn}
    if isinstance(command, Copy):
        arguments |= {"from": command.src.node, "to": command.dst.node, "bytes": event.nbytes}
        del arguments["op"]
    elif isinstance(command, Launch) and command.width > 1:
        arguments["width"] = command.width
    start = _micros(event.start)
    return {
        "ph": "X", "name": event.name, "cat": event.kind, "pid": pid, "tid": tid, "ts": start,
        "dur": round(_micros(event.finish) - start, 3), "args": arguments,
    }  # fmt: skip


def _key(event: Event, replica: Replica) -> _Made:
    return (id(event.timeline), replica.value, replica.node, replica.generation, event.turn)


def _flows(placed: Sequence[tuple[Event, int, int]]) -> Iterable[dict[str, Any]]:
    """An arrow from the launch that wrote a copied value to the copy, and from the copy to each launch that reads its replica in that turn."""
    wrote: dict[_Made, tuple[Event, int, int]] = {}
    copied: dict[_Made, tuple[Event, int, int]] = {}
    for item in placed:
        command = item[0].span.command
        if isinstance(command, Launch):
            for replica in command.writes:
                wrote.setdefault(_key(item[0], replica), item)
        elif isinstance(command, Copy):
            copied.setdefault(_key(item[0], command.dst), item)
    out: list[dict[str, Any]] = []
    for item in placed:
        command = item[0].span.command
        sources = []
        if isinstance(command, Copy):
            sources = [wrote.get(_key(item[0], command.src)) or copied.get(_key(item[0], command.src))]
        elif isinstance(command, Launch):
            sources = [copied.get(_key(item[0], replica)) for replica in dict.fromkeys(command.reads)]
        for source in sources:
            if source is not None and source is not item:
                out += _arrow(len(out) // 2 + 1, source, item)
    return out


def _arrow(number: int, source: tuple[Event, int, int], target: tuple[Event, int, int]) -> list[dict[str, Any]]:
    (before, pid, tid), (after, to_pid, to_tid) = source, target
    # A flow event belongs to the slice that encloses it, so it lies one nanosecond inside.
    leave = max(_micros(before.start), _micros(before.finish) - 0.001)
    base = {"name": "data", "cat": "flow", "id": number}
    return [
        {"ph": "s", **base, "pid": pid, "tid": tid, "ts": round(leave, 3)},
        {"ph": "f", "bp": "e", **base, "pid": to_pid, "tid": to_tid, "ts": _micros(after.start)},
    ]


def _memory(timeline: Timeline, found: Sequence[Event], pid: int) -> list[dict[str, Any]]:
    """Counters of the bytes alive in the arena of each memory node. A loop counts with the arena of its body from its start to its finish."""
    steps: dict[str, list[tuple[float, int]]] = {}
    for node, start, finish, nbytes in _lives(timeline):
        steps.setdefault(node, []).extend(((start, nbytes), (finish, -nbytes)))
    for event in found:
        if event.kind == "loop" and event.timeline is timeline and isinstance(event.span.command, Launch):
            body = timeline.loops.get(event.span.command.task)
            for node, nbytes in (body.room if body is not None else {}).items():
                steps.setdefault(node, []).extend(((event.start, nbytes), (event.finish, -nbytes)))
    out = []
    for node, changes in sorted(steps.items()):
        alive = 0
        # At one instant what ends counts before what begins: the bytes of a replica may go over to the next one.
        changes.sort()
        for i, (at, change) in enumerate(changes):
            alive += change
            if i + 1 == len(changes) or changes[i + 1][0] > at:
                out.append({"ph": "C", "name": f"memory {node}", "pid": pid, "tid": 0, "ts": _micros(at), "args": {"bytes": alive}})
    return out


def _lives(timeline: Timeline) -> list[tuple[str, float, float, int]]:
    """(memory node, start, finish, bytes) of everything in an arena; replicas at one offset whose lives touch (in place, views) count once."""
    first: dict[Replica, float] = {}
    last: dict[Replica, float] = {}
    freed: dict[Replica, float] = {}
    for span in timeline.spans:
        command = span.command
        if isinstance(command, Free):
            freed[command.replica] = span.finish
            continue
        writes, reads = (command.writes, command.reads) if isinstance(command, Launch) else ((command.dst,), (command.src,))
        for replica in writes:
            first[replica] = min(first.get(replica, span.start), span.start)
        for replica in (*reads, *writes):
            last[replica] = max(last.get(replica, span.finish), span.finish)
    end = timeline.makespan
    kept = set(timeline.graph.outputs.values())
    by_place: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    for replica, offset in timeline.offsets.items():
        if replica not in first:
            continue
        spec = timeline.graph.value_specs[replica.value]
        nbytes = spec.nbytes if isinstance(spec, Spec) else int(timeline.graph.value_nbytes[replica.value])
        finish = freed.get(replica, end if replica.value in kept else last[replica])
        by_place.setdefault((replica.node, offset), []).append((first[replica], max(finish, first[replica]), nbytes))
    out = []
    for (node, _), lives in by_place.items():
        joined: list[tuple[float, float, int]] = []
        for start, finish, nbytes in sorted(lives):
            if joined and start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], finish), max(joined[-1][2], nbytes))
            else:
                joined.append((start, finish, nbytes))
        out += [(node, start, finish, nbytes) for start, finish, nbytes in joined]
    return out
