"""Rules of time and order: what is read is there, lanes run one span at a time, resources suffice, nothing waits in a circle."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise

from hetsched.check.sheet import BORROWED, MISSING, PROLOGUE, Sheet, lay_out
from hetsched.check.spans import shape
from hetsched.machine import HOST
from hetsched.timeline import Free, Lane, Launch

CHUNK = 4096


def data(sheet: Sheet) -> None:
    """What events read is there in time."""
    for event, span in enumerate(sheet.spans):
        command = span.command
        if isinstance(command, Free):
            continue
        for replica in dict.fromkeys(command.reads if isinstance(command, Launch) else (command.src,)):
            source, key = sheet.source(replica.value, max(sheet.turn[event], 0), replica.node, replica.generation)
            if sheet.span[event] == PROLOGUE:
                source = BORROWED if replica.node == HOST and sheet.is_source(replica.value) else MISSING
            if source == MISSING:
                again = f", evicted {replica.generation} times before," if replica.generation else ""
                text = f"{sheet.name(event)} reads {sheet.value(replica.value)} in {replica.node}{again}; {sheet.whereabouts(replica.value)}"
                sheet.say("missing-copy", (sheet.span[event], replica), text)
            elif source != BORROWED:
                sheet.before[event].append(source)
                sheet.sources[event].append((replica, key))
                if sheet.start[event] < sheet.finish[source] - sheet.tolerance and not sheet.idle[event]:
                    text = f"{sheet.name(event)} starts before {sheet.name(source)} gives it {sheet.value(replica.value)} in {replica.node}"
                    sheet.say("early-start", (sheet.span[event], replica), text)


def edges(sheet: Sheet) -> None:
    """Order-only edges of the graph, reuse edges of the plan, the stop value of a loop."""
    pairs: list[tuple[int | None, int | None, str]] = []
    for turn in range(sheet.turns):
        for first, second in sheet.plan.graph.after:
            since = turn - turn % sheet.every.get(first, 1)
            pairs.append((sheet.launch.get((first, since)), sheet.launch.get((second, turn)), "an order-only edge of the graph"))
        pairs += [(sheet.at.get((edge.before, turn)), sheet.at.get((edge.later, turn + edge.turns)), "a reuse edge") for edge in sheet.plan.after]
    stop = sheet.plan.loop.stop if sheet.plan.loop is not None else None
    if stop is not None:
        # The stop value decides whether there is a next turn: nothing of it starts before.
        for turn in range(1, sheet.turns):
            source, _ = sheet.source(sheet.plan.graph.outputs[stop], turn - 1, HOST)
            if source >= 0:
                pairs += [(source, event, "the loop's stop value") for (_, t), event in sheet.at.items() if t == turn and sheet.spans[event].lanes]
    for a, b, why in pairs:
        if a is None or b is None:
            continue
        sheet.before[b].append(a)
        if sheet.start[b] < sheet.finish[a] - sheet.tolerance and not (sheet.idle[a] or sheet.idle[b]):
            sheet.say("order", (sheet.span[a], sheet.span[b]), f"{sheet.name(b)} starts before {sheet.name(a)} finishes, against {why}")


def lanes(sheet: Sheet) -> None:
    """One span at a time on a lane; the order that lanes give."""
    plan = sheet.plan
    unlimited = {x.id for x in plan.machine.links if x.engines == 0}
    shared = {d.id: d for d in plan.machine.devices if d.shares_lanes}
    # A span longer than the period cannot keep its lane. On threads that share the device's tasks turns rotate over the lanes: these are counted.
    long = [s for s in plan.spans if plan.period and s.finish - s.start > plan.period + sheet.tolerance]
    rotating = {(lane.owner, lane.kind) for s in long for lane in s.lanes if lane.owner in shared and sheet.turns > 1}
    rows: dict[Lane, list[int]] = {}
    for event, span in enumerate(sheet.spans):
        for lane in span.lanes:
            rows.setdefault(lane, []).append(event)
    for lane, events in rows.items():
        if lane.owner in unlimited:
            continue
        events.sort(key=lambda e: (sheet.start[e], sheet.finish[e], e))
        if (lane.owner, lane.kind) not in rotating:
            _one_at_a_time(sheet, lane, events)
        if lane.owner not in shared:
            for a, b in pairwise(events):
                sheet.before[b].append(a)
    for owner, kind in rotating:
        have = shared[owner].io_lanes if kind == "io" else shared[owner].lanes
        held = [(e, sum((lane.owner, lane.kind) == (owner, kind) for lane in span.lanes)) for e, span in enumerate(sheet.spans)]
        over = _above(sheet, held, have)
        if over is not None:
            sheet.say("overlap", (owner, kind), f"{over[0]:g} lanes of {owner} are held when {sheet.name(over[1])} starts; it has {have}")


def _one_at_a_time(sheet: Sheet, lane: Lane, events: list[int]) -> None:
    last = -1
    for event in events:
        if sheet.idle[event] or sheet.finish[event] - sheet.start[event] <= sheet.tolerance:
            continue  # What takes no time overlaps nothing.
        if last >= 0 and sheet.start[event] < sheet.finish[last] - sheet.tolerance:
            text = f"on {lane} {sheet.name(event)} starts while {sheet.name(last)} runs"
            sheet.say("overlap", (lane, sheet.span[last], sheet.span[event]), text)
        if last < 0 or sheet.finish[event] > sheet.finish[last]:
            last = event


def resources(sheet: Sheet) -> None:
    """Shared resources are never taken above capacity. A loop takes what its body takes at most."""
    for resource in sheet.plan.machine.resources:
        over = _above(sheet, _taken(sheet, resource.name), resource.capacity)
        if over is not None:
            text = f"{over[0]:g} of {resource.name} is taken when {sheet.name(over[1])} starts; the machine has {resource.capacity:g}"
            sheet.say("resource", resource.name, text)


def _taken(sheet: Sheet, resource: str) -> list[tuple[int, float]]:
    """Events and how much of `resource` each takes."""
    plan = sheet.plan
    uses = {d.id: d.uses.get(resource, 0.0) for d in plan.machine.devices}
    loops: dict[int, float] = {}
    for task, body in plan.nested:
        inner = Sheet(body)
        if shape(inner):
            lay_out(inner)
            most = _above(inner, _taken(inner, resource), 0.0, highest=True)
            loops[task] = max(loops.get(task, 0.0), most[0] if most else 0.0)
    out = []
    for event, span in enumerate(sheet.spans):
        task = span.command.task if isinstance(span.command, Launch) else -1
        amount = sum(uses.get(lane.owner, 0.0) for lane in span.lanes if lane.kind == "compute")
        out.append((event, loops.get(task, 0.0) if task in plan.loops else amount))
    return out


def _above(sheet: Sheet, held: Iterable[tuple[int, float]], capacity: float, *, highest: bool = False) -> tuple[float, int] | None:
    """The first (or the highest) sum above `capacity` of what events hold at once, and the event that starts there."""
    moments: list[tuple[float, int, float, int]] = []
    for event, amount in held:
        start, finish = sheet.start[event], sheet.finish[event] - sheet.tolerance
        if amount > 0 and finish > start and not sheet.idle[event]:
            moments += [(start, 1, amount, event), (finish, 0, -amount, event)]
    now, found = 0.0, None
    for _, _, amount, event in sorted(moments):
        now += amount
        if amount > 0 and now > capacity * (1 + 1e-9) and (found is None or now > found[0]):
            found = (now, event)
            if not highest:
                break
    return found


def outputs(sheet: Sheet) -> None:
    """Outputs arrive on the host; what a body carries may do so in the epilogue."""
    graph, loop = sheet.plan.graph, sheet.plan.loop
    needed = {*loop.collected, *(b for _, b in loop.carried), *([loop.stop] if loop.stop else [])} if loop else set(graph.outputs)
    for name in sorted(needed) if sheet.turns else ():
        value = graph.outputs[name]
        if sheet.source(value, sheet.turns - 1, HOST)[0] == MISSING:
            sheet.say("output", name, f"output {name!r} ({sheet.value(value)}) never arrives on the host; {sheet.whereabouts(value)}")


def topological(sheet: Sheet) -> list[int] | None:
    """Events in an order that keeps every edge, earliest first; None (and a note of the cycle) where there is none."""
    n = len(sheet.spans)
    after: list[list[int]] = [[] for _ in range(n)]
    missing = [0] * n
    for event, firsts in enumerate(sheet.before):
        sheet.before[event] = firsts = list(dict.fromkeys(firsts))
        missing[event] = len(firsts)
        for first in firsts:
            after[first].append(event)
    ready = [(sheet.start[e], sheet.finish[e], e) for e in range(n) if not missing[e]]
    heapify(ready)
    out: list[int] = []
    while ready:
        _, _, event = heappop(ready)
        out.append(event)
        for later in after[event]:
            missing[later] -= 1
            if not missing[later]:
                heappush(ready, (sheet.start[later], sheet.finish[later], later))
    if len(out) == n:
        return out
    # Every event left waits for one that is left: going back along such edges must close a cycle.
    seen: dict[int, int] = {}
    event = next(e for e in range(n) if missing[e])
    while event not in seen:
        seen[event] = len(seen)
        event = next(e for e in sheet.before[event] if missing[e])
    circle = list(seen)[seen[event] :]
    sheet.say("cycle", "cycle", "each waits for the next: " + ", ".join(sheet.name(e) for e in [*circle[:8], event]))
    return None


def without_path(before: list[list[int]], order: list[int], position: list[int], asked: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """The pairs (from, to) of `asked` that no path along `before` joins."""
    absent: set[tuple[int, int]] = set()
    targets: dict[int, list[int]] = {}
    for a, b in asked:
        if a not in before[b]:
            targets.setdefault(a, []).append(b)
    sources = sorted(targets, key=position.__getitem__)
    for i in range(0, len(sources), CHUNK):
        chunk = sources[i : i + CHUNK]
        bit = {event: 1 << k for k, event in enumerate(chunk)}
        furthest = max(position[b] for a in chunk for b in targets[a])
        reach = [0] * len(order)
        for event in order[position[chunk[0]] : furthest + 1]:
            found = bit.get(event, 0)
            for first in before[event]:
                found |= reach[first]
            reach[event] = found
        absent |= {(a, b) for a in chunk for b in targets[a] if not reach[b] & bit[a]}
    return absent
